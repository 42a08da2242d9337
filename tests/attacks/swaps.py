# SPDX-License-Identifier: LGPL-2.1-or-later
"""Roots of cages that are assembled while somebody swaps what a step is about to use, run by test_host_side.py.

Run as root by the distribution's interpreter: swaps.py RUNTIME DIRECTORY.  For each step of the plan, all before it are
carried out; then the place that it is to be at becomes a link to a canary outside, and it is carried out too.  It
prints one JSON object a step that could be swapped: what it was, how it failed, and what became of the canary.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

RUNTIME, DIRECTORY = sys.argv[1], Path(sys.argv[2])
sys.path[:0] = [f"{RUNTIME}/lib", "/usr/lib/python3/dist-packages"]

from cage_runtime.spawner import root, syscall  # noqa: E402
from cage_runtime.spawner.mount import FOLDER, Operation, Root, Source  # noqa: E402

BASE = 0x7000 << 16


def places(names: list[str]) -> dict[str, Path]:
    made = {name: DIRECTORY / name for name in names}
    for path in made.values():
        path.mkdir()
    return made


def plan(made: dict[str, Path]) -> list[Operation]:
    """In the mount namespace in which it is carried out."""
    return root.plan(root.RootSpec(
        name="swapped", machine_id="0" * 32, identity="{}\n", base=BASE, home=Source.of(made["home"]),
        home_bytes=1 << 20, home_files=64, exec_home=False, programs=RUNTIME, etc=root.SharedEtc(made["etc"]).path(),
        empty=str(made["empty"]), gateway=Source.of(made["gateway"]), boot_id="0" * 32, born=0, memory=1 << 30,
        processors=(0,)))


def target_of(step: Operation) -> str:
    """Where it works, below the root; "" for the root itself."""
    target = getattr(step, "target", None)
    if target is None:
        target = os.path.dirname(getattr(step, "path", ""))
    return str(target).strip("/")


def swap(path: Path, canary: Path) -> bool:
    """Is what was there a link now?  What is mounted on cannot be renamed."""
    try:
        path.rename(path.with_name(f"{path.name}.gone"))
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOENT, errno.EROFS, errno.EXDEV):
            raise
        return False
    path.symlink_to(canary)
    return True


def swapped(step: Operation, top: Path, canary: Path) -> bool:
    """Is there a link where it works, or else where what it makes will be?"""
    target, path = target_of(step), getattr(step, "path", "")
    if target and swap(top / target, canary):
        return True
    if path:
        Path(f"{top}{path}").symlink_to(canary / "made")
    return bool(path)


def attempt(made: dict[str, Path], number: int) -> dict[str, Any] | None:
    """In a mount namespace of its own, which ends with the process."""
    steps, canary = plan(made), made["canary"]
    top = DIRECTORY / "root"
    top.mkdir()
    with Root(os.open(top, FOLDER)) as assembled:
        for step in steps[:number]:
            step.execute(assembled)
        if not swapped(steps[number], top, canary):
            return None
        said = "done"
        try:
            steps[number].execute(assembled)
        except OSError as error:
            said = errno.errorcode[error.errno or 0]
    mounted = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(canary) in line.split()[4]]
    return {"step": steps[number].describe(), "said": said, "canary": [*os.listdir(canary), *mounted],
            "owner": os.stat(canary).st_uid, "mode": os.stat(canary).st_mode & 0o7777}


def apart(made: dict[str, Path], number: int) -> dict[str, Any] | None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            syscall.unshare(syscall.CLONE_NEWNS)
            syscall.mount(None, "/", None, syscall.MS_REC | syscall.MS_PRIVATE)
            os.write(write, json.dumps(attempt(made, number)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as said:
        text = said.read()
    os.waitpid(pid, 0)
    for entry in DIRECTORY.glob("root*"):
        entry.unlink() if entry.is_symlink() else entry.rmdir()
    outcome: dict[str, Any] | None = json.loads(text)
    return outcome


def main() -> None:
    made = places(["home", "gateway", "etc", "empty", "canary"])
    for number in range(len(plan(made))):
        outcome = apart(made, number)
        if outcome is not None:
            sys.stdout.write(json.dumps(outcome) + "\n")


if __name__ == "__main__":
    main()
