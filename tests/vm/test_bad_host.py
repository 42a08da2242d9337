# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host that is not as it must be: one sentence that says what is wrong, and a cage that goes on as if nothing were.

Each test spoils one thing and mends it again; what it does in between must leave the cage as it was, its processes,
its document and its place in the registry.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.conftest import MakeCage
from tests.vm.machine import SECONDS, ok, properties, run

STATE, RUN = Path("/var/lib/cage-runtime"), Path("/run/cage-runtime")
SAMPLE = Path("/var/lib/cage-runtime-quickstart/sample")
NOTES = "org.cageruntime.Notes"
UNITS = ("cage-spawner", "cage-apps", "cage-mediator@files", "caged")
UNAVAILABLE = "cagectl: caged is not running; start it with systemctl start caged or caged --standalone\n"
FORWARD, BACK = "+2 days", "-2 days"


def status(name: str) -> object:
    return json.loads(ok("cagectl", "status", name, "--json=short"))


def document(name: str) -> str:
    return ok("cagectl", "enter", name, "--", "cat", "Documents/kept.txt")


def restart() -> None:
    """The whole core, as it is now."""
    run("systemctl", "reset-failed")
    ok("systemctl", "restart", *UNITS)


@pytest.fixture
def kept(cage: MakeCage) -> Iterator[str]:
    """A cage that runs and holds a document, and is the same at the end of it all."""
    name = cage("kept")
    ok("cagectl", "enter", name, "--", "sh", "-c", "sleep 10000 & echo figures > Documents/kept.txt")
    before = status(name)
    yield name
    restart()
    assert (status(name), document(name)) == (before, "figures\n")
    assert ok("cagectl", "audit", "verify") == "audit: the chain is whole\n"


# --- what is said -----------------------------------------------------------------------------------------------------
def cursor() -> str:
    """The journal's end, by now."""
    return ok("journalctl", "--quiet", "--lines=0", "--show-cursor").removeprefix("-- cursor: ").strip()


def said(program: str, after: str) -> set[str]:
    """What a program has said to the journal since."""
    ok("journalctl", "--sync")
    words = ok("journalctl", "--quiet", "--no-pager", "--output=cat", f"--after-cursor={after}", f"--identifier={program}")
    return set(words.splitlines())


def refusal(unit: str) -> set[str]:
    """What the program of a unit says that does not start; the unit is stopped then, and not tried again."""
    after = cursor()
    ended = run("systemctl", "restart", unit)
    ok("systemctl", "stop", unit)
    assert ended.returncode == 1, f"{unit} has started"
    return said(unit.partition("@")[0], after)


def refused(*command: str) -> tuple[int, str]:
    """Status and words of a command; nothing on its output."""
    ended = run(*command)
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


# --- the state --------------------------------------------------------------------------------------------------------
def test_a_state_that_cannot_be_written(kept: str) -> None:
    caged = properties("caged", "MainPID")["MainPID"]
    remount = ("nsenter", "--mount", f"--target={caged}", "mount", "-o")
    ok(*remount, "remount,bind,ro", f"{STATE}/cages")
    assert refused("cagectl", "create", "next") == (
        125, "cagectl: next could not be written down: Read-only file system\n")
    ok(*remount, "remount,bind,rw", f"{STATE}/cages")
    assert [cage["name"] for cage in json.loads(ok("cagectl", "list", "--json=short"))] == [kept]
    ok("mount", "--bind", str(STATE), str(STATE))
    try:
        ok("mount", "-o", "remount,bind,ro", str(STATE))
        assert refusal("cage-spawner") == {f"cage-spawner: {STATE} cannot be written: Read-only file system"}
        assert refusal("caged") == {f"caged: the audit chain in {STATE}/audit cannot be opened: Read-only file system"}
        assert refused("cagectl", "list") == (125, UNAVAILABLE)
    finally:
        ok("umount", str(STATE))


def test_files_that_belong_to_somebody_else(kept: str) -> None:
    # Its directories the runtime puts right itself; in them, it changes nothing that it did not write.
    for name in ("cages", "audit", "flatpak", "staging", "storage"):
        ok("chown", "nobody:nogroup", str(STATE / name))
    restart()
    assert document(kept) == "figures\n"
    instance, chain = STATE / "cages" / kept / "instance.json", sorted(STATE.glob("audit/*"))
    ok("chown", "root:root", str(instance))
    restart()
    doctor = {check["check"]: check["detail"] for check in json.loads(ok("cagectl", "doctor", "--json=short"))}
    assert doctor["state"] == (f"{instance}: Permission denied; restore it from a backup, "
                               f"or remove {instance.parent}")
    assert refused("cagectl", "create", kept) == (
        1, f'cagectl: there is a cage "{kept}" already; choose another name, or cagectl destroy {kept}\n')
    ok("chown", "caged:caged", str(instance))
    ok("chown", "root:root", *map(str, chain))
    assert refusal("caged") == {f"caged: the audit chain in {STATE}/audit cannot be opened: Permission denied"}
    ok("chown", "caged:caged", *map(str, chain))


