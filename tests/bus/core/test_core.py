# SPDX-License-Identifier: LGPL-2.1-or-later
"""caged on the bus: its objects, its signals, its refusals, and what it does when its spawner fails or is gone."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

import pytest

from cage_runtime.model import JOBS_MAX
from cage_runtime.spawner import spec
from tests.bus.core.conftest import CORE, PATH, SECONDS, Client, Core, FakeApps, Refusal

CAGE = f"{PATH}/cage/"
STANDARD = "org.freedesktop.DBus.Error"


def created(client: Client, name: str, **options: Any) -> str:
    return str(client.call("Create", "sa{sv}", name, options))


def states(client: Client) -> dict[str, str]:
    return {cage["name"][1]: cage["state"][1] for cage in client.call("List", "a{sv}", {})}


# --- what there is -------------------------------------------------------------------------------------------------
def test_cages_are_managed_objects(client: Client) -> None:
    assert created(client, "work", level=("s", "internal"), compartments=("as", ["legal", "finance"])) == CAGE + "work"
    assert created(client, "other-one", start=("b", False)) == CAGE + "other_2done"
    managed = client.call("GetManagedObjects", interface="org.freedesktop.DBus.ObjectManager")
    assert set(managed) == {CAGE + "work", CAGE + "other_2done"}
    properties = {name: value for name, (_, value) in managed[CAGE + "work"][f"{CORE}.Cage"].items()}
    assert len(properties.pop("Uuid")) == 32
    assert properties == {"Name": "work", "State": "running", "Level": "internal",
                          "Compartments": ["finance", "legal"], "Ephemeral": False, "Owner": os.geteuid(),
                          "Autostart": False}
    assert client.properties(CAGE + "other_2done", f"{CORE}.Cage")["State"] == "stopped"


def test_a_cages_life_in_signals(client: Client) -> None:
    with client.signals() as following:
        created(client, "work")
        assert following() == (PATH, "CageAdded", ("work", CAGE + "work"))

        def next_state() -> str:
            path, member, (interface, changed, invalidated) = following()
            assert (path, member, interface, invalidated) == (CAGE + "work", "PropertiesChanged", f"{CORE}.Cage", [])
            return str(changed["State"][1])

        assert [next_state(), next_state()] == ["starting", "running"]
        client.call("Pause", "sa{sv}", "work", {})
        assert next_state() == "paused"
        client.call("Resume", "sa{sv}", "work", {})
        assert next_state() == "running"
        client.call("Stop", "sa{sv}", "work", {})
        assert [next_state(), next_state()] == ["stopping", "stopped"]
        client.call("Destroy", "sa{sv}", "work", {})
        assert next_state() == "stopping"
        assert following() == (PATH, "CageRemoved", ("work", CAGE + "work"))


def test_a_cage_that_ends_by_itself_is_stopped(core: Core, client: Client) -> None:
    created(client, "work")
    with client.signals() as following:
        core.spawner.end(next(iter(core.spawner.running)))
        assert following()[2][1]["State"] == ("s", "stopped")
    assert states(client) == {"work": "stopped"}


# --- what is not understood ------------------------------------------------------------------------------------------
WRONG: list[tuple[str, str, tuple[Any, ...], str, str]] = [
    ("Create", "sa{sv}", ("x", {"colour": ("s", "red")}), "InvalidArgument", 'unknown option "colour"'),
    ("Create", "sa{sv}", ("x", {"level": ("u", 5)}), "InvalidArgument", "level: must be text, not a whole number"),
    ("Create", "sa{sv}", ("x", {"start": ("s", "no")}), "InvalidArgument", "start: must be true or false, not text"),
    ("Create", "sa{sv}", ("x", {"memory": ("s", "lots")}), "InvalidArgument",
     'memory: must be a size of 4K or more, such as "512M" or "2G", and at most 999999T'),
    ("Create", "s", ("x",), f"{STANDARD}.InvalidArgs", 'Create takes the signature "sa{sv}", not "s"'),
    ("Create", "sa{ss}", ("x", {}), f"{STANDARD}.InvalidArgs", 'Create takes the signature "sa{sv}", not "sa{ss}"'),
    ("Create", "sa{sv}", ("X", {}), "InvalidName",
     '"X" cannot be a cage\'s name: use 1 to 31 of a-z, 0-9 and "-", first a letter'),
    ("Create", "sa{sv}", ("x", {"level": ("s", "top")}), "UnknownLevel",
     'there is no level "top"; this host has public, internal, secret'),
    ("List", "a{sv}", ({"all": ("b", True)},), "InvalidArgument", 'unknown option "all"'),
    ("Enter", "sasa{sv}", ("x", ["true"], {}), "NoSuchCage",
     'there is no cage "x"; cagectl list shows those there are'),
    ("TailAudit", "a{sv}", ({"count": ("u", 0)},), "InvalidArgument", "count: 1 to 10000 records"),
    ("Frobnicate", "", (), f"{STANDARD}.UnknownMethod", f"{PATH} has no method {CORE}.Manager.Frobnicate"),
]


@pytest.mark.parametrize(("member", "signature", "arguments", "name", "sentence"), WRONG)
def test_what_is_wrong_is_said(
    client: Client, member: str, signature: str, arguments: tuple[Any, ...], name: str, sentence: str
) -> None:
    with pytest.raises(Refusal) as refused:
        client.call(member, signature, *arguments)
    assert (refused.value.name, refused.value.sentence) == (name, sentence)
    assert states(client) == {}


def test_a_descriptor_that_nobody_asked_for_is_an_error(core: Core, client: Client) -> None:
    assert states(client) == {}  # it has begun to serve, and what that opens is open
    before = descriptors_of(core)
    for _ in range(3):
        with open(os.devnull, "rb") as file, pytest.raises(Refusal) as refused:
            client.call("List", "a{sv}", {"file": ("h", file.fileno())})
        assert refused.value.name == f"{STANDARD}.InvalidArgs"
    assert descriptors_of(core) == before


def descriptors_of(core: Core) -> int:
    return len(os.listdir(f"/proc/{core.pid}/fd"))


# --- who may ---------------------------------------------------------------------------------------------------------
def test_whoever_is_not_the_administrator_may_nothing(core: Core) -> None:
    core.stop()
    core.start(administrator=os.geteuid() + 1)
    client = core.client()
    for member, signature, arguments in (
        ("Create", "sa{sv}", ("work", {})), ("List", "a{sv}", ({},)), ("Doctor", "a{sv}", ({},)),
        ("Enter", "sasa{sv}", ("work", [], {})), ("TailAudit", "a{sv}", ({},)),
    ):
        with pytest.raises(Refusal) as refused:
            client.call(member, signature, *arguments)
        assert (refused.value.name, refused.value.sentence) == (
            "NotAuthorized", f"{member} needs root on this host; use sudo")
    client.close()
    assert "MakeStorage" not in core.spawner.kinds()


def test_what_there_is_is_the_administrators_to_know_however_it_is_asked_for(core: Core, client: Client) -> None:
    created(client, "work")
    core.stop()
    core.start(administrator=os.geteuid() + 1)
    client = core.client()
    for member, interface, path, signature, arguments in (
        ("GetManagedObjects", "ObjectManager", PATH, "", ()),
        ("GetAll", "Properties", CAGE + "work", "s", (f"{CORE}.Cage",)),
        ("Get", "Properties", CAGE + "work", "ss", (f"{CORE}.Cage", "Level")),
    ):
        with pytest.raises(Refusal) as refused:
            client.call(member, signature, *arguments, interface=f"org.freedesktop.DBus.{interface}", path=path)
        assert (refused.value.name, refused.value.sentence) == (
            "NotAuthorized", f"{member} needs root on this host; use sudo")
    assert f"{CORE}.Manager" in client.call("Introspect", interface="org.freedesktop.DBus.Introspectable")
    client.close()


@pytest.mark.parametrize("member", [
    "Gateways", "Decide", "Confirm", "Withdraw", "Deliver", "Dispose", "Person", "Services", "Record",
    "RecordMalformed",
])
def test_mediation_is_for_mediators(core: Core, client: Client, member: str) -> None:
    """As root, the caller is not the user that mediators run as; as anybody else, it is."""
    asked = ("0" * 32, "files.Send", "", "work", "0" * 32)
    arguments: dict[str, tuple[str, tuple[Any, ...]]] = {
        "Gateways": ("", ()), "Decide": ("ssssss", (*asked, "")), "Confirm": ("sssssa{sv}", (*asked, {})),
        "Withdraw": ("s", ("0" * 32,)), "Dispose": ("s", ("0" * 32,)),
        "Person": ("s", ("0" * 32,)), "Services": ("s", ("0" * 32,)),
        "Deliver": ("sasah", ("0" * 32, [], [os.open(os.devnull, os.O_RDONLY)])),
        "Record": ("ssssa{ss}", ("", "", "", "", {})), "RecordMalformed": ("ssss", ("", "", "", "")),
    }
    signature, values = arguments[member]
    if core.is_mediator(os.geteuid()):
        assert client.call("Gateways", interface=f"{CORE}.Mediation") in ([], None)
        return
    with pytest.raises(Refusal) as refused:
        client.call(member, signature, *values, interface=f"{CORE}.Mediation")
    assert (refused.value.name, refused.value.sentence) == ("NotAuthorized", "uid 0 is not a mediator's")


# --- a spawner that fails, or is gone --------------------------------------------------------------------------------
def nothing_is_left(core: Core, client: Client) -> bool:
    cages = [*(core.top / "state/cages").iterdir(), *(core.top / "run/caged/cages").iterdir()]
    return not (states(client) or core.spawner.anything or cages)


@pytest.mark.parametrize("request_", [spec.MakeStorage, spec.Birth, spec.Keep])
def test_a_create_that_fails_leaves_nothing(core: Core, client: Client, request_: type[spec.Request]) -> None:
    core.spawner.faults[request_] = spec.Fault(kind="HostUnsupported", sentence="the host will not")
    for ephemeral in (False, True) if request_ is not spec.Keep else (False,):
        with pytest.raises(Refusal) as refused:
            created(client, "work", ephemeral=("b", ephemeral))
        assert (refused.value.name, refused.value.sentence) == ("HostUnsupported", "the host will not")
        assert nothing_is_left(core, client)
    core.spawner.faults.clear()
    created(client, "work")
    assert client.call("VerifyAudit", "a{sv}", {}) == ""


def test_a_spawner_that_comes_back_is_looked_at(core: Core, client: Client) -> None:
    created(client, "stays")
    created(client, "goes")
    uuids = {cage["name"][1]: cage["uuid"][1] for cage in client.call("List", "a{sv}", {})}
    core.spawner.stop()
    core.spawner.running.discard(uuids["goes"])
    core.spawner.new.add("f" * 32)
    core.spawner.stored.add("d" * 32)
    with client.signals() as following:
        core.spawner.start()
        assert following()[:2] == (CAGE + "goes", "PropertiesChanged")
    assert states(client) == {"stays": "running", "goes": "stopped"}
    core.spawner.wait_until(lambda: "f" * 32 not in core.spawner.anything)
    assert "d" * 32 in core.spawner.stored, "somebody's documents"


def test_a_gateway_stays_when_its_cage_is_found_paused(core: Core, client: Client) -> None:
    """A second bus beside the one that the core halves are on would be one that nobody answers on."""
    created(client, "stands")
    (uuid,) = core.spawner.running
    socket_ = core.top / "run/gateways" / uuid / "bus"
    before = socket_.stat().st_ino
    core.spawner.stop()
    core.spawner.paused.add(uuid)
    core.spawner.start()
    client.call("Doctor", "a{sv}", {})
    assert states(client) == {"stands": "paused"}
    client.call("Resume", "sa{sv}", "stands", {})
    assert socket_.stat().st_ino == before


def test_a_stop_that_is_cut_off_is_done_by_the_next_and_leaves_no_second_gateway(core: Core, client: Client) -> None:
    created(client, "work")
    (uuid,) = core.spawner.running
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as half:  # starts the gateway's bus
        half.connect(str(core.top / "run/gateways" / uuid / "bus"))
        core.spawner.silent.add(spec.Stop)
        stopping = core.client()
        pending = stopping.send("Stop", "sa{sv}", "work", {})
        core.spawner.wait_for(spec.Stop)
        core.spawner.stop()
        core.spawner.silent.clear()
        core.spawner.requests.clear()
        core.spawner.start()
        stopping.answer(pending)
        stopping.close()
    assert states(client) == {"work": "stopped"}
    assert core.spawner.kinds().count("OpenGateway") == 0
    assert not (core.top / "run/gateways" / uuid).exists()


def test_a_cage_whose_record_cannot_be_read_goes_on(core: Core) -> None:
    client = core.client()
    for name in ("damaged", "whole"):
        created(client, name)
    client.close()
    running = set(core.spawner.running)
    core.stop()
    (core.top / "state/cages/damaged/instance.json").write_text("{")
    core.spawner.requests.clear()
    core.spawner.condemned.add("d" * 32)
    core.start()
    client = core.client()
    core.spawner.wait_until(lambda: not core.spawner.condemned)
    assert states(client) == {"whole": "running"}
    assert core.spawner.running == running
    told = [check["detail"][1] for check in client.call("Doctor", "a{sv}", {}) if check["check"][1] == "state"]
    assert len(told) == 1
    assert "damaged/instance.json" in told[0]
    client.close()


def test_one_cage_that_cannot_be_brought_in_line_keeps_nobody_from_the_spawner(core: Core, client: Client) -> None:
    """Its gateway's directory, say, is not there."""
    for name in ("bare", "well"):
        created(client, name)
    uuids = {cage["name"][1]: cage["uuid"][1] for cage in client.call("List", "a{sv}", {})}
    client.call("Stop", "sa{sv}", "bare", {})
    core.spawner.stop()
    core.spawner.running.add(uuids["bare"])
    core.spawner.start()
    assert states(client) == {"bare": "stopped", "well": "running"}
    created(client, "another")


