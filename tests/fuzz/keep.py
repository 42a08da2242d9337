# SPDX-License-Identifier: LGPL-2.1-or-later
"""keep.py TARGET FOUND: of what was found, what is worth it goes into the corpus."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.fuzz import inputs

if __name__ == "__main__":
    name, found = sys.argv[1:]
    sys.stdout.write(f"{name}: {inputs.keep(name, Path(found))} inputs are kept\n")
