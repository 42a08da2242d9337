# SPDX-License-Identifier: LGPL-2.1-or-later
"""A state directory that is not as it has to be: each program says which path, what would help, and touches nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.privileged.runtime import PREFIX, SECONDS, USERS, Cage, Runtime

CAGED = "caged"


class Ground(Runtime):
    """A runtime that does not run, and a state directory with a cage in it."""

    def abandon(self) -> None:
        """As `remove`, for one that was never started."""
        self._bus.terminate()
        self._bus.wait(SECONDS)
        shutil.rmtree(self.top)

    def programs(self, *names: str) -> list[list[str]]:
        """The command lines of programs as the core starts them; "standalone" is all of them."""
        commands = []
        for name in names:
            program, *words = ["caged", "--standalone"] if name == "standalone" else [name]
            words += ["files"] if name == "cage-mediator" else []
            user = "root" if name == "standalone" else USERS[name]
            through = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"] if user != "root" else []
            commands.append([*through, str(PREFIX / "bin" / program), *words, "--config", str(self.config)])
        return commands

    def everything(self) -> dict[str, tuple[object, ...]]:
        """All that is below the state directory, as lstat(2) and the content have it."""
        found = {}
        for folder, names, files in os.walk(self.state):
            for name in (*names, *files, "."):
                path = Path(folder, name)
                it = path.lstat()
                content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
                found[str(path)] = (it.st_mode, it.st_uid, it.st_gid, it.st_mtime_ns, content)
        return found

    def refusals(self, *names: str, through: tuple[str, ...] = ()) -> set[str]:
        """What each of the programs says; all of them have to refuse, in a line, and change nothing."""
        before = self.everything()
        said = set()
        for command in self.programs(*names):
            ended = subprocess.run([*through, *command], env=self.environment(), capture_output=True, text=True,
                                   timeout=SECONDS, check=False)
            assert ended.returncode == (os.EX_CONFIG if command[-3].endswith("/caged") else 125), ended.stderr
            assert ended.stderr.count("\n") == 1, ended.stderr
            said.add(ended.stderr.partition(": ")[2].removeprefix("ERROR: ").strip())
        assert self.everything() == before
        return said


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    ground = Ground()
    ground.start()
    ground.ok("create", "work", "--no-start")
    ground.stop()
    yield ground
    ground.start()
    ground.ok("destroy", "work", "--yes")
    ground.remove()


@pytest.fixture
def broken(ground: Ground) -> Iterator[Callable[[str], Path]]:
    """The path of something in the state directory that is as it was when the test has ended."""
    broken: list[tuple[Path, os.stat_result]] = []

    def find(name: str) -> Path:
        path = ground.state / name
        broken.append((path, path.lstat()))
        return path

    yield find
    for path, before in broken:
        os.chown(path, before.st_uid, before.st_gid, follow_symlinks=False)
        path.chmod(before.st_mode & 0o7777)


@pytest.mark.parametrize(("name", "owner", "programs"), [
    ("cages", "caged", ("cage-spawner", "caged", "standalone")),
    ("audit", "caged", ("cage-spawner", "caged", "standalone")),
    ("staging", "cage-files", ("cage-spawner", "cage-mediator", "standalone")),
    ("flatpak", "cage-apps", ("cage-spawner", "cage-apps", "standalone")),
])
def test_a_folder_of_somebody_else(
    ground: Ground, broken: Callable[[str], Path], name: str, owner: str, programs: tuple[str, ...]
) -> None:
    path = broken(name)
    os.chown(path, 0, 0)
    assert ground.refusals(*programs) == {
        f"{path} belongs to uid 0 and has to belong to {owner}: chown -R {owner}: {path}"}


def test_a_folder_of_root_that_is_not(ground: Ground, broken: Callable[[str], Path]) -> None:
    path = broken("storage")
    os.chown(path, 65534, 65534)
    assert ground.refusals("cage-spawner", "standalone") == {
        f"{path} belongs to uid 65534 and has to belong to root: chown root: {path}"}


def test_a_folder_that_others_may_write(ground: Ground, broken: Callable[[str], Path]) -> None:
    path = broken("audit")
    path.chmod(0o777)
    assert ground.refusals("cage-spawner", "caged", "standalone") == {
        f"{path} has the mode 0777 and has to have 0700: chmod 0700 {path}"}


def test_a_state_directory_that_lets_nobody_pass(ground: Ground, broken: Callable[[str], Path]) -> None:
    path = broken("")
    path.chmod(0o700)
    assert ground.refusals("cage-spawner", "standalone") == {
        f"{path} has the mode 0700 and has to have 0755: chmod 0755 {path}"}
    (said,) = ground.refusals(CAGED)
    assert f"{path}/cages cannot be looked at: Permission denied: the directories that it is in" in said


def test_all_of_it_at_once(ground: Ground, broken: Callable[[str], Path]) -> None:
    """As after chown -R root."""
    for name in ("cages", "audit", "staging", "flatpak"):
        os.chown(broken(name), 0, 0)
    (said,) = ground.refusals("cage-spawner", "standalone")
    assert [fault.split(" ")[0] for fault in said.split("; ")] == [
        str(ground.state / name) for name in ("cages", "audit", "flatpak", "staging")]


def test_a_state_directory_that_is_read_only(ground: Ground) -> None:
    script = f'mount --bind {ground.state} {ground.state} && mount -o remount,bind,ro {ground.state} && exec "$@"'
    through = ("unshare", "--mount", "/bin/sh", "-ec", script, "sh")
    (said,) = ground.refusals(CAGED, through=through)
    advice = "its file system is read-only; mount it writable, or name another place in caged.conf"
    assert said == "; ".join(f"{ground.state}/{name} cannot be written: {advice}" for name in ("cages", "audit"))
    (said,) = ground.refusals("cage-spawner", "standalone", through=through)
    assert f"{ground.state}/storage cannot be written: {advice}" in said


def test_a_read_only_var_without_a_state_directory(tmp_path: Path) -> None:
    empty = Ground()
    try:
        script = f'mount -t tmpfs -o ro tmpfs {tmp_path} && exec "$@"'
        empty.config.write_text(empty.config.read_text().replace(f'"{empty.state}"', f'"{tmp_path}/state"'))
        (said,) = empty.refusals("cage-spawner", through=("unshare", "--mount", "/bin/sh", "-ec", script, "sh"))
        assert said.startswith(f"{tmp_path}/state is missing and cannot be made: Read-only file system: its file ")
    finally:
        empty.abandon()


# --- what belongs to one cage is no matter to the others -------------------------------------------------------------
@pytest.fixture
def running(ground: Ground) -> Iterator[Ground]:
    yield ground
    ground.stop()


def test_a_home_that_is_not_the_cages(running: Ground, broken: Callable[[str], Path]) -> None:
    running.start()
    work = Cage(running, "work")
    home, owner = broken(f"storage/{work.uuid}/home"), work.base + 1000
    os.chown(home, 0, 0)
    refused = running.cagectl("start", "work")
    assert (refused.returncode, refused.stderr.decode()) == (
        125, f"cagectl: {home} belongs to uid 0 and has to belong to the cage's user: "
             f"chown -R {owner}:{owner} {home}\n")
    assert (home.lstat().st_uid, running.state_of("work")) == (0, "stopped")
    running.ok("create", "other")
    Cage(running, "other").destroy()


def test_a_definition_that_is_not_the_cores(running: Ground, broken: Callable[[str], Path]) -> None:
    path = broken("cages/work")
    os.chown(path, 0, 0)
    running.start()
    assert running.json("list") == []
    checks = json.loads(running.cagectl("doctor", "--json=short").stdout)
    assert [check["detail"] for check in checks if str(path) in check["detail"]] == [
        f"{path} belongs to uid 0: chown -R caged: {path}, and start caged again"]
    os.chown(path, path.parent.stat().st_uid, -1)
    running.restart()
    assert running.state_of("work") == "stopped"
