# SPDX-License-Identifier: LGPL-2.1-or-later
"""The interface as others see it: what the objects say of themselves is what the XML says, and clients that share no
code with us (dbus-next, busctl) drive all of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Iterable, Iterator
from typing import Any, cast
from xml.etree import ElementTree as ET

import pytest
from dbus_next import Variant

from cage_runtime.bus import Bus, Service
from cage_runtime.daemon.sessions import FLATPAK
from cage_runtime.flatpak.installation import Installation
from cage_runtime.flatpak.service import Apps
from mediators import wire
from tests import life, pages
from tests.bus.core.conftest import Core, FakeApps
from tests.foreign import (
    CAGE,
    CORE,
    INTERFACES,
    JOB,
    MANAGER,
    MEDIATION,
    PATH,
    STANDARD,
    TOP,
    Busctl,
    Client,
    DbusNext,
    Refused,
    methods,
    plain,
    signature,
)

APPLICATION = "org.example.App"
COMMON = {f"{STANDARD}.{name}" for name in ("Peer", "Introspectable", "Properties")}
OURS = {name for name in INTERFACES if name.startswith(CORE)}
WORLD = life.World(application=APPLICATION, url="https://localhost/", key=b"key",
                   said=(b"echo hello\n", " ".join([*FLATPAK, APPLICATION, "--help"]).encode()))


@pytest.fixture
def foreign(core: Core) -> Iterator[DbusNext]:
    with contextlib.closing(DbusNext(core.address)) as client:
        yield client


RULES = """files.Send * work vault allow max-size=7M
files.Send * work peer ask
files.Send * work @core allow
files.Send * work @disposable allow
"""


@pytest.fixture
def mediator(core: Core) -> Iterator[DbusNext]:
    """As the core half of the files mediator, with a rule that permits what `Decide` is asked."""
    core.write_policy(RULES)
    core.stop()
    core.start()
    with contextlib.closing(DbusNext(core.address, uid=core.user.pw_uid)) as client:
        yield client


# --- what the objects say --------------------------------------------------------------------------------------------
def canonical(elements: Iterable[ET.Element]) -> dict[str, str]:
    """The interfaces, each with all that it has: members, arguments with names, types and directions, annotations."""
    return {each.attrib["name"]: ET.canonicalize(ET.tostring(each, encoding="unicode"), strip_text=True)
            for each in elements}


def written(*names: str) -> dict[str, str]:
    return canonical(INTERFACES[name] for name in names)


def told(client: DbusNext, path: str, destination: str = CORE) -> dict[str, str]:
    (text,) = client.send(path, life.INTROSPECTABLE, "Introspect", destination=destination)
    client.introspect(path, destination)  # which refuses what is not well formed
    return canonical(ET.fromstring(text).findall("interface"))


@pytest.mark.usefixtures("apps")
def test_every_object_says_what_the_description_says(foreign: DbusNext) -> None:
    foreign.call("Create", "work", {})
    job = foreign.call("InstallApplication", "work", APPLICATION, {})
    objects = {PATH: {MANAGER, MEDIATION, life.OBJECT_MANAGER}, f"{PATH}/cage/work": {CAGE}, job: {JOB},
               "/": set(), f"{PATH}/cage": set()}
    for path, interfaces in objects.items():
        assert told(foreign, path) == written(*COMMON, *interfaces)
    assert set().union(*objects.values()) == OURS | {life.OBJECT_MANAGER}
    assert foreign.children("/") == ["org"]
    assert foreign.children(PATH) == ["cage", "job"]


@pytest.mark.usefixtures("apps")
def test_properties_are_served_with_their_types(core: Core, foreign: DbusNext) -> None:
    foreign.call("Create", "work", {})
    job = foreign.call("InstallApplication", "work", APPLICATION, {})
    foreign.call("Wait", interface=JOB, path=job)
    busctl = Busctl(core.address)
    for interface, path in ((CAGE, f"{PATH}/cage/work"), (JOB, job)):
        promised = {each.attrib["name"] for each in INTERFACES[interface].findall("property")}
        assert set(foreign.call("GetAll", interface, interface=life.PROPERTIES, path=path)) == promised
        for name in promised:  # each client wants the type that the XML promises
            assert foreign.property(name, interface, path) == busctl.property(name, interface, path)
    for interface in OURS - {CAGE, JOB}:
        assert INTERFACES[interface].find("property") is None


def test_the_other_services_say_what_their_descriptions_say(core: Core) -> None:
    """Those of the applications' installation and of the mediators, whose own buses let nobody ask."""
    apps = "org.cageruntime.Apps1"
    mediators = sorted(path.parent.name for path in (TOP / "mediators").glob("*/interface.xml"))
    names = [apps, *map(wire.bus_name, mediators)]

    async def served() -> dict[str, str]:
        bus = await Bus.connect(core.address)
        bus.serve("/org/cageruntime/Apps1", Apps(cast(Installation, None), bus, frozenset()).service())
        for mediator in mediators:
            bus.serve(wire.path(mediator), Service(interface=wire.interface(mediator)))
        for name in names:
            await bus.own(name)
        said = await asyncio.to_thread(ask)
        bus.disconnect()
        return said

    def ask() -> dict[str, str]:
        with contextlib.closing(DbusNext(core.address)) as client:
            return {name: told(client, "/" + name.replace(".", "/"), name) for name in names}

    assert asyncio.run(served()) == {name: written(*COMMON, name) for name in names}


