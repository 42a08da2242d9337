# SPDX-License-Identifier: LGPL-2.1-or-later
"""caged on the system bus for the core halves of mediators: org.cageruntime.Core1.Mediation, as its XML has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dbus_fast import Variant

from cage_runtime.bus import Answer, Call, Handler, Service, described
from cage_runtime.daemon.mediation import Asked, Permission
from cage_runtime.daemon.notifications import Wanted
from cage_runtime.daemon.options import options, text
from cage_runtime.daemon.prompts import Waiter
from cage_runtime.daemon.service import RESOURCE, Parts, channel
from cage_runtime.daemon.settling import Settling
from cage_runtime.daemon.what import What
from cage_runtime.errors import NotAuthorized, UsageError
from cage_runtime.model import CORE_PATH
from cage_runtime.text import escape


class MediationService:
    """org.cageruntime.Core1.Mediation, for the core halves of mediators alone."""

    INTERFACE = "org.cageruntime.Core1.Mediation"

    def __init__(self, parts: Parts, standing: Callable[[], list[tuple[str, str, str]]]) -> None:
        self._parts, self._standing = parts, standing
        self._settling = Settling(parts.manager.chain)
        handlers: dict[str, Handler] = {
            "Gateways": self._gateways, "Decide": self._decide, "Confirm": self._confirm,
            "Withdraw": self._withdraw, "Show": self._show, "Unshow": self._unshow,
            "Deliver": self._deliver, "Dispose": self._dispose, "Person": self._person,
            "Services": self._services,
            "Record": self._record, "Receipt": self._receipt,
            "RecordMalformed": self._record_malformed,
        }
        noted = {member: self._noted(handler) for member, handler in handlers.items() if member != "Gateways"}
        parts.bus.serve(CORE_PATH, Service(interface=described(RESOURCE, self.INTERFACE), handlers=handlers | noted))

    def _noted(self, handler: Handler) -> Handler:
        """`handler`, whose refusals are recorded: a core half asks for what it may not where somebody has got hold of
        it, and only there."""

        async def handled(call: Call) -> Answer:
            try:
                return await handler(call)
            except NotAuthorized as refusal:
                await self._parts.access.note_refused(call, refusal)
                raise

        return handled

    def up(self, name: str, uuid: str, address: str) -> None:
        self._tell("GatewayUp", "sss", (name, uuid, address))

    def down(self, uuid: str) -> None:
        self._tell("GatewayDown", "s", (uuid,))

    def changed(self, uuid: str, *, runs: bool) -> None:
        """The cage runs, or is gone: what waits for it may be looked at again."""
        self._tell("CageChanged", "sb", (uuid, runs))

    def answered(self, waiter: Waiter) -> None:
        """Have whoever waits confirm again."""
        self._parts.bus.emit(CORE_PATH, self.INTERFACE, "Answered", "s", (waiter.request,), to=waiter.sender)

    def acted(self, sender: str, number: int, action: str) -> None:
        """Tell whoever showed the notification what a person did with it."""
        self._parts.bus.emit(CORE_PATH, self.INTERFACE, "Acted", "us", (number, action), to=sender)

    def _tell(self, member: str, signature: str, arguments: tuple[str | bool, ...]) -> None:
        for connection in self._parts.halves.connections():
            self._parts.bus.emit(CORE_PATH, self.INTERFACE, member, signature, arguments, to=connection)

    async def _gateways(self, call: Call) -> Answer:
        self._parts.halves.here(await self._parts.authorization.mediator(call.sender), call.sender)
        return Answer(values=([list(entry) for entry in self._standing()],))

    async def _asked(self, call: Call) -> Asked:
        """The request that the first five arguments say."""
        source, service, argument, target, request = call.arguments[:5]
        return Asked(mediator=await self._mediator_of(call, service), source=source, service=service,
                     argument=argument, target=target, request=request)

    async def _mediator_of(self, call: Call, service: str) -> str:
        """The mediator that calls, about a service that is its own."""
        mediator = await self._parts.authorization.mediator(call.sender)
        if service.partition(".")[0] != mediator:
            raise NotAuthorized(f"{escape(service, limit=80)} is not for the mediator {mediator} to ask about")
        return mediator

    async def _decide(self, call: Call) -> Answer:
        asked = replace(await self._asked(call), asker=call.arguments[5])
        return _permission(await self._settling.after(lambda: self._parts.mediation.decide(asked)))

    async def _confirm(self, call: Call) -> Answer:
        asked, what = await self._asked(call), options(call.arguments[5], What)
        return _permission(await self._settling.after(lambda: self._parts.mediation.confirm(asked, what, call.sender)))

    async def _withdraw(self, call: Call) -> Answer:
        await self._parts.authorization.mediator(call.sender)
        self._parts.mediation.withdraw(call.sender, call.arguments[0])
        return Answer()

    async def _deliver(self, call: Call) -> Answer:
        mediator = await self._parts.authorization.mediator(call.sender)
        ticket, arguments, indices = call.arguments
        if list(indices) != list(range(len(call.descriptors))):
            raise UsageError("Deliver takes each of its descriptors once, and in their order")
        return channel(await self._parts.mediation.deliver(mediator, ticket, arguments, call.descriptors))

    async def _dispose(self, call: Call) -> Answer:
        mediator = await self._parts.authorization.mediator(call.sender)
        cage, ticket = await self._parts.mediation.dispose(mediator, *call.arguments)
        return Answer(values=(cage.name, cage.uuid, ticket))

    async def _person(self, call: Call) -> Answer:
        await self._parts.authorization.mediator(call.sender)
        return Answer(values=(self._parts.mediation.person(*call.arguments),))

    async def _services(self, call: Call) -> Answer:
        await self._parts.authorization.mediator(call.sender)
        rows = self._parts.mediation.services(*call.arguments)
        return Answer(values=([list(row) for row in rows],))

    async def _show(self, call: Call) -> Answer:
        mediator = await self._parts.authorization.mediator(call.sender)
        ticket, notification = call.arguments
        cage = self._parts.mediation.shown(mediator, ticket)
        return Answer(values=(self._parts.notifications.show(cage, options(notification, Wanted), call.sender),))

    async def _unshow(self, call: Call) -> Answer:
        await self._parts.authorization.mediator(call.sender)
        source, number = call.arguments
        self._parts.notifications.close(source, number, call.sender)
        return Answer()

    async def _record(self, call: Call) -> Answer:
        mediator = await self._mediator_of(call, call.arguments[3])
        await self._settling.after(lambda: self._parts.mediation.note(mediator, *call.arguments))
        return Answer()

    async def _receipt(self, call: Call) -> Answer:
        mediator = await self._mediator_of(call, call.arguments[3])
        receipt = await self._settling.after(lambda: self._parts.mediation.receipt(mediator, *call.arguments))
        return Answer(values=(receipt,))

    async def _record_malformed(self, call: Call) -> Answer:
        mediator = await self._mediator_of(call, call.arguments[2])
        await self._settling.after(lambda: self._parts.mediation.malformed(mediator, *call.arguments))
        return Answer()


def _permission(permission: Permission) -> Answer:
    decision, target, bounds = permission.decision, permission.target, permission.decision.parameters
    words = {
        "action": decision.action.value, "target": decision.target, "target-uuid": target.uuid if target else "",
        "source-name": permission.source.name, "flow": decision.flow.value if decision.flow else "",
        "transform": bounds.transform, "require": bounds.require, "log": bounds.log or "", "user": bounds.user,
        "ticket": permission.ticket,
    }
    flags = {"two-way": decision.two_way, "one-way": bounds.one_way, "notify": bounds.notify,
             "autostart": bounds.autostart}
    return Answer(values=({
        **text(words), **{key: Variant("b", flag) for key, flag in flags.items()},
        "max-size": Variant("t", bounds.max_size or 0), "max-files": Variant("u", bounds.max_files or 0),
        "types": Variant("as", list(bounds.types)), "choices": Variant("as", list(decision.choices)),
    },))
