# SPDX-License-Identifier: LGPL-2.1-or-later
"""The manifests of the mediators, mediators.d/NAME.toml: all that the rest of the runtime knows of each of them.

Law of this room: a mediator is what its manifest says.  The rules of the buses, the users, the processes and what
policy may say of a service follow from it, so that nothing else names a mediator.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from cage_runtime.config import Paths, convert, line_of, masked_file, parse_table, read_text
from cage_runtime.errors import DefinitionError, UsageError
from cage_runtime.model import (
    DESCRIPTION_MAX,
    MEDIATOR_DESCRIPTORS_MAX,
    MEDIATOR_METHODS_MAX,
    MEDIATOR_NAME_MAX,
    MEDIATOR_SERVICES_MAX,
    MEDIATORS_MAX,
    ServiceKind,
)
from cage_runtime.text import escape

DIRECTORY = "mediators.d"
FAMILY = ".*"
"""What the name of a service ends in that stands for all that begin so."""
_NAME = re.compile(rf"[a-z]{{1,{MEDIATOR_NAME_MAX}}}\Z")
_SERVICE = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,30}\Z")


class Delivery(StrEnum):
    """What a mediator's delivery half runs as in a target cage, in spawner/profile.py's words."""

    DELIVERY = "delivery"
    SESSION = "session"
    SERVICE = "service"
    """As a session; its standard error goes to the cage's log, and it does not outlive its channel."""
    NONE = "none"


_Member = Annotated[
    str, msgspec.Meta(pattern=r"^[A-Z][A-Za-z0-9]{0,30}\Z", description='a method\'s name, such as "Send"')
]
_Folder = Annotated[str, msgspec.Meta(pattern=r"^[a-z]{1,30}\Z", description="1 to 30 of a-z")]
_Parameter = Literal["max-size", "max-files", "types", "transform", "require", "user", "direction"]
"""`direction` where a rule can make it one-way; what is one-way anyway need not say so."""


