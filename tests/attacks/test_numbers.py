# SPDX-License-Identifier: LGPL-2.1-or-later
"""B of the catalogue, every number by every way into the kernel, against golden/x86_64.txt.

To write that file anew, where the filter has been changed on purpose: CAGE_TEST_GOLDEN=write scripts/test THIS_FILE.
"""

from __future__ import annotations

import os
from pathlib import Path

import pyseccomp
import pytest

from tests.attacks.conftest import Inside
from tests.attacks.probe.numbers import ALLOWED, WAYS
from tests.privileged.runtime import SECONDS, Cage

GOLDEN = Path(__file__).parent / "golden/x86_64.txt"
SINCE_6_1 = 451
"""The first number that the oldest kernel of ours lacks (Debian 12's)."""

Answers = dict[int, str]


def swept(cage: Cage, way: str, *, root: bool) -> Answers:
    (said,) = Inside(cage, root=root).run("numbers", way, seconds=2 * SECONDS)
    return {int(number): answer for number, answer in said.items()}


def golden() -> Answers:
    """The file's lines: a number, its answer, and its name for whoever reads it."""
    lines = [line.split() for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]
    return {int(words[0]): words[1] for words in lines}


def name_of(number: int) -> str:
    try:
        return str(pyseccomp.resolve_syscall(pyseccomp.Arch.X86_64, number).decode())
    except (ValueError, AttributeError):
        return "-"


def write(answers: Answers) -> None:
    lines = [f"{number:>3} {answer:<7} {name_of(number)}" for number, answer in answers.items()]
    head = ("# SPDX-License-Identifier: LGPL-2.1-or-later\n"
            "# What a session in a cage is answered to each call number with -1 for every argument (test_numbers.py);\n"
            "# \"allowed\" is any answer but EPERM and ENOSYS, so that the kernel itself had its say.\n")
    GOLDEN.write_text(head + "\n".join(lines) + "\n")


@pytest.mark.parametrize("root", [False, True], ids=["user", "root"])
def test_every_number_is_answered_as_written(left: Cage, root: bool) -> None:
    answers = swept(left, "x86_64", root=root)
    if os.environ.get("CAGE_TEST_GOLDEN") == "write":
        write(answers)
    expected = golden()
    assert answers.keys() == expected.keys()
    differing = {number: (name_of(number), answers[number], expected[number]) for number in answers
                 if answers[number] != expected[number]}
    assert [line for line in differing.items() if not is_newer(*line)] == []


def is_newer(number: int, differing: tuple[str, str, str]) -> bool:
    """A call that this kernel does not have yet."""
    return number >= SINCE_6_1 and differing[1:] == ("ENOSYS", ALLOWED)


@pytest.mark.parametrize("way", ["x32", "i386"])
@pytest.mark.parametrize("root", [False, True], ids=["user", "root"])
def test_another_way_in_is_the_end_of_the_process(left: Cage, way: str, root: bool) -> None:
    answers = swept(left, way, root=root)
    assert answers == dict.fromkeys(WAYS[way], "SIGSYS")
