# SPDX-License-Identifier: LGPL-2.1-or-later
"""The policy language: one rule a line, `service argument source target action [parameters]`.

Anything unknown, repeated or out of place is a PolicySyntaxError that names file and line, and refuses the file.
`read` goes on after one, for whoever wants to know of all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from cage_runtime.errors import PolicySyntaxError
from cage_runtime.model import POLICY_BYTES_MAX, POLICY_LINE_MAX, Action, Levels, ServiceKind
from cage_runtime.policy.parameters import read_parameters
from cage_runtime.policy.rule import ANY, Default, Include, Rule, Service
from cage_runtime.policy.tokens import Fault, shown, source_of, target_of
from cage_runtime.text import escape

SERVICE_PATTERN = r"(?=.{1,64}\Z)[A-Za-z][A-Za-z0-9-]*(\.[A-Za-z][A-Za-z0-9-]*)+\Z"
ARGUMENT_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"
"""What a request may name as its service, and as its argument where it has one."""
_SERVICE = re.compile(SERVICE_PATTERN)
_ARGUMENT = re.compile(rf"\+{ARGUMENT_PATTERN}")
_PATH = re.compile(r"/?([A-Za-z0-9_+-][A-Za-z0-9._+-]*)(/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)*\Z")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_INCLUDES = {"!include": False, "!include-dir": True}
"""The instruction, and whether it names a directory."""
NO_KINDS: Mapping[str, ServiceKind] = {}

Found = Rule | Include | PolicySyntaxError
"""What a line can be."""


def parse(
    untrusted_text: bytes, *, file: str, levels: Levels, kinds: Mapping[str, ServiceKind] = NO_KINDS
) -> tuple[Rule, ...]:
    """The rules of one policy file in their order; PolicySyntaxError names `file` and the line.

    `kinds` are the services that mediators have.  There are no other files here that could be included: see `loader`.
    """
    return tuple(sound(map(_no_include, read(untrusted_text, file=file, levels=levels, kinds=kinds))))


def _no_include(found: Found) -> Rule | PolicySyntaxError:
    if isinstance(found, Include):
        return PolicySyntaxError(f"{found.place}: nothing can be included here")
    return found


def sound(read_rules: Iterable[Rule | PolicySyntaxError]) -> Iterator[Rule]:
    """The rules alone; the first fault among them is raised."""
    for found in read_rules:
        if isinstance(found, PolicySyntaxError):
            raise found
        yield found


def read(
    untrusted_text: bytes, *, file: str, levels: Levels, kinds: Mapping[str, ServiceKind] = NO_KINDS
) -> Iterator[Found]:
    """Line by line what it says, or what is wrong with it; where something is, none of the rules counts."""
    if len(untrusted_text) > POLICY_BYTES_MAX:
        yield PolicySyntaxError(f"{file}:1: the file has more than {POLICY_BYTES_MAX} bytes; divide it")
        return
    for number, untrusted_line in enumerate(untrusted_text.split(b"\n"), start=1):
        place = f"{file}:{number}"
        try:
            words = _words(untrusted_line)
            if words:
                yield _include(words, place) if words[0].startswith("!") else _rule(words, place, levels, kinds)
        except Fault as fault:
            yield PolicySyntaxError(f"{place}: {fault}")


def kind_of(service: str, kinds: Mapping[str, ServiceKind]) -> ServiceKind | None:
    """What is known of a service by its name or its family, such as `call.*`; None where no mediator has it."""
    return kinds.get(service) or kinds.get(f"{service.partition('.')[0]}.*")


def _words(untrusted_line: bytes) -> list[str]:
    """The line's words without its comment, which begins with a `#` where a word would."""
    if len(untrusted_line) > POLICY_LINE_MAX:
        raise Fault(f"the line has more than {POLICY_LINE_MAX} bytes")
    try:
        line = untrusted_line.decode()
    except UnicodeDecodeError as error:
        raise Fault(f"not UTF-8 at byte {error.start} of the line") from None
    if found := _UNPRINTABLE.search(line):
        raise Fault(f"a control character ({escape(found[0])}) does not belong in a policy")
    # Only blanks part words: str.split() would also take invisible spaces that a reader does not see.
    words = re.split(r"[ \t]+", re.split(r"(?:^|(?<=[ \t]))#", line, maxsplit=1)[0].strip(" \t"))
    return words if words != [""] else []


def _include(words: list[str], place: str) -> Include:
    instruction, *untrusted_paths = words
    if instruction not in _INCLUDES:
        raise Fault(f'"{shown(instruction)}" is not an instruction: there are !include FILE and !include-dir DIRECTORY')
    if len(untrusted_paths) != 1:
        raise Fault(f"{instruction} takes one path, and no blanks in it")
    if not _PATH.match(untrusted_paths[0]):
        raise Fault(
            f'"{shown(untrusted_paths[0])}" cannot be included: a path here has A-Z, a-z, 0-9 and "._+-" between single'
            ' slashes, and no part of it begins with a "."'
        )
    return Include(path=untrusted_paths[0], directory=_INCLUDES[instruction], place=place)


def _rule(words: list[str], place: str, levels: Levels, kinds: Mapping[str, ServiceKind]) -> Rule:
    if len(words) < 5:
        raise Fault(f"{len(words)} words are no rule: it has a service, an argument, a source, a target and an action")
    service, action = _service(words[0], words[1]), _action(words[4])
    source, target = source_of(words[2], levels), target_of(words[3], levels)
    name = service.name if service else None
    kind = kind_of(name, kinds) if name else None
    parameters = read_parameters(words[5:], action, name, kind)
    if isinstance(target, Default) and action is Action.ALLOW and not parameters.target:
        raise Fault('to allow "@default" takes target=: it is about requests that name no target')
    return Rule(service=service, source=source, target=target, action=action, parameters=parameters, place=place)


def _service(untrusted_service: str, untrusted_argument: str) -> Service | None:
    if untrusted_argument != ANY and not _ARGUMENT.match(untrusted_argument):
        raise Fault(f'"{shown(untrusted_argument)}" is not an argument: write * for any, or a name after +')
    if untrusted_service == ANY:
        if untrusted_argument != ANY:
            raise Fault(f'the argument "{untrusted_argument}" needs a service: after * write * here too')
        return None
    if not _SERVICE.match(untrusted_service):
        raise Fault(f'"{shown(untrusted_service)}" is not a service: write * for any, or a name such as files.Send')
    return Service(name=untrusted_service, argument=None if untrusted_argument == ANY else untrusted_argument[1:])


def _action(untrusted_action: str) -> Action:
    try:
        return Action(untrusted_action)
    except ValueError:
        raise Fault(f'"{shown(untrusted_action)}" is not an action: write allow, ask or deny') from None
