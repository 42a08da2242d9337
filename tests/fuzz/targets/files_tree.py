# SPDX-License-Identifier: LGPL-2.1-or-later
"""The stream that a tree is, as the core's worker and the delivery half read it."""

from __future__ import annotations

from cage_runtime.intree import Misfit, Tree, read_header
from cage_runtime.packing import DIRECTORY, FILE, HEADER, LEAVE, PROGRAM, header
from tests.fuzz.values import Taken

MAY_RAISE = (Misfit,)


def run(untrusted: bytes) -> None:
    taken = Taken(untrusted)
    if taken.byte() & 1:  # so that a fuzzer gets beyond the lengths
        entries, content = taken.byte(), taken.byte()
        untrusted = header(entries, content, HEADER.size + taken.left) + taken.rest()
    else:
        untrusted = taken.rest()
    announced = read_header(untrusted[: HEADER.size])
    rest = untrusted[HEADER.size :]
    asked = 0

    def source(most: int) -> bytes:
        nonlocal asked
        assert most > 0 or asked >= announced.length - HEADER.size
        piece = rest[asked : asked + min(most, 7)]
        asked += len(piece)
        return piece

    tree, depth, entries = Tree(announced, source), 0, 0
    for kind, name in tree.steps():
        depth += (kind == DIRECTORY) - (kind == LEAVE)
        entries += kind != LEAVE
        assert depth >= 0
        assert kind == LEAVE or (name not in ("", ".", "..") and "/" not in name)
        if kind in (FILE, PROGRAM):
            assert sum(map(len, tree.content())) <= announced.content
    assert entries == announced.entries
    assert asked == announced.length - HEADER.size
    assert len(tree.digest) == 64
