# SPDX-License-Identifier: LGPL-2.1-or-later
"""What cagectl and incage ask of the bus, what they print of the answers, and their exit status."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from cage_runtime.cli import cagectl, client, followed, incage, verbs_incage

Captured = pytest.CaptureFixture[str]
ERROR = "org.cageruntime.Error."
WORK = {
    "name": ("s", "work"),
    "uuid": ("s", "u-1"),
    "state": ("s", "running"),
    "level": ("s", "internal"),
    "compartments": ("as", ["finance", "hr"]),
    "ephemeral": ("b", False),
    "processes": ("u", 3),
}
VAULT = WORK | {"name": ("s", "vault"), "state": ("s", "stopped"), "compartments": ("as", []), "processes": ("u", 0)}
NOTHING: Callable[..., tuple[str, tuple[Any, ...]]] = lambda *_: ("", ())  # noqa: E731


def plain(row: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, (_, value) in row.items()}


def test_create_sends_what_was_said_and_no_more(caged: Any, capsys: Captured, tmp_path: Path) -> None:
    caged.answers["Create"] = lambda *_: ("o", ("/org/cageruntime/Core1/cage/work",))
    caged.answers["Status"] = lambda *_: ("a{sv}", (WORK,))
    line = "create work --level internal --compartment finance --compartment hr --cpus 1.5 --tasks 9 --exec-home"
    line += " --autostart --private --require lsm --require landlock"
    assert cagectl.main(line.split()) == 0
    assert capsys.readouterr().out == "work: running, internal, finance, hr\n"
    assert caged.calls[0] == (
        "Create",
        "work",
        {
            "start": ("b", True),
            "level": ("s", "internal"),
            "compartments": ("as", ["finance", "hr"]),
            "cpus": ("d", 1.5),
            "tasks": ("u", 9),
            "exec-home": ("b", True),
            "autostart": ("b", True),
            "private": ("b", True),
            "require": ("as", ["lsm", "landlock"]),
        },
    )
    caged.calls.clear()
    definition = tmp_path / "cage.toml"
    definition.write_text('level = "internal"\n')
    assert cagectl.main(["-q", "create", "work", "--from", str(definition), "--no-start"]) == 0
    assert capsys.readouterr().out == ""
    wanted = {
        "start": ("b", False),
        "definition": ("s", 'level = "internal"\n'),
        "definition-file": ("s", str(definition)),
    }
    assert caged.calls == [("Create", "work", wanted)]


@pytest.mark.parametrize(
    ("error", "status"), [("NameTaken", 1), ("InvalidName", 2), ("UnknownLevel", 2), ("NotAuthorized", 126),
                          ("HostUnsupported", 125)],
)  # fmt: skip
def test_a_refusal_is_its_sentence_and_status(caged: Any, capsys: Captured, error: str, status: int) -> None:
    caged.fail("Create", ERROR + error, "this is why\n\033[2J")
    assert cagectl.main(["create", "work"]) == status
    out, err = capsys.readouterr()
    assert (out, err) == ("", "cagectl: this is why\\n\\x1b[2J\n")


@pytest.mark.parametrize(
    ("verb", "member", "became"),
    [
        ("start", "Start", "running"),
        ("stop", "Stop", "stopped"),
        ("pause", "Pause", "paused"),
        ("resume", "Resume", "running"),
        ("kill", "Kill", "stopped"),
        ("destroy --yes", "Destroy", "destroyed"),
    ],
)
def test_each_name_is_done_once_and_said(caged: Any, capsys: Captured, verb: str, member: str, became: str) -> None:
    caged.answers[member] = NOTHING
    assert cagectl.main([*verb.split(), "work", "vault", "work"]) == 0
    assert capsys.readouterr().out == f"work: {became}\nvault: {became}\n"
    assert caged.calls == [(member, "work", {}), (member, "vault", {})]
    assert cagectl.main([*verb.split(), "work", "--json=short"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "work", "state": became}]


@pytest.mark.parametrize(("verb", "enabled"), [("enable", True), ("disable", False)])
def test_cages_are_enabled_and_disabled(caged: Any, capsys: Captured, verb: str, enabled: bool) -> None:
    member = verb.capitalize()
    caged.answers[member] = NOTHING
    assert cagectl.main([verb, "work", "vault"]) == 0
    assert capsys.readouterr().out == f"work: {verb}d\nvault: {verb}d\n"
    assert caged.calls == [(member, "work", {}), (member, "vault", {})]
    assert cagectl.main([verb, "work", "--json=short"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "work", "autostart": enabled}]


class Question:
    """A terminal on which a person answers `typed`, or what is raised."""

    def __init__(self, typed: str | type[BaseException]) -> None:
        self.typed = typed

    def readline(self) -> str:
        if isinstance(self.typed, str):
            return self.typed
        raise self.typed


@pytest.fixture
def cages_with_documents(caged: Any, fake_error: type[Exception]) -> Any:
    """full has documents, empty has none, old is one of a caged that does not say, odd cannot be looked at."""
    documents: dict[str, dict[str, Any]] = {
        "full": {"documents": ("b", True)}, "empty": {"documents": ("b", False)}, "old": {},
    }  # fmt: skip

    def status(name: str, _: object) -> tuple[str, tuple[Any, ...]]:
        if name == "odd":
            raise fake_error(ERROR + "RuntimeFailure", "odd cannot be looked at")
        if name not in documents:
            raise fake_error(ERROR + "NoSuchCage", f'there is no cage "{name}"')
        return "a{sv}", (WORK | documents[name],)

    def destroy(name: str, _: object) -> tuple[str, tuple[Any, ...]]:
        if name not in (*documents, "odd"):
            raise fake_error(ERROR + "NoSuchCage", f'there is no cage "{name}"')
        return "", ()

    caged.answers |= {"Status": status, "Destroy": destroy}
    return caged


@pytest.mark.usefixtures("cages_with_documents")
@pytest.mark.parametrize("terminal", [True, False])
def test_destroy_does_not_ask_where_nothing_is_lost(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: terminal)
    monkeypatch.setattr("sys.stdin", Question("n\n"))
    assert cagectl.main(["destroy", "empty", "nobody"]) == 1
    assert capsys.readouterr() == ("empty: destroyed\n", 'cagectl: there is no cage "nobody"\n')


@pytest.mark.parametrize("names", [["full"], ["empty", "old"], ["odd"]])
def test_destroy_needs_a_terminal_to_ask_on(
    cages_with_documents: Any, capsys: Captured, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: False)
    assert cagectl.main(["destroy", *names]) == 2
    sentence = "cagectl: destroy asks first, and there is no terminal to ask on; say --yes\n"
    assert capsys.readouterr() == ("", sentence)
    assert "Destroy" not in {member for member, *_ in cages_with_documents.calls}
    assert cagectl.main(["destroy", *names, "--yes"]) == 0


@pytest.mark.usefixtures("cages_with_documents")
@pytest.mark.parametrize(
    ("typed", "status", "said"),
    [
        ("y\n", 1, 'cagectl: there is no cage "nobody"\n'),
        ("n\n", 1, "cagectl: nothing was destroyed\n"),
        ("", 1, "\ncagectl: nothing was destroyed\n"),
        ("y", 1, '\ncagectl: there is no cage "nobody"\n'),
        (KeyboardInterrupt, 130, "\n"),
    ],
)
def test_destroy_asks_of_the_cages_that_hold_documents(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, typed: str | type[BaseException], status: int, said: str
) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: True)
    monkeypatch.setattr("sys.stdin", Question(typed))
    assert cagectl.main(["destroy", "full", "empty", "nobody", "old", "full"]) == status
    out, err = capsys.readouterr()
    assert err == "Destroy full, old and all documents within? [y/N] " + said
    destroyed = "full: destroyed\nempty: destroyed\nold: destroyed\n"
    assert out == (destroyed if "nobody" in said else "")


def test_every_failure_is_reported_and_the_worst_decides(
    caged: Any, capsys: Captured, fake_error: type[Exception]
) -> None:
    faults = {"a": "NoSuchCage", "c": "NotAuthorized"}

    def stop(name: str, _: object) -> tuple[str, tuple[Any, ...]]:
        if name in faults:
            raise fake_error(ERROR + faults[name], f"{name} failed")
        return "", ()

    caged.answers["Stop"] = stop
    assert cagectl.main(["stop", "a", "b", "c", "d"]) == 126
    out, err = capsys.readouterr()
    assert out == "b: stopped\nd: stopped\n"
    assert err == "cagectl: a failed\ncagectl: c failed\n"


@pytest.mark.usefixtures("system_bus")
def test_without_caged_one_sentence_is_enough(capsys: Captured) -> None:
    sentence = "cagectl: caged is not running; start it with systemctl start caged or caged --standalone\n"
    for line in ("stop a b c", "list", "doctor", "create work"):
        assert cagectl.main(line.split()) == 125
        assert capsys.readouterr() == ("", sentence)


@pytest.mark.usefixtures("system_bus")
def test_a_core_that_is_being_started_again_is_worth_another_try(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "STANDALONE_LOCK", str(tmp_path / "standalone.lock"))
    monkeypatch.setattr(client, "RETURN_SECONDS", 0.1)
    with (tmp_path / "standalone.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cagectl.main(["list"]) == 125
        assert capsys.readouterr() == ("", "cagectl: caged is just being started again; try again\n")
    assert cagectl.main(["list"]) == 125
    assert "caged is not running; start it" in capsys.readouterr().err


def test_list_is_a_table(caged: Any, capsys: Captured) -> None:
    caged.answers["List"] = lambda _: ("aa{sv}", ([WORK, VAULT],))
    assert cagectl.main(["list"]) == 0
    assert capsys.readouterr().out == (
        "NAME  STATE   LEVEL    COMPARTMENTS PROCESSES\n"
        "work  running internal finance hr   3\n"
        "vault stopped internal -            0\n"
        "\n2 cages.\n"
    )
    assert cagectl.main(["list", "-j"]) == 0
    assert json.loads(capsys.readouterr().out) == [plain(WORK), plain(VAULT)]


def test_list_says_whose_where_others_are_among_them(caged: Any, capsys: Captured) -> None:
    others = VAULT | {"owner": ("u", 4_000_000_000)}
    caged.answers["List"] = lambda _: ("aa{sv}", ([WORK | {"owner": ("u", os.getuid())}],))
    assert cagectl.main(["list"]) == 0
    assert "OWNER" not in capsys.readouterr().out
    caged.answers["List"] = lambda _: ("aa{sv}", ([WORK | {"owner": ("u", os.getuid())}, others],))
    assert cagectl.main(["list"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[:3]] == [
        "OWNER", pwd.getpwuid(os.getuid()).pw_name, "4000000000"]


def test_status_shows_what_is_known_and_what_a_later_version_adds(caged: Any, capsys: Captured) -> None:
    more = WORK | {"unenforced": ("as", ["memory: no controller", "cpus: no controller"]), "mood": ("s", "a\tb")}
    more |= {"documents": ("b", True)}
    caged.answers["Status"] = lambda *_: ("a{sv}", (more,))
    caged.answers["List"] = lambda _: ("aa{sv}", ([WORK],))
    expected = (
        "work\n"
        "       State: running\n"
        "       Level: internal\n"
        "Compartments: finance\n"
        "              hr\n"
        "   Processes: 3\n"
        "   Documents: yes\n"
        "Not enforced: memory: no controller\n"
        "              cpus: no controller\n"
        "        UUID: u-1\n"
        "        mood: a\\tb\n"
    )
    assert cagectl.main(["status", "work"]) == 0
    assert capsys.readouterr().out == expected
    assert cagectl.main(["status"]) == 0
    assert capsys.readouterr().out == expected
    assert cagectl.main(["status", "work", "-j"]) == 0
    assert json.loads(capsys.readouterr().out) == plain(more)


def test_status_shows_the_walls_and_what_the_kernel_refused(caged: Any, capsys: Captured) -> None:
    def wall(enforced: bool, detail: str) -> dict[str, Any]:
        return {"enforced": ("b", enforced), "detail": ("s", detail)}

    more = WORK | {"private": ("b", True), "require": ("as", ["landlock"])}
    more |= {"denials": ("a{st}", {"kill": 2, "connect": 7})}
    more |= {"walls": ("a{sa{sv}}", {"lsm": wall(False, "no \033bpf in the list"), "landlock": wall(True, "ABI 6")})}
    caged.answers["Status"] = lambda *_: ("a{sv}", (more,))
    assert cagectl.main(["status", "work"]) == 0
    assert capsys.readouterr().out == (
        "work\n"
        "           State: running\n"
        "           Level: internal\n"
        "    Compartments: finance\n"
        "                  hr\n"
        "       Processes: 3\n"
        "         Private: yes\n"
        "        Requires: landlock\n"
        "           Walls: landlock: ABI 6\n"
        "                  lsm: not enforced: no \\x1bbpf in the list\n"
        "Denied by kernel: connect: 7\n"
        "                  kill: 2\n"
        "            UUID: u-1\n"
    )
    assert cagectl.main(["status", "work", "-j"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["denials"] == {"kill": 2, "connect": 7}
    assert shown["walls"]["landlock"] == {"enforced": True, "detail": "ABI 6"}


def test_show_and_logs_are_lines_that_cannot_reach_the_terminal(caged: Any, capsys: Captured) -> None:
    caged.answers["Show"] = lambda *_: ("s", ('level = "internal"\ndescription = "a\\\\b \033[2J"\n',))
    caged.answers["Logs"] = lambda *_: ("as", (["fine", "\033]0;owned\007"],))
    assert cagectl.main(["show", "work"]) == 0
    assert capsys.readouterr().out == 'level = "internal"\ndescription = "a\\\\b \\x1b[2J"\n'
    assert cagectl.main(["logs", "work"]) == 0
    assert capsys.readouterr().out == "fine\n\\x1b]0;owned\\x07\n"
    assert cagectl.main(["logs", "work", "-n", "1"]) == 0
    assert capsys.readouterr().out == "\\x1b]0;owned\\x07\n"
    assert cagectl.main(["logs", "work", "-n", "3", "--json=short"]) == 0
    assert json.loads(capsys.readouterr().out) == ["fine", "\033]0;owned\007"]


def test_doctor_fails_when_something_is_missing(caged: Any, capsys: Captured) -> None:
    def check(name: str, state: str, text: str, advice: str) -> dict[str, tuple[str, str]]:
        return {"check": ("s", name), "state": ("s", state), "detail": ("s", text), "help": ("s", advice)}

    checks = [check("kernel", "ok", "6.18", ""), check("cgroup", "limited", "hybrid", "boot with cgroup v2")]
    caged.answers["Doctor"] = lambda _: ("aa{sv}", (checks,))
    assert cagectl.main(["doctor"]) == 0
    assert capsys.readouterr().out == "ok      kernel: 6.18\nlimited cgroup: hybrid; boot with cgroup v2\n"
    checks.append(check("flatpak", "missing", "no flatpak", "apt install flatpak"))
    assert cagectl.main(["doctor", "--color=always"]) == 1
    assert "\033[31mmissing \033[0mflatpak: no flatpak; apt install flatpak\n" in capsys.readouterr().out


def test_install_waits_for_its_job(caged: Any, capsys: Captured) -> None:
    results = {"application": ("s", "org.example.App"), "commit": ("s", "1234abcd5678"), "remote": ("s", "here")}
    caged.answers["InstallApplication"] = lambda *_: ("o", ("/org/cageruntime/Core1/job/1",))
    caged.answers["Wait"] = lambda: ("a{sv}", (results,))
    assert cagectl.main(["app", "install", "work", "org.example.App", "--remote", "here"]) == 0
    assert capsys.readouterr().out == "org.example.App: installed in work, commit 1234abcd…\n"
    assert caged.calls[0] == ("InstallApplication", "work", "org.example.App", {"remote": ("s", "here")})
    caged.fail("Wait", ERROR + "UntrustedSource", "the commit is not signed by the key of here")
    assert cagectl.main(["app", "install", "work", "org.example.App"]) == 1
    assert capsys.readouterr() == ("", "cagectl: the commit is not signed by the key of here\n")


def test_update_says_where_each_application_is(caged: Any, capsys: Captured) -> None:
    results: dict[str, tuple[str, str]] = {"org.example.App": ("s", "1234abcd5678")}
    caged.answers["UpdateApplications"] = lambda *_: ("o", ("/org/cageruntime/Core1/job/1",))
    caged.answers["Wait"] = lambda: ("a{sv}", (results,))
    assert cagectl.main(["app", "update", "work"]) == 0
    assert capsys.readouterr().out == "org.example.App: up to date in work, commit 1234abcd…\n"
    results.clear()
    assert cagectl.main(["app", "update", "work"]) == 0
    assert capsys.readouterr().out == "work: no applications\n"


def test_ctrl_c_cancels_a_job(caged: Any, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    from cage_runtime.cli import client

    real = client.Peer.call

    def call(self: client.Peer, member: str, *values: Any, **options: Any) -> Any:
        if member == "Wait":
            raise KeyboardInterrupt
        return real(self, member, *values, **options)

    monkeypatch.setattr(client.Peer, "call", call)
    caged.answers["UpdateApplications"] = lambda *_: ("o", ("/org/cageruntime/Core1/job/2",))
    caged.answers["Cancel"] = NOTHING
    assert cagectl.main(["app", "update", "work"]) == 130
    assert capsys.readouterr() == ("", "cagectl: cancelled\n")
    assert [member for member, *_ in caged.calls] == ["UpdateApplications", "Cancel"]


def test_a_remote_is_added_with_its_key(caged: Any, capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "key.asc").write_bytes(b"key\0bytes")
    caged.answers["AddRemote"] = NOTHING
    caged.answers["ListRemotes"] = lambda _: ("aa{sv}", ([{"name": ("s", "here"), "key": ("s", "ABCD")}],))
    assert cagectl.main(["app", "remote-add", "here", "https://x.example", f"--gpg-key={tmp_path}/key.asc"]) == 0
    assert caged.calls == [("AddRemote", "here", "https://x.example", b"key\0bytes", {})]
    assert capsys.readouterr().out == "here: added\n"
    assert cagectl.main(["app", "remotes"]) == 0
    assert capsys.readouterr().out == "NAME URL KEY\nhere -   ABCD\n\n1 remote.\n"


def test_a_remote_is_removed(caged: Any, capsys: Captured) -> None:
    caged.answers["RemoveRemote"] = NOTHING
    assert cagectl.main(["app", "remote-remove", "here"]) == 0
    assert cagectl.main(["app", "remote-remove", "here", "--json=short"]) == 0
    assert caged.calls == [("RemoveRemote", "here", {})] * 2
    assert capsys.readouterr().out == 'here: removed\n{"name":"here"}\n'
    caged.fail("RemoveRemote", ERROR + "Failed", 'the remote "here" is needed')
    assert cagectl.main(["app", "remote-remove", "here"]) == 1
    assert capsys.readouterr() == ("", 'cagectl: the remote "here" is needed\n')


def test_policy_and_audit_are_shown(caged: Any, capsys: Captured) -> None:
    decision = {"action": ("s", "deny"), "rule": ("s", "50-x.policy:7"), "reason": ("s", "it"), "flow": ("s", "down")}
    record = {"sequence": 1, "time": "2026-11-23T16:00:00.123456Z", "kind": "decision"}
    record |= {"fields": {"source": "vault", "reason": "no rule", "x": "\\x1b", "file": 'a"="b'}}
    caged.answers["ExplainPolicy"] = lambda *_: ("a{sv}", (decision,))
    caged.answers["CheckPolicy"] = lambda _: ("as", ([],))
    caged.answers["ProvePolicy"] = lambda _: ("aa{sv}", ([],))
    caged.answers["TailAudit"] = lambda _: ("as", ([json.dumps(record)],))
    caged.answers["VerifyAudit"] = lambda _: ("s", ("",))
    assert cagectl.main(["policy", "explain", "vault", "files.Send+a+b", "work"]) == 0
    assert caged.calls[0] == ("ExplainPolicy", "vault", "files.Send", "a+b", "work", {})
    assert capsys.readouterr().out == (
        "deny: files.Send+a+b from vault to work (down)\n  rule: 50-x.policy:7\nreason: it\n"
    )
    assert cagectl.main(["policy", "check"]) == 0
    assert cagectl.main(["audit", "verify"]) == 0
    assert capsys.readouterr().out == "policy: sound\naudit: the chain is whole\n"
    assert cagectl.main(["audit", "tail", "-n", "3"]) == 0
    assert caged.calls[-1] == ("TailAudit", {"count": ("u", 3)})
    assert capsys.readouterr().out == (
        '2026-11-23T16:00:00Z decision         source=vault reason="no rule" x=\\x1b file="a\\"=\\"b"\n'
    )
    assert cagectl.main(["audit", "tail", "--json=short"]) == 0
    assert json.loads(capsys.readouterr().out) == [record]


def step(source: str, target: str, rule: str, **more: bool) -> dict[str, Any]:
    words = {"source": source, "target": target, "service": "files.Send", "action": "ask", "rule": rule}
    return {**{key: ("s", word) for key, word in words.items()},
            "back": ("b", more.get("back", False)), "declassify": ("b", more.get("declassify", False))}


def finding(kind: str, text: str, *chain: dict[str, Any]) -> dict[str, Any]:
    return {"kind": ("s", kind), "text": ("s", text), "rules": ("as", []), "chain": ("aa{sv}", list(chain))}


def test_what_is_proved_of_a_policy_is_shown_and_a_leak_fails(caged: Any, capsys: Captured) -> None:
    opened = finding("opened", "data can get from vault (secret) to web (public)",
                     step("vault (secret)", "press (public)", "p:1", declassify=True),
                     step("press (public)", "web (public)", "p:2", back=True))
    warned = finding("shadowed", "p:4: never decides anything: p:3 decides all that it is about")
    caged.answers["CheckPolicy"] = lambda _: ("as", ([],))
    caged.answers["ProvePolicy"] = lambda _: ("aa{sv}", ([warned, opened],))
    assert cagectl.main(["policy", "check"]) == 0
    assert capsys.readouterr().out == """\
