# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disposable cages: a file or a link opens in a cage made for it, edits return, and nothing of the cage is left."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cage_runtime.model import DISPOSABLES_PER_CAGE
from tests.privileged.conftest import MakeCage
from tests.privileged.rules import policy, until
from tests.privileged.runtime import Cage, Changes, Ended, Runtime
from tests.privileged.sample import EDITOR, Sample

RULES = """open.File * desk @disposable:pad allow
open.Uri * desk @disposable:pad allow
open.Uri * low @disposable:high allow
open.Uri * top @disposable:pad allow
open.Uri * * * deny
"""
SCRIPT = """#!/bin/sh
case $1 in
    https:*) sleep "${1##*/}" ;;
    */waits.txt) echo two >> "$1"; sleep 1000 ;;
    *) echo two >> "$1" ;;
esac
"""
"""An editor that adds a line to a file, or sleeps as long as a link says."""

ENDS_IT = "until pkill -x sleep; do sleep 0.05; done"
"""In the cage, as soon as it has begun."""


@pytest.fixture(scope="module", autouse=True)
def rules(runtime: Runtime) -> Iterator[None]:
    written = {"policy.d/20-open.policy": RULES,
               "templates.d/pad.toml": f'level = "internal"\n[apps]\nallow = ["{EDITOR}"]\n',
               "templates.d/high.toml": f'level = "secret"\n[apps]\nallow = ["{EDITOR}"]\n'}
    files = {Path(runtime.top, "etc", name): text for name, text in written.items()}
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    runtime.ok("policy", "reload")
    yield
    for file in files:
        file.unlink()
    runtime.ok("policy", "reload")


@pytest.fixture(scope="module")
def desk(runtime: Runtime, shared_cage: MakeCage, sample: Sample) -> Iterator[Cage]:
    """A cage that has the editor; its remote is forgotten when nothing comes from it any more."""
    sample.add_editor(SCRIPT, "text/plain;x-scheme-handler/https;")
    runtime.ok("app", "remote-add", "here", f"file://{sample.repository}",
               f"--gpg-key={sample.directory / 'key.gpg'}")
    desk = shared_cage("desk", "--level", "internal")
    runtime.ok("app", "install", "desk", EDITOR, "--remote", "here")
    yield desk
    runtime.ok("app", "remove", "desk", EDITOR)
    runtime.ok("app", "remote-remove", "here")


def disposables(runtime: Runtime) -> dict[str, Any]:
    return {cage["name"]: cage for cage in runtime.json("list") if cage["name"].startswith("disp-")}


def wait_gone(runtime: Runtime) -> None:
    """Until there is no disposable cage any more."""
    with Changes(runtime.run / "caged/cages") as changes:
        changes.until(lambda: not disposables(runtime), "the end of the disposable cages")
    assert runtime.cgroups().keys() <= {cage["uuid"] for cage in runtime.json("list")}


def open_(source: Cage, what: str, target: str) -> Ended:
    return source.enter("incage", "open", what, "--in", target)


def test_a_file_is_edited_in_a_cage_that_is_made_for_it(runtime: Runtime, desk: Cage) -> None:
    desk.sh("echo one > Documents/a.txt")
    ended = open_(desk, "Documents/a.txt", "@disposable:pad")
    assert (ended.returncode, ended.stdout) == (0, b"Documents/a.txt: edited\n"), ended.stderr
    assert desk.sh("cat Documents/a.txt") == "one\ntwo\n"
    wait_gone(runtime)
    created = runtime.events("cage-created")[-1]
    assert (created["cage"][:5], created["caller"], created["level"]) == ("disp-", desk.uuid, "internal")
    destroyed = runtime.events("cage-destroyed")[-1]
    assert (destroyed["uuid"], destroyed["why"]) == (created["uuid"], "it was disposable, and has ended")


def test_what_may_not_come_back_by_then_ends_with_the_cage(runtime: Runtime, desk: Cage) -> None:
    desk.sh("echo one > Documents/waits.txt")
    process = desk.popen("incage", "open", "Documents/waits.txt", "--in", "@disposable:pad", stderr=subprocess.PIPE)
    until(lambda: [cage for cage in disposables(runtime).values() if cage["state"] == "running"], "the cage")
    (name,) = disposables(runtime)
    until(lambda: Cage(runtime, name).enter("pgrep", "-x", "sleep").returncode == 0, "the editor")
    with policy(runtime, "open.File * desk * deny\n"):
        Cage(runtime, name).sh("pkill -x sleep")
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 126
    assert b"what was edited ends with the disposable cage that it was edited in: open.File to " in errors
    assert desk.sh("cat Documents/waits.txt") == "one\n"
    wait_gone(runtime)


