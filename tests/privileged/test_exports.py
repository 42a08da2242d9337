# SPDX-License-Identifier: LGPL-2.1-or-later
"""Applications of cages in menus: the entry is there, is sound, starts the application, and is its owner's alone."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import PREFIX, SECONDS, Cage, Changes, Ended, Runtime
from tests.privileged.sample import NOTES, Sample, short_directory

PERSON, OTHER = 61234, 61235
"""Uids of nobody on this host."""


@pytest.fixture(scope="module")
def notes(runtime: Runtime) -> Iterator[None]:
    """The sample's remote is known; it is forgotten when nothing comes from it any more."""
    with short_directory() as directory:
        sample = Sample(directory=directory / "sample")
        sample.build()
        runtime.call("AddRemote", "ssaya{sv}", "exports", f"file://{sample.repository}", sample.key, {})
        yield
        runtime.ok("app", "remote-remove", "exports")


def entry(runtime: Runtime, name: str, owner: int = 0) -> Path:
    return runtime.state / f"exports/{owner}/share/applications/{name}.{NOTES}.desktop"


def command(file: Path) -> str:
    return next(line.removeprefix("Exec=") for line in file.read_text().splitlines() if line.startswith("Exec="))


def as_person(uid: int, *words: str) -> Ended:
    return subprocess.run(["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--", *words],
                          capture_output=True, timeout=SECONDS, check=False)


@pytest.mark.usefixtures("notes")
def test_an_entry_lives_as_long_as_the_application_in_the_cage(runtime: Runtime, cage: MakeCage) -> None:
    work, vault = cage("exporting"), cage("private", "--ephemeral")
    assert not entry(runtime, "exporting").exists()
    runtime.ok("app", "install", work.name, NOTES)
    runtime.ok("app", "install", vault.name, NOTES)
    for name in ("exporting", "private"):
        file = entry(runtime, name)
        validated = subprocess.run(["desktop-file-validate", file], capture_output=True, text=True, check=False)
        assert (validated.returncode, validated.stdout) == (0, "")
        assert f"Name=Notes [{name}]\n" in file.read_text()
        assert command(file) == f"{PREFIX}/bin/cagectl run {name} {NOTES} -- --list"
    work.sh("echo milk > Documents/shopping.txt")
    started = subprocess.run(command(entry(runtime, "exporting")).split(), env=runtime.environment(),
                             stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False)
    assert (started.returncode, started.stdout) == (0, b"shopping.txt\n"), started.stderr
    runtime.ok("app", "update", work.name)
    assert entry(runtime, "exporting").exists()
    runtime.ok("app", "remove", work.name, NOTES)
    assert not entry(runtime, "exporting").exists()
    assert entry(runtime, "private").exists()
    vault.destroy()
    assert not entry(runtime, "private").exists()
    destroyed_with_the_folder(runtime, work)


def destroyed_with_the_folder(runtime: Runtime, last: Cage) -> None:
    with Changes(runtime.state / "exports") as changes:
        last.destroy()
        changes.until(lambda: not list((runtime.state / "exports").iterdir()), "the end of the person's folder")


def given_to(runtime: Runtime, name: str, owner: int) -> None:
    """The cage is that person's from the core's next start on."""
    file = runtime.state / "cages" / name / "instance.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "owner": owner}))


@pytest.mark.usefixtures("notes")
def test_entries_are_their_owners_alone_and_are_made_again_at_the_start(runtime: Runtime, cage: MakeCage) -> None:
    theirs: Cage = cage("theirs")
    runtime.ok("app", "install", theirs.name, NOTES)
    before = entry(runtime, "theirs").read_bytes()
    runtime.stop()
    given_to(runtime, "theirs", PERSON)
    (runtime.state / "exports/0/share/applications/gone.org.example.App.desktop").write_text("left behind")
    directory = runtime.state / f"exports/{PERSON}/share/applications"
    with Changes(runtime.state / "exports") as changes:
        runtime.start()
        changes.until(lambda: directory.exists() and not (runtime.state / "exports/0").exists(), "the new folder")
    with Changes(directory) as changes:
        changes.until(entry(runtime, "theirs", PERSON).exists, "the person's entry")
    name = f"theirs.{NOTES}.desktop\n".encode()
    assert as_person(PERSON, "ls", str(directory)).stdout == name
    assert as_person(PERSON, "cat", str(directory / name.decode().strip())).stdout == before
    assert as_person(PERSON, "touch", str(directory / "mine.desktop")).returncode != 0
    for uid in (OTHER, 65534):
        for words in (("ls", str(directory)), ("cat", str(entry(runtime, "theirs", PERSON))),
                      ("ls", str(runtime.state / f"exports/{PERSON}")), ("ls", str(runtime.state / "exports"))):
            refused = as_person(uid, *words)
            assert (refused.returncode, refused.stdout) == ({"ls": 2, "cat": 1}[words[0]], b"")
            assert b"Permission denied" in refused.stderr
    assert as_person(PERSON, "ls", str(runtime.state / "exports")).returncode == 2, "who else has cages"
    destroyed_with_the_folder(runtime, theirs)