def test_a_home_that_belongs_to_somebody_else(cage: MakeCage) -> None:
    name = cage("moved", "--no-start")
    (home,) = STATE.glob(f"storage/{status(name)['uuid']}/home")  # type: ignore[index]
    owner = home.stat().st_uid
    ok("chown", "nobody", str(home))
    ended = refused("cagectl", "start", name)
    assert ended == (125, f"cagectl: the home {home} belongs to the uid 65534 and not to its cage; "
                          f"chown it to {owner}, or restore it\n")
    ok("chown", str(owner), str(home))
    ok("cagectl", "start", name)


# --- users and units --------------------------------------------------------------------------------------------------
def test_a_group_that_is_missing(kept: str) -> None:
    sentence = "there is no group cage-gateways on this host; reinstalling the runtime adds it"
    ok("groupdel", "cage-gateways")
    try:
        assert refusal("cage-spawner") == {f"cage-spawner: {sentence}"}
        assert refusal("caged") == {f"caged: {sentence}"}
        assert refused("cagectl", "status", kept) == (125, UNAVAILABLE)
    finally:
        ok("systemd-sysusers")


OVERRIDES = [
    ("caged", "User=root", "caged does not run as root: start it as the user caged, or use --standalone"),
    ("caged", "ExecStart=\nExecStart=/usr/bin/nothing", None),
    ("cage-spawner", "User=caged", "cage-spawner makes namespaces and id maps: run it as root"),
    ("cage-spawner", "CapabilityBoundingSet=\nCapabilityBoundingSet=CAP_CHOWN",
     "cage-spawner may not make namespaces: Operation not permitted; see systemctl cat cage-spawner"),
]


def test_a_unit_that_somebody_has_overridden(kept: str) -> None:
    for unit, lines, sentence in OVERRIDES:
        with overridden(unit, lines):
            assert refusal(unit) == ({f"{unit}: {sentence}"} if sentence else set()), lines
            expected = UNAVAILABLE if unit == "caged" else \
                f"cagectl: no cage-spawner listens on {RUN}/spawner.sock; start it\n"
            assert refused("cagectl", "status", kept) == (125, expected)
        restart()


@contextlib.contextmanager
def overridden(unit: str, lines: str) -> Iterator[None]:
    """As systemctl edit does it."""
    override = Path(f"/etc/systemd/system/{unit}.service.d/override.conf")
    override.parent.mkdir()
    override.write_text(f"[Service]\n{lines}\n")
    try:
        ok("systemctl", "daemon-reload")
        yield
    finally:
        override.unlink()
        override.parent.rmdir()
        ok("systemctl", "daemon-reload")


def test_a_core_beside_the_core(kept: str) -> None:
    before = properties("caged", "MainPID", "InvocationID")
    as_caged = ("setpriv", "--reuid=caged", "--regid=caged", "--init-groups")
    assert refused(*as_caged, "/usr/sbin/caged") == (
        125, f"caged: the audit chain in {STATE}/audit is in use by another core; stop it first\n")
    assert refused("/usr/sbin/caged", "--standalone") == (
        125, f"caged: a core runs already with {RUN}; end it first\n")
    assert refused("/usr/lib/cage-runtime/bin/cage-spawner") == (
        125, f"cage-spawner: another cage-spawner runs with {RUN}; end it first\n")
    assert properties("caged", "MainPID", "InvocationID") == before
    assert document(kept) == "figures\n"


# --- the clock --------------------------------------------------------------------------------------------------------
def test_a_clock_that_goes_backwards(kept: str) -> None:
    before = status(kept)
    ok("date", "--set", BACK)
    try:
        ok("cagectl", "create", "next")
        restart()
        assert status(kept) == before
        ok("cagectl", "destroy", "next", "--yes")
        assert ok("cagectl", "audit", "verify") == "audit: the chain is whole\n"
    finally:
        ok("date", "--set", FORWARD)
    kinds = [json.loads(line)["kind"] for line in ok("cagectl", "audit", "tail", "--json=short").splitlines()]
    assert kinds[-1] == "cage-destroyed", "the order is that of what happened"


# --- Flatpak ----------------------------------------------------------------------------------------------------------
def test_flatpak_goes_while_an_application_runs(kept: str) -> None:
    ok("cagectl", "app", "remote-add", "sample", f"file://{SAMPLE}/repo", f"--gpg-key={SAMPLE}/key.gpg")
    ok("cagectl", "app", "install", kept, NOTES)
    application = subprocess.Popen(["cagectl", "run", kept, NOTES, "--", "--write", "-", "later.txt"],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while run("pgrep", "--full", "/app/bin/notes --write").returncode != 0:
        assert application.poll() is None
    flatpak, away = Path("/usr/bin/flatpak"), Path("/usr/bin/flatpak.away")
    flatpak.rename(away)
    try:
        application_ends, _ = application.communicate("written to its end", SECONDS)
        assert (application.returncode, application_ends) == (0, "notes: 18 bytes in /home/user/Documents/later.txt\n")
        ended = run("cagectl", "doctor")
        assert ended.returncode == 1
        assert "missing flatpak: no applications can be installed or run in cages; install the package that has " \
               "flatpak\n" in ended.stdout
        print(run("cagectl", "create", "late"), run("cagectl", "app", "install", "late", NOTES), run("cagectl", "run", "late", NOTES))
        assert 0
    finally:
        away.rename(flatpak)
