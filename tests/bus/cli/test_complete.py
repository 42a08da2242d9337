# SPDX-License-Identifier: LGPL-2.1-or-later
"""cagectl --complete: names or nothing, at once, and nobody is bothered."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from jeepney import MessageFlag

from cage_runtime.cli import cagectl, complete, incage

Captured = pytest.CaptureFixture[str]
CAGES = [{"name": ("s", name), "state": ("s", "running")} for name in ("work", "vault")]
APPLICATIONS = [{"application": ("s", "org.example.Notes")}]


def test_cages_and_the_applications_of_one(caged: Any, capsys: Captured) -> None:
    caged.answers["List"] = lambda _: ("aa{sv}", (CAGES,))
    caged.answers["ListApplications"] = lambda *_: ("aa{sv}", (APPLICATIONS,))
    assert cagectl.main(["--complete", "cages"]) == 0
    assert capsys.readouterr() == ("vault\nwork\n", "")
    assert cagectl.main(["--complete", "applications", "cagectl", "run", "work", "--detach"]) == 0
    assert capsys.readouterr() == ("org.example.Notes\n", "")
    assert [call[:2] for call in caged.calls] == [("List", {}), ("ListApplications", "work")]


def test_nothing_is_started_and_nobody_is_asked(caged: Any) -> None:
    caged.answers["List"] = lambda _: ("aa{sv}", (CAGES,))
    assert complete.names(["cages"]) == ["vault", "work"]
    assert caged.flags[-1] & MessageFlag.no_auto_start
    assert not caged.flags[-1] & MessageFlag.allow_interactive_authorization


@pytest.mark.parametrize("name", ["$(reboot)", "`id`", "a b", "a\nb", "-rf", "\x1b[2J", "a;b", ""])
def test_what_a_shell_would_expand_is_not_offered(caged: Any, name: str) -> None:
    caged.answers["List"] = lambda _: ("aa{sv}", ([{"name": ("s", name)}, *CAGES],))
    assert complete.names(["cages"]) == ["vault", "work"]


def test_a_refusal_is_silent(caged: Any, capsys: Captured) -> None:
    caged.fail("List", "org.cageruntime.Error.NotAuthorized", "List needs root on this host; use sudo")
    assert cagectl.main(["--complete", "cages"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("system_bus")
def test_no_core_is_silent(capsys: Captured) -> None:
    assert cagectl.main(["--complete", "cages"]) == 0
    assert capsys.readouterr() == ("", "")


def test_no_bus_is_silent(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
    assert cagectl.main(["--complete", "cages"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_core_that_hangs_is_not_waited_for(caged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complete, "SECONDS", 0.2)
    given_up = threading.Event()
    caged.answers["List"] = lambda _: given_up.wait(30) and ("aa{sv}", (CAGES,))
    assert complete.names(["cages"]) == []
    given_up.set()
    caged.answers["List"] = lambda _: ("aa{sv}", (CAGES,))
    monkeypatch.setattr(complete, "SECONDS", 30)
    assert complete.names(["cages"]) == ["vault", "work"]


@pytest.mark.parametrize("words", [[], ["nonsense"], ["applications"], ["applications", "--detach"]])
def test_a_question_that_is_none_is_not_asked(caged: Any, words: list[str]) -> None:
    assert cagectl.main(["--complete", *words]) == 0
    assert caged.calls == []


def test_the_option_is_cagectls_alone(capsys: Captured) -> None:
    assert incage.main(["--complete", "cages"]) == 2
    assert "--complete" in capsys.readouterr().err
