# SPDX-License-Identifier: LGPL-2.1-or-later
"""What crosses the wall of open besides a link: targets, deliveries, and files that come back."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cage_runtime import model
from cage_runtime.errors import CageError, InvalidName, TransferFailed, UsageError
from mediators.open import protocol
from mediators.open.edits import Returned
from mediators.open.protocol import Delivery

DIGEST = "0" * 64


def edited(content: bytes) -> bytes:
    return b"edited %d %s\n" % (len(content), hashlib.sha256(content).hexdigest().encode()) + content


def returned(directory: Path, said: bytes, pieces: int = 7, most: int = 1000) -> bytes | None:
    """What came back of what was `said`, a few bytes at a time."""
    with contextlib.closing(Returned(directory, most)) as coming:
        for start in range(0, len(said), pieces):
            coming.take(said[start:start + pieces])
        descriptor = coming.finish()
        if descriptor is None:
            return None
        try:
            assert os.lseek(descriptor, 0, os.SEEK_END) == coming.size
            return os.pread(descriptor, most + 1, 0)
        finally:
            os.close(descriptor)


def test_the_bounds_are_those_of_the_model() -> None:
    assert protocol.EDITED_BYTES_MAX == model.EDITED_BYTES_MAX
    assert protocol.OPENED_BYTES_MAX == model.TRANSFER_BYTES_MAX
    assert protocol.CAGE_NAME_MAX == model.NAME_MAX


@pytest.mark.parametrize("content", [b"x", b"one\ntwo\n", b"\n", bytes(range(256)), b"a" * 1000])
def test_a_file_comes_back_as_it_is(tmp_path: Path, content: bytes) -> None:
    for pieces in (1, 7, 5000):
        assert returned(tmp_path, edited(content), pieces) == content
    assert list(tmp_path.iterdir()) == []


def test_nothing_comes_back_where_nothing_changed(tmp_path: Path) -> None:
    assert returned(tmp_path, b"unchanged\n") is None


@pytest.mark.parametrize("said", [
    b"", b"unchanged", b"unchanged\nx", b"edited\n", b"edited 1\n", edited(b"x")[:-1], edited(b"x") + b"y",
    edited(b"a" * 1001), b"edited 0 " + DIGEST.encode() + b"\n", b"edited -1 " + DIGEST.encode() + b"\nx",
    b"edited 1 " + DIGEST.encode() + b"\nx", b"edited 1 " + DIGEST[:63].encode() + b"\nx", b"x" * 4000,
    b"edited 99999999999999 " + DIGEST.encode() + b"\nx", "edited \u0661 ".encode() + DIGEST.encode() + b"\nx",
    b"edited 1 \xff\xff\nx",
])
def test_m25_what_lies_about_its_size_or_is_half_there_does_not_come_back(tmp_path: Path, said: bytes) -> None:
    with pytest.raises(TransferFailed):
        returned(tmp_path, said)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=300), st.binary(max_size=100).map(edited)), st.integers(1, 50))
@example(b"edited 1 " + b"0" * 64 + b"\n", 1)
def test_whatever_is_said_a_whole_file_comes_back_or_none(tmp_path: Path, said: bytes, pieces: int) -> None:
    with contextlib.suppress(TransferFailed):
        content = returned(tmp_path, said, pieces)
        assert said == (b"unchanged\n" if content is None else edited(content))


@pytest.mark.parametrize("target", ["work", "w", "a-1", "@disposable", "@disposable:web", "", "a" * 31])
def test_a_target_is_a_cage_or_a_disposable_one_or_nothing(target: str) -> None:
    assert protocol.check_target(target) == target


@pytest.mark.parametrize("target", [
    "@core", "@any", "*", "Work", "1a", "-", "@disposable:", "@disposable:../x", "@disposable:W", "a b", "a\n", "a\0",
    "a" * 32, "é", "@disposable:a:b", "a:b", "²",
])
def test_m2_other_targets_are_refused(target: str) -> None:
    with pytest.raises(InvalidName):
        protocol.check_target(target)


@given(st.text(max_size=50))
def test_a_target_that_passes_is_plain(target: str) -> None:
    with contextlib.suppress(InvalidName):
        checked = protocol.check_target(target)
        assert set(checked) <= set("abcdefghijklmnopqrstuvwxyz0123456789-@:")


@pytest.mark.parametrize("delivery", [
    Delivery(name="", size=5, sha256=DIGEST, returns=False),
    Delivery(name="a b.txt", size=1, sha256=DIGEST, returns=True),
    Delivery(name="%f", size=1, sha256=DIGEST, returns=False),
])
def test_a_delivery_is_read_as_it_was_written(delivery: Delivery) -> None:
    read = protocol.parse_delivery(delivery.arguments())
    assert (read.name, read.size, read.sha256, read.returns) == (
        delivery.name, delivery.size, delivery.sha256, delivery.returns)


@pytest.mark.parametrize("arguments", [
    [], ["uri"], ["uri", "1"], ["uri", "1", DIGEST, "x"], ["file", "1", DIGEST], ["file", "0", DIGEST, "x"],
    ["file", "1", "x", "x"], ["file", "1", DIGEST, "../x"], ["file", "1", DIGEST, "--x"], ["edit", "1", DIGEST, "x"],
    ["file", "1", DIGEST, "x", "y"], ["file", "1e3", DIGEST, "x"],
])
def test_another_delivery_is_an_error(arguments: list[str]) -> None:
    with pytest.raises((UsageError, CageError)):
        protocol.parse_delivery(arguments)
