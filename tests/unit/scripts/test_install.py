# SPDX-License-Identifier: LGPL-2.1-or-later
"""scripts/install takes away what an earlier layout left in its prefix, and nothing that is somebody else's."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "scripts/install"


def _clear(prefix: Path) -> None:
    functions = re.search(r"^has_earlier_layout\(\) .*?^clear_earlier_layout\(\) \{$.*?^\}$", SCRIPT.read_text(),
                          re.MULTILINE | re.DOTALL)
    assert functions is not None
    subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", f"{functions.group()}\nclear_earlier_layout"],
        env={"PATH": "/usr/bin:/bin", "prefix": str(prefix), "no_system": "--no-system"}, check=True,
    )  # fmt: skip


def test_somebody_else_s_folders_in_the_prefix_stay(tmp_path: Path) -> None:
    for name in ("venv", "lib", "share"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "theirs").touch()
    _clear(tmp_path)
    assert {file.parent.name for file in tmp_path.glob("*/theirs")} == {"venv", "lib", "share"}


def test_the_earlier_layout_goes(tmp_path: Path) -> None:
    (tmp_path / "venv/lib/python3.11/site-packages").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("venv/lib/python3.11/site-packages")
    (tmp_path / "share").mkdir()
    _clear(tmp_path)
    assert not list(tmp_path.iterdir())
