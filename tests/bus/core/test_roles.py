# SPDX-License-Identifier: LGPL-2.1-or-later
"""Private cages, into which nobody looks, and those who watch, who change nothing; and what the kernel enforces."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from cage_runtime.daemon.rights import RIGHTS, About, Does
from cage_runtime.spawner import spec
from tests.bus.core.conftest import CORE, PATH, SECONDS, Client, Core, Refusal
from tests.bus.core.polkit import NO, YES, FakePolkit
from tests.bus.core.test_authorisation import (
    ALICE,
    BOB,
    HERS,
    HIS,
    MANAGER,
    NOBODYS,
    Outcome,
    introspected,
    names,
    none,
    outcome,
    polkit,
    records,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it connects as several persons")

WATCHER = "lp"
"""Whose own group is the one that watches, here."""
SEES = "members of the group lp see what there is, and neither change it nor look inside"
__all__ = ["polkit"]


def called(client: Client, member: str, cage: str) -> Outcome:
    """The member about that cage, if it is about one."""
    about = RIGHTS[member].about
    first: dict[About, tuple[Any, ...]] = {
        About.CAGE: (cage,), About.NEW: ("d-cage",), About.PAIR: (cage, "files.Send", "", cage)}
    last = [{"count": ("u", 5)}] if member == "TailAudit" else []
    if member == "SimulatePolicy":  # of the host, and about cages that there are
        return outcome(client, member, cage, "files.Send", "", cage)
    return outcome(client, member, *first.get(about, ()), *last)


def client_of(core: Core, person: str) -> Iterator[Client]:
    client = core.client_of(person)
    yield client
    client.close()


@pytest.fixture
def alice(core: Core) -> Iterator[Client]:
    yield from client_of(core, ALICE)


@pytest.fixture
def bob(core: Core) -> Iterator[Client]:
    yield from client_of(core, BOB)


@pytest.fixture
def watcher(core: Core) -> Iterator[Client]:
    yield from client_of(core, WATCHER)


# --- who watches -----------------------------------------------------------------------------------------------------
@pytest.fixture
def watched(polkit: FakePolkit, alice: Client, client: Client) -> None:
    """Alice has a cage that runs, and root has one."""
    polkit.says = lambda _asked: YES
    for caller, name in ((alice, HERS), (client, HIS)):
        caller.call("Create", "sa{sv}", name, {"level": ("s", "public")})
    polkit.take()


def test_there_is_no_method_without_a_class() -> None:
    """So that a new one is refused to those who watch before anybody has thought of them."""
    assert MANAGER is not None
    assert RIGHTS.keys() == {method.attrib["name"] for method in MANAGER.findall("method")}
    assert {right.does for right in RIGHTS.values()} == set(Does)


@pytest.mark.usefixtures("watched", "apps")
def test_who_watches_is_told_everything_and_refused_the_rest(core: Core, polkit: FakePolkit, watcher: Client,
                                                             client: Client) -> None:
    """Whatever polkit would say: it is not asked."""
    core.spawner.requests.clear()
    before = [cage["uuid"][1] for cage in client.call("List", "a{sv}", {})]
    for member, right in RIGHTS.items():
        for name in (HERS, HIS):
            refused = "NotAuthorized", f"{member} is not authorised: {SEES}"
            assert called(watcher, member, name) == (("", "") if right.does is Does.TELLS else refused), member
    assert polkit.take() == []
    reading = spec.Inspect | spec.Enforced | spec.Describe
    assert [request for request in core.spawner.requests if not isinstance(request, reading)] == []
    assert [cage["uuid"][1] for cage in client.call("List", "a{sv}", {})] == before
    assert {HERS, HIS} == set(names(watcher))
    assert called(watcher, "Status", NOBODYS) == none(NOBODYS)


@pytest.mark.usefixtures("watched", "apps")
def test_who_watches_sees_every_cage_s_object_and_no_job(watcher: Client, alice: Client) -> None:
    assert introspected(watcher, f"{PATH}/cage") == ["a_2dcage", "b_2dcage"]
    assert watcher.properties(f"{PATH}/cage/a_2dcage", f"{CORE}.Cage")["Name"] == HERS
    job = alice.call("InstallApplication", "ssa{sv}", HERS, "org.example.App", {})
    for member in ("Wait", "Cancel"):
        with pytest.raises(Refusal) as refused:
            watcher.call(member, interface=f"{CORE}.Job", path=job)
        assert refused.value.name == "org.freedesktop.DBus.Error.UnknownObject"
    alice.call("Wait", interface=f"{CORE}.Job", path=job)


@pytest.mark.usefixtures("watched")
def test_who_watches_and_tries_to_change_is_recorded(watcher: Client, client: Client) -> None:
    before = records(client)
    assert called(watcher, "Destroy", HERS)[0] == "NotAuthorized"
    assert called(watcher, "List", "")[0] == ""
    assert records(client) == before + 1
    (last,) = client.call("TailAudit", "a{sv}", {"count": ("u", 1)})
    fields = json.loads(last)["fields"]
    assert (fields["method"], fields["cage"], fields["reason"]) == ("Destroy", HERS, SEES)


def test_who_watches_needs_no_polkit_and_root_of_the_host_is_no_watcher(core: Core, client: Client) -> None:
    client.call("Create", "sa{sv}", HIS, {})
    for caller, stopped in ((watching := core.client_of(WATCHER), False), (client, True)):
        assert names(caller) == [HIS]
        assert (outcome(caller, "Stop", HIS) == ("", "")) is stopped
    watching.close()


# --- private cages ---------------------------------------------------------------------------------------------------
@pytest.fixture
def private(polkit: FakePolkit, bob: Client) -> None:
    """Bob has a private cage."""
    polkit.says = lambda _asked: YES
    bob.call("Create", "sa{sv}", HIS, {"private": ("b", True), "level": ("s", "secret")})
    polkit.take()


def closed(member: str) -> Outcome:
    return "PrivateCage", (f"{member} is not authorised: {HIS} is private; nobody enters it or reads its log, also not "
                           "who runs this host")


@pytest.mark.usefixtures("private")
def test_nobody_enters_a_private_cage_or_reads_its_log(core: Core, polkit: FakePolkit, alice: Client, bob: Client,
                                                       client: Client) -> None:
    """Its owner, whoever may all by polkit's rules, and root."""
    core.spawner.requests.clear()
    before = records(client)
    for caller in (bob, alice, client):
        for member in ("Enter", "CopyIn", "CopyOut", "Logs"):
            assert called(caller, member, HIS) == closed(member)
    assert called(alice, "Run", HIS) == called(client, "Run", HIS) == (
        "PrivateCage", f"Run is not authorised: {HIS} is private; its owner alone runs its applications")
    assert core.spawner.requests == []
    assert records(client) == before + 14
    # Whoever may not even know of it learns nothing.
    polkit.says = lambda _asked: NO
    for member in ("Enter", "CopyIn", "CopyOut"):
        assert [called(alice, member, name) for name in (HIS, NOBODYS)] == [none(HIS), none(NOBODYS)]


