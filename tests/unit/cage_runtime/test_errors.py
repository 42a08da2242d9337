# SPDX-License-Identifier: LGPL-2.1-or-later
"""The error tree: one class a bus name, and the exit status of the contract."""

from __future__ import annotations

import pytest

from cage_runtime import errors
from cage_runtime.errors import (
    BUS_ERROR_PREFIX,
    BY_BUS_NAME,
    CageError,
    PolicySyntaxError,
    ProtocolError,
    RuntimeFailure,
    from_bus,
)

EVERY = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CageError)]
STANDARD = [kind for kind in EVERY if issubclass(kind, ProtocolError)]
CLASSES = [kind for kind in EVERY if kind not in STANDARD]


def test_every_class_has_a_bus_name_of_its_own() -> None:
    assert len({kind.bus_name for kind in EVERY}) == len(EVERY)
    assert {kind.bus_name: kind for kind in CLASSES} == BY_BUS_NAME


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_exit_status_and_the_way_over_the_bus(kind: type[CageError]) -> None:
    branch = {errors.UsageError: 2, errors.Refused: 126, errors.RuntimeFailure: 125}
    assert kind.exit_status == next((status for base, status in branch.items() if issubclass(kind, base)), 1)
    assert kind.bus_name.isidentifier()
    received = from_bus(BUS_ERROR_PREFIX + kind.bus_name, "a sentence")
    assert type(received) is kind
    assert received.sentence == "a sentence"


@pytest.mark.parametrize(
    ("name", "sentence", "shown"),
    [
        ("org.freedesktop.DBus.Error.NoReply", "no reply", "no reply"),
        ("org.freedesktop.DBus.Error.NoReply", "", "org.freedesktop.DBus.Error.NoReply"),
        ("org.cageruntime.Error.Unheard", "x", "x"),
        ("Refused", "a name without our prefix", "a name without our prefix"),
        ("", "x", "x"),
    ],
)
def test_an_error_that_is_not_ours_is_a_failure_of_the_runtime(name: str, sentence: str, shown: str) -> None:
    received = from_bus(name, sentence)
    assert type(received) is RuntimeFailure
    assert (received.sentence, received.exit_status) == (shown, 125)


@pytest.mark.parametrize("kind", STANDARD, ids=lambda kind: kind.__name__)
def test_what_the_specification_names_has_its_name(kind: type[CageError]) -> None:
    """From another program of ours it means another version, which no other request can help."""
    assert kind("x").bus_error == f"org.freedesktop.DBus.Error.{kind.bus_name}"
    assert type(from_bus(kind("x").bus_error, "x")) is RuntimeFailure


def test_a_policy_that_cannot_be_read_is_a_refusal() -> None:
    assert issubclass(PolicySyntaxError, errors.Refused)


def test_an_error_without_a_sentence_says_its_name() -> None:
    assert errors.NoSuchCage().sentence == "NoSuchCage"
