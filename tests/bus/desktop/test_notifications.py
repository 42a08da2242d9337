# SPDX-License-Identifier: LGPL-2.1-or-later
"""Notifications on a person's session bus: who speaks is said before what is said, which is text, and a click goes back
by the name that it was offered under, once."""

from __future__ import annotations

from typing import Any

import pytest
from jeepney import new_signal
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection
from jeepney.low_level import HeaderFields

from tests.bus.desktop.conftest import SERVER, Caged, Desktop, Server, Start, until


def tells(caged: Caged, number: int = 7, **more: Any) -> None:
    caged.tells(**{
        "kind": "notification", "id": number, "source": "work", "source_level": "internal", "source_colour": "#ef6c00",
        "summary": "done", "body": "", "urgency": "normal", "actions": [], **more})


def shown(server: Server, count: int = 1) -> tuple[Any, ...]:
    """The last one, once there are so many."""
    return until(lambda: len(server.shown) >= count and server.shown[-1], "it is not shown")


@pytest.mark.usefixtures("desktop")
def test_it_is_text_under_the_cage_s_name(caged: Caged, server: Server) -> None:
    """M50: no icon, no hint of the cage's, no markup."""
    tells(caged, summary="<b>done</b>", body="<img src='file:///etc/passwd'/> &a;\nsecond", urgency="critical",
          actions=[("", ""), ("default", "Show"), ("rm -rf", "Ask again")])
    application, replaces, icon, summary, body, actions, hints, milliseconds = shown(server)
    assert (application, replaces, icon, milliseconds) == ("Cage work (internal)", 0, "", -1)
    assert summary == "work (internal): <b>done</b>"
    assert body == "&lt;img src='file:///etc/passwd'/&gt; &amp;a;\nsecond"
    assert hints == {"urgency": ("y", 2)}
    assert actions == ["default", "Open", "a1", "Show", "a2", "Ask again"]


@pytest.mark.usefixtures("desktop")
def test_a_server_without_markup_or_actions_gets_none(caged: Caged, server: Server) -> None:
    server.answers["GetCapabilities"] = lambda: ("as", (["body"],))
    tells(caged, body="a < b & c", actions=[("a", "A")])
    assert shown(server)[4:6] == ("a < b & c", [])


@pytest.mark.usefixtures("desktop")
@pytest.mark.parametrize("summary", [
    "vault (secret): move your money", "\u05d0\u05d1 vault (secret)", "Cage vault (secret)", "x" * 200,
])
def test_no_cage_speaks_as_another(caged: Caged, server: Server, summary: str) -> None:
    """M51: what it says comes after who it is, whatever it says."""
    tells(caged, summary=summary)
    assert shown(server)[0] == "Cage work (internal)"
    assert shown(server)[3] == f"work (internal): {summary}"


@pytest.mark.usefixtures("desktop")
@pytest.mark.parametrize(("key", "name"), [("a0", "open"), ("default", "")])
def test_a_click_is_told_once(caged: Caged, server: Server, key: str, name: str) -> None:
    tells(caged, actions=[("open", "Open"), (name or "click", "")])
    shown(server)
    caged_s = {"a0": "open", "default": "click"}[key]
    for _ in range(2):
        server.says("ActionInvoked", "us", 101, key)
    server.says("NotificationClosed", "uu", 101, 2)
    tells(caged, 8)
    shown(server, 2)
    until(lambda: server.closed == [101], "it stays")
    assert caged.told("NotificationAction") == [(7, caged_s, {})]


@pytest.mark.usefixtures("desktop")
def test_what_was_not_offered_is_no_click(caged: Caged, server: Server) -> None:
    tells(caged, actions=[("open", "Open")])
    shown(server)
    for number, key in ((101, "open"), (101, "a1"), (100, "a0")):
        server.says("ActionInvoked", "us", number, key)
    server.says("NotificationClosed", "uu", 101, 1)
    assert until(lambda: caged.told("NotificationAction"), "it is not told") == [(7, "", {})]


