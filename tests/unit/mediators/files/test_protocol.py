# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names and the other things that cross the wall (M20, M26)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime import model
from cage_runtime.errors import InvalidName, TransferFailed, UsageError
from mediators.files import protocol
from mediators.files.protocol import candidate, check_file_name, parse_arrived, parse_delivery


def test_the_limits_are_those_of_the_model() -> None:
    assert protocol.FILE_NAME_BYTES == model.FILE_NAME_BYTES
    assert protocol.RENAMES_MAX == model.RENAMES_MAX
    assert protocol.TRANSFER_BYTES_MAX == model.TRANSFER_BYTES_MAX


GOOD = ["a", "figures.txt", "Übersicht 2026.ods", ".bashrc", "...x", "$(id)", "`id`", "a;b", "+x", "a-", "日本語"]
GOOD.append("x" * 255)
BAD = {
    "": "it is empty",
    ".": "it means a directory",
    "..": "it means a directory",
    "/etc/passwd": 'it has a "/"',
    "../x": 'it has a "/"',
    "a/../../b": 'it has a "/"',
    "a//b": 'it has a "/"',
    "a/": 'it has a "/"',
    "a\0b": "cannot be seen",
    "a\nb": "cannot be seen",
    "a\x1b[2Jb": "cannot be seen",
    "a\x9bb": "cannot be seen",
    "a\u202etxt.exe": "cannot be seen",
    "a\u2066b": "cannot be seen",
    "a\u200bb": "cannot be seen",
    "a\ud800b": "cannot be seen",
    "a\u2028b": "cannot be seen",
    "\udcff": "cannot be seen",
    "x" * 256: "longer than 255 bytes",
    "é" * 128: "longer than 255 bytes",
    "x" * 16385: "longer than 255 bytes",
    " a": "begins or ends with a space",
    "a ": "begins or ends with a space",
    "a\u00a0": "begins or ends with a space",
    "a\u3000": "begins or ends with a space",
    "-rf": 'a leading "-"',
    "a.": "ends with a dot",
    "....": "ends with a dot",
}


@pytest.mark.parametrize("name", GOOD)
def test_a_plain_name_is_taken_as_it_is(name: str) -> None:
    assert check_file_name(name) == name


@pytest.mark.parametrize(("name", "reason"), BAD.items(), ids=[ascii(name)[:20] for name in BAD])
def test_a_bad_name_is_refused_for_its_reason(name: str, reason: str) -> None:
    with pytest.raises(InvalidName, match=reason) as refused:
        check_file_name(name)
    assert not set(refused.value.sentence) & set("\0\n\x1b\x9b\u202e\u2066\u200b\u2028\ud800")


def test_twins_of_two_normal_forms_are_one_name() -> None:
    assert check_file_name("re\u0301sume\u0301.pdf") == check_file_name("r\u00e9sum\u00e9.pdf") == "résumé.pdf"


@given(st.text(max_size=300))
def test_what_is_taken_is_one_safe_directory_entry(name: str) -> None:
    try:
        taken = check_file_name(name)
    except InvalidName:
        return
    encoded = taken.encode()
    assert 0 < len(encoded) <= 255
    assert not set(encoded) & {0, ord("/")}
    assert taken not in {".", ".."}
    assert check_file_name(taken) == taken


@pytest.mark.parametrize(
    ("name", "ordinal", "tried"),
    [
        ("a.txt", 1, "a.txt"),
        ("a.txt", 2, "a (2).txt"),
        ("a.tar.gz", 3, "a.tar (3).gz"),
        (".bashrc", 2, ".bashrc (2)"),
        ("noext", 1000, "noext (1000)"),
        ("a." + "x" * 40, 2, "a." + "x" * 40 + " (2)"),
    ],
)
def test_a_taken_name_gets_a_number_before_its_extension(name: str, ordinal: int, tried: str) -> None:
    assert candidate(name, ordinal) == tried


@given(st.text(max_size=260), st.integers(2, 1000))
def test_every_candidate_of_a_good_name_is_good(name: str, ordinal: int) -> None:
    try:
        good = check_file_name(name)
    except InvalidName:
        return
    assert check_file_name(candidate(good, ordinal))


