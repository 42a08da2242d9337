# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two persons and polkit: what each may do to whose cages, and what the one can learn of the other's."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from jeepney import DBusAddress, MatchRule, message_bus, new_method_call
from jeepney.io.blocking import open_dbus_connection

from cage_runtime.daemon.rights import RIGHTS, About
from cage_runtime.model import (
    CAGES_PER_PERSON,
    CALLS_AT_ONCE,
    CALLS_PER_PERSON,
    JOBS_PER_PERSON,
    QUESTIONS_PER_PERSON,
    RECORDED_BURST,
    RECORDED_PER_SECOND,
    RECORDED_WAIT_SECONDS,
    REFUSALS_BURST,
    REFUSALS_PER_SECOND,
)
from tests.bus.core import polkit as authority
from tests.bus.core.conftest import CORE, PATH, SECONDS, TOP, Client, Core, FakeApps, Refusal
from tests.bus.core.polkit import CHALLENGE, DISMISSED, INTERACTIVE, NO, YES, Asked, FakePolkit

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it connects as two persons")

ALICE, BOB = "games", "news"
HERS, HIS, NOBODYS = "a-cage", "b-cage", "c-cage"
CAGE = f"{PATH}/cage/"
MANAGER = ET.parse(TOP / f"cage_runtime/resources/{CORE}.xml").find(f"interface[@name='{CORE}.Manager']")
EMPTY: dict[str, Any] = {"s": "org.example.App", "u": 1, "as": [], "ay": b"", "a{sv}": {}, "a{say}": {}}
OF_CAGE = [member for member, right in RIGHTS.items() if right.about is About.CAGE]
OF_HOST = [member for member, right in RIGHTS.items() if right.about is About.HOST]
Outcome = tuple[str, str]
"""The name of the error and its sentence; both empty where there was none."""


def uid(person: str) -> int:
    return pwd.getpwnam(person).pw_uid


def action(member: str, others: str = "") -> str:
    return RIGHTS[member].action + others


def signature(member: str) -> list[str]:
    assert MANAGER is not None
    return [argument.attrib["type"] for argument in MANAGER.findall(f"method[@name='{member}']/arg[@direction='in']")]


def outcome(client: Client, member: str, *first: Any, **more: Any) -> Outcome:
    """What comes of the member with `first` and, for the rest of its arguments, nothing in particular."""
    types = signature(member)
    try:
        client.call(member, "".join(types), *first, *(EMPTY[type_] for type_ in types[len(first):]), **more)
    except Refusal as refused:
        return refused.name, refused.sentence
    return "", ""


def answered(client: Client, serial: int) -> Outcome:
    try:
        client.answer(serial)
    except Refusal as refused:
        return refused.name, refused.sentence
    return "", ""


@pytest.fixture
def polkit(core: Core) -> Iterator[FakePolkit]:
    fake = FakePolkit(core.address, tuple(action for right in RIGHTS.values() for action in right.actions))
    yield fake
    fake.close()


@pytest.fixture
def alice(core: Core) -> Iterator[Client]:
    client = core.client_of(ALICE)
    yield client
    client.close()


@pytest.fixture
def bob(core: Core) -> Iterator[Client]:
    client = core.client_of(BOB)
    yield client
    client.close()


@pytest.fixture
def cages(polkit: FakePolkit, alice: Client, bob: Client) -> None:
    """Each has a cage that runs; afterwards polkit says no, and has not been asked."""
    polkit.says = lambda _asked: YES
    alice.call("Create", "sa{sv}", HERS, {"level": ("s", "public")})
    bob.call("Create", "sa{sv}", HIS, {"level": ("s", "secret")})
    polkit.says = lambda _asked: NO
    polkit.take()


def none(name: str) -> Outcome:
    return "NoSuchCage", f'there is no cage "{name}"; cagectl list shows those there are'


def refused(member: str, why: str, others: str = "") -> Outcome:
    return "NotAuthorized", f"{member} is not authorised: {why} ({action(member, others)})"


TOO_MANY = "too many calls of yours are to be recorded at once; 2 a second are, so try again"
SAYS_NO = "polkit says no; who runs this host can allow it by a rule"


def known(polkit: FakePolkit) -> list[tuple[str, int, list[str]]]:
    """What polkit was asked, as far as the person who is asked about can see: the action, whether with a question."""
    return [(asked.action, asked.flags, [asked.details["cage"]] if asked.flags else []) for asked in polkit.take()]


# --- each method, each cage ------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("cages")
def test_where_polkit_says_no_nothing_is_done(core: Core, polkit: FakePolkit, alice: Client) -> None:
    core.spawner.requests.clear()
    for member in OF_CAGE:
        polkit.take()
        assert outcome(alice, member, HERS) == refused(member, SAYS_NO)
        (asked,) = polkit.take()
        assert asked == Asked(subject=alice.name, action=action(member), flags=0,
                              details={"cage": HERS, "level": "public", "owner": str(uid(ALICE))})
        for name in (HIS, NOBODYS):
            assert outcome(alice, member, name) == none(name)
    for member in OF_HOST:
        assert outcome(alice, member) == refused(member, SAYS_NO)
    for member in ("List", "Doctor"):
        assert outcome(alice, member) == refused(member, SAYS_NO)
    assert outcome(alice, "Create", NOBODYS) == refused("Create", SAYS_NO)
    assert core.spawner.requests == []