@pytest.mark.usefixtures("desktop")
def test_one_takes_the_place_of_its_own_earlier_one(caged: Caged, server: Server) -> None:
    """M50: the server's number is never a cage's to say; one that caged does not name as the same is new."""
    tells(caged, summary="1 %")
    shown(server)
    until(lambda: _settled(caged, server), "the number has not come")
    tells(caged, summary="99 %")
    assert shown(server, 3)[1] == 101
    tells(caged, 101, summary="not that one")
    assert shown(server, 4)[1] == 0


def _settled(caged: Caged, server: Server) -> bool:
    """Another has been shown since, by when the first one's number was heard."""
    tells(caged, 9)
    return bool(shown(server, 2))


@pytest.mark.usefixtures("desktop")
def test_when_the_life_ends_it_is_taken_away_and_no_click_counts(caged: Caged, server: Server) -> None:
    """M52."""
    tells(caged, actions=[("open", "Open")])
    shown(server)
    caged.tells(kind="notification", id=7, source="work", closed=True)
    until(lambda: server.closed == [101], "it stays")
    server.says("ActionInvoked", "us", 101, "a0")
    tells(caged, 8)
    shown(server, 2)
    assert caged.told("NotificationAction") == []


def test_when_caged_ends_all_are_taken_away(caged: Caged, server: Server, desktop: Desktop,
                                            buses: dict[str, str]) -> None:
    """M52: the next caged knows of none."""
    tells(caged, actions=[("open", "Open")])
    shown(server)
    caged.give_up()
    until(lambda: server.closed == [101], "it stays")
    another = Caged(buses["DBUS_SYSTEM_BUS_ADDRESS"])
    try:
        until(lambda: another.told("ListPrompts"), "it does not register")
        server.says("ActionInvoked", "us", 101, "a0")
        tells(another, 8)
        shown(server, 2)
        assert another.told("NotificationAction") == caged.told("NotificationAction") == []
    finally:
        another.close()
    assert desktop.look() == []


@pytest.mark.usefixtures("desktop")
def test_nobody_but_the_server_clicks(caged: Caged, server: Server, buses: dict[str, str]) -> None:
    tells(caged, actions=[("open", "Open")])
    shown(server)
    with open_dbus_connection(buses["DBUS_SESSION_BUS_ADDRESS"]) as somebody:
        for name in somebody.send_and_get_reply(message_bus.ListNames()).body[0]:
            forged = new_signal(SERVER, "ActionInvoked", "us", (101, "a0"))
            forged.header.fields[HeaderFields.destination] = name
            somebody.send(forged)
        somebody.send(new_signal(SERVER, "ActionInvoked", "us", (101, "a0")))
        somebody.send_and_get_reply(message_bus.GetId())
    tells(caged, 8)
    shown(server, 2)
    assert caged.told("NotificationAction") == []


@pytest.mark.usefixtures("desktop")
def test_where_there_is_no_server_whoever_waits_is_told(caged: Caged) -> None:
    tells(caged)
    assert until(lambda: caged.told("NotificationAction"), "it is not told") == [(7, "", {})]


@pytest.mark.usefixtures("desktop")
def test_a_server_that_refuses_has_shown_nothing(caged: Caged, server: Server) -> None:
    server.fail("Notify", "org.freedesktop.Notifications.Error.ExcessNotificationGeneration", "too many")
    tells(caged)
    assert until(lambda: caged.told("NotificationAction"), "it is not told") == [(7, "", {})]


@pytest.mark.usefixtures("desktop")
def test_a_rule_that_notifies_is_told_of(caged: Caged, server: Server) -> None:
    caged.tells(kind="decision", action="deny", source="work", source_level="internal", source_colour="",
                service="files.Send", argument="", target="vault", rule="50-mine.policy:7")
    application, _, _, summary, body, actions, _, _ = shown(server)
    assert (application, summary) == ("Cage work (internal)", "work (internal): files.Send was refused")
    assert (body, actions) == ("To vault, by 50-mine.policy:7", [])


def test_without_a_session_bus_there_are_questions_all_the_same(caged: Caged, environment: dict[str, str],
                                                                start: Start) -> None:
    environment["DBUS_SESSION_BUS_ADDRESS"] = "unix:path=/nonexistent"
    start()
    until(lambda: caged.told("ListPrompts"), "it does not register")
    tells(caged)
    assert until(lambda: caged.told("NotificationAction"), "it is not told") == [(7, "", {})]
