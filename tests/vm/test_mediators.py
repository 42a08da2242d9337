# SPDX-License-Identifier: LGPL-2.1-or-later
"""What crosses between cages on a stock host: every mediator under its unit, with security contexts in force, of whose
refusals none falls on what is legitimate.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from tests.vm.machine import MEDIATORS, SECONDS, UNITS_OF_MEDIATORS, main_pid, ok, properties, run, until
from tests.vm.test_lsm import asked, status

POLICY = Path("/etc/cage-runtime/policy.d/20-mediators.policy")
RULES = """clipboard.Paste * work vault ask
open.File * work @disposable allow
call.Sum * work vault allow
keys.List * work vault allow
keys.Sign * work vault allow
"""
OPENER = Path("/usr/bin/xdg-open")
"""The machine has none: this one adds a line to a file, in whichever cage."""
SUM = "#!/bin/sh\nsha256sum\nexit 42\n"
BYTES = 300_000
"""More than a pipe holds."""
SLICE = Path("/sys/fs/cgroup/cages.slice")
DESKTOP = Path(__file__).with_name("desktop.py")


def sh(cage: str, script: str, *words: str, given: str = "") -> str:
    """What a shell in the cage prints."""
    return ok("cagectl", "enter", cage, "--", "sh", "-ec", script, "sh", *words, given=given)


def listed(*words: str) -> Any:
    return json.loads(ok("cagectl", *words, "--json=short"))


@contextlib.contextmanager
def desktop() -> Iterator[IO[str]]:
    """Of a person who is there: what is shown to that one, a line each."""
    with subprocess.Popen([sys.executable, str(DESKTOP)], stdout=subprocess.PIPE, text=True) as there:
        try:
            assert there.stdout is not None
            assert there.stdout.readline() == "registered\n"
            yield there.stdout
        finally:
            there.terminate()


def first(*lines: IO[str]) -> IO[str]:
    """Of some, one that has something to say."""
    readable, _, _ = select.select(lines, [], [], SECONDS)
    assert readable, "nothing is said"
    said: IO[str] = readable[0]
    return said


@pytest.fixture(scope="module", autouse=True)
def cages() -> Iterator[None]:
    """Two that the kernel keeps apart, the rules between them, and what opens files."""
    ok("systemctl", "start", "caged.service")
    OPENER.write_text('#!/bin/sh\necho two >>"$1"\n')
    OPENER.chmod(0o755)
    POLICY.parent.mkdir(parents=True, exist_ok=True)
    POLICY.write_text(RULES)
    ok("cagectl", "policy", "reload")
    for name in ("work", "vault"):
        ok("cagectl", "create", name, "--level", "internal", "--require", "lsm")
    sh("vault", "mkdir -p ~/.config/incage/services; cat >~/.config/incage/services/Sum;"
       " chmod 755 ~/.config/incage/services/Sum; mkdir -m 700 ~/.config/incage/keys;"
       " ssh-keygen -q -t ed25519 -N '' -C '' -f ~/.config/incage/keys/work; mv ~/.config/incage/keys/work.pub ~",
       given=SUM)
    sh("work", "cat >work.pub", given=sh("vault", "cat work.pub"))
    yield
    ok("systemctl", "start", "caged.service")
    ok("cagectl", "destroy", "work", "vault", "--yes")
    POLICY.unlink()
    OPENER.unlink()
    ok("cagectl", "policy", "reload")


@pytest.fixture(autouse=True)
def nothing_denied(core: None) -> Iterator[None]:
    """What these tests do is what cages are for, so that the kernel refuses none of it."""
    assert core is None
    yield
    assert {name: status(name)["denials"] for name in ("work", "vault")} == {"work": {}, "vault": {}}


# --- each mediator's work --------------------------------------------------------------------------------------------
def sends() -> None:
    """A file, a tree and a move; Inbox is empty before and after."""
    sh("work", f"mkdir -p tree/below; echo one >tree/below/one; head -c {BYTES} /dev/zero >tree/zeros;"
       " echo file >file; echo moved >moved; incage send file --to vault; incage send tree --to vault;"
       " incage move moved --to vault; test ! -e moved; rm -r tree file")
    assert sh("vault", "cd Inbox/work; cat file tree/below/one moved; wc -c <tree/zeros; rm -r ~/Inbox/work") == (
        f"file\none\nmoved\n{BYTES}\n")


def calls() -> None:
    called = run("cagectl", "enter", "work", "--", "sh", "-c", f"head -c {BYTES} /dev/zero | incage call Sum vault")
    summed = ok("sh", "-c", f"head -c {BYTES} /dev/zero | sha256sum")
    assert (called.returncode, called.stdout, called.stderr) == (42, summed, "")


def signs() -> None:
    sh("work", """echo document >doc; rm -f doc.sig; echo "me $(cat work.pub)" >signers
       incage agent --to vault -- ssh-keygen -Y sign -q -f work.pub -n file doc
       ssh-keygen -Y verify -q -f signers -I me -n file -s doc.sig <doc""")


def pastes() -> None:
    """Once a person has said so."""
    sh("work", "incage copy", given="what was copied\n")
    with desktop() as shown, subprocess.Popen(["cagectl", "enter", "vault", "--", "incage", "paste"],
                                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pasting:
        assert pasting.stdout is not None
        if first(shown, pasting.stdout) is pasting.stdout:
            pytest.fail(f"nobody is asked: {pasting.stdout.read()}")
        member, prompt = json.loads(shown.readline())
        assert (member, prompt["source"], prompt["target"], prompt["service"]) == (
            "PromptAdded", "work", "vault", "clipboard.Paste")
        ok("cagectl", "prompts", "answer", prompt["id"], "allow")
        assert pasting.communicate(timeout=SECONDS)[0] == "what was copied\n"
    assert (pasting.returncode, listed("prompts", "list")) == (0, [])


def opens() -> None:
    """In a disposable cage, which is gone after it."""
    before = traces()
    assert sh("work", "echo one >a.txt; incage open a.txt --in @disposable; cat a.txt") == "a.txt: edited\none\ntwo\n"
    until(lambda: {cage["name"] for cage in listed("list")} == {"work", "vault"})
    for scope in SLICE.glob("cage-disp-*.scope"):
        run("systemctl", "stop", scope.name)  # which systemd removes by itself: a stop waits for that
    assert traces() == before


def traces() -> dict[str, list[str]]:
    """What there is for each cage that runs."""
    return {
        "contexts": [str(number) for number in asked("configured")],
        "folders": sorted(os.listdir("/run/cage-runtime/cages")),
        "homes": sorted(os.listdir("/var/lib/cage-runtime/storage")),
        "machines": sorted(line.split()[0] for line in ok("machinectl", "--no-legend", "list").splitlines() if line),
        "scopes": sorted(scope.name for scope in SLICE.glob("cage-*.scope")),
    }


def notifies() -> None:
    with desktop() as lines:
        sh("work", "incage notify done 'all of it'")
        member, shown = json.loads(first(lines).readline())
    assert (member, shown["source"], shown["summary"], shown["body"]) == ("Notified", "work", "done", "all of it")


def logs() -> None:
    sh("work", "incage log --tag backup --priority warning it is done")
    ok("journalctl", "--sync")
    entry = json.loads(ok("journalctl", "--quiet", "--output=json", "--lines=1", "SYSLOG_IDENTIFIER=cage-work",
                          "_SYSTEMD_UNIT=cage-mediator@log.service"))
    assert {key: entry[key] for key in ("MESSAGE", "CAGE", "CAGE_UUID", "CAGE_TAG", "PRIORITY")} == {
        "MESSAGE": "backup: it is done", "CAGE": "work", "CAGE_UUID": status("work")["uuid"], "CAGE_TAG": "backup",
        "PRIORITY": "4"}
    assert int(entry["_UID"]) == pwd.getpwnam("cage-log").pw_uid


WORK: dict[str, Callable[[], None]] = {"call": calls, "clipboard": pastes, "files": sends, "keys": signs, "log": logs,
                                       "notify": notifies, "open": opens}


def unit(name: str) -> str:
    return f"cage-mediator@{name}.service"


def idle() -> list[str]:
    """What doctor says of mediators that do not run."""
    return [check["check"] for check in listed("doctor") if check["check"].startswith("mediator ")]


# --- the tests -------------------------------------------------------------------------------------------------------
def test_every_core_half_runs_as_its_user_under_its_unit_without_a_privilege() -> None:
    laid = {Path(name).stem for name in ok("sh", "-c", "ls /usr/lib/cage-runtime/mediators.d").split()}
    assert set(MEDIATORS) == laid
    ok("systemctl", "start", *UNITS_OF_MEDIATORS)  # which caged has begun: this waits for it
    for name in MEDIATORS:
        assert properties(unit(name), "ActiveState", "User") == {"ActiveState": "active", "User": f"cage-{name}"}
        process = Path(f"/proc/{main_pid(unit(name))}")
        shown = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        assert shown["Uid"].split() == [str(pwd.getpwnam(f"cage-{name}").pw_uid)] * 4
        assert (shown["CapEff"].strip(), shown["NoNewPrivs"].strip(), shown["Seccomp"].strip()) == ("0" * 16, "1", "2")
        assert unit(name) in (process / "cgroup").read_text()


@pytest.mark.parametrize("name", WORK)
def test_it_does_its_work(name: str) -> None:
    WORK[name]()


def test_those_that_are_killed_come_back_and_work() -> None:
    before = {name: main_pid(unit(name)) for name in MEDIATORS}
    ok("systemctl", "kill", "--signal=SIGKILL", *UNITS_OF_MEDIATORS)
    # Slowly, on one processor: what waits here must not keep them from starting, which systemd does not wait long for.
    until(lambda: not {str(pid) for pid in before.values()} & set(
        ok("systemctl", "show", "--value", "--property=MainPID", *UNITS_OF_MEDIATORS).split()))
    ok("systemctl", "start", *UNITS_OF_MEDIATORS)  # which systemd has begun: this waits for it
    until(lambda: not idle())
    for name in WORK:
        WORK[name]()
        assert main_pid(unit(name)) not in (0, before[name]), name


def test_the_core_is_restarted_meanwhile() -> None:
    """Of those who ask while there is no caged, each is answered, and as ever."""
    script = """for number in 1 2 3; do echo x >x-$number; incage send x-$number --to vault; incage log number $number
       echo x | incage call Sum vault >/dev/null || test $? = 42; incage notify number; done; echo all"""
    before = {name: main_pid(unit(name)) for name in MEDIATORS}
    with subprocess.Popen(["cagectl", "enter", "work", "--", "sh", "-ec", script], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as asking:
        assert asking.stdout is not None
        asking.stdout.readline()
        ok("systemctl", "restart", "caged.service")
        said = asking.communicate(timeout=SECONDS)[0]
    assert (asking.returncode, said.splitlines()[-1]) == (0, "all"), said
    assert sh("vault", "ls Inbox/work; rm -r Inbox/work").split() == ["x-1", "x-2", "x-3"]
    assert {name: main_pid(unit(name)) for name in MEDIATORS} == before, "they are not restarted with it"
