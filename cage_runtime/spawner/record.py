# SPDX-License-Identifier: LGPL-2.1-or-later
"""What has to be known of a running cage that the kernel does not tell: RUN/cages/UUID/record.json, root's alone.

It is written before the cage is born, so that a spawner that is started again goes on with it, also where the earlier
one was killed in the middle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from cage_runtime.decoding import decode

FILE = "record.json"


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    xid: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0
    """The cage's security context; 0 where it has none."""
    private: bool = False


UNKNOWN = Record()
"""Of a cage that an earlier version has started."""


def write(directory: Path, record: Record) -> None:
    (directory / FILE).write_bytes(msgspec.json.encode(record))


def read(directory: Path) -> Record:
    """The record of the cage; one that has none was born without a context.  ValueError where it is none of ours."""
    try:
        return decode((directory / FILE).read_bytes(), msgspec.json.Decoder(Record))
    except FileNotFoundError:
        return UNKNOWN
