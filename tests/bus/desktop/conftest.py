# SPDX-License-Identifier: LGPL-2.1-or-later
"""cage-desktop on a display of its own, between a caged and a notification server that are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jeepney import DBusAddress, new_signal
from jeepney.bus_messages import message_bus

from tests.bus.cli.conftest import CONFIGURATION, Answer, FakeService

HERE, TOP = Path(__file__).parent, Path(__file__).parents[3]
SECONDS = 40.0
MANAGER = DBusAddress("/org/cageruntime/Core1", interface="org.cageruntime.Core1.Manager")
SERVER = DBusAddress("/org/freedesktop/Notifications", interface="org.freedesktop.Notifications")
NEVER, USUAL = 3600.0, 1.0
"""For how long buttons are dead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Widget:
    kind: str
    text: str
    x: int
    y: int
    width: int
    height: int
    alive: bool
    markup: bool
    active: bool

    @property
    def middle(self) -> tuple[int, int]:
        return self.x + self.width // 2, self.y + self.height // 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    id: str
    title: str
    xid: int
    focus: str
    """The kind of widget that has the keyboard's."""
    front: bool
    widgets: list[Widget]

    def button(self, text: str) -> Widget:
        return next(widget for widget in self.widgets if widget.kind == "Button" and widget.text == text)

    def label(self, text: str) -> Widget:
        return next(widget for widget in self.widgets if widget.kind == "Label" and widget.text == text)

    @property
    def buttons(self) -> dict[str, bool]:
        """Each with whether it lives."""
        return {widget.text: widget.alive for widget in self.widgets if widget.kind == "Button"}

    @property
    def texts(self) -> list[str]:
        return [widget.text for widget in self.widgets if widget.kind in ("Label", "TextView")]


def until(condition: Callable[[], Any], what: str) -> Any:
    """Until another process has done something; each look is a turn of that process."""
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