# --- a caged that somebody else has taken over ------------------------------------------------------------------------
PLANTED = ("0/share/dbus-1/services", "0/share/bash-completion/completions", "0/bin", f"{PERSON}/share/dbus-1/services")
"""Where a session of root's or of that person's would find what it runs."""


def caged(runtime: Runtime) -> int:
    """Its uid."""
    return (runtime.state / "cages").stat().st_uid


def plant(runtime: Runtime, where: str) -> Ended:
    return as_person(caged(runtime), "mkdir", "-p", str(runtime.state / "exports" / where))


@pytest.mark.usefixtures("notes")
def test_a_defeated_caged_can_make_nothing_that_a_session_runs(runtime: Runtime, cage: MakeCage) -> None:
    mine = cage("mine")
    runtime.ok("app", "install", mine.name, NOTES)
    for where in PLANTED:
        refused = plant(runtime, where)
        assert (refused.returncode, refused.stdout) == (1, b"")
        assert b"Permission denied" in refused.stderr
    exports = runtime.state / "exports"
    for old, new in (("0", "1"), ("0/share", "0/x"), ("0/share/applications", "0/share/dbus-1")):
        assert as_person(caged(runtime), "mv", "-T", str(exports / old), str(exports / new)).returncode == 1
    assert as_person(caged(runtime), "touch", str(entry(runtime, "mine"))).returncode == 0, "this is its own"
    assert sorted(str(path.relative_to(exports)) for path in exports.rglob("*")) == [
        "0", "0/share", "0/share/applications", f"0/share/applications/mine.{NOTES}.desktop"]


@pytest.mark.usefixtures("notes")
def test_what_an_earlier_version_gave_to_caged_is_taken_back(runtime: Runtime, cage: MakeCage) -> None:
    mine, exports = cage("before"), runtime.state / "exports"
    runtime.ok("app", "install", mine.name, NOTES)
    entries, before = entry(runtime, "before").parent, entry(runtime, "before").read_bytes()
    runtime.stop()
    for path in (exports, exports / "0", exports / "0/share"):
        os.chown(path, caged(runtime), caged(runtime))
    exports.chmod(0o777)
    for where in PLANTED:
        assert plant(runtime, where).returncode == 0, "in that version it could"
    runtime.start()
    with Changes(exports) as changes:
        changes.until(entries.exists, "the folder as it has to be")
    with Changes(entries) as changes:
        changes.until(entry(runtime, "before").exists, "the entry that is made anew")
    assert entry(runtime, "before").read_bytes() == before
    with Changes(exports) as changes:
        changes.until(lambda: [path.name for path in exports.iterdir()] == ["0"], "the end of the rest")
    owners = {str(path.relative_to(exports)): path.stat().st_uid for path in (exports, *exports.rglob("*"))}
    assert owners == {".": 0, "0": 0, "0/share": 0, "0/share/applications": caged(runtime),
                      f"0/share/applications/before.{NOTES}.desktop": caged(runtime)}


@pytest.mark.usefixtures("notes")
def test_a_cage_that_is_made_with_an_application_has_it_in_the_menu(
    runtime: Runtime, cage: MakeCage, tmp_path: Path
) -> None:
    """Another cage has it installed by then, as all share one installation."""
    runtime.ok("app", "install", cage("first").name, NOTES)
    definition = tmp_path / "second.toml"
    definition.write_text(f'[apps]\nallow = ["{NOTES}"]\n')
    cage("second", "--from", str(definition))
    assert entry(runtime, "second").exists()
