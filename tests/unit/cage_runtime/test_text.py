# SPDX-License-Identifier: LGPL-2.1-or-later
"""What came from a cage on its way to a screen or a log (M80, M81)."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime.text import escape, quoted

TABLE = [
    ("plain, with spaces: é 漢 🙂 \"'`$", "plain, with spaces: é 漢 🙂 \"'`$"),
    ("\x1b[2J\x1b]52;c;eA==\x07", "\\x1b[2J\\x1b]52;c;eA==\\x07"),
    ("\x1b]8;;http://x\x1b\\text", "\\x1b]8;;http://x\\x1b\\\\text"),
    ("\x1bP1$r\x1b\\", "\\x1bP1$r\\x1b\\\\"),
    ("good\rbad", "good\\rbad"),
    ("bad\b\b\b", "bad\\x08\\x08\\x08"),
    ("a\nforged: line", "a\\nforged: line"),
    ("tab\tnul\0del\x7f", "tab\\tnul\\x00del\\x7f"),
    ("c1 \x9b2J \x90 \x85", "c1 \\x9b2J \\x90 \\x85"),
    ("\u202egpj.exe\u2066\u200f", "\\u202egpj.exe\\u2066\\u200f"),
    ("zero\u200bwidth\u00adhyphen\ufeff", "zero\\u200bwidth\\xadhyphen\\ufeff"),
    ("line\u2028para\u2029", "line\\u2028para\\u2029"),
    ("tag\U000e0041 private\ue000 unassigned\u0378", "tag\\U000e0041 private\\ue000 unassigned\\u0378"),
    ("surrogate\udcff", "surrogate\\udcff"),
    ("\\n is not a newline", "\\\\n is not a newline"),
    ("", ""),
]


@pytest.mark.parametrize(("untrusted", "shown"), TABLE)
def test_table(untrusted: str, shown: str) -> None:
    assert escape(untrusted) == shown


@pytest.mark.parametrize(
    ("untrusted", "shown"), [(b"caf\xc3\xa9", "café"), (b"\xff\xfe", "\\\\xff\\\\xfe"), (b"\x1b[0m", "\\x1b[0m")]
)
def test_bytes(untrusted: bytes, shown: str) -> None:
    assert escape(untrusted) == shown


@pytest.mark.parametrize(("length", "shown"), [(3, "xxx"), (4, "xxx…"), (4000, "xxx…")])
def test_the_limit(length: int, shown: str) -> None:
    assert escape("x" * length, limit=3) == shown


def test_the_limit_counts_what_was_sent() -> None:
    assert escape("\0" * 10, limit=2) == "\\x00\\x00…"


@given(untrusted=st.text(st.characters(codec=None)) | st.binary())
def test_nothing_hidden_comes_out(untrusted: str | bytes) -> None:
    shown = escape(untrusted)
    assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert len(shown.splitlines()) <= 1


@pytest.mark.parametrize(
    ("untrusted", "shown"),
    [
        ("figures.txt", "figures.txt"),
        ("", '""'),
        ("two words", '"two words"'),
        ("\u00a0", '"\u00a0"'),
        ("x=y", '"x=y"'),
        ('x" target="vault', '"x\\" target=\\"vault"'),
        ('\\" target=vault', '"\\\\\\" target=vault"'),
    ],
)
def test_a_value_is_one_word(untrusted: str, shown: str) -> None:
    assert quoted(escape(untrusted)) == shown


@given(values=st.lists(st.text(alphabet='a\\"= ', max_size=5), min_size=1, max_size=3))
def test_no_value_looks_like_several(values: list[str]) -> None:
    line = " ".join(f"key={quoted(escape(value))}" for value in values)
    assert re.sub(r'key=(?:"(?:\\.|[^"\\])*"|[^\s"=]+)(?: |\Z)', "", line) == ""
    assert len(re.findall(r'key=(?:"(?:\\.|[^"\\])*"|[^\s"=]+)', line)) == len(values)


@given(untrusted=st.lists(st.text(st.characters(codec=None), max_size=20), min_size=2, max_size=2, unique=True))
def test_two_different_texts_never_look_the_same(untrusted: list[str]) -> None:
    assert escape(untrusted[0]) != escape(untrusted[1])
