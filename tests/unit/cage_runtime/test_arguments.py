# SPDX-License-Identifier: LGPL-2.1-or-later
"""A fault of a command line is one line, and never the help text."""

from __future__ import annotations

import pytest

from cage_runtime.arguments import Parser


@pytest.mark.parametrize("words", [["--bogus"], ["stray"], ["--config"]])
def test_a_fault_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        Parser("caged", "the core").parse_args(words)
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    assert told.err.startswith("caged: ")
    assert told.err.endswith("; see caged --help\n")
    assert told.err.count("\n") == 1
