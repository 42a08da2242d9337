# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every mediator's halves need of their buses: caged, the gateways, and knowing whether the other side is there.

Law of this room: who asks is the gateway that a call came through.  A gateway is what caged says it is, and caged is
whoever owns its name on the system bus, never whoever sends a signal that looks like its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary
from xml.etree import ElementTree as ET

from cage_runtime.bus import DBUS, Answer, Bus, Call, Value, Variant, described
from cage_runtime.errors import (
    CageError,
    CutOff,
    NobodyAnswers,
    PolicyRefused,
    RuntimeFailure,
    Unanswered,
    UsageError,
    WrongSignature,
)
from cage_runtime.model import (
    CORE_BUS_NAME,
    CORE_CALLS_AT_ONCE,
    CORE_PATH,
    CORE_RETURN_SECONDS,
    CORE_STARTS_AT_ONCE,
    REQUEST_ID_DIGITS,
    Action,
    Flow,
    ReceiptOutcome,
    check_cage_name,
)
from cage_runtime.text import escape

LOG = logging.getLogger(__name__)

MEDIATION = f"{CORE_BUS_NAME}.Mediation"
ASK_SECONDS = 60.0
"""What caged has for an answer that needs nobody else."""
_STARTING = ("Deliver", "Dispose")
"""Calls that are answered once something has been started."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gateway:
    """The gateway of one instance: its cage's name (for people), its uuid (for decisions), its bus's address."""

    name: str
    uuid: str
    address: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request as caged is asked about it: the instance whose gateway it came through, and what it said."""

    source: str
    service: str
    argument: str
    target: str
    """The target's name, as it was asked for; empty where none was."""
    request: str
    """Its `new_request`."""
    asker: str = ""
    """The instance whose gateway it came through, where that is another than the source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class What:
    """What a request turned out to be, once its core half has looked: the rule's bounds and a person's eyes hold it."""

    size: int = 0
    """Bytes, all together."""
    files: int = 0
    types: tuple[str, ...] = ()
    """MIME types of all that there is, as its content shows them."""
    sha256: str = ""
    lines: tuple[str, ...] = ()
    """What a person is shown of it, untrusted: caged escapes it and cuts it short."""
    operation: str = ""
    """Which of the things that the service does it is, untrusted: an answer that stands is for one of them."""
    receipt: bool = False
    """Whether whoever sends it wants a receipt."""

    def variants(self) -> dict[str, Variant]:
        wanted = {"receipt": Variant("b", True)} if self.receipt else {}
        if self.operation:
            wanted["operation"] = Variant("s", self.operation)
        return wanted | {
            "size": Variant("t", self.size), "files": Variant("u", self.files),
            "types": Variant("as", list(self.types)), "sha256": Variant("s", self.sha256),
            "lines": Variant("as", list(self.lines)),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Permission:
    """What caged permits; where `action` is ask a person is still to be asked, by `Caged.confirm`."""

    asked: Asked
    action: Action
    target: str
    """The name of the target after redirects; "@core"; "@disposable:TEMPLATE"; empty where a person is to choose it."""
    target_uuid: str
    """The instance that the target's name stands for now; empty where it is none."""
    source_name: str
    flow: Flow | None
    """None where there is no target yet."""
    two_way: bool
    one_way: bool
    """The rule says direction=one-way: nothing comes back."""
    max_size: int
    """Bytes that may go at once; 0 where the rule gives no bound of its own."""
    max_files: int
    """Files that may; 0 likewise."""
    types: tuple[str, ...]
    """MIME types that may, with * for any subtype; empty where any."""
    transform: str
    require: str
    log: str
    user: str
    notify: bool
    autostart: bool
    choices: tuple[str, ...]
    """Where a person is to choose the target, the names that may be chosen."""
    ticket: str = ""
    """What caged is shown when this is acted on, within TICKET_SECONDS."""

    @classmethod
    def read(cls, asked: Asked, answer: dict[str, Variant]) -> Permission:
        """As caged, of the same version, has it on the bus."""
        has = {key: variant.value for key, variant in answer.items()}
        return cls(
            asked=asked, action=Action(has["action"]), target=has["target"], target_uuid=has["target-uuid"],
            source_name=has["source-name"], flow=Flow(has["flow"]) if has["flow"] else None, two_way=has["two-way"],
            one_way=has["one-way"], max_size=has["max-size"], max_files=has["max-files"], types=tuple(has["types"]),
            transform=has["transform"], require=has["require"], log=has["log"], user=has["user"],
            notify=has["notify"], autostart=has["autostart"], choices=tuple(has["choices"]), ticket=has["ticket"],
        )