WHAT = {"size": ("t", 3), "files": ("u", 1), "lines": ("as", ["x"]), "types": ("as", ["text/plain"])}




def a_question(foreign: DbusNext, mediator: DbusNext) -> tuple[str, ...]:
    """Have the cage work, which there is, ask for something towards peer; the request."""
    foreign.call("Create", "peer", {})
    foreign.call("RegisterAgent", {})
    uuid = foreign.call("Status", "work", {})["uuid"]
    asked = (uuid, "files.Send", "", "peer", "1" * 32)
    assert mediator.call("Decide", *asked, "", interface=MEDIATION)["action"] == "ask"
    assert mediator.call("Confirm", *asked, WHAT, interface=MEDIATION)["action"] == "ask"
    return asked


def ticket(client: DbusNext | Busctl, source: str, target: str) -> str:
    """Of a confirmed permission."""
    asked = (source, "files.Send", "", target, "1" * 32)
    return str(client.call("Confirm", *asked, {"size": ("t", 1)}, interface=MEDIATION)["ticket"])


def promised_signals(*interfaces: str) -> dict[tuple[str, str], str]:
    return {(name, signal.attrib["name"]): "".join(each.attrib["type"] for each in signal.findall("arg"))
            for name in interfaces for signal in INTERFACES[name].findall("signal")}


@contextlib.contextmanager
def reached(core: Core, *uuids: str) -> Iterator[None]:
    """In the block, somebody has come to the cages' gateways, whose buses run from then on."""
    with contextlib.ExitStack() as ends:
        for uuid in uuids:
            end = ends.enter_context(socket.socket(socket.AF_UNIX))
            end.connect(str(core.top / "run/gateways" / uuid / "bus"))
        yield


@pytest.mark.usefixtures("apps")
def test_every_signal_is_sent_with_its_signature(core: Core, foreign: DbusNext, mediator: DbusNext) -> None:
    everybody, the_mediator = foreign.signals(), mediator.signals()
    assert mediator.call("Gateways", interface=MEDIATION) == []
    path = foreign.call("Create", "work", {})
    asked = a_question(foreign, mediator)
    heard = everybody.until("PromptAdded")
    foreign.call("AnswerPrompt", plain(heard[-1].body[0])["id"], "deny", {})
    heard += everybody.until("PromptRemoved") + the_mediator.until("Answered")
    life.refused(mediator, "org.cageruntime.Error.PolicyRefused", "Confirm", *asked, WHAT, interface=MEDIATION)
    source = {cage["name"]: cage["uuid"] for cage in foreign.call("List", {})}["work"]
    shown = mediator.call("Show", ticket(mediator, source, "@core"),
                          {"summary": ("s", "done"), "actions": ("a(ss)", [["a", "A"]])}, interface=MEDIATION)
    heard += everybody.until("Notified")
    foreign.call("NotificationAction", shown, "a", {})
    heard += the_mediator.until("Acted")
    foreign.call("Destroy", "peer", {})
    everybody.until("CageRemoved")
    job = foreign.call("InstallApplication", "work", APPLICATION, {})
    foreign.call("Wait", interface=JOB, path=job)
    (uuid,) = core.spawner.running
    with reached(core, uuid):
        heard += the_mediator.until("GatewayUp")
        foreign.call("Destroy", "work", {})
    heard += the_mediator.until("GatewayDown")
    for_everybody = everybody.until("CageRemoved")
    assert not {signal.interface for signal in for_everybody} & {MEDIATION}, "names of cages, for mediators alone"
    heard += for_everybody
    shapes = {(signal.interface, signal.member): signal.signature for signal in heard}
    promised = promised_signals(*OURS, life.OBJECT_MANAGER, life.PROPERTIES)
    assert shapes == promised
    changes = [(signal.path, plain(signal.body[1])) for signal in heard if signal.member == "PropertiesChanged"]
    assert (job, {"Progress": "done"}) in changes
    assert (path, {"State": "running", "Autostart": False}) in changes


