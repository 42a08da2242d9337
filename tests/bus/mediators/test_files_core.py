# SPDX-License-Identifier: LGPL-2.1-or-later
"""The core half between a stand-in caged and real gateways: who asks is the gateway, and nothing is half done."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cage_runtime.bus import Bus
from cage_runtime.errors import CageError, InvalidName, PolicyRefused, RuntimeFailure, TransferFailed, UsageError
from cage_runtime.model import CORE_PATH
from mediators import wire
from mediators.files import protocol
from mediators.files.core import serve_until_bus_ends
from mediators.stage import Stager
from tests.bus.mediators.conftest import CONTENT, VAULT, WORK, Play, World

TOP = Path(__file__).parents[3]
pytestmark = pytest.mark.usefixtures("system_bus")


def test_a_file_arrives_and_is_recorded(play: Play) -> None:
    async def test(world: World) -> None:
        assert await world.send("work", "vault") == "Inbox/work/figures.txt"
        assert await world.send("work", "vault") == "Inbox/work/figures (2).txt"
        assert (world.homes / "vault/Inbox/work/figures.txt").read_bytes() == CONTENT
        assert (await world.recorded())["outcome"] == "is given its name in the inbox"
        details = await world.recorded()
        assert details["outcome"] == "arrived as Inbox/work/figures.txt"
        assert (details["name"], details["size"]) == ("figures.txt", str(len(CONTENT)))
        assert list(world.staging.iterdir()) == []

    play(test)


def test_what_is_confirmed_is_what_was_decided_and_what_it_turned_out_to_be(play: Play) -> None:
    async def test(world: World) -> None:
        await world.send("work", "vault")
        assert [arguments[:-1] for arguments in world.caged.asked] == [[WORK, "files.Send", "", "vault"]] * 2
        assert world.caged.told == [{
            "target": "vault", "target-uuid": VAULT, "size": len(CONTENT), "files": 1, "types": [],
            "lines": ["figures.txt"], "sha256": hashlib.sha256(CONTENT).hexdigest()}]

    play(test)


def test_all_that_is_asked_and_recorded_of_one_request_has_its_id_and_of_another_none(play: Play) -> None:
    async def test(world: World) -> None:
        for _ in range(2):
            await world.send("work", "vault")
        ids = [arguments[-1] for arguments in world.caged.asked]
        assert [(await world.recorded())["request"] for _ in range(4)] == ids
        assert ids[0] == ids[1] != ids[2] == ids[3]
        assert all(re.fullmatch("[0-9a-f]{32}", request) for request in ids)

    play(test)


@pytest.mark.parametrize("why", ["a person is asked", "the rule bounds them"])
def test_of_what_type_it_is_is_told_whoever_wants_to_know(play: Play, why: str) -> None:
    async def test(world: World) -> None:
        world.caged.asks, world.caged.types = why.startswith("a"), [] if why.startswith("a") else ["text/plain"]
        await world.send("work", "vault")
        assert world.caged.told[-1]["types"] == ["text/plain"]

    play(test)


# --- who asks ----------------------------------------------------------------------------------------------------
def test_who_asks_is_the_gateway(play: Play) -> None:
    """The same message, through the other gateway, is another cage's (M2); what a gateway is called says nothing."""

    async def test(world: World) -> None:
        with pytest.raises(PolicyRefused):
            await world.send("vault", "vault")
        await world.send("work", "vault")
        assert [asked[0] for asked in world.caged.asked] == [VAULT, WORK, WORK]

    play(test)


def test_swapped_names_of_gateways_do_not_matter(play: Play) -> None:
    async def test(world: World) -> None:
        of_work, of_vault = (address for _name, _uuid, address in world.caged.gateways)
        for name, uuid, address in (("vault", WORK, of_work), ("work", VAULT, of_vault)):
            world.caged.up(name, uuid, address)
        await world.send("work", "vault")
        assert {asked[0] for asked in world.caged.asked} == {WORK}

    play(test)


