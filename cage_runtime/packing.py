# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a tree of files is one stream of bytes: what `incage send` writes and the files mediator reads.

    header   magic, entries (4 bytes), bytes of all contents (8), bytes of the whole stream with this header (8)
    entry    kind (1), bytes of the name (1), bytes of the content (8); then the name, in UTF-8; then the content
    ...      what is in a directory comes after it, and then an entry LEAVE; the last entry of all is END

A name is one component, so that no entry can say where it goes: it goes into the directory that is open.  Nothing but a
file's content, its name and whether it can be executed is in the stream.  All numbers are big-endian and unsigned.
"""

from __future__ import annotations

import struct

MAGIC = b"cagetree"
HEADER = struct.Struct(">8sIQQ")
ENTRY = struct.Struct(">BBQ")
END, DIRECTORY, FILE, PROGRAM, LEAVE = range(5)
"""A PROGRAM is a file that can be executed."""
ENTRIES_MAX = 100_000
"""Files and directories in one tree."""
DEPTH_MAX = 64
"""Directories in one another, with that of the tree."""
PATH_BYTES_MAX = 3072
"""Bytes of an entry's path below the tree: with the inbox before it, it has to fit into PATH_MAX of Linux."""
NAME_BYTES_MAX = 255


def header(entries: int, content: int, length: int) -> bytes:
    return HEADER.pack(MAGIC, entries, content, length)


def entry(kind: int, name: bytes = b"", size: int = 0) -> bytes:
    return ENTRY.pack(kind, len(name), size) + name
