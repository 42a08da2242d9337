# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names, sizes, labels and flows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime.errors import InvalidName, UnknownLevel, UsageError
from cage_runtime.model import Flow, Label, Levels, check_cage_name, parse_size

LEVELS = Levels(names=("public", "internal", "secret"), compartments=frozenset({"finance", "medical"}))


@pytest.mark.parametrize("name", ["a", "work", "a-", "x1", "disp-7", "a" * 31, "corex", "all-2"])
def test_good_names(name: str) -> None:
    assert check_cage_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "A", "1a", "-a", "a" * 32, "a_b", "a.b", "a/b", "..", "web\n", "wéb", "a\0", "*", "@core", "\uff41", "\udcff"],
)
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidName, match=r'cannot be a cage\'s name: use 1 to 31 of a-z, 0-9 and "-", first a letter'):
        check_cage_name(name)


@pytest.mark.parametrize("name", ["core", "host", "all"])
def test_reserved_names(name: str) -> None:
    with pytest.raises(InvalidName, match=f'"{name}" is reserved'):
        check_cage_name(name)


def test_a_hostile_name_is_escaped_and_cut_in_the_sentence() -> None:
    with pytest.raises(InvalidName) as caught:
        check_cage_name("\x1b[2J" + "x" * 65_001)
    assert caught.value.sentence.startswith('"\\x1b[2Jxxx')
    assert len(caught.value.sentence) < 160


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("1", 1), ("512", 512), ("007", 7), ("1K", 1024), ("512M", 512 * 1024**2), ("2G", 2 * 1024**3), ("1T", 1024**4),
        ("999999999999", 999_999_999_999), ("999999T", 999_999 * 1024**4),
    ],
)  # fmt: skip
def test_good_sizes(written: str, size: int) -> None:
    assert parse_size(written) == size
    assert size < 2**63


@pytest.mark.parametrize(
    "written",
    [
        *("", "0", "000", "0G", "-1", "+1", "1.5G", "1 G", "1g", "1k", "1KB", "1KiB", "G", "1P", "1G\n", " 1G", "0x10"),
        *("1000000T", "1000000000G", "9999999999999", "1e9", "1_000", "inf", "\uff11G"),
    ],
)
def test_bad_sizes(written: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(written)


def test_labels() -> None:
    assert LEVELS.label("internal", ["finance"]) == Label(level="internal", rank=1, compartments=frozenset({"finance"}))
    with pytest.raises(UnknownLevel) as level:
        LEVELS.label("sec\x1bret")
    assert level.value.sentence == 'there is no level "sec\\x1bret"; this host has public, internal, secret'
    with pytest.raises(UsageError) as compartment:
        LEVELS.label("secret", ["finance", "navy"])
    assert compartment.value.sentence == 'there is no compartment "navy"; this host has finance, medical'


@pytest.mark.parametrize(
    ("source", "target", "flow"),
    [
        (("public", ()), ("secret", ()), Flow.UP),
        (("secret", ()), ("public", ()), Flow.DOWN),
        (("secret", ()), ("secret", ()), Flow.LEVEL),
        (("public", ()), ("public", ("finance",)), Flow.UP),
        (("secret", ("finance",)), ("public", ()), Flow.DOWN),
        (("secret", ()), ("public", ("finance",)), Flow.INCOMPARABLE),
        (("public", ("finance",)), ("secret", ()), Flow.INCOMPARABLE),
        (("internal", ("finance",)), ("internal", ("medical",)), Flow.INCOMPARABLE),
        (("internal", ("finance",)), ("secret", ("medical", "finance")), Flow.UP),
    ],
)
def test_flows(source: tuple[str, tuple[str, ...]], target: tuple[str, tuple[str, ...]], flow: Flow) -> None:
    assert LEVELS.label(*source).flow_to(LEVELS.label(*target)) is flow


LABELS = st.builds(
    LEVELS.label, st.sampled_from(LEVELS.names), st.lists(st.sampled_from(sorted(LEVELS.compartments)), max_size=2)
)


@given(first=LABELS, second=LABELS, third=LABELS)
def test_dominance_is_a_partial_order(first: Label, second: Label, third: Label) -> None:
    assert first.dominates(first)
    assert not (first.dominates(second) and second.dominates(first)) or first == second
    assert not (first.dominates(second) and second.dominates(third)) or first.dominates(third)


@given(first=LABELS, second=LABELS)
def test_a_flow_and_its_reverse(first: Label, second: Label) -> None:
    reverse = {Flow.UP: Flow.DOWN, Flow.DOWN: Flow.UP, Flow.LEVEL: Flow.LEVEL, Flow.INCOMPARABLE: Flow.INCOMPARABLE}
    assert second.flow_to(first) is reverse[first.flow_to(second)]