@pytest.mark.usefixtures("private", "apps")
def test_its_owner_runs_its_applications_and_all_else_works(core: Core, bob: Client, client: Client) -> None:
    bob.call("Wait", interface=f"{CORE}.Job",
             path=bob.call("InstallApplication", "ssa{sv}", HIS, "org.example.App", {}))
    assert outcome(bob, "Run", HIS, "org.example.App") == ("", "")
    assert isinstance(core.spawner.requests[-1], spec.Spawn)
    for member in ("Pause", "Resume", "Stop", "Start", "Status", "Show", "Kill", "Enable", "Disable"):
        assert called(client, member, HIS) == ("", ""), member
    status = bob.call("Status", "sa{sv}", HIS, {})
    assert (status["private"], status["state"]) == (("b", True), ("s", "stopped"))
    # That it is private goes with its home, for the spawner; and nobody has been asked for its log when it was stopped.
    births = [request for request in core.spawner.requests if isinstance(request, spec.Birth)]
    stores = [request for request in core.spawner.requests if isinstance(request, spec.MakeStorage)]
    assert [request.private for request in [*stores, *births]] == [True] * 3
    assert not [request for request in core.spawner.requests if isinstance(request, spec.Logs)]
    assert called(client, "Destroy", HIS) == ("", "")


@pytest.mark.usefixtures("private")
def test_a_private_cage_stays_private_when_caged_starts_anew(core: Core, client: Client) -> None:
    core.stop()
    core.start()
    assert called(client, "Enter", HIS) == closed("Enter")
    assert 'private = true' in client.call("Show", "sa{sv}", HIS, {})


# --- what is enforced ------------------------------------------------------------------------------------------------
WHY = "the kernel's list of LSMs has no bpf"


