# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients of the bus interface that share no code with it: one made with dbus-next, and busctl.

Both take a method's arguments in one shape (a dictionary of options is {key: (signature, value)}), and both remember
what they have called, and whether that succeeded, so that a test can say that nothing was left out.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from dbus_next import DBusError, Message, MessageType, Variant
from dbus_next.aio import MessageBus, ProxyObject
from dbus_next.auth import AuthExternal
from dbus_next.introspection import Node
from dbus_next.signature import SignatureTree

TOP = Path(__file__).parents[1]
RESOURCES = TOP / "cage_runtime/resources"
CORE, PATH = "org.cageruntime.Core1", "/org/cageruntime/Core1"
MANAGER, CAGE, JOB, MEDIATION = (f"{CORE}.{name}" for name in ("Manager", "Cage", "Job", "Mediation"))
STANDARD = "org.freedesktop.DBus"
SECONDS = 60.0

Method = tuple[str, str]
"""An interface and a member of it."""


class Refused(Exception):
    """An error reply: its name, empty where the client does not tell, and its sentence."""

    def __init__(self, name: str, sentence: str) -> None:
        super().__init__(name, sentence)
        self.name, self.sentence = name, sentence


def description(resource: str) -> list[ET.Element]:
    """The interfaces of one of the XML files."""
    return ET.parse(RESOURCES / f"{resource}.xml").getroot().findall("interface")


INTERFACES = {each.attrib["name"]: each
              for resource in (CORE, STANDARD, "org.cageruntime.Apps1") for each in description(resource)}
INTERFACES |= {each.attrib["name"]: each for file in (TOP / "mediators").glob("*/interface.xml")
               for each in ET.parse(file).getroot().findall("interface")}


def methods(*interfaces: str) -> set[Method]:
    return {(name, method.attrib["name"]) for name in interfaces for method in INTERFACES[name].findall("method")}


def signature(interface: str, member: str, direction: str = "in") -> str:
    arguments = INTERFACES[interface].findall(f"method[@name='{member}']/arg[@direction='{direction}']")
    return "".join(argument.attrib["type"] for argument in arguments)


class Client:
    """What both have in common."""

    def __init__(self) -> None:
        self.succeeded: set[Method] = set()
        self.refused: set[Method] = set()

    def call(self, member: str, *arguments: Any, interface: str = MANAGER, path: str = PATH) -> Any:
        """The method's one result, the list of them, or None; Refused for an error."""
        try:
            result = self._call(path, interface, member, arguments)
        except Refused:
            self.refused.add((interface, member))
            raise
        self.succeeded.add((interface, member))
        return result

    def call_amiss(self, member: str, *, interface: str, path: str, kinds: str = "y", value: Any = 0) -> None:
        """As `call`, with one argument of a type that no method takes alone."""
        try:
            self._call_raw(path, interface, member, kinds, value)
        except Refused:
            self.refused.add((interface, member))
            raise

    def _call(self, path: str, interface: str, member: str, arguments: Sequence[Any]) -> Any:
        raise NotImplementedError

    def _call_raw(self, path: str, interface: str, member: str, kinds: str, value: Any) -> None:
        raise NotImplementedError

    def output(self, channel: Any) -> bytes | None:
        """What a session's channel, as this client gives it, brings; None where that cannot be had."""
        raise NotImplementedError

    def let_go(self, descriptors: list[Any]) -> None:
        """Close what came with an answer; a client that is a process for each call has closed it."""

    def children(self, path: str) -> list[str]:
        """The names of the nodes below `path`."""
        text = self.call("Introspect", interface=f"{STANDARD}.Introspectable", path=path)
        return [node.attrib["name"] for node in ET.fromstring(text).findall("node")]


class _As(AuthExternal):
    """EXTERNAL with the effective uid, which is what the kernel tells the bus."""

    def _authentication_start(self, negotiate_unix_fd: bool = False) -> str:
        self.negotiate_unix_fd = negotiate_unix_fd
        return f"AUTH EXTERNAL {str(os.geteuid()).encode().hex()}"


