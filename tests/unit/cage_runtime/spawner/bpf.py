# SPDX-License-Identifier: LGPL-2.1-or-later
"""Classic BPF as the kernel runs it for seccomp(2), so that a filter's answers can be asked without loading it."""

from __future__ import annotations

import struct
from collections.abc import Sequence

X86_64, I386, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7
ALLOW, ERRNO, KILL_THREAD, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x00000000, 0x80000000
_ALU = {
    0x00: lambda a, b: a + b, 0x10: lambda a, b: a - b, 0x40: lambda a, b: a | b, 0x50: lambda a, b: a & b,
    0x60: lambda a, b: a << b, 0x70: lambda a, b: a >> b, 0xA0: lambda a, b: a ^ b,
}
_JUMP = {0x10: lambda a, k: a == k, 0x20: lambda a, k: a > k, 0x30: lambda a, k: a >= k, 0x40: lambda a, k: bool(a & k)}


def data(number: int, arguments: Sequence[int] = (), architecture: int = X86_64) -> bytes:
    """A struct seccomp_data."""
    padded = [argument & (1 << 64) - 1 for argument in (*arguments, 0, 0, 0, 0, 0, 0)][:6]
    return struct.pack("=IIQ6Q", number & 0xFFFFFFFF, architecture, 0, *padded)


def decode(program: bytes) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("=HBBI", program))


def run(code: Sequence[tuple[int, int, int, int]], given: bytes) -> int:
    """What the program returns; IndexError and KeyError where the kernel would not have taken it."""
    accumulator, memory, counter = 0, [0] * 16, 0
    while True:
        operation, when_true, when_false, constant = code[counter]
        counter += 1
        match operation & 0x07:
            case 0x00:  # BPF_LD
                if operation == 0x20:
                    assert constant % 4 == 0
                    (accumulator,) = struct.unpack_from("=I", given, constant)
                else:
                    accumulator = {0x00: constant, 0x60: memory[constant % 16]}[operation]
            case 0x02:  # BPF_ST
                memory[constant] = accumulator
            case 0x04:  # BPF_ALU, by a constant
                assert operation & 0x08 == 0
                accumulator = _ALU[operation & 0xF0](accumulator, constant) & 0xFFFFFFFF
            case 0x05 if operation == 0x05:  # BPF_JA
                counter += constant
            case 0x05:
                assert operation & 0x08 == 0
                counter += when_true if _JUMP[operation & 0xF0](accumulator, constant) else when_false
            case 0x06:  # BPF_RET
                return constant
            case other:
                raise KeyError(other)


def strictest(answers: Sequence[int]) -> int:
    """Of the answers of programs, in the order of their loading; the kernel runs the last one first."""
    def order(answer: int) -> int:
        action = answer & 0xFFFF0000
        return action - (1 << 32) if action & 0x80000000 else action

    return min(reversed(answers), key=order)
