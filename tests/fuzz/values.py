# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bytes read as what a cage can say: D-Bus values of any type, and the words of a command line.

The same bytes are always the same values, so that what a fuzzer has found can be kept and played again.
"""

from __future__ import annotations

import os
from typing import Any

from cage_runtime.bus import Call, Variant

TYPES = ("s", "u", "b", "t", "as", "a(ss)", "ay", "i", "d", "o", "g", "y", "n", "q", "x", "a{sv}", "v", "au", "a{ss}",
         "(su)", "aas", "ah", "h", "a{sa{sv}}", "a(say)", "aay")
"""Of what is in a variant."""
BITS = {"y": 8, "q": 16, "u": 32, "t": 64, "n": 16, "i": 32, "x": 64, "h": 32}
SIGNED = "nix"
DEPTH_MAX = 12
"""Values in one another; the buses take 64, and each is as any other."""


def whole(signature: str) -> str:
    """The first complete type of `signature`."""
    if signature[0] == "a":
        return "a" + whole(signature[1:])
    if signature[0] in "({":
        depth = 0
        for at, letter in enumerate(signature):
            depth += (letter in "({") - (letter in ")}")
            if not depth:
                return signature[: at + 1]
    return signature[0]


def types(signature: str) -> list[str]:
    """The complete types that it is made of."""
    found = []
    while signature:
        found.append(whole(signature))
        signature = signature[len(found[-1]) :]
    return found


class Taken:
    """What is left of some bytes; where nothing is, all further values are the smallest of their type."""

    def __init__(self, untrusted: bytes) -> None:
        self._rest = untrusted

    @property
    def left(self) -> int:
        return len(self._rest)

    def rest(self) -> bytes:
        taken, self._rest = self._rest, b""
        return taken

    def take(self, size: int) -> bytes:
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def byte(self) -> int:
        return int.from_bytes(self.take(1), "big")

    def one_of(self, choices: Any) -> Any:
        return choices[self.byte() % len(choices)]

    def blob(self) -> bytes:
        """As long as its first byte says; 255 is the begin of a longer one, of which the next two say it."""
        size = self.byte()
        return self.take(int.from_bytes(self.take(2), "big") if size == 255 else size)

    def text(self) -> str:
        """Unicode without NUL and surrogates: the buses let through nothing else."""
        return self.blob().decode("utf-8", "ignore").replace("\0", "")

    def words(self) -> list[str]:
        """All that is left, a word of a command line where a NUL ends it."""
        return [os.fsdecode(word) for word in self.rest().split(b"\0")]

    def number(self, bits: int, *, signed: bool = False) -> int:
        """Every third is at an end of the range, or beside one."""
        least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        kind = self.byte()
        if kind % 3 == 0:
            return kind // 3
        if kind % 3 == 1:
            return (least, most, most - 1, least + 1, most // 2, most // 2 + 1)[kind // 3 % 6]
        return int.from_bytes(self.take(bits // 8), "big", signed=signed)

    def value(self, signature: str, depth: int = 0) -> Any:
        """A value of one complete type."""
        kind = signature[0]
        if kind in BITS:
            return self.number(BITS[kind], signed=kind in SIGNED)
        if kind == "b":
            return bool(self.byte() & 1)
        if kind == "d":
            return self.one_of((0.0, -0.0, 1.5, float("inf"), float("nan"), -1e308, 5e-324))
        if kind == "v":
            inner = self.one_of(TYPES) if depth < DEPTH_MAX else "s"
            return Variant(inner, self.value(inner, depth + 1))
        if kind == "(":
            return [self.value(inner, depth + 1) for inner in types(signature[1:-1])]
        return self._sequence(signature, depth) if kind == "a" else self._text(kind)

    def _text(self, kind: str) -> str:
        if kind == "o":
            return str(self.one_of(("/", "/a", "/org/cageruntime/Core1", "/" + "x" * 200, "/a/b_c/D0")))
        return str(self.one_of(TYPES)) if kind == "g" else self.text()

    def _sequence(self, signature: str, depth: int) -> Any:
        if signature == "ay":
            return self.blob()
        size = self.byte() % 40 if depth < DEPTH_MAX else 0
        size = min(size, self.left)
        if signature.startswith("a{"):
            key, value = types(signature[2:-1])
            return {self._key(key): self.value(value, depth + 1) for _ in range(size)}
        return [self.value(signature[1:], depth + 1) for _ in range(size)]

    def _key(self, kind: str) -> Any:
        """Of a dictionary: mostly an option that one of the mediators knows."""
        known = ("conflict", "move", "pastes", "seconds", "urgency", "actions", "replaces", "priority", "tag")
        at = self.byte()
        return known[at % len(known)] if kind == "s" and at < 200 else self.value(kind)

    def call(self, member: str, signature: str, descriptors: tuple[int, ...] = ()) -> Call:
        """A call as a handler gets it: its arguments have the types that the interface names, whatever is in them."""
        arguments = [self.value(kind) for kind in types(signature)]
        return Call(sender=":1.7", path="/", member=member, arguments=arguments, descriptors=descriptors)
