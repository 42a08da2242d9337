# SPDX-License-Identifier: LGPL-2.1-or-later
"""A rule that says ask, from incage in one cage to cagectl on the host, and on to another cage."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.privileged.conftest import MakeCage
from tests.privileged.rules import policy, until
from tests.privileged.runtime import SECONDS, Cage, Runtime

RULES = "files.Send * asker asked ask\n"


@pytest.fixture(scope="module")
def asker(shared_cage: MakeCage) -> Cage:
    return shared_cage("asker", "--level", "internal")


@pytest.fixture(scope="module")
def asked(shared_cage: MakeCage) -> Cage:
    return shared_cage("asked", "--level", "internal")


def prompts(runtime: Runtime) -> list[dict[str, Any]]:
    return list(runtime.json("prompts", "list"))


@contextmanager
def sending(runtime: Runtime, asker: Cage, name: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """Somebody in the cage sends a file of that name, and the question that comes of it."""
    asker.sh(f"echo figures > '{name}'")
    process = asker.popen("incage", "send", name, "--to", "asked", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until(lambda: prompts(runtime), "nobody is asked")
        (prompt,) = prompts(runtime)
        yield process, prompt
    finally:
        process.kill()
        process.communicate()
        until(lambda: not prompts(runtime), "the question is still open")


@pytest.mark.usefixtures("asked")
def test_what_is_allowed_arrives(runtime: Runtime, asker: Cage, asked: Cage) -> None:
    with policy(runtime, RULES), sending(runtime, asker, "report.txt") as (process, prompt):
        assert (prompt["source"], prompt["target"], prompt["lines"]) == ("asker", "asked", ["report.txt"])
        assert prompt["rule"].endswith("10-tests.policy:1")
        runtime.ok("prompts", "answer", prompt["id"], "allow")
        out, _ = process.communicate(timeout=SECONDS)
        assert (process.returncode, out) == (0, b"report.txt -> asked: Inbox/asker/report.txt\n")
        assert asked.enter("cat", "Inbox/asker/report.txt").stdout == b"figures\n"


@pytest.mark.usefixtures("asked")
def test_what_is_denied_is_a_refusal(runtime: Runtime, asker: Cage) -> None:
    with policy(runtime, RULES), sending(runtime, asker, "denied.txt") as (process, prompt):
        runtime.ok("prompts", "answer", prompt["id"], "deny", "--for", "1m")
        _, err = process.communicate(timeout=SECONDS)
        assert (process.returncode, b"a person refused it" in err) == (126, True)
        again = asker.enter("incage", "send", "denied.txt", "--to", "asked")
        assert (again.returncode, b"a person refused it for some time" in again.stderr) == (126, True)
        (grant,) = runtime.json("grants", "list")
        runtime.ok("grants", "revoke", grant["id"])


@pytest.mark.usefixtures("asked")
def test_who_gives_up_takes_the_question_along(runtime: Runtime, asker: Cage) -> None:
    """M16; that the question goes is what `sending` waits for."""
    with policy(runtime, RULES), sending(runtime, asker, "given-up.txt") as (process, prompt):
        process.terminate()
        process.communicate(timeout=SECONDS)
        until(lambda: not prompts(runtime), "the question is still open")
        late = runtime.cagectl("prompts", "answer", prompt["id"], "allow")
        assert (late.returncode, b"there is no open question" in late.stderr) == (1, True)
