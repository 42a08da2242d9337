# SPDX-License-Identifier: LGPL-2.1-or-later
"""The policy language: one rule a line, `service argument source target action [parameters]`.

Anything unknown, repeated or out of place is a PolicySyntaxError that names file and line, and refuses the file.
`read` goes on after one, for whoever wants to know of all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from cage_runtime.errors import CageError, PolicySyntaxError
from cage_runtime.model import (
    POLICY_BYTES_MAX,
    POLICY_LINE_MAX,
    Action,
    Levels,
    Parameters,
    check_cage_name,
    parse_size,
)
from cage_runtime.policy.rule import ANY, Anyone, AtLevel, Named, Relation, Rule, Service, Source, Target
from cage_runtime.text import escape

_SERVICE = re.compile(r"(?=.{1,64}\Z)[A-Za-z][A-Za-z0-9-]*(\.[A-Za-z][A-Za-z0-9-]*)+\Z")
_ARGUMENT = re.compile(r"\+[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_LATER_TOKENS = frozenset({"@any", "@core", "@default", "@disposable", "@compartment", "@tag", "@owner"})
_LATER_PARAMETERS = frozenset({"target", "default-target", "user", "notify", "autostart", "direction", "max-files"})
_LATER_PARAMETERS |= {"types", "limit", "for", "until", "transform", "require", "log"}


class _Fault(Exception):
    """What is wrong with a line; `read` adds where."""


def parse(untrusted_text: bytes, *, file: str, levels: Levels) -> tuple[Rule, ...]:
    """The rules of one policy file in their order; PolicySyntaxError names `file` and the line."""
    return tuple(sound(read(untrusted_text, file=file, levels=levels)))


def sound(read_rules: Iterable[Rule | PolicySyntaxError]) -> Iterator[Rule]:
    """The rules alone; the first fault among them is raised."""
    for found in read_rules:
        if isinstance(found, PolicySyntaxError):
            raise found
        yield found


def read(untrusted_text: bytes, *, file: str, levels: Levels) -> Iterator[Rule | PolicySyntaxError]:
    """Line by line the rule, or what is wrong with it; where something is, none of the rules counts."""
    if len(untrusted_text) > POLICY_BYTES_MAX:
        yield PolicySyntaxError(f"{file}:1: the file has more than {POLICY_BYTES_MAX} bytes; divide it")
        return
    for number, untrusted_line in enumerate(untrusted_text.split(b"\n"), start=1):
        place = f"{file}:{number}"
        try:
            words = _words(untrusted_line)
            if words:
                yield _rule(words, place, levels)
        except _Fault as fault:
            yield PolicySyntaxError(f"{place}: {fault}")


def _words(untrusted_line: bytes) -> list[str]:
    """The line's words without its comment, which begins with a `#` where a word would."""
    if len(untrusted_line) > POLICY_LINE_MAX:
        raise _Fault(f"the line has more than {POLICY_LINE_MAX} bytes")
    try:
        line = untrusted_line.decode()
    except UnicodeDecodeError as error:
        raise _Fault(f"not UTF-8 at byte {error.start} of the line") from None
    if found := _UNPRINTABLE.search(line):
        raise _Fault(f"a control character ({escape(found[0])}) does not belong in a policy")
    # Only blanks part words: str.split() would also take invisible spaces that a reader does not see.
    words = re.split(r"[ \t]+", re.split(r"(?:^|(?<=[ \t]))#", line, maxsplit=1)[0].strip(" \t"))
    return words if words != [""] else []


def _rule(words: list[str], place: str, levels: Levels) -> Rule:
    if words[0].startswith("!"):
        raise _Fault(f'"{_shown(words[0])}": instructions such as !include are not supported yet')
    if len(words) < 5:
        raise _Fault(f"{len(words)} words are no rule: it has a service, an argument, a source, a target and an action")
    action = _action(words[4])
    return Rule(
        service=_service(words[0], words[1]),
        source=_source(words[2], levels),
        target=_target(words[3], levels),
        action=action,
        parameters=_parameters(words[5:], action),
        place=place,
    )