@contextlib.contextmanager
def effective(uid: int | None) -> Iterator[None]:
    """In the block, this process has that effective uid."""
    before = os.geteuid()
    if uid in (None, before):
        yield
        return
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(before)


class DbusNext(Client):
    """Proxy objects that dbus-next has made from what the live objects say of themselves."""

    def __init__(self, address: str, uid: int | None = None) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._bus = self._run(self._connected(address, uid))

    def _run(self, work: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, SECONDS))

    @staticmethod
    async def _connected(address: str, uid: int | None) -> MessageBus:
        with effective(uid):
            return await MessageBus(bus_address=address, auth=_As(), negotiate_unix_fd=True).connect()

    def close(self) -> None:
        self._bus.disconnect()
        self._run(self._bus.wait_for_disconnect())
        # It leaves both to the garbage collector, which comes while others count descriptors.
        with contextlib.suppress(OSError):
            self._bus._stream.close()
        self._bus._sock.close()
        self._loop.close()

    def introspect(self, path: str, destination: str = CORE) -> Node:
        return self._run(self._bus.introspect(destination, path))

    def proxy(self, path: str, interface: str) -> Any:
        where: ProxyObject = self._bus.get_proxy_object(CORE, path, self.introspect(path))
        return where.get_interface(interface)

    def _call(self, path: str, interface: str, member: str, arguments: Sequence[Any]) -> Any:
        method = getattr(self.proxy(path, interface), f"call_{_snake(member)}")
        try:
            return plain(self._run(method(*map(_with_variants, arguments))))
        except DBusError as error:
            raise Refused(error.type, error.text) from error

    def _call_raw(self, path: str, interface: str, member: str, kinds: str, value: Any) -> None:
        self.send(path, interface, member, kinds, value)

    def output(self, channel: Any) -> bytes | None:
        return followed(channel)[0]

    def let_go(self, descriptors: list[Any]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    def property(self, name: str, interface: str, path: str) -> Any:
        """By the proxy's getter, which wants the type that the introspection promises."""
        return self._run(getattr(self.proxy(path, interface), f"get_{_snake(name)}")())

    def send(self, path: str | None, interface: str | None, member: str, signature_: str = "", *body: Any,
             destination: str = CORE, as_variants: bool = False) -> Any:
        """Any message at all, without a proxy; the body of the answer."""
        message = Message(destination=destination, path=path, interface=interface, member=member,
                          signature=signature_, body=list(map(_with_variants, body)))
        reply = self._run(self._bus.call(message))
        if reply.message_type is MessageType.ERROR:
            raise Refused(reply.error_name, reply.body[0])
        return reply.body if as_variants else plain(reply.body)

    def signals(self, rule: str = f"type='signal',sender='{CORE}'") -> Heard:
        return Heard(self, rule)

    def listen(self, listener: Callable[[Message], None], rule: str) -> None:
        self._bus.add_message_handler(listener)
        self.send("/org/freedesktop/DBus", STANDARD, "AddMatch", "s", rule, destination=STANDARD)


class Heard:
    """The signals of caged from construction on."""

    def __init__(self, client: DbusNext, rule: str) -> None:
        self._client = client
        self._queue: asyncio.Queue[Message] = asyncio.Queue()
        client.listen(self._on_message, rule)

    def _on_message(self, message: Message) -> None:
        if message.message_type is MessageType.SIGNAL and message.sender != STANDARD:
            self._queue.put_nowait(message)

    def next(self) -> Message:
        return self._client._run(self._queue.get())

    def until(self, member: str) -> list[Message]:
        """All that come up to the first of that name, which is the last."""
        heard = [self.next()]
        while heard[-1].member != member:
            heard.append(self.next())
        return heard


def _snake(member: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in member).lstrip("_")


def _with_variants(value: Any) -> Any:
    if isinstance(value, tuple):
        return Variant(*value)
    if not isinstance(value, dict):
        return value
    return {key: Variant(*entry) if isinstance(entry, tuple) else entry for key, entry in value.items()}


def plain(value: Any) -> Any:
    """`value` without the library's variants, which have their types checked by then."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list) else value


class Busctl(Client):
    """busctl(1), a process for each call."""

    def __init__(self, address: str, *prefix: str) -> None:
        super().__init__()
        self._command = [*prefix, "busctl", f"--address={address}"]

    def run(self, *words: str) -> str:
        ended = subprocess.run([*self._command, *words], capture_output=True, text=True, check=False, timeout=SECONDS)
        if ended.returncode != 0:
            raise Refused("", ended.stderr.strip().removeprefix("Call failed: "))
        return ended.stdout

    def _call(self, path: str, interface: str, member: str, arguments: Sequence[Any]) -> Any:
        kinds = signature(interface, member)
        words = [word for kind, value in zip(types(kinds), arguments, strict=True) for word in spelled(kind, value)]
        given = [kinds, *words] if kinds else []
        shown = self.run("--json=short", "call", "--", CORE, path, interface, member, *given)
        if not shown.strip():
            return None
        answer = json.loads(shown)
        assert answer["type"] == signature(interface, member, "out")
        data = bare(answer["data"])
        return data[0] if len(data) == 1 else data

    def _call_raw(self, path: str, interface: str, member: str, kinds: str, value: Any) -> None:
        self.run("call", "--", CORE, path, interface, member, kinds, *spelled(kinds, value))

    def output(self, channel: Any) -> bytes | None:
        """busctl has closed the descriptor by then; since systemd 257 it describes what that was."""
        assert channel is None or isinstance(channel, int) or channel["stat"]["type"] == "sock"
        return None

    def property(self, name: str, interface: str, path: str) -> Any:
        answer = json.loads(self.run("--json=short", "get-property", CORE, path, interface, name))
        assert answer["type"] == INTERFACES[interface].find(f"property[@name='{name}']").attrib["type"]  # type: ignore[union-attr]
        return answer["data"]


def types(kinds: str) -> list[str]:
    """A signature cut into its single complete types."""
    return [kind.signature for kind in SignatureTree(kinds).types]


def spelled(kind: str, value: Any) -> list[str]:
    """`value` as busctl(1) wants it on its command line."""
    if kind == "a{sv}":
        return [str(len(value)), *(word for key, (inner, entry) in value.items()
                                   for word in (key, inner, *spelled(inner, entry)))]
    if kind == "a{ss}":
        return [str(len(value)), *(word for entry in value.items() for word in entry)]
    if kind == "a{say}":
        return [str(len(value)), *(word for key, content in value.items() for word in (key, *spelled("ay", content)))]
    if kind == "v":
        return [value[0], *spelled(*value)]
    if kind.startswith("a"):
        return [str(len(value)), *(word for entry in value for word in spelled(kind[1:], entry))]
    return [{True: "true", False: "false"}[value] if kind == "b" else str(value)]


def bare(value: Any) -> Any:
    """What busctl shows as JSON, without the types of variants."""
    if isinstance(value, dict):
        if value.keys() == {"type", "data"}:
            return bare(value["data"])
        return {key: bare(entry) for key, entry in value.items()}
    return [bare(entry) for entry in value] if isinstance(value, list) else value


def followed(channel: int) -> tuple[bytes, list[dict[str, Any]]]:
    """What a session's channel brings until it ends: the command's output, and the events."""
    events, output = [], b""
    with socket.socket(fileno=channel) as end:
        assert end.type == socket.SOCK_SEQPACKET
        end.settimeout(30)
        while message_and := _received(end):
            message, descriptors = message_and
            events.append(json.loads(message))
            if descriptors:
                _, out, _ = descriptors
                while piece := os.read(out, 4096):
                    output += piece
                for descriptor in descriptors:
                    os.close(descriptor)
    return output, events


def _received(end: socket.socket) -> tuple[bytes, list[int]] | None:
    message, ancillary, _, _ = end.recvmsg(4096, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    return (message, [fd for _, _, data in ancillary for fd in array.array("i", data)]) if message else None