class Desktop:
    def __init__(self, environment: dict[str, str], dead: float) -> None:
        self.environment = environment
        self.process = subprocess.Popen([sys.executable, str(HERE / "driven.py"), str(dead)], env=environment,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def look(self, closing: str = "") -> list[Window]:
        """What is there; with an id, the person closes its window first."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{closing}\n")
        self.process.stdin.flush()
        return [Window(**{**window, "widgets": [Widget(**widget) for widget in window["widgets"]]})
                for window in json.loads(self.process.stdout.readline())]

    def window(self, id_: str = "1") -> Window:
        return next(window for window in self.look() if window.id == id_)

    def shows(self, *ids: str) -> None:
        until(lambda: [window.id for window in self.look()] == list(ids), f"not the windows {ids}")

    def xdotool(self, *words: object) -> None:
        subprocess.run(["xdotool", *map(str, words)], env=self.environment, check=True)

    def focus(self, id_: str = "1") -> None:
        """Bring the window to the front."""
        xid = self.window(id_).xid
        self.xdotool("windowraise", xid, "windowfocus", xid)
        until(lambda: self.window(id_).front, "it does not come to the front")

    def click(self, widget: Widget) -> None:
        self.xdotool("mousemove", *widget.middle, "click", 1)

    def answer(self, text: str, id_: str = "1") -> None:
        """As soon as that can be done."""
        self.focus(id_)
        until(lambda: self.window(id_).buttons[text], f"{text} does not come to life")
        self.click(self.window(id_).button(text))

    def key(self, *names: str) -> None:
        self.xdotool("key", *names)

    def picture(self, file: Path, *what: str) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, str(HERE / "picture.py"), *(what or ("screen",)), str(file)],
                       env=self.environment, check=True)
        return file

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            return self.process.wait(SECONDS)
        finally:
            self.process.kill()


class Caged(FakeService):
    """Answers as caged does, and says what a test has it say."""

    def __init__(self, address: str) -> None:
        self.open: list[dict[str, Any]] = []
        super().__init__(address, "org.cageruntime.Core1", {
            "ListPrompts": lambda _options: ("aa{sv}", (self.open,)),
            **dict.fromkeys(("RegisterAgent", "AnswerPrompt", "NotificationAction"), lambda *_: ("", ()))})

    def says(self, member: str, signature: str, *body: Any) -> None:
        with self.turn:
            self._connection.send(new_signal(MANAGER, member, signature, body))

    def give_up(self) -> None:
        """It is not there any more."""
        self._connection.send(message_bus.ReleaseName("org.cageruntime.Core1"))

    def asks(self, *prompts: dict[str, Any]) -> None:
        for prompt in prompts:
            self.says("PromptAdded", "a{sv}", prompt)

    def tells(self, **about: Any) -> None:
        kinds = {"id": "u", "closed": "b", "actions": "a(ss)"}
        words = {name.replace("_", "-"): value for name, value in about.items()}
        self.says("Notified", "a{sv}", {name: (kinds.get(name, "s"), value) for name, value in words.items()})

    def told(self, member: str) -> list[tuple[Any, ...]]:
        """What this member was called with."""
        return [call[1:] for call in self.calls if call[0] == member]


class Server(FakeService):
    """A notification server, which can all that one can."""

    def __init__(self, address: str) -> None:
        self.given = 100
        super().__init__(address, "org.freedesktop.Notifications", {
            "GetCapabilities": lambda: ("as", (["actions", "body", "body-markup"],)),
            "Notify": self._notify, "CloseNotification": lambda _number: ("", ())})

    def _notify(self, _application: str, replaces: int, *_: Any) -> Answer:
        self.given += 1
        return "u", (replaces or self.given,)

    def says(self, member: str, signature: str, *body: Any) -> None:
        with self.turn:
            self._connection.send(new_signal(SERVER, member, signature, body))

    @property
    def shown(self) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == "Notify"]

    @property
    def closed(self) -> list[int]:
        return [call[1] for call in self.calls if call[0] == "CloseNotification"]


@pytest.fixture(scope="session")
def display() -> Iterator[str]:
    reading, writing = os.pipe()
    server = subprocess.Popen(["Xvfb", "-displayfd", str(writing), "-screen", "0", "1280x1024x24", "-nolisten", "tcp"],
                              pass_fds=(writing,), stderr=subprocess.DEVNULL)
    os.close(writing)
    with open(reading, encoding="ascii") as number:
        yield f":{number.readline().strip()}"
    server.terminate()
    server.wait()


def _bus(folder: Path, name: str) -> tuple[subprocess.Popen[str], str]:
    (folder / f"{name}.conf").write_text(CONFIGURATION.format(socket=folder / name))
    command = ["dbus-daemon", "--nofork", "--print-address", f"--config-file={folder}/{name}.conf"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline().startswith("unix:")
    return process, f"unix:path={folder / name}"


@pytest.fixture
def buses(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The system's and the session's, as programs look for them."""
    started = {name: _bus(tmp_path, name) for name in ("system", "session")}
    yield {f"DBUS_{name.upper()}_BUS_ADDRESS": address for name, (_process, address) in started.items()}
    for process, _address in started.values():
        process.terminate()
        process.communicate()


@pytest.fixture
def environment(display: str, buses: dict[str, str], tmp_path: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LANG": "C.UTF-8", "PYTHONPATH": str(TOP),
            "DISPLAY": display, "GDK_BACKEND": "x11", "GTK_THEME": "Adwaita", "NO_AT_BRIDGE": "1",
            "GSETTINGS_BACKEND": "memory", "PYTHONDONTWRITEBYTECODE": "1", **buses}


@pytest.fixture
def caged(buses: dict[str, str]) -> Iterator[Caged]:
    service = Caged(buses["DBUS_SYSTEM_BUS_ADDRESS"])
    yield service
    service.close()


@pytest.fixture
def server(buses: dict[str, str]) -> Iterator[Server]:
    service = Server(buses["DBUS_SESSION_BUS_ADDRESS"])
    yield service
    service.close()


Start = Callable[..., Desktop]


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Start]:
    started: list[Desktop] = []

    def start(dead: float = USUAL) -> Desktop:
        started.append(Desktop(environment, dead))
        started[-1].look()
        return started[-1]

    yield start
    for desktop in started:
        assert desktop.end() == 0


@pytest.fixture
def desktop(caged: Caged, start: Start) -> Desktop:
    """One that has registered."""
    desktop = start()
    until(lambda: caged.told("ListPrompts"), "it does not register")
    return desktop


@pytest.fixture
def dead(caged: Caged, start: Start) -> Desktop:
    """One whose buttons stay dead."""
    desktop = start(NEVER)
    until(lambda: caged.told("ListPrompts"), "it does not register")
    return desktop


def prompt(id_: str = "1", **more: Any) -> dict[str, Any]:
    """As caged sends it; `more` with what is otherwise."""
    values = {
        "id": id_, "source": "work", "source_level": "internal", "source_colour": "#ef6c00",
        "source_compartments": ["finance"], "service": "files.Send", "argument": "", "asked": "vault",
        "target": "vault", "target_level": "secret", "target_colour": "#c62828", "target_compartments": [],
        "flow": "up", "choices": {"vault": "secret"}, "colours": {"secret": "#c62828", "public": "#2e7d32"},
        "default": "", "rule": "50-mine.policy:7", "lines": ["figures.txt", "2 KiB of text"], "size": 2048, "files": 1,
        "types": ["text/plain"], "sha256": "ab" * 32, "for": 0, "waiting": 1, "since": "2026-11-26T20:00:00Z",
        "seconds": 300, "owner": 0, **more}
    kinds = {"source_compartments": "as", "target_compartments": "as", "choices": "a{ss}", "colours": "a{ss}",
             "lines": "as", "size": "t", "files": "u", "types": "as", "for": "u", "waiting": "u", "seconds": "u",
             "owner": "u"}
    return {name.replace("_", "-"): (kinds.get(name, "s"), value) for name, value in values.items()}