@pytest.mark.usefixtures("apps")
def test_managed_objects_come_and_go(foreign: DbusNext) -> None:
    heard = foreign.signals(f"type='signal',interface='{life.OBJECT_MANAGER}'")
    path = foreign.call("Create", "work", {"start": ("b", False)})
    there = foreign.call("GetManagedObjects", interface=life.OBJECT_MANAGER)
    added = heard.next()
    assert (added.path, added.member, plain(added.body)) == (
        PATH, "InterfacesAdded", [path, {CAGE: {**there[path][CAGE], "State": "stopped"}}])
    foreign.call("Destroy", "work", {})
    removed = heard.next()
    assert (removed.path, removed.member, removed.body) == (PATH, "InterfacesRemoved", [path, [CAGE]])
    assert foreign.call("GetManagedObjects", interface=life.OBJECT_MANAGER) == {}


# --- all of it -------------------------------------------------------------------------------------------------------
@pytest.fixture(params=["dbus-next", "busctl"])
def client(request: pytest.FixtureRequest, core: Core) -> Iterator[Client]:
    if request.param == "busctl":
        yield Busctl(core.address)
        return
    with contextlib.closing(DbusNext(core.address)) as next_:
        yield next_


@pytest.mark.usefixtures("apps")
def test_all_of_it_is_driven(client: Client) -> None:
    """What is added to the XML and to no test is missing on one side of these."""
    job = life.lead(client, WORLD)
    assert client.succeeded == life.EVERYTHING - life.NOT_SERVED - life.NEEDS_A_REQUEST
    life.misuse(client, job)
    assert client.refused == life.EVERYTHING
    assert set(life.WRONG) == {member for _, member in methods(MANAGER)}
    assert client.call("List", {}) == []


@pytest.mark.usefixtures("apps")
def test_results_have_the_keys_that_the_page_tells(foreign: DbusNext, mediator: DbusNext) -> None:
    foreign.call("Create", "work", {})
    a_question(foreign, mediator)
    foreign.call("AnswerPrompt", foreign.call("ListPrompts", {})[0]["id"], "deny", {"for": ("u", 60)})
    a_question_besides = (foreign.call("Status", "work", {})["uuid"], "files.Send", "x", "peer", "2" * 32)
    assert mediator.call("Confirm", *a_question_besides, {}, interface=MEDIATION)["action"] == "ask"
    foreign.call("Wait", interface=JOB, path=foreign.call("InstallApplication", "work", APPLICATION, {}))
    arguments: dict[str, tuple[Any, ...]] = {
        "List": (), "Status": ("work",), "ListRemotes": (), "ListApplications": ("work",),
        "ExplainPolicy": ("work", "files.Send", "", "work"), "Doctor": (), "ListPrompts": (), "ListGrants": (),
        "ProvePolicy": (), "Graph": (), "DiffPolicy": ({}, {"10-tried.policy": b"* * * * deny\n"})}
    told = pages.interfaces()[MANAGER].methods
    assert arguments.keys() == {member for member, method in told.items() if method.keys}
    for member, given in arguments.items():
        (result,) = foreign.send(PATH, MANAGER, member, signature(MANAGER, member), *given, {}, as_variants=True)
        shown = result[0] if isinstance(result, list) else result
        more = told["List"].keys if member == "Status" else {}
        assert {key: value.signature for key, value in shown.items()} == {**more, **told[member].keys}, member


def test_an_option_that_nobody_knows_is_refused_by_every_method(foreign: DbusNext) -> None:
    foreign.call("Create", "work", {})
    for member, (arguments, _) in life.WRONG.items():
        words = [{"nobody": "work", "Not a name": "another"}.get(str(word), word) for word in arguments[:-1]]
        life.refused(foreign, "org.cageruntime.Error.InvalidArgument", member, *words, {"colour": ("s", "red")})
    assert foreign.call("Status", "work", {})["state"] == "running"


@pytest.mark.parametrize("library", ["dbus-next", "busctl"])
def test_a_job_is_cancelled_by_another_library(core: Core, apps: FakeApps, library: str) -> None:
    with contextlib.closing(DbusNext(core.address)) as next_:
        client: Client = next_ if library == "dbus-next" else Busctl(core.address)
        client.call("Create", "work", {})
        apps.patient = True
        job = client.call("InstallApplication", "work", APPLICATION, {})
        assert apps.asked.wait(10)
        client.call("Cancel", interface=JOB, path=job)
        life.refused(client, "org.cageruntime.Error.Failed", "Wait", interface=JOB, path=job)