@pytest.mark.usefixtures("cages", "apps")
def test_who_may_with_ones_own_may_nothing_with_anothers(core: Core, polkit: FakePolkit, alice: Client) -> None:
    polkit.says = lambda asked: NO if asked.action.endswith("-any") else YES
    (his,) = core.spawner.running - {alice.call("Status", "sa{sv}", HERS, {})["uuid"][1]}
    core.spawner.requests.clear()
    for member in OF_CAGE:
        for name in (HIS, NOBODYS):
            assert outcome(alice, member, name) == none(name)
    assert core.spawner.requests == []
    for member in sorted(OF_CAGE, key=lambda member: member == "Destroy"):
        name, _ = outcome(alice, member, HERS)
        assert name in ("", "WrongState", "NoSuchApplication"), member
    assert core.spawner.running == {his}


@pytest.mark.usefixtures("cages", "apps")
def test_who_may_with_anothers_may(core: Core, polkit: FakePolkit, alice: Client) -> None:
    polkit.says = lambda asked: YES if asked.action.endswith("-any") else NO
    for member in sorted(OF_CAGE, key=lambda member: member == "Destroy"):
        assert outcome(alice, member, NOBODYS) == none(NOBODYS)
        polkit.take()
        name, _ = outcome(alice, member, HIS)
        assert name in ("", "WrongState", "NoSuchApplication"), member
        assert [(asked.action, asked.details) for asked in polkit.take()] == [
            (action(member, "-any"), {"cage": HIS, "level": "secret", "owner": str(uid(BOB))})]
    assert len(core.spawner.running) == 1
    assert outcome(alice, "Status", HERS) == refused("Status", SAYS_NO)


@pytest.mark.parametrize("interactive", [False, True])
@pytest.mark.parametrize("says", [NO, CHALLENGE, DISMISSED])
@pytest.mark.usefixtures("cages")
def test_anothers_and_nobodys_cannot_be_told_apart(
    core: Core, polkit: FakePolkit, alice: Client, says: authority.Answer, interactive: bool
) -> None:
    polkit.says = lambda _asked: says
    alice.interactive = interactive
    before = list(core.spawner.requests)
    for member in OF_CAGE:
        seen = []
        for name in (HIS, NOBODYS):
            assert outcome(alice, member, name) == none(name)
            seen.append([(action_, flags, bool(shown)) for action_, flags, shown in known(polkit)])
        # And nobody is asked for a password who has only mistyped a name.
        assert seen == [[(action(member, "-any"), 0, False), (action("List", "-any"), 0, False)]] * 2
    assert core.spawner.requests == before


@pytest.mark.usefixtures("cages")
def test_a_rule_that_says_no_to_one_cage_does_not_tell_that_it_is_there(polkit: FakePolkit, alice: Client) -> None:
    """What polkit is asked after it is the same as after another answer."""
    polkit.says = lambda asked: NO if asked.details.get("level") == "secret" else YES if asked.flags else CHALLENGE
    alice.interactive = True
    for name in (HIS, NOBODYS):
        assert outcome(alice, "Stop", name) == none(name)
        assert known(polkit) == [(action("Stop", "-any"), 0, []), (action("List", "-any"), 0, [])]


@pytest.mark.usefixtures("cages")
def test_who_sees_all_cages_is_asked_for_a_password_and_only_for_one_that_is_there(
    polkit: FakePolkit, alice: Client, client: Client
) -> None:
    password = NO
    seeing = action("List", "-any")
    polkit.says = lambda asked: YES if asked.action == seeing else password if asked.flags else CHALLENGE
    asked_twice = [(action("Stop", "-any"), 0, []), (seeing, 0, [])]
    assert outcome(alice, "Stop", HIS) == (
        "AuthenticationNeeded", "Stop is not authorised: it needs a password, and this call does not allow to ask for "
        f"one ({action('Stop', '-any')})")
    assert outcome(alice, "Stop", NOBODYS) == none(NOBODYS)
    assert known(polkit) == asked_twice * 2
    alice.interactive = True
    assert outcome(alice, "Stop", NOBODYS) == none(NOBODYS)
    assert known(polkit) == asked_twice
    wrong = "polkit says no, or the password was not the right one; who runs this host can allow it by a rule"
    assert outcome(alice, "Stop", HIS) == refused("Stop", wrong, "-any")
    assert known(polkit) == [*asked_twice, (action("Stop", "-any"), INTERACTIVE, [HIS])]
    password = YES
    assert outcome(alice, "Stop", HIS) == ("", "")
    assert client.call("Status", "sa{sv}", HIS, {})["state"][1] == "stopped"


@pytest.mark.usefixtures("cages")
def test_a_name_that_no_cage_can_have_is_shown_to_nobody(polkit: FakePolkit, alice: Client) -> None:
    alice.interactive = True
    assert outcome(alice, "Stop", "the update; type your password") == none("the update; type your password")
    assert polkit.take() == []


@pytest.mark.usefixtures("cages")
def test_a_log_does_not_tell_why_another_persons_cage_was_not_reached(
    core: Core, polkit: FakePolkit, alice: Client
) -> None:
    """The record has the truth of each refusal, and the log of the cage that asked is its owner's to read."""
    polkit.says = lambda asked: NO if asked.action.endswith("-any") else YES
    hers = alice.call("Status", "sa{sv}", HERS, {})["uuid"][1]
    with contextlib.closing(core.client_of(core.user.pw_name)) as mediator:
        for number, name in enumerate((HIS, NOBODYS)):
            with pytest.raises(Refusal, match="is refused"):
                mediator.call("Decide", "ssssss", hers, "files.Send", "", name, f"{number:032x}", "",
                              interface=f"{CORE}.Mediation")
    lines = [line.partition(" ")[2] for line in alice.call("Logs", "sa{sv}", HERS, {}) if " decision " in line]
    assert lines == [f'decision argument="" decision=deny mediator=files request={number:032x} service=files.Send '
                     f"target={name}" for number, name in enumerate((HIS, NOBODYS))]


