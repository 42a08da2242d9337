# SPDX-License-Identifier: LGPL-2.1-or-later
"""The real polkit, and two persons who try everything on each other's cages."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.machine import SECONDS, as_person, from_afar, in_session, ok, run

ALICE, BOB, CAROL = "cage-alice", "cage-bob", "cage-carol"
PASSWORDS = {ALICE: "alice's own", BOB: "bob's own", CAROL: "carol's own"}
HERS, HIS, NOBODYS = "a-cage", "b-cage", "c-cage"
RULES = Path("/etc/polkit-1/rules.d/50-cage-test.rules")
EXAMPLE = Path("/usr/lib/cage-runtime/examples/50-cage-runtime.rules")
OF_A_CAGE = (
    "start {}", "stop {}", "pause {}", "resume {}", "kill {}", "status {}", "show {}", "logs {}", "enter {} -- true",
    "run {} org.example.App", "app install {} org.example.App", "app update {}", "app remove {} org.example.App",
    "app list {}", "policy explain {} files.Send a-cage", "policy explain a-cage files.Send {}", "destroy {} --yes",
)  # fmt: skip
OF_THE_HOST = ("app remote-remove x", "policy check", "policy reload", "audit tail", "audit verify")


@pytest.fixture(scope="module", autouse=True)
def persons() -> Iterator[None]:
    """Alice and Bob are ordinary, Carol is an administrator; all are in the group that the example speaks of."""
    run("groupadd", "--system", "cages")
    for name, password in PASSWORDS.items():
        groups = "cages,sudo" if name == CAROL else "cages"
        ok("useradd", "--create-home", "--shell=/bin/sh", f"--groups={groups}", name)
        ok("chpasswd", given=f"{name}:{password}\n")
    yield
    for name in PASSWORDS:
        run("loginctl", "terminate-user", name)
        run("userdel", "--remove", name)
    run("groupdel", "cages")


@pytest.fixture(scope="module")
def cages() -> Iterator[None]:
    """The example of rules is in force: one's own cages need no password; and each has one."""
    RULES.write_text(EXAMPLE.read_text())
    # It would read it by itself, and tell nobody when it has.
    ok("systemctl", "restart", "polkit.service")
    for person, name in ((ALICE, HERS), (BOB, HIS)):
        made = from_afar(person, "cagectl", "create", name, "--level", "public")
        assert made.returncode == 0, made.stderr
    yield
    RULES.unlink()
    ok("cagectl", "destroy", "--yes", HERS, HIS)


def there(name: str) -> bool:
    return run("cagectl", "status", name).returncode == 0


def tried(person: str, *lines: str) -> list[tuple[int, str]]:
    """Of each line to cagectl, the status and what it said; in one session."""
    script = "\n".join(f"cagectl --no-ask-password {line} >/dev/null 2>$HOME/said; echo $?; cat $HOME/said; echo =="
                       for line in lines)
    ended = as_person(person, "sh", "-c", script)
    blocks = ended.stdout.split("==\n")[:-1]
    assert len(blocks) == len(lines), ended
    return [(int(status), said) for status, _, said in (block.partition("\n") for block in blocks)]


def states() -> list[str]:
    return [line for line in ok("cagectl", "list", "--no-legend").splitlines() if HERS in line or HIS in line]


