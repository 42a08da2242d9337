# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the spawner asks of cage-scopes, and how units are called: typed, bounded, decoded strictly.

One SOCK_SEQPACKET message is one request or one answer, JSON.  The spawner alone has the other end.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from cage_runtime.decoding import decode

Number = Annotated[int, msgspec.Meta(ge=1, le=2**62)]
Uuid = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,30}\Z")]
Runtime = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_]{0,128}\Z")]

THE_SYSTEMS = "cage-runtime"
"""The cgroup that the configuration names by default (config.Paths): that of the system's own runtime."""


def runtime_of(cgroup: str) -> str:
    """How the units of a runtime are told from another's, by the cgroup of its configuration: "" for the system's."""
    return "" if cgroup == THE_SYSTEMS else re.sub(r"[^A-Za-z0-9]", "_", cgroup)[:128]


def slice_of(runtime: str) -> tuple[str, ...]:
    """The slice for a runtime's scopes, with those that it is in; the last one is its own."""
    return ("cages.slice", f"cages-{runtime}.slice") if runtime else ("cages.slice",)


def scope_of(runtime: str, name: str) -> str:
    """The unit of the cage `name`; names of cages have no dot."""
    return f"cage-{name}.{runtime}.scope" if runtime else f"cage-{name}.scope"


def name_of(runtime: str, unit: str) -> str:
    """The name of the cage whose unit that is (`scope_of`); empty where it is none's."""
    found = re.fullmatch(re.escape(scope_of(runtime, "/")).replace("/", "([a-z][a-z0-9-]{0,30})"), unit)
    return found[1] if found else ""


def is_scope(unit: str) -> bool:
    """Whether a unit is called as that of a cage, of any runtime."""
    return unit.startswith("cage-") and unit.endswith(".scope")


class Open(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="open"):
    """Have systemd make the scope of the cage `name`, with one process in it: the seed, which keeps it."""

    number: Number
    name: Name
    runtime: Runtime


class Close(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="close"):
    """End the seed of `number`, whether its scope is there by now or not; systemd removes a scope that is empty."""

    number: Number


class Register(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="register"):
    """Tell systemd-machined of a cage whose first process is `leader`; nobody waits for that."""

    name: Name
    uuid: Uuid
    leader: Annotated[int, msgspec.Meta(ge=2, le=2**31)]


class Unregister(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op",
                 tag="unregister"):
    """The cage has ended: have systemd-machined forget it, before anything is done for its next life."""

    name: Name
    uuid: Uuid


class Opened(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="opened"):
    """The answer to Open: the seed's pid, or a sentence that says why there is no scope."""

    number: Number
    seed: int = 0
    fault: Annotated[str, msgspec.Meta(max_length=1000)] = ""


class Leaving(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="leaving"):
    """systemd is about to end what is in this scope: what stands still there is to hear of it."""

    unit: Annotated[str, msgspec.Meta(max_length=256)]


Asked = Open | Close | Register | Unregister

_ENCODER = msgspec.json.Encoder()
_ASKED = msgspec.json.Decoder(Asked)
_TOLD = msgspec.json.Decoder(Opened | Leaving)


def encode(message: Asked | Opened | Leaving) -> bytes:
    return _ENCODER.encode(message)


def decode_asked(message: bytes) -> Asked:
    """The request, or msgspec.DecodeError."""
    asked: Asked = decode(message, _ASKED)
    return asked


def decode_told(message: bytes) -> Opened | Leaving:
    """What cage-scopes tells, or msgspec.DecodeError."""
    told: Opened | Leaving = decode(message, _TOLD)
    return told
