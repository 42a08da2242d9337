# SPDX-License-Identifier: LGPL-2.1-or-later
"""Notifications from the notify mediator's core half to a person and back, through the real caged; the person's side is
a plain client, and cage-desktop on a display."""

from __future__ import annotations

import contextlib
import pwd
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from cage_runtime.model import NOTIFICATION_ACTIONS_MAX, NOTIFICATIONS_PER_CAGE
from tests.bus.core.conftest import Core, running
from tests.bus.desktop.conftest import Desktop, Server, Start, buses, display, environment, server, start, until
from tests.foreign import MEDIATION, DbusNext, Heard, Refused, plain

__all__ = ["buses", "display", "environment", "server", "start"]

RULES = "notify.Show * * @core allow\n"
GONE = "NoSuchNotification"


@pytest.fixture
def core() -> Iterator[Core]:
    with running("notify") as core:
        core.write_policy(RULES)
        core.stop()
        core.start()
        yield core


@dataclass(kw_only=True, slots=True)
class World:
    core: Core
    person: DbusNext
    mediator: DbusNext
    heard: Heard
    """What the person's agent hears."""
    acted: Heard
    """What the mediator hears."""
    uuids: dict[str, str]

    def show(self, cage: str, summary: str = "done", **more: Any) -> int:
        notification = {"summary": ("s", summary), "actions": ("a(ss)", [["open", "Open"]]), **more}
        return int(self.mediator.call("Show", self.ticket(cage), notification, interface=MEDIATION))

    def ticket(self, cage: str) -> str:
        asked = (self.uuids[cage], "notify.Show", "", "@core", "1" * 32)
        return str(self.mediator.call("Confirm", *asked, {}, interface=MEDIATION)["ticket"])

    def told(self) -> dict[str, Any]:
        return dict(plain(self.heard.until("Notified")[-1].body[0]))

    def click(self, number: int, action: str = "open") -> None:
        self.person.call("NotificationAction", number, action, {})


@pytest.fixture
def world(core: Core) -> Iterator[World]:
    with contextlib.closing(DbusNext(core.address)) as person, \
            contextlib.closing(DbusNext(core.address, uid=core.user.pw_uid)) as mediator:
        for name in ("work", "vault"):
            person.call("Create", name, {"level": ("s", "internal")})
        person.call("RegisterAgent", {})
        mediator.call("Gateways", interface=MEDIATION)
        uuids = {cage["name"]: cage["uuid"] for cage in person.call("List", {})}
        yield World(core=core, person=person, mediator=mediator, heard=person.signals(), acted=mediator.signals(),
                    uuids=uuids)


def test_it_comes_to_the_person_and_a_click_goes_back(world: World) -> None:
    asked = (world.uuids["work"], "notify.Show", "", "@core", "1" * 32)
    assert world.mediator.call("Decide", *asked, "", interface=MEDIATION)["action"] == "allow"
    number = world.show("work", "<b>done</b>", body=("s", "1\n2"), urgency=("s", "low"))
    assert world.told() == {
        "kind": "notification", "id": number, "source": "work", "source-level": "internal",
        "source-colour": "#ef6c00", "summary": "<b>done</b>", "body": "1\n2", "urgency": "low",
        "actions": [["open", "Open"]]}
    world.click(number)
    acted = world.acted.until("Acted")[-1]
    assert (acted.signature, acted.body) == ("us", [number, "open"])
    assert world.told()["closed"] is True
    with pytest.raises(Refused, match=GONE):
        world.click(number)


@pytest.mark.parametrize("text", ["\x1b]52;c;eA==\x07", "a\rb\b", "\u202egnp.exe", "\x9b31m", "\x90q\x9c", "\u2028x"])
def test_what_the_core_half_passes_on_is_made_visible_once_more(world: World, text: str) -> None:
    """M80, M81: of a core half that a cage has got hold of, too."""
    world.show("work", text, body=("s", f"{text}\n{text}"), actions=("a(ss)", [["a", text]]))
    told = world.told()
    for shown in (told["summary"], *told["body"].split("\n"), told["actions"][0][1]):
        assert shown.isprintable(), shown


@pytest.mark.parametrize("more", [
    {"urgency": ("s", "panic")}, {"icon": ("s", "/etc/passwd")}, {"body": ("u", 1)},
    {"actions": ("a(ss)", [[str(n), "x"] for n in range(NOTIFICATION_ACTIONS_MAX + 1)])},
])
def test_what_is_none_is_refused(world: World, more: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="InvalidArgument"):
        world.show("work", **more)