shadowed: p:4: never decides anything: p:3 decides all that it is about
opened: data can get from vault (secret) to web (public)
  vault (secret) -> press (public): files.Send, where a person says so, declassify (rule p:1)
  press (public) -> web (public): files.Send, its answer, where a person says so (rule p:2)
policy: sound, 1 warning
"""
    leak = finding("leak", "data can get from a to b, and no rule says declassify", step("a", "b", "p:9"))
    caged.answers["ProvePolicy"] = lambda _: ("aa{sv}", ([leak],))
    assert cagectl.main(["policy", "check"]) == 1
    assert capsys.readouterr().out == """\
leak: data can get from a to b, and no rule says declassify
  a -> b: files.Send, where a person says so (rule p:9)
"""
    assert cagectl.main(["policy", "check", "--json=short"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert {key: len(found) for key, found in told.items()} == {"faults": 0, "leaks": 1, "warnings": 0, "opened": 0}
    assert told["leaks"][0]["chain"][0]["rule"] == "p:9"


def test_why_tells_what_was_passed_over_and_what_would_change_it(caged: Any, capsys: Captured) -> None:
    near = {"rule": ("s", "p:1"), "text": ("s", "files.Send * a b allow"), "why": ("s", "the target is not b")}
    decision = {"action": ("s", "allow"), "rule": ("s", "p:2"), "reason": ("s", "it"), "flow": ("s", "up"),
                "target": ("s", "vault"), "parameters": ("s", "max-size=1048576"),
                "passed": ("aa{sv}", [near]), "change": ("s", "a line")}  # fmt: skip
    caged.answers["ExplainPolicy"] = lambda *_: ("a{sv}", (decision,))
    assert cagectl.main(["policy", "explain", "--why", "work", "files.Send", "@default"]) == 0
    assert caged.calls[0] == ("ExplainPolicy", "work", "files.Send", "", "@default", {})
    assert capsys.readouterr().out == """\
