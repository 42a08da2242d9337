# SPDX-License-Identifier: LGPL-2.1-or-later
"""What reaches a terminal: tables, JSON and sentences, whatever a cage has put into them."""

from __future__ import annotations

import argparse
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime.cli.output import Screen, cell, say, visible
from cage_runtime.cli.verbs_session import home_in_cage

HOSTILE = "a\033]0;owned\007\n\u202eb\x9b31m"


def screen(**flags: object) -> Screen:
    defaults = {"pretty": False, "json": "off", "quiet": False, "no_legend": False, "color": "auto"}
    return Screen(argparse.Namespace(**(defaults | flags)))


@given(st.text())
def test_nothing_that_is_shown_moves_a_cursor_or_hides(text: str) -> None:
    for shown in (cell(text), visible(text)):
        # Spaces of every width (Zs) are as harmless as letters.
        assert all(character.isprintable() or unicodedata.category(character) == "Zs" for character in shown)


@given(st.text(alphabet=st.characters(max_codepoint=126, min_codepoint=32)))
def test_a_printable_sentence_is_shown_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_an_escaped_sentence_is_not_escaped_twice() -> None:
    assert visible('"\\x1b" cannot be a name') == '"\\x1b" cannot be a name'
    assert visible("\\x1b\u202e") == "\\x1b\\u202e"


def test_cells_are_unambiguous() -> None:
    assert cell("\\x1b") == "\\\\x1b"
    assert cell("\x1b") == "\\x1b"
    assert cell("") == "-"
    assert cell([]) == "-"
    assert cell(["a", "b\n"]) == "a b\\n"
    assert (cell(True), cell(7)) == ("yes", "7")


def test_a_table_has_headings_columns_and_a_count(capsys: pytest.CaptureFixture[str]) -> None:
    screen().table(["NAME", "STATE"], [["work", "running"], [HOSTILE, "stopped"]], "cage")
    lines = capsys.readouterr().out.split("\n")
    escaped = "a\\x1b]0;owned\\x07\\n\\u202eb\\x9b31m"
    assert lines == [
        "NAME".ljust(len(escaped)) + " STATE",
        "work".ljust(len(escaped)) + " running",
        escaped + " stopped",
        "",
        "2 cages.",
        "",
    ]


def test_no_legend_leaves_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    screen(no_legend=True).table(["NAME"], [["work"]], "cage")
    screen(no_legend=True).table(["NAME"], [], "cage")
    screen().table(["NAME"], [], "cage")
    assert capsys.readouterr().out == "work\nNo cages.\n"


def test_json_is_one_ascii_document(capsys: pytest.CaptureFixture[str]) -> None:
    data = [{"name": HOSTILE, "compartments": ["x"], "ephemeral": False}]
    screen(json="short").document(data)
    short = capsys.readouterr().out
    assert short.isascii()
    assert short.count("\n") == 1
    assert "\033" not in short
    screen(pretty=True).document(data)
    pretty = capsys.readouterr().out
    assert json.loads(short) == json.loads(pretty) == data
    assert pretty.count("\n") > 3


def test_quiet_and_json_say_nothing_of_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    screen(quiet=True).done("work: running")
    screen(json="short").done("work: running")
    assert capsys.readouterr().out == ""
    screen().done("work: running")
    assert capsys.readouterr().out == "work: running\n"


def test_color_is_for_terminals_or_who_asks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert screen().word("running", "running") == "\033[32mrunning\033[0m"
    assert screen(color="never").word("running", "running") == "running"
    monkeypatch.setenv("NO_COLOR", "1")
    assert screen().word("running", "running") == "running"
    assert screen(color="always").word("failed", "failed") == "\033[31mfailed\033[0m"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    assert screen().word("running", "running") == "running"
    capsys.readouterr()


def test_fields_line_up(capsys: pytest.CaptureFixture[str]) -> None:
    screen().fields([("State", "running"), ("Not enforced", ["memory: none", "cpus: none"]), ("Level", "x\n")])
    assert capsys.readouterr().out == (
        "       State: running\nNot enforced: memory: none\n              cpus: none\n       Level: x\\n\n"
    )


def test_say_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    say("cagectl", "first\nsecond\033[2J")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "cagectl: first\\nsecond\\x1b[2J\n")


@pytest.mark.parametrize(
    ("argument", "home", "meant"),
    [
        ("/home/ann/Documents/x", "/home/ann", "/home/user/Documents/x"),
        ("/home/ann/Documents/x", "/home/ann/", "/home/user/Documents/x"),
        ("/home/ann", "/home/ann", "/home/user"),
        ("/home/anna/x", "/home/ann", "/home/anna/x"),
        ("--file=/home/ann/x", "/home/ann", "--file=/home/ann/x"),
        ("/etc/passwd", "/", "/etc/passwd"),
        ("/etc/passwd", "", "/etc/passwd"),
    ],
)
def test_an_argument_in_the_callers_home_means_the_cages(argument: str, home: str, meant: str) -> None:
    assert home_in_cage(argument, home) == meant
