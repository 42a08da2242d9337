# SPDX-License-Identifier: LGPL-2.1-or-later
"""The sample application does what its help says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

NOTES = Path(__file__).parents[3] / "scripts/sample-app/notes"


class Notes:
    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        environment = {"HOME": str(self.home), "PATH": "/usr/bin:/bin"}
        argv = ["/bin/sh", str(NOTES), *arguments]
        return subprocess.run(argv, env=environment, input=text, capture_output=True, text=True, check=False)


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path)


@pytest.mark.parametrize("name", ["~/Documents/a/figures.txt", "a/figures.txt", "{home}/Documents/a/figures.txt"])
def test_a_note_is_written_where_it_is_meant(notes: Notes, name: str) -> None:
    done = notes("--write", "quarterly figures", name.format(home=notes.home))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"notes: 18 bytes in {notes.home}/Documents/a/figures.txt\n"
    assert [path.name for path in notes.home.joinpath("Documents/a").iterdir()] == ["figures.txt"]
    assert notes("--read", name.format(home=notes.home)).stdout == "quarterly figures\n"


def test_append_and_list(notes: Notes) -> None:
    notes("--append", "one", "b.txt")
    notes("--append", "-", "b.txt", text="two\n")
    notes("--write", "-n is text", "a.txt")
    assert notes("--read", "b.txt").stdout == "one\ntwo\n"
    assert notes("--read", "a.txt").stdout == "-n is text\n"
    assert notes("--list").stdout == "a.txt\nb.txt\n"


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        ([], 2, "say what to do"),
        (["--frobnicate"], 2, 'there is no option "--frobnicate"'),
        (["--write", "text"], 2, "--write takes TEXT and FILE"),
        (["--read"], 2, "--read takes FILE"),
        (["--read", "nothing.txt"], 1, "there is no note"),
        (["--read", "~"], 1, "is not a regular file"),
        (["--write", "text", "~"], 1, "is a directory"),
        (["--write", "text", "/proc/notes.txt"], 1, 'cannot write in "/proc"'),
        (["--list", "nowhere"], 1, "there is no directory"),
    ],
)
def test_errors_are_one_sentence(notes: Notes, arguments: list[str], status: int, sentence: str) -> None:
    done = notes(*arguments)
    assert done.returncode == status
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("notes: ")
    assert sentence in done.stderr


def test_help_fits_a_terminal(notes: Notes) -> None:
    done = notes("--help")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
