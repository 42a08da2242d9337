# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every parser that meets what a cage can make up: what fuzzing has found, and what Hypothesis makes up each time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import inputs
from tests.fuzz.values import TYPES, Taken, types

NAMES = inputs.names()


@pytest.mark.parametrize("name", NAMES)
def test_whatever_has_been_found_raises_what_it_may(name: str) -> None:
    module = inputs.target(name)
    kept = inputs.read(inputs.KEPT / name)
    assert kept, "scripts/fuzz --keep makes them"
    for untrusted in kept:
        inputs.attempt(module, untrusted)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_made_of_that_raises_what_it_may(name: str) -> None:
    module, kept = inputs.target(name), inputs.read(inputs.KEPT / name)
    parts = st.sampled_from([b"", *kept])

    @given(st.one_of(
        st.binary(max_size=200),
        st.builds(spliced, parts, parts, st.integers(0, 400), st.integers(0, 400), st.binary(max_size=8))))
    def runs(untrusted: bytes) -> None:
        inputs.attempt(module, untrusted)

    runs()


def spliced(first: bytes, second: bytes, end: int, begin: int, between: bytes) -> bytes:
    return first[:end] + between + second[begin:]


def test_nothing_is_kept_for_a_target_that_is_not_there() -> None:
    assert sorted(folder.name for folder in inputs.KEPT.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_is_small(name: str) -> None:
    kept = inputs.read(inputs.KEPT / name)
    assert max(map(len, kept)) <= inputs.INPUT_BYTES_MAX
    assert sum(map(len, kept)) <= inputs.KEPT_BYTES_MAX


@given(st.binary(max_size=300), st.sampled_from(TYPES))
def test_the_same_bytes_are_the_same_value(untrusted: bytes, signature: str) -> None:
    once, again = (Taken(untrusted).value(signature) for _ in range(2))
    assert repr(once) == repr(again)


def test_a_signature_is_its_complete_types() -> None:
    assert types("sha{sv}a(ss)(u(sa{sas}))v") == ["s", "h", "a{sv}", "a(ss)", "(u(sa{sas}))", "v"]


def test_what_comes_to_nothing_new_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "KEPT", tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    (tmp_path / "found").mkdir()
    for number, content in enumerate((b"https://a/", b"https://example.org/", b"mailto:a@b", b"x", b"y" * 5000)):
        tmp_path.joinpath("found", str(number)).write_bytes(content)
    assert inputs.keep("open_uri", tmp_path / "found") == 3
    assert inputs.read(tmp_path / "kept/open_uri") == [b"x", b"https://a/", b"mailto:a@b"]


def test_a_target_that_raises_something_else_has_failed() -> None:
    def run(untrusted: bytes) -> Any:
        raise KeyError(untrusted)

    with pytest.raises(KeyError):
        inputs.attempt(SimpleNamespace(run=run, MAY_RAISE=(ValueError,)), b"x")  # type: ignore[arg-type]
