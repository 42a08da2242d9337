# SPDX-License-Identifier: LGPL-2.1-or-later
"""The machine has started again: of the cages that test_zz_before_reboot.py left, the one that is enabled runs.

Both had been ended in an orderly way, and in time, though one of them did not want to.
"""

from __future__ import annotations

import json
import select
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

from tests.vm.machine import SECONDS, ok


def wait_for_entry(*matches: str) -> None:
    """Until the journal of this boot has an entry of caged that matches; at once where it has one already."""
    command = ["journalctl", "--quiet", "--follow", "--lines=all", "--boot", "_SYSTEMD_UNIT=caged.service", *matches]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as journal:
        assert journal.stdout is not None
        there, _, _ = select.select([journal.stdout], [], [], SECONDS)
        journal.terminate()
    assert there, f"the journal has no entry {' '.join(matches)}"


BOOT = Path("/proc/sys/kernel/random/boot_id")
DOWN = timedelta(seconds=60)
"""From the first cage's end to the core's; on a machine that is not emulated it is a tenth of that."""


def states() -> dict[str, str]:
    return {cage["name"]: cage["state"] for cage in json.loads(ok("cagectl", "list", "--json=short"))}


def test_the_host_went_down_in_order() -> None:
    """Cages first, each with its end in the record and its documents whole, and the core after them."""
    records = json.loads(ok("cagectl", "audit", "tail", "-n", "1000", "--json=short"))
    starts = [at for at, record in enumerate(records) if record["kind"] == "core-started"]
    assert records[starts[-1]]["fields"]["boot"] == BOOT.read_text().strip().replace("-", "")
    assert records[starts[-1]]["fields"]["boot"] != records[starts[-2]]["fields"]["boot"]
    *_, one, other, core = records[: starts[-1]]
    assert sorted((end["kind"], end["fields"]["cage"]) for end in (one, other)) == [
        ("cage-stopped", "evening"), ("cage-stopped", "morning")]
    assert core["kind"] == "core-stopped"
    assert datetime.fromisoformat(core["time"]) - datetime.fromisoformat(one["time"]) < DOWN
    ok("cagectl", "start", "evening")
    assert ok("cagectl", "enter", "evening", "--", "cat", "Documents/last") == "saved\n"
    ok("cagectl", "stop", "evening")


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