PERMITTED = {"action": "allow", "target": "vault", "target-uuid": "", "source-name": "work", "flow": "level",
             "max-size": 7 << 20, "max-files": 0, "choices": []}


# --- what a mediator may ---------------------------------------------------------------------------------------------
def test_the_mediators_interface_is_driven(core: Core, foreign: DbusNext, mediator: DbusNext) -> None:
    for name in ("work", "vault"):
        foreign.call("Create", name, {})
    uuids = {cage["name"]: cage["uuid"] for cage in foreign.call("List", {})}
    work, vault = uuids["work"], uuids["vault"]
    as_mediator = () if os.geteuid() else ("setpriv", f"--reuid={core.user.pw_uid}", "--clear-groups", "--")
    busctl = Busctl(core.address, *as_mediator)
    heard = mediator.signals()
    assert mediator.call("Gateways", interface=MEDIATION) == []
    with reached(core, work):
        name, uuid, address = heard.until("GatewayUp")[-1].body
    assert (name, uuid, address) == ("work", work, f"unix:path={core.top}/run/gateways/{work}/bus")
    for client in (mediator, busctl):
        assert client.call("Gateways", interface=MEDIATION) == [["work", work, address]]
        asked = (work, "files.Send", "", "vault", "1" * 32)
        for permission in (client.call("Decide", *asked, "", interface=MEDIATION),
                           client.call("Confirm", *asked, {"size": ("t", 7 << 20)}, interface=MEDIATION)):
            assert {key: permission[key] for key in PERMITTED} == PERMITTED | {"target-uuid": vault}
        client.call("Withdraw", "1" * 32, interface=MEDIATION)
        assert client.call("Person", work, interface=MEDIATION) == os.geteuid()
        assert ["files.Send", "allow"] in client.call("Services", work, interface=MEDIATION)
        name, uuid, there = client.call("Dispose", ticket(client, work, "@disposable"), interface=MEDIATION)
        assert (name.startswith("disp-"), uuid in core.spawner.running) == (True, True)
        assert there.split(":")[3] == uuid
        life.refused(client, "org.cageruntime.Error.NoSuchCage", "Person", "0" * 32, interface=MEDIATION)
        to_core = ticket(client, work, "@core")
        shown = client.call("Show", to_core, {"summary": ("s", "done")}, interface=MEDIATION)
        client.call("Unshow", work, shown, interface=MEDIATION)
        forged = ("org.cageruntime.Error.NotAuthorized",)
        life.refused(client, *forged, "Show", "x" * 100, {"summary": ("s", "x")}, interface=MEDIATION)
        life.refused(client, *forged, "Dispose", to_core, interface=MEDIATION)
        client.call("Record", work, "work", vault, "files.Send", {"size": "1"}, interface=MEDIATION)
        client.call("Confirm", *asked, {"receipt": ("b", True)}, interface=MEDIATION)
        about = (work, "work", vault, "files.Send", {"size": "1", "request": "1" * 32}, "arrived")
        receipt = json.loads(client.call("Receipt", *about, interface=MEDIATION))
        assert (receipt["source"], receipt["target"], receipt["size"]) == ("work", "vault", "1")
        assert client.call("Receipt", *about, interface=MEDIATION) == ""
        client.call("RecordMalformed", work, "work", "files.Send", "too short", interface=MEDIATION)
        refused = ("org.cageruntime.Error.PolicyRefused",)
        life.refused(client, *refused, "Decide", work, "files.Send", "", "nobody", "1" * 32, "",
                     interface=MEDIATION)
        life.refused(client, *refused, "Confirm", *asked, {"size": ("t", (7 << 20) + 1)}, interface=MEDIATION)
        another = ("org.cageruntime.Error.NotAuthorized", "Decide", work, "log.Write", "", "vault", "1" * 32, "")
        life.refused(client, *another, interface=MEDIATION)
        for interface, member in methods(MEDIATION):
            with pytest.raises(Refused, match="takes the signature"):
                client.call_amiss(member, interface=interface, path=PATH)
    with open(os.devnull, "rb") as nothing:
        to_vault = ticket(mediator, work, "vault")
        channel = mediator.call("Deliver", to_vault, ["report.txt"], [nothing.fileno()], interface=MEDIATION)
        assert b"--deliver report.txt" in (mediator.output(channel) or b"")
        foreign.call("Stop", "vault", {})
        life.refused(mediator, "org.cageruntime.Error.WrongState", "Deliver", to_vault, [], [nothing.fileno()],
                     interface=MEDIATION)
    theirs = methods(MEDIATION)
    assert mediator.refused == methods(MEDIATION)
    assert mediator.succeeded == theirs
    assert busctl.succeeded == theirs - {(MEDIATION, "Deliver")}, "busctl has no descriptor to send"


