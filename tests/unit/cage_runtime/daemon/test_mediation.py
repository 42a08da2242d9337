# SPDX-License-Identifier: LGPL-2.1-or-later
"""What caged does for mediators: how often a cage may ask, what is recorded of it, and who is told of gateways."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cage_runtime.bus import Call
from cage_runtime.daemon import mediation
from cage_runtime.daemon.connections import Connections
from cage_runtime.daemon.halves import Halves
from cage_runtime.daemon.mediation_service import MediationService
from cage_runtime.daemon.service import Parts
from cage_runtime.errors import NoSuchCage, NotAuthorized, PolicyRefused, UsageError
from cage_runtime.model import DECISIONS_BURST, CageState, Flow
from tests.unit.cage_runtime.daemon.asking_world import REQUEST, World, rules

RULES = "files.Send * work vault allow\nfiles.Send * work peer allow max-size=1000\n"
OFTEN = "this cage asks too often; try again in a moment"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch, rules(RULES))


def test_a_permission_says_which_way_the_data_goes(world: World) -> None:
    assert world.decide("vault").decision.flow is Flow.UP
    assert world.decide("peer").decision.flow is Flow.LEVEL


def test_the_second_decision_of_a_request_is_recorded_as_one(world: World) -> None:
    world.decide("vault")
    world.confirm("vault", files=1)
    first, second = (fields for _, fields in world.recorded)
    assert "when" not in first
    assert second == first | {"when": "at delivery"}


def test_decisions_are_recorded_with_the_request_and_the_mediator_they_are_of(world: World) -> None:
    world.decide("vault")
    assert "is refused" in world.refused("nobody")
    assert [(fields["request"], fields["mediator"]) for _, fields in world.recorded] == [(REQUEST, "files")] * 2


@pytest.mark.parametrize("request_id", ["", "0" * 31, "0" * 33, "A" * 32, "0" * 31 + "\n", "0" * 32 + "\n"])
def test_what_is_no_id_of_a_request_is_refused_before_anything(world: World, request_id: str) -> None:
    with pytest.raises(UsageError, match="32 hexadecimal digits"):
        world.decide("vault", request=request_id)
    assert world.recorded == []


@pytest.mark.parametrize(("what", "says"), [
    ({"size": 1001}, "1001 bytes are more than the 1000 that the policy lets through at once"),
    ({"target_uuid": "uuid-of-before"},
     '"peer" is not the cage that it was when files.Send was asked for; ask for it again'),
])
def test_what_it_turned_out_to_be_is_held_against_the_permission(world: World, what: dict[str, Any], says: str) -> None:
    """M17, where it is of an instance that has gone."""
    assert world.confirm("peer", size=1000, target_uuid="uuid-peer").decision.max_size == 1000
    with pytest.raises(PolicyRefused) as refused:
        world.confirm("peer", **what)
    assert refused.value.sentence == says


def test_what_is_only_confirmed_is_asked_for_too_often_all_the_same(world: World) -> None:
    for _ in range(DECISIONS_BURST):
        world.decide("vault")
        world.confirm("vault", size=1)
    assert world.refused("vault") == OFTEN


# --- how often ---------------------------------------------------------------------------------------------------
def test_a_cage_that_asks_too_often_is_refused_without_a_record_of_each(world: World) -> None:
    for _ in range(DECISIONS_BURST):
        assert "is refused" in world.refused("peer-of-nobody")
    assert len(world.recorded) == DECISIONS_BURST
    for target in ("peer-of-nobody", "vault", "work", "") * 1000:
        assert world.refused(target) == OFTEN
    assert len(world.recorded) == DECISIONS_BURST
    world.run_until(1010.0)
    assert world.recorded[DECISIONS_BURST:] == [("decision", {
        "cage": "work", "uuid": "uuid-work", "decision": "deny",
        "reason": "4000 more requests were refused because the cage asks too often"})]
    assert world.due == []


# --- what a cage may ask for ---------------------------------------------------------------------------------------
def test_what_a_cage_may_ask_for_tells_nothing_of_other_cages(world: World) -> None:
    """As names and lives of others come and go, and for a cage that no rule is about."""
    told = world.mediation.services("uuid-work")
    assert told == [("files.Send", "allow")]
    world.set_state("vault", CageState.STOPPED)
    world.destroy("vault")
    assert world.mediation.services("uuid-work") == told
    world.begin()  # nothing of it is what was told before
    assert world.mediation.services("uuid-work") == told
    assert world.mediation.services("uuid-peer") == []


def test_what_a_cage_may_ask_for_follows_the_policy_in_force(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert world.mediation.services("uuid-work") == [("files.Send", "allow")]
    monkeypatch.setattr(mediation, "load_policy", lambda *_: rules("files.Send * work vault ask"))
    world.mediation.reload()
    assert world.mediation.services("uuid-work") == [("files.Send", "ask")]
    monkeypatch.setattr(mediation, "load_policy", lambda *_: rules("files.Send * work vault ask", until=1060.0))
    world.mediation.reload()
    assert world.mediation.services("uuid-work") == [("files.Send", "ask")]
    world.run_until(1060.0)
    assert world.mediation.services("uuid-work") == []


def test_asking_what_one_may_ask_for_takes_a_turn(world: World) -> None:
    for _ in range(DECISIONS_BURST):
        world.mediation.services("uuid-work")
    with pytest.raises(PolicyRefused, match=OFTEN):
        world.mediation.services("uuid-work")
    assert world.refused("vault") == OFTEN
    assert world.mediation.services("uuid-peer") == []
    with pytest.raises(NoSuchCage):
        world.mediation.services("uuid-of-nobody")


def test_one_cage_is_not_kept_from_asking_by_another(world: World) -> None:
    while world.refused("nobody", "vault") != OFTEN:
        continue
    assert world.decide("vault").target is world.known["vault"]


def test_it_may_ask_again_in_a_moment(world: World) -> None:
    while world.refused("nobody") != OFTEN:
        continue
    world.run_until(1000.1)
    assert world.refused("nobody") != OFTEN
    assert world.refused("nobody") == OFTEN
    world.run_until(2000.0)
    for _ in range(DECISIONS_BURST):
        world.decide("vault")
    assert world.refused("vault") == OFTEN, "what fills up has an end"


def test_many_files_are_not_too_many(world: World) -> None:
    """Each of them is delivered, which takes whoever sends it longer than it takes to decide."""
    for _ in range(10 * DECISIONS_BURST):
        world.decide("vault")
        world.confirm("vault", files=1)


def test_what_was_refused_together_is_recorded_once_the_chain_takes_it(world: World) -> None:
    while world.refused("nobody") != OFTEN:
        continue
    world.full = True
    world.run_until(1010.0)
    world.full = False
    before = len(world.recorded)
    world.run_until(1020.0)
    assert [fields["reason"] for _, fields in world.recorded[before:]] == [
        "1 more requests were refused because the cage asks too often"]


def test_buckets_of_cages_that_are_gone_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mediation, "CAGES_MAX", 2)
    for number in range(5):
        world.mediation.malformed("files", f"uuid-{number}", "gone", "files.Send", "no")
    world.decide("vault")
    assert set(world.mediation._buckets) == {"uuid-4", "uuid-work"}


# --- what is recorded of it --------------------------------------------------------------------------------------
def test_what_came_of_it_is_recorded_of_the_instance_even_where_that_is_gone(world: World) -> None:
    details = {"outcome": "arrived"} | dict.fromkeys(("uuid", "cage", "target", "service", "mediator"), "another")
    expected = {"outcome": "arrived", "uuid": "uuid-work", "cage": "work", "target": "vault", "service": "files.Send",
                "mediator": "files"}
    world.mediation.note("files", "uuid-work", "old-name", "uuid-vault", "files.Send", details)
    del world.known["work"], world.known["vault"]
    world.mediation.note("files", "uuid-work", "work", "uuid-vault", "files.Send", details)
    assert world.recorded == [("transfer", expected), ("transfer", expected | {"target": "uuid-vault"})]


def test_many_details_do_not_hide_of_whom_they_are(world: World) -> None:
    world.mediation.note("files", "uuid-work", "work", "uuid-vault", "files.Send", {str(n): "" for n in range(100)})
    assert list(world.recorded[0][1])[:5] == ["cage", "uuid", "mediator", "target", "service"]


def test_what_is_malformed_is_recorded_as_often_as_requests_are(world: World) -> None:
    for _ in range(DECISIONS_BURST + 7):
        world.mediation.malformed("files", "uuid-work", "work", "files.Send", "it has a character that cannot be seen")
    assert world.recorded == [("malformed", {
        "cage": "work", "uuid": "uuid-work", "mediator": "files", "service": "files.Send",
        "fault": "it has a character that cannot be seen"})] * DECISIONS_BURST
    assert world.refused("vault") == OFTEN
    world.run_until(1010.0)
    assert world.recorded[-1][1]["reason"].startswith("8 more requests were refused")


# --- who is told of gateways -------------------------------------------------------------------------------------
class Wire:
    """A bus and the rest that the service has, as far as it uses them."""

    guard = None

    def __init__(self) -> None:
        self.emitted: list[tuple[str, tuple[str, ...], str]] = []
        self.handlers: dict[str, Any] = {}

    def serve(self, _path: str, service: Any) -> None:
        self.handlers.update(service.handlers)

    def emit(self, _path: str, _interface: str, member: str, _signature: str, arguments: tuple[str, ...], *,
             to: str = "") -> None:
        self.emitted.append((member, arguments, to))

    async def mediator(self, sender: str) -> str:
        if not sender.startswith(":1."):
            raise NotAuthorized("it is no mediator")
        return "files"

    def call(self, member: str, sender: str, *arguments: Any) -> Any:
        call = Call(sender=sender, path="/", member=member, arguments=list(arguments), descriptors=())
        return asyncio.run(self.handlers[member](call)).values


def test_gateways_are_told_to_the_mediator_that_asked_for_them_and_to_nobody_else() -> None:
    wire = Wire()
    halves = Halves(("files",), cast(Connections, SimpleNamespace(when_gone=lambda *_: None)))
    parts = cast(Parts, SimpleNamespace(bus=wire, authorization=wire, halves=halves,
                                        manager=SimpleNamespace(chain=None)))
    service = MediationService(parts, lambda: [("work", "uuid-work", "unix:path=/x")])
    service.up("work", "uuid-work", "unix:path=/x")
    assert wire.emitted == []
    with pytest.raises(NotAuthorized):
        wire.call("Gateways", ":2.1")
    wire.call("Gateways", ":1.1")
    assert wire.call("Gateways", ":1.2") == ([["work", "uuid-work", "unix:path=/x"]],)
    service.up("work", "uuid-work", "unix:path=/x")
    service.down("uuid-work")
    assert wire.emitted == [("GatewayUp", ("work", "uuid-work", "unix:path=/x"), ":1.2"),
                            ("GatewayDown", ("uuid-work",), ":1.2")]
