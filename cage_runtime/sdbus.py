# SPDX-License-Identifier: LGPL-2.1-or-later
"""One D-Bus connection of a small program, by sd-bus of libsystemd.so.0: of the commands, and of cage-scopes.

Law of this room: this is the only file that calls that library.  Values go in by a signature and come out as plain
Python values; every descriptor that comes out is our own duplicate, close-on-exec.

Why sd-bus: a Python D-Bus library costs 20 to 60 ms to import, this 3; sd_bus_process(3) and its kin are the source
of what is done here.  The library needs neither systemd running nor anything else of it installed.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import time
from ctypes import byref, c_char, c_char_p, c_double, c_int, c_size_t, c_uint64, c_void_p

from cage_runtime.errors import HostUnsupported, NoSystemBus, RuntimeFailure, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

DEFAULT_ADDRESS = "unix:path=/run/dbus/system_bus_socket"
"""Where sd-bus looks for the system bus when DBUS_SYSTEM_BUS_ADDRESS is not set."""

_BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")

_INTEGERS: dict[str, tuple[Any, int, int]] = {
    "y": (ctypes.c_uint8, 0, 2**8 - 1),
    "n": (ctypes.c_int16, -(2**15), 2**15 - 1),
    "q": (ctypes.c_uint16, 0, 2**16 - 1),
    "i": (ctypes.c_int32, -(2**31), 2**31 - 1),
    "u": (ctypes.c_uint32, 0, 2**32 - 1),
    "x": (ctypes.c_int64, -(2**63), 2**63 - 1),
    "t": (ctypes.c_uint64, 0, 2**64 - 1),
    "h": (c_int, 0, 2**31 - 1),
}
_TEXT = "sog"
SILENCE_SECONDS = 1.0
"""Nearly all calls are answered sooner."""
_HEADER_BYTES = 256
"""More than the header of a call takes but for the names in it: the fields, their paddings, and the bus's own."""
_FOREVER = 2**64 - 1
"""sd_bus_get_timeout: nothing is due."""


class BusError(Exception):
    """The peer, or the bus itself, answered with an error."""

    def __init__(self, name: str, sentence: str) -> None:
        super().__init__(name, sentence)
        self.name = name
        self.sentence = sentence


class _CError(ctypes.Structure):
    _fields_ = (("name", c_char_p), ("message", c_char_p), ("need_free", c_int))


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libsystemd.so.0")
    except OSError as error:
        raise HostUnsupported("the library libsystemd.so.0 is missing; install the package libsystemd0") from error
    handle = c_void_p
    prototypes: dict[str, tuple[Any, ...]] = {
        "open_system": (handle,),
        "get_fd": (handle,),
        "get_events": (handle,),
        "get_timeout": (handle, handle),
        "process": (handle, handle),
        "send": (handle, handle, handle),
        "flush": (handle,),
        "message_new_method_call": (handle, handle, c_char_p, c_char_p, c_char_p, c_char_p),
        "message_set_allow_interactive_authorization": (handle, c_int),
        "message_set_auto_start": (handle, c_int),
        "message_append_basic": (handle, c_char, handle),
        "message_append_array": (handle, c_char, c_char_p, c_size_t),
        "message_open_container": (handle, c_char, c_char_p),
        "message_close_container": (handle,),
        "message_get_reply_cookie": (handle, handle),
        "message_is_signal": (handle, c_char_p, c_char_p),
        "message_has_signature": (handle, c_char_p),
        "message_peek_type": (handle, handle, handle),
        "message_enter_container": (handle, c_char, c_char_p),
        "message_exit_container": (handle,),
        "message_read_basic": (handle, c_char, handle),
        "message_read_array": (handle, c_char, handle, handle),
    }
    for name, arguments in prototypes.items():
        getattr(library, "sd_bus_" + name).argtypes = arguments
    library.sd_bus_message_get_sender.argtypes = (handle,)
    library.sd_bus_message_get_sender.restype = c_char_p
    library.sd_bus_message_get_error.argtypes = (handle,)
    library.sd_bus_message_get_error.restype = ctypes.POINTER(_CError)
    for name in ("message_unref", "flush_close_unref"):
        function = getattr(library, "sd_bus_" + name)
        function.argtypes, function.restype = (handle,), handle
    return library


