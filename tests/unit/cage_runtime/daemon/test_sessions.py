# SPDX-License-Identifier: LGPL-2.1-or-later
"""Commands in cages: what cannot be started is not recorded as if it had been, and what is asked for fits a message."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cage_runtime.config import Apps, Definition
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.manager import Manager
from cage_runtime.daemon.sessions import SessionOptions, Sessions, Started, check_argv
from cage_runtime.daemon.state import Record, now
from cage_runtime.errors import CageError, UsageError, WrongState
from cage_runtime.model import ARGV_BYTES_MAX, SPAWNER_MESSAGE_MAX, CageState, Label
from cage_runtime.spawner import spec

APP = "org.example.App"
DEFINITION = Definition(level="public", apps=Apps(allow=[APP]))
RECORD = Record(name="work", uuid="a" * 32, created=now(), owner=0, definition=DEFINITION)


class StandInManager:
    """Takes records, and requests for the spawner as they would go out."""

    def __init__(self) -> None:
        self.recorded: list[str] = []
        self.asked: list[bytes] = []
        self.spawner = SimpleNamespace(number=lambda: 2**62, ask=self._ask)

    def record(self, kind: str, _cage: Cage, _fields: dict[str, str]) -> None:
        self.recorded.append(kind)

    async def _ask(self, request: spec.AnyRequest, _descriptors: tuple[int, ...]) -> None:
        self.asked.append(spec.encode(request))


def start(manager: StandInManager, command: list[str], state: CageState = CageState.RUNNING, *,
          application: bool = False, **options: Any) -> None:
    """Start `command`, or the application with it as its arguments, and let go of its channel."""
    sessions = Sessions(cast(Manager, manager), {})
    cage = Cage(record=RECORD, label=Label(level="public", rank=0), state=state)

    async def whole() -> Started:
        if application:
            return await sessions.run(cage, APP, command, SessionOptions(**options))
        return await sessions.enter(cage, command, SessionOptions(**options))

    os.close(asyncio.run(whole()).channel)


@pytest.mark.parametrize("application", [True, False])
def test_what_starts_is_recorded(application: bool) -> None:
    manager = StandInManager()
    start(manager, ["true"], application=application)
    assert manager.recorded == ["application-run" if application else "cage-entered"]
    assert len(manager.asked) == 1


@pytest.mark.parametrize(
    ("options", "state", "kind"),
    [
        ({}, CageState.STOPPED, WrongState),
        ({}, CageState.PAUSED, WrongState),
        ({"tty": True, "rows": 0}, CageState.RUNNING, UsageError),
        ({"cwd": "/" + "a" * 4096}, CageState.RUNNING, UsageError),
        ({"cwd": "/" + "\u00e9" * 2048}, CageState.RUNNING, UsageError),
    ],
)
def test_what_cannot_start_leaves_no_record(options: dict[str, Any], state: CageState, kind: type[CageError]) -> None:
    for application in (False, True) if "cwd" not in options else (False,):
        manager = StandInManager()
        with pytest.raises(kind):
            start(manager, ["true"], state, application=application, **options)
        assert (manager.recorded, manager.asked) == ([], [])


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["x"] * 1993, "at most 1992 arguments"),
        (["x" * 65537], "an argument of a command takes at most 65536 characters"),
        (["x" * 50_000, "x" * 50_000], "take at most 98304 bytes, as JSON has them"),
        (["\x01" * 20_000], "take at most 98304 bytes, as JSON has them"),
    ],
)
def test_what_does_not_fit_a_message_is_refused(command: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_argv(command)


@pytest.mark.parametrize(
    "command",
    [
        ["x" * 46] * 1992,
        ["x" * 65536, "x" * (ARGV_BYTES_MAX - 65536 - 7)],
        ["\x01" * 10_000, "\x01" * 6381],
    ],
)
def test_what_is_accepted_fits_a_message_and_is_understood(command: list[str]) -> None:
    manager = StandInManager()
    start(manager, command, cwd="/" + "\x01" * 4095)
    (message,) = manager.asked
    assert len(message) <= SPAWNER_MESSAGE_MAX
    request = spec.decode_request(message)
    assert isinstance(request, spec.Spawn)
    assert request.argv == command
