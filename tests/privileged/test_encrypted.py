# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a rule has encrypted goes down, and is read by whoever has the private key."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.fuzz.hostile import memory
from tests.privileged.conftest import MakeCage
from tests.privileged.gateways import ask, gateway
from tests.privileged.rules import policy
from tests.privileged.runtime import SECONDS, Cage, Runtime
from tests.privileged.test_asked import answer, asking, the_prompt

RULES = ("files.Send * vault press allow declassify transform=encrypt:press-key\n"
         "files.Move * vault press allow declassify transform=encrypt:press-key\n")
PLAIN = "the figures of the quarter\n"
CHANGED = "would have to be changed otherwise"


@pytest.fixture(scope="module")
def press(shared_cage: MakeCage) -> Cage:
    return shared_cage("press", "--level", "internal")


@pytest.fixture(scope="module")
def vault(runtime: Runtime, shared_cage: MakeCage) -> Cage:
    """It has a file."""
    vault = shared_cage("vault", "--level", "secret")
    vault.sh("cat > ~/figures.txt; mkdir ~/tree; cp ~/figures.txt ~/tree", input=PLAIN.encode())
    (runtime.top / "etc/keys").mkdir(parents=True, exist_ok=True)
    (runtime.top / "etc/keys").chmod(0o755)
    runtime.kill_and_wait("cage-mediator")  # it is confined to folders that were there when it began
    return vault


@pytest.fixture
def key(runtime: Runtime, press: Cage) -> Iterator[None]:
    """Of `press`, which makes it, and whose public one an administrator puts there while all runs."""
    file = runtime.top / "etc/keys/press-key.pub"
    file.write_text(press.sh("rm -f ~/key; incage keygen ~/key"))
    file.chmod(0o644)
    yield
    file.unlink(missing_ok=True)
    press.sh("rm -rf ~/Inbox")


def inbox(press: Cage) -> list[str]:
    return press.sh("ls -A ~/Inbox/vault 2>/dev/null || true").split()


def test_without_a_key_nothing_is_sent(runtime: Runtime, vault: Cage, press: Cage) -> None:
    with policy(runtime, RULES):
        for verb in ("send", "move"):
            refused = vault.enter("incage", verb, "/home/user/figures.txt", "--to", "press")
            assert refused.returncode == 126, refused
            assert "encrypted for press-key, whose key the core does not have" in refused.stderr.decode()
    assert inbox(press) == []
    assert vault.sh("cat ~/figures.txt") == PLAIN


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize("transform", ["compress:press-key", "encrypt", "encryption:press-key"])
def test_what_nobody_does_is_not_sent_unchanged(runtime: Runtime, vault: Cage, press: Cage, transform: str) -> None:
    with policy(runtime, f"files.Send * vault press allow declassify transform={transform}\n"):
        refused = vault.enter("incage", "send", "/home/user/figures.txt", "--to", "press")
    assert (refused.returncode, b"the policy wants it changed" in refused.stderr) == (126, True), refused
    assert inbox(press) == []


def test_no_rule_asks_it_of_what_changes_nothing(runtime: Runtime) -> None:
    """A mediator's manifest says what it does; what it does not, policy does not take."""
    with policy(runtime, ""):
        file = runtime.top / "etc/policy.d/10-tests.policy"
        file.write_text("clipboard.Paste * vault press allow declassify transform=encrypt:press-key\n")
        loaded = runtime.cagectl("policy", "reload")
    assert (loaded.returncode, b"transform" in loaded.stderr) == (2, True), loaded


@pytest.mark.usefixtures("key")
def test_it_goes_down_encrypted_and_the_record_has_both(runtime: Runtime, vault: Cage, press: Cage) -> None:
    with policy(runtime, RULES):
        vault.sh("incage send ~/figures.txt --to press")
        tree = vault.enter("incage", "send", "/home/user/tree", "--to", "press")
        assert (tree.returncode, "send its files" in tree.stderr.decode()) == (126, True), tree
    assert inbox(press) == ["figures.txt.cage"]
    sealed = (runtime.storage / press.uuid / "home/Inbox/vault/figures.txt.cage").read_bytes()
    assert sealed.startswith(b"cage-encrypted\n")
    assert PLAIN.encode()[:8] not in sealed
    known = {"name": "figures.txt.cage", "size": str(len(PLAIN)), "transform": "encrypt:press-key",
             "sha256": hashlib.sha256(PLAIN.encode()).hexdigest(), "encrypted-size": str(len(sealed)),
             "encrypted-sha256": hashlib.sha256(sealed).hexdigest()}
    for event in runtime.events("transfer")[-2:]:
        assert known.items() <= event.items()
    press.sh("incage decrypt ~/Inbox/vault/figures.txt.cage --key ~/key --output ~/plain")
    assert press.sh("cat ~/plain; rm ~/plain") == PLAIN


@pytest.mark.usefixtures("key", "press")
@pytest.mark.parametrize("log", ["meta", "no"])
def test_the_record_says_no_more_than_the_rule_lets_it(runtime: Runtime, vault: Cage, log: str) -> None:
    with policy(runtime, RULES.replace("declassify", f"declassify log={log}")):
        vault.sh("incage send ~/figures.txt --to press")
    digests = {"sha256", "encrypted-sha256"}
    left_out = {"meta": digests, "no": {"name", "size", "encrypted-size", *digests}}[log]
    for event in runtime.events("transfer")[-2:]:
        assert not left_out & event.keys()
        assert event["transform"] == "encrypt:press-key"
        assert ("figures" in str(event)) == (log == "meta")