def _done(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


class Connection:
    """A connection to the system bus; the address is DBUS_SYSTEM_BUS_ADDRESS or the usual socket."""

    def __init__(self, *, message_bytes: int | None = None) -> None:
        """`message_bytes` are the most that the bus takes in one message, and ends the connection at more; None where
        that is more than any of ours."""
        self._most = message_bytes
        self.address = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or DEFAULT_ADDRESS
        self._c = _load()
        self._bus = c_void_p()
        self._in_hand: Incoming | None = None
        try:
            _done(self._c.sd_bus_open_system(byref(self._bus)))
        except OSError as error:
            raise self._no_bus(error) from error

    def _no_bus(self, error: OSError) -> NoSystemBus:
        start = "start it: systemctl start dbus, or dbus-daemon --system --fork"
        return NoSystemBus(f"no system bus at {self.address} ({error.strerror}); {start}")

    def _ended(self, error: OSError) -> NoSystemBus:
        return NoSystemBus(f"the system bus at {self.address} has ended this connection ({error.strerror}); try again, "
                           "and see its log where that is no help")

    def close(self) -> None:
        self._let_go()
        if self._bus:
            self._c.sd_bus_flush_close_unref(self._bus)
            self._bus = c_void_p()

    def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        values: tuple[object, ...] = (),
        *,
        returns: str = "",
        timeout: float | None = None,
        meanwhile: Callable[[], object] | None = None,
        interactive: bool = False,
        quietly: bool = False,
        silence: Callable[[], object] | None = None,
    ) -> tuple[Any, ...]:
        """Calls a method and waits `timeout` seconds (None: until it answers) for a reply of signature `returns`.

        Raises BusError for an error reply, TimeoutError, NoSystemBus when the bus goes away, and RuntimeFailure for a
        reply of another signature.  A KeyboardInterrupt leaves the connection usable.  `meanwhile` is done while the
        peer works.  With `interactive` the peer may have a person asked for a password first.  `quietly`, nothing is
        started for it.  `silence` is done after each SILENCE_SECONDS without an answer, and may raise to end the wait.
        """
        names = (destination, path, interface, member)
        cookie = self._call(names, signature, values, flush=meanwhile is not None, interactive=interactive,
                            quietly=quietly)
        if meanwhile:
            meanwhile()
        deadline = None if timeout is None else time.monotonic() + timeout
        reply = self._reply(cookie, deadline) if silence is None else self._watched(cookie, deadline, silence)
        try:
            return _body(self._c, reply, member, returns)
        finally:
            self._c.sd_bus_message_unref(reply)

    def post(self, destination: str, path: str, interface: str, member: str, signature: str = "",
             values: tuple[object, ...] = ()) -> int:
        """Calls a method without waiting: `take` gives the reply, whose cookie this is; NoSystemBus, UsageError."""
        return self._call((destination, path, interface, member), signature, values, flush=False)

    def _call(self, names: tuple[str, ...], signature: str, values: tuple[object, ...], *, flush: bool,
              interactive: bool = False, quietly: bool = False) -> int:
        message = c_void_p()
        _done(self._c.sd_bus_message_new_method_call(self._bus, byref(message), *(name.encode() for name in names)))
        try:
            _done(self._c.sd_bus_message_set_allow_interactive_authorization(message, interactive))
            _done(self._c.sd_bus_message_set_auto_start(message, not quietly))
            writer = _Writer(self._c, message)
            for kind, value in zip(complete_types(signature), values, strict=True):
                writer.append(kind, value)
            self._check_size(member=names[3], size=writer.size + sum(map(len, names)) + _HEADER_BYTES)
            cookie = c_uint64()
            self._send(message, cookie, flush=flush)
        finally:
            self._c.sd_bus_message_unref(message)
        return cookie.value

    def _check_size(self, member: str, size: int) -> None:
        if self._most is not None and size > self._most:
            raise UsageError(f"all that is given to {member} has {size} bytes with what goes with it, and one message "
                             f"on this bus has at most {self._most}; give less at once")

    # --- for a loop of one's own: wait as `waits_for` says, then take until there is nothing -----------------------
    def fileno(self) -> int:
        return _done(self._c.sd_bus_get_fd(self._bus))

    def waits_for(self) -> tuple[int, float | None]:
        """The events of poll(2) for `fileno`, and the moment of time.monotonic() at which to `take` all the same."""
        due = c_uint64()
        _done(self._c.sd_bus_get_timeout(self._bus, byref(due)))
        events = _done(self._c.sd_bus_get_events(self._bus))
        return events, None if due.value == _FOREVER else due.value / 1e6

    def take(self) -> Incoming | None:
        """The next message that has come, good until the next call of this; None where there is none.

        NoSystemBus when the bus goes away.
        """
        self._let_go()
        while True:
            message, progress = self._process()
            if message:
                self._in_hand = Incoming(self._c, message)
                return self._in_hand
            if not progress:
                return None

    def _process(self) -> tuple[c_void_p, int]:
        """A message that has come, which may be none, and whether there was anything to do."""
        message = c_void_p()
        try:
            return message, _done(self._c.sd_bus_process(self._bus, byref(message)))
        except OSError as error:
            raise self._ended(error) from error

    def _let_go(self) -> None:
        if self._in_hand is not None:
            self._c.sd_bus_message_unref(self._in_hand.message)
            self._in_hand = None

    def wait_for(self, name: str, seconds: float) -> bool:
        """Whether somebody owns `name`, at the latest after `seconds`; the bus says when that changes."""
        deadline = time.monotonic() + seconds
        rule = f"type='signal',sender='{_BUS[0]}',member='NameOwnerChanged',arg0='{name}'"
        self.call(*_BUS, "AddMatch", "s", (rule,))
        try:
            while not self.call(*_BUS, "NameHasOwner", "s", (name,), returns="b")[0]:
                self._c.sd_bus_message_unref(self._next(deadline))
        except TimeoutError:
            return False
        finally:
            self.call(*_BUS, "RemoveMatch", "s", (rule,))
        return True

    def _send(self, message: c_void_p, cookie: c_uint64, *, flush: bool) -> None:
        try:
            _done(self._c.sd_bus_send(self._bus, message, byref(cookie)))
            if flush:
                # Nothing is sent before the bus has said Hello, which only sd_bus_process or this waits for.
                _done(self._c.sd_bus_flush(self._bus))
        except OSError as error:
            raise self._ended(error) from error

    def _reply(self, cookie: int, deadline: float | None) -> c_void_p:
        """The reply to the call that was sent as `cookie`; whatever else arrives meanwhile is dropped.

        Our own loop, and not sd_bus_call, because that one restarts when a signal comes: Ctrl-C would be lost.
        """
        answered = c_uint64()
        while True:
            message = self._next(deadline)
            got = self._c.sd_bus_message_get_reply_cookie(message, byref(answered))
            if got >= 0 and answered.value == cookie:
                return message
            self._c.sd_bus_message_unref(message)

    def _watched(self, cookie: int, deadline: float | None, silence: Callable[[], object]) -> c_void_p:
        """As _reply, with `silence` done now and then."""
        while True:
            look = time.monotonic() + SILENCE_SECONDS
            try:
                return self._reply(cookie, look if deadline is None else min(look, deadline))
            except TimeoutError:
                if deadline is not None and time.monotonic() >= deadline:
                    raise
                silence()

    def _next(self, deadline: float | None) -> c_void_p:
        """The next message that arrives, of whatever kind; TimeoutError where none does."""
        while True:
            message, progress = self._process()
            if message:
                return message
            if not progress:
                self._wait(deadline)

    def _wait(self, deadline: float | None) -> None:
        events, due = self.waits_for()
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            raise TimeoutError
        ends = [end for end in (deadline, due) if end is not None]
        poll = select.poll()
        poll.register(self.fileno(), events)
        poll.poll(max(0, int((min(ends) - now) * 1000) + 1) if ends else None)