def test_unknown_and_forbidden_look_alike_and_nothing_was_read(play: Play) -> None:
    """M3, and the decision comes first: a pipe, which could not be sent, is not even looked at."""

    async def test(world: World) -> None:
        errors = []
        for target in ("work", "no-such-cage", "personal"):
            near, far = os.pipe()
            with pytest.raises(PolicyRefused) as refused:
                await world.send("work", target, descriptor=near)
            os.close(far)
            errors.append((refused.value.bus_name, refused.value.sentence))
        assert errors == [("PolicyRefused", "no rule allows files.Send to that cage")] * 3
        assert world.caged.records.empty()

    play(test)


@pytest.mark.parametrize(
    ("target", "name", "kind", "says"),
    [
        ("vault", "../x", InvalidName, 'it has a "/"'),
        ("vault", "a\u202eb", InvalidName, "cannot be seen"),
        ("vault", "", InvalidName, "it is empty"),
        ("Vault", "x", InvalidName, "cannot be a cage's name"),
        ("../vault", "x", InvalidName, "cannot be a cage's name"),
        ("v" * 32, "x", InvalidName, "cannot be a cage's name"),
        ("core", "x", InvalidName, "is reserved"),
    ],
)
def test_a_malformed_request_is_not_even_asked_about(
    play: Play, target: str, name: str, kind: type[CageError], says: str
) -> None:
    async def test(world: World) -> None:
        with pytest.raises(kind, match=says):
            await world.send("work", target, name)
        assert world.caged.asked == []
        async with asyncio.timeout(20):
            source, source_name, service, fault = await world.caged.malformed.get()
        assert (source, source_name, service) == (WORK, "work", "files.Send")
        assert says in fault

    play(test)


def test_an_unknown_option_is_an_error(play: Play) -> None:
    from cage_runtime.bus import Variant

    async def test(world: World) -> None:
        near, far = os.pipe()
        with pytest.raises(UsageError, match='there is no option "source"'):
            await world.clients["work"].call(
                protocol.BUS_NAME, protocol.PATH, protocol.INTERFACE, protocol.SEND, protocol.SEND_SIGNATURE,
                ("vault", "x", 0, {"source": Variant("s", "vault")}), (near,),
            )
        os.close(near)
        os.close(far)

    play(test)


def test_what_cannot_be_sent_is_named_and_recorded(play: Play) -> None:
    async def test(world: World) -> None:
        with pytest.raises(TransferFailed, match="is a directory, not a regular file"):
            await world.send("work", "vault", descriptor=os.open("/", os.O_RDONLY))
        assert (await world.recorded())["outcome"] == '"figures.txt" is a directory, not a regular file'
        assert world.arrived() == []

    play(test)


def test_a_permission_withdrawn_while_it_was_staged_stops_the_transfer(play: Play) -> None:
    """M18."""

    async def test(world: World) -> None:
        world.caged.before_confirmed = world.caged.allowed.clear
        with pytest.raises(PolicyRefused):
            await world.send("work", "vault")
        assert "no rule allows" in (await world.recorded())["outcome"]
        assert world.arrived() == []

    play(test)


def test_a_bound_of_the_rule_holds_before_and_after_staging(play: Play) -> None:
    async def test(world: World) -> None:
        world.caged.max_size = len(CONTENT) - 1
        with pytest.raises(PolicyRefused, match="17 bytes that the policy lets through at once"):
            await world.send("work", "vault")
        world.caged.max_size = len(CONTENT)
        world.caged.asked.clear()
        world.caged.before_confirmed = lambda: setattr(world.caged, "max_size", 1)
        with pytest.raises(PolicyRefused, match="larger than the policy lets through by now"):
            await world.send("work", "vault")
        assert world.arrived() == []

    play(test)


def test_a_target_replaced_while_it_was_staged_gets_nothing(play: Play) -> None:
    """M17: the same name is another instance by then."""

    async def test(world: World) -> None:
        def replace() -> None:
            world.caged.allowed[WORK, "vault"] = "33333333-vault"

        world.caged.before_confirmed = replace
        with pytest.raises(PolicyRefused, match='"vault" is not the cage that it was'):
            await world.send("work", "vault")
        assert world.arrived() == []

    play(test)