def test_a_link_opens_in_a_cage_that_ends_with_what_opened_it(runtime: Runtime, desk: Cage) -> None:
    ended = open_(desk, "https://example.org/1000", "@disposable:pad")
    assert (ended.returncode, ended.stdout) == (0, b"https://example.org/1000: opened\n"), ended.stderr
    (name,) = disposables(runtime)
    there = disposables(runtime)[name]
    assert (there["state"], there["owner"], there["level"], there["ephemeral"]) == ("running", 0, "internal", True)
    interfaces = Cage(runtime, name).sh("cat /proc/net/dev").splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"], "M63: as its caller"
    Cage(runtime, name).sh(ENDS_IT)
    wait_gone(runtime)


def test_as_many_as_there_may_be_and_one_more(runtime: Runtime, desk: Cage) -> None:
    for _ in range(DISPOSABLES_PER_CAGE):
        assert open_(desk, "https://example.org/1000", "@disposable:pad").returncode == 0
    ended = open_(desk, "https://example.org/1000", "@disposable:pad")
    assert ended.returncode == 125, ended.stderr
    assert f"has {DISPOSABLES_PER_CAGE} disposable cages already".encode() in ended.stderr
    runtime.ok("destroy", "--yes", *disposables(runtime))
    wait_gone(runtime)
    assert open_(desk, "https://example.org/0", "@disposable:pad").returncode == 0
    wait_gone(runtime)


@pytest.mark.parametrize("verb", ["stop", "kill"])
def test_one_that_is_stopped_is_gone(runtime: Runtime, desk: Cage, verb: str) -> None:
    assert open_(desk, "https://example.org/1000", "@disposable:pad").returncode == 0
    runtime.ok(verb, *disposables(runtime))
    wait_gone(runtime)


@pytest.mark.parametrize("program", ["caged", "cage-spawner"])
def test_what_was_killed_meanwhile_finds_it_again_and_ends_it(runtime: Runtime, desk: Cage, program: str) -> None:
    assert open_(desk, "https://example.org/1000", "@disposable:pad").returncode == 0
    (name,) = disposables(runtime)
    runtime.kill_and_wait(program, signal.SIGKILL)
    assert disposables(runtime)[name]["state"] == "running"
    Cage(runtime, name).sh(ENDS_IT)
    wait_gone(runtime)


def test_one_that_ends_while_there_is_no_core_is_gone_with_the_next(runtime: Runtime, desk: Cage) -> None:
    assert open_(desk, "https://example.org/2", "@disposable:pad").returncode == 0
    (there,) = disposables(runtime).values()
    with runtime.coming_back("caged"):
        runtime.kill("caged")
        with Changes(runtime.run / "cages") as changes:
            changes.until(lambda: not (runtime.run / "cages" / there["uuid"]).exists(), "its end")
    wait_gone(runtime)


def test_a_template_does_not_raise_what_the_caller_is(runtime: Runtime, shared_cage: MakeCage) -> None:
    low = shared_cage("low", "--level", "internal")
    assert open_(low, "https://example.org/1000", "@disposable:high").returncode == 0
    (there,) = disposables(runtime).values()
    assert there["level"] == "internal"
    runtime.ok("destroy", "--yes", there["name"])
    wait_gone(runtime)


def test_down_into_one_is_down(runtime: Runtime, shared_cage: MakeCage) -> None:
    """The template caps what it makes, so that the flow needs what every flow down does."""
    top = shared_cage("top", "--level", "secret")
    ended = open_(top, "https://example.org/1", "@disposable:pad")
    assert ended.returncode == 126
    assert b'would need "declassify"' in ended.stderr
    assert disposables(runtime) == {}


@pytest.mark.parametrize("target", ["@disposable", "@disposable:nosuch", "@disposable:default"])
def test_what_policy_does_not_permit_is_not_made(runtime: Runtime, desk: Cage, target: str) -> None:
    before = len(runtime.events("cage-created"))
    assert open_(desk, "https://example.org/1", target).returncode == 126
    assert len(runtime.events("cage-created")) == before
    assert disposables(runtime) == {}


def test_nobody_else_makes_one_of_that_name(runtime: Runtime) -> None:
    ended = runtime.cagectl("create", "disp-1")
    assert ended.returncode == 2
    assert b"gives to disposable cages" in ended.stderr
