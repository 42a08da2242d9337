# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dialogs, by what is on the screen and what a hand does there: a question is shown as the text that it is, and is
answered by nobody who has not looked at it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from jeepney import new_signal
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection
from jeepney.low_level import HeaderFields

from cage_runtime.desktop.toolkit import Gdk
from tests.bus.desktop.conftest import MANAGER, TOP, Caged, Desktop, Start, Widget, Window, prompt, until

PICTURES = TOP / ".build/pictures"
ALL = ["Allow once", "Allow for 10 minutes", "Allow this session", "Deny", "Deny for 10 minutes"]


def asked(caged: Caged, desktop: Desktop, **more: Any) -> Window:
    caged.asks(prompt(**more))
    desktop.shows("1")
    return desktop.window()


def answers(caged: Caged) -> list[tuple[Any, ...]]:
    return caged.told("AnswerPrompt")


# --- what is shown ---------------------------------------------------------------------------------------------------
def test_it_says_from_where_to_where_what_and_by_which_rule(caged: Caged, desktop: Desktop) -> None:
    window = asked(caged, desktop)
    assert window.title == "work: files.Send"
    for text in ("work", "internal, finance", "asks to send to", "vault", "secret", "figures.txt\n2 KiB of text",
                 "1 file, 2.0 KiB (2 048 bytes)", "text/plain", "ab" * 32, "50-mine.policy:7", "files.Send"):
        assert text in window.texts, text
    assert sorted(window.buttons) == sorted(ALL)


def test_levels_are_in_their_colours_and_text_is_what_it_says(caged: Caged, desktop: Desktop, tmp_path: Path) -> None:
    """The picture is kept in .build/pictures."""
    asked(caged, desktop)
    desktop.focus()
    until(lambda: all(desktop.window().buttons.values()), "not alive")
    window = desktop.window()
    screen = picture(desktop.picture(PICTURES / "prompt.png"))
    for text, colour in (("internal, finance", (0xEF, 0x6C, 0x00)), ("secret", (0xC6, 0x28, 0x28))):
        badge = window.label(text)
        assert pixel(screen, badge.x + 3, badge.y + badge.height // 2) == colour
        assert pixel(screen, badge.x - 3, badge.y + badge.height // 2) != colour
    for text in ("asks to send to", "50-mine.policy:7"):
        assert is_drawn(screen, window.label(text), picture(desktop.picture(tmp_path / "label.png", "label", text)))
    wrong = picture(desktop.picture(tmp_path / "label.png", "label", "asks to read from"))
    assert not is_drawn(screen, window.label("asks to send to"), wrong)


@pytest.mark.parametrize("text", [
    "<b>work</b> &amp; <span size='99999'>x</span>", "<!DOCTYPE x [<!ENTITY a '&b;'>]>&a;", r"\u202egnp.exe\x1b[2J",
    "_Allow", "Z" + "\u0310" * 150, "🙂" * 200, "x" * 2000,
])
def test_what_came_from_a_cage_is_text(caged: Caged, desktop: Desktop, text: str) -> None:
    """M80, M81: caged has made everything visible; here nothing of it is markup, or moves anything else."""
    plain = asked(caged, desktop).buttons
    caged.says("PromptRemoved", "ss", "1", "answered")
    desktop.shows()
    window = asked(caged, desktop, lines=[text] * 21, argument=text, asked=text, types=[text], sha256=text)
    assert window.texts.count(text) == 3
    assert "\n".join([text] * 21) in window.texts
    assert f"files.Send +{text}" in window.texts
    assert not any(widget.markup for widget in window.widgets)
    assert window.buttons == plain, "each answer is there still"
    assert all(widget.x >= 0 and widget.x + widget.width <= 1280 and widget.y + widget.height <= 1024
               for widget in window.widgets if widget.kind == "Button"), "and can be reached"


# --- answers ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("text", "verdict", "options"), [
    ("Allow once", "allow", {"for": ("u", 0)}), ("Allow for 10 minutes", "allow", {"for": ("u", 600)}),
    ("Allow this session", "allow", {"session": ("b", True)}), ("Deny", "deny", {"for": ("u", 0)}),
    ("Deny for 10 minutes", "deny", {"for": ("u", 600)}),
])
def test_a_click_is_an_answer(caged: Caged, desktop: Desktop, text: str, verdict: str, options: dict[str, Any]) -> None:
    asked(caged, desktop)
    desktop.answer(text)
    desktop.shows()
    assert answers(caged) == [("1", verdict, options)]
    assert caged.interactive[[call[0] for call in caged.calls].index("AnswerPrompt")], "polkit may ask the person"


def test_the_buttons_are_dead_for_a_second(caged: Caged, desktop: Desktop) -> None:
    """And for one more each time that the window comes to the front."""
    asked(caged, desktop)
    caged.asks(prompt("2"))
    desktop.shows("1", "2")
    assert not any(desktop.window().buttons.values()), "it has not been looked at"
    for _ in range(2):
        before = time.monotonic()
        desktop.focus()
        until(lambda: all(desktop.window().buttons.values()), "it does not come to life")
        assert time.monotonic() - before >= 1
        desktop.focus("2")
        until(lambda: not desktop.window().front, "it stays in front")
        assert not any(desktop.window().buttons.values())


