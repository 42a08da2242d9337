# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a process serves on a bus: objects by path, each with interfaces, and those that every object has.

Law of this room: an object that belongs to somebody is, for whoever may not see it, not there: a call to it, to what is
above it and to what never was there are answered alike.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any
from xml.etree import ElementTree as ET

from dbus_fast import Variant

from cage_runtime.errors import (
    NotAuthorized,
    PropertyReadOnly,
    ProtocolError,
    UnknownInterface,
    UnknownMethod,
    UnknownObject,
    UnknownProperty,
    WrongSignature,
)
from cage_runtime.model import MEDIATOR_DESCRIPTORS_MAX

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
    interactive: bool = False
    """Whether the caller lets somebody be asked for a password meanwhile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a handler returns: values in order of the member's results; `h` are indices into `descriptors`, which
    are closed once they have been sent."""

    values: tuple[Value, ...] = ()
    descriptors: tuple[int, ...] = ()


Handler = Callable[[Call], Awaitable[Answer]]
Sight = Callable[[Call], Awaitable[Callable[[str, int], bool]]]
"""For whoever calls: whether the object of that path, which belongs to that uid, is there.  NotAuthorized where none
that belongs to anybody is, and the caller is to hear why."""
OPEN_TO_ALL = ("Introspect", "Ping", "GetMachineId")
"""What whoever may see no object may still ask for."""


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


def described(resource: str, interface: str, *, of: str = "cage_runtime.resources") -> ET.Element:
    """The description of `interface` in the XML file `resource` of the package `of`."""
    found = _description(resource, of).find(f"interface[@name='{interface}']")
    if found is None:
        raise KeyError(interface)
    return found


def _description(resource: str, of: str = "cage_runtime.resources") -> ET.Element:
    text = resources.files(of).joinpath(resource).read_text(encoding="utf-8")
    return ET.fromstring(text)  # noqa: S314 - our own file


_STANDARD = _description("org.freedesktop.DBus.xml")
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
_There = Mapping[str, dict[str, Service]]


class Objects:
    """The objects of one connection; those without an owner are there for everybody."""

    def __init__(self) -> None:
        self.sight: Sight | None = None
        self.managing: set[str] = set()
        """The objects that have the interface ObjectManager."""
        self._objects: dict[str, dict[str, Service]] = {}
        self._owners: dict[str, int] = {}

    def serve(self, path: str, services: tuple[Service, ...], owner: int | None) -> tuple[bool, dict[str, Service]]:
        """Answer calls to these interfaces of the object `path` from now on; whether the object is new, and those of
        its interfaces that are."""
        new, before = path not in self._objects, dict(self._objects.get(path, {}))
        self._objects.setdefault(path, {}).update({service.interface.attrib["name"]: service for service in services})
        if owner is not None:
            self._owners[path] = owner
        return new, {name: service for name, service in self._objects[path].items() if name not in before}

    def withdraw(self, path: str) -> list[str]:
        """The interfaces that the object had."""
        self._owners.pop(path, None)
        return list(self._objects.pop(path, {}))

    async def find(self, call: Call, interface: str | None, signature: str) -> tuple[Service, Handler]:
        """Who answers `call`, made of `interface` or of whichever has the member, with arguments of `signature`;
        ProtocolError where that is nobody, or it is not what the member takes."""
        view = _View(await self._there(call, interface), self.managing)
        offered = view.offered(call.path)
        if interface and interface not in offered:
            raise UnknownInterface(f"{call.path} has no interface {interface}")
        for service in [offered[interface]] if interface else offered.values():
            handler = service.handlers.get(call.member)
            if handler is None:
                continue
            expected = service.signature(call.member, "in")
            if signature != expected or not _may_come(len(call.descriptors), expected):
                raise WrongSignature(f'{call.member} takes the signature "{expected}", not "{signature}"')
            return service, handler
        raise UnknownMethod(f"{call.path} has no method {_named(interface, call.member)}")

    async def _there(self, call: Call, interface: str | None) -> _There:
        """The objects that there are for whoever calls, as far as it matters for this call."""
        if self.sight is None:
            return self._objects
        public = call.path not in self._owners and interface in self._objects.get(call.path, {})
        if public:
            return self._objects
        try:
            sees = await self.sight(call)
        except NotAuthorized:
            if call.member not in OPEN_TO_ALL:
                raise
            return {path: services for path, services in self._objects.items() if path not in self._owners}
        return {path: services for path, services in self._objects.items()
                if path not in self._owners or sees(path, self._owners[path])}


class _View:
    """The objects that are there for one call, with what every object has."""

    def __init__(self, there: _There, managing: set[str]) -> None:
        self._there, self._managing = there, managing

    def offered(self, path: str) -> dict[str, Service]:
        """The interfaces of the object `path`, by name; UnknownObject where there is none, nor one below it."""
        if path not in self._there and not any(known.startswith(_below(path)) for known in self._there):
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
        return {**standard, **self._there.get(path, {})}

    async def _ping(self, _call: Call) -> Answer:
        return Answer()

    async def _machine_id(self, _call: Call) -> Answer:
        raise ProtocolError("the machine's id is not given out")

    async def _introspect(self, call: Call) -> Answer:
        node = ET.Element("node")
        node.extend(service.interface for service in self.offered(call.path).values())
        below = _below(call.path)
        for name in sorted({path[len(below):].split("/")[0] for path in self._there if path.startswith(below)}):
            ET.SubElement(node, "node", name=name)
        return Answer(values=(INTROSPECTION_TYPE + ET.tostring(node, encoding="unicode"),))

    async def _get(self, call: Call) -> Answer:
        return Answer(values=(self._property(call),))

    def _property(self, call: Call) -> Variant:
        interface, name = call.arguments[:2]
        values = self._properties(call.path, interface)
        if name not in values:
            raise UnknownProperty(f"{call.path} has no property {_named(interface, name)}")
        return values[name]

    async def _get_all(self, call: Call) -> Answer:
        return Answer(values=(self._properties(call.path, call.arguments[0]),))

    async def _set(self, call: Call) -> Answer:
        self._property(call)
        raise PropertyReadOnly(f"{call.arguments[1]} can be read, and not set")

    def _properties(self, path: str, interface: str) -> dict[str, Variant]:
        """The properties of one interface of the object, or, where none is named, of them all."""
        offered = self.offered(path)
        if not interface:
            return {name: value for service in offered.values() for name, value in service.properties().items()}
        if interface not in offered:
            raise UnknownInterface(f"{path} has no interface {interface}")
        return offered[interface].properties()

    async def _managed(self, call: Call) -> Answer:
        below = _below(call.path)
        managed = {
            path: {name: service.properties() for name, service in services.items()}
            for path, services in self._there.items()
            if path.startswith(below)
        }
        return Answer(values=(managed,))


def _below(path: str) -> str:
    return path.rstrip("/") + "/"


def _may_come(descriptors: int, signature: str) -> bool:
    """Whether so many can be what the arguments of a member refer to."""
    if "ah" in signature:
        return descriptors <= MEDIATOR_DESCRIPTORS_MAX
    return descriptors == signature.count("h")


def _named(interface: str | None, member: str) -> str:
    return f"{interface}.{member}" if interface else member