def bus_name(mediator: str) -> str:
    """The name of a mediator's halves on their buses, and that of its interface."""
    return f"org.cageruntime.{mediator.capitalize()}1"


def path(mediator: str) -> str:
    """The one object of a mediator's halves."""
    return f"/org/cageruntime/{mediator.capitalize()}1"


def interface(mediator: str) -> ET.Element:
    """What mediators/NAME/interface.xml describes."""
    return described("interface.xml", bus_name(mediator), of=f"mediators.{mediator}")


def new_request() -> str:
    """The id by which all that is recorded of one request is found together; nobody can guess it."""
    return os.urandom(REQUEST_ID_DIGITS // 2).hex()


class Presence:
    """Whether somebody owns `name` on a bus, followed from the bus daemon's own signals."""

    def __init__(self, bus: Bus, name: str) -> None:
        self.owner = ""
        self._bus, self._name = bus, name
        self._changed = asyncio.Event()
        self._on_change: list[Callable[[], None]] = []

    def on_change(self, what: Callable[[], None]) -> None:
        """Have `what` called each time that somebody new owns the name."""
        self._on_change.append(what)

    async def follow(self, on_change: Callable[[], None] | None = None) -> None:
        """Start to follow; `on_change` is called each time that somebody new owns the name."""
        if on_change is not None:
            self.on_change(on_change)
        self._bus.listen(self._on_signal)
        await self._bus.match(f"type='signal',sender='{DBUS[0]}',member='NameOwnerChanged',arg0='{self._name}'")
        if (await self._bus.call(*DBUS, "NameHasOwner", "s", (self._name,))).values[0]:
            self._set((await self._bus.call(*DBUS, "GetNameOwner", "s", (self._name,))).values[0])

    async def wait(self, seconds: float, *, but: str = "") -> bool:
        """Whether somebody, and somebody else than `but`, owns the name, at the latest after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while self.owner in ("", but):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _on_signal(self, message: Value) -> None:
        if message.sender == DBUS[0] and message.member == "NameOwnerChanged" and message.body[0] == self._name:
            self._set(message.body[2])

    def _set(self, owner: str) -> None:
        changed, self.owner = owner != self.owner, owner
        self._changed.set()
        if owner and changed:
            for what in self._on_change:
                what()


class Caged:
    """caged, as a core half sees it.

    One that ended, or is ending, while it was asked is asked again when it is back: to decide, to record and to start
    a delivery half may each happen twice, because nothing comes of a half whose channel nobody has.  It is waited for
    and not started: a cage must not bring back a core that was stopped.
    """

    def __init__(self, bus: Bus, *, transforms: frozenset[str] = frozenset(),
                 verifiers: frozenset[str] = frozenset()) -> None:
        """`transforms`: those of `transform=` that the core half does, and `verifiers` those of `require=`; what policy
        wants and nobody does is refused."""
        self._bus, self._transforms, self._verifiers = bus, transforms, verifiers
        self.presence = Presence(bus, CORE_BUS_NAME)
        """To be followed before anything is asked."""
        self._waiting: dict[str, asyncio.Event] = {}
        """The requests about which a person is being asked; set once it is time to look again."""
        self._going: set[asyncio.Task[None]] = set()
        self._lanes: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._quick = asyncio.Semaphore(CORE_CALLS_AT_ONCE)
        self._slow = asyncio.Semaphore(CORE_STARTS_AT_ONCE)
        self._on_acted: Callable[[int, str], None] = lambda _id, _action: None
        self._on_cage: Callable[[str, bool], None] = lambda _uuid, _runs: None
        self.presence.on_change(self._look_again)
        bus.listen(self._on_signal)

    def on_acted(self, what: Callable[[int, str], None]) -> None:
        """Have `what` called with a notification's id and what a person clicked of it, "" where it was closed."""
        self._on_acted = what

    def on_cage(self, what: Callable[[str, bool], None]) -> None:
        """Have `what` called with the uuid of each cage that has begun to run, or again, or is gone, and which of them,
        from when `gateways` has been called of the caged that there is."""
        self._on_cage = what

    async def gateways(self) -> list[Gateway]:
        (rows,) = (await self._ask("Gateways")).values
        return [Gateway(name=name, uuid=uuid, address=address) for name, uuid, address in rows]

    async def decide(self, source: str, service: str, argument: str, target: str, request: str, *,
                     asker: str = "") -> Permission:
        """The first look, before anything is read from the cage: may the instance `source` use `service` towards
        `target`?  PolicyRefused where not, with a sentence that is fit for the source.

        `asker` is the instance whose gateway it came through, where that is another than the source.
        """
        asked = Asked(source=source, service=service, argument=argument, target=target, request=request, asker=asker)
        answer = await self._ask("Decide", "ssssss", (source, service, argument, target, request, asker),
                                 lane=asker or source)
        return self._doable(Permission.read(asked, answer.values[0]))

    async def confirm(self, permission: Permission, what: What) -> Permission:
        """The last look, right before it happens: returns once policy, and a person where a rule says ask, permit it
        for what it turned out to be; PolicyRefused otherwise, also where the target is not the instance any more that
        `permission` is about.  Where that leaves the target open, a person chooses it.  The question is withdrawn where
        this is cancelled."""
        asked = permission.asked
        told = what.variants() | {"target": Variant("s", permission.target),
                                  "target-uuid": Variant("s", permission.target_uuid)}
        arguments = (asked.source, asked.service, asked.argument, asked.target, asked.request, told)
        again = self._waiting[asked.request] = asyncio.Event()
        try:
            while True:
                again.clear()
                answer = await self._ask("Confirm", "sssssa{sv}", arguments, lane=asked.asker or asked.source)
                confirmed = Permission.read(asked, answer.values[0])
                if confirmed.action is not Action.ASK:
                    return self._doable(confirmed)
                await again.wait()
        except asyncio.CancelledError:
            self._withdraw(asked.request)
            raise
        finally:
            del self._waiting[asked.request]

    def _doable(self, permission: Permission) -> Permission:
        """It, if all that it asks of a core half can be done; else PolicyRefused."""
        if permission.transform and permission.transform.partition(":")[0] not in self._transforms:
            raise PolicyRefused(f'the policy wants it changed on its way by "{escape(permission.transform)}", which '
                                f"{permission.asked.service} does not do")
        if permission.require and permission.require.partition(":")[0] not in self._verifiers:
            raise PolicyRefused(f'the policy wants it looked at by "{escape(permission.require)}", which '
                                f"{permission.asked.service} does not do")
        return permission

    def _withdraw(self, request: str) -> None:
        """Whoever asked is gone; caged, which forgets its questions when it ends, is told where it is there."""
        going = asyncio.get_running_loop().create_task(self._tell_withdrawn(request))
        self._going.add(going)
        going.add_done_callback(self._going.discard)

    async def _tell_withdrawn(self, request: str) -> None:
        try:
            async with self._quick:
                await self._bus.call(CORE_BUS_NAME, CORE_PATH, MEDIATION, "Withdraw", "s", (request,), start=False)
        except CageError as error:
            LOG.info("not withdrawn: %s: %s", request, escape(error.sentence))

    def _on_signal(self, message: Value) -> None:
        if not self.presence.owner or message.sender != self.presence.owner or message.interface != MEDIATION:
            return
        if message.member == "Answered" and message.signature == "s" and message.body[0] in self._waiting:
            self._waiting[message.body[0]].set()
        elif message.member == "CageChanged" and message.signature == "sb":
            self._on_cage(*message.body)
        elif message.member == "Acted" and message.signature == "us":
            self._on_acted(*message.body)

    def _look_again(self) -> None:
        """There is another caged, which knows of no question."""
        for again in self._waiting.values():
            again.set()

    async def deliver(self, permission: Permission, arguments: list[str], descriptors: Sequence[int], seconds: float, *,
                      once: bool = False) -> int:
        """Start the delivery half in the target of `permission`, a confirmed one, with the one of `descriptors` as its
        standard input; returns its channel, which the caller owns.  TicketExpired where it is too old for that.

        `once`: CutOff is raised, for a half that begins with what it was given before anybody tells it to.
        """
        told = (permission.ticket, arguments, list(range(len(descriptors))))
        answer = await self._ask("Deliver", "sasah", told, tuple(descriptors), seconds, once=once)
        if len(answer.descriptors) != 1:
            raise RuntimeFailure("caged started a delivery and gave no channel to it")
        return answer.descriptors[0]

    async def dispose(self, permission: Permission) -> Permission:
        """The confirmed permission, to @disposable, as one to the cage that was made for it; RuntimeFailure where there
        are as many as there may be."""
        name, uuid, ticket = (await self._ask("Dispose", "s", (permission.ticket,))).values
        return replace(permission, target=name, target_uuid=uuid, ticket=ticket)

    async def person(self, source: str) -> int:
        """The uid of whose cage the running instance `source` is."""
        return int((await self._ask("Person", "s", (source,))).values[0])

    async def services(self, source: str) -> list[tuple[str, str]]:
        """What the running instance `source` may ask for at all, each service with allow or ask; fit for it to hear."""
        (rows,) = (await self._ask("Services", "s", (source,), lane=source)).values
        return [(str(service), str(action)) for service, action in rows]

    async def show(self, permission: Permission, notification: dict[str, Variant]) -> int:
        """Show a notification of the instance that has the confirmed permission to its owner; its id."""
        (number,) = (await self._ask("Show", "sa{sv}", (permission.ticket, notification))).values
        return int(number)

    async def unshow(self, source: str, number: int) -> None:
        """Take the notification away, if it is that instance's."""
        await self._ask("Unshow", "su", (source, number))

    async def record(self, source: Gateway, target: str, service: str, details: dict[str, str]) -> None:
        await self._ask("Record", "ssssa{ss}", (source.uuid, source.name, target, service, details))

    async def receipt(self, source: Gateway, target: str, service: str, details: dict[str, str],
                      outcome: ReceiptOutcome) -> str:
        """As `record`, and the receipt for the source; empty where there can be none."""
        told = (source.uuid, source.name, target, service, details, outcome.value)
        (receipt,) = (await self._ask("Receipt", "ssssa{ss}s", told)).values
        return str(receipt)

    async def record_malformed(self, source: Gateway, service: str, fault: str) -> None:
        await self._ask("RecordMalformed", "ssss", (source.uuid, source.name, service, fault))

    @contextlib.asynccontextmanager
    async def _turn(self, member: str, lane: str) -> AsyncIterator[None]:
        """In the block, a call may be made.  Decisions for one cage that asks, its `lane`, go one after the other, so
        that one that asks much stands in its own way and not in that of others (M13)."""
        async with contextlib.AsyncExitStack() as places:
            if lane:
                await places.enter_async_context(self._lanes.setdefault(lane, asyncio.Lock()))
            await places.enter_async_context(self._slow if member in _STARTING else self._quick)
            yield

    async def _ask(self, member: str, signature: str = "", arguments: tuple[Value, ...] = (),
                   descriptors: tuple[int, ...] = (), seconds: float = ASK_SECONDS, *,
                   once: bool = False, lane: str = "") -> Answer:
        loop, asked = asyncio.get_running_loop(), ""
        deadline = loop.time() + CORE_RETURN_SECONDS
        while await self.presence.wait(deadline - loop.time(), but=asked):
            asked = self.presence.owner
            try:
                async with self._turn(member, lane):
                    return await self._bus.call(CORE_BUS_NAME, CORE_PATH, MEDIATION, member, signature, arguments,
                                                descriptors, seconds, start=False)
            except (CutOff, NobodyAnswers) as error:
                if once or isinstance(error, Unanswered) or not self._bus.connected:
                    raise
                LOG.info("%s is asked again: %s", member, escape(error.sentence))
        raise NobodyAnswers(f"caged was not there within {CORE_RETURN_SECONDS:.0f} s; try again when it runs")


def only_descriptor(call: Call, position: int) -> int:
    """The one descriptor of `call`, whose index is its argument at `position`; the bus made sure that one came."""
    if call.arguments[position] != 0 or len(call.descriptors) != 1:
        raise WrongSignature(f"{call.member} takes one descriptor, of index 0")
    return call.descriptors[0]


def check_target(untrusted_target: str) -> str:
    """The target, the name of a cage, or empty where policy is to name it; else InvalidName."""
    return check_cage_name(untrusted_target) if untrusted_target else ""


def no_options(untrusted_options: dict[str, Value]) -> None:
    """UsageError where there is an option: none is defined yet."""
    for name in untrusted_options:
        raise UsageError(f'there is no option "{escape(name, limit=40)}"')
