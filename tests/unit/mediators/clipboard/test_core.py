# SPDX-License-Identifier: LGPL-2.1-or-later
"""The core half of clipboard: which offer is pasted, by whom and how often, whatever comes in between (M40 to M46)."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from cage_runtime.bus import Call, Variant
from cage_runtime.errors import CageError, NoSuchCage, PolicyRefused, RuntimeFailure, TransferFailed, UsageError
from cage_runtime.model import (
    CLIP_BURST,
    CLIPS_LENT_BYTES,
    IMAGE_BURST,
    IMAGE_BYTES_MAX,
    IMAGES_PER_SECOND,
    Action,
    Flow,
)
from mediators.clipboard.core import ClipboardCore, MemoryStager, images
from mediators.clipboard.image import reencoded
from mediators.clipboard.protocol import IMAGE, NOTHING, TEXT
from mediators.lent import Lent
from mediators.stage import Stager
from mediators.wire import Asked, Caged, Gateway, Permission, What
from tests.unit.mediators.clipboard.pictures import chunk, png

ALPHA, BETA, GAMMA, OTHER = (Gateway(name=name, uuid=f"uuid-{name}", address="")
                             for name in ("alpha", "beta", "gamma", "other"))


class FakeCaged:
    """Allows what is between alpha, beta and gamma, which are one person's; other is somebody else's."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.askers: list[str] = []
        self.told: list[What] = []
        self.records: list[str] = []
        self.gone: set[str] = set()
        self.before_confirmed: Callable[[], Awaitable[None]] | None = None
        self.full = False

    async def person(self, uuid: str) -> int:
        if uuid in self.gone:
            raise NoSuchCage("it does not run")
        return 1001 if uuid == OTHER.uuid else 1000

    async def decide(self, source: str, service: str, argument: str, target: str, request: str, *,
                     asker: str) -> Permission:
        assert (service, len(request)) == ("clipboard.Paste", 32)
        self.asked.append((source, target))
        self.askers.append(asker)
        if source == f"uuid-{target}" or source in self.gone:
            raise PolicyRefused(f"clipboard.Paste to {target} is refused, and that is the source's to hear")
        asked = Asked(source=source, service=service, argument=argument, target=target, request=request)
        return Permission(
            asked=asked, action=Action.ALLOW, target=target, target_uuid=f"uuid-{target}", source_name="a",
            flow=Flow.LEVEL, two_way=False, one_way=False, max_size=0, max_files=0, types=(), transform="", require="",
            log="", user="", notify=False, autostart=False, choices=())

    async def confirm(self, permission: Permission, what: What) -> Permission:
        self.told.append(what)
        if self.before_confirmed is not None:
            await self.before_confirmed()
        return permission

    async def record(self, source: Gateway, target: str, service: str, details: dict[str, str]) -> None:
        assert service == "clipboard.Paste"
        if self.full:
            raise RuntimeFailure("the chain is full")
        self.records.append(f"{source.name} {details['outcome']} {target}")


class World:
    def __init__(self, tmp_path: Path) -> None:
        self.time = 0.0
        self.caged = FakeCaged()
        self.stager = MemoryStager(tmp_path / "unused")
        self.core = ClipboardCore(self.stager, images(tmp_path / "unused"), lambda: self.time)
        self.core.handlers(cast(Caged, self.caged))

    async def copy(self, source: Gateway, content: bytes, type_: str = TEXT, **options: int) -> None:
        with memory(content) as descriptor:
            given = {name: Variant("u", value) for name, value in options.items()}
            await self.core.copy(source, call("Copy", type_, 0, given, descriptors=(descriptor,)))

    async def paste(self, target: Gateway, type_: str = TEXT) -> bytes:
        answer = await self.core.paste(target, call("Paste", type_, {}))
        (descriptor,) = answer.descriptors
        try:
            assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
            return os.pread(descriptor, 1 << 21, 0)
        finally:
            os.close(descriptor)

    async def refused(self, target: Gateway, type_: str = TEXT) -> None:
        with pytest.raises(PolicyRefused) as refusal:
            await self.paste(target, type_)
        assert refusal.value.sentence == NOTHING


def call(member: str, *arguments: Any, descriptors: tuple[int, ...] = ()) -> Call:
    return Call(sender=":1.1", path="/", member=member, arguments=list(arguments),
                descriptors=descriptors)