def test_a_target_that_cannot_take_it_says_so_by_its_status_alone(play: Play) -> None:
    async def test(world: World) -> None:
        (world.homes / "vault/Inbox").symlink_to("/")
        with pytest.raises(TransferFailed) as failed:
            await world.send("work", "vault")
        reason = "its Inbox is not a directory that can be written"
        assert failed.value.sentence == f'"figures.txt" did not arrive in vault: {reason}'
        assert reason in (await world.recorded())["target-says"]

    play(test)


def test_what_cannot_be_recorded_does_not_arrive(play: Play) -> None:
    async def test(world: World) -> None:
        world.caged.full = True
        with pytest.raises(RuntimeFailure, match="the chain takes nothing"):
            await world.send("work", "vault")
        # The delivery half tidies up after it is told so, and the directories go last.
        await world.until(lambda: list((world.homes / "vault").iterdir()) == [])

    play(test)


def test_a_call_with_another_signature_is_recorded(play: Play) -> None:
    async def test(world: World) -> None:
        with pytest.raises(RuntimeFailure, match="takes the signature"):
            await world.clients["work"].call(
                protocol.BUS_NAME, protocol.PATH, protocol.INTERFACE, protocol.SEND, "ss", ("vault", "x"))
        async with asyncio.timeout(20):
            assert await world.caged.malformed.get() == [
                WORK, "work", "files.Send", 'Send takes the signature "ssha{sv}", not "ss"']

    play(test)


async def without_caged(world: World) -> None:
    await world.caged.bus.release("org.cageruntime.Core1")


def test_gateways_outlive_caged_and_requests_wait_until_it_is_back(play: Play) -> None:
    async def test(world: World) -> None:
        await without_caged(world)
        sending = [asyncio.ensure_future(world.send("work", "vault")) for _ in range(2)]
        await world.until(lambda: not world.caged.asked)
        await world.caged.appear()
        arrived = await asyncio.gather(*sending)
        assert set(arrived) == {"Inbox/work/figures.txt", "Inbox/work/figures (2).txt"}

    play(test)


def test_they_fail_closed_where_it_does_not_come_back(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "CORE_RETURN_SECONDS", 0.2)

    async def test(world: World) -> None:
        await without_caged(world)
        with pytest.raises(RuntimeFailure, match="caged was not there within 0 s; try again when it runs"):
            await world.send("work", "vault")
        assert world.arrived() == []

    play(test)


@pytest.mark.parametrize("killed_at", [
    ["Decide"], ["Confirm"], ["Decide", "Confirm"], ["Deliver"], ["Deliver", "Deliver"], ["Record"],
    ["Record", "Record"], ["Decide", "Confirm", "Deliver", "Record"],
], ids=" ".join)
def test_a_caged_that_is_killed_at_it_is_asked_again(play: Play, killed_at: list[str]) -> None:
    """One file arrives, once; a half that was started for nobody ends, and leaves nothing."""

    async def test(world: World) -> None:
        world.caged.killed_at = list(killed_at)
        assert await world.send("work", "vault") == "Inbox/work/figures.txt"
        assert world.caged.killed_at == []
        started = 1 + killed_at.count("Deliver")
        await world.until(lambda: len(world.caged.ended) == started)
        assert world.caged.ended.count(0) == 1
        assert world.arrived() == ["vault/Inbox/work/figures.txt"]
        assert (world.homes / "vault/Inbox/work/figures.txt").read_bytes() == CONTENT
        said = [(await world.recorded())["outcome"] for _ in range(world.caged.records.qsize())]
        assert said[0] == "is given its name in the inbox"
        assert said[-1] == "arrived as Inbox/work/figures.txt"
        assert len(said) == 2 + killed_at.count("Record")
        assert list(world.staging.iterdir()) == []

    play(test)


