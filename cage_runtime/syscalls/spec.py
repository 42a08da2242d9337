# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the spawner tells cage-syscalls, and is told: typed, bounded, decoded strictly, as spawner/spec.py."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from cage_runtime.decoding import decode

COUNT_MAX = 2**53
"""No cage makes so many calls; and caged, who is told of them, takes as much and more."""
Call = Literal["sysinfo", "other"]
"""What is answered, and what is none of it and has no answer but ENOSYS."""
Uuid = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]


class Mediate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="mediate"):
    """Answer the calls of this cage.  Descriptors: their listener, and the directory of the cage's cgroup."""

    uuid: Uuid
    born: Annotated[float, msgspec.Meta(ge=0, le=2**40)]
    """When the cage was, in seconds of the host's CLOCK_BOOTTIME."""


class Forget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="forget"):
    """The cage has ended."""

    uuid: Uuid


class Counted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="counted"):
    """So many calls of the cage have been answered since it was told of, by their names."""

    uuid: Uuid
    calls: dict[Call, Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]]


_ENCODER = msgspec.json.Encoder()
_ASKED = msgspec.json.Decoder(Mediate | Forget)
_TOLD = msgspec.json.Decoder(Counted)


def encode(message: Mediate | Forget | Counted) -> bytes:
    return _ENCODER.encode(message)


def decode_asked(untrusted_message: bytes) -> Mediate | Forget:
    """What the spawner says, or msgspec.DecodeError."""
    message: Mediate | Forget = decode(untrusted_message, _ASKED)
    return message


def decode_told(untrusted_message: bytes) -> Counted:
    """What cage-syscalls says, or msgspec.DecodeError."""
    message: Counted = decode(untrusted_message, _TOLD)
    return message
