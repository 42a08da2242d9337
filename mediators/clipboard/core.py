# SPDX-License-Identifier: LGPL-2.1-or-later
"""The core half: holds what one cage of a person has offered, in memory, until another has pasted it.

Law of this room: there is one offer a person, that of the last copy, by when it was asked for; what a person was asked
about or policy has decided on is that offer and no later one.  What is pasted is a copy of its own, which nobody can
change and the core takes back.  A cage that may not paste learns nothing, not even whether there is an offer.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cage_runtime import log
from cage_runtime.bucket import Bucket, Rate
from cage_runtime.bus import Answer, Call
from cage_runtime.errors import CageError, NoSuchCage, PolicyRefused, TransferFailed, WrongState
from cage_runtime.model import (
    CLIP_BURST,
    CLIP_BYTES_MAX,
    CLIPS_LENT_BYTES,
    CLIPS_PER_SECOND,
    IMAGE_BURST,
    IMAGE_BYTES_MAX,
    IMAGE_SECONDS,
    IMAGES_PER_SECOND,
)
from mediators import corehalf, wire
from mediators.clipboard import image, protocol
from mediators.clipboard.text import clean
from mediators.lent import Lent
from mediators.places import Places
from mediators.stage import Stager
from mediators.wire import Caged, Gateway, What

LOG = logging.getLogger(__name__)
CLIPS = Rate(burst=CLIP_BURST, per_second=CLIPS_PER_SECOND)
IMAGES = Rate(burst=IMAGE_BURST, per_second=IMAGES_PER_SECOND)


@dataclass(kw_only=True, slots=True, eq=False)
class Offer:
    """What can be pasted."""

    number: int
    """By which of two copies the later one is known: when they were asked for."""
    source: Gateway
    type: str
    content: bytearray
    sha256: str
    pastes: int
    """How often it still can be."""
    expiry: asyncio.TimerHandle | None = None

    @property
    def shown(self) -> str:
        """What a person is shown of it."""
        if self.type == protocol.TEXT:
            return f"{len(self.content)} bytes of text"
        return "an image of {} by {}".format(*image.size_of(self.content))

    def wipe(self) -> None:
        if self.expiry is not None:
            self.expiry.cancel()
        self.content[:] = bytes(len(self.content))
        self.pastes = 0


class MemoryStager(Stager):
    """As Stager, with copies in memory."""

    def _unnamed(self) -> int:
        return os.memfd_create("clip", os.MFD_CLOEXEC)


def images(directory: Path) -> Stager:
    """The one for images."""
    return MemoryStager(directory, seconds=IMAGE_SECONDS, copier=image.copy)


class Rates:
    """How often each cage whose gateway stands may ask."""

    def __init__(self, rate: Rate, clock: Callable[[], float]) -> None:
        self._rate, self._clock = rate, clock
        self._buckets: dict[str, Bucket] = {}

    def take(self, uuid: str) -> None:
        """PolicyRefused where it asks too often."""
        now = self._clock()
        if not self._buckets.setdefault(uuid, Bucket(self._rate, now)).take(now):
            raise PolicyRefused("this cage asks too often; try again in a moment")

    def forget(self, uuid: str) -> None:
        self._buckets.pop(uuid, None)


class ClipboardCore:
    def __init__(self, texts: Stager, images: Stager, clock: Callable[[], float]) -> None:
        """What is copied is staged by one of the two, of which that for `images` compresses them again."""
        self._texts, self._images = texts, images
        self._image_places, self._image_turn = Places(), asyncio.Lock()
        self._lent = Lent(CLIPS_LENT_BYTES)
        self._offers: dict[int, Offer] = {}
        """By the uid of the person."""
        self._numbers = itertools.count()
        self._copies, self._pastes, self._image_copies = Rates(CLIPS, clock), Rates(CLIPS, clock), Rates(IMAGES, clock)
        self._caged: Caged

    def handlers(self, caged: Caged) -> Mapping[str, corehalf.Handler]:
        self._caged = caged
        return {"Copy": self.copy, "Paste": self.paste}

    # --- copy ------------------------------------------------------------------------------------------------
    async def copy(self, source: Gateway, call: Call) -> Answer:
        number = next(self._numbers)
        untrusted_type, _index, untrusted_options = call.arguments
        type_ = protocol.check_type(untrusted_type)
        options = protocol.copy_options(untrusted_options)
        descriptor = wire.only_descriptor(call, 1)
        self._copies.take(source.uuid)
        content = await self._made_of(type_, source, descriptor)
        offer = Offer(number=number, source=source, type=type_, content=bytearray(content), pastes=options.pastes,
                      sha256=hashlib.sha256(content).hexdigest())
        await self._record(offer, "", "is offered")
        # Last, and nothing is waited for after it: an instance that ends from now on is heard of after this.
        self._offer(await self._caged.person(source.uuid), offer, options.seconds)
        return Answer()

    async def _made_of(self, type_: str, source: Gateway, descriptor: int) -> bytes:
        """What can be pasted of what was copied; TransferFailed where that is nothing."""
        if type_ == protocol.IMAGE:
            self._image_copies.take(source.uuid)
            with self._image_places.take(source.uuid, 1, lambda: TransferFailed("an image is being copied already")):
                async with self._image_turn:  # which takes a processor: one after the other, and each cage has one
                    return await self._read(source, descriptor, self._images, IMAGE_BYTES_MAX)
        content = clean(await self._read(source, descriptor, self._texts, CLIP_BYTES_MAX)).encode()
        if not content:
            raise TransferFailed("the clip has nothing in it but what is stripped")
        return content

    async def _read(self, source: Gateway, descriptor: int, stager: Stager, most: int) -> bytes:
        try:
            staged = await stager.stage(descriptor, source.uuid, most)
        except PolicyRefused as error:
            raise TransferFailed(f"the clip has more than {most} bytes") from error
        except TransferFailed as error:
            raise TransferFailed(f"the clip {error.sentence}") from error
        try:
            return os.pread(staged.descriptor, staged.size, 0)
        finally:
            staged.discard()

    def _offer(self, person: int, offer: Offer, seconds: int) -> None:
        before = self._offers.get(person)
        if before is not None and before.number > offer.number:
            raise TransferFailed("something was copied after it, and stays")
        if before is not None:
            before.wipe()
        self._offers[person] = offer
        offer.expiry = asyncio.get_running_loop().call_later(seconds, self._end, person, offer)

    def _end(self, person: int, offer: Offer) -> None:
        """It cannot be pasted any more."""
        offer.wipe()
        if self._offers.get(person) is offer:
            del self._offers[person]

    def left(self, uuid: str) -> None:
        """The instance has ended, and what it has offered with it."""
        for person, offer in list(self._offers.items()):
            if offer.source.uuid == uuid:
                self._end(person, offer)
        self._lent.left(uuid)
        for rates in (self._copies, self._pastes, self._image_copies):
            rates.forget(uuid)

    # --- paste -----------------------------------------------------------------------------------------------
    async def paste(self, target: Gateway, call: Call) -> Answer:
        untrusted_type, untrusted_options = call.arguments
        type_ = protocol.check_type(untrusted_type)
        wire.no_options(untrusted_options)
        self._pastes.take(target.uuid)
        person = await self._caged.person(target.uuid)
        offer = self._offers.get(person)
        if offer is not None and offer.type != type_:
            offer = None
        try:
            await self._decided(offer, target, person)
        except (PolicyRefused, NoSuchCage, WrongState) as error:  # the record has why; no log that a cage could fill
            raise protocol.nothing() from error
        if offer is None:
            raise protocol.nothing()
        return self._given(target, person, offer)

    async def _decided(self, offer: Offer | None, target: Gateway, person: int) -> None:
        """PolicyRefused where there is no offer that policy lets the target have.

        Where there is none at all, policy is asked all the same, about the target itself: it takes as long.
        """
        request = wire.new_request()
        source = offer.source.uuid if offer is not None else target.uuid
        permission = await self._caged.decide(source, protocol.SERVICE, "", target.name, request, asker=target.uuid)
        if offer is None or permission.target_uuid != target.uuid:
            raise protocol.nothing()
        what = What(size=len(offer.content), types=(offer.type,), sha256=offer.sha256, lines=(offer.shown,))
        confirmed = await self._caged.confirm(permission, what)
        self._check_current(person, offer)
        if confirmed.target_uuid != target.uuid:
            raise protocol.nothing()
        self._lent.check(target.uuid, len(offer.content))
        await self._record(offer, target.uuid, "is pasted", request)  # what cannot be recorded is not done
        self._check_current(person, offer)

    def _check_current(self, person: int, offer: Offer) -> None:
        """PolicyRefused where it is not what can be pasted now: something was copied since, or it was pasted."""
        if self._offers.get(person) is not offer or offer.pastes < 1:
            raise protocol.nothing()

    def _given(self, target: Gateway, person: int, offer: Offer) -> Answer:
        descriptor = self._lent.lend(target.uuid, _copied(offer.content))
        offer.pastes -= 1
        if offer.pastes < 1:
            self._end(person, offer)
        return Answer(values=(0,), descriptors=(descriptor,))

    async def _record(self, offer: Offer, target: str, outcome: str, request: str = "") -> None:
        about = {"request": request} if request else {}
        await self._caged.record(offer.source, target, protocol.SERVICE, {
            "outcome": outcome, "size": str(len(offer.content)), "sha256": offer.sha256, **about})


def _copied(content: bytes | bytearray) -> int:
    """A descriptor of a file in memory with a copy of it, the caller's."""
    descriptor = os.memfd_create("clip", os.MFD_CLOEXEC)
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest):]
    rest.release()
    return descriptor


def run(arguments: list[str]) -> int:
    """`cage-mediator clipboard [--config FILE]`; ends when the system bus does, with the status of that error."""
    log.set_up("%(name)s: %(message)s")
    try:
        if not corehalf.begin("clipboard", corehalf.configured(arguments)):
            return 0
        asyncio.run(_serve())
    except CageError as error:
        LOG.critical("%s", error.sentence)
        return error.exit_status
    return 0


async def _serve() -> None:
    nowhere = Path("/dev/shm")  # noqa: S108 - not written
    core = ClipboardCore(MemoryStager(nowhere), images(nowhere), asyncio.get_running_loop().time)
    await corehalf.serve_until_bus_ends("clipboard", protocol.SERVICE, core.handlers, left=core.left)