def test_a_paused_cage_is_stopped_without_asking_it(core: Core, client: Client) -> None:
    created(client, "work")
    client.call("Pause", "sa{sv}", "work", {})
    core.spawner.silent.add(spec.Logs)
    client.call("Stop", "sa{sv}", "work", {})
    assert "Logs" not in core.spawner.kinds()


def test_what_is_asked_of_a_spawner_that_has_come_back_waits_until_it_was_looked_at(core: Core, client: Client) -> None:
    created(client, "ended")
    core.spawner.stop()
    core.spawner.running.clear()
    core.spawner.requests.clear()
    core.spawner.start()
    client.call("Logs", "sa{sv}", "ended", {})
    client.call("Doctor", "a{sv}", {})
    assert core.spawner.kinds()[:2] == ["Describe", "Standing"]
    assert states(client) == {"ended": "stopped"}


@pytest.mark.parametrize("kill", [True, False])
def test_a_caged_that_comes_back_finds_its_cages(core: Core, client: Client, kill: bool) -> None:
    for name in ("runs", "sleeps", "stands"):
        created(client, name)
    client.call("Stop", "sa{sv}", "sleeps", {})
    client.call("Pause", "sa{sv}", "stands", {})
    assert core.stop(kill=kill) == (-9 if kill else 0)
    core.start()
    assert states(client) == {"runs": "running", "sleeps": "stopped", "stands": "paused"}
    assert client.call("VerifyAudit", "a{sv}", {}) == ""