def test_a_click_on_a_dead_button_is_no_answer(caged: Caged, dead: Desktop) -> None:
    window = asked(caged, dead)
    dead.focus()
    for text in ALL:
        dead.click(window.button(text))
    dead.shows("1")
    assert answers(caged) == []


@pytest.mark.parametrize("keys", [("Return",), ("KP_Enter",), ("Tab", "Return"), ("Tab", "Tab", "Return"), ("space",)])
def test_enter_and_a_key_of_the_first_moment_answer_nothing(caged: Caged, desktop: Desktop,
                                                            keys: tuple[str, ...]) -> None:
    asked(caged, desktop)
    desktop.focus()
    until(lambda: all(desktop.window().buttons.values()), "it does not come to life")
    assert desktop.window().focus == "NoneType", "nothing has the keyboard"
    desktop.key(*keys)
    desktop.shows("1")
    assert answers(caged) == []


@pytest.mark.parametrize("how", ["Escape", "close"])
def test_closing_leaves_the_question_open(caged: Caged, desktop: Desktop, how: str) -> None:
    """Started again, it shows what was put aside, and the second one ends."""
    asked(caged, desktop)
    desktop.focus()
    if how == "Escape":
        desktop.key("Escape")
    else:
        desktop.look("1")
    desktop.shows()
    assert answers(caged) == []
    again = type(desktop)(desktop.environment, 1)
    assert again.process.wait(40) == 0
    desktop.shows("1")


def test_what_is_answered_elsewhere_closes(caged: Caged, desktop: Desktop) -> None:
    asked(caged, desktop)
    caged.says("PromptRemoved", "ss", "1", "withdrawn")
    desktop.shows()
    assert answers(caged) == []


def test_what_caged_says_against_an_answer_is_shown(caged: Caged, desktop: Desktop) -> None:
    """The question can be answered again, a second later."""
    asked(caged, desktop)
    caged.fail("AnswerPrompt", "org.cageruntime.Error.Failed", "<b>256</b> answers stand already")
    desktop.answer("Allow this session")
    until(lambda: "<b>256</b> answers stand already" in desktop.window().texts, "it is not shown")
    caged.answers["AnswerPrompt"] = lambda *_: ("", ())
    desktop.answer("Deny")
    desktop.shows()
    assert [answer[1] for answer in answers(caged)] == ["allow", "deny"]


# --- targets to choose from ------------------------------------------------------------------------------------------
CHOICE = {"target": "", "asked": "", "target_level": "", "target_colour": "",
          "choices": {"diary": "public", "vault": "secret"}}


def radio(window: Window, name: str) -> Widget:
    row = window.label(name)
    return next(each for each in window.widgets
                if each.kind == "RadioButton" and each.y <= row.y < each.y + each.height)


def test_a_target_has_to_be_chosen(caged: Caged, desktop: Desktop) -> None:
    asked(caged, desktop, **CHOICE)
    desktop.focus()
    until(lambda: desktop.window().buttons["Deny"], "it does not come to life")
    window = desktop.window()
    assert {text for text, alive in window.buttons.items() if alive} == {"Deny", "Deny for 10 minutes"}
    assert not any(widget.active for widget in window.widgets)
    desktop.click(window.button("Allow once"))
    desktop.click(radio(window, "vault"))
    desktop.answer("Allow once")
    desktop.shows()
    assert answers(caged) == [("1", "allow", {"for": ("u", 0), "target": ("s", "vault")})]


def test_the_rule_s_target_is_chosen_already(caged: Caged, desktop: Desktop) -> None:
    window = asked(caged, desktop, **CHOICE, default="diary")
    assert [radio(window, name).active for name in ("diary", "vault")] == [True, False]
    desktop.answer("Allow once")
    desktop.shows()
    assert answers(caged) == [("1", "allow", {"for": ("u", 0), "target": ("s", "diary")})]


@pytest.mark.parametrize(("stands", "text", "given"), [
    (1800, "Allow for 30 minutes", 1800), (45, "Allow for 45 seconds", 45), (90, "Allow for 1 minute", 60)])
def test_a_rule_says_how_long_an_answer_stands(caged: Caged, desktop: Desktop, stands: int, text: str,
                                               given: int) -> None:
    window = asked(caged, desktop, **{"for": stands})
    assert "Allow this session" not in window.buttons
    desktop.answer(text)
    desktop.shows()
    assert answers(caged) == [("1", "allow", {"for": ("u", given)})]


# --- many, and caged's coming and going ------------------------------------------------------------------------------
def test_a_few_are_shown_at_once_the_oldest_first(caged: Caged, desktop: Desktop) -> None:
    caged.asks(*(prompt(str(n)) for n in range(1, 6)))
    desktop.shows("1", "2", "3")
    caged.says("PromptRemoved", "ss", "2", "answered")
    desktop.shows("1", "3", "4")
    caged.says("PromptRemoved", "ss", "5", "answered")
    caged.says("PromptRemoved", "ss", "1", "answered")
    desktop.shows("3", "4")