class Incoming:
    """A message that came by itself: a signal, or the reply to a call that was posted."""

    __slots__ = ("_c", "message")

    def __init__(self, library: ctypes.CDLL, message: c_void_p) -> None:
        self._c, self.message = library, message

    @property
    def cookie(self) -> int:
        """Of the call that this answers; 0 where it answers none."""
        answered = c_uint64()
        return answered.value if self._c.sd_bus_message_get_reply_cookie(self.message, byref(answered)) >= 0 else 0

    @property
    def sender(self) -> str:
        """The unique name that the bus gives its sender; anybody may send a signal to us alone."""
        return (self._c.sd_bus_message_get_sender(self.message) or b"").decode()

    def is_signal(self, interface: str, member: str) -> bool:
        return bool(self._c.sd_bus_message_is_signal(self.message, interface.encode(), member.encode()) > 0)

    def has(self, signature: str) -> bool:
        """Whether its values are of that signature: of what a stranger sends, anything may be."""
        return bool(self._c.sd_bus_message_has_signature(self.message, signature.encode()) > 0)

    def body(self, signature: str) -> tuple[Any, ...]:
        """Its values; BusError where it is an error, RuntimeFailure where they have another signature."""
        return _body(self._c, self.message, "a call", signature)


def _body(library: ctypes.CDLL, message: c_void_p, member: str, signature: str) -> tuple[Any, ...]:
    failure = library.sd_bus_message_get_error(message)
    if failure:
        name, sentence = failure.contents.name, failure.contents.message
        raise BusError((name or b"").decode(), (sentence or b"").decode("utf-8", "replace"))
    if library.sd_bus_message_has_signature(message, signature.encode()) <= 0:
        raise RuntimeFailure(f"the answer to {member} has an unknown shape; are both sides of the same version?")
    return _Reader(library, message).all()