def test_what_a_killed_create_left_is_removed(core: Core) -> None:
    """Storage without a cage, and a cage that was being written down."""
    core.stop()
    core.spawner.new.add("e" * 32)
    core.spawner.condemned.add("d" * 32)
    half = core.top / "state/cages/.new-x"
    half.mkdir()
    os.chown(half, (core.top / "state/cages").stat().st_uid, -1)
    core.start()
    client = core.client()
    core.spawner.wait_until(lambda: not core.spawner.anything)
    assert nothing_is_left(core, client)
    client.close()


def test_a_leftover_that_takes_its_time_holds_nobody_up(core: Core) -> None:
    """A home of many files is being deleted, as a killed destroy has left it; caged starts, and knows its cages."""
    client = core.client()
    created(client, "work")
    core.stop()
    core.spawner.condemned.add("d" * 32)
    core.spawner.silent.add(spec.Remove)
    core.start()
    client.close()
    client = core.client()
    core.spawner.wait_for(spec.Remove)
    assert states(client) == {"work": "running"}
    created(client, "another")
    client.close()


def test_a_leftover_that_cannot_be_deleted_is_told_and_costs_nothing_else(core: Core) -> None:
    core.stop()
    core.spawner.condemned |= {"c" * 32, "d" * 32}
    core.spawner.faults[spec.Remove] = spec.Fault(kind="RuntimeFailure", sentence="read-only file system")
    core.start()
    client = core.client()
    core.spawner.wait_until(lambda: core.spawner.kinds().count("Remove") == 2)
    created(client, "work")
    told = [check["detail"][1] for check in client.call("Doctor", "a{sv}", {}) if check["check"][1] == "state"]
    assert told == ["read-only file system"] * 2
    client.close()