# --- a new cage ------------------------------------------------------------------------------------------------------
NOT_TO_BE_HAD = [
    {"level": ("s", "no-such-level")}, {"template": ("s", "no-such-template")}, {"compartments": ("as", ["none"])},
    {"definition": ("s", "[limits]\nmemory = 3\n")}, {"definition": ("s", 'level = "no-such-level"\n')},
    {"ephemeral": ("b", True), "autostart": ("b", True)}, {"network": ("s", "nat")},
]


def created(client: Client, options: dict[str, Any]) -> Outcome:
    try:
        client.call("Create", "sa{sv}", HERS, options)
    except Refusal as told:
        return told.name, told.sentence
    return "", ""


def test_who_may_not_create_learns_nothing_of_levels_and_templates(polkit: FakePolkit, alice: Client) -> None:
    for options in ({}, {"template": ("s", "default")}, *NOT_TO_BE_HAD):
        assert created(alice, options) == refused("Create", SAYS_NO)
    assert [asked.details["cage"] for asked in polkit.take()] == [HERS] * (2 + len(NOT_TO_BE_HAD))
    polkit.says = lambda _asked: YES
    for options in NOT_TO_BE_HAD:
        name, sentence = created(alice, options)
        assert name in ("InvalidArgument", "UnknownLevel", "InvalidDefinition")
        assert sentence


def test_a_rule_is_told_the_level_that_the_cage_would_have(polkit: FakePolkit, alice: Client) -> None:
    """Whether that is asked for, or comes from a file; what is not one of the host's is none."""
    hers = {"cage": HERS, "owner": str(uid(ALICE))}
    for options, level in (
        ({"level": ("s", "secret")}, "secret"), ({"definition": ("s", 'level = "secret"\n')}, "secret"),
        ({"level": ("s", "no-such-level")}, ""), ({"level": ("s", "secret\n")}, ""),
    ):
        assert created(alice, options) == refused("Create", SAYS_NO)
        (asked,) = polkit.take()
        assert asked.details == hers | ({"level": level} if level else {})


@pytest.mark.parametrize("options", [
    {"autostart": ("b", True)}, {"definition": ("s", "[session]\nautostart = true\n")}])
def test_a_cage_that_is_started_with_the_host_takes_the_right_to_enable_it(
    core: Core, polkit: FakePolkit, alice: Client, options: dict[str, Any]
) -> None:
    polkit.says = lambda asked: YES if asked.action == action("Create") else NO
    core.spawner.requests.clear()
    assert created(alice, options) == ("NotAuthorized", f"Create is not authorised: {SAYS_NO} ({action('Enable')})")
    assert core.spawner.requests == []
    polkit.says = lambda asked: YES if asked.action == action("Enable") else NO
    assert created(alice, options) == refused("Create", SAYS_NO)
    polkit.take()
    polkit.says = lambda _asked: YES
    assert created(alice, options) == ("", "")
    assert [asked.action for asked in polkit.take()] == [action("Create"), action("Enable")]
    alice.call("Destroy", "sa{sv}", HERS, {})
    polkit.says = lambda asked: NO if asked.action == action("Enable") else YES
    assert created(alice, {}) == ("", "")


# --- lists and objects -----------------------------------------------------------------------------------------------
def names(client: Client) -> list[str]:
    return [cage["name"][1] for cage in client.call("List", "a{sv}", {})]


def introspected(client: Client, path: str) -> list[str]:
    text = client.call("Introspect", interface="org.freedesktop.DBus.Introspectable", path=path)
    return [node.attrib["name"] for node in ET.fromstring(text).findall("node")]


@pytest.mark.usefixtures("cages")
def test_a_list_has_ones_own_and_anothers_where_that_is_allowed(polkit: FakePolkit, alice: Client) -> None:
    alice.interactive = True
    for says, there in ((NO, [HERS]), (CHALLENGE, [HERS]), (YES, [HERS, HIS])):
        polkit.says = lambda asked, says=says: says if asked.action.endswith("-any") else YES  # type: ignore[misc]
        polkit.take()
        assert names(alice) == there
        # Nobody is asked for what is only left out otherwise, and how often polkit is asked tells nothing.
        assert [(asked.action, asked.flags) for asked in polkit.take()] == [
            (action("List"), INTERACTIVE), (action("List", "-any"), 0)]
        paths = {CAGE + name.replace("-", "_2d") for name in there}
        assert set(alice.call("GetManagedObjects", interface="org.freedesktop.DBus.ObjectManager")) == paths
        assert {CAGE + name for name in introspected(alice, CAGE.rstrip("/"))} == paths


