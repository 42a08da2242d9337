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
from tests.vm.machine import FILES_AND_ANOTHER, SECONDS, ok, properties, run

STATE, RUN = Path("/var/lib/cage-runtime"), Path("/run/cage-runtime")
SAMPLE = Path("/var/lib/cage-runtime-quickstart/sample")
NOTES = "org.cageruntime.Notes"
UNITS = ("cage-spawner", "cage-apps", *FILES_AND_ANOTHER, "caged")
UNAVAILABLE = ("cagectl: caged does not start; systemctl status caged says why\n",
               "cagectl: caged was started and has not come up in time; see its journal\n")
"""systemd 252 starts caged when its spawner has failed; since 254 caged waits for as long as that is started again."""
WITHOUT_SPAWNER = f"cagectl: no cage-spawner listens on {RUN}/spawner.sock; start it\n"
MISSING = "missing flatpak: no applications can be installed or run in cages; install the package that has flatpak"
PATIENCE = 100
"""Times to look whether an application has started."""
FORWARD, BACK = "+2 days", "-2 days"
CLOCK_SET_BACK = "f4cdc476b5e24217abf528240575585c"


def status(name: str) -> dict[str, object]:
    """What does not change as long as a cage lives, and the process that was left in it."""
    shown = json.loads(ok("cagectl", "status", name, "--json=short"))
    same = {key: shown[key] for key in ("uuid", "state", "level", "created", "documents")}
    return same | {"sleeper": ok("cagectl", "enter", name, "--", "pgrep", "--exact", "sleep")}


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
    assert (status(name), document(name)) == (before, "figures\n")
    assert ok("cagectl", "audit", "verify") == "audit: the chain is whole\n"


@pytest.fixture
def spoilt(kept: str) -> Iterator[str]:
    """That cage, where the test keeps the core from starting; at the end all of it starts as ever."""
    yield kept
    restart()


# --- what is said -----------------------------------------------------------------------------------------------------
def cursor() -> str:
    """The journal's end, by now."""
    return ok("journalctl", "--quiet", "--lines=0", "--show-cursor").removeprefix("-- cursor: ").strip()


def said(program: str, after: str) -> set[str]:
    """What a program has said to the journal since, on its standard error."""
    ok("journalctl", "--sync")
    # Filtered here: with matches of its own, journalctl leaves out the first that comes after a cursor.
    entries = map(json.loads, ok("journalctl", "--quiet", "--output=json", f"--after-cursor={after}").splitlines())
    return {entry["MESSAGE"] for entry in entries
            if (entry.get("SYSLOG_IDENTIFIER"), entry["_TRANSPORT"]) == (program, "stdout")}


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
def test_a_state_that_cannot_be_written(spoilt: str) -> None:
    caged = properties("caged", "MainPID")["MainPID"]
    remount = ("nsenter", "--mount", f"--target={caged}", "mount", "-o")
    ok(*remount, "remount,bind,ro", f"{STATE}/cages")
    assert refused("cagectl", "create", "next") == (
        125, "cagectl: next could not be written down: Read-only file system\n")
    ok(*remount, "remount,bind,rw", f"{STATE}/cages")
    assert [cage["name"] for cage in json.loads(ok("cagectl", "list", "--json=short"))] == [spoilt]
    ok("mount", "--bind", str(STATE), str(STATE))
    try:
        ok("mount", "-o", "remount,bind,ro", str(STATE))
        for unit, folder in (("cage-spawner", "storage"), ("cage-apps", "flatpak"), ("caged", "audit")):
            (sentence,) = refusal(unit)
            assert f"{STATE}/{folder} cannot be written: its file system is read-only; mount it writable" in sentence
        status, words = refused("cagectl", "list")
        assert (status, words in UNAVAILABLE) == (125, True), words
    finally:
        ok("umount", str(STATE))


def test_files_that_belong_to_somebody_else(spoilt: str) -> None:
    instance, chain = STATE / "cages" / spoilt / "instance.json", STATE / "audit"
    ok("chown", "root:root", str(instance))
    restart()
    (fault,) = (check["detail"] for check in json.loads(ok("cagectl", "doctor", "--json=short"))
                if check["check"] == "state")
    assert fault == f"{instance}: Permission denied: chown -R caged: {instance.parent}, and start caged again"
    assert refused("cagectl", "create", spoilt) == (1, f'cagectl: there is a cage "{spoilt}" already\n')
    ok("chown", "-R", "caged:", str(instance.parent))
    ok("chown", "nobody", str(chain))
    sentence = f"{chain} belongs to uid 65534 and has to belong to caged: chown -R caged: {chain}"
    for unit in ("cage-spawner", "caged"):
        assert refusal(unit) == {f"{unit}: {sentence}"}
    ok("chown", "-R", "caged:", str(chain))