def test_another_cage_s_is_neither_replaced_nor_taken_away(world: World) -> None:
    """M50."""
    theirs = world.show("vault")
    number = world.show("work", replaces=("u", theirs))
    assert number != theirs
    world.mediator.call("Unshow", world.uuids["work"], theirs, interface=MEDIATION)
    world.click(theirs)
    assert world.acted.until("Acted")[-1].body == [theirs, "open"]
    assert world.show("work", replaces=("u", number)) == number, "its own is"
    world.mediator.call("Unshow", world.uuids["work"], number, interface=MEDIATION)
    with pytest.raises(Refused, match=GONE):
        world.click(number)


def test_what_another_program_has_shown_is_its_own(world: World) -> None:
    """Of the same cage, and by a permission of its own: it is neither taken away nor replaced."""
    number = world.show("work")
    with contextlib.closing(DbusNext(world.core.address, uid=world.core.user.pw_uid)) as another:
        another.call("Unshow", world.uuids["work"], number, interface=MEDIATION)
        notification = {"summary": ("s", "mine"), "replaces": ("u", number)}
        assert another.call("Show", world.ticket("work"), notification, interface=MEDIATION) != number
    world.click(number)
    assert world.acted.until("Acted")[-1].body == [number, "open"]


def test_what_was_not_offered_is_no_click(world: World) -> None:
    """M10: and the notification stays."""
    number = world.show("work")
    with pytest.raises(Refused, match="no such action"):
        world.click(number, "rm")
    world.click(number)
    assert world.acted.until("Acted")[-1].body == [number, "open"]


def test_a_flood_takes_room_from_nobody_else(world: World) -> None:
    theirs = world.show("vault")
    numbers = [world.show("work", str(n)) for n in range(NOTIFICATIONS_PER_CAGE + 2)]
    for oldest in numbers[:2]:
        with pytest.raises(Refused, match=GONE):
            world.click(oldest)
    world.click(numbers[2])
    world.click(theirs)


def _restart_the_cage(world: World) -> None:
    world.person.call("Stop", "work", {})
    world.person.call("Start", "work", {})


def _make_it_again(world: World) -> None:
    world.person.call("Destroy", "work", {})
    world.person.call("Create", "work", {"level": ("s", "internal")})


def _restart_the_core(world: World) -> None:
    world.core.stop(kill=True)
    world.core.start()
    world.person.call("RegisterAgent", {})
    world.mediator.call("Gateways", interface=MEDIATION)


@pytest.mark.parametrize("again", [_restart_the_cage, _make_it_again, _restart_the_core])
def test_a_click_after_a_restart_goes_nowhere(world: World, again: Callable[[World], None]) -> None:
    """M52."""
    number = world.show("work")
    again(world)
    with pytest.raises(Refused, match=GONE):
        world.click(number)
    world.uuids = {cage["name"]: cage["uuid"] for cage in world.person.call("List", {})}
    later = world.show("work")
    assert later != number
    world.click(later)
    assert [each.body for each in world.acted.until("Acted") if each.member == "Acted"] == [[later, "open"]]


def test_only_its_owner_and_root_click(world: World) -> None:
    number = world.show("work")
    somebody = DbusNext(world.core.address, uid=pwd.getpwnam("games").pw_uid)
    with contextlib.closing(somebody), pytest.raises(Refused, match=f"{GONE}|NotAuthorized"):
        somebody.call("NotificationAction", number, "open", {})
    world.click(number)


def test_cage_desktop_shows_it_and_a_click_comes_back(world: World, environment: dict[str, str], server: Server,
                                                      start: Start) -> None:
    """All the way to a desktop's notification server."""
    environment["DBUS_SYSTEM_BUS_ADDRESS"] = world.core.address
    desktop: Desktop = start()

    def shown() -> bool:
        """It says nothing when it has registered; what is shown before that is not seen."""
        world.show("work", "<i>x</i>\x1b[2J", body=("s", "<a href='x'>y</a>"))
        desktop.look()
        return bool(server.shown)

    until(shown, "it is not shown")
    application, _, icon, summary, body, actions, hints, _ = server.shown[0]
    assert (application, icon, hints) == ("Cage work (internal)", "", {"urgency": ("y", 1)})
    assert summary == r"work (internal): <i>x</i>\x1b[2J"
    assert body == "&lt;a href='x'&gt;y&lt;/a&gt;"
    assert actions == ["a0", "Open"]
    server.says("ActionInvoked", "us", 101, "a0")
    assert world.acted.until("Acted")[-1].body[1] == "open"