# --- the default: a password ---------------------------------------------------------------------------------------
def typed(person: str, password: str, *command: str) -> tuple[int, str]:
    """The command on a terminal of the person's, who types the password as often as it is asked for; its status, and
    all that was to be seen.  In a session: without one polkit takes no agent that stands in for a desktop's."""
    ours, theirs = pty.openpty()
    ended = subprocess.Popen(in_session(person, *command), stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen, answered = b"", 0
    while True:
        assert select.select([ours], [], [], SECONDS)[0], seen
        try:
            seen += os.read(ours, 4096)
        except OSError:  # EIO: nobody has the terminal any more
            break
        if seen.count(b"assword:") > answered:
            answered += 1
            # What is typed before the terminal is told not to show it is thrown away, and no event tells when it is.
            while termios.tcgetattr(ours)[3] & termios.ECHO:
                select.select([ours], [], [], 0.01)
            os.write(ours, password.encode() + b"\n")
    os.close(ours)
    return ended.wait(SECONDS), seen.decode()


def test_a_password_is_asked_for_on_the_terminal() -> None:
    for ask in (from_afar, as_person):
        refused = ask(ALICE, "cagectl", "create", HERS)
        assert refused.returncode == 126
        assert "create is not authorised: it needs a password" in refused.stderr
    status, seen = typed(ALICE, "wrong", "cagectl", "create", HERS)
    assert (status, "Authentication is required to create the cage a-cage" in seen) == (126, True), seen
    assert not there(HERS)
    status, seen = typed(ALICE, PASSWORDS[ALICE], "cagectl", "create", HERS)
    assert (status, "a-cage: running" in seen) == (0, True), seen
    assert PASSWORDS[ALICE] not in seen
    try:
        # Bob's own password opens nothing of hers, and whose it is he does not learn; an administrator's does.
        none = f'there is no cage "{HERS}"'
        status, seen = typed(BOB, PASSWORDS[BOB], "cagectl", "stop", HERS)
        assert (status, none in seen) == (1, True), seen
        assert f"to stop the cage {HERS}, which is not yours or does not exist" in seen
        status, seen = typed(BOB, PASSWORDS[CAROL], "cagectl", "stop", HERS)
        assert (status, "a-cage: stopped" in seen, none in seen) == (0, True, False), seen
        status, seen = typed(ALICE, PASSWORDS[ALICE], "cagectl", "destroy", HERS, "--yes")
        assert (status, there(HERS)) == (0, False), seen
    finally:
        if there(HERS):
            ok("cagectl", "destroy", HERS, "--yes")


def test_a_person_of_the_tests_sits_at_the_machine() -> None:
    """Otherwise the tests here, which take turns between near and afar, are all from afar."""
    shown = as_person(ALICE, "sh", "-c", "loginctl show-session $XDG_SESSION_ID").stdout
    assert {"Seat=seat0", "Remote=no", "Active=yes", f"Name={ALICE}"} <= set(shown.splitlines())
    asked = from_afar(ALICE, "sh", "-c", "echo ${XDG_SESSION_ID:-none}")
    assert asked.stdout == "none\n"


# --- the example of rules is in force ------------------------------------------------------------------------------
@pytest.mark.usefixtures("cages")
def test_a_persons_cages_are_the_persons_and_to_others_as_if_they_were_not() -> None:
    before = states()
    none = f'cagectl: there is no cage "{HIS}"; cagectl list shows those there are\n'
    others = tried(ALICE, *(line.format(HIS) for line in OF_A_CAGE))
    assert others == [(1, none)] * len(OF_A_CAGE)
    some = ("stop {}", "status {}", "enter {} -- true", "destroy {} --yes")
    nobodys = tried(ALICE, *(line.format(NOBODYS) for line in some))
    assert [(status, said.replace(NOBODYS, HIS)) for status, said in nobodys] == others[:len(some)]
    assert [status for status, _ in tried(BOB, *(line.format(HERS) for line in some))] == [1] * len(some)
    assert [status for status, _ in tried(ALICE, *OF_THE_HOST)] == [126] * len(OF_THE_HOST)
    assert states() == before
    # Her own: all but destroying, which takes her password, as the example has it.
    own = ("stop {}", "kill {}", "start {}", "pause {}", "resume {}", "enter {} -- true", "status {}", "show {}",
           "logs {}", "app list {}", "policy explain {} files.Send " + HERS)
    assert [status for status, _ in tried(ALICE, *(line.format(HERS) for line in own))] == [0] * len(own)
    ((status, said),) = tried(ALICE, f"destroy {HERS} --yes")
    assert (status, "it needs a password" in said) == (126, True)
    # What there is, however it is asked for.
    for person, own_, other in ((ALICE, HERS, HIS), (BOB, HIS, HERS)):
        shown = as_person(person, "sh", "-c", "cagectl list; cagectl doctor; busctl tree org.cageruntime.Core1; "
                          "busctl call org.cageruntime.Core1 /org/cageruntime/Core1 org.freedesktop.DBus.ObjectManager "
                          "GetManagedObjects").stdout
        for spelled in ("{}", "{:.1}_2dcage"):
            assert spelled.format(own_) in shown
            assert spelled.format(other) not in shown


@pytest.mark.usefixtures("cages")
def test_documents_go_to_another_person_by_a_rule_that_names_the_cage() -> None:
    policy = Path("/etc/cage-runtime/policy.d/10-test.policy")
    policy.parent.mkdir(parents=True, exist_ok=True)
    send = "echo figures > figures; incage send figures --to {}"
    said = [run("cagectl", "enter", HERS, "--", "sh", "-c", send.format(name)) for name in (HIS, NOBODYS)]
    assert [ended.returncode for ended in said] == [126, 126]
    assert said[0].stderr.replace(HIS, NOBODYS) == said[1].stderr
    why = ok("cagectl", "policy", "explain", HERS, "files.Send", HIS)
    assert "within one person's cages alone" in why
    try:
        policy.write_text(f"files.Send * {HERS} {HIS} allow\n")
        ok("cagectl", "policy", "reload")
        ok("cagectl", "enter", HERS, "--", "sh", "-c", send.format(HIS))
    finally:
        policy.unlink()
        ok("cagectl", "policy", "reload")
    assert ok("cagectl", "enter", HIS, "--", "sh", "-c", "cat Inbox/*/figures") == "figures\n"


@pytest.mark.usefixtures("cages")
def test_without_an_answer_nobody_but_root_may() -> None:
    """A polkit that cannot be started refuses, and is no reason to think that there is none."""
    ok("systemctl", "mask", "--runtime", "--now", "polkit.service")
    try:
        lines = ("list", f"status {HERS}", f"stop {HIS}", f"stop {NOBODYS}")
        for line, (status, said) in zip(lines, tried(ALICE, *lines), strict=True):
            assert status == 126
            assert said.startswith(f"cagectl: {line.split()[0]} is not authorised: polkit gives no answer: ")
        ok("cagectl", "status", HERS)
    finally:
        ok("systemctl", "unmask", "--runtime", "polkit.service")
    assert tried(ALICE, f"status {HERS}") == [(0, "")]