@pytest.mark.usefixtures("cages")
def test_an_object_of_anothers_is_as_one_that_is_not_there(polkit: FakePolkit, alice: Client) -> None:
    polkit.says = lambda asked: NO if asked.action.endswith("-any") else YES
    assert alice.properties(f"{CAGE}a_2dcage", f"{CORE}.Cage")["Name"] == HERS
    for member, interface, types, arguments in (
        ("GetAll", "Properties", "s", (f"{CORE}.Cage",)), ("Get", "Properties", "ss", (f"{CORE}.Cage", "Level")),
        ("Introspect", "Introspectable", "", ()), ("Ping", "Peer", "", ()),
        ("GetManagedObjects", "ObjectManager", "", ()),
    ):
        sentences = set()
        for name in ("b_2dcage", "c_2dcage"):
            with pytest.raises(Refusal) as told:
                alice.call(member, types, *arguments, interface=f"org.freedesktop.DBus.{interface}", path=CAGE + name)
            sentences.add((told.value.name, told.value.sentence.replace(name, "NAME")))
        assert len(sentences) == 1


@pytest.mark.usefixtures("cages")
def test_doctor_speaks_of_ones_own_cages(core: Core, polkit: FakePolkit, alice: Client, bob: Client) -> None:
    polkit.says = lambda asked: NO if asked.action.endswith("-any") else YES
    core.spawner.stored.add("d" * 32)
    core.spawner.stop()
    core.spawner.start()
    bob.call("Create", "sa{sv}", "b-limited", {"definition": ("s", '[limits]\nio-weight = 5\non-missing = "warn"\n')})

    def told(client: Client) -> str:
        return repr(client.call("Doctor", "a{sv}", {}))

    assert "b-limited" in told(bob)
    for secret in ("b-", "d" * 32, "4000"):
        assert secret not in told(alice)
    polkit.says = lambda _asked: YES
    for fact in ("b-limited", "d" * 32, "4000"):
        assert fact in told(alice)


def authorisation(client: Client) -> tuple[str, str]:
    (check,) = [check for check in client.call("Doctor", "a{sv}", {}) if check["check"][1] == "authorisation"]
    return check["state"][1], check["detail"][1]


def test_doctor_tells_who_may(core: Core, client: Client) -> None:
    assert authorisation(client) == ("limited", "only root may use cages (there is no polkit)")
    fake = FakePolkit(core.address)
    there = len({action for right in RIGHTS.values() for action in right.actions})
    all_of_them = f"only root may use cages (polkit does not know {there} of this runtime's"
    assert authorisation(client)[1].startswith(all_of_them)
    fake.close()
    fake = FakePolkit(core.address, tuple(action for right in RIGHTS.values() for action in right.actions))
    assert authorisation(client) == ("ok", "polkit decides what each person may")
    fake.close()


@pytest.mark.usefixtures("cages")
def test_explain_is_for_who_may_know_of_both(polkit: FakePolkit, alice: Client, client: Client) -> None:
    polkit.says = lambda asked: NO if asked.action.endswith("-any") else YES
    alice.call("Create", "sa{sv}", "a-other", {"level": ("s", "public")})

    def explained(source: str, target: str, asking: Client = alice) -> Outcome | str:
        try:
            decision = asking.call("ExplainPolicy", "ssssa{sv}", source, "files.Send", "", target, {})
        except Refusal as told:
            return told.name, told.sentence
        return str(decision["action"][1])

    assert explained(HERS, "a-other") == "allow"
    for other in (HIS, NOBODYS):
        assert explained(HERS, other) == explained(other, HERS) == none(other)
    polkit.says = lambda _asked: YES
    assert explained(HERS, HIS) == "deny"
    told = client.call("ExplainPolicy", "ssssa{sv}", HERS, "files.Send", "", HIS, {})
    assert "within one person's cages alone" in told["reason"][1]


@pytest.mark.usefixtures("cages")
def test_a_name_that_a_rule_sends_on_is_explained_to_who_sees_all(core: Core, polkit: FakePolkit, alice: Client,
                                                                  client: Client) -> None:
    polkit.says = lambda asked: NO if asked.action.endswith("-any") else YES
    core.write_policy(f"files.Send * * in allow target={HIS}\nfiles.Send * * {HIS} allow declassify\n")
    client.call("ReloadPolicy", "a{sv}", {})

    def explained(asking: Client, target: str) -> dict[str, Any]:
        return asking.call("ExplainPolicy", "ssssa{sv}", HERS, "files.Send", "", target, {})

    told = explained(client, "in")
    assert (told["action"][1], told["target"][1]) == ("allow", HIS)
    for asking, target in ((alice, "in"), (client, "out"), (client, "In")):
        with pytest.raises(Refusal) as refusal:
            explained(asking, target)
        assert (refusal.value.name, refusal.value.sentence) == none(target)
    with pytest.raises(Refusal, match="cannot be asked for"):
        explained(client, "@dominates")


# --- root, and no polkit ---------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("cages", "apps")
def test_root_is_not_asked_about(polkit: FakePolkit, client: Client) -> None:
    for member in sorted(OF_CAGE, key=lambda member: member == "Destroy"):
        assert outcome(client, member, HIS)[0] in ("", "WrongState", "NoSuchApplication")
    assert names(client) == [HERS]
    client.call("Create", "sa{sv}", "roots", {})
    assert polkit.take() == []


