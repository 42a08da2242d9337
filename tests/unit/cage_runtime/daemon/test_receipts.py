# SPDX-License-Identifier: LGPL-2.1-or-later
"""What caged signs: its own record of a confirmed request, for whoever made that request, once, and no more of it than
its source hears."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cage_runtime import receipt
from cage_runtime.errors import RuntimeFailure
from cage_runtime.model import RECEIPTS_PER_CAGE
from cage_runtime.receipt import Receipt
from tests.unit.cage_runtime.daemon.asking_world import REQUEST, World, rules

RULES = """\
files.Send * work vault allow
files.Send * work peer allow
files.Send * peer vault allow direction=one-way
files.Send * peer work allow direction=one-way
files.Send * work @default allow target=vault
files.Send * peer @default allow target=work
"""
DETAILS = {"request": REQUEST, "name": "a.txt", "size": "7", "files": "1", "sha256": "a" * 64,
           "outcome": "arrived as Inbox/work/a (2).txt"}
OTHER = "f" * 32


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch, rules(RULES))


def ask(world: World, source: str = "work", outcome: str = "arrived", mediator: str = "files",
        service: str = "files.Send", **changes: str) -> str:
    uuid, details = f"uuid-{source}", DETAILS | changes
    return world.mediation.receipt(mediator, uuid, source, "uuid-vault", service, details, outcome)


def told(world: World, line: str) -> Receipt:
    return receipt.verified(line.encode(), receipt.read_public(world.mediation.receipts.public().encode()))


def test_a_receipt_says_what_was_recorded(world: World) -> None:
    world.confirm("peer", files=1, receipt=True)
    found = told(world, ask(world))
    kind, recorded = world.recorded[-1]
    assert (kind, recorded["receipt"], len(recorded["salt"])) == ("transfer", "arrived", 32)
    assert recorded["salt"] not in found.body().values()
    assert found.body() == {
        "receipt": "1", "host": found.host, "time": "1970-01-01T00:16:40.000000Z", "request": REQUEST,
        "service": "files.Send", "source": "work", "target": "peer", "name": "a.txt", "size": "7", "files": "1",
        "sha256": "a" * 64, "outcome": "arrived", "record": found.record}


def test_the_hash_of_its_record_is_of_nothing_that_can_be_guessed(world: World) -> None:
    """Two of the same are not the same, so nobody can try out what the rest of a record is."""
    hashes = set()
    for _ in range(3):
        world.confirm("peer", files=1, receipt=True)
        hashes.add(told(world, ask(world)).record)
    assert len(hashes) == 3


@pytest.mark.parametrize(("source", "target", "outcome", "says"), [
    ("work", "peer", "arrived", ("peer", "arrived")), ("work", "peer", "skipped", ("peer", "skipped")),
    ("work", "vault", "arrived", ("vault", "handed-over")), ("work", "vault", "skipped", ("vault", "handed-over")),
    ("work", "", "arrived", ("", "handed-over")), ("peer", "vault", "accepted", ("vault", "accepted")),
    ("peer", "work", "accepted", ("work", "accepted")), ("peer", "", "accepted", ("", "accepted"))])
def test_of_the_target_it_says_what_the_source_hears(world: World, source: str, target: str, outcome: str,
                                                     says: tuple[str, str]) -> None:
    if (source, target) == ("peer", ""):
        outcome = "accepted"
    world.confirm(target, source=source, files=1, receipt=True)
    found = told(world, ask(world, source, outcome))
    assert (found.target, found.outcome) == says
    assert "vault" not in found.body().values() or target == "vault"


@pytest.mark.parametrize(("source", "target", "outcome"), [
    ("work", "peer", "accepted"), ("peer", "vault", "arrived"), ("peer", "vault", "skipped"),
    ("work", "vault", "handed-over"), ("work", "vault", ""), ("work", "vault", "no such word")])
def test_a_word_of_another_direction_has_no_receipt(world: World, source: str, target: str, outcome: str) -> None:
    world.confirm(target, source=source, files=1, receipt=True)
    assert ask(world, source, outcome) == ""
    assert "receipt" not in world.recorded[-1][1]


def test_there_is_one_for_one_request(world: World) -> None:
    world.confirm("vault", files=1, receipt=True)
    assert ask(world) != ""
    assert ask(world) == ""


def test_there_is_none_that_nobody_wanted(world: World) -> None:
    world.confirm("vault", files=1)
    assert ask(world) == ""


@pytest.mark.parametrize("changes", [
    {"source": "peer"}, {"mediator": "clipboard"}, {"service": "files.Move"}, {"request": OTHER}, {"request": ""}])
def test_of_a_request_of_somebody_else_there_is_none(world: World, changes: dict[str, str]) -> None:
    """That it was asked is in the record all the same, as what the core half said."""
    world.confirm("vault", files=1, receipt=True)
    assert ask(world, **changes) == ""
    kind, fields = world.recorded[-1]
    assert (kind, "receipt" in fields, "salt" in fields) == ("transfer", False, False)
    assert ask(world) != ""


def test_of_what_a_core_half_says_of_who_it_is_nothing_counts(world: World) -> None:
    world.confirm("vault", files=1, receipt=True)
    lies = dict.fromkeys(("cage", "uuid", "service", "salt", "receipt", "target"), "x")
    found = told(world, world.mediation.receipt("files", "uuid-work", "x", "uuid-peer", "files.Send", DETAILS | lies,
                                                "arrived"))
    assert (found.source, found.service, found.target, found.outcome) == ("work", "files.Send", "vault", "handed-over")
    assert world.recorded[-1][1]["salt"] != "x"


def test_what_is_kept_out_of_the_record_is_not_in_it(world: World) -> None:
    world.confirm("vault", files=1, receipt=True)
    line = world.mediation.receipt("files", "uuid-work", "work", "uuid-vault", "files.Send",
                                   {"request": REQUEST, "outcome": "arrived"}, "arrived")
    found = told(world, line)
    assert (found.name, found.size, found.files, found.sha256) == ("", "", "", "")


def test_it_has_the_name_by_which_it_was_sent(world: World) -> None:
    world.confirm("vault", files=1, receipt=True)
    assert told(world, ask(world, **{"name": "a.txt.cage", "sent-name": "a.txt"})).name == "a.txt"


def test_what_nobody_asks_for_does_not_pile_up(world: World) -> None:
    requests = [f"{number:032x}" for number in range(3 * RECEIPTS_PER_CAGE)]
    for request in requests:
        world.confirm("vault", request=request, files=1, receipt=True)
    world.confirm("vault", source="peer", files=1, receipt=True)
    made = [bool(ask(world, request=request)) for request in requests]
    assert made == [False] * 2 * RECEIPTS_PER_CAGE + [True] * RECEIPTS_PER_CAGE
    assert ask(world, "peer", "accepted") != "", "another cage's is not pushed out by it"


def test_of_an_instance_that_is_gone_there_is_none(world: World) -> None:
    world.confirm("vault", files=1, receipt=True)
    world.destroy("work")
    assert ask(world) == ""


def test_a_core_that_was_started_again_knows_of_none_and_signs_with_the_same_key(world: World) -> None:
    world.confirm("vault", files=1, receipt=True)
    key = world.mediation.receipts.public()
    world.begin()
    assert ask(world) == ""
    assert world.mediation.receipts.public() == key


# --- the key ---------------------------------------------------------------------------------------------------------
def test_the_key_is_made_once_for_the_core_alone_and_is_in_the_record(world: World) -> None:
    key = world.mediation.receipts.public()
    assert key == world.mediation.receipts.public()
    path = world.tmp_path / "receipt-key"
    assert (path.stat().st_size, path.stat().st_mode & 0o7777) == (32, 0o600)
    assert [file.name for file in world.tmp_path.iterdir() if file.name.startswith("receipt")] == ["receipt-key"]
    assert world.recorded == [("receipt-key-made", {})]
    assert path.read_bytes().hex() not in json.dumps(world.recorded)


def test_the_record_of_what_was_signed_says_by_which_key(world: World) -> None:
    world.confirm("vault", files=1, receipt=True)
    assert told(world, ask(world)).host == world.recorded[-1][1]["host"]


def test_a_core_that_cannot_make_one_starts_all_the_same(world: World) -> None:
    world.full = True
    world.mediation.receipts.prepare()
    assert not (world.tmp_path / "receipt-key").exists()
    world.full = False
    world.mediation.receipts.prepare()
    assert (world.tmp_path / "receipt-key").exists()


def test_what_cannot_be_recorded_signs_nothing(world: World) -> None:
    world.full = True
    with pytest.raises(RuntimeFailure, match="the chain takes nothing"):
        world.mediation.receipts.public()
    assert not (world.tmp_path / "receipt-key").exists()
    world.full = False
    assert world.mediation.receipts.public()


def test_what_a_kill_left_of_one_is_made_anew(world: World) -> None:
    (world.tmp_path / "receipt-key.new").write_bytes(b"half")
    key = world.mediation.receipts.public()
    world.begin()
    assert world.mediation.receipts.public() == key


def spoil(path: Path, how: str) -> None:
    if how == "short":
        path.write_bytes(b"x" * 31)
    elif how == "long":
        path.write_bytes(b"x" * 33)
    elif how == "open":
        path.chmod(0o640)
    elif how == "link":
        path.rename(path.with_name("elsewhere"))
        path.symlink_to("elsewhere")
    else:
        path.unlink()
        os.mkfifo(path, 0o600)


@pytest.mark.parametrize("how", ["short", "long", "open", "link", "pipe"])
def test_a_key_that_is_not_as_it_was_is_not_used_and_stays(world: World, how: str) -> None:
    """The transfer has happened, and is recorded, whatever is with the key."""
    world.mediation.receipts.public()
    spoil(world.tmp_path / "receipt-key", how)
    world.begin()
    with pytest.raises(RuntimeFailure, match="receipt-key"):
        world.mediation.receipts.public()
    world.confirm("vault", files=1, receipt=True)
    assert ask(world) == ""
    assert world.recorded[-1][0] == "transfer"
    assert os.path.lexists(world.tmp_path / "receipt-key")


def test_the_receipt_of_a_question_is_the_same_question() -> None:
    """Who wants one is not asked about twice (M14)."""
    from cage_runtime.daemon.what import What

    assert What(size=1, receipt=True).digest() == What(size=1).digest()


def service_of(world: World) -> Any:
    """The bus view's handler, for the mediator files."""
    from contextlib import nullcontext
    from types import SimpleNamespace

    from cage_runtime.daemon.mediation_service import MediationService

    class Wire:
        def __init__(self) -> None:
            self.handlers: dict[str, Any] = {}

        def serve(self, _path: str, service: Any) -> None:
            self.handlers.update(service.handlers)

        async def mediator(self, _sender: str) -> str:
            return "files"

        async def note_refused(self, call: Any, _refusal: Exception) -> None:
            world.recorded.append(("refused", {"method": call.member}))

    wire = Wire()
    chain = SimpleNamespace(count=0, deferring=nullcontext)
    parts: Any = SimpleNamespace(bus=wire, authorization=wire, access=wire, mediation=world.mediation,
                                 manager=SimpleNamespace(chain=chain))
    MediationService(parts, list)
    return wire.handlers["Receipt"]


def test_a_mediator_has_receipts_of_its_own_services_alone(world: World) -> None:
    import asyncio

    from cage_runtime.bus import Call
    from cage_runtime.errors import NotAuthorized

    world.confirm("vault", files=1, receipt=True)
    handler = service_of(world)

    def call(service: str) -> Any:
        arguments = ["uuid-work", "work", "uuid-vault", service, dict(DETAILS), "arrived"]
        return asyncio.run(handler(Call(sender=":1.1", path="/", member="Receipt", arguments=arguments,
                                        descriptors=()))).values

    with pytest.raises(NotAuthorized):
        call("keys.Sign")
    assert world.recorded[-1] == ("refused", {"method": "Receipt"})
    assert told(world, *call("files.Send")).outcome == "handed-over"
