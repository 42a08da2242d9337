# SPDX-License-Identifier: LGPL-2.1-or-later
"""One rule as a value.  What may stand in which column is a type, so that a nonsense rule cannot be built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from cage_runtime.model import CORE_TARGET, DISPOSABLE_TARGET, Action, Limit, Parameters

ANY = "*"
NO_PARAMETERS = Parameters()


@dataclass(frozen=True, kw_only=True, slots=True)
class Anyone:
    """`*`: every cage; as a target also the core, and that none was named."""

    def __str__(self) -> str:
        return ANY


@dataclass(frozen=True, kw_only=True, slots=True)
class AnyCage:
    """`@any`: every cage, and not the core."""

    def __str__(self) -> str:
        return "@any"


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """The cage of this name."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class AtLevel:
    """`@level:L`: every cage of exactly this level, whatever its compartments."""

    level: str

    def __str__(self) -> str:
        return f"@level:{self.level}"


@dataclass(frozen=True, kw_only=True, slots=True)
class InCompartment:
    """`@compartment:C`: every cage that has this compartment, whatever others it has."""

    compartment: str

    def __str__(self) -> str:
        return f"@compartment:{self.compartment}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tagged:
    """`@tag:T`: every cage whose definition has this tag."""

    tag: str

    def __str__(self) -> str:
        return f"@tag:{self.tag}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Core:
    """`@core`: the core itself."""

    def __str__(self) -> str:
        return CORE_TARGET


@dataclass(frozen=True, kw_only=True, slots=True)
class Default:
    """`@default`: the source named no target."""

    def __str__(self) -> str:
        return "@default"


@dataclass(frozen=True, kw_only=True, slots=True)
class Disposable:
    """`@disposable`: a cage made for the request from the usual template; `@disposable:TEMPLATE`: from that one."""

    template: str | None = None

    def __str__(self) -> str:
        return DISPOSABLE_TARGET if self.template is None else f"{DISPOSABLE_TARGET}:{self.template}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SameOwner:
    """`@owner`: every cage of the person whose cage the source is."""

    def __str__(self) -> str:
        return "@owner"


class Relation(StrEnum):
    """Targets by how their label stands to the source's."""

    DOMINATES = "@dominates"
    """The target's label is the source's or above it."""
    SAME_LABEL = "@same-label"
    """The target's label is the source's."""


Source = Anyone | AnyCage | Named | AtLevel | InCompartment | Tagged
Target = Source | Core | Default | Disposable | SameOwner | Relation
Redirect = Named | Core | Disposable
"""What `target=` and `default-target=` may name: one target."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """The service that a rule is about, and of it one argument, or any where `argument` is None."""

    name: str
    argument: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One line of policy.  `service` is None where the line says `*`, and then any argument is meant too."""

    service: Service | None
    source: Source
    target: Target
    action: Action
    parameters: Parameters = NO_PARAMETERS
    place: str
    """FILE:LINE, as it is shown to a person."""

    def __str__(self) -> str:
        service, argument = (self.service.name, self.service.argument) if self.service else (ANY, None)
        words = [service, f"+{argument}" if argument else ANY, str(self.source), str(self.target), self.action.value]
        return " ".join([*words, *written(self.parameters)])


@dataclass(frozen=True, kw_only=True, slots=True)
class Include:
    """An `!include` or, where `directory`, an `!include-dir`: what it names stands in its place."""

    path: str
    """Absolute, or from where the file is that has the line; no component of it is `.` or `..`."""
    directory: bool
    place: str


def written(parameters: Parameters) -> Iterator[str]:
    """The parameters as the language has them, in one order."""
    given = parameters
    yes = {"notify": given.notify, "autostart": given.autostart}
    # Not strftime, whose years have no leading zeros.
    until = None if given.until is None else datetime.fromtimestamp(given.until, UTC).isoformat().replace("+00:00", "Z")
    values = {
        "target": given.target, "default-target": given.default_target, "user": given.user,
        **{name: "yes" for name, is_so in yes.items() if is_so},
        "direction": given.direction, "max-size": _size(given.max_size) if given.max_size else None,
        "max-files": given.max_files,
        "types": ",".join(given.types), "limit": _limit(given.limit) if given.limit else None,
        "for": _time(given.stands) if given.stands else None, "until": until,
        "transform": given.transform, "require": given.require, "log": given.log,
    }
    if given.declassify:
        yield "declassify"
    yield from (f"{name}={value}" for name, value in values.items() if value not in (None, ""))


TIME_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LIMIT_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def _limit(limit: Limit) -> str:
    unit = next(name for name, seconds in LIMIT_UNITS.items() if seconds == limit.seconds)
    return f"{limit.count}/{unit}"


def _time(seconds: int) -> str:
    """In the largest unit that it is a whole number of."""
    unit = next(name for name, length in reversed(TIME_UNITS.items()) if seconds % length == 0)
    return f"{seconds // TIME_UNITS[unit]}{unit}"


def _size(size: int) -> str:
    """In the largest unit that it is a whole number of."""
    for shift, unit in ((40, "T"), (30, "G"), (20, "M"), (10, "K")):
        if size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return str(size)
