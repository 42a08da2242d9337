# SPDX-License-Identifier: LGPL-2.1-or-later
"""What runs on which machine: two of them, side by side, take half as long as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

TOP = Path(__file__).parents[3]


class Course(StrEnum):
    """What a machine goes through."""

    LIFE = "life"
    """It is used, by persons too, is rebooted, and the package upgraded and removed."""
    TROUBLE = "trouble"
    """The core is cut off, and the host is not as it must be."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Tests that one pytest runs."""

    name: str
    course: Course
    globs: tuple[str, ...]
    reboots: bool = False
    """Before its tests."""

    def holds(self, path: str) -> bool:
        file = Path(path.partition("::")[0])
        return any(file.match(glob) or file.is_relative_to(glob) for glob in self.globs)


PHASES = (
    Phase(name="persons", course=Course.LIFE, globs=("tests/vm/persons",)),
    Phase(name="machine", course=Course.LIFE, globs=("tests/vm/test_*.py",)),
    Phase(name="after-reboot", course=Course.LIFE, globs=("tests/vm/after_reboot",), reboots=True),
    Phase(name="at-last", course=Course.LIFE, globs=("tests/vm/at_last",)),
    Phase(name="trouble", course=Course.TROUBLE, globs=("tests/vm/trouble",)),
)
"""Those of a course in their order."""


def planned(arguments: Sequence[str], top: Path = TOP) -> list[tuple[Phase, list[str]]]:
    """The phases that are to run, each with pytest's arguments: all of them, or those that the paths given name."""
    paths = [word for word in arguments if word.startswith("tests/")]
    options = [word for word in arguments if word not in paths]
    strangers = [path for path in paths if not any(phase.holds(path) for phase in PHASES)]
    if strangers:
        raise SystemExit(f"vm-test: not of this tier: {' '.join(strangers)}")
    plan = []
    for phase in PHASES:
        mine = [path for path in paths if phase.holds(path)]
        if not paths:
            mine = [str(found.relative_to(top)) for glob in phase.globs for found in sorted(top.glob(glob))]
        if mine or not paths:
            plan.append((phase, [*options, *mine]))
    return plan


def courses(plan: Sequence[tuple[Phase, list[str]]]) -> list[Course]:
    """Those that a plan has phases of."""
    return [course for course in Course if any(phase.course is course for phase, _ in plan)]