def asked(name: str, *, tree: bool = False, conflict: str = "rename") -> protocol.Delivery:
    return protocol.Delivery(source="work", name=name, size=7, sha256="0" * 64, tree=tree, conflict=conflict)


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("conflict", protocol.CONFLICTS)
def test_a_delivery_reads_back_what_was_asked(conflict: str, tree: bool) -> None:
    read = parse_delivery(asked("a b.txt", tree=tree, conflict=conflict).arguments())
    assert (read.source, read.name, read.size, read.sha256) == ("work", "a b.txt", 7, "0" * 64)
    assert (read.tree, read.conflict) == (tree, conflict)
    assert (read.once, read.since) == ("", 0)


def test_what_is_delivered_once_is_said_in_digits_alone() -> None:
    asked = protocol.Delivery(source="work", name="a", size=1, sha256="0" * 64, once="a" * 32, since=1764200000)
    read = parse_delivery(asked.arguments())
    assert (read.once, read.since) == ("a" * 32, 1764200000)


@pytest.mark.parametrize(("once", "since", "says"), [
    ("", "0", "what it is delivered once by is not 32"), ("../../etc/x" + "0" * 21, "0", "is not 32 hexadecimal"),
    ("A" * 32, "0", "is not 32"), ("a" * 33, "0", "is not 32"), ("-", "", "time of day"), ("-", "-1", "time of day"),
    ("-", "9" * 13, "time of day"), ("-", "\u0661", "time of day"),
])
def test_another_way_to_say_it_is_refused(once: str, since: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_delivery(["file", "rename", "work", "x", "1", "0" * 64, once, since])


@pytest.mark.parametrize(
    ("kind", "conflict", "says"), [("pipe", "rename", "neither file nor tree"), ("file", "merge", "no conflict policy")]
)
def test_another_kind_of_delivery_is_refused(kind: str, conflict: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_delivery([kind, conflict, "work", "x", "1", "0" * 64, "-", "0"])


@dataclass
class Variant:
    signature: str
    value: object


def test_options_are_those_that_there_are() -> None:
    read = protocol.Options.read({"conflict": Variant("s", "skip"), "move": Variant("b", True)})
    assert (read.conflict, read.move) == ("skip", True)
    read = protocol.Options.read({})
    assert (read.conflict, read.move) == ("rename", False)


@pytest.mark.parametrize(
    "options",
    [{"conflict": Variant("s", "merge")}, {"conflict": Variant("u", 1)}, {"move": Variant("s", "yes")},
     {"mode": Variant("u", 0o4755)}, {"": Variant("s", "")}],
)
def test_any_other_option_is_an_error(options: dict[str, Variant]) -> None:
    with pytest.raises(UsageError, match=r"option|conflict policy"):
        protocol.Options.read(options)


@pytest.mark.parametrize("size", ["", "0", "-1", "1.0", "1e3", "\u0661", "68719476737", "9" * 13, " 1"])
def test_a_size_out_of_bounds_is_refused(size: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_delivery(["file", "rename", "work", "x", size, "0" * 64, "-", "0"])


def test_the_output_of_a_delivery_is_a_number_and_nothing_else() -> None:
    assert parse_arrived(b"1\n", asked("a.txt")) == "a.txt"
    assert parse_arrived(b"12\n", asked("a.txt")) == "a (12).txt"
    assert parse_arrived(b"0\n", asked("a.txt", conflict="skip")) == ""


@pytest.mark.parametrize(
    ("conflict", "output"),
    [("rename", b"0\n"), ("replace", b"2\n"), ("replace", b"0\n"), ("fail", b"0\n"), ("skip", b"2\n")]
)
def test_a_number_that_the_conflict_policy_does_not_know_is_no_answer(conflict: str, output: bytes) -> None:
    with pytest.raises(TransferFailed, match="did not say how"):
        parse_arrived(output, asked("a.txt", conflict=conflict))


@pytest.mark.parametrize(
    "output", [b"", b"\n", b"0\n", b"1001\n", b"-1\n", b"1\n1\n", b"secret\n", b"00001\n", b"\xff"]
)
def test_any_other_output_tells_the_source_nothing(output: bytes) -> None:
    with pytest.raises(TransferFailed, match="did not say how"):
        parse_arrived(output, asked("a.txt"))
