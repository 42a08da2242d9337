# SPDX-License-Identifier: LGPL-2.1-or-later
"""The machine has started again: of the cages that test_zz_before_reboot.py left, the one that is enabled runs."""

from __future__ import annotations

import json
import select
import subprocess

from tests.vm.machine import SECONDS, ok


def wait_for_entry(*matches: str) -> None:
    """Until the journal of this boot has an entry of caged that matches; at once where it has one already."""
    command = ["journalctl", "--quiet", "--follow", "--lines=all", "--boot", "_SYSTEMD_UNIT=caged.service", *matches]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as journal:
        assert journal.stdout is not None
        there, _, _ = select.select([journal.stdout], [], [], SECONDS)
        journal.terminate()
    assert there, f"the journal has no entry {' '.join(matches)}"


def states() -> dict[str, str]:
    return {cage["name"]: cage["state"] for cage in json.loads(ok("cagectl", "list", "--json=short"))}


def test_what_was_enabled_was_started_once() -> None:
    wait_for_entry("MESSAGE=The cage morning has started", "CAGE=morning")
    assert states() == {"morning": "running", "evening": "stopped"}
    assert ok("cagectl", "enter", "morning", "--", "cat", "Documents/note") == "kept\n"
    # An administrator's word counts for the rest of this boot.
    ok("cagectl", "stop", "morning")
    ok("cagectl", "enable", "evening")
    ok("systemctl", "restart", "caged.service")
    assert states() == {"morning": "stopped", "evening": "stopped"}
    ok("cagectl", "destroy", "morning", "evening", "--yes")
