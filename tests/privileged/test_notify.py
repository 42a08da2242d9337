# SPDX-License-Identifier: LGPL-2.1-or-later
"""Notifications from real cages, by incage and by whatever a program says on the cage's bus."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from cage_runtime.model import (
    NOTIFICATION_ACTIONS_MAX,
    NOTIFICATION_LABEL_MAX,
    NOTIFICATION_LINE_MAX,
    NOTIFICATION_LINES_MAX,
    NOTIFICATIONS_PER_CAGE,
)
from tests.privileged.agent import Desktop
from tests.privileged.conftest import MakeCage
from tests.privileged.rules import policy
from tests.privileged.runtime import Cage, Ended, Runtime

RULES = "notify.Show * muted * deny\nnotify.Show * slow @core allow limit=3/h\nnotify.Show * * @core allow\n"
RAW = """
import json, sys
sys.path[:0] = ["/opt/cage-runtime/lib"]
from cage_runtime.cli.client import mediator
from cage_runtime.errors import CageError
notify = mediator("notify", "")
for summary, body, options in json.load(sys.stdin):
    given = {name: (kind, list(map(tuple, value)) if kind == "a(ss)" else value)
             for name, (kind, value) in options.items()}
    try:
        print(json.dumps(notify.call("Show", "ssa{sv}", summary, body, given, returns="u")))
    except CageError as error:
        print(json.dumps([error.bus_name, error.sentence]))
"""
LINE, LABEL = "l" * NOTIFICATION_LINE_MAX, "b" * NOTIFICATION_LABEL_MAX


@pytest.fixture(scope="module", autouse=True)
def rules(runtime: Runtime) -> Iterator[None]:
    with policy(runtime, RULES):
        yield


@pytest.fixture(scope="module")
def work(shared_cage: MakeCage) -> Cage:
    return shared_cage("work", "--level", "internal")


@pytest.fixture
def desktop(runtime: Runtime) -> Iterator[Desktop]:
    with Desktop(runtime) as there:
        yield there


def notify(cage: Cage, *words: str) -> Ended:
    return cage.enter("incage", "notify", *words)


def number_of(ended: Ended) -> int:
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout)


def raw(cage: Cage, *calls: tuple[str, str, dict[str, Any]]) -> list[Any]:
    """What the mediator says to each, and not our own command: any program in the cage can call it."""
    ended = cage.enter("/usr/bin/python3", "-IS", "-c", RAW, input=json.dumps(calls).encode())
    assert ended.returncode == 0, ended.stderr.decode()
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_it_is_shown_under_the_cage_s_name(work: Cage, desktop: Desktop) -> None:
    """M50, M51, M80, M81: what it says is text, and who says it is not its to say."""
    words = ("vault (secret): <b>x</b>\x1b]52;c;eA==\x07", "a\rb\n\u202ec")
    number = number_of(notify(work, *words, "--urgency", "critical"))
    assert desktop.shown() == {
        "kind": "notification", "id": number, "source": "work", "source-level": "internal", "source-colour": "#ef6c00",
        "summary": r"vault (secret): <b>x</b>\x1b]52;c;eA==\x07", "body": "a\\rb\n\\u202ec", "urgency": "critical",
        "actions": []}


def test_a_click_is_heard_by_whoever_waits_and_by_nobody_else(work: Cage, cage: MakeCage, desktop: Desktop) -> None:
    with work.popen("incage", "notify", "pick", "--action", "a=First", "--action", "b=Second", "--wait",
                    stdout=subprocess.PIPE) as waiting:
        shown = desktop.shown()
        assert shown["actions"] == [("a", "First"), ("b", "Second")]
        other = cage("other")
        number_of(notify(other, "mine", "--replace", str(shown["id"])))
        assert desktop.shown()["id"] != shown["id"], "M50: another cage's is not replaced"
        with pytest.raises(AssertionError, match="no such action"):
            desktop.click(shown["id"], "c")
        desktop.click(shown["id"], "b")
        assert waiting.communicate(timeout=30)[0] == b"b\n"
        assert waiting.returncode == 0


def test_closed_without_a_click_is_status_1(work: Cage, desktop: Desktop) -> None:
    with work.popen("incage", "notify", "pick", "--action", "a=First", "--wait", stdout=subprocess.PIPE) as waiting:
        desktop.click(desktop.shown()["id"], "")
        assert waiting.communicate(timeout=30)[0] == b""
        assert waiting.returncode == 1


def test_its_own_is_replaced(work: Cage, desktop: Desktop) -> None:
    first = number_of(notify(work, "1 %"))
    assert number_of(notify(work, "99 %", "--replace", str(first))) == first
    assert [desktop.shown()["id"], desktop.shown()["id"]] == [first, first]


@pytest.mark.parametrize("again", ["stop", "core"])
def test_a_click_after_a_restart_goes_nowhere(runtime: Runtime, cage: MakeCage, again: str) -> None:
    """M52."""
    short = cage("short")
    with Desktop(runtime) as desktop:
        number = number_of(notify(short, "pick", "--action", "a=First"))
        assert desktop.shown()["id"] == number
        if again == "stop":
            runtime.ok("stop", "short")
            assert desktop.told() == {"kind": "notification", "source": "short", "source-level": "public",
                                      "source-colour": "#2e7d32", "id": number, "closed": True}
            runtime.ok("start", "short")
        else:
            runtime.restart()
    with Desktop(runtime) as desktop:
        with pytest.raises(AssertionError, match="not there any more"):
            desktop.click(number, "a")
        later = number_of(notify(short, "again", "--action", "a=First"))
        assert (desktop.shown()["id"], later != number) == (later, True)
        desktop.click(later, "a")


def test_without_a_desktop_the_cage_hears_the_same(work: Cage) -> None:
    """Whether anybody looks is not a cage's to know."""
    assert number_of(notify(work, "nobody sees it")) > 0


