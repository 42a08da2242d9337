# SPDX-License-Identifier: LGPL-2.1-or-later
"""What was accepted arrives, once, whichever end comes in between; of all else the chain says that it was given up."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cage_runtime.errors import CageError, TransferFailed
from cage_runtime.model import KEPT_ASIDE, KEPT_PER_CAGE, KEPT_RECORD_BYTES
from mediators.files import protocol
from tests.bus.mediators.conftest import CONTENT, VAULT, WORK, Daemon, World

TOP = Path(__file__).parents[3]
pytestmark = pytest.mark.usefixtures("system_bus")
CORE = """
import asyncio, os, signal, sys
from pathlib import Path
from mediators import stage, wire
from mediators.files import core, kept, transfer, waiting
from mediators.sniff import sniffer

def die(*_args, **_more):
    os.kill(os.getpid(), signal.SIGKILL)

def in_child(*_args, **_more):
    os.kill(os.getppid(), signal.SIGKILL)
    signal.pause()

def kept_alone(method):
    def forget(self, request):
        if list(Path(sys.argv[1]).glob("*.kept")):
            die()
        return method(self, request)
    return forget

async def once_told(*_args, **_more):
    for _ in range(100):
        await asyncio.sleep(0)  # the source hears that it was accepted
    die()

async def recorded_first(self, transfer, _turn):
    await self._record(transfer, "is given its name in the inbox")
    die()

match sys.argv[2]:
    case "staged": kept.Folder.keep = die
    case "copy": kept.os.link = in_child
    case "record": kept.os.rename = in_child
    case "accepted": wire.Caged.deliver = once_told
    case "ready": transfer.Transfers._passing = die
    case "passing": transfer.Transfers._passing = recorded_first
    case "named": waiting.Waiting._end = die
    case "told": kept.Folder.forget = kept_alone(kept.Folder.forget)
    case "named two-way": transfer.Transfers._record_outcome = die
