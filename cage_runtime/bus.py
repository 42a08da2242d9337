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
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any
from xml.etree import ElementTree as ET

from dbus_fast import AuthError, BusType, Message, MessageType, RequestNameReply, Variant
from dbus_fast.aio import MessageBus
from dbus_fast.auth import UID_NOT_SPECIFIED, AuthExternal
from dbus_fast.constants import MessageFlag, NameFlag

from cage_runtime.errors import (
    CageError,
    CutOff,
    NoSystemBus,
    NotThere,
    PropertyReadOnly,
    ProtocolError,
    RuntimeFailure,
    Unanswered,
    UnknownInterface,
    UnknownMethod,
    UnknownObject,
    UnknownProperty,
    UsageError,
    WrongSignature,
    from_bus,
)
from cage_runtime.model import GIVING_UP_SECONDS

LOG = logging.getLogger(__name__)

DBUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
PROPERTIES, OBJECT_MANAGER = f"{DBUS[0]}.Properties", f"{DBUS[0]}.ObjectManager"
_ABSENT, _CUT_OFF = (f"{DBUS[0]}.Error.ServiceUnknown", f"{DBUS[0]}.Error.NameHasNoOwner"), f"{DBUS[0]}.Error.NoReply"
CALLS_AT_ONCE = 512
"""Calls that are being answered at the same time, over all callers; one more is refused (law 11)."""
KNOWN_CALLERS = 1024
"""Callers whose uid is remembered; unique names never come again during a bus's life."""
INTROSPECTION_TYPE = '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n' \
    '"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'

Value = Any
"""A D-Bus value as the library gives it: the adapter is the one place where it has no narrower type."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One method call: `arguments` match the member's signature, `h` being indices into `descriptors`."""

    sender: str
    path: str
    member: str
    arguments: list[Value]
    descriptors: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a handler returns: values in order of the member's results; `h` are indices into `descriptors`, which
    are closed once they have been sent."""

    values: tuple[Value, ...] = ()
    descriptors: tuple[int, ...] = ()


Handler = Callable[[Call], Awaitable[Answer]]
Guard = Callable[[Call], Awaitable[None]]
"""Raises what whoever calls is to hear instead of an answer."""


@dataclass(kw_only=True, slots=True)
class _Reply:
    """What a call waits for, and the descriptors that came with it."""

    arrival: asyncio.Future[Message]
    descriptors: tuple[int, ...] = ()

    def take(self) -> tuple[int, ...]:
        taken, self.descriptors = self.descriptors, ()
        return taken


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """One interface of one object: a handler for each method of `interface`, and a reader of its properties."""

    interface: ET.Element
    handlers: Mapping[str, Handler] = field(default_factory=dict)
    properties: Callable[[], dict[str, Variant]] = dict

    def signature(self, member: str, direction: str) -> str:
        method = self.interface.find(f"method[@name='{member}']")
        arguments = method.findall("arg") if method is not None else []
        return "".join(a.attrib["type"] for a in arguments if a.attrib["direction"] == direction)


def described(resource: str, interface: str) -> ET.Element:
    """The description of `interface` in the XML file `resource` of cage_runtime.resources."""
    found = _description(resource).find(f"interface[@name='{interface}']")
    if found is None:
        raise KeyError(interface)
    return found


def _description(resource: str) -> ET.Element:
    text = resources.files("cage_runtime.resources").joinpath(resource).read_text(encoding="utf-8")
    return ET.fromstring(text)  # noqa: S314 - our own file


_STANDARD = _description("org.freedesktop.DBus.xml")


class _Anonymous(AuthExternal):
    """ANONYMOUS, and descriptors with it, which the library's own does not negotiate."""

    def _authentication_start(self, negotiate_unix_fd: bool = False) -> str:
        self.negotiate_unix_fd = negotiate_unix_fd
        return "AUTH ANONYMOUS"


