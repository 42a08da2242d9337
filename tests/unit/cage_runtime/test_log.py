# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the core's programs say on standard error: with its priority where the journal reads it, and only there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[3]
SAYS = """
import logging, sys
from cage_runtime import log
log.set_up("%(name)s: %(message)s")
said = logging.getLogger("it")
said.debug("never")
said.info("an info")
said.warning("a warning")
said.error("an error\\n<7>in two lines")
said.critical("an end")
if sys.argv[1:]:
    raise KeyError("a bug") if sys.argv[1] == "bug" else KeyboardInterrupt
"""
PLAIN = ["it: an info", "it: a warning", "it: an error", "<7>in two lines", "it: an end"]
TO_JOURNAL = ["<6>it: an info", "<4>it: a warning", "<3>it: an error", "<3><7>in two lines", "<2>it: an end"]


def said(stream: str | None, *words: str, tmp_path: Path, script: str = SAYS) -> list[str]:
    """The lines on standard error, a file of which `stream` names the inode ("{}" is the right one)."""
    file = tmp_path / "stderr"
    with file.open("wb") as stderr:
        found = os.fstat(stderr.fileno())
        given = {} if stream is None else {"JOURNAL_STREAM": stream.format(f"{found.st_dev}:{found.st_ino}")}
        subprocess.run([sys.executable, "-c", script, *words], stderr=stderr, check=False, cwd=TOP,
                       env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", **given})
    return file.read_text().splitlines()


def test_the_journal_gets_the_priority_of_each_line(tmp_path: Path) -> None:
    assert said("{}", tmp_path=tmp_path) == TO_JOURNAL


@pytest.mark.parametrize("stream", [None, "", "1:2", "{}0", "0{}", "{} "])
def test_nobody_else_does(tmp_path: Path, stream: str | None) -> None:
    """Not even whoever inherited the variable and has standard error somewhere else."""
    assert said(stream, tmp_path=tmp_path) == PLAIN


def test_what_nobody_catches_is_an_error_in_every_line(tmp_path: Path) -> None:
    lines = said("{}", "bug", tmp_path=tmp_path)[len(TO_JOURNAL):]
    assert lines[0] == "<2>root: ended by an error of its own"
    assert lines[-1] == "<2>KeyError: 'a bug'"
    assert all(line.startswith("<2>") for line in lines)


def test_an_interruption_is_no_error(tmp_path: Path) -> None:
    assert not any("error of its own" in line for line in said("{}", "interrupted", tmp_path=tmp_path))


@pytest.mark.parametrize(("program", "words"), [
    ("cage_runtime.daemon.main", ["--bogus"]), ("cage_runtime.daemon.main", ["--config", "/no/such"]),
    ("cage_runtime.spawner.main", ["--config", "/no/such"]), ("cage_runtime.flatpak.service", ["--config", "/no/such"]),
    ("mediators.main", ["files", "--config", "/no/such"]), ("mediators.main", ["files", "--bogus"]),
])
def test_a_program_that_cannot_start_says_so_as_an_error(tmp_path: Path, program: str, words: list[str]) -> None:
    script = f"import sys; from {program} import main; sys.argv[0] = 'program'; sys.exit(main())"
    (line,) = said("{}", *words, tmp_path=tmp_path, script=script)
    assert line.startswith(("<2>", "<3>")), line
