# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which cages were running when caged looked last, kept for the next caged of the same boot.

A cage may end while no caged runs, or in the moment in which one ends: who comes next finds by this that an end is
still to be recorded.  A reboot takes these marks along, and its cages; `core-started` says which boot it is of.
"""

from __future__ import annotations

import logging
from pathlib import Path

LOG = logging.getLogger(__name__)
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot() -> str:
    """The id of this boot, as journalctl --list-boots shows it."""
    return BOOT_ID.read_text(encoding="ascii").strip().replace("-", "")


class Lives:
    def __init__(self, directory: Path) -> None:
        """In a directory of caged's own that does not outlive the boot."""
        self._directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)

    def begin(self, uuid: str) -> None:
        """The cage runs.  Where that cannot be kept it runs all the same: its end is recorded by whoever sees it."""
        try:
            (self._directory / uuid).touch()
        except OSError as error:
            LOG.warning("that %s runs cannot be kept for the next core: %s", uuid, error)

    def end(self, uuid: str) -> bool:
        """The cage does not run; whether it did."""
        try:
            (self._directory / uuid).unlink()
        except OSError:
            return False
        return True
