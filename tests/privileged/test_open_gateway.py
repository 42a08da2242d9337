# SPDX-License-Identifier: LGPL-2.1-or-later
"""A hostile cage half at open and the clipboard: what no honest one says, on the gateway itself (M11, M30, M43)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cage_runtime.bus import Answer, Bus, Variant
from cage_runtime.errors import CageError, PolicyRefused, TransferFailed, UsageError
from mediators import wire
from tests.privileged.conftest import MakeCage
from tests.privileged.rules import policy
from tests.privileged.runtime import SECONDS, Cage, Runtime
from tests.privileged.test_clipboard import copy, paste
from tests.privileged.test_open import handler, open_, opened

RULES = """clipboard.Paste * bad good allow
clipboard.Paste * good other allow
open.* * good other allow
open.* * bad good allow
"""


@pytest.fixture(scope="module", autouse=True)
def rules(runtime: Runtime) -> Iterator[None]:
    with policy(runtime, "".join(RULES.replace("open.*", service) for service in ("open.Uri", "open.File"))):
        yield


@pytest.fixture
def bad(cage: MakeCage) -> Cage:
    return cage("bad", "--level", "internal", "--ephemeral")


@pytest.fixture(scope="module")
def good(shared_cage: MakeCage) -> Cage:
    return shared_cage("good", "--level", "internal")


@pytest.fixture(scope="module")
def other(shared_cage: MakeCage) -> Cage:
    return shared_cage("other", "--level", "internal")


Say = Callable[..., Awaitable[Answer]]


def at_gateway(runtime: Runtime, cage: Cage, test: Callable[[Say], Awaitable[None]]) -> None:
    """As the cage's half would be: nobody, on the gateway's own socket."""

    async def run() -> None:
        bus = await Bus.connect(f"unix:path={runtime.run}/gateways/{cage.uuid}/bus", anonymous=True)
        try:
            for name in ("open", "clipboard"):
                presence = wire.Presence(bus, wire.bus_name(name))
                await presence.follow()
                assert await presence.wait(SECONDS)

            async def say(name: str, member: str, signature: str, arguments: tuple[Any, ...],
                          descriptors: tuple[int, ...] = ()) -> Answer:
                return await bus.call(wire.bus_name(name), wire.path(name), wire.bus_name(name), member, signature,
                                      arguments, descriptors, SECONDS)

            await test(say)
        finally:
            bus.disconnect()

    asyncio.run(run())


def others_are_undisturbed(good: Cage, other: Cage) -> None:
    assert copy(good, b"undisturbed").returncode == 0
    assert paste(other).stdout == b"undisturbed"
    handler(other, 'echo "$1" > Documents/opened')
    assert open_(good, "https://example.org/", "other").returncode == 0
    assert opened(other) == ["https://example.org/"]


@contextlib.contextmanager
def of_kind(kind: str, directory: Path) -> Iterator[int]:
    makers: dict[str, Callable[[], list[int]]] = {
        "a directory": lambda: [os.open(directory, os.O_RDONLY)],
        "O_PATH": lambda: [os.open("/etc/passwd", os.O_PATH)],
        "a pipe": lambda: list(os.pipe()),
        "a socket": lambda: [socket.socket(socket.AF_UNIX).detach()],
        "memory of its own": lambda: [os.open("/proc/self/mem", os.O_RDONLY)],
        "a device": lambda: [os.open("/dev/zero", os.O_RDONLY)],
        "nothing in it": lambda: [os.memfd_create("x")],
    }
    made = makers[kind]()
    try:
        yield made[0]
    finally:
        for descriptor in made:
            os.close(descriptor)


KINDS = ("a directory", "O_PATH", "a pipe", "a socket", "memory of its own", "a device", "nothing in it")


@pytest.mark.parametrize("kind", KINDS)
def test_m30_what_is_no_file_is_neither_copied_nor_opened(runtime: Runtime, bad: Cage, good: Cage, other: Cage,
                                                          tmp_path: Path, kind: str) -> None:
    async def test(say: Say) -> None:
        with of_kind(kind, tmp_path) as descriptor:
            with pytest.raises(TransferFailed):
                await say("clipboard", "Copy", "sha{sv}", ("text/plain", 0, {}), (descriptor,))
            with pytest.raises(TransferFailed):
                await say("open", "File", "ssha{sv}", ("a.txt", "good", 0, {}), (descriptor,))

    at_gateway(runtime, bad, test)
    others_are_undisturbed(good, other)


@pytest.mark.parametrize(("name", "target", "options"), [
    ("../x", "good", {}), ("a/b", "good", {}), ("", "good", {}), ("--x", "good", {}), ("x\n", "good", {}),
    ("x", "@disposable:../x", {}), ("x", "good\n", {}), ("x", "good", {"more": Variant("s", "")}), ("x", "@core", {}),
])
def test_m20_names_and_targets_are_checked_by_the_core_too(runtime: Runtime, bad: Cage, name: str, target: str,
                                                           options: dict[str, Variant]) -> None:
    async def test(say: Say) -> None:
        with open("/etc/passwd", "rb") as file, pytest.raises((UsageError, CageError)) as refused:
            await say("open", "File", "ssha{sv}", (name, target, 0, options), (file.fileno(),))
        assert not isinstance(refused.value, TransferFailed)

    at_gateway(runtime, bad, test)


@pytest.mark.parametrize("uri", [
    "javascript:alert(1)", "https://a/\nhttps://b/", "http://user@host", "--help", "x" * 9000])
def test_m60_links_are_checked_by_the_core_too(runtime: Runtime, bad: Cage, uri: str) -> None:
    async def test(say: Say) -> None:
        with pytest.raises(UsageError):
            await say("open", "Uri", "ssa{sv}", (uri, "good", {}))

    at_gateway(runtime, bad, test)


def test_m43_unsolicited_data_goes_nowhere(runtime: Runtime, bad: Cage, good: Cage, other: Cage) -> None:
    """A paste that brings something along is recorded, and its channel closed."""

    async def with_data(say: Say) -> None:
        with open("/etc/passwd", "rb") as file, pytest.raises(CageError):
            await say("clipboard", "Paste", "sha{sv}", ("text/plain", 0, {}), (file.fileno(),))

    before = len(runtime.events("malformed"))
    at_gateway(runtime, bad, with_data)
    assert len(runtime.events("malformed")) == before + 1
    others_are_undisturbed(good, other)
    assert paste(good).returncode == 126, "nothing of it is offered"


def test_another_cages_session_is_not_there(runtime: Runtime, bad: Cage, good: Cage, other: Cage) -> None:
    async def test(say: Say) -> None:
        for key in ("", "0" * 32, "x" * 1000):
            with pytest.raises(UsageError, match="nothing of this cage is open"):
                await say("open", "Edited", "sa{sv}", (key, {}))

    at_gateway(runtime, bad, test)
    others_are_undisturbed(good, other)


def test_a_clip_that_changes_while_it_is_read_is_whole_or_refused(runtime: Runtime, bad: Cage, good: Cage) -> None:
    """An unsealed memfd that is cut short and filled again, as often as it can be."""

    async def test(say: Say) -> None:
        loop, descriptor, stop = asyncio.get_running_loop(), os.memfd_create("x"), []  # type: Any, int, list[int]

        def churn() -> None:
            while not stop:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, b"a" * 100_000, 0)

        os.pwrite(descriptor, b"a" * 100_000, 0)
        churning = loop.run_in_executor(None, churn)
        try:
            for _ in range(8):
                with contextlib.suppress(TransferFailed, PolicyRefused):
                    await say("clipboard", "Copy", "sha{sv}", ("text/plain", 0, {}), (descriptor,))
        finally:
            stop.append(1)
            await churning
            os.close(descriptor)

    at_gateway(runtime, bad, test)
    assert set(paste(good).stdout) <= set(b"a")
