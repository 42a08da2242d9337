# SPDX-License-Identifier: LGPL-2.1-or-later
"""A cage's whole life over the bus, for whichever client and whichever core: every method once with what is right, and
once with what is wrong."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import pytest

from tests.foreign import CAGE, JOB, MANAGER, PATH, STANDARD, Client, Refused, methods

OBJECT_MANAGER, PROPERTIES, PEER, INTROSPECTABLE = (
    f"{STANDARD}.{name}" for name in ("ObjectManager", "Properties", "Peer", "Introspectable"))
NOT_SERVED = {(PEER, "GetMachineId"), (PROPERTIES, "Set")}
"""Methods that are always refused."""
NEEDS_A_REQUEST = {(MANAGER, "AnswerPrompt"), (MANAGER, "RevokeGrant"), (MANAGER, "NotificationAction")}
"""Methods that succeed only once a cage has asked for something."""
EVERYTHING = methods(MANAGER, JOB, OBJECT_MANAGER, PROPERTIES, PEER, INTROSPECTABLE)


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Where the life is led."""

    application: str
    url: str
    key: bytes
    said: tuple[bytes, bytes]
    """What `echo hello` in the cage and the application with --help print first."""


def done(client: Client, job: str) -> Any:
    """What a job that succeeds answers."""
    return client.call("Wait", interface=JOB, path=job)


def lead(client: Client, world: World) -> str:
    """Calls every method of the whole interface with success; the cage `life-1` comes and goes.  The path of a job."""
    name, path = "life-1", f"{PATH}/cage/life_2d1"
    options = {"level": ("s", "internal"), "tasks": ("u", 400), "compartments": ("as", ["finance"]),
               "definition": ("s", '[limits]\non-missing = "warn"\n')}
    assert client.call("Create", name, options) == path
    _look(client, name, path)
    for member, state in (("Pause", "paused"), ("Resume", "running"), ("Stop", "stopped"), ("Start", "running"),
                          ("Kill", "stopped"), ("Start", "running")):
        client.call(member, name, {})
        assert client.call("Status", name, {})["state"] == state
    for member, enabled in (("Enable", True), ("Disable", False)):
        client.call(member, name, {})
        assert client.call("Status", name, {})["autostart"] is enabled
    job = _command_and_application(client, world, name)
    _record(client, name)
    client.call("Destroy", name, {})
    assert name not in [cage["name"] for cage in client.call("List", {})]
    return job


def _look(client: Client, name: str, path: str) -> None:
    assert {cage["name"]: cage["level"] for cage in client.call("List", {})}[name] == "internal"
    status = client.call("Status", name, {})
    assert (status["state"], status["compartments"], status["home"]) == ("running", ["finance"], "persistent")
    assert 'level = "internal"' in client.call("Show", name, {})
    assert isinstance(client.call("Logs", name, {}), list)
    told = client.call("GetAll", CAGE, interface=PROPERTIES, path=path)
    assert told == {"Name": name, "Uuid": status["uuid"], "State": "running", "Level": "internal",
                    "Compartments": ["finance"], "Ephemeral": False, "Autostart": False,
                    "Owner": os.geteuid()}
    assert client.call("GetAll", "", interface=PROPERTIES, path=path) == told
    assert client.call("Get", CAGE, "State", interface=PROPERTIES, path=path) == "running"
    assert client.call("Get", "", "State", interface=PROPERTIES, path=path) == "running"
    assert client.call("GetManagedObjects", interface=OBJECT_MANAGER)[path] == {CAGE: told}
    assert "life_2d1" in client.children(f"{PATH}/cage")
    client.call("Ping", interface=PEER, path=path)


def _command_and_application(client: Client, world: World, name: str) -> str:
    channel = client.call("Enter", name, ["echo", "hello"], {"cwd": ("s", "/")})
    assert client.output(channel) in (None, world.said[0])
    _copies(client, name)
    client.call("AddRemote", "life", world.url, world.key, {})
    assert [remote["name"] for remote in client.call("ListRemotes", {})] == ["life"]
    job = client.call("InstallApplication", name, world.application, {"remote": ("s", "life")})
    installed = done(client, job)
    assert installed["application"] == world.application
    assert client.call("ListApplications", name, {}) == [
        {key: installed[key] for key in ("application", "commit", "runtime", "remote")}]
    channel = client.call("Run", name, world.application, ["--help"], {"tty": ("b", False)})
    assert (client.output(channel) or world.said[1]).splitlines()[0] == world.said[1]
    assert done(client, client.call("UpdateApplications", name, {})) == {world.application: installed["commit"]}
    removal = client.call("RemoveApplication", name, world.application, {})
    assert done(client, removal) == {"application": world.application}
    client.call("Cancel", interface=JOB, path=removal)
    client.call("RemoveRemote", "life", {})
    return str(removal)


def _copies(client: Client, name: str) -> None:
    """Begun, and given up again by whoever asked for them."""
    for member, arguments in (("CopyIn", (name, "", "file", {"conflict": ("s", "skip")})),
                              ("CopyOut", (name, "file", {}))):
        job, *descriptors = client.call(member, *arguments)
        assert len(descriptors) == (2 if member == "CopyIn" else 3)
        client.let_go(descriptors)
        with pytest.raises(Refused, match="given up"):
            done(client, job)


