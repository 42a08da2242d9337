# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a core half may do by what was decided: the attacks of one that a cage has got hold of, and of a restart."""

from __future__ import annotations

import asyncio
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.mediation import Asked, Permission
from cage_runtime.daemon.sessions import Started
from cage_runtime.daemon.tickets import EXPIRED, FORGED, Flag, Ticket, Tickets
from cage_runtime.daemon.what import What
from cage_runtime.errors import NoSuchCage, NotAuthorized, PolicyRefused, TicketExpired, WrongState
from cage_runtime.model import DECISIONS_BURST, TICKET_MAX, TICKET_SECONDS, CageState
from tests.unit.cage_runtime.daemon.asking_world import REQUEST, World, rules

RULES = """files.Send * work vault allow autostart=yes
files.Send * work peer ask
files.Send * work @core allow
keys.Sign * work vault ask declassify
keys.Sign * work peer ask autostart=yes
"""
NOT_CONFIRMED = "what was decided was not confirmed, and nothing is done by it"
TICKET = Ticket(mediator="files", service="files.Send", source="uuid-work", target="@disposable:x", request=REQUEST,
                flags=frozenset({Flag.CONFIRMED, Flag.AUTOSTART}))


class Delivering(World):
    """In which cages are started, and delivery halves in them."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(tmp_path, monkeypatch, rules(RULES))
        self.delivered: list[tuple[str, str, list[str]]] = []
        self.started: list[str] = []

    async def start(self, cage: Cage) -> None:
        self.started.append(cage.name)
        cage.state = CageState.RUNNING

    # As the sessions, with other arguments than those of `Mediation.deliver`.
    async def deliver(self, cage: Cage, mediator: str, arguments: list[str], _descriptors: Any) -> Started:
        self.delivered.append((cage.name, mediator, arguments))
        return Started(channel=-1)

    def decided(self, target: str, service: str = "files.Send") -> Permission:
        return self.mediation.decide(self._asked(target, service))

    def confirmed(self, target: str, service: str = "files.Send") -> Permission:
        return self.mediation.confirm(self._asked(target, service), What(), ":core-half")

    @staticmethod
    def _asked(target: str, service: str) -> Asked:
        return Asked(mediator=service.partition(".")[0], source="uuid-work", service=service, argument="",
                     target=target, request=REQUEST)

    def acts(self, ticket: str, mediator: str = "files") -> None:
        asyncio.run(self.mediation.deliver(mediator, ticket, ["x"], ()))

    def is_refused(self, ticket: str, why: str, mediator: str = "files") -> None:
        """At each of the things that a core half may do."""
        for act in (lambda: self.acts(ticket, mediator),
                    lambda: asyncio.run(self.mediation.dispose(mediator, ticket)),
                    lambda: self.mediation.shown(mediator, ticket)):
            with pytest.raises((NotAuthorized, TicketExpired)) as refused:
                act()
            assert refused.value.sentence == why
        assert self.delivered == []


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Delivering:
    return Delivering(tmp_path, monkeypatch)


# --- a core half that somebody has got hold of -------------------------------------------------------------------
@pytest.mark.parametrize("ticket", [
    "", ":", "0" * 32, REQUEST, f"{REQUEST}:files.Send:uuid-work:uuid-vault:9999:confirmed:",
    f"{REQUEST}:files.Send:uuid-work:uuid-vault:9999:confirmed:" + "0" * 64, ":" * 9, "\u00e9" * 64, "x" * 100_000])
def test_what_caged_never_gave_is_refused(world: Delivering, ticket: str) -> None:
    world.is_refused(ticket, FORGED)


def test_a_ticket_is_good_for_the_mediator_that_asked_alone(world: Delivering) -> None:
    world.is_refused(world.confirmed("vault").ticket, FORGED, mediator="log")


def test_every_byte_of_a_ticket_counts(world: Delivering) -> None:
    ticket = world.confirmed("vault").ticket
    for at in range(len(ticket)):
        other = "0" if ticket[at] != "0" else "1"
        for changed in (ticket[:at] + other + ticket[at + 1:], ticket[:at] + ticket[at + 1:],
                        ticket[:at] + other + ticket[at:], ticket[:at]):
            world.is_refused(changed, FORGED)
    world.is_refused(f"{ticket}0", FORGED)


def test_a_ticket_is_good_for_no_other_target_and_no_other_source(world: Delivering) -> None:
    """Whatever of another one's is put into it."""
    vault, core = world.confirmed("vault").ticket, world.confirmed("@core").ticket
    for ours, theirs in ((vault, core), (core, vault)):
        words, others = ours.split(":"), theirs.split(":")
        for place in (3, 5, 6):
            world.is_refused(":".join([*words[:place], others[place], *words[place + 1:]]), FORGED)
    world.is_refused(vault.replace("uuid-work", "uuid-peer"), FORGED)
    with pytest.raises(NotAuthorized, match="not to the core"):
        world.mediation.shown("files", vault)
    with pytest.raises(NotAuthorized, match="to no disposable cage"):
        asyncio.run(world.mediation.dispose("files", vault))
    with pytest.raises(WrongState):
        world.acts(core)
    assert world.delivered == []


