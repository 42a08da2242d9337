# SPDX-License-Identifier: LGPL-2.1-or-later
"""What doctor says of a host, for hosts that are not this one."""

from __future__ import annotations

import pwd

import msgspec
import pytest

from cage_runtime.daemon import doctor
from cage_runtime.daemon.doctor import Check, Health, examine
from cage_runtime.spawner.spec import Host

GOOD = Host(
    kernel="6.12.0", cgroup="/sys/fs/cgroup/cages", controllers=["cpu", "io", "memory", "pids"], landlock_abi=6,
    user_namespaces=10000, memfd_noexec=True, lsm="", lsm_hooks=40, proc_mem="never", ranges=4094, ranges_free=4000,
)


def checks(host: Host = GOOD, *, fault: str | None = None, faults: int = 0,
           authorisation: tuple[bool, str] = (True, "polkit decides"),
           unenforced: dict[str, tuple[str, ...]] | None = None, orphans: tuple[str, ...] = (),
           strangers: dict[int, int] | None = None, idle: tuple[str, ...] = (),
           unseen: int = 0) -> dict[str, Check]:
    found = examine(host, authorisation=authorisation, policy_fault=fault, policy_faults=faults, labels=3,
                    unenforced=unenforced or {}, orphans=orphans, strangers=strangers or {}, idle=idle,
                    unseen=unseen)
    return {check.check: check for check in found}


@pytest.mark.parametrize(
    ("change", "check", "state"),
    [
        ({"user_namespaces": 0}, "user namespaces", Health.MISSING),
        ({"landlock_abi": 2}, "landlock", Health.LIMITED),
        ({"memfd_noexec": False}, "memory files", Health.LIMITED),
        ({"controllers": []}, "controller memory", Health.LIMITED),
        ({"controllers": ["memory"]}, "controller pids", Health.LIMITED),
        ({"ranges_free": 0}, "id ranges", Health.MISSING),
    ],
)
def test_what_a_host_lacks_is_named_with_what_would_help(change: dict[str, object], check: str, state: Health) -> None:
    assert checks()[check].state is Health.OK
    found = checks(msgspec.structs.replace(GOOD, **change))[check]
    assert found.state is state
    assert found.help


def test_a_policy_that_cannot_be_read_is_missing() -> None:
    found = checks(fault="/etc/x.policy:3: there is no action \"maybe\"")["policy"]
    assert (found.state, found.detail) == (Health.MISSING, '/etc/x.policy:3: there is no action "maybe"')


def test_a_policy_that_a_restart_would_not_take_is_told() -> None:
    assert checks()["policy"].state is Health.OK
    found = checks(faults=2)["policy"]
    assert (found.state, "faults by now (2)" in found.detail) == (Health.LIMITED, True)


@pytest.mark.parametrize(("unseen", "begins"), [(1, "1 open question is shown by no"), (3, "3 open questions are ")])
def test_questions_that_nobody_sees_are_told_with_what_would_help(unseen: int, begins: str) -> None:
    assert checks()["questions"].state is Health.OK
    found = checks(unseen=unseen)["questions"]
    assert (found.state, found.detail.startswith(begins)) == (Health.LIMITED, True)
    assert ("cage-desktop" in found.help, "cagectl prompts" in found.help) == (True, True)


def test_a_program_that_is_not_there_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROGRAMS", {"no-such-program": "nothing works"})
    found = checks()["no-such-program"]
    assert (found.state, found.detail) == (Health.MISSING, "nothing works")


def test_what_keeps_the_second_wall_away_is_told_and_what_would_help() -> None:
    found = checks()["security context"]
    assert (found.state, found.detail) == (Health.OK, "enforced by the kernel, at 40 places")
    why = "the kernel's list of LSMs has no bpf; add lsm=landlock,bpf to its command line"
    found = checks(msgspec.structs.replace(GOOD, lsm=why))["security context"]
    assert (found.state, found.detail, "requires lsm" in found.help) == (Health.LIMITED, why, True)


@pytest.mark.parametrize(("told", "state", "word"), [
    ("never", Health.OK, ""), ("always", Health.LIMITED, "proc_mem.force_override=never"),
    ("ptrace", Health.LIMITED, "proc_mem.force_override=never"), ("", Health.LIMITED, "Linux 6.12"),
])
def test_who_may_write_to_what_is_mapped_read_only(told: str, state: Health, word: str) -> None:
    found = checks(msgspec.structs.replace(GOOD, proc_mem=told))["process memory"]
    assert found.state is state
    assert word in found.help


@pytest.mark.parametrize(("abi", "lacks"), [
    (0, "files (Linux 5.13), TCP (6.7), abstract sockets and signals (6.12)"),
    (2, "TCP (6.7), abstract sockets and signals (6.12)"), (4, "abstract sockets and signals (6.12)"),
])
def test_what_an_older_landlock_lacks_is_named(abi: int, lacks: str) -> None:
    found = checks(msgspec.structs.replace(GOOD, landlock_abi=abi))["landlock"]
    assert (found.state, found.detail) == (Health.LIMITED, f"ABI {abi}, without rules about {lacks}")


def test_storage_without_a_cage_is_told() -> None:
    found = checks(orphans=("a" * 32,))["storage"]
    assert found.state is Health.LIMITED
    assert "a" * 32 in found.detail


def test_cages_of_a_person_who_has_left_are_told() -> None:
    nobody_has = next(uid for uid in range(60_000, 1 << 31) if uid not in {entry.pw_uid for entry in pwd.getpwall()})
    strangers = doctor.unknown_owners([0, nobody_has, 0, nobody_has])
    assert strangers == {nobody_has: 2}
    found = checks(strangers=strangers)["persons"]
    assert (found.state, found.detail) == (
        Health.LIMITED, f"uid {nobody_has}, whom this host does not know, has 2 cages")
    assert found.help
    assert "persons" not in checks()


def test_each_mediator_that_does_not_run_is_told() -> None:
    assert (checks()["mediators"].state, "mediator log" in checks()) == (Health.OK, False)
    found = checks(idle=("log", "open"))
    assert [found[f"mediator {name}"].state for name in ("log", "open")] == [Health.LIMITED] * 2
    assert "cage-mediator@log" in found["mediator log"].help
    assert "mediators" not in found