allow: files.Send from work to @default, which goes to vault (up)
      rule: p:2
    reason: it
parameters: max-size=1048576
    passed: p:1: files.Send * a b allow: the target is not b
    change: a line
"""


def test_policies_that_are_not_installed_go_as_their_texts(
    caged: Any, capsys: Captured, tmp_path: Path
) -> None:
    file = tmp_path / "30-mine.policy"
    file.write_bytes(b"* * * * deny\n")
    (tmp_path / "README").write_text("no policy")
    decision = {"action": ("s", "deny"), "rule": ("s", "30-mine.policy:1"), "reason": ("s", "it")}
    caged.answers["SimulatePolicy"] = lambda *_: ("a{sv}", (decision,))
    assert cagectl.main(["policy", "simulate", str(file), "--", "work", "files.Send+x", "vault"]) == 0
    assert capsys.readouterr().out == "deny: files.Send+x from work to vault\n  rule: 30-mine.policy:1\nreason: it\n"
    texts = {"30-mine.policy": list(b"* * * * deny\n")}
    (member, *asked, files, given), = caged.calls
    assert (member, asked, given) == ("SimulatePolicy", ["work", "files.Send", "x", "vault"], {})
    assert {name: list(text) for name, text in files.items()} == texts
    keys = ("source", "service", "target", "before", "after", "rule-before", "rule-after")
    change = {key: ("s", key) for key in keys}
    caged.answers["DiffPolicy"] = lambda *_: ("aa{sv}", ([change],))
    assert cagectl.main(["policy", "diff", "installed", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == list(keys)
    assert {name: list(text) for name, text in caged.calls[-1][2].items()} == texts
    assert (caged.calls[-1][1], caged.calls[-1][3]) == (
        {}, {"before-alone": ("b", False), "after-alone": ("b", True)})


@pytest.mark.parametrize(("name", "fault"), [("none.policy", "No such file or directory"), ("big.policy", "divide it"),
                                             ("fifo.policy", "not a regular file")])
def test_a_file_that_is_no_policy_is_one_sentence(
    caged: Any, capsys: Captured, tmp_path: Path, name: str, fault: str
) -> None:
    (tmp_path / "big.policy").write_bytes(b"#" * (1024**2 + 1))
    os.mkfifo(tmp_path / "fifo.policy")
    assert cagectl.main(["policy", "diff", "installed", str(tmp_path / name)]) == 1
    assert fault in capsys.readouterr().err
    assert caged.calls == []


def test_a_graph_is_text_a_drawing_or_json(caged: Any, capsys: Captured) -> None:
    levels = [{"name": ("s", name), "colour": ("s", "#2e7d32")} for name in ("public", "secret")]
    cages = [{"name": ("s", "web"), "level": ("s", "public"), "compartments": ("as", [])},
             {"name": ("s", "vault"), "level": ("s", "secret"), "compartments": ("as", ["legal"])}]  # fmt: skip
    flow = {"source": ("s", "web"), "target": ("s", "vault"), "action": ("s", "ask"), "two-way": ("b", False),
            "declassify": ("b", True), "services": ("as", ["files.Move", "files.Send"]), "rules": ("as", ["p:1"])}
    graph = {"levels": ("aa{sv}", levels), "cages": ("aa{sv}", cages), "flows": ("aa{sv}", [flow])}
    caged.answers["Graph"] = lambda _: ("a{sv}", (graph,))
    assert cagectl.main(["graph"]) == 0
    assert capsys.readouterr().out == """\