def test_without_polkit_root_alone_may(core: Core, client: Client) -> None:
    fake = FakePolkit(core.address)
    fake.says = lambda _asked: YES
    with contextlib.closing(core.client_of(ALICE)) as alice:
        alice.call("Create", "sa{sv}", HERS, {})
        client.call("Create", "sa{sv}", HIS, {})
        fake.close()
        alice.interactive = True
        core.spawner.requests.clear()
        for member in OF_CAGE:
            for name in (HERS, HIS, NOBODYS):
                assert outcome(alice, member, name) == ("NotAuthorized", f"{member} needs root on this host; use sudo")
        for member in ("List", "Doctor", "Create", *OF_HOST):
            first = ["new"] if member == "Create" else []
            assert outcome(alice, member, *first) == ("NotAuthorized", f"{member} needs root on this host; use sudo")
        for name in ("a_2dcage", "b_2dcage", "c_2dcage"):
            with pytest.raises(Refusal) as refused_:
                alice.properties(CAGE + name, f"{CORE}.Cage")
            assert refused_.value.sentence == "GetAll needs root on this host; use sudo"
        assert introspected(alice, PATH) == []
        assert core.spawner.requests == []
    assert names(client) == [HERS, HIS]


@pytest.mark.usefixtures("cages")
def test_the_record_says_whose_doing_it_was(
    core: Core, polkit: FakePolkit, apps: FakeApps, alice: Client, bob: Client, client: Client
) -> None:
    """Also of what goes on after the call, and not of what comes by itself."""
    polkit.says = lambda _asked: YES
    bob.call("Stop", "sa{sv}", HERS, {})
    job = alice.call("InstallApplication", "ssa{sv}", HIS, "org.example.App", {})
    alice.call("Wait", interface=f"{CORE}.Job", path=job)
    client.call("Start", "sa{sv}", HERS, {})
    with client.signals() as following:
        core.spawner.end(client.call("Status", "sa{sv}", HERS, {})["uuid"][1])
        following()
    fields = [json.loads(line)["fields"] for line in client.call("TailAudit", "a{sv}", {"count": ("u", 4)})]
    assert [entry.get("by") for entry in fields] == [str(uid(BOB)), str(uid(ALICE)), "0", None]
    assert apps.calls


# --- questions -------------------------------------------------------------------------------------------------------
NO_AGENT = "it needs a password, and nobody is there to ask for one; on a terminal pkttyagent does"


@pytest.mark.usefixtures("cages")
def test_a_question_is_asked_where_the_call_allows_it(polkit: FakePolkit, alice: Client) -> None:
    polkit.says = lambda asked: YES if asked.flags & INTERACTIVE else CHALLENGE
    name, sentence = outcome(alice, "Stop", HERS)
    assert name == "AuthenticationNeeded"
    assert "it needs a password, and this call does not allow to ask for one" in sentence
    alice.interactive = True
    assert outcome(alice, "Stop", HERS) == ("", "")
    for says, why in ((CHALLENGE, NO_AGENT), (DISMISSED, "it needs a password, and none was given")):
        polkit.says = lambda _asked, says=says: says  # type: ignore[misc]
        assert outcome(alice, "Start", HERS) == refused("Start", why)


@pytest.mark.usefixtures("cages")
def test_a_question_is_withdrawn_when_the_caller_goes(core: Core, polkit: FakePolkit) -> None:
    polkit.says = lambda _asked: None
    with contextlib.closing(core.client_of(ALICE)) as leaving:
        leaving.interactive = True
        leaving.send("Stop", "sa{sv}", HERS, {})
        polkit.wait_until(lambda: len(polkit.open) == 1)
        (asked,) = polkit.take()
    polkit.wait_until(lambda: bool(polkit.cancelled))
    assert polkit.cancelled == [asked.cancellation]
    assert "Stop" not in core.spawner.kinds()


@pytest.mark.usefixtures("cages")
def test_questions_that_are_open_are_bounded_for_each_person(core: Core, polkit: FakePolkit, bob: Client) -> None:
    polkit.says = lambda _asked: None
    with contextlib.closing(core.client_of(ALICE)) as alice:
        alice.interactive = bob.interactive = True
        pending = [alice.send("Stop", "sa{sv}", HERS, {}) for _ in range(QUESTIONS_PER_PERSON)]
        polkit.wait_until(lambda: len(polkit.open) == QUESTIONS_PER_PERSON)
        assert outcome(alice, "Stop", HERS)[1].startswith(
            "Stop is not authorised: 4 questions for a password are open already")
        his = bob.send("Stop", "sa{sv}", HIS, {})
        polkit.wait_until(lambda: len(polkit.open) == QUESTIONS_PER_PERSON + 1)
        polkit.answer_open(YES)
        for serial in pending:
            alice.answer(serial)
        bob.answer(his)


@pytest.mark.usefixtures("cages")
def test_what_was_permitted_is_the_cage_that_was_there(
    core: Core, polkit: FakePolkit, alice: Client, client: Client
) -> None:
    """While the question is open the cage goes, and its name comes again as somebody else's."""
    polkit.says = lambda _asked: None
    alice.interactive = True
    pending = [alice.send(member, "sa{sv}", HERS, {}) for member in ("Stop", "Destroy")]
    pending.append(alice.send("Enter", "sasa{sv}", HERS, ["cat", "secrets"], {}))
    polkit.wait_until(lambda: len(polkit.open) == len(pending))
    client.call("Destroy", "sa{sv}", HERS, {})
    client.call("Create", "sa{sv}", HERS, {})
    core.spawner.requests.clear()
    polkit.answer_open(YES)
    for serial in pending:
        with pytest.raises(Refusal) as told:
            alice.answer(serial)
        assert (told.value.name, told.value.sentence) == none(HERS)
    assert core.spawner.requests == []


