# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a rule has encrypted goes down, and is read by whoever has the private key."""

from __future__ import annotations

from tests.privileged.conftest import MakeCage
from tests.privileged.rules import policy
from tests.privileged.runtime import Runtime

RULES = "files.Send * vault press allow declassify transform=encrypt:press-key\n"
PLAIN = "the figures of the quarter\n"


def test_a_secret_goes_down_encrypted_or_not_at_all(runtime: Runtime, shared_cage: MakeCage) -> None:
    vault, press = shared_cage("vault", "--level", "secret"), shared_cage("press", "--level", "internal")
    vault.sh("cat > ~/figures.txt; mkdir ~/tree; cp ~/figures.txt ~/tree", input=PLAIN.encode())
    public = press.sh("incage keygen")
    (runtime.top / "etc").mkdir(exist_ok=True)
    runtime.kill_and_wait("cage-mediator")  # it is confined to folders that were there when it began
    with policy(runtime, RULES):
        refused = vault.enter("incage", "send", "/home/user/figures.txt", "--to", "press")
        assert refused.returncode == 126, refused
        assert "encrypted for press-key, whose key the core does not have" in refused.stderr.decode()
        assert press.sh("ls ~/Inbox 2>/dev/null || true") == ""
        keys = runtime.top / "etc/keys"
        keys.mkdir()
        keys.chmod(0o755)
        (keys / "press-key.pub").write_text(public)
        (keys / "press-key.pub").chmod(0o644)
        vault.sh("incage send ~/figures.txt --to press")
        tree = vault.enter("incage", "send", "/home/user/tree", "--to", "press")
        assert (tree.returncode, "send its files" in tree.stderr.decode()) == (126, True), tree
    assert press.sh("ls ~/Inbox/vault").split() == ["figures.txt.cage"]
    sealed = (runtime.storage / press.uuid / "home/Inbox/vault/figures.txt.cage").read_bytes()
    assert sealed.startswith(b"cage-encrypted\n")
    assert PLAIN.encode()[:8] not in sealed
    press.sh("incage decrypt ~/Inbox/vault/figures.txt.cage --output ~/figures.txt")
    assert press.sh("cat ~/figures.txt") == PLAIN
