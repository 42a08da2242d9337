# SPDX-License-Identifier: LGPL-2.1-or-later
"""One rule as a value.  What may stand in which column is a type, so that a nonsense rule cannot be built."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cage_runtime.model import Action, Parameters

ANY = "*"
NO_PARAMETERS = Parameters()


@dataclass(frozen=True, kw_only=True, slots=True)
class Anyone:
    """`*`: every cage."""

    def __str__(self) -> str:
        return ANY


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


class Relation(StrEnum):
    """Targets by how their label stands to the source's."""

    DOMINATES = "@dominates"
    """The target's label is the source's or above it."""
    SAME_LABEL = "@same-label"
    """The target's label is the source's."""


Source = Anyone | Named | AtLevel
Target = Anyone | Named | AtLevel | Relation


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
        if self.parameters.declassify:
            words.append("declassify")
        if self.parameters.max_size is not None:
            words.append(f"max-size={self.parameters.max_size}")
        if self.parameters.stands is not None:
            words.append(f"for={self.parameters.stands}s")
        if self.parameters.limit is not None:
            words.append(f"limit={self.parameters.limit.count}/{self.parameters.limit.seconds}")
        return " ".join(words)