# --- a polkit that fails ---------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("cages")
def test_an_answer_that_is_none_of_polkits_is_a_refusal(core: Core, polkit: FakePolkit, alice: Client) -> None:
    core.spawner.requests.clear()
    for raw in (("", ()), ("b", (True,)), ("(bb)", ((True, False),)), ("(sba{ss})", (("yes", False, {}),)),
                ("(uba{ss})", ((1, False, {}),)), ("(bba{ss})s", (YES, "more"))):
        polkit.raw = raw
        for name in (HERS, HIS, NOBODYS):
            assert outcome(alice, "Stop", name) == (
                "NotAuthorized", "Stop is not authorised: polkit gives an answer of an unknown shape")
    assert core.spawner.requests == []


@pytest.mark.parametrize("interactive", [False, True])
def test_a_polkit_that_dies_in_the_middle_is_a_refusal(core: Core, client: Client, interactive: bool) -> None:
    client.call("Create", "sa{sv}", HIS, {})
    for name in (HIS, NOBODYS):
        fake = FakePolkit(core.address)
        fake.says = lambda asked: CHALLENGE if interactive and asked.action != action("List", "-any") else None
        with contextlib.closing(core.client_of(ALICE)) as alice:
            alice.interactive = interactive
            pending = alice.send("Stop", "sa{sv}", name, {})
            fake.wait_until(lambda: len(fake.open) == 1)  # noqa: B023 - called at once
            fake.close()
            with pytest.raises(Refusal) as told:
                alice.answer(pending)
        assert told.value.name == "NotAuthorized"
        assert told.value.sentence.startswith("Stop is not authorised: polkit gives no answer: ")
    assert "Stop" not in core.spawner.kinds()


# --- jobs ------------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("cages")
def test_a_job_is_there_for_who_started_it(
    polkit: FakePolkit, apps: FakeApps, alice: Client, bob: Client, client: Client
) -> None:
    polkit.says = lambda _asked: YES
    apps.patient = True
    job = alice.call("InstallApplication", "ssa{sv}", HERS, "org.example.App", {})
    assert apps.asked.wait(SECONDS)
    for member in ("Wait", "Cancel"):
        sentences = set()
        for path in (job, f"{PATH}/job/0123456789abcdef"):
            with pytest.raises(Refusal) as told:
                bob.call(member, interface=f"{CORE}.Job", path=path)
            sentences.add((told.value.name, told.value.sentence.replace(path, "PATH")))
        assert len(sentences) == 1
    assert introspected(bob, f"{PATH}/cage") == ["a_2dcage", "b_2dcage"]
    assert "job" not in introspected(bob, PATH)
    assert alice.properties(job, f"{CORE}.Job")["Progress"] == "running"
    assert client.properties(job, f"{CORE}.Job")["Progress"] == "running"
    alice.call("Cancel", interface=f"{CORE}.Job", path=job)


@pytest.mark.usefixtures("cages")
def test_who_installs_much_keeps_nobody_waiting_for_more_than_one(
    polkit: FakePolkit, apps: FakeApps, alice: Client, bob: Client
) -> None:
    polkit.says = lambda _asked: YES
    apps.patient = True
    jobs = [(alice, alice.call("InstallApplication", "ssa{sv}", HERS, f"org.example.A{number}", {}))
            for number in range(JOBS_PER_PERSON)]
    alice.until(lambda: bool(names(alice)) and bool(apps.waiting))
    jobs.append((bob, bob.call("InstallApplication", "ssa{sv}", HIS, "org.example.B", {})))
    assert names(bob)
    apps.patient = False
    apps.finish()
    for who, job in jobs:
        who.call("Wait", interface=f"{CORE}.Job", path=job)
    order = [arguments[0].removeprefix("org.example.") for member, arguments in apps.calls if member == "Install"]
    assert order == ["A0", "B", *(f"A{number}" for number in range(1, JOBS_PER_PERSON))]


def test_what_was_installed_for_a_cage_that_has_gone_does_not_stay(
    polkit: FakePolkit, apps: FakeApps, alice: Client
) -> None:
    """It would be nobody's, and not counted for anybody."""
    polkit.says = lambda _asked: YES
    alice.call("Create", "sa{sv}", HERS, {"start": ("b", False)})
    apps.patient = True
    job = alice.call("InstallApplication", "ssa{sv}", HERS, "org.example.App", {})
    alice.until(lambda: bool(alice.call("List", "a{sv}", {})) and bool(apps.waiting))
    alice.call("Destroy", "sa{sv}", HERS, {})
    apps.finish()
    with pytest.raises(Refusal) as refusal:
        alice.call("Wait", interface=f"{CORE}.Job", path=job)
    assert refusal.value.name == "NoSuchCage"
    assert apps.calls[-1] == ("Remove", ("org.example.App",))


