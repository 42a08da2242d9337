# SPDX-License-Identifier: LGPL-2.1-or-later
"""replay.py TARGET FILE: one input again, with the traceback of what it may not raise."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.fuzz import inputs

if __name__ == "__main__":
    inputs.attempt(inputs.target(sys.argv[1]), Path(sys.argv[2]).read_bytes())
    sys.stdout.write("it raises nothing that it may not\n")