def _service(untrusted_service: str, untrusted_argument: str) -> Service | None:
    if untrusted_argument != ANY and not _ARGUMENT.match(untrusted_argument):
        raise _Fault(f'"{_shown(untrusted_argument)}" is not an argument: write * for any, or a name after +')
    if untrusted_service == ANY:
        if untrusted_argument != ANY:
            raise _Fault(f'the argument "{untrusted_argument}" needs a service: after * write * here too')
        return None
    if not _SERVICE.match(untrusted_service):
        raise _Fault(f'"{_shown(untrusted_service)}" is not a service: write * for any, or a name such as files.Send')
    return Service(name=untrusted_service, argument=None if untrusted_argument == ANY else untrusted_argument[1:])


def _source(untrusted_token: str, levels: Levels) -> Source:
    if untrusted_token in (Relation.DOMINATES, Relation.SAME_LABEL):
        raise _Fault(f'"{untrusted_token}" says how a target stands to the source: it cannot be the source')
    return _cages(untrusted_token, levels)


def _target(untrusted_token: str, levels: Levels) -> Target:
    if untrusted_token in (Relation.DOMINATES, Relation.SAME_LABEL):
        return Relation(untrusted_token)
    return _cages(untrusted_token, levels)


def _cages(untrusted_token: str, levels: Levels) -> Anyone | Named | AtLevel:
    if untrusted_token == ANY:
        return Anyone()
    if untrusted_token.startswith("@"):
        return _at_level(untrusted_token, levels)
    try:
        return Named(name=check_cage_name(untrusted_token))
    except CageError as error:
        raise _Fault(error.sentence) from None


def _at_level(untrusted_token: str, levels: Levels) -> AtLevel:
    kind, _, untrusted_level = untrusted_token.partition(":")
    if kind in _LATER_TOKENS:
        raise _Fault(f'"{_shown(untrusted_token)}" is not supported yet')
    if kind != "@level":
        raise _Fault(
            f'"{_shown(untrusted_token)}" is not a token: there are *, a cage\'s name, @level:LEVEL,'
            " and for the target @dominates and @same-label"
        )
    try:
        return AtLevel(level=levels.label(untrusted_level).level)
    except CageError as error:
        raise _Fault(error.sentence) from None


def _action(untrusted_action: str) -> Action:
    try:
        return Action(untrusted_action)
    except ValueError:
        raise _Fault(f'"{_shown(untrusted_action)}" is not an action: write allow, ask or deny') from None


def _parameters(untrusted_words: list[str], action: Action) -> Parameters:
    found = dict(_named_once(untrusted_words))
    if found and action is Action.DENY:
        raise _Fault(f'"{next(iter(found))}" is out of place: a deny takes no parameters')
    declassify, max_size = False, None
    for name, untrusted_value in found.items():
        if name == "declassify":
            if untrusted_value is not None:
                raise _Fault('"declassify" takes no value')
            declassify = True
        else:
            max_size = _size(untrusted_value)
    return Parameters(declassify=declassify, max_size=max_size)


def _named_once(untrusted_words: list[str]) -> Iterator[tuple[str, str | None]]:
    """Each parameter's name, known and not seen before, and its untrusted value, None where there is no `=`."""
    seen = set()
    for word in untrusted_words:
        name, equals, untrusted_value = word.partition("=")
        if name in _LATER_PARAMETERS:
            raise _Fault(f'the parameter "{name}" is not supported yet')
        if name not in ("declassify", "max-size"):
            raise _Fault(f'"{_shown(name)}" is not a parameter: there are declassify and max-size=SIZE')
        if name in seen:
            raise _Fault(f'the parameter "{name}" is given twice')
        seen.add(name)
        yield name, untrusted_value if equals else None


def _size(untrusted_value: str | None) -> int:
    if untrusted_value is None:
        raise _Fault('"max-size" needs a value, such as max-size=2G')
    try:
        return parse_size(untrusted_value)
    except CageError as error:
        raise _Fault(f"max-size: {error.sentence}") from None


def _shown(untrusted_word: str) -> str:
    return escape(untrusted_word, limit=60)
