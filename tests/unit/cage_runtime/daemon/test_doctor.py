# SPDX-License-Identifier: LGPL-2.1-or-later
"""What doctor says of hosts that lack something: what is missing, and what would help."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cage_runtime.daemon import doctor
from cage_runtime.daemon.doctor import Check, Health, examine
from cage_runtime.spawner.spec import Host

GOOD = Host(kernel="6.12", cgroup="/c", controllers=["cpu", "io", "memory", "pids"], landlock_abi=6, lsm=[],
            user_namespaces=1000, memfd_noexec=True, ranges=4094, ranges_free=10)


def checks(host: Host = GOOD, fault: str | None = None, **unenforced: tuple[str, ...]) -> dict[str, Check]:
    found = examine(host, polkit=False, policy_fault=fault, labels=3, unenforced=unenforced)
    return {check.check: check for check in found}


def test_every_check_that_is_not_well_says_what_would_help() -> None:
    bad = msgspec.structs.replace(GOOD, controllers=[], landlock_abi=0, user_namespaces=0, ranges_free=0)
    for check in checks(bad, "x.policy:1: no").values():
        assert bool(check.help) is (check.state is not Health.OK), check


@pytest.mark.parametrize(("change", "check", "state"), [
    ({"user_namespaces": 0}, "user namespaces", Health.MISSING),
    ({"ranges_free": 0}, "id ranges", Health.MISSING),
    ({"landlock_abi": 2}, "landlock", Health.LIMITED),
    ({"controllers": ["cpu", "io", "pids"]}, "controller memory", Health.LIMITED),
])
def test_what_the_host_lacks(change: dict[str, object], check: str, state: Health) -> None:
    assert checks()[check].state is Health.OK
    assert checks(msgspec.structs.replace(GOOD, **change))[check].state is state


def test_a_program_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _program, path: None if path else tmp_path)
    flatpak = checks()["flatpak"]
    assert (flatpak.state, flatpak.help) == (Health.MISSING, "install the package that has flatpak")
    assert "no applications" in flatpak.detail


def test_a_bad_policy() -> None:
    policy = checks(fault="30-mine.policy:3: nonsense")["policy"]
    assert (policy.state, policy.detail) == (Health.MISSING, "30-mine.policy:3: nonsense")


def test_limits_that_a_cage_does_without() -> None:
    told = checks(work=("memory: no memory controller",), vault=())
    assert told["cage work"] == Check(check="cage work", state=Health.LIMITED, detail="memory: no memory controller",
                                      help="see cagectl status work")
    assert "cage vault" not in told
