# SPDX-License-Identifier: LGPL-2.1-or-later
"""Cages that are enabled: how they become so, and what a boot makes of them."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from cage_runtime.spawner import spec
from tests.bus.core.conftest import CORE, PATH, Client, Core, Refusal

CAGE = f"{PATH}/cage/"


def created(client: Client, name: str, **options: Any) -> None:
    client.call("Create", "sa{sv}", name, {key: ("b", value) for key, value in options.items()})


def boot(core: Core) -> None:
    """All of the core ends, and what a boot forgets is forgotten."""
    core.stop()
    core.spawner.stop()
    core.spawner.running.clear()
    core.spawner.requests.clear()
    for gateway in (core.top / "run/gateways").iterdir():
        shutil.rmtree(gateway)
    for entry in (core.top / "run/caged").iterdir():
        if entry.is_file():
            entry.unlink()
    core.spawner.start()
    core.start()


def states(client: Client) -> dict[str, str]:
    return {cage["name"][1]: cage["state"][1] for cage in client.call("List", "a{sv}", {})}


def recorded(client: Client, kind: str) -> list[dict[str, str]]:
    records = [json.loads(line) for line in client.call("TailAudit", "a{sv}", {"count": ("u", 1000)})]
    return [record["fields"] for record in records if record["kind"] == kind]


def births(core: Core) -> list[str]:
    """The cages that the spawner was asked to start."""
    return [request.name for request in core.spawner.requests if isinstance(request, spec.Birth)]


# --- becoming so -----------------------------------------------------------------------------------------------------
def test_a_cage_is_enabled_and_disabled_and_says_so(client: Client) -> None:
    created(client, "work")
    for member, enabled, kind in (("Enable", True, "cage-enabled"), ("Disable", False, "cage-disabled")):
        with client.signals() as following:
            client.call(member, "sa{sv}", "work", {})
            path, signal, (interface, changed, _) = following()
        assert (path, signal, interface) == (CAGE + "work", "PropertiesChanged", f"{CORE}.Cage")
        assert changed["Autostart"] == ("b", enabled)
        client.call(member, "sa{sv}", "work", {})
        assert client.properties(CAGE + "work", f"{CORE}.Cage")["Autostart"] is enabled
        assert client.call("Status", "sa{sv}", "work", {})["autostart"] == ("b", enabled)
        assert client.call("List", "a{sv}", {})[0]["autostart"] == ("b", enabled)
        assert ("autostart = true" in client.call("Show", "sa{sv}", "work", {})) is enabled
        assert [fields["cage"] for fields in recorded(client, kind)] == ["work"], "once, for one change"
    assert states(client) == {"work": "running"}


def test_what_is_enabled_stays_so(core: Core) -> None:
    client = core.client()
    created(client, "work", autostart=True)
    created(client, "other")
    client.call("Enable", "sa{sv}", "other", {})
    core.stop(kill=True)
    core.start()
    assert [cage["autostart"] for cage in client.call("List", "a{sv}", {})] == [("b", True)] * 2
    client.close()


def test_an_ephemeral_cage_cannot_be_enabled(client: Client) -> None:
    created(client, "brief", ephemeral=True)
    with pytest.raises(Refusal) as refused:
        client.call("Enable", "sa{sv}", "brief", {})
    assert (refused.value.name, refused.value.sentence) == (
        "InvalidArgument", "brief is ephemeral: it is gone when the host starts again, and cannot be started with it")
    client.call("Disable", "sa{sv}", "brief", {})
    with pytest.raises(Refusal, match="leave out one of ephemeral and autostart"):
        created(client, "briefer", ephemeral=True, autostart=True)
    assert recorded(client, "cage-enabled") == []
    assert list(states(client)) == ["brief"]


@pytest.mark.parametrize("member", ["Enable", "Disable"])
def test_what_cannot_be_read_is_not_written_over(core: Core, client: Client, member: str) -> None:
    created(client, "work")
    core.stop()
    file = core.top / "state/cages/work/cage.toml"
    file.write_text('level = "intern"\ncolour = 1\n')
    core.start()
    with pytest.raises(Refusal) as refused:
        client.call(member, "sa{sv}", "work", {})
    assert refused.value.name == "InvalidDefinition"
    assert file.read_text() == 'level = "intern"\ncolour = 1\n'
    assert recorded(client, "cage-enabled") == []


@pytest.mark.parametrize("member", ["Enable", "Disable"])
def test_there_has_to_be_one(client: Client, member: str) -> None:
    with pytest.raises(Refusal) as refused:
        client.call(member, "sa{sv}", "nope", {})
    assert refused.value.name == "NoSuchCage"
    created(client, "work")
    with pytest.raises(Refusal, match='unknown option "now"'):
        client.call(member, "sa{sv}", "work", {"now": ("b", True)})


# --- a boot ----------------------------------------------------------------------------------------------------------
def test_a_boot_starts_enabled_cages_once(core: Core) -> None:
    client = core.client()
    created(client, "morning", autostart=True)
    created(client, "evening")
    client.close()
    boot(core)
    client = core.client()
    core.spawner.wait_for(spec.Birth)
    client.call("Start", "sa{sv}", "morning", {})  # returns when it runs, whoever started it
    assert states(client) == {"morning": "running", "evening": "stopped"}
    client.call("Stop", "sa{sv}", "morning", {})
    client.call("Enable", "sa{sv}", "evening", {})
    for kill in (True, False):
        core.stop(kill=kill)
        core.start()
    assert states(client) == {"morning": "stopped", "evening": "stopped"}
    assert births(core) == ["morning"]
    client.close()


def test_caged_is_ready_before_they_are_started_and_is_not_held_up(core: Core) -> None:
    client = core.client()
    created(client, "slow", autostart=True)
    client.close()
    core.spawner.silent.add(spec.Birth)
    boot(core)
    core.spawner.wait_for(spec.Birth)
    client = core.client()
    assert states(client) == {"slow": "starting"}
    core.spawner.silent.clear()
    assert core.stop() == 0, "one that is being started does not keep caged from ending"
    core.start()
    client.call("Start", "sa{sv}", "slow", {})
    assert births(core) == ["slow"] * 2, "the next caged goes on"
    client.close()


def test_one_that_cannot_be_started_is_recorded(core: Core) -> None:
    client = core.client()
    for name in ("bad", "good"):
        created(client, name, autostart=True)
    client.close()
    core.spawner.faults[spec.Birth] = spec.Fault(kind="HostUnsupported", sentence="the host will not")
    boot(core)
    core.spawner.wait_until(lambda: len(births(core)) == 2)
    client = core.client()
    client.call("Doctor", "a{sv}", {})  # after which the answers to both are dealt with
    assert sorted((fields["cage"], fields["why"]) for fields in recorded(client, "autostart-failed")) == [
        ("bad", "the host will not"), ("good", "the host will not")]
    assert "bad was not started with the host: the host will not" in core.log.read_text()
    assert states(client) == {"bad": "stopped", "good": "stopped"}
    client.close()
