# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tokens of the policy language: who a rule is about, and which token may stand where."""

from __future__ import annotations

import re

from cage_runtime.errors import CageError
from cage_runtime.model import CORE_TARGET, DISPOSABLE_TARGET, Levels, check_cage_name
from cage_runtime.policy.rule import (
    ANY,
    AnyCage,
    Anyone,
    AtLevel,
    Core,
    Default,
    Disposable,
    InCompartment,
    Named,
    Redirect,
    Relation,
    SameOwner,
    Source,
    Tagged,
    Target,
)
from cage_runtime.text import escape

_WORD = re.compile(r"[a-z][a-z0-9-]{0,30}\Z")
_TARGETS_ALONE = frozenset({"@core", "@default", "@disposable", "@owner", *Relation})
_TOKENS = "*, a cage's name, @any, @level:LEVEL, @compartment:COMPARTMENT, @tag:TAG"
_TARGETS = f"{_TOKENS}, @core, @default, @disposable, @disposable:TEMPLATE, @owner, @dominates and @same-label"


class Fault(Exception):
    """What is wrong with a line; whoever reads it adds where."""


def shown(untrusted_word: str) -> str:
    return escape(untrusted_word, limit=60)


def source_of(untrusted_token: str, levels: Levels) -> Source:
    """What may stand in the column of the source."""
    if untrusted_token.partition(":")[0] in _TARGETS_ALONE:
        raise Fault(f'"{shown(untrusted_token)}" says what the target is: it cannot be the source')
    return _cages(untrusted_token, levels, _TOKENS)


def target_of(untrusted_token: str, levels: Levels) -> Target:
    """What may stand in the column of the target."""
    match untrusted_token:
        case "@core":
            return Core()
        case "@default":
            return Default()
        case "@owner":
            return SameOwner()
        case Relation.DOMINATES | Relation.SAME_LABEL:
            return Relation(untrusted_token)
    return _disposable(untrusted_token) or _cages(untrusted_token, levels, _TARGETS)


def redirect_of(untrusted_target: str) -> Redirect:
    """What `target=` and `default-target=` may say: one target, not many."""
    if untrusted_target == CORE_TARGET:
        return Core()
    if disposable := _disposable(untrusted_target):
        return disposable
    if untrusted_target.startswith("@"):
        raise Fault(f'"{shown(untrusted_target)}" is not one target: write a cage\'s name, @core, @disposable or'
                    " @disposable:TEMPLATE")
    return _named(untrusted_target)


def _disposable(untrusted_token: str) -> Disposable | None:
    token, colon, untrusted_template = untrusted_token.partition(":")
    if token != DISPOSABLE_TARGET:
        return None
    if colon and not _WORD.match(untrusted_template):
        raise Fault(f'"{shown(untrusted_template)}" is not a template: 1 to 31 of a-z, 0-9 and "-", first a letter')
    return Disposable(template=untrusted_template or None)


def _cages(untrusted_token: str, levels: Levels, there: str) -> Source:
    if untrusted_token == ANY:
        return Anyone()
    if not untrusted_token.startswith("@"):
        return _named(untrusted_token)
    kind, colon, untrusted_word = untrusted_token.partition(":")
    if kind == "@any" and not colon:
        return AnyCage()
    try:
        if kind == "@level":
            return AtLevel(level=levels.label(untrusted_word).level)
        if kind == "@compartment":
            levels.label(levels.names[0], [untrusted_word])
            return InCompartment(compartment=untrusted_word)
    except CageError as error:
        raise Fault(error.sentence) from None
    if kind == "@tag":
        if not _WORD.match(untrusted_word):
            raise Fault(f'"{shown(untrusted_word)}" is not a tag: 1 to 31 of a-z, 0-9 and "-", first a letter')
        return Tagged(tag=untrusted_word)
    raise Fault(f'"{shown(untrusted_token)}" is not a token that can stand here: there are {there}')


def _named(untrusted_name: str) -> Named:
    try:
        return Named(name=check_cage_name(untrusted_name))
    except CageError as error:
        raise Fault(error.sentence) from None
