# SPDX-License-Identifier: LGPL-2.1-or-later
"""A birth that fails at any kernel call leaves nothing behind, says so, and the next one lives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.privileged.own_spawner import OwnSpawner
from tests.privileged.runtime import CAGED_CONFIGURATION, PREFIX

pytestmark = pytest.mark.timeout(300)
"""There are some hundred calls and steps, and two births for each."""
BIRTHS = Path(__file__).with_name("births.py")


@pytest.fixture(scope="module")
def all_births() -> list[dict[str, Any]]:
    """What came of one birth for each kernel call that there is in one, and for each step of its plans."""
    top = Path(tempfile.mkdtemp(prefix="births-"))
    try:
        config = top / "caged.conf"
        config.write_text(CAGED_CONFIGURATION.format(top=top, prefix=PREFIX, cgroup=f"cage-runtime-{top.name}"))
        ended = subprocess.run(["/usr/bin/python3", "-IS", BIRTHS, PREFIX, config], capture_output=True, text=True,
                               check=False, timeout=245)
        assert ended.returncode == 0, ended.stderr
        assert os.listdir(top / "state/storage") == []
    finally:
        shutil.rmtree(top)
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.fixture(scope="module")
def births(all_births: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those in which a kernel call failed."""
    return [birth for birth in all_births if "call" in birth]


def test_every_kernel_call_of_a_birth_failed_once(births: list[dict[str, Any]]) -> None:
    sides = Counter(birth["side"] for birth in births)
    assert {(birth["side"], birth["of"]) for birth in births} == set(sides.items())
    assert sides["outside"] > 200
    assert sides["inside"] > 100
    failed = {birth["call"] for birth in births}
    assert {"clone3", "fsmount", "openat2", "pivot_root", "move_mount", "open_tree", "mount_setattr", "seccomp_filter",
            "setresuid", "mknod", "bind", "unshare", "setns"} <= failed
    assert {"new", "enter", "tag_socket"} <= failed  # of its security context


def test_a_birth_that_fails_leaves_nothing(all_births: list[dict[str, Any]]) -> None:
    """No directory, mount, cgroup, process, descriptor or context; births.py itself sees to the next one living."""
    assert [birth for birth in all_births if birth["left"]] == []


def test_a_birth_that_fails_says_where(all_births: list[dict[str, Any]]) -> None:
    assert [birth for birth in all_births if "no memory, says the test" not in birth["said"]] == []


def test_every_step_of_a_plan_failed_once_and_is_named(all_births: list[dict[str, Any]]) -> None:
    steps = [birth for birth in all_births if "plan" in birth]
    plans = Counter(birth["plan"] for birth in steps)
    assert {(birth["plan"], birth["of"]) for birth in steps} == set(plans.items())
    assert plans["root"] > 70
    assert plans["child"] > 15
    before = {"root": "the cage's root could not be assembled", "child": "the cage could not be started"}
    assert [birth["said"] for birth in steps] == [
        f"{before[birth['plan']]}: {birth['step']}: [Errno 12] no memory, says the test" for birth in steps]


# --- as a person sees it -------------------------------------------------------------------------------------------
SPAWNER = """from pathlib import Path

from cage_runtime.spawner import birth, root


class Failing:
    def __init__(self, step):
        self.describe = step.describe

    def execute(self, *_):
        raise OSError(12, "no memory, says the test")


def failing(make):
    def made(*arguments):
        fails = Path("{fails}").read_text()
        return [Failing(step) if step.describe() == fails else step for step in make(*arguments)]
    return made


root.plan = failing(root.plan)
birth.Newborn.steps = failing(birth.Newborn.steps)
sys.exit(main())
"""


@pytest.fixture(scope="module")
def fails(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the step that fails says of itself."""
    file: Path = tmp_path_factory.mktemp("fails") / "step"
    file.write_text("")
    return file


@pytest.fixture(scope="module")
def failing(fails: Path) -> Iterator[OwnSpawner]:
    runtime = OwnSpawner(SPAWNER.replace("{fails}", str(fails)))
    runtime.start()
    runtime.ok("create", "work", "--no-start")
    yield runtime
    runtime.ok("destroy", "work", "--yes")
    runtime.remove()


@pytest.mark.parametrize(("step", "before"), [
    ("overlay /usr ro,nosuid,nodev of /usr over {run}/empty", "the cage's root could not be assembled"),
    ("its ids", "the cage could not be started"),
    ("the seal", "the cage could not be started"),
])
def test_what_could_not_be_done_is_said_and_the_cage_is_there(
    failing: OwnSpawner, fails: Path, step: str, before: str
) -> None:
    name = step.format(run=failing.run)
    fails.write_text(name)
    refused = failing.cagectl("start", "work")
    assert (refused.returncode, refused.stdout) == (125, b"")
    assert refused.stderr.decode() == f"cagectl: {before}: {name}: [Errno 12] no memory, says the test\n"
    assert failing.state_of("work") == "stopped"
    assert failing.cgroups() == {}
    fails.write_text("")
    failing.ok("start", "work")
    failing.ok("stop", "work")
