# SPDX-License-Identifier: LGPL-2.1-or-later
"""The parameters of a rule: which there are, where each may stand, and what it may be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cage_runtime.errors import CageError
from cage_runtime.model import (
    POLICY_NUMBER_MAX,
    POLICY_SECONDS_MAX,
    POLICY_TYPES_MAX,
    Action,
    Direction,
    Limit,
    Logged,
    Parameters,
    ServiceKind,
    parse_size,
)
from cage_runtime.policy.rule import LIMIT_UNITS, NO_PARAMETERS, TIME_UNITS
from cage_runtime.policy.tokens import Fault, redirect_of, shown

_NUMBER = re.compile(r"[1-9][0-9]{0,6}\Z")
_LIMIT = re.compile(r"([1-9][0-9]{0,6})/(s|min|h)\Z")
_DURATION = re.compile(r"([1-9][0-9]{0,6})(s|m|h|d)\Z")
_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2})?(Z|[+-][0-9]{2}:[0-9]{2})\Z")
_TYPE = re.compile(r"[a-z][a-z0-9-]{0,30}/(\*|[a-z0-9][a-z0-9!#$&^_.+-]{0,126})\Z")
_TOOL = re.compile(r"[a-z][a-z0-9-]{0,30}(:[A-Za-z0-9][A-Za-z0-9._-]{0,63})?\Z")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,30}\Z")


def _size(untrusted: str) -> int:
    try:
        return parse_size(untrusted)
    except CageError as error:
        raise Fault(error.sentence) from None


def _number(untrusted: str) -> int:
    if not _NUMBER.match(untrusted) or int(untrusted) > POLICY_NUMBER_MAX:
        raise Fault(f'"{shown(untrusted)}" is not a number from 1 to {POLICY_NUMBER_MAX}')
    return int(untrusted)


def _types(untrusted: str) -> tuple[str, ...]:
    found = untrusted.split(",", maxsplit=POLICY_TYPES_MAX)
    if len(found) > POLICY_TYPES_MAX:
        raise Fault(f"more than {POLICY_TYPES_MAX} types")
    for untrusted_type in found:
        if not _TYPE.match(untrusted_type):
            raise Fault(f'"{shown(untrusted_type)}" is not a type such as application/pdf or image/*, in lower case')
    if len(set(found)) < len(found):
        raise Fault("a type is named twice")
    return tuple(found)


def _limit(untrusted: str) -> Limit:
    found = _LIMIT.match(untrusted)
    if not found or int(found[1]) > POLICY_NUMBER_MAX:
        raise Fault(f'"{shown(untrusted)}" is not a limit: write how many in a s, min or h, such as 60/min')
    return Limit(count=int(found[1]), seconds=LIMIT_UNITS[found[2]])


def _duration(untrusted: str) -> int:
    found = _DURATION.match(untrusted)
    seconds = int(found[1]) * TIME_UNITS[found[2]] if found else 0
    if not 0 < seconds <= POLICY_SECONDS_MAX:
        most = POLICY_SECONDS_MAX // TIME_UNITS["d"]
        raise Fault(f'"{shown(untrusted)}" is not a time of at most {most}d: write how many s, m, h or d, such as 10m')
    return seconds


def _moment(untrusted: str) -> float:
    try:
        if _MOMENT.match(untrusted):
            return datetime.fromisoformat(untrusted).timestamp()
    except (ValueError, OverflowError):
        pass  # no such day, or no such hour
    raise Fault(f'"{shown(untrusted)}" is not a time: write it with its zone, such as 2027-01-31T18:00Z')


def _one_of(words: Iterable[str]) -> Callable[[str], str]:
    known = tuple(words)

    def read(untrusted: str) -> str:
        if untrusted not in known:
            raise Fault(f'"{shown(untrusted)}" is not one of: {", ".join(known)}')
        return untrusted

    return read


def _yes(untrusted: str) -> bool:
    return _one_of(("yes", "no"))(untrusted) == "yes"


def _matching(pattern: re.Pattern[str], help_: str) -> Callable[[str], str]:
    def read(untrusted: str) -> str:
        if not pattern.match(untrusted):
            raise Fault(f'"{shown(untrusted)}" is not {help_}')
        return untrusted

    return read


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """A parameter that there is."""

    field: str
    """What it is called in Parameters."""
    read: Callable[[str], Any] | None
    """Its value, from what was written; None where it takes none."""
    example: str = ""
    actions: tuple[Action, ...] = (Action.ALLOW, Action.ASK)
    of_service: bool = False
    """Whether a service keeps it only where its mediator's manifest says so."""


