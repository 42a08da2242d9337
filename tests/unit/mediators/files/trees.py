# SPDX-License-Identifier: LGPL-2.1-or-later
"""Streams of trees for tests: as `incage send` makes them, and as only somebody hostile would."""

from __future__ import annotations

import hashlib

from cage_runtime.packing import DIRECTORY, END, ENTRY, FILE, HEADER, LEAVE, PROGRAM, entry, header

Step = tuple[int, bytes, bytes]
"""The kind, the name, the content."""
TREE: list[Step] = [
    (FILE, b"a.txt", b"first\n"), (DIRECTORY, b"sub", b""), (PROGRAM, b"run", b"#!/bin/sh\n"), (FILE, b"none", b""),
    (DIRECTORY, b"deep", b""), (LEAVE, b"", b""), (LEAVE, b"", b""), (FILE, b"z", b"last" * 1000),
]
MANIFEST = "".join(f"{kind} {len(content)} {hashlib.sha256(content).hexdigest() if kind != 'd' else '-'} {path}\n"
                   for kind, content, path in [
    ("f", b"first\n", "a.txt"), ("d", b"", "sub"), ("x", b"#!/bin/sh\n", "sub/run"), ("f", b"", "sub/none"),
    ("d", b"", "sub/deep"), ("f", b"last" * 1000, "z")])
DIGEST = hashlib.sha256(MANIFEST.encode()).hexdigest()


def body(steps: list[Step]) -> bytes:
    return b"".join(entry(kind, name, len(content)) + content for kind, name, content in steps)


def stream(steps: list[Step], *, entries: int | None = None, content: int | None = None, length: int | None = None,
           end: bytes = entry(END)) -> bytes:
    """With the header that fits, but for what is given."""
    inner = body(steps) + end
    counted = sum(kind in (DIRECTORY, FILE, PROGRAM) for kind, _, _ in steps)
    size = sum(len(of) for _, _, of in steps)
    return header(counted if entries is None else entries, size if content is None else content,
                  HEADER.size + len(inner) if length is None else length) + inner


def bare(kind: int, name: bytes, size: int) -> bytes:
    """An entry whose content does not follow."""
    return ENTRY.pack(kind, len(name), size) + name
