# SPDX-License-Identifier: LGPL-2.1-or-later
"""20 of the catalogue: a cage that does all that it can not to end is gone in two seconds, all of it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.conftest import PYTHON
from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import SECONDS, Cage, Runtime, wait_readable

GONE_SECONDS = 2.0
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878

KNOTS = {
    "processes that ignore what they can": """
for number in range(1, 64):
    if number not in (9, 19):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
for _ in range(40):
    if os.fork() == 0: break
""",
    "stopped processes": """
for _ in range(40):
    if os.fork() == 0: os.kill(os.getpid(), signal.SIGSTOP)
""",
    "zombies of a parent that does not look": """
for _ in range(100):
    if os.fork() == 0: os._exit(0)
""",
    "a parent that waits for a child of vfork": """
import subprocess
subprocess._USE_VFORK = True
for _ in range(20):
    if os.fork() == 0:
        libc = ctypes.CDLL(None)
        if libc.syscall(58) == 0:
            while True: libc.pause()
""",
    "sessions and namespaces of their own": """
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        libc = ctypes.CDLL(None)
        libc.unshare(0x10000000)
        break
""",
    "tracers of each other": """
libc = ctypes.CDLL(None, use_errno=True)
for _ in range(20):
    if os.fork() == 0:
        libc.ptrace(0, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGTRAP)
""",
    "descriptors in flight": """
import array, socket
for _ in range(200):
    one, two = socket.socketpair()
    one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [one.fileno(), two.fileno()]))])
""",
}
HEAD, TAIL = "import ctypes, os, signal\nready = os.getpid()\n", """
if os.getpid() == ready: os.write(1, b"ready")
while True: signal.pause()
"""


@pytest.mark.parametrize("knot", KNOTS)
def test_a_cage_is_destroyed_at_once(runtime: Runtime, cage: MakeCage, knot: str) -> None:
    doomed = cage("doomed", "--ephemeral")
    uuid = doomed.uuid
    with doomed.popen(*PYTHON, "-c", HEAD + KNOTS[knot] + TAIL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        wait_readable(process.stdout.fileno(), knot)
        assert process.stdout.read(5) == b"ready"
        pids = runtime.cage_processes(uuid)
        begun = time.monotonic()
        doomed.destroy()
        took = time.monotonic() - begun
        process.wait(SECONDS)
    assert took < GONE_SECONDS
    assert uuid not in runtime.cgroups()
    assert not [path for path in runtime.top.rglob("*") if uuid in path.name]
    assert len(pids) > 1


# --- a process that no signal ends, because its file system does not answer ------------------------------------------
@contextlib.contextmanager
def mounted_home(runtime: Runtime, cage: Cage, image: Path) -> Iterator[Path]:
    """The cage's home as a file system of its own, in the spawner's sight; the cage does not run yet."""
    home, owner = runtime.storage / cage.uuid / "home", cage.base + 1000
    spawner = f"/proc/{runtime.process('cage-spawner')}"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-E", f"root_owner={owner}:{owner}", image], check=True)
    inside = ["nsenter", f"--mount={spawner}/ns/mnt"]
    subprocess.run([*inside, "mount", "-o", "loop,nosuid,nodev", image, home], check=True)
    try:
        yield Path(f"{spawner}/root{home}")
    finally:
        subprocess.run([*inside, "umount", home], check=True)


@contextlib.contextmanager
def frozen(directory: Path) -> Iterator[None]:
    """Nothing that writes there goes on, as on a disk that has stopped to answer (ioctl_fsfreeze)."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, FIFREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(descriptor, FITHAW, 0)
    finally:
        os.close(descriptor)


WRITER = "echo; while :; do echo x > /home/user/file; done"


def is_stuck(pids: list[int]) -> bool:
    """Is one of them in uninterruptible sleep?"""
    states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in pids]
    return "D" in states


def test_a_process_that_cannot_be_killed_holds_nobody_else_up(runtime: Runtime, cage: MakeCage, tmp_path: Path) -> None:
    stuck, other = cage("stuck", "--no-start"), cage("other")
    uuid = stuck.uuid
    with mounted_home(runtime, stuck, tmp_path / "disk") as home:
        runtime.ok("start", "stuck")
        with stuck.popen("sh", "-c", WRITER, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"\n"
            with frozen(home):
                deadline = time.monotonic() + SECONDS
                while not is_stuck(runtime.cage_processes(uuid)):
                    assert time.monotonic() < deadline
                with runtime.popen("kill", "stuck") as killer:
                    # Meanwhile everybody else is served.
                    for _ in range(5):
                        begun = time.monotonic()
                        assert other.sh("echo here") == "here\n"
                        assert runtime.state_of("other") == "running"
                        assert time.monotonic() - begun < GONE_SECONDS
                    assert is_stuck(runtime.cage_processes(uuid))
                    killer.terminate()
            writer.wait(SECONDS)
        begun = time.monotonic()
        runtime.ok("stop", "stuck")
        assert time.monotonic() - begun < GONE_SECONDS
        assert uuid not in runtime.cgroups()
