# SPDX-License-Identifier: LGPL-2.1-or-later
"""The probe as one file (zipapp), which any python3 of a distribution runs: python3 -IS probe.pyz try '{…}'."""

from __future__ import annotations

import io
import zipfile
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).with_name("probe")
_MAIN = "from probe.main import main\n\nmain()\n"


@cache
def bundle() -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("__main__.py", _MAIN)
        archive.writestr("probe/__init__.py", "")
        for module in sorted(PACKAGE.glob("*.py")):
            archive.write(module, f"probe/{module.name}")
    return written.getvalue()


if __name__ == "__main__":
    import sys

    sys.stdout.buffer.write(bundle())