@contextmanager
def memory(content: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("x")
    try:
        os.write(descriptor, content)
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Callable[[World], Awaitable[None]]], World]:
    def run_(test: Callable[[World], Awaitable[None]]) -> World:
        async def in_loop() -> World:
            world = World(tmp_path)
            await test(world)
            return world

        return asyncio.run(in_loop())

    return run_


Run = Callable[[Callable[[World], Awaitable[None]]], World]


def test_what_is_copied_is_pasted_once(run: Run) -> None:
    async def test(world: World) -> None:
        await world.copy(ALPHA, b"hello")
        assert await world.paste(BETA) == b"hello"
        await world.refused(BETA)

    caged = run(test).caged
    assert caged.asked == [("uuid-alpha", "beta"), ("uuid-beta", "beta")]
    assert caged.askers == ["uuid-beta", "uuid-beta"], "each spends what it may ask itself"
    assert caged.records == ["alpha is offered ", "alpha is pasted uuid-beta"]
    assert (caged.told[0].size, caged.told[0].types, caged.told[0].lines) == (5, ("text/plain",), ("5 bytes of text",))


def test_m40_what_is_copied_while_somebody_is_asked_is_not_what_they_answered(run: Run) -> None:
    async def test(world: World) -> None:
        await world.copy(ALPHA, b"what was asked about")
        world.caged.before_confirmed = lambda: world.copy(ALPHA, b"what came later")
        await world.refused(BETA)
        world.caged.before_confirmed = None
        assert await world.paste(BETA) == b"what came later"

    run(test)


def test_m41_m42_each_paste_has_its_own_clip(run: Run) -> None:
    """Whoever takes its time to read has what it was given, and nothing of a longer one is in a shorter."""

    async def test(world: World) -> None:
        await world.copy(ALPHA, b"a longer clip", pastes=2)
        stalled = await world.core.paste(BETA, call("Paste", "text/plain", {}))
        await world.copy(ALPHA, b"short")
        assert await world.paste(BETA) == b"short"
        assert os.pread(stalled.descriptors[0], 100, 0) == b"a longer clip"
        os.close(stalled.descriptors[0])

    run(test)


def test_m46_of_two_copies_the_one_that_was_asked_for_last_counts(run: Run) -> None:
    """However long it takes to read the first."""

    async def test(world: World) -> None:
        read, held, entered = world.core._read, asyncio.Event(), asyncio.Event()

        async def slowly(source: Gateway, descriptor: int, stager: Stager, most: int) -> bytes:
            content = await read(source, descriptor, stager, most)
            if content == b"first":
                entered.set()
                await held.wait()
            return content

        world.core._read = slowly  # type: ignore[method-assign]
        first = asyncio.ensure_future(world.copy(ALPHA, b"first"))
        await entered.wait()
        await world.copy(BETA, b"second")
        held.set()
        with pytest.raises(TransferFailed, match="something was copied after it"):
            await first
        assert await world.paste(GAMMA) == b"second"

    run(test)


def test_m45_one_paste_is_one_however_many_ask(run: Run) -> None:
    async def test(world: World) -> None:
        await world.copy(ALPHA, b"once")
        outcomes = await asyncio.gather(*(world.paste(BETA) for _ in range(5)), return_exceptions=True)
        assert sum(outcome == b"once" for outcome in outcomes) == 1
        assert sum(isinstance(outcome, PolicyRefused) for outcome in outcomes) == 4

    run(test)


def test_m45_it_goes_with_its_source_also_while_somebody_is_asked(run: Run) -> None:
    async def test(world: World) -> None:
        await world.copy(ALPHA, b"gone")
        (offer,) = world.core._offers.values()

        async def ends() -> None:
            world.core.left(ALPHA.uuid)

        world.caged.before_confirmed = ends
        await world.refused(BETA)
        assert world.core._offers == {}
        assert set(offer.content) == {0}, "wiped"

    run(test)


def test_m45_one_that_ends_while_it_copies_offers_nothing(run: Run) -> None:
    async def test(world: World) -> None:
        world.caged.gone.add(ALPHA.uuid)
        with pytest.raises(NoSuchCage):
            await world.copy(ALPHA, b"late")
        assert world.core._offers == {}

    run(test)


def test_m45_it_expires(run: Run) -> None:
    async def test(world: World) -> None:
        await world.copy(ALPHA, b"brief", seconds=1, pastes=9)
        (offer,) = world.core._offers.values()
        assert offer.expiry is not None
        assert 0 < offer.expiry.when() - asyncio.get_running_loop().time() <= 1
        world.core._end(1000, offer)
        await world.refused(BETA)

    run(test)


