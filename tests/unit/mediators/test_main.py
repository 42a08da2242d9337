# SPDX-License-Identifier: LGPL-2.1-or-later
"""cage-mediator: which half runs, what it imports, and what a bad command line says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[3]


def mediator(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys; from mediators.main import main; sys.exit(main())", *arguments]
    return subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("name", ["nothing", "../files", "files.core", "main", "wire", "", "Files", "a\x1b[2J"])
def test_an_unknown_mediator_is_refused_in_one_visible_line(name: str) -> None:
    ended = mediator(name)
    assert ended.returncode == 2
    assert "there is no mediator" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "\x1b" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["files", "--confg", "x"], "takes --config FILE"),
        (["files", "--cage", "x"], "takes no argument"),
        (["files", "--deliver", "work"], "--deliver takes file|tree CONFLICT SOURCE NAME SIZE SHA256 ONCE|- SINCE"),
        (["files", "--deliver", "file", "rename", "work", "../x", "1", "0" * 64, "-", "0"], 'it has a "/"'),
        (["files", "--deliver", "file", "rename", "../work", "x", "1", "0" * 64, "-", "0"], 'it has a "/"'),
        (["files", "--deliver", "file", "rename", "work", "x", "-1", "0" * 64, "-", "0"], "is not a size"),
        (["files", "--deliver", "file", "rename", "work", "x", "1", "0" * 63, "-", "0"], "64 hexadecimal digits"),
    ],
)
def test_a_bad_command_line_says_what_is_wrong(arguments: list[str], says: str) -> None:
    ended = mediator(*arguments)
    assert ended.returncode == 2
    assert says in ended.stderr


def test_the_delivery_half_imports_nothing_slow() -> None:
    code = "import sys, mediators.main, mediators.files.deliver; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(TOP)!r}); {code}"],
                           capture_output=True, text=True, check=True)
    slow = {"asyncio", "dbus_fast", "msgspec", "dataclasses", "typing", "re", "json", "contextlib"}
    assert not slow & set(ended.stdout.split())