def _record(client: Client, name: str) -> None:
    assert client.call("CheckPolicy", {}) == []
    client.call("ReloadPolicy", {})
    decision = client.call("ExplainPolicy", name, "files.Send", "", name, {})
    assert decision.keys() == {"action", "rule", "reason", "flow", "target", "parameters", "passed", "note",
                               "change"}
    assert (decision["action"], decision["flow"]) == ("deny", "level"), "no cage asks for anything of itself"
    assert not [found["text"] for found in client.call("ProvePolicy", {}) if found["kind"] == "leak"]
    tried = {"10-tried.policy": f"files.Send * {name} @core allow\n".encode()}
    simulated = client.call("SimulatePolicy", name, "files.Send", "", "@core", tried, {})
    assert (simulated["action"], simulated["rule"].rpartition("/")[2]) == ("allow", "10-tried.policy:1")
    alone = {"before-alone": ("b", True), "after-alone": ("b", True)}
    changes = client.call("DiffPolicy", {}, tried, alone)
    assert [(name, "files.Send", "@core")] == [
        (each["source"], each["service"], each["target"]) for each in changes if each["source"] == name]
    graph = client.call("Graph", {})
    assert name in [cage["name"] for cage in graph["cages"]]
    assert [level["colour"] for level in graph["levels"]] == ["#2e7d32", "#ef6c00", "#c62828"]
    assert client.call("ListPrompts", {}) == client.call("ListGrants", {}) == []
    client.call("RegisterAgent", {})
    last = json.loads(client.call("TailAudit", {"count": ("u", 1)})[0])
    assert last["kind"] == "policy-loaded"
    assert client.call("VerifyAudit", {}) == ""
    key = client.call("AuditKey", {})
    assert key.startswith("cage-receipt-key-1 ")
    assert client.call("AuditKey", {}) == key
    assert [json.loads(line) for line in client.call("TailAudit", {"hash": ("s", last["hash"])})] == [last]
    assert client.call("TailAudit", {"hash": ("s", "0" * 64)}) == []
    assert {check["state"] for check in client.call("Doctor", {})} <= {"ok", "missing", "limited"}


NOBODY, ILL = "NoSuchCage", "InvalidArgument"
WRONG: dict[str, tuple[tuple[Any, ...], str]] = {
    "Create": (("Not a name", {}), "InvalidName"),
    "Enter": (("nobody", ["true"], {}), NOBODY),
    "CopyIn": (("nobody", "", "file", {}), NOBODY),
    "CopyOut": (("nobody", "file", {}), NOBODY),
    "Run": (("nobody", "org.example.App", [], {}), NOBODY),
    "List": (({"colour": ("s", "red")},), ILL),
    "AddRemote": (("x", "https://localhost/", b"", {"colour": ("s", "red")}), ILL),
    "RemoveRemote": (("x", {"colour": ("s", "red")}), ILL),
    "ListRemotes": (({"colour": ("s", "red")},), ILL),
    "InstallApplication": (("nobody", "org.example.App", {}), NOBODY),
    "RemoveApplication": (("nobody", "org.example.App", {}), NOBODY),
    "CheckPolicy": (({"colour": ("s", "red")},), ILL),
    "ExplainPolicy": (("nobody", "files.Send", "", "nobody", {}), NOBODY),
    "ProvePolicy": (({"colour": ("s", "red")},), ILL),
    "SimulatePolicy": (("nobody", "files.Send", "", "nobody", {}, {}), NOBODY),
    "DiffPolicy": (({}, {}, {"colour": ("s", "red")}), ILL),
    "Graph": (({"colour": ("s", "red")},), ILL),
    "ReloadPolicy": (({"colour": ("s", "red")},), ILL),
    "TailAudit": (({"count": ("u", 0)},), ILL),
    "VerifyAudit": (({"colour": ("s", "red")},), ILL),
    "AuditKey": (({"colour": ("s", "red")},), ILL),
    "Doctor": (({"colour": ("s", "red")},), ILL),
    "ListPrompts": (({"colour": ("s", "red")},), ILL),
    "AnswerPrompt": (("00000000", "allow", {}), "NoSuchPrompt"),
    "NotificationAction": ((1, "", {}), "NoSuchNotification"),
    "ListGrants": (({"colour": ("s", "red")},), ILL),
    "RevokeGrant": (("00000000", {}), "NoSuchGrant"),
    "RegisterAgent": (({"colour": ("s", "red")},), ILL),
    **{member: (("nobody", {}), NOBODY) for member in (
        "Destroy", "Start", "Stop", "Pause", "Resume", "Kill", "Enable", "Disable", "Status", "Show", "Logs",
        "UpdateApplications", "ListApplications")},
}
"""Of each method of the manager, arguments that are refused, and the error."""
WRONG_STANDARD: dict[tuple[str, str], tuple[tuple[Any, ...], str]] = {
    (PROPERTIES, "Get"): ((CAGE, "Colour"), "UnknownInterface"),
    (PROPERTIES, "GetAll"): (("org.example.Nothing",), "UnknownInterface"),
    (PROPERTIES, "Set"): ((MANAGER, "Colour", ("s", "red")), "UnknownProperty"),
    (PEER, "GetMachineId"): ((), "NotSupported"),
}


def refused(client: Client, expected: str, member: str, *arguments: Any, **where: str) -> None:
    """The call is answered with the error `expected`, and a sentence."""
    with pytest.raises(Refused) as answer:
        client.call(member, *arguments, **where)
    assert answer.value.sentence
    assert answer.value.name in ("", expected), answer.value


def misuse(client: Client, job: str) -> None:
    """Calls every method with something wrong."""
    for member, (arguments, expected) in WRONG.items():
        refused(client, f"org.cageruntime.Error.{expected}", member, *arguments)
    for (interface, member), (arguments, expected) in WRONG_STANDARD.items():
        refused(client, f"{STANDARD}.Error.{expected}", member, *arguments, interface=interface)
    for interface, member in EVERYTHING:
        with pytest.raises(Refused, match="takes the signature"):
            client.call_amiss(member, interface=interface, path=job if interface == JOB else PATH)