def test_a_first_look_is_no_leave(world: Delivering) -> None:
    world.is_refused(world.decided("vault").ticket, NOT_CONFIRMED)
    world.is_refused(world.decided("peer").ticket, NOT_CONFIRMED)


def test_what_a_person_is_still_to_be_asked_about_is_not_confirmed_by_confirming_it(world: Delivering) -> None:
    """Until there is an answer, and not by one that is no."""
    world.is_refused(world.confirmed("peer").ticket, NOT_CONFIRMED)
    world.answer("allow")
    asked = world.confirmed("peer").ticket
    world.acts(asked)
    assert world.delivered == [("peer", "files", ["x"])]
    world.confirmed("peer")
    world.answer("deny")
    with pytest.raises(PolicyRefused):
        world.confirmed("peer")


def test_what_is_denied_has_none(world: Delivering) -> None:
    for look in (world.decided, world.confirmed):
        with pytest.raises(PolicyRefused):
            look("nobody")


def test_a_ticket_is_of_an_instance(world: Delivering) -> None:
    """M17: what has its name now is another cage."""
    ticket = world.confirmed("vault").ticket
    world.destroy("vault")
    world.create("vault", "secret", life="2")
    with pytest.raises(WrongState):
        world.acts(ticket)
    assert world.delivered == []


def test_nothing_is_shown_of_a_source_that_has_ended(world: Delivering) -> None:
    ticket = world.confirmed("@core").ticket
    assert world.mediation.shown("files", ticket) is world.known["work"]
    world.set_state("work", CageState.STOPPED)
    with pytest.raises(WrongState, match="does not run any more"):
        world.mediation.shown("files", ticket)


# --- how long ----------------------------------------------------------------------------------------------------
def test_a_core_half_that_takes_too_long_hears_so(world: Delivering) -> None:
    ticket = world.confirmed("vault").ticket
    world.time += TICKET_SECONDS - 0.1
    world.acts(ticket)
    world.delivered.clear()
    world.time += 1.1
    world.is_refused(ticket, EXPIRED)
    assert "120 s" in EXPIRED


def test_after_a_restart_of_caged_it_is_what_it_was(world: Delivering) -> None:
    fresh, old = world.confirmed("vault").ticket, world.confirmed("vault").ticket
    world.begin()
    world.acts(fresh)
    assert world.delivered == [("vault", "files", ["x"])]
    world.delivered.clear()
    world.time += TICKET_SECONDS + 1
    world.begin()
    world.is_refused(old, EXPIRED)


def test_what_was_confirmed_before_a_reload_that_denies_is_done_until_it_expires(world: Delivering) -> None:
    """As caged(8) says; a ticket of a first look is worth nothing before and after."""
    ticket, first = world.confirmed("vault").ticket, world.decided("vault").ticket
    world.put_in_force(rules("files.Send * work vault deny\n"))
    world.acts(ticket)
    assert world.delivered == [("vault", "files", ["x"])]
    world.delivered.clear()
    world.is_refused(first, NOT_CONFIRMED)
    world.time += TICKET_SECONDS + 1
    world.is_refused(ticket, EXPIRED)
    with pytest.raises(PolicyRefused):
        world.confirmed("vault")


# --- what looks first, and what is started -----------------------------------------------------------------------
def test_what_looks_first_does_so_before_anybody_is_asked_and_by_nothing_else(world: Delivering) -> None:
    permission = world.decided("vault", "keys.Sign")
    world.acts(permission.ticket, "keys")
    assert world.delivered == [("vault", "keys", ["x"])]
    for act in (lambda: world.mediation.shown("keys", permission.ticket),
                lambda: asyncio.run(world.mediation.dispose("keys", permission.ticket))):
        with pytest.raises(NotAuthorized) as refused:
            act()
        assert refused.value.sentence == NOT_CONFIRMED