def test_a_cage_that_requires_what_is_not_enforced_is_refused_with_the_doctors_sentence(core: Core,
                                                                                       client: Client) -> None:
    core.stop()
    core.spawner.host = msgspec.structs.replace(core.spawner.host, lsm=WHY)
    core.start()
    (check,) = (each for each in client.call("Doctor", "a{sv}", {}) if each["check"][1] == "security context")
    assert (check["state"][1], check["detail"][1]) == ("limited", WHY)
    with pytest.raises(Refusal) as refused:
        client.call("Create", "sa{sv}", HIS, {"require": ("as", ["lsm"])})
    assert (refused.value.name, refused.value.sentence) == (
        "HostUnsupported", f'the definition requires "lsm", which is not enforced here: {WHY}')
    assert names(client) == []
    client.call("Create", "sa{sv}", HIS, {"require": ("as", ["landlock"])})


def test_a_cage_that_requires_it_is_not_started_where_it_has_gone(core: Core, client: Client) -> None:
    client.call("Create", "sa{sv}", HIS, {"require": ("as", ["lsm"])})
    birth = next(request for request in core.spawner.requests if isinstance(request, spec.Birth))
    assert birth.require == ["lsm"]
    client.call("Stop", "sa{sv}", HIS, {})
    core.stop()
    core.spawner.host = msgspec.structs.replace(core.spawner.host, lsm=WHY)
    core.start()
    assert called(client, "Start", HIS) == (
        "HostUnsupported", f'the definition requires "lsm", which is not enforced here: {WHY}')


@pytest.mark.parametrize(("value", "sentence"), [
    (["apparmor"], 'require[0]: must be "lsm" or "landlock"'), (["lsm"] * 3, "require: must have at most 2 entries"),
])
def test_an_unknown_wall_is_an_error(client: Client, value: list[str], sentence: str) -> None:
    with pytest.raises(Refusal) as refused:
        client.call("Create", "sa{sv}", HIS, {"require": ("as", value)})
    assert (refused.value.name, refused.value.sentence) == ("InvalidArgument", sentence)
    text = f'level = "public"\nrequire = {json.dumps(value)}\n'
    with pytest.raises(Refusal) as refused:
        client.call("Create", "sa{sv}", HIS, {"definition": ("s", text), "definition-file": ("s", "my.toml")})
    assert (refused.value.name, refused.value.sentence) == ("InvalidDefinition", f"my.toml:2: {sentence}")


def test_status_tells_the_walls_and_what_was_refused(core: Core, client: Client) -> None:
    client.call("Create", "sa{sv}", HIS, {})
    core.spawner.enforcement = spec.Enforcement(xid=16, lsm="", denials={"kill": 3, "ptrace": 1})
    status = client.call("Status", "sa{sv}", HIS, {})
    walls = {name: {key: value for key, (_, value) in wall.items()} for name, wall in status["walls"][1].items()}
    assert walls.keys() == {"namespaces", "seccomp", "landlock", "lsm"}
    assert walls["lsm"] == {"enforced": True, "detail": "context 16"}
    assert status["denials"] == ("a{st}", {"kill": 3, "ptrace": 1})
    core.spawner.enforcement = spec.Enforcement(xid=0, lsm=WHY, denials={})
    status = client.call("Status", "sa{sv}", HIS, {})
    assert status["walls"][1]["lsm"] == {"enforced": ("b", False), "detail": ("s", WHY)}
    client.call("Stop", "sa{sv}", HIS, {})
    status = client.call("Status", "sa{sv}", HIS, {})
    assert (status["walls"], status["denials"]) == (("a{sa{sv}}", {}), ("a{st}", {}))


def test_what_the_kernel_refuses_is_recorded_once_however_much_it_is(core: Core, client: Client) -> None:
    client.call("Create", "sa{sv}", HIS, {})
    uuid = client.call("Status", "sa{sv}", HIS, {})["uuid"][1]
    before = records(client)
    for times in range(1, 200):
        core.spawner.tell(spec.Denied(uuid=uuid, xid=16, denials={"kill": times * 1000}))
    client.until(lambda: records(client) == before + 1)
    core.spawner.tell(spec.Denied(uuid="f" * 32, xid=17, denials={"kill": 1}))
    core.spawner.tell(spec.Ended(uuid=uuid, answered={"sysinfo": 7}))
    deadline = time.monotonic() + SECONDS
    while client.call("Status", "sa{sv}", HIS, {})["state"][1] != "stopped":
        assert time.monotonic() < deadline
    events = [json.loads(line) for line in client.call("TailAudit", "a{sv}", {"count": ("u", 4)})]
    assert [(event["kind"], event["fields"].get("operation"), event["fields"].get("count")) for event in events] == [
        ("denied-by-kernel", "kill", "1000"), ("denied-by-kernel", "kill", "198000"),
        ("calls-answered", "sysinfo", "7"), ("cage-stopped", None, None)]
    assert events[0]["fields"]["cage"] == HIS