class _Service(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    one_way: bool = False
    looks_first: bool = False
    parameters: list[_Parameter] = []


class _Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    description: Annotated[str, msgspec.Meta(min_length=1, max_length=DESCRIPTION_MAX)]
    methods: Annotated[list[_Member], msgspec.Meta(min_length=1, max_length=MEDIATOR_METHODS_MAX)]
    services: Annotated[dict[str, dict[str, object]], msgspec.Meta(min_length=1, max_length=MEDIATOR_SERVICES_MAX)]
    descriptors: Annotated[int, msgspec.Meta(ge=0, le=MEDIATOR_DESCRIPTORS_MAX)] = 0
    delivery: Literal["delivery", "session", "service", "none"] = "none"
    folder: _Folder | None = None
    jobs: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Mediator:
    """One mediator, as its manifest has it."""

    name: str
    description: str
    """What it is for, in a few words."""
    methods: tuple[str, ...]
    """Those of its interface that a cage may call."""
    descriptors: int
    """The most in one message, in either direction."""
    delivery: Delivery
    folder: str | None
    """The one below STATE that its core half writes, and that is its user's alone; None where it writes nothing."""
    jobs: bool
    """Its cage half has an object for each thing that is under way, which it lists (ListJobs) and cancels."""
    services: Mapping[str, ServiceKind]
    """By what policy calls them; one that ends in FAMILY stands for all that begin so."""

    @property
    def bus_name(self) -> str:
        """Its name on the buses, and that of its interface."""
        return f"org.cageruntime.{self.name.capitalize()}1"

    @property
    def path(self) -> str:
        """Its one object on the buses."""
        return f"/org/cageruntime/{self.name.capitalize()}1"


def load(paths: Paths) -> tuple[Mediator, ...]:
    """The mediators of this host that nobody has disabled, by name; DefinitionError names file and line of a fault."""
    shipped = _names(Path(paths.shipped, DIRECTORY))
    for name in _names(Path(paths.administrator, DIRECTORY)):
        if name not in shipped:
            raise DefinitionError(f'{paths.administrator}/{DIRECTORY}/{name}.toml:1: there is no mediator "{name}"')
    if len(shipped) > MEDIATORS_MAX:
        raise DefinitionError(f"{paths.shipped}/{DIRECTORY}: more than {MEDIATORS_MAX} mediators")
    files = {name: masked_file(paths, f"{DIRECTORY}/{name}.toml") for name in shipped}
    found = tuple(parse(read_text(file), name, str(file)) for name, file in files.items() if file is not None)
    _check_folders(found, paths)
    return found


def service_kinds(paths: Paths) -> dict[str, ServiceKind]:
    """What policy has to know of each service that one of this host's mediators has, by its name or family."""
    return kinds_of(load(paths))


def kinds_of(mediators: Iterable[Mediator]) -> dict[str, ServiceKind]:
    """As `service_kinds`, of these mediators."""
    return {service: kind for mediator in mediators for service, kind in mediator.services.items()}


def parse(text: str, name: str, file: str) -> Mediator:
    """The manifest of the mediator `name`; DefinitionError names `file` and the line of what is wrong."""
    table = parse_table(text, _Manifest, file)
    if repeated := _repeated(table.methods):
        raise DefinitionError(f'{file}:{line_of(text, ("methods",))}: methods: "{repeated[0]}" is there twice')
    services, delivery = {}, Delivery(table.delivery)
    for service, untrusted_keys in table.services.items():
        try:
            services[service] = _kind(name, service, untrusted_keys, delivery)
        except UsageError as error:
            place = f"{file}:{line_of(text, ('services', service))}"
            raise DefinitionError(f'{place}: services."{escape(service, limit=80)}": {error.sentence}') from error
    return Mediator(
        name=name, description=table.description, methods=tuple(table.methods), descriptors=table.descriptors,
        delivery=delivery, folder=table.folder, jobs=table.jobs, services=services)


def _kind(name: str, service: str, untrusted_keys: dict[str, object], delivery: Delivery) -> ServiceKind:
    head, dot, tail = service.partition(".")
    if head != name or not dot or not (tail == FAMILY[1:] or _SERVICE.match(tail)):
        raise UsageError(f'not a service of {name}, such as "{name}.Use"')
    found = convert(untrusted_keys, _Service)
    if repeated := _repeated(found.parameters):
        raise UsageError(f'parameters: "{repeated[0]}" is there twice')
    if found.looks_first and delivery is Delivery.NONE:
        raise UsageError("looks-first: there is no delivery half that could")
    return ServiceKind(one_way=found.one_way, parameters=frozenset(found.parameters), looks_first=found.looks_first)


def _repeated(words: Iterable[str]) -> list[str]:
    words = list(words)
    return sorted({word for word in words if words.count(word) > 1})


def _names(directory: Path) -> list[str]:
    """The mediators that have a manifest in it; other files, such as an editor's, do not count."""
    try:
        found = sorted(name for name in os.listdir(directory) if name.endswith(".toml") and not name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DefinitionError(f"{directory}: cannot be read: {error.strerror}") from error
    for file in found:
        if not _NAME.match(file.removesuffix(".toml")):
            raise DefinitionError(f"{directory}/{escape(file, limit=80)}:1: a manifest is named NAME.toml, where NAME "
                                  f"has 1 to {MEDIATOR_NAME_MAX} of a-z")
    return [file.removesuffix(".toml") for file in found]


def _check_folders(mediators: Iterable[Mediator], paths: Paths) -> None:
    """Each is one mediator's alone, and none of those of the core."""
    owners: dict[str, str] = dict.fromkeys(("audit", "cages", "exports", "flatpak", "storage"), "the core")
    for mediator in mediators:
        if mediator.folder is None:
            continue
        if mediator.folder in owners:
            raise DefinitionError(f'{paths.shipped}/{DIRECTORY}/{mediator.name}.toml:1: the folder "{mediator.folder}" '
                                  f"belongs to {owners[mediator.folder]}")
        owners[mediator.folder] = mediator.name