# --- users and units --------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("spoilt")
def test_a_group_that_is_missing() -> None:
    sentence = "there is no group cage-gateways on this host; systemd-sysusers cage-runtime.conf adds it"
    ok("groupdel", "cage-gateways")
    try:
        assert refusal("cage-spawner") == {f"cage-spawner: {sentence}"}
        assert refusal("caged") == {f"caged: {sentence}"}
    finally:
        ok("systemd-sysusers")


OVERRIDES = [
    ("caged", "User=root", "caged does not run as root: start it as the user caged, or use --standalone"),
    ("caged", "ExecStart=\nExecStart=/usr/bin/nothing", None),
    ("cage-spawner", "User=caged", "cage-spawner makes namespaces and id maps: run it as root"),
    ("cage-spawner", "CapabilityBoundingSet=\nCapabilityBoundingSet=CAP_CHOWN",
     "cage-spawner may not make namespaces, because what starts it takes that away; see systemctl cat cage-spawner"),
    ("cage-spawner", "CapabilityBoundingSet=~CAP_MKNOD",
     "cage-spawner has to make the devices of a cage (CAP_MKNOD), and what starts it takes that away; "
     "see systemctl cat cage-spawner"),
]


def test_a_unit_that_somebody_has_overridden(spoilt: str) -> None:
    for unit, lines, sentence in OVERRIDES:
        if lines == "User=caged":
            ok("systemctl", "start", "caged")
        with overridden(unit, lines):
            assert refusal(unit) == ({f"{unit}: {sentence}"} if sentence else set()), lines
            if lines == "User=caged":
                assert refused("cagectl", "status", spoilt) == (125, WITHOUT_SPAWNER)


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
        assert "The clock of this host was set back" in ok("journalctl", "--output=cat", "MESSAGE_ID=" + CLOCK_SET_BACK)
    finally:
        ok("date", "--set", FORWARD)
    kinds = [record["kind"] for record in json.loads(ok("cagectl", "audit", "tail", "--json=short"))]
    assert kinds[-1] == "cage-destroyed", "the order is that of what happened"
    assert kinds[kinds.index("clock-set-back") + 1] == "cage-created"


# --- Flatpak ----------------------------------------------------------------------------------------------------------
def test_flatpak_goes_while_an_application_runs(kept: str, cage: MakeCage) -> None:
    ok("cagectl", "app", "remote-add", "sample", f"file://{SAMPLE}/repo", f"--gpg-key={SAMPLE}/key.gpg")
    ok("cagectl", "app", "install", kept, NOTES)
    application = subprocess.Popen(["cagectl", "run", kept, NOTES, "--", "--write", "-", "later.txt"],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for _ in range(PATIENCE):
        if run("cagectl", "enter", kept, "--", "pgrep", "--full", "/app/bin/notes --write").returncode == 0:
            break
    else:
        pytest.fail(f"the application does not start: {application.poll()}")
    flatpak, away = Path("/usr/bin/flatpak"), Path("/usr/bin/flatpak.away")
    flatpak.rename(away)
    try:
        said, _ = application.communicate("written to its end", SECONDS)
        assert (application.returncode, said) == (0, "notes: 18 bytes in /home/user/Documents/later.txt\n")
        doctor = run("cagectl", "doctor")
        assert doctor.returncode == 1
        assert MISSING in doctor.stdout.splitlines()
        # A cage that is set up now has none in it; one that was set up before may go on with what it has seen.
        late = cage("late")
        ok("cagectl", "app", "install", late, NOTES)
        assert refused("cagectl", "run", late, NOTES, "--", "--help") == (
            127, 'cagectl: there is no command "/usr/bin/flatpak" in the cage\n')
    finally:
        away.rename(flatpak)
    # What a cage has found missing it may find missing until it is set up again.
    ok("cagectl", "stop", late)
    ok("cagectl", "start", late)
    assert ok("cagectl", "run", late, NOTES, "--", "--list") == ""
