# SPDX-License-Identifier: LGPL-2.1-or-later
"""The last of the tests before the machine starts again: leaves two cages for those in after_reboot."""

from __future__ import annotations

import json

from tests.vm.machine import ok


def test_two_cages_are_left_of_which_one_is_enabled() -> None:
    ok("cagectl", "create", "morning", "--autostart", "--level", "internal")
    ok("cagectl", "create", "evening")
    ok("cagectl", "enable", "evening")
    ok("cagectl", "disable", "evening")
    ok("cagectl", "enter", "morning", "--", "sh", "-c", "echo kept >Documents/note")
    # In one a program that saves when it is told to end, in the other one that does not want to.
    saving = "trap 'sleep 1; echo saved >Documents/last; exit' TERM; echo >ready; while :; do sleep 0.1; done"
    ok("cagectl", "enter", "evening", "--", "sh", "-c",
       'setsid sh -c "$0" >/dev/null 2>&1 & until [ -e ready ]; do sleep 0.1; done', saving)
    ok("cagectl", "enter", "morning", "--", "sh", "-c", "trap '' TERM; setsid sleep 10000 >/dev/null 2>&1 &")
    listed = {cage["name"]: cage for cage in json.loads(ok("cagectl", "list", "--json=short"))}
    assert [listed[name]["autostart"] for name in ("morning", "evening")] == [True, False]
    assert [listed[name]["state"] for name in ("morning", "evening")] == ["running", "running"]
