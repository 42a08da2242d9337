# SPDX-License-Identifier: LGPL-2.1-or-later
"""A clip of text is text and lines, whatever it was (M44)."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cage_runtime.errors import TransferFailed
from mediators.clipboard.text import clean


@pytest.mark.parametrize(("content", "text"), [
    (b"", ""), (b"hello\tworld\n", "hello\tworld\n"), ("žluťoučký kůň 🐎 שלום".encode(), "žluťoučký kůň 🐎 שלום"),
    (b"one\r\ntwo\rthree", "one\ntwo\nthree"),
    ("a\u2028b\u0085c".encode(), "a\nb\nc"),
    ("👩\u200d🔬".encode(), "👩\u200d🔬"),
])
def test_text_stays_as_it_is(content: bytes, text: str) -> None:
    assert clean(content) == text


@pytest.mark.parametrize(("content", "text"), [
    (b"ls\x1b[201~\nrm -rf ~\n", "ls\nrm -rf ~\n"), (b"\x1b[20\x1b[201~1~x", "201~x"), ("\u009b201~x".encode(), "x"),
    (b"\x1b[31mred\x1b[0m", "red"), (b"\x1b]52;c;aGk=\x07x", "x"), (b"\x1b]8;;https://x\x1b\\link", "link"),
    (b"\x1bPq#0\x1b\\x", "x"), ("\u0090q\u009cx".encode(), "x"), (b"\x1b]0;title\nnext", "\nnext"),
    (b"\x1bcx", "x"), (b"\x1b(Bx", "x"), (b"a\x08b\x07c\x7fd\x0be", "abcde"), (b"\x1b", ""), (b"\x1b\x1b[A", ""),
    ("a\u202eb\u2066c\u200fd".encode(), "abcd"), ("a\U000e0041b".encode(), "ab"), ("\u0085".encode(), "\n"),
])
def test_m44_what_a_terminal_would_obey_is_stripped(content: bytes, text: str) -> None:
    assert clean(content) == text


@pytest.mark.parametrize("content", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"x\xfex"])
def test_m44_what_is_not_utf8_is_refused(content: bytes) -> None:
    with pytest.raises(TransferFailed, match="is not UTF-8"):
        clean(content)


def test_m44_a_nul_is_refused() -> None:
    with pytest.raises(TransferFailed, match="has a NUL"):
        clean(b"rm\0x")


@given(st.one_of(
    st.binary(max_size=200),
    st.text(st.sampled_from("ab\x1b[]201~;\\P_\x07\x9b\x9c\x9d\x90\r\n\t \x85\u202e"), max_size=40).map(str.encode),
    st.text(max_size=80).map(lambda text: text.encode("utf-8", "replace")),
))
@example(b"\x1b[2\x1b[2\x1b[201~01~01~")
def test_whatever_comes_nothing_is_left_that_moves_a_cursor(content: bytes) -> None:
    try:
        text = clean(content)
    except TransferFailed:
        return
    assert not [one for one in text if unicodedata.category(one) == "Cc" and one not in "\t\n"]
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", text)
    assert clean(text.encode()) == text
    assert len(text.encode()) <= len(content) + content.count(b"\r")
