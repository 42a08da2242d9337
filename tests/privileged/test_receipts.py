# SPDX-License-Identifier: LGPL-2.1-or-later
"""A receipt as a cage has it in hand: of its own transfer, good with the key alone, and not to be made up."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.privileged.conftest import MakeCage
from tests.privileged.rules import policy
from tests.privileged.runtime import Runtime

RULES = """\
files.Send * press review allow
files.Send * press vault allow
files.Send * review vault allow direction=one-way
"""
PLAIN = b"the figures of the quarter\n"
DIGEST = hashlib.sha256(PLAIN).hexdigest()


def test_a_receipt_is_good_here_and_elsewhere_and_says_no_more_than_its_cage_hears(
    runtime: Runtime, shared_cage: MakeCage, tmp_path: Path
) -> None:
    press, review = shared_cage("press", "--level", "internal"), shared_cage("review", "--level", "internal")
    shared_cage("vault", "--level", "secret")
    for cage in (press, review):
        cage.sh("cat > ~/figures.txt; rm -rf ~/tree; mkdir ~/tree; cp ~/figures.txt ~/tree", input=PLAIN)
    (tmp_path / "pub").write_text(runtime.ok("audit", "key"))
    with policy(runtime, RULES):
        for number, (cage, what, to, name, outcome) in enumerate((
                (press, "figures.txt", "review", "figures.txt", "arrived"),
                (press, "tree", "vault", "tree/", "handed-over"),
                (review, "figures.txt", "vault", "figures.txt", "accepted"))):
            cage.sh(f"cd && incage send {what} --to {to} --receipt r{number}")
            assert cage.sh(f"stat -c '%a %u' ~/r{number}") == "600 1000\n"
            line = cage.sh(f"cat ~/r{number}")
            receipt = tmp_path / f"r{number}"
            receipt.write_text(line)
            says = json.loads(runtime.ok("-j", "audit", "verify-receipt", str(receipt)))
            assert (says["source"], says["target"], says["name"], says["outcome"]) == (cage.name, to, name, outcome)
            assert name != "figures.txt" or (says["sha256"], says["size"]) == (DIGEST, str(len(PLAIN)))
            assert "sequence" not in json.loads(line)
            alone = runtime.ok("audit", "verify-receipt", str(receipt), "--key", str(tmp_path / "pub"))
            assert "the signature is good" in alone
            recorded = [fields for fields in runtime.events("transfer") if fields.get("receipt")][-1]
            assert (recorded["receipt"], recorded["request"]) == (outcome, says["request"])
        line_of = ("incage", "send", "/home/user/figures.txt", "--receipt")
        again = press.enter(*line_of, "/home/user/r0", "--to", "review")
        assert (again.returncode, b"cannot be made for the receipt: File exists" in again.stderr) == (1, True), again
        refused = press.enter(*line_of, "/home/user/r9", "--to", "nobody")
        assert refused.returncode == 126
        assert press.sh("ls ~/r9 2>/dev/null || true") == ""
    review.sh("cat > ~/pub", input=(tmp_path / "pub").read_bytes())
    assert "Outcome: accepted" in review.sh("cd && incage verify-receipt r2 --key pub")
    forged = tmp_path / "forged"
    forged.write_text(line.replace('"outcome":"accepted"', '"outcome":"arrived"'))
    ended = runtime.cagectl("audit", "verify-receipt", str(forged))
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert b"was changed, or is none of this key" in ended.stderr
    runtime.ok("audit", "verify")


def test_the_key_is_the_cores_alone(runtime: Runtime, shared_cage: MakeCage) -> None:
    cage = shared_cage("outsider")
    runtime.ok("audit", "key")
    key = next(runtime.top.rglob("receipt-key"))
    assert (key.stat().st_size, key.stat().st_mode & 0o7777) == (32, 0o600)
    assert key.stat().st_uid == key.parent.stat().st_uid != 0
    assert cage.sh("find / -xdev -name 'receipt-key*' 2>/dev/null || true") == ""