# --- bounds ----------------------------------------------------------------------------------------------------------
def test_one_person_cannot_use_up_what_there_is_for_all(
    core: Core, polkit: FakePolkit, apps: FakeApps, alice: Client, bob: Client, client: Client
) -> None:
    polkit.says = lambda _asked: YES
    for number in range(CAGES_PER_PERSON):
        alice.call("Create", "sa{sv}", f"a{number}", {"start": ("b", False)})
    assert outcome(alice, "Create", "more") == (
        "RuntimeFailure", f"you have {CAGES_PER_PERSON} cages already; destroy one that you do not need")
    bob.call("Create", "sa{sv}", HIS, {"start": ("b", False)})
    client.call("Create", "sa{sv}", "roots", {"start": ("b", False)})
    apps.patient = True
    for _ in range(JOBS_PER_PERSON):
        alice.call("InstallApplication", "ssa{sv}", "a0", "org.example.App", {})
    assert outcome(alice, "InstallApplication", "a0")[1] == (
        f"{JOBS_PER_PERSON} jobs of yours are under way already; wait for one of them")
    bob.call("InstallApplication", "ssa{sv}", HIS, "org.example.App", {})
    # Calls, over all of her connections.
    polkit.says = lambda asked: None if asked.action == action("Show") else YES
    with contextlib.closing(core.client_of(ALICE)) as second:
        pending = [(caller, caller.send("Show", "sa{sv}", "a0", {}))
                   for caller in (alice, second) for _ in range(CALLS_PER_PERSON // 2)]
        polkit.wait_until(lambda: len(polkit.open) == CALLS_PER_PERSON)
        assert outcome(second, "List")[1] == (
            f"{CALLS_PER_PERSON} calls of yours are being answered already; wait for one of them")
        assert names(bob)
        assert names(client)
        polkit.answer_open(YES)
        for caller, serial in pending:
            caller.answer(serial)
        assert len(names(alice)) == CAGES_PER_PERSON + 2


def test_one_person_cannot_use_up_a_moment_in_which_caged_is_busy(
    core: Core, polkit: FakePolkit, alice: Client, bob: Client, client: Client
) -> None:
    """What came meanwhile is there at once, before any of it has its turn."""
    polkit.says = lambda _asked: YES
    assert [names(caller) for caller in (alice, bob, client)] == [[], [], []]
    os.kill(core.pid, signal.SIGSTOP)
    try:
        for _ in range(CALLS_AT_ONCE + 50):
            alice.tell("List", "a{sv}", {})
        alice.is_heard()
        others = [(caller, caller.send("List", "a{sv}", {})) for caller in (bob, client)]
    finally:
        os.kill(core.pid, signal.SIGCONT)
    assert [caller.answer(serial) for caller, serial in others] == [[], []]
    bob.until(lambda: outcome(alice, "List") == ("", ""))


def records(client: Client) -> int:
    """How many there are in the chain; each has its number."""
    (last,) = client.call("TailAudit", "a{sv}", {"count": ("u", 1)})
    return int(json.loads(last)["sequence"])


@pytest.mark.usefixtures("cages")
def test_one_person_cannot_fill_the_disk_of_the_record(
    polkit: FakePolkit, alice: Client, bob: Client, client: Client
) -> None:
    """By turning something on and off, with as many calls at once as one person may have."""
    polkit.says = lambda _asked: YES
    before, began = records(client), time.monotonic()
    outcomes: Counter[Outcome] = Counter()
    for _ in range(RECORDED_BURST // CALLS_PER_PERSON + 1):
        pending = [alice.send(member, "sa{sv}", HERS, {}) for member in ("Enable", "Disable") * (CALLS_PER_PERSON // 2)]
        outcomes.update(answered(alice, serial) for serial in pending)
    took = time.monotonic() - began
    assert took >= RECORDED_WAIT_SECONDS - 1
    assert outcomes.keys() == {("", ""), ("RuntimeFailure", TOO_MANY)}
    assert outcomes["RuntimeFailure", TOO_MANY] >= CALLS_PER_PERSON // 4
    most = RECORDED_BURST + (took + RECORDED_WAIT_SECONDS) * RECORDED_PER_SECOND
    assert RECORDED_BURST <= records(client) - before <= most
    # She may still look, whatever is not recorded is not counted; nobody else notices, and root is not bounded.
    assert outcome(alice, "Status", HERS) == ("", "")
    for caller, name in ((bob, HIS), *((client, HERS),) * (RECORDED_BURST + 1)):
        assert outcome(caller, "Enable", name) == outcome(caller, "Disable", name) == ("", "")
    # And she goes on, one by one.
    assert outcome(alice, "Enable", HERS) == ("", "")


def refusals(client: Client, count: int) -> list[dict[str, str]]:
    """The fields of the last `count` records, all of which are refusals."""
    events = [json.loads(line) for line in client.call("TailAudit", "a{sv}", {"count": ("u", count)})]
    assert [event["kind"] for event in events] == ["refused"] * count
    return [event["fields"] for event in events]


@pytest.mark.usefixtures("cages")
def test_the_record_has_what_was_refused_to_whom_and_why(polkit: FakePolkit, alice: Client, client: Client) -> None:
    his = client.call("Status", "sa{sv}", HIS, {})["uuid"][1]
    before, hers = records(client), str(uid(ALICE))
    for member, first in (("Stop", [HERS]), ("Stop", [HIS]), ("Stop", [NOBODYS]), ("Create", ["d-cage"]),
                          ("ReloadPolicy", []), ("List", [])):
        assert outcome(alice, member, *first) != ("", "")
    with pytest.raises(Refusal):
        alice.properties(f"{CAGE}a_2dcage", f"{CORE}.Cage")
    assert records(client) == before + 7
    found = refusals(client, 7)
    assert [fields.pop("by") for fields in found] == [hers] * 7
    assert [(fields["method"], fields.get("cage")) for fields in found] == [
        ("Stop", HERS), ("Stop", HIS), ("Stop", NOBODYS), ("Create", "d-cage"), ("ReloadPolicy", None), ("List", None),
        ("GetAll", None)]
    assert found[0]["reason"] == f"{SAYS_NO} ({action('Stop')})"
    assert [fields.get("uuid") for fields in found[1:3]] == [his, None]
    assert found[1]["reason"] == found[2]["reason"] == f"{SAYS_NO} ({action('Stop', '-any')})"
    # Who asks for a password is not refused yet; whom it is not given is.
    polkit.says = lambda asked: DISMISSED if asked.flags else CHALLENGE
    assert outcome(alice, "Stop", HERS)[0] == "AuthenticationNeeded"
    assert records(client) == before + 7
    alice.interactive = True
    assert outcome(alice, "Stop", HERS)[0] == "NotAuthorized"
    assert refusals(client, 1)[0]["reason"].startswith("it needs a password, and none was given")
    polkit.says = lambda _asked: YES
    assert not [line for line in client.call("Logs", "sa{sv}", HIS, {}) if "refused" in line]


@pytest.mark.usefixtures("cages")
def test_who_is_refused_cannot_fill_the_disk_either(alice: Client, bob: Client, client: Client) -> None:
    before, began = records(client), time.monotonic()
    for _ in range(10):
        for name in (HERS, HIS, NOBODYS):
            for member in ("Stop", "Status", "Destroy", "Enter"):
                assert outcome(alice, member, name) != ("", "")
    took = time.monotonic() - began
    assert REFUSALS_BURST <= records(client) - before <= REFUSALS_BURST + took * REFUSALS_PER_SECOND + 1
    assert outcome(bob, "Stop", HIS)[0] == "NotAuthorized"
    assert refusals(client, 1)[0]["by"] == str(uid(BOB))


@pytest.mark.usefixtures("cages", "apps")
def test_what_is_not_counted_writes_no_record(polkit: FakePolkit, alice: Client, client: Client) -> None:
    polkit.says = lambda _asked: YES
    before = records(client)
    for member in (member for member, right in RIGHTS.items() if not right.recorded):
        asked = member in ("ExplainPolicy", "SimulatePolicy")
        first = [HERS, "files.Send", "", HERS] if asked else [HERS] if member in OF_CAGE else []
        last = [{"count": ("u", 5)}] if member == "TailAudit" else []
        assert outcome(alice, member, *first, *last) == ("", "")
    assert records(client) == before


@pytest.mark.usefixtures("cages")
def test_a_cage_that_goes_while_its_turn_is_waited_for_is_not_there(
    polkit: FakePolkit, alice: Client, client: Client
) -> None:
    polkit.says = lambda _asked: YES
    for _ in range(RECORDED_BURST):
        outcome(alice, "Start", HERS)
    pending = alice.send("Destroy", "sa{sv}", HERS, {})
    client.call("Destroy", "sa{sv}", HERS, {})
    client.call("Create", "sa{sv}", HERS, {})
    with pytest.raises(Refusal) as told:
        alice.answer(pending)
    assert (told.value.name, told.value.sentence) == none(HERS)
    assert HERS in names(client)


# --- the distribution's mock -----------------------------------------------------------------------------------------
MOCK = ("org.freedesktop.DBus.Mock", authority.PATH, authority.NAME)


@pytest.fixture
def mock(core: Core) -> Iterator[Callable[..., Any]]:
    """python-dbusmock's polkitd on the bus, and what calls its controls."""
    environment = {"PATH": "/usr/bin:/bin", "DBUS_SYSTEM_BUS_ADDRESS": core.address}
    with contextlib.closing(open_dbus_connection(core.address)) as connection:
        rule = MatchRule(type="signal", interface="org.freedesktop.DBus", member="NameOwnerChanged")
        rule.add_arg_condition(0, authority.NAME)
        connection.send_and_get_reply(message_bus.AddMatch(rule))
        with connection.filter(rule) as queue:
            served = subprocess.Popen([sys.executable, "-m", "dbusmock", "--template", "polkitd"], env=environment,
                                      stdout=subprocess.DEVNULL)
            connection.recv_until_filtered(queue, timeout=SECONDS)

        def control(member: str, types: str, *arguments: Any) -> None:
            address = DBusAddress(authority.PATH, authority.NAME, MOCK[0])
            connection.send_and_get_reply(new_method_call(address, member, types, arguments), timeout=SECONDS)

        control.process = served  # type: ignore[attr-defined]
        yield control
    served.kill()
    served.wait()


def test_the_mock_of_the_distribution_is_understood(core: Core, mock: Callable[..., Any], client: Client) -> None:
    client.call("Create", "sa{sv}", HIS, {})
    with contextlib.closing(core.client_of(ALICE)) as alice:
        assert outcome(alice, "Create", HERS) == refused("Create", SAYS_NO)
        mock("SetAllowed", "as", [action("Create"), action("Status"), action("Destroy"), action("List")])
        assert outcome(alice, "Create", HERS) == ("", "")
        assert outcome(alice, "Status", HERS) == ("", "")
        assert names(alice) == [HERS]
        assert outcome(alice, "Stop", HERS) == refused("Stop", SAYS_NO)
        assert outcome(alice, "Destroy", HIS) == none(HIS)
        mock("SetAllowed", "as", [action("Destroy", "-any")])
        assert outcome(alice, "Destroy", HIS) == ("", "")
        mock("SimulateHang", "b", True)
        pending = alice.send("Show", "sa{sv}", HERS, {})
        assert names(client) == [HERS]
        mock.process.kill()  # type: ignore[attr-defined]
        with pytest.raises(Refusal, match="polkit gives no answer"):
            alice.answer(pending)
        assert outcome(alice, "Show", HERS) == ("NotAuthorized", "Show needs root on this host; use sudo")
