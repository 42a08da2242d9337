# SPDX-License-Identifier: LGPL-2.1-or-later
"""D-Bus for the core's processes and the cage halves: the one module that knows the library (dbus-fast).

Law of this room: what arrives is checked against the interface description before any of our code sees it; a
descriptor that nobody expects or waits for any more is closed, one that is expected is close-on-exec from here on and
closed when its handler ends (a handler that keeps one duplicates it); one that goes out is held until it has gone;
who calls is what the bus daemon says, never the message.

`@method` services of the library hide the sender, answer with tracebacks and keep every descriptor, and its replies
share what is theirs, so messages and replies are dispatched here, from the XML of cage_runtime/resources.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from dbus_fast import AuthError, BusType, Message, MessageType, RequestNameReply, Variant
from dbus_fast.auth import UID_NOT_SPECIFIED, AuthExternal
from dbus_fast.constants import MessageFlag, NameFlag

from cage_runtime import handed
from cage_runtime.errors import (
    CageError,
    CutOff,
    NobodyAnswers,
    NoSystemBus,
    RuntimeFailure,
    Unanswered,
    UsageError,
    from_bus,
)
from cage_runtime.listening import Connection, Pace
from cage_runtime.model import GIVING_UP_SECONDS
from cage_runtime.objects import OBJECT_MANAGER, Answer, Call, Handler, Objects, Service, Sight, Value, described
from cage_runtime.shares import Shares, Whose

LOG = logging.getLogger(__name__)

DBUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
PROPERTIES = f"{DBUS[0]}.Properties"
_ABSENT, _CUT_OFF = (f"{DBUS[0]}.Error.ServiceUnknown", f"{DBUS[0]}.Error.NameHasNoOwner"), f"{DBUS[0]}.Error.NoReply"
KNOWN_CALLERS = 1024
"""Callers whose uid is remembered; unique names never come again during a bus's life."""
__all__ = ["DBUS", "Answer", "Bus", "Call", "Handler", "Service", "Value", "Variant", "described"]


@dataclass(kw_only=True, slots=True)
class _Caller:
    """Whose call is being answered: the connection, and whom it counts for."""

    sender: str
    whose: Whose


@dataclass(kw_only=True, slots=True)
class _Reply:
    """What a call waits for, and the descriptors that came with it."""

    arrival: asyncio.Future[Message]
    descriptors: tuple[int, ...] = ()

    def take(self) -> tuple[int, ...]:
        taken, self.descriptors = self.descriptors, ()
        return taken


class _Anonymous(AuthExternal):
    """ANONYMOUS, and descriptors with it, which the library's own does not negotiate."""

    def _authentication_start(self, negotiate_unix_fd: bool = False) -> str:
        self.negotiate_unix_fd = negotiate_unix_fd
        return "AUTH ANONYMOUS"