def test_each_person_has_one_offer(run: Run) -> None:
    async def test(world: World) -> None:
        await world.copy(ALPHA, b"mine")
        await world.copy(OTHER, b"somebody else's")
        assert await world.paste(BETA) == b"mine"
        await world.refused(BETA)

    run(test)


def test_nothing_offered_is_asked_about_all_the_same(run: Run) -> None:
    """It takes as long, and it costs whoever asks a token of its own."""

    async def test(world: World) -> None:
        await world.refused(BETA)
        assert world.caged.asked == [("uuid-beta", "beta")]

    run(test)


def test_whoever_pastes_cannot_use_up_what_the_source_may_ask(run: Run) -> None:
    async def test(world: World) -> None:
        await world.copy(ALPHA, b"x", pastes=100)
        for _ in range(CLIP_BURST):
            await world.paste(BETA)
        for _ in range(50):
            with pytest.raises(PolicyRefused, match="asks too often"):
                await world.paste(BETA)
        assert len(world.caged.asked) == CLIP_BURST
        assert await world.paste(GAMMA) == b"x"
        world.time += 1
        assert await world.paste(BETA) == b"x"

    run(test)


def test_what_cannot_be_recorded_is_not_pasted_and_not_used_up(run: Run) -> None:
    async def test(world: World) -> None:
        await world.copy(ALPHA, b"x")
        world.caged.full = True
        with pytest.raises(RuntimeFailure):
            await world.paste(BETA)
        world.caged.full = False
        assert await world.paste(BETA) == b"x"

    run(test)


@pytest.mark.parametrize("options", [
    {"pastes": Variant("u", 0)}, {"pastes": Variant("u", 101)}, {"pastes": Variant("s", "1")},
    {"seconds": Variant("u", 3601)}, {"seconds": Variant("t", 1)}, {"more": Variant("u", 1)},
])
def test_m12_options_in_their_bounds(run: Run, options: dict[str, Variant]) -> None:
    async def test(world: World) -> None:
        with memory(b"x") as descriptor, pytest.raises(UsageError):
            await world.core.copy(ALPHA, call("Copy", "text/plain", 0, options, descriptors=(descriptor,)))

    run(test)


@pytest.mark.parametrize("kind", ["a directory", "a pipe", "a socket", "write-only"])
def test_what_is_no_file_is_refused(run: Run, tmp_path: Path, kind: str) -> None:
    async def test(world: World) -> None:
        makers: dict[str, Callable[[], list[int]]] = {
            "a directory": lambda: [os.open(tmp_path, os.O_RDONLY)], "a pipe": lambda: list(os.pipe()),
            "a socket": lambda: [socket.socket().detach()],
            "write-only": lambda: [os.open(tmp_path / "x", os.O_WRONLY | os.O_CREAT)],
        }
        made = makers[kind]()
        try:
            with pytest.raises((TransferFailed, CageError)):
                await world.core.copy(ALPHA, call("Copy", "text/plain", 0, {}, descriptors=(made[0],)))
        finally:
            for descriptor in made:
                os.close(descriptor)
        assert world.core._offers == {}

    run(test)


# --- images ----------------------------------------------------------------------------------------------------------
def test_an_image_is_pasted_as_the_cores(run: Run) -> None:
    async def test(world: World) -> None:
        await world.copy(ALPHA, png(31, 17, before=chunk(b"tEXt", b"Comment\0who made it")), IMAGE)
        assert await world.paste(BETA, IMAGE) == reencoded(png(31, 17))
        await world.refused(BETA, IMAGE)

    (told,) = run(test).caged.told
    assert (told.types, told.lines, told.size) == (
        ("image/png",), ("an image of 31 by 17",), len(reencoded(png(31, 17))))


def test_who_wants_another_type_hears_what_he_hears_where_there_is_nothing(run: Run) -> None:
    """And so is policy asked: an offer of another type is none."""
    async def test(world: World) -> None:
        await world.copy(ALPHA, png(2, 2), IMAGE)
        await world.refused(BETA, TEXT)
        assert await world.paste(BETA, IMAGE) == reencoded(png(2, 2))
        await world.copy(ALPHA, b"text")
        await world.refused(BETA, IMAGE)
        assert await world.paste(BETA) == b"text"

    assert run(test).caged.asked == [
        ("uuid-beta", "beta"), ("uuid-alpha", "beta"), ("uuid-beta", "beta"), ("uuid-alpha", "beta")]


