# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a core half's question to a hand on a button and back: the real caged, and cage-desktop on a
display."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.bus.core.conftest import TOP, Core, running
from tests.bus.desktop.conftest import SECONDS, Desktop, Start, buses, display, environment, start, until
from tests.foreign import MEDIATION, DbusNext, Refused

__all__ = ["buses", "display", "environment", "start"]

INSTALLED = TOP / ".build/runtime/bin/cage-desktop"
RULES = "files.Send * work vault ask\nfiles.Send * work @default ask\n"
HOSTILE = "</b>\x1b]52;c;eA==\x07\u202egnp.exe\r\b<b>"
ESCAPED = r"</b>\x1b]52;c;eA==\x07\u202egnp.exe\r\x08<b>"


@pytest.fixture
def core() -> Iterator[Core]:
    with running() as core:
        core.write_policy(RULES)
        core.stop()
        core.start()
        yield core


@pytest.fixture
def mediator(core: Core) -> Iterator[DbusNext]:
    with contextlib.closing(DbusNext(core.address, uid=core.user.pw_uid)) as client:
        yield client


@pytest.fixture
def person(core: Core) -> Iterator[DbusNext]:
    with contextlib.closing(DbusNext(core.address)) as client:
        for name, level in (("work", "internal"), ("vault", "secret"), ("diary", "internal")):
            client.call("Create", name, {"level": ("s", level)})
        yield client


@pytest.fixture
def desktop(core: Core, environment: dict[str, str], start: Start) -> Desktop:
    environment["DBUS_SYSTEM_BUS_ADDRESS"] = core.address
    return start()


def question(person: DbusNext, mediator: DbusNext, request: str, target: str = "vault", **what: Any) -> tuple[str, ...]:
    """Has the cage work ask; what it has asked."""
    asked = (person.call("Status", "work", {})["uuid"], "files.Send", "", target, request * 32)
    assert mediator.call("Decide", *asked, "", interface=MEDIATION)["action"] == "ask"
    assert confirm(mediator, asked, **what)["action"] == "ask"
    return asked


def confirm(mediator: DbusNext, asked: tuple[str, ...], **what: Any) -> Any:
    whole = {"size": ("t", 3), "files": ("u", 1), "types": ("as", ["text/plain"]), **what}
    return mediator.call("Confirm", *asked, whole, interface=MEDIATION)


def the_one(desktop: Desktop) -> str:
    """The id of the prompt whose window there is, once there is one alone."""
    return str(until(lambda: (there := desktop.look()) and len(there) == 1 and there, "no window")[0].id)


def test_what_a_hand_allows_is_allowed_and_is_shown_as_it_is(person: DbusNext, mediator: DbusNext,
                                                             desktop: Desktop) -> None:
    """M80, M81."""
    lines = {"lines": ("as", [HOSTILE, "figures.txt"]), "types": ("as", [HOSTILE])}
    asked = question(person, mediator, "1", **lines)
    id_ = the_one(desktop)
    window = desktop.window(id_)
    assert window.title == "work: files.Send"
    for text in ("work", "internal", "vault", "secret", f"{ESCAPED}\nfigures.txt", ESCAPED):
        assert text in window.texts, text
    assert any(text.endswith("/30-test.policy:1") for text in window.texts)
    desktop.answer("Allow once", id_)
    desktop.shows()
    assert confirm(mediator, asked, **lines)["action"] == "allow"


def test_what_a_hand_denies_is_denied_and_for_how_long(person: DbusNext, mediator: DbusNext, desktop: Desktop) -> None:
    asked = question(person, mediator, "1")
    desktop.answer("Deny for 10 minutes", the_one(desktop))
    desktop.shows()
    with pytest.raises(Refused, match="a person refused it"):
        confirm(mediator, asked)
    (grant,) = person.call("ListGrants", {})
    assert (grant["action"], 590 <= grant["seconds"] <= 600) == ("deny", True)


def test_a_target_is_chosen_by_hand(person: DbusNext, mediator: DbusNext, desktop: Desktop) -> None:
    asked = question(person, mediator, "1", target="")
    id_ = the_one(desktop)
    window = desktop.window(id_)
    row = window.label("vault")
    desktop.focus(id_)
    desktop.click(next(each for each in window.widgets if each.kind == "RadioButton"
                       and each.y <= row.y < each.y + each.height))
    desktop.answer("Allow once", id_)
    desktop.shows()
    assert confirm(mediator, asked)["target"] == "vault"


def test_whoever_gives_up_takes_the_window_along(person: DbusNext, mediator: DbusNext, desktop: Desktop) -> None:
    """M16, M17."""
    question(person, mediator, "1")
    the_one(desktop)
    mediator.call("Withdraw", "1" * 32, interface=MEDIATION)
    desktop.shows()
    question(person, mediator, "2")
    the_one(desktop)
    person.call("Destroy", "work", {})
    desktop.shows()


# --- as it is installed ----------------------------------------------------------------------------------------------
def test_the_installed_program_shows_a_question(core: Core, person: DbusNext, mediator: DbusNext,
                                                environment: dict[str, str]) -> None:
    """Its modules are its own and the distribution's."""
    environment["DBUS_SYSTEM_BUS_ADDRESS"] = core.address
    del environment["PYTHONPATH"]
    question(person, mediator, "1")
    with subprocess.Popen([INSTALLED], env=environment, stderr=subprocess.PIPE) as process:
        try:
            found = subprocess.run(["xdotool", "search", "--sync", "--onlyvisible", "--name", "^work: files.Send$"],
                                   env=environment, capture_output=True, timeout=SECONDS, check=True)
            assert len(found.stdout.split()) == 1
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=SECONDS)[1] == b""
        assert process.returncode == 0


@pytest.mark.parametrize(("lacks", "says"), [
    ("DISPLAY", b"cage-desktop: there is no display; cagectl prompts"),
    ("DBUS_SYSTEM_BUS_ADDRESS", b"cage-desktop: no system bus"),
])
def test_what_is_missing_is_said(environment: dict[str, str], lacks: str, says: bytes) -> None:
    given = {**environment, "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"}
    if lacks == "DISPLAY":
        del given["DISPLAY"]
    ended = subprocess.run([INSTALLED], env=given, capture_output=True, timeout=SECONDS, check=False)
    assert ended.returncode == 125
    assert [line for line in ended.stderr.splitlines() if line.startswith(says)], ended.stderr
