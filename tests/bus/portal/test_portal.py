# SPDX-License-Identifier: LGPL-2.1-or-later
"""The portals of a cage on a session bus of their own, with stand-ins for the mediators' cage halves."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from cage_runtime.bus import Answer, Bus, Call, Service, Value, Variant
from cage_runtime.errors import CageError, PolicyRefused, RuntimeFailure, UsageError
from cage_runtime.model import PORTAL_REQUESTS_PER_CALLER
from cage_runtime.portal import mediated
from cage_runtime.portal.main import BUS_NAME, Portal
from cage_runtime.portal.requests import PATH, REQUEST, Response
from mediators import wire

OPEN = """<busconfig><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context="default">
<allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow receive_sender="*"/>
</policy></busconfig>"""
NOTIFICATION, OPEN_URI = "org.freedesktop.portal.Notification", "org.freedesktop.portal.OpenURI"
FILE_CHOOSER, SECRET = "org.freedesktop.portal.FileChooser", "org.freedesktop.portal.Secret"


class Mediators:
    """Cage halves that note what they are asked, and answer once they are told how."""

    def __init__(self, bus: Bus) -> None:
        self.asked: asyncio.Queue[tuple[str, tuple[Any, ...]]] = asyncio.Queue()
        self.answers: dict[str, asyncio.Queue[Answer | CageError]] = {}
        self.given_up: asyncio.Queue[str] = asyncio.Queue()
        for name in ("open", "notify", "files", "keys"):
            interface = wire.interface(name)
            members = [method.attrib["name"] for method in interface.findall("method")]
            bus.serve(wire.path(name), Service(interface=interface, handlers=dict.fromkeys(members, self._handle)))

    def answer(self, member: str, *values: Value) -> None:
        self.answers.setdefault(member, asyncio.Queue()).put_nowait(Answer(values=values))

    def refuse(self, member: str) -> None:
        self.answers.setdefault(member, asyncio.Queue()).put_nowait(PolicyRefused("no"))

    async def _handle(self, call: Call) -> Answer:
        self.asked.put_nowait((call.member, tuple(call.arguments)))
        try:
            answer = await self.answers.setdefault(call.member, asyncio.Queue()).get()
        except asyncio.CancelledError:
            self.given_up.put_nowait(call.member)
            raise
        if isinstance(answer, CageError):
            raise answer
        return answer


class World:
    def __init__(self, address: str, mediators: Mediators) -> None:
        self.address, self.mediators = address, mediators
        self.bus: Bus
        self.heard: asyncio.Queue[Value] = asyncio.Queue()

    async def application(self) -> Bus:
        bus = await Bus.connect(self.address)
        bus.listen(self._hear)
        await bus.match(f"type='signal',sender='{BUS_NAME}'")
        return bus

    def _hear(self, message: Value) -> None:
        if message.interface != "org.freedesktop.DBus":
            self.heard.put_nowait(message)

    async def call(self, interface: str, member: str, signature: str, *values: Value, bus: Bus | None = None) -> Any:
        answer = await (bus or self.bus).call(BUS_NAME, PATH, interface, member, signature, values, seconds=20)
        return answer.values[0] if answer.values else None

    async def asked(self) -> tuple[str, tuple[Any, ...]]:
        return await asyncio.wait_for(self.mediators.asked.get(), 20)

    async def response(self) -> tuple[str, int]:
        """The path of the request, and how it ended."""
        message = await asyncio.wait_for(self.heard.get(), 20)
        assert (message.interface, message.member) == (REQUEST, "Response")
        return message.path, message.body[0]


Test = Callable[[World], Coroutine[Any, Any, None]]


@pytest.fixture
def addresses(tmp_path: Path) -> Iterator[list[str]]:
    daemons = []
    for name in ("session", "cage"):
        configuration = tmp_path / f"{name}.conf"
        configuration.write_text(OPEN.format(tmp_path / name))
        command = ["dbus-daemon", "--nofork", "--nopidfile", f"--config-file={configuration}", "--print-address"]
        daemons.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        assert daemons[-1].stdout is not None
        daemons[-1].stdout.readline()
    yield [f"unix:path={tmp_path / name}" for name in ("session", "cage")]
    for daemon in daemons:
        daemon.terminate()
        daemon.communicate()


@pytest.fixture
def play(tmp_path: Path, addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[Test], None]:
    session, cage = addresses
    monkeypatch.setattr(mediated, "CAGE_BUS", cage)

    @contextlib.asynccontextmanager
    async def world() -> AsyncIterator[World]:
        there, portals = await Bus.connect(cage), await Bus.connect(session)
        here = World(session, Mediators(there))
        await there.follow_callers()
        for name in ("open", "notify", "files", "keys"):
            await there.own(wire.bus_name(name))
        serving = asyncio.ensure_future(Portal(portals, tmp_path / "home").run())
        here.bus = await here.application()
        async with here.bus.ownership(BUS_NAME, owned=True) as served:
            await asyncio.wait_for(served, 20)
        try:
            yield here
        finally:
            for bus in (here.bus, portals, there):
                bus.disconnect()
            await asyncio.wait_for(asyncio.gather(serving, return_exceptions=True), 20)

    def run(test: Test) -> None:
        async def whole() -> None:
            async with world() as here:
                await test(here)

        asyncio.run(whole())

    return run


Play = Callable[[Test], None]


def test_a_link_goes_to_the_mediator_and_the_answer_to_the_application(play: Play) -> None:
    async def test(world: World) -> None:
        path = await world.call(OPEN_URI, "OpenURI", "ssa{sv}", "", "https://example.org/", {
            "handle_token": Variant("s", "t1")})
        assert path.endswith("/t1")
        assert await world.asked() == ("Uri", ("https://example.org/", "", {}))
        world.mediators.answer("Uri")
        assert await world.response() == (path, Response.SUCCESS)

    play(test)


def test_a_refusal_is_told_as_one(play: Play) -> None:
    async def test(world: World) -> None:
        world.mediators.refuse("Uri")
        path = await world.call(OPEN_URI, "OpenURI", "ssa{sv}", "", "https://example.org/", {})
        assert await world.response() == (path, Response.OTHER)

    play(test)


def test_whoever_asked_can_give_it_up_and_nobody_else(play: Play) -> None:
    async def test(world: World) -> None:
        path = await world.call(OPEN_URI, "OpenURI", "ssa{sv}", "", "https://example.org/", {})
        await world.asked()
        stranger = await Bus.connect(world.address)
        with pytest.raises(CageError, match="no object"):
            await stranger.call(BUS_NAME, path, REQUEST, "Close")
        stranger.disconnect()
        await world.bus.call(BUS_NAME, path, REQUEST, "Close")
        assert await world.response() == (path, Response.CANCELLED)
        assert await asyncio.wait_for(world.mediators.given_up.get(), 20) == "Uri"

    play(test)


def test_what_opens_something_need_not_wait(play: Play) -> None:
    """xdg-open ends at once; the link opens all the same."""

    async def test(world: World) -> None:
        application = await world.application()
        await world.call(OPEN_URI, "OpenURI", "ssa{sv}", "", "https://example.org/", {}, bus=application)
        await world.asked()
        application.disconnect()
        world.mediators.answer("Uri")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await world.mediators.given_up.get()

    play(test)


def test_one_connection_has_its_share_of_requests(play: Play) -> None:
    async def test(world: World) -> None:
        for _ in range(PORTAL_REQUESTS_PER_CALLER):
            await world.call(OPEN_URI, "OpenURI", "ssa{sv}", "", "https://example.org/", {})
        with pytest.raises(RuntimeFailure, match="too many requests"):
            await world.call(OPEN_URI, "OpenURI", "ssa{sv}", "", "https://example.org/", {})
        other = await world.application()
        await world.call(OPEN_URI, "OpenURI", "ssa{sv}", "", "https://example.org/", {}, bus=other)
        other.disconnect()

    play(test)


@pytest.mark.parametrize("token", [Variant("s", ""), Variant("s", "a/b"), Variant("s", "x" * 101), Variant("u", 1)])
def test_what_can_be_no_part_of_a_path_is_no_token(play: Play, token: Variant) -> None:
    async def test(world: World) -> None:
        with pytest.raises(UsageError, match="handle_token"):
            await world.call(OPEN_URI, "OpenURI", "ssa{sv}", "", "https://example.org/", {"handle_token": token})
        assert world.mediators.asked.empty()

    play(test)


def test_a_click_goes_to_the_application_that_showed_it(play: Play) -> None:
    async def test(world: World) -> None:
        world.mediators.answer("Show", 7)
        buttons = [{"action": Variant("s", "app.open"), "label": Variant("s", "Open"), "target": Variant("s", "mail")}]
        await world.call(NOTIFICATION, "AddNotification", "sa{sv}", "n1", {
            "title": Variant("s", "New mail"), "body": Variant("s", "from Ada"), "priority": Variant("s", "urgent"),
            "default-action": Variant("s", "app.raise"), "buttons": Variant("aa{sv}", buttons)})
        member, (title, body, options) = await world.asked()
        assert (member, title, body, options["urgency"].value) == ("Show", "New mail", "from Ada", "critical")
        assert options["actions"].value == [("app.raise", ""), ("app.open", "Open")]
        assert await world.asked() == ("Wait", ([7],))
        world.mediators.answer("Wait", 7, "app.open")
        message = await asyncio.wait_for(world.heard.get(), 20)
        assert (message.member, message.destination) == ("ActionInvoked", world.bus._connection.unique_name)
        assert message.body[:2] == ["n1", "app.open"]
        assert [each.value for each in message.body[2]] == ["mail"]

    play(test)


def test_a_notification_is_replaced_and_taken_away_by_its_own_id(play: Play) -> None:
    async def test(world: World) -> None:
        for number in (7, 7):
            world.mediators.answer("Show", number)
        world.mediators.answer("Close")
        await world.call(NOTIFICATION, "AddNotification", "sa{sv}", "n1", {"title": Variant("s", "1 %")})
        assert "replaces" not in (await world.asked())[1][2]
        assert await world.asked() == ("Wait", ([7],))
        await world.call(NOTIFICATION, "AddNotification", "sa{sv}", "n1", {"title": Variant("s", "99 %")})
        assert (await world.asked())[1][2]["replaces"].value == 7
        assert await world.asked() == ("Wait", ([7],))
        await world.call(NOTIFICATION, "RemoveNotification", "s", "nobody's")
        await world.call(NOTIFICATION, "RemoveNotification", "s", "n1")
        assert await world.asked() == ("Close", (7,))

    play(test)


@pytest.mark.parametrize(("notification", "why"), [
    ({"title": Variant("u", 1)}, "the title of a notification is text"),
    ({"title": Variant("s", "x"), "priority": Variant("s", "panic")}, "the priority"),
    ({"title": Variant("s", "x"), "buttons": Variant("as", ["a"])}, "the buttons"),
])
def test_what_is_no_notification_is_refused(play: Play, notification: dict[str, Variant], why: str) -> None:
    async def test(world: World) -> None:
        with pytest.raises(UsageError, match=why):
            await world.call(NOTIFICATION, "AddNotification", "sa{sv}", "n1", notification)

    play(test)


def test_a_file_that_is_saved_is_sent_once_it_is_written(play: Play, tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.call(FILE_CHOOSER, "SaveFile", "ssa{sv}", "", "Save", {"current_name": Variant("s", "a.txt")})
        message = await asyncio.wait_for(world.heard.get(), 20)
        (uri,) = message.body[1]["uris"].value
        path = Path(uri.removeprefix("file://"))
        assert path.is_relative_to(tmp_path / "home/.cache/portal")
        path.with_name("other.txt").write_text("not this one")
        path.write_text("figures")
        member, arguments = await world.asked()
        assert (member, arguments[:2]) == ("Send", ("", "a.txt"))

    play(test)


def test_who_is_no_flatpak_application_has_no_secret(play: Play) -> None:
    async def test(world: World) -> None:
        with open("/dev/null", "rb") as nothing:
            await world.bus.call(BUS_NAME, PATH, SECRET, "RetrieveSecret", "ha{sv}", (0, {}), (nothing.fileno(),))
        assert (await world.response())[1] == Response.OTHER
        assert world.mediators.asked.empty()

    play(test)
