# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command lines of the core's own programs: what they have in common, and a fault of them as one line."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import NoReturn

from cage_runtime.errors import UsageError
from cage_runtime.log import prefix


class Parser(argparse.ArgumentParser):
    """Of a program that reads caged.conf."""

    def __init__(self, program: str, description: str) -> None:
        super().__init__(prog=program, description=description, allow_abbrev=False)
        self.add_argument("--config", type=Path, metavar="FILE", help="instead of /etc/cage-runtime/caged.conf")

    def error(self, message: str) -> NoReturn:
        before = prefix(logging.CRITICAL)
        self.exit(UsageError.exit_status, f"{before}{self.prog}: {message}; see {self.prog} --help\n")