def test_no_rule_no_notification(runtime: Runtime, cage: MakeCage, desktop: Desktop, work: Cage) -> None:
    muted = cage("muted")
    refused = notify(muted, "x")
    assert (refused.returncode, refused.stdout) == (126, b"")
    assert b".policy" not in refused.stderr, "which rule it was is not the cage's to know"
    assert runtime.events("decision")[-1]["rule"].endswith("10-tests.policy:1")
    number = number_of(notify(work, "next"))
    assert desktop.shown()["id"] == number, "nothing came of it"


def test_a_flood_ends_at_the_rule_s_limit(cage: MakeCage, work: Cage, desktop: Desktop) -> None:
    slow = cage("slow")
    said = raw(slow, *[("x", "", {})] * 5)
    assert [isinstance(answer, list) for answer in said] == [False, False, False, True, True]
    assert said[3][0] == "TooOften"
    assert [desktop.shown()["source"] for _ in range(3)] == ["slow"] * 3
    number_of(notify(work, "x"))
    assert desktop.shown()["source"] == "work"


def test_there_are_so_many_at_once(cage: MakeCage, work: Cage, desktop: Desktop) -> None:
    theirs = number_of(notify(work, "pick", "--action", "a=First"))
    noisy = cage("noisy")
    said = raw(noisy, *[("x", "", {"actions": ("a(ss)", [("a", "A")])})] * (NOTIFICATIONS_PER_CAGE + 1))
    with pytest.raises(AssertionError, match="not there any more"):
        desktop.click(said[0], "a")
    desktop.click(said[-1], "a")
    desktop.click(theirs, "a")


def test_every_field_has_its_bounds(work: Cage, desktop: Desktop) -> None:
    """M12: nothing, the most, and one more; what is text is cut where that can be seen, what is not is refused."""
    most = [("x", LABEL)] + [(f"{n}" * NOTIFICATION_LINE_MAX, "") for n in range(1, NOTIFICATION_ACTIONS_MAX)]
    said = raw(
        work, (LINE, "\n".join([LINE] * NOTIFICATION_LINES_MAX), {"actions": ("a(ss)", most)}),
        (LINE + "x", "\n".join([LINE + "x"] * (NOTIFICATION_LINES_MAX + 1)),
         {"actions": ("a(ss)", [("x", LABEL + "x")])}),
        ("x" * 10000, "\n" * 10000, {}), ("x", "", {"replaces": ("u", 2**32 - 1)}))
    assert not any(isinstance(answer, list) for answer in said), said
    exact, cut, long, new = [desktop.shown() for _ in said]
    assert (exact["summary"], exact["body"]) == (LINE, "\n".join([LINE] * NOTIFICATION_LINES_MAX))
    assert len(exact["actions"]) == NOTIFICATION_ACTIONS_MAX
    assert (cut["summary"], cut["body"]) == (LINE + "…", "\n".join([LINE + "…"] * NOTIFICATION_LINES_MAX + ["…"]))
    assert cut["actions"] == [("x", LABEL + "…")]
    assert (len(long["summary"]), len(long["body"])) == (NOTIFICATION_LINE_MAX + 1, NOTIFICATION_LINES_MAX + 1)
    assert new["id"] != 2**32 - 1
    (ended,) = raw(work, ("x" * 65001, "x" * 65001, {}))
    assert ended[0] == "InvalidArgument", "the cage's own bus ends a connection that says so much"
    number = number_of(notify(work, "next"))
    assert desktop.shown()["id"] == number


def test_what_cannot_be_is_refused_and_nothing_comes_of_it(work: Cage, desktop: Desktop) -> None:
    """M12, M50."""
    many = [(str(n), "x") for n in range(NOTIFICATION_ACTIONS_MAX + 1)]
    options: list[dict[str, Any]] = [
        {"actions": ("a(ss)", many)}, {"actions": ("a(ss)", [("", "x")])}, {"actions": ("a(ss)", [("a", "x")] * 2)},
        {"actions": ("a(ss)", [(LINE + "x", "x")])}, {"urgency": ("s", "")}, {"urgency": ("y", 2)},
        {"replaces": ("t", 1)}, {"icon": ("s", "/etc/passwd")}, {"sound-file": ("s", "/etc/passwd")},
        {"source": ("s", "vault")}]
    said = raw(work, ("", "", {}), (" ", "", {}), *[("x", "", each) for each in options])
    assert [answer[0] for answer in said] == ["InvalidArgument"] * len(said)
    number = number_of(notify(work, "next"))
    assert desktop.shown()["id"] == number
