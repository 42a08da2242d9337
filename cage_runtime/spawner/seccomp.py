# SPDX-License-Identifier: LGPL-2.1-or-later
"""seccomp filters: profiles (seccomp.d/*.toml) made into BPF programs by libseccomp, once, before any cage.

Law of this room: an allow-list, with ENOSYS for what it does not name; a foreign architecture kills.  A profile is
three programs, because libseccomp cannot say "all but": the second one allows everything but its refusals, the third
is otherwise.py's, and the kernel takes the strictest answer of all (seccomp(2)).  Programs take theirs from filters.py,
which asks here where none is kept.
"""

from __future__ import annotations

import errno
import tempfile
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pyseccomp

from cage_runtime.errors import DefinitionError
from cage_runtime.spawner import otherwise
from cage_runtime.spawner.filters import Filter

_Condition = tuple[Annotated[int, msgspec.Meta(ge=0, le=5)], int, int]

_Errno = Literal["EACCES", "EAFNOSUPPORT", "EINVAL", "EPERM", "EPROTONOSUPPORT"]
BINARY_TREE = 2
"""SCMP_FLTATR_CTL_OPTIMIZE: calls sorted by number into a tree, 20 ns less where the kernel's own table of plain
answers does not know the call."""


class _Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call: str
    arguments: list[_Condition]
    differs: list[tuple[Annotated[int, msgspec.Meta(ge=0, le=5)], int]] = []
    """(number, value): the argument is another one."""
    answer: _Errno | Literal["done"] = "EPERM"
    """Of [[refuse-if]] and [[otherwise-if]]; "done": the call says that it has succeeded, and nothing has happened."""

    @property
    def errno(self) -> int:
        return 0 if self.answer == "done" else int(getattr(errno, self.answer))


class _Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    extends: str | None = None
    without: list[str] = []
    """Groups of [allow] that the profile does not take from those it extends."""
    allow: dict[str, list[str]] = {}
    refuse: dict[str, list[str]] = {}
    allow_if: list[_Rule] = []
    refuse_if: list[_Rule] = []
    otherwise: dict[_Errno, list[str]] = {}
    """What calls of [[allow-if]] answer where no rule fits; without it that is ENOSYS."""
    mediate: list[str] = []
    """Calls that are allowed and that, in a cage, cage-syscalls answers."""
    otherwise_if: list[_Rule] = []
    """Other answers of a call of [otherwise], where no [[allow-if]] fits and this does; the first one counts."""


def build(directory: Path, name: str) -> Filter:
    """The filter of the profile `name` in `directory`; DefinitionError names the file that is wrong."""
    unknown: set[str] = set()
    # One process may load libseccomp's filter; what is exported instead can be loaded by any, from memory.
    allowing, refusing = _policy(pyseccomp.ERRNO(errno.ENOSYS)), _policy(pyseccomp.ALLOW)
    profiles = _with_bases(directory, name)
    without = {group for profile in profiles for group in profile.without}
    for profile in profiles:
        for action, groups in ((pyseccomp.ALLOW, profile.allow), (pyseccomp.ERRNO(errno.EPERM), profile.refuse)):
            for call in sorted({call for group, calls in groups.items() if group not in without for call in calls}):
                _add(allowing, action, _Rule(call, []), unknown)
        for rule in profile.allow_if:
            _add(allowing, pyseccomp.ALLOW, rule, unknown)
        for rule in profile.refuse_if:
            _add(refusing, pyseccomp.ERRNO(rule.errno), rule, unknown)
    programs = (_export(allowing), _export(refusing), _answers(profiles))
    mediated = [pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) for each in profiles for name in each.mediate]
    return Filter(programs=tuple(filter(None, programs)), unknown=tuple(sorted(unknown)),
                  mediated=otherwise.notifying([number for number in mediated if number >= 0]))


def _policy(default: int) -> pyseccomp.SyscallFilter:
    policy = pyseccomp.SyscallFilter(default)
    policy.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    policy.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, BINARY_TREE)
    return policy


def _answers(profiles: list[_Profile]) -> bytes:
    rules = [rule for profile in profiles for rule in profile.allow_if]
    exceptions = [rule for profile in profiles for rule in profile.otherwise_if]
    calls = []
    for error, names in ((error, names) for profile in profiles for error, names in profile.otherwise.items()):
        for name in names:
            number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
            if number >= 0:  # mknod(2) is not on every architecture
                calls.append(otherwise.Call(
                    number=number, error=getattr(errno, error),
                    allowed=[rule.arguments for rule in rules if rule.call == name],
                    refused=[(rule.arguments, rule.errno) for rule in exceptions if rule.call == name],
                ))
    return otherwise.program(calls)


def without_own(directory: Path, name: str) -> Filter:
    """What turns the filter of the profile `name`, on a process that has it, into that of the profile it extends.

    All that is started in a cage inherits cage-init's filter; to load another whole one takes 0.4 ms, this 0.05.
    """
    profile, *bases = reversed(_with_bases(directory, name))
    if profile.extends is None or msgspec.structs.replace(profile, allow={}) != _Profile(extends=profile.extends):
        raise DefinitionError(f"{directory / name}.toml: it may extend another profile by [allow] and nothing else")
    shared = {call for base in bases for calls in base.allow.values() for call in calls}
    unknown: set[str] = set()
    policy = _policy(pyseccomp.ALLOW)
    for call in sorted({call for calls in profile.allow.values() for call in calls} - shared):
        _add(policy, pyseccomp.ERRNO(errno.ENOSYS), _Rule(call, []), unknown)
    return Filter(programs=(_export(policy),), unknown=tuple(sorted(unknown)))


def refusing(directory: Path, name: str) -> Filter:
    """What allows all but the refusals of the profile `name`, for a process that starts others with filters of theirs;
    a foreign architecture kills."""
    unknown: set[str] = set()
    policy = _policy(pyseccomp.ALLOW)
    (profile,) = _with_bases(directory, name)
    for call in sorted({call for calls in profile.refuse.values() for call in calls}):
        _add(policy, pyseccomp.ERRNO(errno.EPERM), _Rule(call, []), unknown)
    for rule in profile.refuse_if:
        _add(policy, pyseccomp.ERRNO(rule.errno), rule, unknown)
    return Filter(programs=(_export(policy),), unknown=tuple(sorted(unknown)))


def _with_bases(directory: Path, name: str) -> list[_Profile]:
    file = directory / f"{name}.toml"
    try:
        profile = msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), _Profile)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError, OSError) as error:
        raise DefinitionError(f"{file}: {error}") from error
    if profile.extends is None:
        return [profile]
    base = _with_bases(directory, profile.extends)
    return [*base, profile]


def _add(policy: pyseccomp.SyscallFilter, action: int, rule: _Rule, unknown: set[str]) -> None:
    number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, rule.call)
    if number < 0:
        unknown.add(rule.call)
        return
    arguments = [pyseccomp.Arg(index, pyseccomp.MASKED_EQ, mask, value) for index, mask, value in rule.arguments]
    arguments += [pyseccomp.Arg(index, pyseccomp.NE, value) for index, value in rule.differs]
    policy.add_rule(action, rule.call, *arguments)


def _export(policy: pyseccomp.SyscallFilter) -> bytes:
    with tempfile.TemporaryFile() as file:
        policy.export_bpf(file)
        file.seek(0)
        return file.read()