secret  vault (secret+legal)
public  web

SOURCE    TARGET ACTION DOWN       SERVICES
web    -> vault  ask    declassify files.Move, files.Send

1 flow.
"""
    assert cagectl.main(["graph", "--format=dot"]) == 0
    assert '"web" -> "vault" [label="files.Move\\nfiles.Send", style=dashed' in capsys.readouterr().out
    assert cagectl.main(["graph", "--format=svg"]) == 0
    assert ET.fromstring(capsys.readouterr().out).tag == "{http://www.w3.org/2000/svg}svg"
    assert cagectl.main(["graph", "--json=short"]) == 0
    assert json.loads(capsys.readouterr().out)["flows"][0]["services"] == ["files.Move", "files.Send"]


def test_faults_of_policy_and_audit_fail(caged: Any, capsys: Captured) -> None:
    caged.answers["CheckPolicy"] = lambda _: ("as", (["a.policy:3: what is this"],))
    caged.answers["VerifyAudit"] = lambda _: ("s", ("record 7 was changed",))
    assert cagectl.main(["policy", "check"]) == 1
    assert capsys.readouterr().out == "a.policy:3: what is this\n"
    assert cagectl.main(["audit", "verify"]) == 1
    assert capsys.readouterr() == ("", "cagectl: the audit chain is broken: record 7 was changed\n")


def ended_channel(status: int) -> Callable[..., tuple[str, tuple[Any, ...]]]:
    """A session that has exited already, with nothing said."""

    def answer(*_: object) -> tuple[str, tuple[Any, ...]]:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pipes = [os.pipe() for _ in range(3)]
        nears = [pipes[0][1], pipes[1][0], pipes[2][0]]
        socket.send_fds(near, [b'{"event": "started"}'], nears)
        near.send(json.dumps({"event": "exit", "status": status}).encode())
        for descriptor in {end for pipe in pipes for end in pipe}:
            os.close(descriptor)
        near.close()
        return "h", (far.detach(),)

    return answer


@pytest.fixture
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: False)


@pytest.mark.usefixtures("no_terminal")
def test_enter_passes_its_command_as_it_is_and_exits_with_its_status(
    caged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    caged.answers["Enter"] = ended_channel(42)
    command = ["ls", "--help", "-j", "--", "/home/ann/x"]
    assert cagectl.main(["enter", "work", "--root", "--cwd", "/tmp", "--", *command]) == 42
    assert caged.calls == [("Enter", "work", command, {"root": ("b", True), "cwd": ("s", "/tmp")})]


@pytest.mark.parametrize(
    ("term", "size", "told"),
    [
        ("xterm-256color", (80, 24), ("xterm-256color", 24, 80)),
        ("x" * 33, (0, 0), ("dumb", 24, 80)),
        ("../xterm\udcff", (65535, 10_000), ("dumb", 9999, 9999)),
        ("", (1, 1), ("dumb", 1, 1)),
    ],
)
def test_a_terminal_is_told_as_a_cage_can_have_it(
    caged: Any, monkeypatch: pytest.MonkeyPatch, term: str, size: tuple[int, int], told: tuple[str, int, int]
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(os, "isatty", lambda _: True)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size(size))
    caged.fail("Enter", ERROR + "WrongState", "work is stopped")
    assert cagectl.main(["enter", "work"]) == 1
    options = {"tty": ("b", True), "rows": ("q", told[1]), "columns": ("q", told[2]), "term": ("s", told[0])}
    assert caged.calls == [("Enter", "work", [], options)]


@pytest.mark.usefixtures("no_terminal")
def test_run_moves_arguments_home_and_may_detach(caged: Any, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    caged.answers["Run"] = ended_channel(0)
    assert cagectl.main(["run", "work", "org.example.App", "--", "--write", "x", "/home/ann/Documents/y"]) == 0
    wanted = ["--write", "x", "/home/user/Documents/y"]
    assert cagectl.main(["run", "work", "org.example.App", "--detach"]) == 0
    assert caged.calls == [
        ("Run", "work", "org.example.App", wanted, {}),
        ("Run", "work", "org.example.App", [], {"detach": ("b", True)}),
    ]
    assert capsys.readouterr().out == "org.example.App: started in work\n"
    assert cagectl.main(["run", "work", "org.example.App", "--detach", "--json=short"]) == 0
    started = {"name": "work", "application": "org.example.App", "state": "started"}
    assert json.loads(capsys.readouterr().out) == started


def open_descriptors() -> Iterator[str]:
    """What each descriptor of this process is, such as a path or `socket:[1234]`."""
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            yield os.readlink(f"/proc/self/fd/{number}")


class Sent:
    """What the stand-in for the mediator's cage half was given, and what it tells of each in turn."""

    def __init__(self, mediator: Any) -> None:
        self.received: list[tuple[Any, ...]] = []
        self.tells: list[list[dict[str, Any]]] = []
        self.ends: list[int] = []
        """Of all pipes, to be closed: a descriptor that goes out stays ours too."""
        mediator.answers["StartFile"] = self._start

    def _start(self, target: str, name: str, descriptor: Any, options: dict[str, Any]) -> tuple[str, tuple[Any, ...]]:
        with descriptor.to_file("r") as file:
            self.received.append((target, name, file.read(), options))
        status, control = os.pipe(), os.pipe()
        lines = self.tells.pop(0) if self.tells else [{"arrived": f"Inbox/work/{name}"}]
        os.write(status[1], b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        os.close(status[1])
        self.ends += [status[0], *control]
        return "hh", (status[0], control[1])


@pytest.fixture
def sent(mediator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    monkeypatch.setattr(verbs_incage, "IDENTITY", __file__)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figures.txt").write_text("quarterly figures")
    found = Sent(mediator)
    yield found
    for descriptor in found.ends:
        os.close(descriptor)


def test_incage_sends_the_descriptor_of_each_file(sent: Sent, capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "Documents").mkdir()
    (tmp_path / "figures.txt").rename(tmp_path / "Documents/figures.txt")
    before = set(open_descriptors())
    assert incage.main(["send", "Documents/figures.txt", "missing", "--to", "vault"]) == 1
    out, err = capsys.readouterr()
    assert sent.received == [("vault", "figures.txt", "quarterly figures", {})]
    assert out == "figures.txt -> vault: Inbox/work/figures.txt\n"
    assert err == 'incage: "missing" does not exist\n'
    # The connection ends with the process; from libsystemd 256 on a pidfd of the bus belongs to it.
    ours = {os.readlink(f"/proc/self/fd/{number}") for number in sent.ends}
    kept = sorted(what.partition(":")[0] for what in set(open_descriptors()) - before - ours)
    assert kept in (["socket"], ["anon_inode", "socket"])


def test_incage_says_what_became_of_what_it_sends(sent: Sent, mediator: Any, capsys: Captured) -> None:
    unknown = ('incage: "figures.txt": the core ended meanwhile, so it is not known whether it arrived; look in the '
               "target before sending it again\n")
    for tells in ([{"state": "committed"}], [], [{"error": ERROR + "CutOff", "sentence": "it ended"}]):
        sent.tells = [tells]
        assert incage.main(["send", "figures.txt", "--to", "vault"]) == 1
        assert capsys.readouterr() == ("", unknown)
    assert len(sent.received) == 3
    sent.tells = [[{"error": ERROR + "PolicyRefused", "sentence": "policy refuses this: 50-x.policy:7"}]]
    assert incage.main(["send", "figures.txt", "--to", "vault"]) == 126
    assert capsys.readouterr() == ("", "incage: policy refuses this: 50-x.policy:7\n")
    for cut_off in (ERROR + "CutOff", "org.freedesktop.DBus.Error.NoReply"):
        mediator.fail("StartFile", cut_off, "it ended before it answered; try again")
        assert incage.main(["send", "figures.txt", "--to", "vault"]) == 1
        assert capsys.readouterr() == ("", unknown)


def test_incage_sends_again_only_what_cannot_have_arrived(sent: Sent, capsys: Captured) -> None:
    nothing: list[dict[str, Any]] = [{"state": "reading", "done": 1, "total": 2},
               {"error": ERROR + "NothingDone", "sentence": "the core ended meanwhile; send it again"}]
    sent.tells = [nothing, nothing]
    assert incage.main(["send", "figures.txt", "--to", "vault"]) == 0
    assert len(sent.received) == 3
    assert capsys.readouterr() == ("figures.txt -> vault: Inbox/work/figures.txt\n", "")
    sent.tells = [nothing] * 4
    assert incage.main(["send", "figures.txt", "--to", "vault"]) == 125
    assert len(sent.received) == 6
    assert capsys.readouterr() == ("", "incage: the core ended meanwhile; send it again\n")


@pytest.mark.parametrize(("told", "says", "target"), [
    ("two:Inbox/work/figures.txt", "figures.txt -> two: Inbox/work/figures.txt\n", "two"),
    ("Inbox/work/", "figures.txt -> another cage: Inbox/work/\n", ""),
    ("two:", "figures.txt -> two: skipped, because the name is taken\n", "two"),
])
def test_incage_needs_no_target_to_send(sent: Sent, capsys: Captured, told: str, says: str, target: str) -> None:
    sent.tells = [[{"arrived": told}]] * 2
    assert incage.main(["send", "figures.txt"]) == 0
    assert capsys.readouterr().out == says
    assert incage.main(["--json=short", "send", "figures.txt"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["target"] == target
    assert {target for target, *_rest in sent.received} == {""}


PROGRESS: list[dict[str, Any]] = [{"job": 1, "state": "waiting"}, {"state": "reading", "done": 0, "total": 8},
            {"state": "reading", "done": 4, "total": 8}, {"state": "delivering", "done": 8, "total": 8},
            {"state": "committed"}, {"arrived": "Inbox/work/figures.txt"}]


@pytest.mark.parametrize(("flags", "shown"), [
    (["--progress"], True), (["--no-progress"], False), ([], False), (["--progress", "--no-progress"], False),
    (["-q", "--progress"], True),
])
def test_incage_shows_how_far_it_is_where_somebody_looks(
    sent: Sent, capsys: Captured, monkeypatch: pytest.MonkeyPatch, flags: list[str], shown: bool
) -> None:
    monkeypatch.setattr(followed, "PROGRESS_SECONDS", 0.0)
    sent.tells = [PROGRESS]
    assert incage.main(["send", "figures.txt", "--to", "vault", *flags]) == 0
    err = capsys.readouterr().err
    line = "\r\x1b[Kfigures.txt -> vault: "
    assert err == (f"{line}0 %{line}50 %{line}read, not there yet{line}read, not there yet\r\x1b[K" if shown else "")


# --- its jobs ------------------------------------------------------------------------------------------------------
JOBS = [(3, "/org/cageruntime/Files1/jobs/3", "reading", "vault", "figures\x1b.txt", 50, 200),
        (17, "/org/cageruntime/Files1/jobs/17", "waiting", "", "tree", 0, 0)]


def test_incage_lists_what_is_being_sent(mediator: Any, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs_incage, "IDENTITY", __file__)
    mediator.answers["ListJobs"] = lambda *_: ("a(uossstt)", (JOBS,))
    assert incage.main(["jobs"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "JOB STATE   TARGET READ NAME", "3   reading vault  25 % figures\\x1b.txt", "17  waiting -      -    tree", "",
        "2 jobs."]
    assert incage.main(["jobs", "--json=short"]) == 0
    assert json.loads(capsys.readouterr().out)[0] == {
        "job": 3, "state": "reading", "target": "vault", "name": "figures\x1b.txt", "done": 50, "total": 200}
    mediator.answers["ListJobs"] = lambda *_: ("a(uossstt)", ([],))
    assert incage.main(["jobs"]) == 0
    assert capsys.readouterr().out == "No jobs.\n"


@pytest.mark.usefixtures("mediator")
@pytest.mark.parametrize("number", ["", "x", "-1", "1/2", "1" * 11, "\u0663"])
def test_what_is_no_number_is_no_job(capsys: Captured, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    monkeypatch.setattr(verbs_incage, "IDENTITY", __file__)
    assert incage.main(["cancel", "--", number]) == 2
    assert "is not the number of a job" in capsys.readouterr().err


# --- what cages ask for --------------------------------------------------------------------------------------------
PROMPT = {
    "id": ("s", "0a1b2c3d"), "source": ("s", "work"), "source-level": ("s", "internal"), "source-colour": ("s", ""),
    "source-compartments": ("as", ["hr"]), "service": ("s", "files.Send"), "argument": ("s", ""),
    "asked": ("s", "vault"), "target": ("s", "vault"), "target-level": ("s", "secret"), "target-colour": ("s", ""),
    "target-compartments": ("as", []), "flow": ("s", "up"), "choices": ("a{ss}", {"vault": "secret"}),
    "default": ("s", ""), "rule": ("s", "/etc/x.policy:3"), "lines": ("as", ["a\\x1bb.txt", "c.txt"]),
    "size": ("t", 17), "files": ("u", 2), "types": ("as", ["text/plain"]), "sha256": ("s", "ab"), "for": ("u", 600),
    "transform": ("s", ""),
    "waiting": ("u", 3), "since": ("s", "2026-11-26T12:00:00Z"), "seconds": ("u", 170), "owner": ("u", 1000),
}  # fmt: skip
CHOICE = PROMPT | {
    "id": ("s", "11111111"), "argument": ("s", "x"), "asked": ("s", ""), "target": ("s", ""),
    "target-level": ("s", ""), "flow": ("s", ""), "choices": ("a{ss}", {"vault": "secret", "peer": "public"}),
    "lines": ("as", []), "size": ("t", 0), "files": ("u", 0), "types": ("as", []), "sha256": ("s", ""),
    "for": ("u", 0), "waiting": ("u", 1),
}  # fmt: skip


def test_what_cages_ask_for_is_shown_whole_and_harmless(caged: Any, capsys: Captured) -> None:
    evil = PROMPT | {"lines": ("as", ["\033[2J\u202e"]), "transform": ("s", "encrypt:press-key")}
    caged.answers["ListPrompts"] = lambda *_: ("aa{sv}", ([PROMPT, CHOICE, evil],))
    assert cagectl.main(["prompts", "list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "0a1b2c3d: work (internal+hr) asks for files.Send to vault (secret), up",
        "    | a\\x1bb.txt",
        "    | c.txt",
        "    17 bytes, 2 files, text/plain, sha256 ab",
        "    rule /etc/x.policy:3; open for 170s; 3 requests wait; allow stands for 10m",
        "11111111: work (internal+hr) asks for files.Send+x to a cage of your choice",
        "    --target: vault (secret), peer (public)",
        "    rule /etc/x.policy:3; open for 170s",
        "0a1b2c3d: work (internal+hr) asks for files.Send to vault (secret), up",
        "    | \\x1b[2J\\u202e",
        "    17 bytes, 2 files, text/plain, sha256 ab, encrypted on its way for press-key",
        "    rule /etc/x.policy:3; open for 170s; 3 requests wait; allow stands for 10m",
    ]
    assert cagectl.main(["--json=short", "prompts", "list"]) == 0
    assert json.loads(capsys.readouterr().out)[0] == plain(PROMPT)
    caged.answers["ListPrompts"] = lambda *_: ("aa{sv}", ([],))
    assert cagectl.main(["prompts", "list"]) == 0
    assert capsys.readouterr().out == "No open questions.\n"


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("allow", {}),
        ("deny --for 90s", {"for": ("u", 90)}),
        ("allow --for 2h --target peer", {"target": ("s", "peer"), "for": ("u", 7200)}),
        ("allow --session", {"session": ("b", True)}),
        ("allow --once", {"for": ("u", 0)}),
    ],
)
def test_a_question_is_answered(caged: Any, capsys: Captured, line: str, options: dict[str, Any]) -> None:
    caged.answers["AnswerPrompt"] = NOTHING
    assert cagectl.main(["prompts", "answer", "0a1b2c3d", *line.split()]) == 0
    answer = line.split()[0]
    assert capsys.readouterr().out == f"0a1b2c3d: {answer}\n"
    assert caged.calls == [("AnswerPrompt", "0a1b2c3d", answer, options)]
    assert cagectl.main(["--json=short", "prompts", "answer", "0a1b2c3d", *line.split()]) == 0
    assert json.loads(capsys.readouterr().out) == {"id": "0a1b2c3d", "answer": answer}


GRANT = {
    "id": ("s", "0a1b2c3d"), "action": ("s", "allow"), "source": ("s", "work"), "service": ("s", "files.Send"),
    "argument": ("s", "x"), "operation": ("s", ""), "target": ("s", "vault"), "asked": ("s", ""),
    "since": ("s", "2026-11-26T12:00:00Z"), "rule": ("s", "x:3"),
    "session": ("b", False), "seconds": ("u", 601), "owner": ("u", 1000),
}  # fmt: skip


def test_answers_that_stand_are_shown_and_revoked(caged: Any, capsys: Captured) -> None:
    session = GRANT | {"session": ("b", True), "seconds": ("u", 0), "action": ("s", "deny"),
                       "operation": ("s", "login")}
    caged.answers |= {"ListGrants": lambda *_: ("aa{sv}", ([GRANT, session],)), "RevokeGrant": NOTHING}
    assert cagectl.main(["grants", "list"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["ID", "ANSWER", "SOURCE", "SERVICE", "TARGET", "STANDS", "RULE"],
        ["0a1b2c3d", "allow", "work", "files.Send+x", "vault", "10m", "x:3"],
        ["0a1b2c3d", "deny", "work", "files.Send+x", "(login)", "vault", "this", "session", "x:3"],
        [],
        ["2", "grants."],
    ]
    assert cagectl.main(["--json=short", "grants", "list"]) == 0
    assert json.loads(capsys.readouterr().out)[0] == plain(GRANT)
    assert cagectl.main(["grants", "revoke", "0a1b2c3d"]) == 0
    assert capsys.readouterr().out == "0a1b2c3d: revoked\n"
    assert caged.calls[-1] == ("RevokeGrant", "0a1b2c3d", {})
