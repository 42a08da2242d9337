# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the journal of a host is told of cages, and what it makes of it."""

from __future__ import annotations

import json
from typing import Any

from tests.vm.conftest import MakeCage
from tests.vm.machine import ok, run


def entries(*matches: str) -> list[dict[str, Any]]:
    """Of caged itself, oldest first."""
    ok("journalctl", "--sync")
    shown = ok("journalctl", "--quiet", "--output=json", "_SYSTEMD_UNIT=caged.service", *matches)
    return [json.loads(line) for line in shown.splitlines()]


def test_events_are_in_the_journal_with_their_fields_and_what_they_mean(cage: MakeCage) -> None:
    cage("scribe", "--level", "internal")
    cage("strongroom", "--level", "secret")
    send = 'echo figures >"f=i\nCAGE=strongroom" && incage send "f=i\nCAGE=strongroom" --to strongroom'
    assert run("cagectl", "enter", "scribe", "--", "sh", "-c", send).returncode != 0, "no name of a file has a newline"
    ok("cagectl", "enter", "scribe", "--", "sh", "-c", "echo figures >f=i && incage send f=i --to strongroom")
    refused = run("cagectl", "enter", "strongroom", "--", "sh", "-c", "echo x >x && incage send x --to scribe")
    assert refused.returncode == 126

    of_scribe = entries("CAGE=scribe")
    assert {entry["SYSLOG_IDENTIFIER"] for entry in of_scribe} == {"caged"}
    messages = [entry["MESSAGE"] for entry in of_scribe]
    assert "The cage scribe was created at the level internal" in messages
    assert "The cage scribe has started" in messages

    transfer = next(entry for entry in of_scribe if str(entry.get("REASON", "")).startswith("arrived as"))
    assert transfer["FILE_NAME"] == "f=i"
    assert (transfer["SOURCE"], transfer["TARGET"], transfer["MEDIATOR"], transfer["SERVICE"]) == (
        "scribe", "strongroom", "files", "files.Send")
    together = entries(f"REQUEST_ID={transfer['REQUEST_ID']}")
    assert [entry.get("DECISION", "") for entry in together] == ["allow", "allow", "", ""]
    assert all(entry["RULE_FILE"].endswith(".policy") and entry["RULE_LINE"].isdigit() for entry in together[:2])

    (denied,) = entries("CAGE=strongroom", "DECISION=deny")
    assert (denied["SOURCE"], denied["TARGET"], denied["PRIORITY"]) == ("strongroom", "scribe", "5")
    records = json.loads(ok("cagectl", "audit", "tail", "-n", "1000", "--json=short"))
    recorded = {str(record["sequence"]): record["hash"] for record in records}
    assert recorded[denied["AUDIT_SEQUENCE"]] == denied["AUDIT_HASH"]

    explained = ok("journalctl", "--quiet", "-x", f"MESSAGE_ID={denied['MESSAGE_ID']}", "CAGE=strongroom")
    assert "Documentation: man:caged(8)" in explained
    assert "cagectl policy explain" in explained
    assert "@CAGE@" not in explained


def test_a_fault_is_an_error_in_the_journal() -> None:
    """What a program says of itself has its priority: caged as root refuses to run."""
    unit = "cage-journal-test.service"
    caged = next(word for word in ok("systemctl", "cat", "caged.service").splitlines() if word.startswith("ExecStart="))
    program = caged.removeprefix("ExecStart=").split()[0]
    assert run("systemd-run", "--quiet", "--wait", f"--unit={unit}", program).returncode != 0
    ok("journalctl", "--sync")
    said = ok("journalctl", "--quiet", "--output=cat", "-p", "err", f"_SYSTEMD_UNIT={unit}")
    assert "caged does not run as root" in said
    run("systemctl", "reset-failed", unit)