class Bus:
    """One connection; objects are served by path, calls are made by `call`."""

    malformed: Callable[[UsageError], Awaitable[None]] | None = None
    """Awaited when a call is about to be refused for being malformed; must not raise."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._loop = connection, asyncio.get_running_loop()
        self._replies: dict[int, _Reply] = {}
        self._outgoing: deque[tuple[Message, contextlib.ExitStack]] = deque()
        self._sending: contextlib.ExitStack | None = None
        self._objects = Objects()
        self._uids: OrderedDict[str, int] = OrderedDict()
        self._tasks: dict[asyncio.Task[None], _Caller] = {}
        self._shares = Shares()
        self._awaited: dict[tuple[str, bool], set[asyncio.Future[None]]] = {}
        """Who waits until which name has an owner, or has none."""
        self._follows_callers = False
        self._listeners: list[Callable[[Message], None]] = []
        self._owns = False
        self._giving_up = False
        connection.add_message_handler(self._on_message)
        self._end = self._loop.create_task(self._until_end())

    @classmethod
    async def connect(cls, address: str | None = None, *, anonymous: bool = False) -> Bus:
        """A connection to the bus at `address`, None for the system bus; NoSystemBus where none answers.

        The kernel's credentials alone say who we are, so that it works from inside a user namespace too.  The bus
        daemon refuses uids that its host's passwd does not know: from a cage to its gateway, be `anonymous`.
        """
        auth = _Anonymous() if anonymous else AuthExternal(uid=UID_NOT_SPECIFIED)
        connection = Connection(bus_address=address, bus_type=BusType.SYSTEM, auth=auth, negotiate_unix_fd=True)
        try:
            await connection.connect()
        except (OSError, AuthError, EOFError) as error:
            where = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/dbus/system_bus_socket")
            help_ = "" if address else "; start it: dbus-daemon --system"
            raise NoSystemBus(f"no bus answers at {where} ({error}){help_}") from error
        if not str(connection.unique_name).startswith(":"):  # the library takes the text of a refusal for the name
            connection.disconnect()
            raise NoSystemBus(f"the bus at {address} takes no connection: {connection.unique_name}")
        return cls(connection)

    def disconnect(self) -> None:
        self._connection.disconnect()

    @property
    def connected(self) -> bool:
        return bool(self._connection.connected)

    async def closed(self) -> None:
        """Returns when the connection has ended, for whatever reason."""
        await asyncio.shield(self._end)

    async def _until_end(self) -> None:
        try:
            await self._connection.wait_for_disconnect()  # type: ignore[no-untyped-call]
        except (OSError, EOFError) as error:
            LOG.debug("bus connection ended: %s", error)
        finally:
            while self._outgoing:
                self._outgoing.pop()[1].close()
            for reply in self._replies.values():
                if not reply.arrival.done():
                    reply.arrival.set_exception(EOFError())
            if self._follows_callers:
                self._left(None)

    async def own(self, name: str) -> None:
        """Take the well-known `name`; RuntimeFailure where the bus refuses it or another process has it."""
        try:
            answer = await self.call(*DBUS, "RequestName", "su", (name, NameFlag.DO_NOT_QUEUE.value))
        except RuntimeFailure as error:
            raise RuntimeFailure(f"the bus refuses {name} to us: {error.sentence}; install its policy") from error
        if answer.values[0] not in (RequestNameReply.PRIMARY_OWNER.value, RequestNameReply.ALREADY_OWNER.value):
            raise RuntimeFailure(f"{name} is owned by another process; only one can run on a bus")
        self._owns = True

    async def release(self, name: str) -> None:
        """Give the well-known `name` up: what is called by it from now on is for whoever owns it next."""
        self._owns = False  # what we say of our own accord would be for everybody from now on
        await self.call(*DBUS, "ReleaseName", "s", (name,))

    async def finish(self, seconds: float) -> None:
        """Answer what is being asked; what is not answered after `seconds` is cancelled, and told so with CutOff."""
        deadline = self._loop.time() + seconds
        while self._tasks and (left := deadline - self._loop.time()) > 0:
            await asyncio.wait(self._tasks, timeout=left)
        self._giving_up = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=GIVING_UP_SECONDS)
        if self.connected:
            # In order: once this is answered, whatever went before has gone out.
            await self.call(*DBUS, "GetId", seconds=GIVING_UP_SECONDS)

    # --- calling ---------------------------------------------------------------------------------------------
    async def call(self, destination: str, path: str, interface: str, member: str, signature: str = "",
                   arguments: tuple[Value, ...] = (), descriptors: tuple[int, ...] = (),
                   seconds: float | None = 60.0, start: bool = True) -> Answer:
        """Call a method and return its results; the caller owns the descriptors among them.

        An error reply is raised as the CageError that its name stands for; Unanswered where none comes in time, CutOff
        where none can come any more.  Where nobody owns the name, whoever the bus knows for it is started, unless
        `start` is False.
        """
        message = Message(destination=destination, path=path, interface=interface, member=member, signature=signature,
                          body=list(arguments), serial=self._connection.next_serial(),
                          flags=MessageFlag.NONE if start else MessageFlag.NO_AUTOSTART)
        reply = self._replies[message.serial] = _Reply(arrival=self._loop.create_future())
        try:
            async with asyncio.timeout(seconds):
                self._send(message, descriptors)
                answer = await reply.arrival
            if answer.message_type is MessageType.ERROR:
                raise _error(answer, str(arguments[0]) if destination == DBUS[0] and arguments else destination)
            return Answer(values=tuple(answer.body), descriptors=reply.take())
        except TimeoutError as error:
            raise Unanswered(f"{destination} did not answer {member} within {seconds:.0f} s") from error
        except EOFError as error:
            raise CutOff(f"the bus went away while {destination} was asked for {member}") from error
        finally:
            # Of a call that was given up, a reply that comes from now on finds nobody; one that has come is here.
            del self._replies[message.serial]
            handed.close(reply.take())

    def _send(self, message: Message, descriptors: tuple[int, ...] = ()) -> None:
        """Send with `descriptors`, which the caller may close at once: the library keeps only their numbers, and by the
        time that a full socket takes them, a number may be another file's."""
        if not self._connection.connected:
            raise EOFError
        with contextlib.ExitStack() as held:
            message.unix_fds = []  # the library's default is one list for all messages
            for descriptor in descriptors:
                message.unix_fds.append(os.dup(descriptor))
                held.callback(os.close, message.unix_fds[-1])
            self._outgoing.append((message, held.pop_all()))
        self._send_next()

    def _send_next(self) -> None:
        """Send what waits, as far as the socket takes it: a message that meets a full one ends the connection."""
        while self._outgoing and self._sending is None and self._writable():
            message, held = self._outgoing.popleft()
            with held:
                sent = self._connection.send(message)
                if not sent.done():
                    self._sending = held.pop_all()
                    sent.add_done_callback(self._sent)

    def _sent(self, sent: asyncio.Future[None]) -> None:
        held, self._sending = self._sending, None
        if held is not None:
            held.close()
        if not sent.cancelled() and sent.exception() is None:
            self._send_next()

    def _writable(self) -> bool:
        """Whether the socket takes something now; where it does not, what waits goes out once it does."""
        end = self._connection._sock
        if not self._connection.connected or end is None:
            return False
        poll = select.poll()
        poll.register(end, select.POLLOUT)
        if poll.poll(0):
            self._loop.remove_writer(end)
            return True
        self._loop.add_writer(end, self._send_next)
        return False

    def emit(self, path: str, interface: str, member: str, signature: str, arguments: tuple[Value, ...], *,
             to: str = "") -> None:
        """A signal for everybody, or for the connection `to` alone.

        For nobody where no name is owned yet: policy, which says who may hear, goes by the sender's name.
        """
        if self._owns and self._connection.connected:
            signal = Message.new_signal(path, interface, member, signature, list(arguments))
            signal.destination = to or None
            self._send(signal)

    def listen(self, listener: Callable[[Message], None]) -> None:
        """`listener` is given every signal that arrives; `match` asks the bus for them."""
        self._listeners.append(listener)

    async def match(self, rule: str) -> None:
        await self.call(*DBUS, "AddMatch", "s", (rule,))

    async def follow_callers(self) -> None:
        """From now on, what is being done for a caller is cancelled when its connection ends."""
        self._follows_callers = True
        await self.match(f"type='signal',sender='{DBUS[0]}',member='NameOwnerChanged'")

    async def has_owner(self, name: str) -> bool:
        answer = await self.call(*DBUS, "NameHasOwner", "s", (name,))
        return bool(answer.values[0])

    async def can_have_owner(self, name: str) -> bool:
        """Whether somebody has the name, or would be started for whoever calls it."""
        if await self.has_owner(name):
            return True
        answer = await self.call(*DBUS, "ListActivatableNames")
        return name in answer.values[0]

    async def uid_of(self, sender: str) -> int:
        """The uid of the connection `sender`, as the bus daemon has it from the kernel."""
        if sender not in self._uids:
            answer = await self.call(*DBUS, "GetConnectionUnixUser", "s", (sender,))
            self._uids[sender] = int(answer.values[0])
            if len(self._uids) > KNOWN_CALLERS:
                self._uids.popitem(last=False)
        return self._uids[sender]

    @asynccontextmanager
    async def ownership(self, name: str, *, owned: bool) -> AsyncIterator[asyncio.Future[None]]:
        """In the block, a future that is done once `name`, of a connection or a well-known one, has an owner, or none,
        as `owned` says; nobody is started for it."""
        rule = f"type='signal',sender='{DBUS[0]}',member='NameOwnerChanged',arg0='{name}'"
        awaited = self._loop.create_future()
        waiting = self._awaited.setdefault((name, owned), set())
        waiting.add(awaited)
        try:
            await self.match(rule)
            if await self.has_owner(name) is owned and not awaited.done():
                awaited.set_result(None)
            yield awaited
        finally:
            waiting.discard(awaited)
            if not waiting:
                self._awaited.pop((name, owned), None)
            if self._connection.connected:
                removal = Message(destination=DBUS[0], path=DBUS[1], interface=DBUS[2], member="RemoveMatch",
                                  signature="s", body=[rule], flags=MessageFlag.NO_REPLY_EXPECTED)
                self._send(removal)

    # --- serving ---------------------------------------------------------------------------------------------
    def hear_by(self, pace: Pace) -> None:
        """From now on, what comes is heard as `pace` says: it may have the other side wait."""
        self._connection.pace = pace

    def share_by(self, share: Callable[[int], int]) -> None:
        """From now on, no more than `share` calls of a uid are answered at once."""
        self._shares.share = share

    def see_by(self, sight: Sight) -> None:
        """From now on, `sight` says which objects that belong to somebody are there for whoever calls."""
        self._objects.sight = sight

    def serve(self, path: str, *services: Service, owner: int | None = None) -> bool:
        """Answer calls to these interfaces of the object `path`, which belongs to the uid `owner` or to nobody, from
        now on; True where the object is new."""
        new, added = self._objects.serve(path, services, owner)
        if added:
            told = {name: service.properties() for name, service in added.items()}
            self._tell_managed(path, "InterfacesAdded", "oa{sa{sv}}", told)
        return new

    def withdraw(self, path: str) -> None:
        gone = self._objects.withdraw(path)
        if gone:
            self._tell_managed(path, "InterfacesRemoved", "oas", gone)

    def manage(self, path: str) -> None:
        """The object `path` has the interface ObjectManager from now on: it knows, and tells of, those below it."""
        self._objects.managing.add(path)

    def _tell_managed(self, path: str, member: str, signature: str, what: Value) -> None:
        for manager in self._objects.managing:
            if path.startswith(manager + "/"):
                self.emit(manager, OBJECT_MANAGER, member, signature, (path, what))

    def properties_changed(self, path: str, interface: str, changed: dict[str, Variant]) -> None:
        self.emit(path, PROPERTIES, "PropertiesChanged", "sa{sv}as", (interface, changed, []))

    def _on_message(self, message: Message) -> bool | None:
        # Now, and not when whoever waits for it has its turn: the library gives a message without descriptors the very
        # list that those of the next message go into.
        received = _take(message)
        if message.message_type is MessageType.METHOD_CALL:
            self._on_call(message, received)
            return True
        if message.message_type is MessageType.SIGNAL:
            handed.close(received)
            self._on_signal(message)
            return None
        reply = self._replies.get(message.reply_serial)
        if reply is None or reply.arrival.done():
            handed.close(received)
            return None
        reply.descriptors = received
        reply.arrival.set_result(message)
        return True

    def _on_signal(self, message: Message) -> None:
        if message.sender == DBUS[0] and message.member == "NameOwnerChanged":
            name, _before, now = message.body
            if self._follows_callers and not now:
                self._left(name)
            for awaited in self._awaited.get((name, bool(now)), ()):
                if not awaited.done():
                    awaited.set_result(None)
        for listener in self._listeners:
            listener(message)

    def _left(self, caller: str | None) -> None:
        """Cancel what is being done for the connection `caller`, or, where it is None, for all."""
        for task, theirs in self._tasks.items():
            if caller in (None, theirs.sender):
                # Soon: what came just now has begun by then, and closes its descriptors.
                self._loop.call_soon(task.cancel)

    def _on_call(self, message: Message, received: tuple[int, ...]) -> None:
        sender = str(message.sender)
        caller = _Caller(sender=sender, whose=self._uids.get(sender, sender))
        try:
            self._shares.take(caller.whose)
        except RuntimeFailure as error:
            handed.close(received)
            self._refuse(message, error)
            return
        task = self._loop.create_task(self._answer(message, received, caller))
        self._tasks[task] = caller
        task.add_done_callback(lambda done: self._answered(done, message))

    async def _answer(self, message: Message, received: tuple[int, ...], caller: _Caller) -> None:
        try:
            service, answer = await self._handled(message, received, caller)
        except CageError as error:
            if isinstance(error, UsageError) and self.malformed:
                await self.malformed(error)
            self._refuse(message, error)
            return
        self._reply(message, service.signature(str(message.member), "out"), answer)

    async def _handled(self, message: Message, received: tuple[int, ...], caller: _Caller) -> tuple[Service, Answer]:
        """What the handler says; by then the descriptors that came with the call are closed."""
        call = Call(sender=str(message.sender), path=str(message.path), member=str(message.member),
                    arguments=message.body, descriptors=received,
                    interactive=bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION))
        try:
            await self._recognise(caller)
            service, handler = await self._objects.find(call, message.interface, message.signature)
            return service, await handler(call)
        finally:
            handed.close(received)

    async def _recognise(self, caller: _Caller) -> None:
        """From here on the call counts for its caller's uid."""
        if self._shares.share is not None and not isinstance(caller.whose, int):
            uid = await self.uid_of(caller.sender)
            self._shares.take(uid)
            self._shares.give_back(caller.whose)
            caller.whose = uid

    def _answered(self, task: asyncio.Task[None], message: Message) -> None:
        self._shares.give_back(self._tasks.pop(task).whose)
        if task.cancelled() and self._giving_up:
            self._refuse(message, CutOff(f"{message.member} was cut off: whoever was at it was told to end; see what "
                                         "came of it, and try again"))
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.critical("%s.%s failed", message.interface, message.member, exc_info=error)
            self._refuse(message, RuntimeFailure(f"{message.member} failed inside the runtime; see its journal"))

    def _reply(self, message: Message, signature: str, answer: Answer) -> None:
        try:
            if self._awaits(message):
                self._send(Message.new_method_return(message, signature, list(answer.values)), answer.descriptors)
        finally:
            for descriptor in answer.descriptors:
                os.close(descriptor)

    def _refuse(self, message: Message, error: CageError) -> None:
        if self._awaits(message):
            self._send(Message.new_error(message, error.bus_error, error.sentence))

    def _awaits(self, message: Message) -> bool:
        """Whether an answer can go out: after its end, the connection's descriptor may be somebody else's."""
        return self._connection.connected and not message.flags & MessageFlag.NO_REPLY_EXPECTED


def _error(reply: Message, name: str) -> CageError:
    """What an error reply stands for; one of the bus daemon's own is about whoever has `name`."""
    if reply.sender == DBUS[0] and reply.error_name in _ABSENT:
        return NobodyAnswers(f"nobody answers to {name}: it is not running, or just being started again; try again")
    if reply.sender == DBUS[0] and reply.error_name == _CUT_OFF:
        return CutOff(f"{name} ended before it answered; try again")
    text = reply.body[0] if reply.body and isinstance(reply.body[0], str) else str(reply.error_name)
    return from_bus(str(reply.error_name), text)


def _take(message: Message) -> tuple[int, ...]:
    """The descriptors that came with `message`, ours to close, and close-on-exec: the library leaves both undone."""
    received = tuple(message.unix_fds)
    message.unix_fds = []
    for descriptor in received:
        os.set_inheritable(descriptor, False)
    return received