class Bus:
    """One connection; objects are served by path, calls are made by `call`."""

    guard: Guard | None = None
    """Awaited before properties and managed objects are told; to ping and to introspect is open to all."""
    malformed: Callable[[UsageError], Awaitable[None]] | None = None
    """Awaited when a call is about to be refused for being malformed; must not raise."""

    def __init__(self, connection: MessageBus) -> None:
        self._connection, self._loop = connection, asyncio.get_running_loop()
        self._replies: dict[int, _Reply] = {}
        self._outgoing: deque[tuple[Message, contextlib.ExitStack]] = deque()
        self._sending: contextlib.ExitStack | None = None
        self._objects: dict[str, dict[str, Service]] = {}
        self._managing: set[str] = set()
        self._uids: OrderedDict[str, int] = OrderedDict()
        self._tasks: dict[asyncio.Task[None], str] = {}
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
        connection = MessageBus(bus_address=address, bus_type=BusType.SYSTEM, auth=auth, negotiate_unix_fd=True)
        try:
            await connection.connect()
        except (OSError, AuthError, EOFError) as error:
            where = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/dbus/system_bus_socket")
            raise NoSystemBus(f"no bus answers at {where} ({error}); start it: dbus-daemon --system") from error
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
            _close(reply.take())

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

    async def uid_of(self, sender: str) -> int:
        """The uid of the connection `sender`, as the bus daemon has it from the kernel."""
        if sender not in self._uids:
            answer = await self.call(*DBUS, "GetConnectionUnixUser", "s", (sender,))
            self._uids[sender] = int(answer.values[0])
            if len(self._uids) > KNOWN_CALLERS:
                self._uids.popitem(last=False)
        return self._uids[sender]

    # --- serving ---------------------------------------------------------------------------------------------
    def serve(self, path: str, *services: Service) -> bool:
        """Answer calls to these interfaces of the object `path` from now on; True where the object is new."""
        new, before = path not in self._objects, dict(self._objects.get(path, {}))
        self._objects.setdefault(path, {}).update({service.interface.attrib["name"]: service for service in services})
        added = {name: service.properties() for name, service in self._objects[path].items() if name not in before}
        if added:
            self._tell_managed(path, "InterfacesAdded", "oa{sa{sv}}", added)
        return new

    def withdraw(self, path: str) -> None:
        gone = self._objects.pop(path, None)
        if gone is not None:
            self._tell_managed(path, "InterfacesRemoved", "oas", list(gone))

    def manage(self, path: str) -> None:
        """The object `path` has the interface ObjectManager from now on: it knows, and tells of, those below it."""
        self._managing.add(path)

    def _tell_managed(self, path: str, member: str, signature: str, what: Value) -> None:
        for manager in self._managing:
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
            _close(received)
            self._on_signal(message)
            return None
        reply = self._replies.get(message.reply_serial)
        if reply is None or reply.arrival.done():
            _close(received)
            return None
        reply.descriptors = received
        reply.arrival.set_result(message)
        return True

    def _on_signal(self, message: Message) -> None:
        if self._follows_callers and message.sender == DBUS[0] and message.member == "NameOwnerChanged":
            name, _before, now = message.body
            if not now:
                self._left(name)
        for listener in self._listeners:
            listener(message)

    def _left(self, caller: str | None) -> None:
        """Cancel what is being done for the connection `caller`, or, where it is None, for all."""
        for task, sender in self._tasks.items():
            if caller in (None, sender):
                # Soon: what came just now has begun by then, and closes its descriptors.
                self._loop.call_soon(task.cancel)

    def _on_call(self, message: Message, received: tuple[int, ...]) -> None:
        if len(self._tasks) >= CALLS_AT_ONCE:
            _close(received)
            self._refuse(message, RuntimeFailure("too many calls are being answered; try again"))
            return
        task = self._loop.create_task(self._answer(message, received))
        self._tasks[task] = str(message.sender)
        task.add_done_callback(lambda done: self._answered(done, message))

    async def _answer(self, message: Message, received: tuple[int, ...]) -> None:
        try:
            service, answer = await self._handled(message, received)
        except CageError as error:
            if isinstance(error, UsageError) and self.malformed:
                await self.malformed(error)
            self._refuse(message, error)
            return
        self._reply(message, service.signature(str(message.member), "out"), answer)

    async def _handled(self, message: Message, received: tuple[int, ...]) -> tuple[Service, Answer]:
        """What the handler says; by then the descriptors that came with the call are closed."""
        try:
            service, handler = self._find(message, received)
            call = Call(sender=str(message.sender), path=str(message.path), member=str(message.member),
                        arguments=message.body, descriptors=received)
            return service, await handler(call)
        finally:
            _close(received)

    def _answered(self, task: asyncio.Task[None], message: Message) -> None:
        del self._tasks[task]
        if task.cancelled() and self._giving_up:
            self._refuse(message, CutOff(f"{message.member} was cut off: whoever was at it was told to end; see what "
                                         "came of it, and try again"))
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.critical("%s.%s failed", message.interface, message.member, exc_info=error)
            self._refuse(message, RuntimeFailure(f"{message.member} failed inside the runtime; see its journal"))

    def _find(self, message: Message, received: tuple[int, ...]) -> tuple[Service, Handler]:
        path, member = str(message.path), str(message.member)
        offered = self._offered(path)
        if message.interface and message.interface not in offered:
            raise UnknownInterface(f"{path} has no interface {message.interface}")
        for service in [offered[message.interface]] if message.interface else offered.values():
            handler = service.handlers.get(member)
            if handler is None:
                continue
            expected = service.signature(member, "in")
            if message.signature != expected or len(received) != expected.count("h"):
                raise WrongSignature(f'{member} takes the signature "{expected}", not "{message.signature}"')
            return service, handler
        raise UnknownMethod(f"{path} has no method {_named(message.interface, member)}")

    def _reply(self, message: Message, signature: str, answer: Answer) -> None:
        try:
            if self._awaits(message):
                self._send(Message.new_method_return(message, signature, list(answer.values)), answer.descriptors)
        finally:
            _close(answer.descriptors)

    def _refuse(self, message: Message, error: CageError) -> None:
        if self._awaits(message):
            self._send(Message.new_error(message, error.bus_error, error.sentence))

    def _awaits(self, message: Message) -> bool:
        """Whether an answer can go out: after its end, the connection's descriptor may be somebody else's."""
        return self._connection.connected and not message.flags & MessageFlag.NO_REPLY_EXPECTED

    # --- what every object has -------------------------------------------------------------------------------
    def _offered(self, path: str) -> dict[str, Service]:
        """The interfaces of the object `path`, by name; UnknownObject where there is none, nor one below it."""
        below = path.rstrip("/") + "/"
        if path not in self._objects and not any(known.startswith(below) for known in self._objects):
            raise UnknownObject(f"there is no object {path}")
        handlers: dict[str, Handler] = {
            "Ping": self._ping, "GetMachineId": self._machine_id, "Introspect": self._introspect,
            "Get": self._get, "GetAll": self._get_all, "Set": self._set, "GetManagedObjects": self._managed,
        }
        standard = {
            interface.attrib["name"]: Service(
                interface=interface,
                handlers={m.attrib["name"]: handlers[m.attrib["name"]] for m in interface.findall("method")},
            )
            for interface in _STANDARD
            if path in self._managing or interface.attrib["name"] != OBJECT_MANAGER
        }
        return {**standard, **self._objects.get(path, {})}

    async def _ping(self, _call: Call) -> Answer:
        return Answer()

    async def _machine_id(self, _call: Call) -> Answer:
        raise ProtocolError("the machine's id is not given out")

    async def _introspect(self, call: Call) -> Answer:
        node = ET.Element("node")
        node.extend(service.interface for service in self._offered(call.path).values())
        below = call.path.rstrip("/") + "/"
        for name in sorted({p[len(below):].split("/")[0] for p in self._objects if p.startswith(below)}):
            ET.SubElement(node, "node", name=name)
        return Answer(values=(INTROSPECTION_TYPE + ET.tostring(node, encoding="unicode"),))

    async def _admit(self, call: Call) -> None:
        if self.guard is not None:
            await self.guard(call)

    async def _get(self, call: Call) -> Answer:
        await self._admit(call)
        return Answer(values=(self._property(call),))

    def _property(self, call: Call) -> Variant:
        interface, name = call.arguments[:2]
        values = self._properties(call.path, interface)
        if name not in values:
            raise UnknownProperty(f"{call.path} has no property {_named(interface, name)}")
        return values[name]

    async def _get_all(self, call: Call) -> Answer:
        await self._admit(call)
        return Answer(values=(self._properties(call.path, call.arguments[0]),))

    async def _set(self, call: Call) -> Answer:
        await self._admit(call)
        self._property(call)
        raise PropertyReadOnly(f"{call.arguments[1]} can be read, and not set")

    def _properties(self, path: str, interface: str) -> dict[str, Variant]:
        """The properties of one interface of the object, or, where none is named, of them all."""
        offered = self._offered(path)
        if not interface:
            return {name: value for service in offered.values() for name, value in service.properties().items()}
        if interface not in offered:
            raise UnknownInterface(f"{path} has no interface {interface}")
        return offered[interface].properties()

    async def _managed(self, call: Call) -> Answer:
        await self._admit(call)
        below = call.path.rstrip("/") + "/"
        managed = {
            path: {name: service.properties() for name, service in services.items()}
            for path, services in self._objects.items()
            if path.startswith(below)
        }
        return Answer(values=(managed,))


def _named(interface: str | None, member: str) -> str:
    return f"{interface}.{member}" if interface else member


def _error(reply: Message, name: str) -> CageError:
    """What an error reply stands for; one of the bus daemon's own is about whoever has `name`."""
    if reply.sender == DBUS[0] and reply.error_name in _ABSENT:
        return NotThere(f"nobody answers to {name}: it is not running, or just being started again; try again")
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


def _close(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
