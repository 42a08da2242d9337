# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs run with an environment of ours, bounded, and end when they are told to, with all that they started."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from cage_runtime.errors import CageError, RuntimeFailure
from cage_runtime.flatpak import command
from cage_runtime.flatpak.command import NO_BUS, ProgramFailed, Runner, Surroundings


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    surroundings = Surroundings(installation=tmp_path, private=tmp_path / "private")
    surroundings.create()
    return Runner(surroundings)


def shell(runner: Runner, script: str, *, seconds: float = 10.0) -> bytes:
    return runner.run("sh", "-c", script, seconds=seconds)


def test_nothing_of_our_environment_reaches_a_program(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LD_PRELOAD", "evil.so")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/real")
    monkeypatch.setenv("FLATPAK_SYSTEM_DIR", "/var/lib/flatpak")
    environment = dict(line.split("=", 1) for line in shell(runner, "env").decode().splitlines())
    assert "LD_PRELOAD" not in environment
    assert environment["DBUS_SYSTEM_BUS_ADDRESS"] == environment["DBUS_SESSION_BUS_ADDRESS"] == NO_BUS
    assert environment["FLATPAK_USER_DIR"] == str(tmp_path)
    ours = ("HOME", "GNUPGHOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "FLATPAK_SYSTEM_DIR", "FLATPAK_CONFIG_DIR")
    assert all(environment[name].startswith(f"{tmp_path}/private/") for name in ours)


def test_directories_of_programs_are_nobody_elses(runner: Runner, tmp_path: Path) -> None:
    assert shell(runner, "umask").strip() == b"0022"
    assert tmp_path.joinpath("private").stat().st_mode & 0o777 == 0o700


def test_a_failure_carries_the_last_words_visibly(runner: Runner) -> None:
    with pytest.raises(ProgramFailed, match=r"sh failed: no \\x1b\[31mluck today") as caught:
        shell(runner, r"printf 'error: no \033[31mluck\n  today\n' >&2; exit 3")
    assert caught.value.complaint == r"no \x1b[31mluck today"


def test_advice_to_switch_a_check_off_is_not_passed_on(runner: Runner) -> None:
    with pytest.raises(ProgramFailed, match=r"no signatures found\Z"):
        shell(runner, "echo 'error: no signatures found (use gpg-verify=false in config to disable)' >&2; exit 1")


def test_a_program_that_does_not_end_is_ended(runner: Runner) -> None:
    with pytest.raises(RuntimeFailure, match="did not end in the time"):
        shell(runner, "sleep 60", seconds=0.2)


def test_output_is_bounded(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "OUTPUT_MAX", 1000)
    with pytest.raises(RuntimeFailure, match="printed more than 1000 bytes"):
        shell(runner, "yes")


def test_complaints_are_bounded_by_forgetting_the_first(runner: Runner) -> None:
    with pytest.raises(ProgramFailed) as caught:
        shell(runner, "yes x | head -c 100000 >&2; echo end >&2; exit 1")
    assert len(caught.value.complaint) < 400


def test_cancel_ends_a_program_and_its_children_and_the_work_it_belongs_to(runner: Runner, tmp_path: Path) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)

    def cancel() -> None:
        with started.open() as fifo:
            fifo.read()
        runner.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    before = time.monotonic()
    with pytest.raises(CageError, match="cancelled"):
        shell(runner, f"sleep 60 & echo > {started}; wait", seconds=50.0)
    thread.join()
    assert time.monotonic() - before < 30
    with pytest.raises(CageError, match="cancelled"):
        shell(runner, "true")
    assert runner.run("echo", "tidy", seconds=10.0, cleaning=True) == b"tidy\n"
    runner.begin()
    assert shell(runner, "echo next") == b"next\n"