def test_a_definition_that_cannot_be_read_is_not_written_over(core: Core, apps: FakeApps) -> None:
    """The default that stands for it is of the lowest level, and the documents are not."""
    client = core.client()
    created(client, "vault", level=("s", "secret"))
    client.call("Stop", "sa{sv}", "vault", {})
    core.stop()
    definition = core.top / "state/cages/vault/cage.toml"
    damaged = definition.read_text() + 'colour = "red"\n'
    definition.write_text(damaged)
    core.start()
    client.close()
    client = core.client()
    (listed,) = client.call("List", "a{sv}", {})
    assert (listed["state"][1], listed["level"][1]) == ("failed", "")
    job = client.call("InstallApplication", "ssa{sv}", "vault", "org.example.App", {})
    with pytest.raises(Refusal) as refused:
        client.call("Wait", interface=f"{CORE}.Job", path=job)
    assert refused.value.name == "InvalidDefinition"
    assert (apps.calls, definition.read_text()) == ([], damaged)
    client.close()


def test_a_removed_application_need_not_be_installed(client: Client, apps: FakeApps) -> None:
    created(client, "work")
    client.call("Wait", interface=f"{CORE}.Job", path=client.call(
        "InstallApplication", "ssa{sv}", "work", "org.example.App", {}))
    apps.missing = True
    client.call("Wait", interface=f"{CORE}.Job", path=client.call(
        "RemoveApplication", "ssa{sv}", "work", "org.example.App", {}))
    assert "org.example.App" not in client.call("Show", "sa{sv}", "work", {})