_TOOLS = "a name, perhaps with an argument after a colon"
_EVERYWHERE = (Action.ALLOW, Action.ASK, Action.DENY)


def _redirect(untrusted: str) -> str:
    return str(redirect_of(untrusted))


_KNOWN = {
    "target": _Known(field="target", read=_redirect, example="vault"),
    "default-target": _Known(field="default_target", read=_redirect, example="vault", actions=(Action.ASK,)),
    "user": _Known(field="user", read=_matching(_USER, "a user's name"), example="user", of_service=True),
    "notify": _Known(field="notify", read=_yes, example="yes", actions=_EVERYWHERE),
    "autostart": _Known(field="autostart", read=_yes, example="yes"),
    "direction": _Known(field="direction", read=lambda word: Direction(_one_of(Direction)(word)),
                        example=Direction.ONE_WAY),
    "max-size": _Known(field="max_size", read=_size, example="2G", of_service=True),
    "max-files": _Known(field="max_files", read=_number, example="100", of_service=True),
    "types": _Known(field="types", read=_types, example="application/pdf,image/*", of_service=True),
    "limit": _Known(field="limit", read=_limit, example="60/min"),
    "for": _Known(field="stands", read=_duration, example="10m", actions=(Action.ASK,)),
    "until": _Known(field="until", read=_moment, example="2027-01-31T18:00Z"),
    "transform": _Known(field="transform", read=_matching(_TOOL, _TOOLS), example="encrypt:KEY", of_service=True),
    "require": _Known(field="require", read=_matching(_TOOL, _TOOLS), example="virus-scan", of_service=True),
    "log": _Known(field="log", read=lambda word: Logged(_one_of(Logged)(word)), example=Logged.META,
                  actions=_EVERYWHERE),
    "declassify": _Known(field="declassify", read=None),
}


def read_parameters(untrusted_words: list[str], action: Action, service: str | None,
                    kind: ServiceKind | None) -> Parameters:
    """The parameters of a rule about `service`, all where that is None.

    `kind` is what is known of the service, None where no mediator has it: then whatever could be is taken.
    """
    if not untrusted_words:
        return NO_PARAMETERS
    found: dict[str, Any] = {}
    for word in untrusted_words:
        name, equals, untrusted_value = word.partition("=")
        if name not in _KNOWN:
            raise Fault(f'"{shown(name)}" is not a parameter: there are {", ".join(_KNOWN)}')
        parameter = _KNOWN[name]
        if parameter.field in found:
            raise Fault(f'the parameter "{name}" is given twice')
        if action not in parameter.actions:
            raise Fault(f'"{name}" is out of place: it goes with {" or ".join(parameter.actions)}, not with {action}')
        if parameter.of_service:
            _check_kept(name, service, kind)
        found[parameter.field] = _value(name, parameter, untrusted_value if equals else None)
    parameters = Parameters(**found)
    if parameters.one_way and not (kind and kind.one_way):
        _check_kept("direction", service, kind)
    if parameters.target and parameters.default_target:
        raise Fault('"default-target" is out of place beside "target": nobody is to choose')
    return parameters


def _check_kept(name: str, service: str | None, kind: ServiceKind | None) -> None:
    if service is None:
        raise Fault(f'"{name}" is out of place: not every service keeps it, so name the service')
    if kind is not None and name not in kind.parameters:
        kept = ", ".join(sorted(kind.parameters)) or "none of its kind"
        raise Fault(f'"{name}" is out of place: {service} does not keep it; it keeps {kept}')


def _value(name: str, parameter: _Known, untrusted_value: str | None) -> object:
    if parameter.read is None:
        if untrusted_value is not None:
            raise Fault(f'"{name}" takes no value')
        return True
    if untrusted_value is None:
        raise Fault(f'"{name}" needs a value, such as {name}={parameter.example}')
    try:
        return parameter.read(untrusted_value)
    except Fault as fault:
        raise Fault(f"{name}: {fault}") from None
