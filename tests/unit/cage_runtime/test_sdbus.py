# SPDX-License-Identifier: LGPL-2.1-or-later
"""Signatures and variants; the rest of sdbus.py is tested against a real bus in tests/bus."""

from __future__ import annotations

import pytest

from cage_runtime.sdbus import complete_types, variant


@pytest.mark.parametrize(
    ("signature", "types"),
    [
        ("", []),
        ("s", ["s"]),
        ("sasa{sv}", ["s", "as", "a{sv}"]),
        ("aa{sv}aay(i(su))h", ["aa{sv}", "aay", "(i(su))", "h"]),
        ("a{s(ua{sv})}v", ["a{s(ua{sv})}", "v"]),
    ],
)
def test_a_signature_is_cut_into_complete_types(signature: str, types: list[str]) -> None:
    assert complete_types(signature) == types


@pytest.mark.parametrize(
    ("value", "signature"),
    [("x", "s"), (True, "b"), (7, "u"), (1.5, "d"), (["a"], "as"), ([], "as"), (b"x", "ay")],
)
def test_a_python_value_has_one_signature_in_a_variant(value: object, signature: str) -> None:
    assert variant(value) == (signature, value)


def test_a_pair_says_its_signature() -> None:
    assert variant(("q", 24)) == ("q", 24)
