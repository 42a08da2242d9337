# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a call answers where none of the conditions under which it is allowed holds, and which are answered by us.

libseccomp knows no "all but", so its answer there is the filter's default, ENOSYS, which for socket(2) or mknod(2)
no program expects.  This program is written out as classic BPF (Documentation/userspace-api/seccomp_filter.rst) and
loaded after the others: it only ever refuses, and among refusals the kernel takes the one that was loaded last.

The other program here hands calls to whoever holds its listener.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass

_LOAD, _AND, _EQUAL, _JUMP, _RETURN = 0x20, 0x54, 0x15, 0x05, 0x06
_ALLOW, _NOTIFY, _ERRNO = 0x7FFF0000, 0x7FC00000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Offsets in struct seccomp_data; an argument is two words, the lower one first."""
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

Condition = tuple[int, int, int]
"""(number, mask, value): (argument & mask) == value."""
_Instruction = tuple[int, int, int, int]
"""Code, how far to jump where it is true, where not, and the constant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A call by its number, which fails with `error` unless one of the `allowed` alternatives fits."""

    number: int
    error: int
    allowed: Sequence[Sequence[Condition]]
    refused: Sequence[tuple[Sequence[Condition], int]] = ()
    """Conditions with which it fails with another errno, where none of `allowed` fits."""


def program(calls: Sequence[Call]) -> bytes:
    """Refuses each of `calls` as it says, and allows all others.

    Empty on an architecture that this file does not know.
    """
    code = _beginning()
    if not code:
        return b""
    for call in calls:
        block = [instruction for conditions in call.allowed for instruction in _alternative(conditions, _ALLOW)]
        for conditions, error in call.refused:
            block += _alternative(conditions, _ERRNO | error)
        block.append((_RETURN, 0, 0, _ERRNO | call.error))
        # A jump in one instruction reaches 255 others; where the block is longer, past one that jumps further.
        code += [(_EQUAL, 1, 0, call.number), (_JUMP, 0, 0, len(block)), *block]
    return _pack([*code, (_RETURN, 0, 0, _ALLOW)])


def notifying(numbers: Sequence[int]) -> bytes:
    """Leaves the calls of these `numbers` to the holder of the program's listener (seccomp_unotify(2)).

    Empty as `program`, and where there are none.  What another program refuses stays refused.
    """
    code = _beginning()
    if not code or not numbers:
        return b""
    for number in numbers:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _NOTIFY)]
    return _pack([*code, (_RETURN, 0, 0, _ALLOW)])


def _beginning() -> list[_Instruction]:
    """Allow what is of another architecture, which the other programs kill, and load the call's number."""
    architecture = _ARCHITECTURES.get(platform.machine())
    if architecture is None:
        return []
    return [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, _NUMBER)]


def _pack(code: Sequence[_Instruction]) -> bytes:
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _alternative(conditions: Sequence[Condition], answer: int) -> list[_Instruction]:
    """`answer` where all of `conditions` hold, else go on behind it."""
    words = [
        (_ARGUMENTS + 8 * number + 4 * half, mask >> (32 * half) & 0xFFFFFFFF, value >> (32 * half) & 0xFFFFFFFF)
        for number, mask, value in conditions for half in (0, 1) if mask >> (32 * half) & 0xFFFFFFFF
    ]
    code: list[_Instruction] = []
    for index, (offset, mask, value) in enumerate(words):
        behind = 3 * (len(words) - index - 1) + 1
        code += [(_LOAD, 0, 0, offset), (_AND, 0, 0, mask), (_EQUAL, 0, behind, value)]
    return [*code, (_RETURN, 0, 0, answer)]
