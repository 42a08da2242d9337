# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where two rules are about one request, because one sends it on to the other, what both of them let through."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cage_runtime.model import Direction, Limit, Logged, Parameters

_Value = TypeVar("_Value")
_LOGGED = (Logged.NO, None, Logged.META, Logged.DIGEST)
"""From least to most; a rule that says nothing leaves it to the mediator, and no more is left out than both say."""


def stricter(one: Parameters, other: Parameters) -> Parameters | None:
    """The bounds of both; None where nothing can keep both.  `declassify` and where to are the `other`'s."""
    types = _types(one.types, other.types)
    tools = [(one.transform, other.transform), (one.require, other.require), (one.user, other.user)]
    if types is None or any(mine and theirs and mine != theirs for mine, theirs in tools):
        return None
    transform, require, user = (mine or theirs for mine, theirs in tools)
    return Parameters(
        declassify=other.declassify, target=other.target, default_target=other.default_target,
        max_size=_least(one.max_size, other.max_size), max_files=_least(one.max_files, other.max_files), types=types,
        limit=_either(min_limit, one.limit, other.limit), stands=_least(one.stands, other.stands),
        until=_either(min, one.until, other.until), direction=_direction(one.direction, other.direction),
        transform=transform, require=require, log=max(one.log, other.log, key=_LOGGED.index), user=user,
        notify=one.notify or other.notify, autostart=one.autostart or other.autostart,
    )


def covers(pattern: str, type_: str) -> bool:
    """Whether `type_`, or all that it stands for, is of the `pattern`, such as `image/*`."""
    return pattern == type_ or (pattern.endswith("/*") and type_.startswith(pattern[:-1]))


def _types(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...] | None:
    if not one or not other:
        return one or other
    both = [type_ for type_ in one if any(covers(pattern, type_) for pattern in other)]
    both += [type_ for type_ in other if type_ not in both and any(covers(pattern, type_) for pattern in one)]
    return tuple(both) or None


def _either(choose: Callable[[_Value, _Value], _Value], one: _Value | None, other: _Value | None) -> _Value | None:
    if one is None or other is None:
        return other if one is None else one
    return choose(one, other)


def _least(one: int | None, other: int | None) -> int | None:
    return _either(min, one, other)


def min_limit(one: Limit, other: Limit) -> Limit:
    """The lower rate; of two that are one rate, the one with the smaller burst."""
    return min(one, other, key=lambda limit: (limit.count / limit.seconds, limit.count))


def _direction(one: Direction | None, other: Direction | None) -> Direction | None:
    said = {one, other}
    if Direction.ONE_WAY in said:
        return Direction.ONE_WAY
    return Direction.TWO_WAY if Direction.TWO_WAY in said else None
