# SPDX-License-Identifier: LGPL-2.1-or-later
"""The README's sessions, as a person would type them and as they are compared with what comes out.

Placeholders, because they differ from run to run: a commit's first digits, how many processes a cage has.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
REPLAYED = ("A session", "A first rule, and why something was denied")
PLACEHOLDERS = ((r"\bcommit [0-9a-f]{8}…", "commit COMMIT"), (r"(?m)^(work|vault)( .*) +\d+$", r"\1\2 COUNT"))
MARK = "\x1e"


@dataclass(frozen=True, kw_only=True)
class Step:
    command: str
    output: str


def steps() -> list[Step]:
    """Each `$ ` line of the replayed sections' console blocks, with what the README shows after it."""
    found = []
    for heading in REPLAYED:
        section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL):
            for step in ("\n" + block).split("\n$ ")[1:]:
                command, _, output = re.sub(r"\\\n +", "", step).partition("\n")
                found.append(Step(command=command, output=output.rstrip("\n")))
    return found


def typed(commands: list[str], environment: Mapping[str, str], seconds: float) -> list[str]:
    """What each of `commands` shows, one shell for all of them, as on a terminal: output and errors in their order."""
    script = "".join(f"status=$?; printf '{MARK}'; (exit $status)\n{command}\n" for command in commands)
    ended = subprocess.run(["bash", "-c", script], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, timeout=seconds, check=False)
    return [shown.rstrip("\n") for shown in ended.stdout.decode().split(MARK)[1:]]


def replaced(text: str, places: Mapping[str, str]) -> str:
    """With other paths than the README's."""
    for place, other in places.items():
        text = text.replace(place, other)
    return text


def settled(text: str) -> str:
    for pattern, placeholder in PLACEHOLDERS:
        text = re.sub(pattern, placeholder, text)
    return text


def shown(expected: list[Step], outputs: list[str], places: Mapping[str, str]) -> list[Step]:
    """What came out, as the README would show it: `places` are those of this machine and the README's names of them."""
    return [Step(command=step.command, output=settled(replaced(output, places)))
            for step, output in zip(expected, outputs, strict=True)]


def promised(expected: list[Step]) -> list[Step]:
    """What the README shows, for the comparison with `shown`."""
    return [Step(command=step.command, output=settled(step.output)) for step in expected]