def test_a_gateway_that_somebody_else_announces_is_not_believed(play: Play, start_gateway: Any, kit: Any) -> None:
    async def test(world: World) -> None:
        forged, true = start_gateway("forged").address, start_gateway("true").address
        from dbus_fast import Message, MessageType

        stranger = await Bus.connect()
        for sender, address, uuid in ((stranger, forged, VAULT), (world.caged.bus, true, "44444444-other")):
            await sender._connection.send(Message(
                message_type=MessageType.SIGNAL, destination=await world.caged.mediator, path=CORE_PATH,
                interface=wire.MEDIATION, member="GatewayUp", signature="sss", body=["vault", uuid, address],
            ))
        await kit.present(await kit.client(true), protocol.BUS_NAME)  # the second was heard, so the first was too
        watch = wire.Presence(await kit.client(forged), protocol.BUS_NAME)
        await watch.follow()
        assert watch.owner == ""
        stranger.disconnect()

    play(test)


def test_a_gateway_that_ends_and_comes_back_is_attended_again(play: Play, start_gateway: Any, kit: Any) -> None:
    async def test(world: World) -> None:
        world.gateways["work"].stop()
        await world.clients["work"].closed()
        Path(world.gateways["work"].path).unlink()
        again = start_gateway("work")
        world.caged.up("work", WORK, again.address)
        world.clients["work"] = await kit.client(again.address)
        await kit.present(world.clients["work"], protocol.BUS_NAME)
        assert await world.send("work", "vault") == "Inbox/work/figures.txt"

    play(test)


def test_it_ends_with_an_error_when_the_system_bus_ends(tmp_path: Path, system_bus: Any, kit: Any) -> None:
    async def run() -> None:
        caged = await kit.caged.start(tmp_path / "homes")
        await caged.appear()
        serving = asyncio.ensure_future(serve_until_bus_ends(Stager(tmp_path / "staging", nameable=True)))
        await caged.mediator
        system_bus.process.kill()
        with pytest.raises(RuntimeFailure, match="the system bus ended"):
            async with asyncio.timeout(20):
                await serving

    asyncio.run(run())


KILLED_CORE = """
import asyncio, ctypes, sys
from pathlib import Path
from mediators import stage
from mediators.files.core import serve_until_bus_ends
def hang(source, target, size):
    import os; os.write(target, b"half"); ctypes.CDLL(None).pause()
asyncio.run(serve_until_bus_ends(stage.Stager(Path(sys.argv[1]), copier=hang, nameable=True)))
"""


def test_killed_in_the_middle_of_a_transfer_it_leaves_nothing(
    tmp_path: Path, start_gateway: Any, kit: Any
) -> None:
    async def run() -> None:
        caged = await kit.caged.start(tmp_path / "homes")
        address = start_gateway("work").address
        caged.add("work", WORK, address)
        caged.add("vault", VAULT, "unix:path=/nowhere")
        caged.allowed[WORK, "vault"] = VAULT
        await caged.appear()
        half = subprocess.Popen([sys.executable, "-c", KILLED_CORE, str(tmp_path / "staging")], cwd=TOP)
        world = World(caged, tmp_path / "homes", tmp_path / "staging")
        (world.homes / "source").write_bytes(CONTENT)
        world.clients["work"] = await kit.client(address)
        await kit.present(world.clients["work"], protocol.BUS_NAME)
        sending = asyncio.ensure_future(world.send("work", "vault"))
        children = Path(f"/proc/{half.pid}/task/{half.pid}/children")
        await kit.until(lambda: bool(children.read_text()))
        worker = os.pidfd_open(int(children.read_text()))
        half.kill()
        half.wait()
        with pytest.raises(CageError):
            await sending
        gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(worker, gone.set)
        async with asyncio.timeout(20):
            await gone.wait()
        # No copy, but a note of it for the next one to tell of.
        assert [path.suffix for path in (tmp_path / "staging").iterdir()] == [".begun"]
        assert world.arrived() == []

    asyncio.run(run())