class _Writer:
    def __init__(self, library: ctypes.CDLL, message: c_void_p) -> None:
        self._c, self._message = library, message
        self.size = 0
        """Bytes that the values take, at most: each begins at a multiple of 8."""

    def append(self, kind: str, value: Any) -> None:
        """Appends `value` as the single complete type `kind`; UsageError if it does not fit."""
        if kind in _TEXT:
            text = _encoded(value)
            self.size += _rounded(4 + len(text) + 1)
            self._basic(kind, c_char_p(text))
        elif kind in _INTEGERS:
            integer, low, high = _INTEGERS[kind]
            self.size += 8
            if not low <= value <= high:
                raise UsageError(f"the number {value} is out of bounds, which are {low} to {high}")
            self._basic(kind, byref(integer(value)))
        elif kind == "b":
            self.size += 8
            self._basic(kind, byref(c_int(bool(value))))
        elif kind == "d":
            self.size += 8
            self._basic(kind, byref(c_double(value)))
        elif kind == "ay":
            self.size += _rounded(4 + len(value))
            _done(self._c.sd_bus_message_append_array(self._message, b"y", bytes(value), len(value)))
        elif kind == "v":
            inner, content = variant(value)
            self.size += _rounded(len(inner) + 2)
            self._container("v", inner, [(inner, content)])
        elif kind.startswith("a{"):
            self.size += 8
            pair, types = kind[2:-1], complete_types(kind[2:-1])
            _done(self._c.sd_bus_message_open_container(self._message, b"a", kind[1:].encode()))
            for entry in value.items():
                self._container("e", pair, list(zip(types, entry, strict=True)))
            _done(self._c.sd_bus_message_close_container(self._message))
        elif kind.startswith("a"):
            self._container("a", kind[1:], [(kind[1:], element) for element in value])
        else:
            self._container("r", kind[1:-1], list(zip(complete_types(kind[1:-1]), value, strict=True)))

    def _basic(self, kind: str, pointer: Any) -> None:
        _done(self._c.sd_bus_message_append_basic(self._message, kind.encode(), ctypes.cast(pointer, c_void_p)))

    def _container(self, kind: str, contents: str, members: list[tuple[str, Any]]) -> None:
        self.size += 8
        _done(self._c.sd_bus_message_open_container(self._message, kind.encode(), contents.encode()))
        for inner, value in members:
            self.append(inner, value)
        _done(self._c.sd_bus_message_close_container(self._message))