# --- what the specification names ------------------------------------------------------------------------------------
NO, WHERE = f"{STANDARD}.Error", f"{PATH}/cage/work"
UNKNOWN: list[tuple[str, str | None, str, str, tuple[Any, ...], str]] = [
    (f"{PATH}/cage/nobody", life.PROPERTIES, "GetAll", "s", (CAGE,), "UnknownObject"),
    ("/elsewhere", life.PEER, "Ping", "", (), "UnknownObject"),
    (PATH, CAGE, "Anything", "", (), "UnknownInterface"),
    (WHERE, life.OBJECT_MANAGER, "GetManagedObjects", "", (), "UnknownInterface"),
    (PATH, MANAGER, "Frobnicate", "", (), "UnknownMethod"),
    (PATH, None, "Frobnicate", "", (), "UnknownMethod"),
    (PATH, MANAGER, "Create", "s", ("x",), "InvalidArgs"),
    (PATH, None, "List", "s", ("x",), "InvalidArgs"),
    (WHERE, life.PROPERTIES, "Get", "ss", (CAGE, "Colour"), "UnknownProperty"),
    (WHERE, life.PROPERTIES, "Get", "ss", ("", "Colour"), "UnknownProperty"),
    (WHERE, life.PROPERTIES, "Get", "ss", (MANAGER, "State"), "UnknownInterface"),
    (WHERE, life.PROPERTIES, "GetAll", "s", (MANAGER,), "UnknownInterface"),
    (WHERE, life.PROPERTIES, "Set", "ssv", (CAGE, "Level", Variant("s", "public")), "PropertyReadOnly"),
    (WHERE, life.PROPERTIES, "Set", "ssv", (CAGE, "Colour", Variant("s", "red")), "UnknownProperty"),
    (WHERE, life.PEER, "GetMachineId", "", (), "NotSupported"),
]


def test_what_is_not_there_is_said_by_the_names_of_the_specification(foreign: DbusNext) -> None:
    foreign.call("Create", "work", {})
    for path, interface, member, kinds, arguments, name in UNKNOWN:
        with pytest.raises(Refused) as refused:
            foreign.send(path, interface, member, kinds, *arguments)
        assert refused.value.name == f"{NO}.{name}", (path, interface, member)
    assert foreign.property("Level", CAGE, WHERE) == "public"


def test_interfaces_without_properties_have_none(foreign: DbusNext) -> None:
    for interface in (MANAGER, life.PEER, ""):
        assert foreign.send(PATH, life.PROPERTIES, "GetAll", "s", interface) == [{}]


# --- busctl's other verbs --------------------------------------------------------------------------------------------
def test_busctl_shows_cages(core: Core, foreign: DbusNext) -> None:
    for name in ("work", "other-one"):
        foreign.call("Create", name, {"start": ("b", False)})
    busctl = Busctl(core.address)
    nodes = busctl.run("tree", "--list", CORE).splitlines()
    assert nodes == ["/", "/org", "/org/cageruntime", PATH, f"{PATH}/cage", f"{PATH}/cage/other_2done",
                     f"{PATH}/cage/work"]
    shown = {words[0]: words[1:4] for words in map(str.split, busctl.run(
        "introspect", CORE, f"{PATH}/cage/work", CAGE).splitlines()[1:])}
    assert shown[".Level"] == ["property", "s", '"public"']
    assert shown[".State"] == ["property", "s", '"stopped"']
    assert {member.removeprefix(".") for member in shown} == {
        each.attrib["name"] for each in INTERFACES[CAGE].findall("property")}
    manager = {words[0].removeprefix("."): words[1:3] for words in map(str.split, busctl.run(
        "introspect", CORE, PATH, MANAGER).splitlines()[1:])}
    assert manager["Create"] == ["method", "sa{sv}"]
    assert set(manager) == {each.attrib["name"] for each in INTERFACES[MANAGER]}
    with pytest.raises(Refused, match="can be read, and not set"):
        busctl.run("set-property", CORE, f"{PATH}/cage/work", CAGE, "Level", "s", "secret")