@pytest.mark.usefixtures("key")
def test_what_is_moved_is_removed_once_it_is_there(runtime: Runtime, vault: Cage, press: Cage) -> None:
    vault.sh("cp ~/figures.txt ~/moved.txt")
    with policy(runtime, RULES):
        press.sh("mkdir -p ~/Inbox; touch ~/Inbox/vault")  # where nothing can arrive
        refused = vault.enter("incage", "move", "/home/user/moved.txt", "--to", "press")
        assert refused.returncode == 1, refused
        assert vault.sh("cat ~/moved.txt") == PLAIN
        press.sh("rm ~/Inbox/vault")
        vault.sh("incage move ~/moved.txt --to press")
    assert vault.sh("ls ~/moved.txt 2>/dev/null || true") == ""
    press.sh("incage decrypt ~/Inbox/vault/moved.txt.cage --key ~/key --output ~/plain")
    assert press.sh("cat ~/plain; rm ~/plain") == PLAIN


OTHERWISE = ("transform=encrypt:other-key", "")


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize("after", OTHERWISE)
def test_a_rule_that_changes_while_a_person_thinks(runtime: Runtime, vault: Cage, press: Cage, after: str) -> None:
    """What was read for one key, or for none, does not arrive under another rule."""
    rule = "files.Send * vault press ask declassify {}\n"
    with policy(runtime, rule.format("transform=encrypt:press-key")), asking(
            vault, "send", "/home/user/figures.txt", "--to", "press") as sending:
        prompt = the_prompt(runtime)
        assert (prompt["transform"], prompt["size"]) == ("encrypt:press-key", len(PLAIN))
        with policy(runtime, rule.replace(" ask ", " allow ").format(after)):
            said = sending.communicate(timeout=SECONDS)[1]
    assert (sending.returncode, CHANGED in said.decode()) == (126, True), said
    assert inbox(press) == []


@pytest.mark.usefixtures("key")
def test_a_key_that_changes_while_a_person_thinks_is_not_the_one(runtime: Runtime, vault: Cage, press: Cage) -> None:
    """It was encrypted for the key that was there when it was read, and the record says under which name."""
    with policy(runtime, RULES.replace(" allow ", " ask ")), asking(
            vault, "send", "/home/user/figures.txt", "--to", "press") as sending:
        the_prompt(runtime)
        (runtime.top / "etc/keys/press-key.pub").write_text(press.sh("rm -f ~/other; incage keygen ~/other"))
        answer(runtime, "allow")
        said = sending.communicate(timeout=SECONDS)[1]
    assert sending.returncode == 0, said
    press.sh("incage decrypt ~/Inbox/vault/figures.txt.cage --key ~/key --output ~/plain; rm ~/plain")


@pytest.fixture(scope="module")
def second(shared_cage: MakeCage) -> Cage:
    return shared_cage("second", "--level", "internal")


def chosen(runtime: Runtime, vault: Cage, target: str) -> tuple[list[str], str, Any]:
    """What a person could choose for a file that names no cage, and what came of that it chose `target`."""
    vault.enter("incage", "call", "Nothing", "nobody")  # so that the gateway is there

    def send() -> Any:
        with gateway(runtime, vault) as half, os.fdopen(memory(PLAIN.encode())) as file:
            return ask(half, "Files1", "Send", "ssha{sv}", "", "x.txt", file, {})

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        offered = list(the_prompt(runtime)["choices"])
        answer(runtime, "allow", target=("s", target))
        return offered, *sending.result(SECONDS)


ANY = "files.Send * vault @default ask declassify {}\n"
KEYED = "transform=encrypt:press-key"


@pytest.mark.usefixtures("key")
def test_what_a_person_may_choose_is_changed_as_both_rules_say(runtime: Runtime, vault: Cage, press: Cage,
                                                               second: Cage) -> None:
    rules = ANY.format(KEYED) + RULES + f"files.Send * vault {second.name} allow declassify\n"
    with policy(runtime, rules):
        for target in (press, second):
            offered, error, body = chosen(runtime, vault, target.name)
            assert {"press", "second"} <= set(offered)
            assert error == "", body
            assert target.sh("ls ~/Inbox/vault") == "x.txt.cage\n", "its own rule says nothing of a key"
    with policy(runtime, rules.replace("second allow declassify", "second allow declassify transform=encrypt:x")):
        offered, error, body = chosen(runtime, vault, "press")
        assert ("second" in offered, error) == (False, ""), body


@pytest.mark.usefixtures("key", "second")
def test_one_that_a_person_chooses_and_for_which_it_was_not_changed(runtime: Runtime, vault: Cage,
                                                                    press: Cage) -> None:
    with policy(runtime, ANY.format("") + RULES):
        offered, error, body = chosen(runtime, vault, "press")
    assert ("press" in offered, error, CHANGED in body) == (True, "PolicyRefused", True), body
    assert inbox(press) == []