def test_what_was_open_before_is_shown(caged: Caged, start: Start) -> None:
    caged.open = [prompt("1"), prompt("2")]
    start().shows("1", "2")


def test_with_caged_its_questions_go(caged: Caged, desktop: Desktop, buses: dict[str, str]) -> None:
    asked(caged, desktop)
    caged.give_up()
    desktop.shows()
    another = Caged(buses["DBUS_SYSTEM_BUS_ADDRESS"])
    try:
        until(lambda: another.told("ListPrompts"), "it does not register with the next")
        another.asks(prompt("7"))
        desktop.shows("7")
    finally:
        another.close()


def test_it_is_there_before_caged_is(buses: dict[str, str], start: Start) -> None:
    desktop = start()
    caged = Caged(buses["DBUS_SYSTEM_BUS_ADDRESS"])
    try:
        until(lambda: caged.told("ListPrompts"), "it does not register")
        asked(caged, desktop)
    finally:
        caged.close()


def test_where_it_is_refused_it_asks_again_and_not_all_the_time(caged: Caged, start: Start) -> None:
    caged.open = [prompt("1")]
    answers = dict(caged.answers)
    caged.fail("RegisterAgent", "org.cageruntime.Error.RuntimeFailure", "8 programs of yours show questions already")
    began = time.monotonic()
    desktop = start()
    until(lambda: len(caged.told("RegisterAgent")) == 3, "it does not ask again")
    assert time.monotonic() - began >= 1 + 2 - 1, "the main loop's seconds are whole ones of its clock"
    assert (desktop.look(), caged.told("ListPrompts")) == ([], [])
    caged.answers = answers
    desktop.shows("1")
    assert len(caged.told("RegisterAgent")) == 4


def test_once_caged_has_ended_it_is_not_asked_again(caged: Caged, start: Start, buses: dict[str, str]) -> None:
    """Nothing starts a core that has been stopped; the next one is asked once."""
    caged.fail("RegisterAgent", "org.cageruntime.Error.RuntimeFailure", "8 programs of yours show questions already")
    desktop = start()
    until(lambda: caged.told("RegisterAgent"), "it does not ask")
    caged.give_up()
    another = Caged(buses["DBUS_SYSTEM_BUS_ADDRESS"])
    try:
        until(lambda: another.told("ListPrompts"), "it does not register with the next")
        before = len(caged.told("RegisterAgent"))
        another.asks(prompt("7"))
        desktop.shows("7")
        assert (len(another.told("RegisterAgent")), len(caged.told("RegisterAgent"))) == (1, before)
    finally:
        another.close()


def test_nobody_else_s_signal_is_heard(caged: Caged, desktop: Desktop, buses: dict[str, str]) -> None:
    with open_dbus_connection(buses["DBUS_SYSTEM_BUS_ADDRESS"]) as somebody:
        for name in somebody.send_and_get_reply(message_bus.ListNames()).body[0]:
            if name.startswith(":"):
                forged = new_signal(MANAGER, "PromptAdded", "a{sv}", (prompt("forged"),))
                forged.header.fields[HeaderFields.destination] = name  # to it alone, whatever it wants to hear
                somebody.send(forged)
        somebody.send_and_get_reply(message_bus.GetId())
    asked(caged, desktop)


def test_what_is_none_of_our_questions_is_not_shown(caged: Caged, desktop: Desktop) -> None:
    caged.asks({"id": ("s", "0")}, {**prompt("2"), "size": ("s", "x")})
    asked(caged, desktop, lines=[])


# --- pictures --------------------------------------------------------------------------------------------------------
def picture(file: Path) -> Any:
    import gi

    gi.require_version("GdkPixbuf", "2.0")
    from gi.repository import GdkPixbuf

    assert Gdk is not None
    return GdkPixbuf.Pixbuf.new_from_file(str(file))


def pixel(image: Any, x: int, y: int) -> tuple[int, int, int]:
    at = y * image.get_rowstride() + x * image.get_n_channels()
    red, green, blue = image.get_pixels()[at : at + 3]
    return red, green, blue


def rows(image: Any, x: int, y: int, width: int, height: int) -> list[bytes]:
    """The colours of these pixels."""
    stride, channels, all_ = image.get_rowstride(), image.get_n_channels(), image.get_pixels()
    lines = [all_[(y + row) * stride + x * channels : (y + row) * stride + (x + width) * channels]
             for row in range(height)]
    return [b"".join(line[at : at + 3] for at in range(0, len(line), channels)) for line in lines]


def is_drawn(screen: Any, where: Widget, text: Any) -> bool:
    """Whether a text, which is a picture of it alone, is where a label lies, whichever way that lays it out."""
    wanted = rows(text, 0, 0, text.get_width(), text.get_height())
    found = rows(screen, where.x, where.y, where.width, where.height)
    for down in range(max(1, where.height - text.get_height() + 1)):
        for right in range(max(1, where.width - text.get_width() + 1)):
            if all(line[right * 3 : right * 3 + len(want)] == want
                   for line, want in zip(found[down:], wanted, strict=False)):
                return True
    return False
