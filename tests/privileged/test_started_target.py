# SPDX-License-Identifier: LGPL-2.1-or-later
"""autostart=yes: a target that does not run is started for what a rule permits, and for nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.privileged.conftest import MakeCage
from tests.privileged.rules import policy
from tests.privileged.runtime import Cage, Runtime

RULES = """files.Send * low kept deny
files.Send * low bounded allow autostart=yes max-size=3
files.Send * low high allow autostart=yes
files.Send * low asleep allow
keys.List * low keyring allow autostart=yes declassify
keys.List * low locked allow declassify
call.Echo * low server allow autostart=yes declassify
"""


@pytest.fixture(scope="module", autouse=True)
def rules(runtime: Runtime) -> Iterator[None]:
    with policy(runtime, RULES):
        yield


@pytest.fixture(scope="module")
def low(shared_cage: MakeCage) -> Cage:
    made = shared_cage("low")
    made.sh("printf content >f")
    return made


@pytest.fixture
def stopped(runtime: Runtime, cage: MakeCage) -> MakeCage:
    def make(name: str, *options: str) -> Cage:
        made = cage(name, *options)
        runtime.ok("stop", name)
        return made

    return make


def test_a_rule_has_its_target_started(low: Cage, stopped: MakeCage) -> None:
    high = stopped("high", "--level", "secret")
    ended = low.enter("incage", "send", "f", "--to", "high")
    assert ended.returncode == 0, ended.stderr
    assert high.status["state"] == "running"
    assert high.sh("cat Inbox/low/f") == "content"


@pytest.mark.parametrize(("name", "status"), [("kept", 126), ("bounded", 126), ("asleep", 1)])
def test_nothing_is_started_for_what_is_not_permitted_or_by_a_rule_that_does_not_say_so(
        low: Cage, stopped: MakeCage, name: str, status: int) -> None:
    target = stopped(name, "--level", "secret")
    assert low.enter("incage", "send", "f", "--to", name).returncode == status
    assert target.status["state"] == "stopped"


def test_a_key_cage_is_started_too(low: Cage, stopped: MakeCage) -> None:
    """It is looked at before anybody is asked, and has to run for that."""
    keyring = stopped("keyring")
    ended = low.enter("incage", "agent", "--to", "keyring", "--", "ssh-add", "-l")
    assert b"no identities" in ended.stdout, ended.stderr
    assert keyring.status["state"] == "running"
    locked = stopped("locked")
    assert low.enter("incage", "agent", "--to", "locked", "--", "ssh-add", "-l").returncode != 0
    assert locked.status["state"] == "stopped"


def test_the_cage_of_a_service_is_started_too(runtime: Runtime, low: Cage, cage: MakeCage) -> None:
    server = cage("server")
    server.sh("mkdir -p .config/incage/services; cd .config/incage/services; cat > Echo; chmod 755 Echo",
              input=b"#!/bin/sh\nexec cat\n")
    runtime.ok("stop", "server")
    ended = low.enter("incage", "call", "Echo", "server", input=b"hello")
    assert (ended.returncode, ended.stdout) == (0, b"hello"), ended.stderr
    assert server.status["state"] == "running"