def test_an_application_goes_with_the_last_cage_that_had_it(client: Client, apps: FakeApps) -> None:
    for name in ("one", "two"):
        created(client, name)
        client.call("Wait", interface=f"{CORE}.Job", path=client.call(
            "InstallApplication", "ssa{sv}", name, "org.example.App", {}))
    client.call("Destroy", "sa{sv}", "one", {})
    assert "Remove" not in [member for member, _ in apps.calls]
    apps.asked.clear()
    client.call("Destroy", "sa{sv}", "two", {})
    assert apps.asked.wait(SECONDS)
    assert apps.calls[-1] == ("Remove", ("org.example.App",))


def test_what_was_printed_can_be_had_after_the_end(core: Core, client: Client) -> None:
    created(client, "work")
    client.call("Stop", "sa{sv}", "work", {})
    core.spawner.faults[spec.Logs] = spec.Fault(kind="WrongState", sentence="the cage does not run")
    assert client.call("Logs", "sa{sv}", "work", {})[-1] == "| hello"


# --- jobs ------------------------------------------------------------------------------------------------------------
def test_a_job_is_waited_for(core: Core, client: Client, apps: FakeApps) -> None:
    created(client, "work")
    job = client.call("InstallApplication", "ssa{sv}", "work", "org.example.App", {"remote": ("s", "x")})
    results = client.call("Wait", interface=f"{CORE}.Job", path=job)
    assert results["commit"] == ("s", "c" * 64)
    assert client.properties(job, f"{CORE}.Job") == {
        "Description": "install org.example.App in work", "Progress": "done"}
    assert apps.calls[0] == ("Install", ("org.example.App", "x"))
    assert core.spawner.kinds()[-1] == "Expose"
    assert 'allow = ["org.example.App"]' in client.call("Show", "sa{sv}", "work", {})


