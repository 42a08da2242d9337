# SPDX-License-Identifier: LGPL-2.1-or-later
"""The spawner needs each of its capabilities, which is shown by taking one at a time, and none besides."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cage_runtime.spawner import capability
from tests.privileged.runtime import CAGED_CONFIGURATION, PREFIX

POWERS = Path(__file__).with_name("powers.py")
WHAT_FAILS = {
    "CAP_SYS_ADMIN": ("begin", "cgroup v2 cannot be mounted on this host: Operation not permitted"),
    "CAP_CHOWN": ("begin", "Operation not permitted"),
    "CAP_DAC_OVERRIDE": ("begin", "state/cages cannot be written"),
    "CAP_MKNOD": ("bear", "device /dev/null 1:3: [Errno 1] Operation not permitted"),
    "CAP_SETUID": ("bear", "the cage could not be started: its namespaces: [Errno 1] Operation not permitted"),
    "CAP_SETGID": ("bear", "the cage could not be started: [Errno 1] Operation not permitted"),
    "CAP_SYS_PTRACE": ("mediate", "the command ended with 1"),
    "CAP_SETPCAP": ("mediate", "the command ended with 1"),
    "CAP_FOWNER": ("remove", f"the storage of {'0123456789abcdef' * 2} could not be deleted"),
}
"""Without it → what cannot be done, and what is said of that."""


OF_CAGE_INIT = {
    "CAP_CHOWN": ("spawn", "cage-init: [Errno 1] Operation not permitted"),
    "CAP_SETGID": ("spawn", "did not start"),
    "CAP_SETUID": ("spawn", "did not start"),
    "CAP_KILL": ("signal", "the command that was told to end goes on"),
    "CAP_SYS_ADMIN": ("expose", "cage-init: [Errno 1] Operation not permitted"),
}


@pytest.fixture
def top() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="powers-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def done_without(top: Path, *names: str) -> tuple[dict[str, Any], str]:
    """What the spawner could do without these capabilities, and what its children complained of."""
    config, group = top / "caged.conf", f"cage-runtime-{top.name}"
    config.write_text(CAGED_CONFIGURATION.format(top=top, prefix=PREFIX, cgroup=group))
    # In a pid namespace: a birth that has failed at what follows it, and its cage, end with this.
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
               "/usr/bin/python3", "-IS", POWERS, PREFIX, config, *names]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert ended.returncode == 0, ended.stderr
    _remove_cgroup(group)
    outcome: dict[str, Any] = json.loads(ended.stdout)
    return outcome, ended.stderr


def _remove_cgroup(name: str) -> None:
    """Of cages that are gone; by a mount that nobody else sees."""
    script = ("mount -t tmpfs none /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && cd /sys/fs/cgroup && "
              '[ ! -d "$1" ] || find "$1" -depth -type d -exec rmdir {} +')
    subprocess.run(["unshare", "--mount", "sh", "-c", script, "sh", name], check=True)


def test_it_does_all_that_it_does_with_those_alone(top: Path) -> None:
    outcome, complaints = done_without(top)
    assert (outcome["failed"], outcome["said"], complaints) == (None, "", "")
    assert set(outcome["held"]) == {capability.NAMES[number] for number in capability.SPAWNER}
    assert os.listdir(top / "state/storage") == []


@pytest.mark.parametrize("name", WHAT_FAILS)
def test_without_one_of_them_something_fails(top: Path, name: str) -> None:
    outcome, _ = done_without(top, name)
    assert name not in outcome["held"]
    step, said = WHAT_FAILS[name]
    assert outcome["failed"] == step, outcome
    assert said in outcome["said"]


@pytest.mark.parametrize("name", OF_CAGE_INIT)
def test_without_one_of_cage_init_s_something_fails(top: Path, name: str) -> None:
    outcome, _ = done_without(top, f"init:{name}")
    step, said = OF_CAGE_INIT[name]
    assert outcome["failed"] == step, outcome
    assert said in outcome["said"]


def test_each_of_them_is_tried() -> None:
    assert set(OF_CAGE_INIT) == {capability.NAMES[number] for number in capability.INIT_CEILING}
    assert set(WHAT_FAILS) == {capability.NAMES[number] for number in capability.SPAWNER}


@pytest.mark.parametrize("name", WHAT_FAILS)
def test_a_start_without_one_of_them_is_refused_and_says_which(top: Path, name: str) -> None:
    config = top / "caged.conf"
    config.write_text(CAGED_CONFIGURATION.format(top=top, prefix=PREFIX, cgroup=f"cage-runtime-{top.name}"))
    short = name.removeprefix("CAP_").lower()
    ended = subprocess.run(["setpriv", f"--bounding-set=-{short}", f"--inh-caps=-{short}", PREFIX / "bin/cage-spawner",
                            "--config", config], capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 125
    said = "may not make namespaces" if name == "CAP_SYS_ADMIN" else f"({name}), and what starts it takes that away"
    assert said in ended.stderr
