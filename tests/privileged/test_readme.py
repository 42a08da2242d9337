# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the README shows is what happens: its sessions are typed into a shell and compared with what comes out.

Placeholders, because they differ from run to run: a commit's first digits, how many processes a cage has.  Places
differ too: the sample repository, the administrator's directory and the shipped files of this runtime are shown
where an installed system has them.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.privileged.runtime import PREFIX, SECONDS, Runtime
from tests.privileged.sample import TOP, Sample, short_directory

README = (TOP / "README.md").read_text(encoding="utf-8")
REPLAYED = ("A session", "A first rule, and why something was denied")
PLACEHOLDERS = ((r"\bcommit [0-9a-f]{8}…", "commit COMMIT"), (r"(?m)^(work|vault)( .*) +\d+$", r"\1\2 COUNT"))
MARK = "\x1e"


def steps(heading: str) -> list[tuple[str, str]]:
    """(command, output) of each `$ ` line of the section's console blocks."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = []
    for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL):
        for step in ("\n" + block).split("\n$ ")[1:]:
            command, _, output = re.sub(r"\\\n +", "", step).partition("\n")
            found.append((command, output.rstrip("\n")))
    return found


def settled(text: str) -> str:
    for pattern, placeholder in PLACEHOLDERS:
        text = re.sub(pattern, placeholder, text)
    return text


@pytest.fixture
def sample() -> Iterator[Sample]:
    with short_directory() as directory:
        built = Sample(directory=directory / "sample")
        built.build()
        yield built


def typed(commands: list[str], environment: dict[str, str]) -> list[str]:
    """What each of `commands` shows, one shell for all of them, as on a terminal: output and errors in their order."""
    script = "".join(f"status=$?; printf '{MARK}'; (exit $status)\n{command}\n" for command in commands)
    ended = subprocess.run(["bash", "-c", script], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, timeout=4 * SECONDS, check=False)
    return [shown.rstrip("\n") for shown in ended.stdout.decode().split(MARK)[1:]]


def test_the_sessions_are_what_happens(sample: Sample) -> None:
    runtime = Runtime()
    runtime.start()
    here = {"/var/lib/cage-runtime-quickstart/sample": str(sample.directory),
            "/etc/cage-runtime": f"{runtime.top}/etc", "/usr/lib/cage-runtime": str(PREFIX)}
    expected = [step for heading in REPLAYED for step in steps(heading)]
    commands = [_replaced(command, here) for command, _ in expected]
    environment = {**runtime.environment(), "PATH": f"{PREFIX}/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    there = {path: name for name, path in here.items()}
    outputs = typed(commands, environment)
    runtime.ok("destroy", "work", "vault", "--yes")
    runtime.remove()
    shown = [(command, settled(_replaced(output, there)))
             for (command, _), output in zip(expected, outputs, strict=True)]
    assert shown == [(command, settled(output)) for command, output in expected]


def _replaced(text: str, places: dict[str, str]) -> str:
    for place, other in places.items():
        text = text.replace(place, other)
    return text


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_what_it_names_is_there() -> None:
    for script in set(re.findall(r"\bscripts/[a-z-]+\b", README)):
        assert os.access(TOP / script, os.X_OK), script
    for directory in set(re.findall(r"\btests/[a-z]+\b", README)):
        assert (TOP / directory).is_dir(), directory
    named = {f"{name}.{section}" for name, section in re.findall(r"\b([A-Za-z0-9.]+)\((\d)\)", README)}
    assert named == {page.name for page in Path(TOP, "cage_runtime/resources/man").iterdir()}


def test_every_option_it_names_is_known() -> None:
    for script, option in (("quickstart", "--keep"), ("quickstart", "--stop"), ("uninstall", "--purge")):
        told = subprocess.run([TOP / "scripts" / script, "--help"], capture_output=True, text=True, check=True)
        assert option in told.stdout