class _Reader:
    def __init__(self, library: ctypes.CDLL, message: c_void_p) -> None:
        self._c, self._message = library, message
        self._descriptors: list[int] = []

    def all(self) -> tuple[Any, ...]:
        try:
            return tuple(self._members())
        except OSError as error:
            for descriptor in self._descriptors:
                os.close(descriptor)
            raise RuntimeFailure(f"an answer on the bus cannot be read: {error.strerror}") from error

    def _peek(self) -> tuple[str, str]:
        kind, contents = c_char(), c_char_p()
        if not _done(self._c.sd_bus_message_peek_type(self._message, byref(kind), byref(contents))):
            return "", ""
        return kind.value.decode(), (contents.value or b"").decode()

    def _members(self) -> list[Any]:
        members = []
        while (peeked := self._peek())[0]:
            members.append(self._one(*peeked))
        return members

    def _one(self, kind: str, contents: str) -> Any:
        if contents:
            return self._contained(kind, contents)
        if kind in _TEXT:
            text = c_char_p()
            self._basic(kind, text)
            return (text.value or b"").decode()
        if kind == "d":
            number = c_double()
            self._basic(kind, number)
            return number.value
        integer = (c_int if kind == "b" else _INTEGERS[kind][0])()
        self._basic(kind, integer)
        if kind == "h":
            self._descriptors.append(fcntl.fcntl(integer.value, fcntl.F_DUPFD_CLOEXEC, 3))
            return self._descriptors[-1]
        return bool(integer.value) if kind == "b" else integer.value

    def _basic(self, kind: str, into: Any) -> None:
        _done(self._c.sd_bus_message_read_basic(self._message, kind.encode(), byref(into)))

    def _contained(self, kind: str, contents: str) -> Any:
        if kind + contents == "ay":
            start, size = c_void_p(), c_size_t()
            _done(self._c.sd_bus_message_read_array(self._message, b"y", byref(start), byref(size)))
            return ctypes.string_at(start, size.value) if size.value else b""
        _done(self._c.sd_bus_message_enter_container(self._message, kind.encode(), contents.encode()))
        members = self._members()
        _done(self._c.sd_bus_message_exit_container(self._message))
        if kind == "v":
            return members[0]
        if kind == "a":
            return dict(members) if contents.startswith("{") else members
        return tuple(members)


def _rounded(size: int) -> int:
    return (size + 7) // 8 * 8


def _encoded(value: str) -> bytes:
    try:
        encoded = value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f'"{value}" is not UTF-8, which all text on the bus has to be') from error
    if b"\0" in encoded:
        raise UsageError("a text with a NUL character cannot be sent on the bus")
    return encoded


def variant(value: Any) -> tuple[str, Any]:
    """The signature and the value with which a Python value travels in a variant; a pair (signature, value) as told."""
    if isinstance(value, tuple):
        signature, content = value
        return signature, content
    kinds = (("b", bool), ("u", int), ("d", float), ("s", str), ("ay", bytes), ("as", list))
    return next(kind for kind, python in kinds if isinstance(value, python)), value


def complete_types(signature: str) -> list[str]:
    """`signature` cut into single complete types: "sa{sv}(ii)" is ["s", "a{sv}", "(ii)"]."""
    types, start, depth = [], 0, 0
    for position, character in enumerate(signature):
        depth += (character in "({") - (character in ")}")
        if not depth and character != "a":
            types.append(signature[start : position + 1])
            start = position + 1
    return types
