# SPDX-License-Identifier: LGPL-2.1-or-later
"""The frames between host and machine, and how a command is run between them."""

from __future__ import annotations

import struct
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as some

from tests.vm import agent
from tests.vm.agent import ERRORS, HEADER, INPUT, NOT_FOUND, OUTPUT, PIECE, FrameError, frame, frames, parsed


@given(some.integers(min_value=0, max_value=3 * PIECE + 1))
def test_frames_put_together_are_the_payload(length: int) -> None:
    payload = bytes(range(251)) * (length // 251 + 1)
    stream, got = memoryview(b"".join(frames(INPUT, payload))), b""
    while stream:
        kind, long = parsed(bytes(stream[:HEADER.size]))
        assert kind == INPUT
        assert 0 < long <= PIECE
        got += stream[HEADER.size:HEADER.size + long]
        stream = stream[HEADER.size + long:]
    assert got == payload


def test_a_frame_has_a_bound_at_both_ends() -> None:
    with pytest.raises(ValueError, match="65537 bytes do not fit into a frame"):
        frame(OUTPUT, bytes(PIECE + 1))
    with pytest.raises(FrameError, match="begins no frame"):
        parsed(struct.pack("<cI", OUTPUT, PIECE + 1))


def test_a_kind_that_is_not_known_begins_no_frame() -> None:
    with pytest.raises(FrameError, match="begins no frame"):
        parsed(struct.pack("<cI", b"?", 0))


def ran(*argv: str, given: bytes = b"") -> tuple[int, bytes, bytes]:
    """Status, output and errors of a command that the agent runs."""
    sent = {OUTPUT: b"", ERRORS: b""}

    def send(kind: bytes, payload: bytes) -> None:
        sent[kind] += payload

    with tempfile.TemporaryFile() as file:
        file.write(given)
        file.seek(0)
        status = agent.run(list(argv), {"WORD": "said"}, file, send, "/")
    return status, sent[OUTPUT], sent[ERRORS]


def test_a_command_has_its_input_its_environment_and_two_outputs() -> None:
    script = 'cat; echo "$WORD" >&2; exit 3'
    assert ran("sh", "-c", script, given=b"given" * PIECE) == (3, b"given" * PIECE, b"said\n")


def test_a_command_that_a_signal_ends_has_its_number_below_zero() -> None:
    assert ran("sh", "-c", "kill -TERM $$") == (-15, b"", b"")


def test_a_command_that_is_not_there_is_told() -> None:
    assert ran("/no/such/command") == (NOT_FOUND, b"", b"/no/such/command: No such file or directory\n")


def test_what_a_command_leaves_running_holds_nothing_up() -> None:
    status, output, _ = ran("sh", "-c", "sleep 300 & echo $!")
    left = int(output)
    assert status == 0
    assert ran("kill", str(left))[0] == 0