@pytest.mark.parametrize(("target", "service", "is_started"), [
    ("vault", "files.Send", True), ("peer", "keys.Sign", True), ("vault", "keys.Sign", False)])
def test_a_target_is_started_where_the_rule_says_so(world: Delivering, target: str, service: str,
                                                   is_started: bool) -> None:
    world.set_state(target, CageState.STOPPED)
    mediator = service.partition(".")[0]
    permission = world.decided(target, service) if mediator == "keys" else world.confirmed(target, service)
    if is_started:
        world.acts(permission.ticket, mediator)
    else:
        with pytest.raises(WrongState, match="does not run"):
            world.acts(permission.ticket, mediator)
    assert world.started == [target] * is_started


def test_what_is_not_confirmed_starts_nothing(world: Delivering) -> None:
    ticket = world.decided("vault").ticket
    world.set_state("vault", CageState.STOPPED)
    world.is_refused(ticket, NOT_CONFIRMED)
    assert world.started == []


# --- whose tokens ------------------------------------------------------------------------------------------------
def test_who_asks_spends_its_own_tokens(world: Delivering) -> None:
    """What is copied in one cage is pasted by another, which cannot use up what the first may ask (M13)."""
    asked = replace(world._asked("vault", "files.Send"), asker="uuid-peer")
    for _ in range(DECISIONS_BURST):
        world.mediation.decide(asked)
    with pytest.raises(PolicyRefused, match="asks too often"):
        world.mediation.decide(asked)
    assert world.decided("vault").ticket
    with pytest.raises(PolicyRefused, match="asks too often"):
        world.decide("vault", source="peer")
    with pytest.raises(NoSuchCage):
        world.mediation.decide(replace(asked, asker="uuid-nobody"))


# --- the words, and the key --------------------------------------------------------------------------------------
def tickets(tmp_path: Path, boot: str = "this", now: float = 5.5) -> Tickets:
    return Tickets(tmp_path / "tickets.json", boot, clock=lambda: now)


def test_it_is_read_as_it_was_issued(tmp_path: Path) -> None:
    ours = tickets(tmp_path)
    for ticket in (TICKET, replace(TICKET, flags=frozenset()), replace(TICKET, target="")):
        assert ours.read(ours.issue(ticket), "files") == ticket
    assert len(ours.issue(TICKET)) < TICKET_MAX
    assert ours.issue(TICKET).startswith(f"{REQUEST}:files.Send:uuid-work:@disposable:x:126:autostart+confirmed:")


@given(st.text(max_size=300))
def test_any_text_is_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    with pytest.raises(NotAuthorized):
        tickets(tmp_path_factory.getbasetemp()).read(text, "files")


def test_the_key_is_caged_s_alone_and_of_one_boot(tmp_path: Path) -> None:
    words = tickets(tmp_path).issue(TICKET)
    kept = tmp_path / "tickets.json"
    assert (stat.S_IMODE(kept.stat().st_mode), os.listdir(tmp_path)) == (0o600, ["tickets.json"])
    assert tickets(tmp_path).read(words, "files") == TICKET
    with pytest.raises(NotAuthorized):
        tickets(tmp_path, boot="the next").read(words, "files")
    with pytest.raises(NotAuthorized):
        tickets(tmp_path).read(words, "files")  # the key of this boot is gone with it


@pytest.mark.parametrize("kept", [b"", b"{}", b"\xff", b'{"boot":"this","key":"zz"}', b'{"boot":"this","key":""}',
                                  b'{"boot":"this","key":"00","more":1}', b"[" * 100_000])
def test_a_key_that_is_none_is_made_anew(tmp_path: Path, kept: bytes) -> None:
    (tmp_path / "tickets.json").write_bytes(kept)
    words = tickets(tmp_path).issue(TICKET)
    assert tickets(tmp_path).read(words, "files") == TICKET


def test_a_key_that_cannot_be_kept_is_good_until_caged_ends(tmp_path: Path) -> None:
    ours = Tickets(tmp_path / "missing/tickets.json", "this")
    assert ours.read(ours.issue(TICKET), "files") == TICKET
    with pytest.raises(NotAuthorized):
        Tickets(tmp_path / "missing/tickets.json", "this").read(ours.issue(TICKET), "files")