@pytest.mark.usefixtures("apps")
def test_jobs_that_have_ended_are_in_nobody_s_way(client: Client) -> None:
    created(client, "work")
    for _ in range(JOBS_MAX + 1):
        job = client.call("InstallApplication", "ssa{sv}", "work", "org.example.App", {})
        client.call("Wait", interface=f"{CORE}.Job", path=job)


@pytest.mark.usefixtures("apps")
def test_the_spawner_has_folders_for_menu_entries_of_those_who_have_cages(core: Core, client: Client) -> None:
    created(client, "work")
    core.spawner.wait_until(lambda: core.spawner.welcome == [os.geteuid()])
    job = client.call("InstallApplication", "ssa{sv}", "work", "org.example.App", {})
    client.call("Wait", interface=f"{CORE}.Job", path=job)
    entries = core.top / f"state/exports/{os.geteuid()}/share/applications"
    assert [entry.name for entry in entries.iterdir()] == ["work.org.example.App.desktop"]
    core.spawner.welcome.clear()
    core.stop()
    core.start()
    core.spawner.wait_until(lambda: core.spawner.welcome == [os.geteuid()])
    again = core.client()
    again.call("Destroy", "sa{sv}", "work", {})
    again.close()
    core.spawner.wait_until(lambda: core.spawner.welcome == [])
    assert list(entries.iterdir()) == []


def test_a_job_that_fails_says_why(client: Client, apps: FakeApps) -> None:
    created(client, "work")
    apps.fault = ("org.cageruntime.Error.UntrustedSource", "it is not signed")
    job = client.call("InstallApplication", "ssa{sv}", "work", "org.example.App", {})
    for _ in range(2):
        with pytest.raises(Refusal) as refused:
            client.call("Wait", interface=f"{CORE}.Job", path=job)
        assert (refused.value.name, refused.value.sentence) == ("UntrustedSource", "it is not signed")
    assert "org.example.App" not in client.call("Show", "sa{sv}", "work", {})


def test_a_job_is_cancelled(core: Core, client: Client, apps: FakeApps) -> None:
    created(client, "work")
    apps.patient = True
    job = client.call("InstallApplication", "ssa{sv}", "work", "org.example.App", {})
    assert apps.asked.wait(10)
    assert client.properties(job, f"{CORE}.Job")["Progress"] == "running"
    waiting = core.client()
    pending = waiting.send("Wait", interface=f"{CORE}.Job", path=job)
    client.call("Cancel", interface=f"{CORE}.Job", path=job)
    with pytest.raises(Refusal) as refused:
        waiting.answer(pending)
    assert refused.value.sentence == "install org.example.App in work: cancelled"
    waiting.close()
    assert [member for member, _ in apps.calls] == ["Install", "Cancel"]
    assert "org.example.App" not in client.call("Show", "sa{sv}", "work", {})
