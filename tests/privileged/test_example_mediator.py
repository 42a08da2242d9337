# SPDX-License-Identifier: LGPL-2.1-or-later
"""The mediator of mediators/README.md: its files are taken out of the page, the runtime is installed with them, and a
cage calls it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.privileged.runtime import TOP, Cage, Ended, Runtime
from tests.privileged.sample import short_directory

PAGE = TOP / "mediators/README.md"
TREE = ("cage_runtime", "mediators", "policies", "scripts", "systemd", "pyproject.toml")
CALL = ("dbus-send", "--system", "--print-reply=literal", "--dest=org.cageruntime.Time1", "/org/cageruntime/Time1",
        "org.cageruntime.Time1.Now")


def files() -> dict[str, str]:
    """The files of the page, by their paths."""
    return dict(re.findall(r"^`([\w./-]+)`:\n```\w+\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))


def rule() -> str:
    """The rule of the page."""
    (found,) = re.findall(r"^    (time\.Now .*)$", PAGE.read_text(), re.MULTILINE)
    return str(found)


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """This tree, with the files of the page."""
    with short_directory() as directory:
        top = directory / "tree"
        for name in TREE:
            copy = shutil.copytree if (TOP / name).is_dir() else shutil.copyfile
            top.mkdir(exist_ok=True)
            copy(TOP / name, top / name)  # type: ignore[operator]
        (top / "scripts").chmod(0o755)
        for script in (TOP / "scripts").iterdir():
            (top / "scripts" / script.name).chmod(script.stat().st_mode & 0o777)
        (top / ".build").symlink_to(TOP / ".build")
        for path, text in files().items():
            (top / path).parent.mkdir(exist_ok=True)
            (top / path).write_text(text)
        yield top


@pytest.fixture(scope="module")
def installed(tree: Path) -> Iterator[Path]:
    """The runtime of that tree; the user that comes with it goes again."""
    prefix = tree.parent / "runtime"
    try:
        subprocess.run([tree / "scripts/install", "--no-system", "--prefix", prefix], check=True, capture_output=True,
                       timeout=300)
        yield prefix
    finally:
        subprocess.run(["userdel", "cage-time"], check=True, capture_output=True)


@pytest.fixture(scope="module")
def runtime(installed: Path) -> Iterator[Runtime]:
    """A core of that installation, where the page's rule lets the cage work ask and nobody else."""
    runtime = Runtime(prefix=installed)
    folder = runtime.top / "etc/policy.d"
    folder.mkdir(parents=True)
    (folder / "30-time.policy").write_text(rule() + "\n")
    runtime.start()
    yield runtime
    runtime.stop()
    runtime.remove()


@pytest.fixture(scope="module")
def cages(runtime: Runtime) -> Iterator[dict[str, Cage]]:
    made = {name: Cage(runtime, name) for name in ("work", "other")}
    for name in made:
        runtime.ok("create", name)
    yield made
    for cage in made.values():
        cage.destroy()


def ask(cage: Cage) -> Ended:
    return cage.enter(*CALL)


def test_the_page_has_the_files_of_one_mediator_in_sixty_lines() -> None:
    found = files()
    assert set(found) == {"policies/mediators.d/time.toml", *(f"mediators/time/{name}" for name in (
        "__init__.py", "cage.py", "core.py", "interface.xml"))}
    lines = [line for path, text in found.items() if path.endswith((".py", ".toml")) for line in text.splitlines()]
    assert len([line for line in lines if line.strip()]) <= 60


def test_it_is_as_sound_as_the_others(tree: Path) -> None:
    python = [path for path in files() if path.endswith(".py")]
    subprocess.run([sys.executable, "-m", "ruff", "check", *python], cwd=tree, check=True)
    subprocess.run([sys.executable, "-m", "mypy", "--no-error-summary", "mediators/time"], cwd=tree, check=True)


def test_a_cage_is_told_where_a_rule_says_so(runtime: Runtime, cages: dict[str, Cage]) -> None:
    before, ended, after = int(time.time()), ask(cages["work"]), int(time.time())
    assert ended.returncode == 0, ended.stderr.decode()
    said = re.fullmatch(r"\s*int64 (\d+)\s+(\S+)\s+int32 (-?\d+)\s*", ended.stdout.decode())
    assert said is not None, ended.stdout
    assert before <= int(said[1]) <= after
    assert (said[2], int(said[3])) == (time.localtime().tm_zone, time.localtime().tm_gmtoff)
    (told,) = runtime.events("transfer")
    assert (told["cage"], told["service"], told["target"]) == ("work", "time.Now", "@core")
    assert told["outcome"] == "the time was told"
    assert {event["rule"].rpartition("/")[2] for event in runtime.events("decision")} == {"30-time.policy:1"}


def test_a_cage_that_no_rule_lets_is_refused(runtime: Runtime, cages: dict[str, Cage]) -> None:
    ended = ask(cages["other"])
    assert ended.returncode == 1
    assert b"org.cageruntime.Error.PolicyRefused" in ended.stderr
    assert runtime.events("decision")[-1]["decision"] == "deny"
    assert len(runtime.events("transfer")) == 1


def test_what_no_other_file_names_has_a_user_and_a_process_of_its_own(runtime: Runtime) -> None:
    pid = runtime.process("cage-mediator time")
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    listed = subprocess.run(["id", "-u", "cage-time"], capture_output=True, text=True, check=True).stdout.strip()
    assert status["Uid"].split() == [listed] * 4
    assert status["CapEff"].strip() == "0" * 16
    assert runtime.json("doctor")