@pytest.mark.parametrize(("content", "says"), [
    (b"text", "the clip is no PNG"), (png(2, 2)[:-1], "the clip is a PNG that is cut off"),
    (bytes(IMAGE_BYTES_MAX + 1), f"the clip has more than {IMAGE_BYTES_MAX} bytes"),
])
def test_what_is_no_image_is_not_offered(run: Run, content: bytes, says: str) -> None:
    async def test(world: World) -> None:
        with pytest.raises(TransferFailed) as refused:
            await world.copy(ALPHA, content, IMAGE)
        assert refused.value.sentence == says
        await world.refused(BETA, IMAGE)

    run(test)


def test_a_cage_has_one_image_compressed_at_a_time_and_holds_up_no_other_for_long(run: Run) -> None:
    async def test(world: World) -> None:
        first = asyncio.ensure_future(world.copy(ALPHA, png(512, 512), IMAGE))
        await asyncio.sleep(0)
        with pytest.raises(TransferFailed, match="an image is being copied already"):
            await world.copy(ALPHA, png(2, 2), IMAGE)
        await world.copy(GAMMA, png(3, 3), IMAGE)
        await first

    run(test)


def test_a_cage_that_floods_with_images_is_refused_and_can_still_copy_text(run: Run) -> None:
    async def test(world: World) -> None:
        for _ in range(IMAGE_BURST):
            await world.copy(ALPHA, png(2, 2), IMAGE)
        with pytest.raises(PolicyRefused, match="asks too often"):
            await world.copy(ALPHA, png(2, 2), IMAGE)
        await world.copy(ALPHA, b"text")
        await world.copy(BETA, png(2, 2), IMAGE)
        world.time += 1 / IMAGES_PER_SECOND
        await world.copy(ALPHA, png(2, 2), IMAGE)
        world.core.left(ALPHA.uuid)
        await world.copy(ALPHA, png(2, 2), IMAGE)

    run(test)


def test_one_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    def endless(_source: int, _target: int, _size: int) -> tuple[int, str]:
        while True:
            pass

    async def in_loop() -> None:
        world = World(tmp_path)
        world.core._images = MemoryStager(tmp_path / "unused", seconds=0.2, copier=endless)
        with pytest.raises(TransferFailed, match=r"the clip could not be read within"):
            await world.copy(ALPHA, png(2, 2), IMAGE)
        world.core._images = images(tmp_path / "unused")
        await world.copy(ALPHA, png(2, 2), IMAGE)

    asyncio.run(in_loop())


# --- what is pasted is lent ------------------------------------------------------------------------------------------
def test_whoever_keeps_what_was_pasted_keeps_nothing_by_it(run: Run) -> None:
    """Its pages are the core's, and would be for as long as a descriptor of them is open anywhere."""
    kept: list[int] = []

    async def test(world: World) -> None:
        world.core._lent = Lent(CLIPS_LENT_BYTES, seconds=0.2)
        await world.copy(ALPHA, b"x" * 5000)
        kept.extend((await world.core.paste(BETA, call("Paste", TEXT, {}))).descriptors)
        assert os.fstat(kept[0]).st_size == 5000
        await asyncio.sleep(0.5)
        assert (os.fstat(kept[0]).st_size, os.fstat(kept[0]).st_blocks) == (0, 0)
        await world.copy(ALPHA, b"y" * 5000)
        kept.extend((await world.core.paste(BETA, call("Paste", TEXT, {}))).descriptors)
        world.core.left(BETA.uuid)
        assert os.fstat(kept[1]).st_blocks == 0

    run(test)
    for descriptor in kept:
        os.close(descriptor)


def test_a_cage_that_has_had_too_much_uses_no_paste_up(run: Run) -> None:
    async def test(world: World) -> None:
        world.core._lent = Lent(6000)
        await world.copy(ALPHA, b"x" * 5000, pastes=2)
        assert len(await world.paste(BETA)) == 5000
        with pytest.raises(RuntimeFailure, match="has been handed 5000 bytes"):
            await world.paste(BETA)
        assert len(await world.paste(GAMMA)) == 5000

    assert run(test).caged.records == ["alpha is offered ", "alpha is pasted uuid-beta", "alpha is pasted uuid-gamma"]
