# SPDX-License-Identifier: LGPL-2.1-or-later
"""A delivery into a home that is really full, of bytes or of inodes: refused in its words, nothing left (M25)."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from mediators.files.protocol import FULL

TOP = Path(__file__).parents[2]
HALF = [sys.executable, "-c", "import sys; from mediators.main import main; sys.exit(main())", "files", "--deliver"]
IN_A_SMALL_HOME = """
mount -t tmpfs -o "$1" home "$0" || exit 99
shift
"$@"
status=$?
find "$HOME" -mindepth 1
exit $status
"""


@pytest.mark.parametrize("room", ["size=64k", "nr_inodes=3"])
def test_a_full_home_is_named_and_left_as_it_was(tmp_path: Path, room: str) -> None:
    content = b"x" * 200_000
    staged, home = tmp_path / "staged", tmp_path / "home"
    staged.write_bytes(content)
    home.mkdir()
    asked = ["file", "rename", "work", "figures.txt", str(len(content)), hashlib.sha256(content).hexdigest(),
             "-", "0"]
    with staged.open("rb") as file:
        ended = subprocess.run(
            ["unshare", "--mount", "sh", "-c", IN_A_SMALL_HOME, str(home), room, *HALF, *asked], stdin=file,
            env={"HOME": str(home), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, cwd=TOP, capture_output=True, text=True,
            check=False,
        )
    assert (ended.returncode, ended.stdout) == (FULL, "")
    assert ended.stderr == "cage-mediator: its home is full (No space left on device)\n"