asyncio.run(core.serve_until_bus_ends(stage.Stager(Path(sys.argv[1]), sniffer=sniffer(), nameable=True)))
"""


class Core:
    """The core half, as a process that can be killed; in a world of its own."""

    def __init__(self, world: World) -> None:
        self.world, self.process = world, None

    def start(self, dies_at: str = "") -> None:
        command = [sys.executable, "-c", CORE, str(self.world.staging), dies_at]
        self.process = subprocess.Popen(command, cwd=TOP)

    async def present(self, kit: Any) -> None:
        for client in self.world.clients.values():
            await kit.present(client, protocol.BUS_NAME)

    async def died(self) -> None:
        gone = asyncio.Event()
        pidfd = os.pidfd_open(self.process.pid)
        asyncio.get_running_loop().add_reader(pidfd, gone.set)
        async with asyncio.timeout(20):
            await gone.wait()
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        assert self.process.wait() == -signal.SIGKILL

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    async def restart(self) -> None:
        """Another one, once the first is gone."""
        self.end()
        self.start()

    def staged(self) -> list[str]:
        return sorted(path.suffix for path in self.world.staging.iterdir() if path.is_file())


Play = Callable[..., None]


@pytest.fixture
def play(tmp_path: Path, start_gateway: Callable[[str], Daemon], kit: Any) -> Play:
    """As that of the other tests, with a core half that can be killed; what goes from work to vault goes one way."""

    @asynccontextmanager
    async def world() -> AsyncIterator[Core]:
        caged = await kit.caged.start(tmp_path / "homes")
        here = World(caged, tmp_path / "homes", tmp_path / "staging")
        for name, uuid in (("work", WORK), ("vault", VAULT)):
            here.gateways[name] = start_gateway(name)
            caged.add(name, uuid, here.gateways[name].address)
            here.clients[name] = await kit.client(here.gateways[name].address)
        (here.homes / "source").write_bytes(CONTENT)
        caged.allowed[WORK, "vault"] = VAULT
        caged.one_way = True
        await caged.appear()
        core = Core(here)
        try:
            yield core
        finally:
            core.end()
            for bus in (caged.bus, *here.clients.values()):
                bus.disconnect()

    def run(test: Callable[[Core], Coroutine[Any, Any, None]], dies_at: str = "") -> None:
        async def whole() -> None:
            async with world() as core:
                core.start(dies_at)
                await core.present(kit)
                await test(core)

        asyncio.run(whole())

    return run


async def outcomes(world: World, last: Callable[[str], bool]) -> list[str]:
    """All that is recorded, up to the first that fits."""
    said: list[str] = []
    while not said or not last(said[-1]):
        said.append((await world.recorded())["outcome"])
    return said


def ended(outcome: str) -> bool:
    return outcome.startswith(("arrived", "had arrived", "given up", "skipped"))


def whole(world: World) -> bool:
    arrived = [name for name in world.arrived() if "/.incoming-" not in name]
    return arrived == ["vault/Inbox/work/figures.txt"] and (world.homes / arrived[0]).read_bytes() == CONTENT


# --- the core half ends ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dies_at", ["staged", "copy", "record"])
def test_what_was_not_accepted_yet_is_given_up_and_nothing_of_it_stays(play: Play, dies_at: str) -> None:
    async def test(core: Core) -> None:
        with pytest.raises(CageError):
            await core.world.send("work", "vault")
        await core.died()
        await core.restart()
        assert await outcomes(core.world, ended) == ["given up, because the core ended meanwhile; nothing arrived"]
        await core.world.until(lambda: core.staged() == [])
        assert core.world.arrived() == []

    play(test, dies_at)


@pytest.mark.parametrize("dies_at", ["accepted", "ready", "passing"])
def test_what_was_accepted_and_has_no_name_yet_gets_it_from_the_next_one(play: Play, dies_at: str) -> None:
    async def test(core: Core) -> None:
        assert await core.world.send("work", "vault") == "Inbox/work/"
        await core.died()
        assert core.staged() == [".copy", ".kept"]
        await core.restart()
        said = await outcomes(core.world, ended)
        assert said[-1] == "arrived as Inbox/work/figures.txt"
        await core.world.until(lambda: core.staged() == [])
        assert whole(core.world)

    play(test, dies_at)


def test_it_is_decided_anew_and_its_record_says_that_it_is_resumed(play: Play) -> None:
    async def test(core: Core) -> None:
        await core.world.send("work", "vault")
        await core.died()
        before = len(core.world.caged.asked)
        await core.restart()
        while not ended((details := await core.world.recorded())["outcome"]):
            pass
        assert details["resumed"] == "yes"
        asked = core.world.caged.asked[before:]
        assert [arguments[:4] for arguments in asked] == [[WORK, "files.Send", "", "vault"]] * 2
        assert {arguments[4] for arguments in core.world.caged.asked} == {details["request"]}
        assert core.world.caged.told[0] == core.world.caged.told[1]

    play(test, "accepted")


@pytest.mark.parametrize("dies_at", ["named", "told"])
def test_what_has_its_name_is_given_no_other(play: Play, dies_at: str) -> None:
    async def test(core: Core) -> None:
        assert await core.world.send("work", "vault") == "Inbox/work/"
        await core.died()
        await core.world.until(lambda: whole(core.world))
        await core.restart()
        said = await outcomes(core.world, lambda outcome: outcome == "had arrived already")
        assert "given up" not in "".join(said)
        await core.world.until(lambda: core.staged() == [])
        assert whole(core.world)

    play(test, dies_at)


@pytest.mark.parametrize("dies_at", ["staged", "ready", "named two-way"])
def test_what_goes_both_ways_is_never_resumed(play: Play, dies_at: str) -> None:
    """Whoever sent it knows that it has heard nothing."""

    async def test(core: Core) -> None:
        core.world.caged.one_way = False
        if dies_at == "staged":
            core.world.caged.before_confirmed = core.process.kill
        with pytest.raises(CageError):
            await core.world.send("work", "vault")
        await core.died()
        assert core.staged() == [".named" if "named" in dies_at else ".begun"]
        await core.restart()
        so_far = "it may have arrived" if "named" in dies_at else "nothing arrived"
        said = await outcomes(core.world, ended)
        assert said[-1] == f"given up, because the core ended meanwhile; {so_far}"
        await core.world.until(lambda: core.staged() == [])
        assert whole(core.world) is ("named" in dies_at)

    play(test, dies_at)


# --- what has changed meanwhile ----------------------------------------------------------------------------------
async def accepted_and_left(core: Core) -> None:
    await core.world.send("work", "vault")
    await core.died()


def test_what_policy_refuses_by_then_is_given_back(play: Play) -> None:
    async def test(core: Core) -> None:
        await accepted_and_left(core)
        core.world.caged.allowed.clear()
        await core.restart()
        assert (await core.world.recorded())["outcome"] == "no rule allows files.Send to that cage"
        await core.world.until(lambda: core.staged() == [])
        assert core.world.arrived() == []

    play(test, "accepted")


def test_a_signature_that_is_wanted_by_then_was_not_looked_at(play: Play) -> None:
    """M18: what was read under another rule is none that this one lets through."""

    async def test(core: Core) -> None:
        await accepted_and_left(core)
        core.world.caged.require = "signed:editor"
        await core.restart()
        outcome = (await core.world.recorded())["outcome"]
        assert outcome == "the policy wants it looked at otherwise by now than it was when it was read"
        await core.world.until(lambda: core.staged() == [])
        assert core.world.arrived() == []

    play(test, "accepted")


def test_another_instance_of_that_name_gets_nothing(play: Play) -> None:
    """M17, over a restart."""

    async def test(core: Core) -> None:
        await accepted_and_left(core)
        core.world.caged.allowed[WORK, "vault"] = "33333333-vault"
        await core.restart()
        outcome = (await core.world.recorded())["outcome"]
        assert outcome == "it would go to another cage by now than the one that it was accepted for"
        await core.world.until(lambda: core.staged() == [])
        assert core.world.arrived() == []

    play(test, "accepted")


def test_a_bound_that_has_come_meanwhile_holds(play: Play) -> None:
    async def test(core: Core) -> None:
        await accepted_and_left(core)
        core.world.caged.max_size = 1
        await core.restart()
        assert "larger than the policy lets through by now" in (await core.world.recorded())["outcome"]
        assert core.world.arrived() == []

    play(test, "accepted")


@pytest.mark.parametrize("down", [WORK, VAULT])
def test_where_one_of_the_two_does_not_run_it_waits_until_it_does(play: Play, down: str) -> None:
    async def test(core: Core) -> None:
        await accepted_and_left(core)
        core.world.caged.down.add(down)
        await core.restart()
        said = (await core.world.recorded())["outcome"]
        assert said == "waits, because one of the two does not run"
        assert core.staged() == [".copy", ".kept"]
        core.world.caged.runs(down)
        assert (await outcomes(core.world, ended))[-1] == "arrived as Inbox/work/figures.txt"
        await core.world.until(lambda: core.staged() == [])
        assert whole(core.world)

    play(test, "accepted")


def test_what_is_sent_to_a_cage_that_does_not_run_arrives_when_it_does(play: Play) -> None:
    """Where nothing but the acceptance comes back; and not before, nor twice."""

    async def test(core: Core) -> None:
        core.world.caged.down.add(VAULT)
        assert await core.world.send("work", "vault") == "Inbox/work/"
        assert (await core.world.recorded())["outcome"] == "waits, because one of the two does not run"
        assert core.world.arrived() == []
        for _ in range(3):
            core.world.caged.runs(WORK)
        core.world.caged.runs(VAULT)
        assert (await outcomes(core.world, ended))[-1] == "arrived as Inbox/work/figures.txt"
        await core.world.until(lambda: core.staged() == [])
        assert whole(core.world)

    play(test)


def test_another_delivery_leaves_the_mark_of_what_may_come_again(play: Play, kit: Any) -> None:
    """Also one of which something comes back."""

    async def test(core: Core) -> None:
        await core.world.send("work", "vault")
        await core.died()
        await core.world.until(lambda: whole(core.world))
        core.world.caged.down.add(WORK)
        await core.restart()
        await outcomes(core.world, lambda outcome: outcome.startswith("waits"))
        await core.present(kit)
        core.world.caged.down.clear()
        core.world.caged.one_way = False
        assert await core.world.send("work", "vault", "other.txt") == "Inbox/work/other.txt"
        core.world.caged.runs(WORK)
        await outcomes(core.world, lambda outcome: outcome == "had arrived already")
        arrived = [name for name in core.world.arrived() if "/.incoming-" not in name]
        assert arrived == ["vault/Inbox/work/figures.txt", "vault/Inbox/work/other.txt"]

    play(test, "named")


def test_a_caged_that_is_killed_is_asked_again(play: Play) -> None:
    async def test(core: Core) -> None:
        core.world.caged.down.add(VAULT)
        await core.world.send("work", "vault")
        await core.world.recorded()
        core.world.caged.down.clear()
        core.world.caged.killed_at = ["Gateways", "Decide", "Confirm", "Deliver", "Record"]
        await core.world.caged.bus.release("org.cageruntime.Core1")
        await core.world.caged.appear()
        assert (await outcomes(core.world, ended))[-1] == "arrived as Inbox/work/figures.txt"
        await core.world.until(lambda: core.staged() == [])
        assert whole(core.world)

    play(test)


def test_what_cannot_be_recorded_is_still_there_for_the_next_one(play: Play) -> None:
    """It is not done either: the chain is full until then."""

    async def test(core: Core) -> None:
        core.world.caged.full = True
        assert await core.world.send("work", "vault") == "Inbox/work/"
        await core.world.until(lambda: bool(core.world.caged.ended))
        assert 0 not in core.world.caged.ended
        assert core.world.arrived() == []
        core.world.caged.full = False
        await core.restart()
        assert (await outcomes(core.world, ended))[-1] == "arrived as Inbox/work/figures.txt"
        assert whole(core.world)

    play(test)


# --- bounds (attack D: a cage that fills what others need) ---------------------------------------------------------
def test_a_cage_has_so_many_waiting_and_no_more(play: Play) -> None:
    async def test(core: Core) -> None:
        core.world.caged.down.add(VAULT)
        for _ in range(KEPT_PER_CAGE):
            await core.world.send("work", "vault")
        with pytest.raises(TransferFailed, match=r"waits for where it is to go|which may be stopped"):
            await core.world.send("work", "vault")
        assert core.staged().count(".kept") == KEPT_PER_CAGE == core.staged().count(".copy")
        core.world.caged.down.clear()
        core.world.caged.allowed[VAULT, "work"] = WORK
        assert await core.world.send("vault", "work") == "Inbox/vault/", "another cage's are counted apart"

    play(test)


def test_also_over_a_restart(play: Play) -> None:
    async def test(core: Core) -> None:
        core.world.caged.down.add(VAULT)
        for _ in range(KEPT_PER_CAGE):
            await core.world.send("work", "vault")
        await core.restart()
        await core.world.until(lambda: core.world.caged.latest != "")
        async with asyncio.timeout(20):
            while True:
                try:
                    await core.world.send("work", "vault")
                except TransferFailed as error:
                    said = error.sentence
                    break
                except CageError:  # it is not there yet
                    continue
        assert "waits for where it is to go" in said or "which may be stopped" in said

    play(test)


# --- what is in the folder -----------------------------------------------------------------------------------------
def damage(what: str, record: Path) -> None:
    words = json.loads(record.read_bytes())
    match what:
        case "cut short":
            record.write_bytes(record.read_bytes()[:-10])
        case "oversized":
            record.write_bytes(b" " * KEPT_RECORD_BYTES + record.read_bytes())
        case "unknown key":
            record.write_text(json.dumps(words | {"also": 1}))
        case "of another request":
            record.write_text(json.dumps(words | {"request": "0" * 32}))
        case "a path for a name":
            record.write_text(json.dumps(words | {"name": "../../.bashrc"}))
        case "a huge number":
            record.write_text(json.dumps(words | {"size": 2**63}))
        case "not UTF-8":
            record.write_bytes(b'{"name": "\xff"}')
        case "nested":
            record.write_bytes(b"[" * 10000)
        case "readable by others":
            record.chmod(0o644)
        case "another name":
            os.link(record, record.with_name("elsewhere"))
        case "a link":
            record.rename(record.with_name("another"))
            record.symlink_to("another")
        case "a fifo":
            record.unlink()
            os.mkfifo(record)


DAMAGES = ["cut short", "oversized", "unknown key", "of another request", "a path for a name", "a huge number",
           "not UTF-8", "nested", "readable by others", "another name", "a link", "a fifo"]


async def refused(world: World) -> dict[str, str]:
    async with asyncio.timeout(20):
        while True:
            source, _name, _target, service, details = await world.caged.records.get()
            if "record" in details:
                assert (source, service) == ("", "files.Send")
                return dict(details)


def another(staging: Path, number: int) -> Path:
    """The record of one more transfer like the one that is there, with its copy beside it."""
    (record,) = (path for path in staging.glob("*.kept") if not path.name.startswith("0" * 30))
    more = staging / f"{number:032x}.kept"
    more.write_text(json.dumps(json.loads(record.read_bytes()) | {"request": more.stem}))
    more.chmod(0o600)
    more.with_suffix(".copy").write_bytes(CONTENT)
    more.with_suffix(".copy").chmod(0o600)
    return more


def test_a_record_that_is_not_one_of_ours_is_refused_recorded_and_set_aside(play: Play) -> None:
    async def test(core: Core) -> None:
        await accepted_and_left(core)
        staging = core.world.staging
        records = {another(staging, number): what for number, what in enumerate(DAMAGES)}
        for record, what in records.items():
            damage(what, record)
        await core.restart()
        told = [await refused(core.world) for _ in records]
        assert sorted(details["record"] for details in told) == [record.name for record in records]
        assert {details["outcome"].partition(":")[0] for details in told} == {"not resumed, and set aside"}
        for record, what in records.items():
            assert (staging / f"aside-{record.name}").is_symlink() or (staging / f"aside-{record.name}").exists(), what
            assert (staging / f"aside-{record.stem}.copy").exists(), what
            assert not record.exists(), what
        await core.world.until(lambda: whole(core.world))

    play(test, "accepted")


def test_a_copy_that_is_not_what_was_kept_does_not_arrive(play: Play) -> None:
    async def test(core: Core) -> None:
        await accepted_and_left(core)
        shorter, longer, changed, gone, link = (
            another(core.world.staging, number).with_suffix(".copy") for number in range(5))
        os.truncate(shorter, 1)
        os.truncate(longer, len(CONTENT) + 1)
        changed.write_bytes(CONTENT[::-1])
        gone.unlink()
        link.unlink()
        link.symlink_to(core.world.homes / "source")
        await core.restart()
        said = {}
        while len(said) < 6:
            details = await core.world.recorded()
            if details["outcome"] != "is given its name in the inbox":
                said[details["request"]] = details["outcome"]
        assert said[shorter.stem] == "its copy has 1 bytes, and had 18"
        assert said[longer.stem] == "its copy has 19 bytes, and had 18"
        assert said[changed.stem] == '"figures.txt" did not arrive in vault: what came there is not what was sent'
        assert said[gone.stem].startswith("its copy cannot be opened any more")
        assert said[link.stem].startswith("its copy cannot be opened any more")
        await core.world.until(lambda: core.staged() == [])
        assert whole(core.world)

    play(test, "accepted")


def test_no_more_is_set_aside_than_somebody_can_look_at(play: Play) -> None:
    async def test(core: Core) -> None:
        core.end()
        for number in range(3 * KEPT_ASIDE):
            (core.world.staging / f"{number:032x}.kept").write_text("{}")
            (core.world.staging / f"{number:032x}.kept").chmod(0o600)
        core.start()
        for _ in range(3 * KEPT_ASIDE):
            await refused(core.world)
        assert len(list(core.world.staging.glob("aside-*"))) == KEPT_ASIDE == len(core.staged())

    play(test)


def test_what_is_half_written_is_nothing(play: Play) -> None:
    async def test(core: Core) -> None:
        core.end()
        for number, kind in enumerate(("new", "copy", "begun")):
            (core.world.staging / f"{number:032x}.{kind}").touch(0o600)
        (core.world.staging / "notes of the administrator").touch()
        core.start()
        await core.world.until(lambda: core.staged() == [""])
        assert core.world.caged.records.empty()

    play(test)


def test_what_has_waited_for_too_long_is_given_up(play: Play) -> None:
    async def test(core: Core) -> None:
        await accepted_and_left(core)
        (record,) = core.world.staging.glob("*.kept")
        words = json.loads(record.read_bytes())
        record.write_text(json.dumps(words | {"since": words["since"] - 86400}))
        core.world.caged.down.add(VAULT)
        await core.restart()
        said = await outcomes(core.world, ended)
        assert said[-1] == "given up, because it has waited for 24 hours"
        await core.world.until(lambda: core.staged() == [])

    play(test, "accepted")
