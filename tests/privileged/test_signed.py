# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a rule wants signed goes with the signature of its key, and without it not at all."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.privileged.conftest import MakeCage
from tests.privileged.rules import policy
from tests.privileged.runtime import Runtime

RULES = "files.Send * review press allow declassify require=signed:editor\n"
PLAIN = "the figures of the quarter\n"


def test_a_file_goes_down_with_its_signature_or_not_at_all(
    runtime: Runtime, shared_cage: MakeCage, tmp_path: Path
) -> None:
    review, press = shared_cage("review", "--level", "secret"), shared_cage("press", "--level", "internal")
    review.sh("cat > ~/figures.txt; mkdir -p ~/tree; cp ~/figures.txt ~/tree", input=PLAIN.encode())
    (tmp_path / "figures").write_text(PLAIN)
    for name in ("editor", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
        made = subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-f", tmp_path / name, "-n", "files.Send"],
                              input=PLAIN.encode(), capture_output=True, check=True).stdout
        review.sh(f"cat > ~/{name}.sig", input=made)
    (runtime.top / "etc").mkdir(exist_ok=True)
    runtime.kill_and_wait("cage-mediator")  # it is confined to folders that were there when it began

    def refused(*more: str, what: str = "figures.txt") -> str:
        ended = review.enter("incage", "send", f"/home/user/{what}", "--to", "press", *more)
        assert ended.returncode == 126, ended
        return ended.stderr.decode()

    with policy(runtime, RULES):
        told = refused("--signature", "/home/user/editor.sig")
        assert "signed by editor, whose public key the core does not have" in told
        keys = runtime.top / "etc/keys"
        keys.mkdir(exist_ok=True)
        keys.chmod(0o755)
        (keys / "editor.pub").write_bytes((tmp_path / "editor.pub").read_bytes())
        (keys / "editor.pub").chmod(0o644)
        assert "wants it signed by editor, and no signature came with it" in refused()
        assert "signed by another key than editor" in refused("--signature", "/home/user/stranger.sig")
        assert "is none of ssh-keygen -Y sign" in refused("--signature", "/home/user/figures.txt")
        assert "is a directory, and the policy wants what is sent there signed" in refused(what="tree")
        assert press.sh("ls ~/Inbox 2>/dev/null || true") == ""
        review.sh("cd && incage send figures.txt --signature editor.sig --to press")
        review.sh("echo more >> ~/figures.txt")
        assert "its signature is of another content" in refused("--signature", "/home/user/editor.sig")
    assert press.sh("cat ~/Inbox/review/figures.txt") == PLAIN
    assert press.sh("ls ~/Inbox/review").split() == ["figures.txt"]
    (keys / "editor.pub").unlink()
    recorded = [fields for fields in runtime.events("transfer") if "signed-by" in fields][-1]
    assert (recorded["require"], recorded["signed-by"][:7]) == ("signed:editor", "SHA256:")


def test_the_key_that_signs_can_be_in_another_cage(runtime: Runtime, shared_cage: MakeCage) -> None:
    """All of it from inside: incage agent signs, and what it signed is what the rule wants."""
    desk, safe, reader = (shared_cage(name, "--level", "internal") for name in ("desk", "safe", "reader"))
    safe.sh("mkdir -p -m 700 ~/.config/incage/keys && cd ~/.config/incage/keys && "
            "ssh-keygen -q -t ed25519 -N '' -C '' -f editor && mv editor.pub ~")
    public = safe.sh("cat ~/editor.pub")
    desk.sh("cat > ~/editor.pub", input=public.encode())
    desk.sh("cat > ~/figures.txt", input=PLAIN.encode())
    keys = runtime.top / "etc/keys"
    keys.mkdir(parents=True, exist_ok=True)
    for folder in (keys.parent, keys):
        folder.chmod(0o755)
    (keys / "editor.pub").write_text(public)
    (keys / "editor.pub").chmod(0o644)
    with policy(runtime, "keys.List * desk safe allow\nkeys.Sign +editor desk safe allow\n"
                         "files.Send * desk reader allow require=signed:editor\n"):
        desk.sh("cd && incage agent --to safe -- ssh-keygen -q -Y sign -n files.Send -f editor.pub figures.txt")
        desk.sh("cd && incage send figures.txt --signature figures.txt.sig --to reader")
    (keys / "editor.pub").unlink()
    assert reader.sh("cat ~/Inbox/desk/figures.txt") == PLAIN


def test_what_nobody_can_look_at_is_refused(runtime: Runtime, shared_cage: MakeCage) -> None:
    first, second = shared_cage("first"), shared_cage("second")
    first.sh("echo x > ~/x")
    with policy(runtime, "files.Send * first second allow require=virus-scan\n"):
        ended = first.enter("incage", "send", "/home/user/x", "--to", "second")
    assert ended.returncode == 126
    assert 'looked at by "virus-scan", which files.Send does not do' in ended.stderr.decode()
    assert second.sh("ls ~/Inbox 2>/dev/null || true") == ""
