# SPDX-License-Identifier: LGPL-2.1-or-later
"""The policy language between real cages: where a rule sends a request on, tags, time, other files, and bad ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.privileged.conftest import MakeCage
from tests.privileged.rules import policy
from tests.privileged.runtime import Cage, Ended, Runtime
from tests.privileged.sides import DESCRIPTOR, Said, from_half

RULES = """
files.Send  *  asker         box       allow  target=keeper
files.Send  *  asker         keeper    allow  max-size=1M
files.Send  *  asker         aside     allow  target=shut
files.Send  *  asker         shut      deny
files.Send  *  asker         late      allow  target=keeper  until=2020-01-01T00:00Z
files.Send  *  asker         itself    allow  target=asker
files.Send  *  asker         there     allow  target=back
files.Send  *  asker         back      allow  target=there
!include include/tags
files.Send  *  *             *         deny
"""
TAGS = "files.Send  *  @tag:desk  @tag:desk  allow\n"


@pytest.fixture(scope="module")
def asker(shared_cage: MakeCage) -> Cage:
    made = shared_cage("asker", "--level", "internal")
    made.sh("echo of asker >doc; head -c 1100000 /dev/zero >big")
    return made


@pytest.fixture(scope="module")
def keeper(shared_cage: MakeCage) -> Cage:
    return shared_cage("keeper", "--level", "internal")


@pytest.fixture(scope="module")
def shut(shared_cage: MakeCage) -> Cage:
    return shared_cage("shut", "--level", "internal")


@pytest.fixture
def rules(runtime: Runtime) -> Iterator[Path]:
    """These are in force; the directory of what they include."""
    folder = runtime.top / "etc/policy.d/include"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tags").write_text(TAGS)
    with policy(runtime, RULES):
        yield folder
        (folder / "tags").write_text(TAGS)


def send(source: Cage, target: str, file: str = "doc") -> Ended:
    return source.enter("incage", "send", file, "--to", target)


def decided(runtime: Runtime) -> dict[str, Any]:
    """The fields of the last decision in the record."""
    return runtime.events("decision")[-1]


def inbox(target: Cage) -> list[str]:
    return target.sh("cd; [ ! -d Inbox ] || find Inbox -type f").splitlines()


@pytest.mark.usefixtures("rules")
def test_a_request_is_sent_on_to_where_its_rule_says(runtime: Runtime, asker: Cage, keeper: Cage) -> None:
    assert send(asker, "box").returncode == 0
    assert inbox(keeper) == ["Inbox/asker/doc"]
    assert (decided(runtime)["target"], decided(runtime)["to"]) == ("box", "keeper")
    assert send(asker, "box", "big").returncode == 126, "the bound is that of the rule for the pair that it came to"
    keeper.sh("rm -r ~/Inbox")


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize(("target", "reason"), [
    ("aside", "the rule denies it"), ("itself", "must be two different cages"), ("there", "in a circle"),
])  # fmt: skip
def test_sent_on_to_what_is_denied_it_is_denied(
    runtime: Runtime, asker: Cage, shut: Cage, target: str, reason: str
) -> None:
    """M4, M9: and the cage hears what it would of a cage that there is not (M3)."""
    refused = send(asker, target)
    assert refused.returncode == 126
    assert b"no cage of that name can be reached from here" in refused.stderr
    assert reason in decided(runtime)["reason"]
    error, sentence = from_half(runtime, asker, Said(
        name="Files1", member="Send", signature="ssha{sv}", values=(target, "x", DESCRIPTOR, {}), kind="a file"))
    assert (error, "no cage of that name can be reached from here" in sentence) == ("PolicyRefused", True)
    assert reason in decided(runtime)["reason"]
    assert inbox(shut) == []


@pytest.mark.usefixtures("rules")
def test_a_rule_whose_time_is_over_lets_nothing_through(runtime: Runtime, asker: Cage) -> None:
    assert send(asker, "late").returncode == 126
    assert decided(runtime)["rule"].endswith("10-tests.policy:11")


@pytest.mark.usefixtures("rules")
def test_a_tag_of_the_definition_counts(cage: MakeCage, tmp_path: Path) -> None:
    definition = tmp_path / "desk.toml"
    definition.write_text('level = "internal"\ntags = ["desk"]\n')
    one, other = (cage(name, "--from", str(definition)) for name in ("deskone", "desktwo"))
    one.sh("echo of one >doc")
    assert send(one, "desktwo").returncode == 0
    assert inbox(other) == ["Inbox/deskone/doc"]
    assert send(one, "keeper").returncode == 126


@pytest.mark.parametrize("bad", [
    "!include tags\n", "!include ../10-tests.policy\n", "files.Send * * * allow colour=red\n", "x" * 10_000_000,
    "!include-dir /proc/self\n",
])  # fmt: skip
def test_after_a_bad_file_the_last_good_policy_stays(
    runtime: Runtime, asker: Cage, keeper: Cage, rules: Path, bad: str
) -> None:
    """M5, M6."""
    (rules / "tags").write_text(bad)
    failed = runtime.cagectl("policy", "reload")
    assert failed.returncode == 2
    assert b"include/tags:1: " in failed.stderr
    assert send(asker, "box").returncode == 0
    assert send(asker, "aside").returncode == 126
    keeper.sh("rm -r ~/Inbox")
