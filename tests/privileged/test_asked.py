# SPDX-License-Identifier: LGPL-2.1-or-later
"""A person is asked before something opens elsewhere or is pasted, and what was asked about is what happens (M40, M60).
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.privileged.conftest import MakeCage
from tests.privileged.rules import policy, until
from tests.privileged.runtime import SECONDS, Cage, Runtime
from tests.privileged.test_clipboard import NOTHING, copy, paste
from tests.privileged.test_open import RECORDS, handler, opened

RULES = """open.Uri * desk web ask
open.Uri * desk @default ask default-target=web
open.File * desk web ask
clipboard.Paste * desk web ask
"""


@pytest.fixture(scope="module", autouse=True)
def rules(runtime: Runtime) -> Iterator[None]:
    with policy(runtime, RULES):
        yield


@pytest.fixture(scope="module")
def desk(shared_cage: MakeCage) -> Cage:
    return shared_cage("desk", "--level", "internal")


@pytest.fixture(scope="module")
def web(shared_cage: MakeCage) -> Cage:
    return shared_cage("web", "--level", "internal")


def prompts(runtime: Runtime) -> list[dict[str, Any]]:
    return [{key: value[1] for key, value in prompt.items()} for prompt in runtime.call("ListPrompts", "a{sv}", {})[0]]


def the_prompt(runtime: Runtime) -> dict[str, Any]:
    until(lambda: prompts(runtime), "a question")
    (prompt,) = prompts(runtime)
    return prompt


def answer(runtime: Runtime, said: str, **options: tuple[str, Any]) -> None:
    assert runtime.call("AnswerPrompt", "ssa{sv}", the_prompt(runtime)["id"], said, options) == ()


def asking(cage: Cage, *words: str) -> subprocess.Popen[bytes]:
    return cage.popen("incage", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_link_is_shown_as_it_opens(runtime: Runtime, desk: Cage, web: Cage) -> None:
    handler(web, RECORDS)
    with asking(desk, "open", "https://аpple.com/x", "--in", "web") as open_:  # noqa: RUF001
        prompt = the_prompt(runtime)
        assert (prompt["source"], prompt["target"], prompt["service"], prompt["argument"], prompt["lines"]) == (
            "desk", "web", "open.Uri", "https", ["https://xn--pple-43d.com/x"])
        answer(runtime, "allow")
        _, said = open_.communicate(timeout=SECONDS)
    assert open_.returncode == 0, said
    assert opened(web, 2) == ["1", "https://xn--pple-43d.com/x"]


def test_a_no_opens_nothing(runtime: Runtime, desk: Cage, web: Cage) -> None:
    handler(web, RECORDS)
    with asking(desk, "open", "https://example.org/", "--in", "web") as open_:
        answer(runtime, "deny")
        open_.communicate(timeout=SECONDS)
    assert open_.returncode == 126
    assert web.sh("ls Documents") == ""


def test_a_person_chooses_where_it_opens_where_nobody_said(runtime: Runtime, desk: Cage, web: Cage) -> None:
    handler(web, RECORDS)
    with asking(desk, "open", "https://example.org/") as open_:
        prompt = the_prompt(runtime)
        assert (prompt["target"], prompt["default"]) == ("", "web")
        answer(runtime, "allow", target=("s", "web"))
        _, said = open_.communicate(timeout=SECONDS)
    assert open_.returncode == 0, said
    assert opened(web, 2) == ["1", "https://example.org/"]


def test_of_a_file_its_name_size_and_digest_are_shown(runtime: Runtime, desk: Cage, web: Cage) -> None:
    handler(web, RECORDS)
    desk.sh("printf one > 'Documents/a b.txt'")
    with asking(desk, "open", "Documents/a b.txt", "--in", "web") as open_:
        prompt = the_prompt(runtime)
        assert (prompt["lines"], prompt["size"], prompt["files"]) == (["a b.txt"], 3, 1)
        assert prompt["sha256"].startswith("7692c3ad3540bb80")
        answer(runtime, "allow")
        out, said = open_.communicate(timeout=SECONDS)
    assert (open_.returncode, out) == (0, b"Documents/a b.txt: unchanged\n"), said


def test_whoever_goes_withdraws_the_question(runtime: Runtime, desk: Cage, web: Cage) -> None:
    handler(web, RECORDS)
    with asking(desk, "open", "https://example.org/", "--in", "web") as open_:
        the_prompt(runtime)
        open_.terminate()
        open_.communicate(timeout=SECONDS)
    until(lambda: not prompts(runtime), "the question's end")
    assert web.sh("ls Documents") == ""


def test_m40_what_is_copied_while_somebody_is_asked_is_not_what_they_answered(runtime: Runtime, desk: Cage,
                                                                              web: Cage) -> None:
    assert copy(desk, b"harmless").returncode == 0
    with asking(web, "paste") as pasting:
        prompt = the_prompt(runtime)
        assert (prompt["source"], prompt["target"], prompt["lines"]) == ("desk", "web", ["8 bytes of text"])
        assert copy(desk, b"rm -rf ~").returncode == 0
        answer(runtime, "allow")
        out, said = pasting.communicate(timeout=SECONDS)
    assert (pasting.returncode, out, said) == (126, b"", NOTHING)
    with asking(web, "paste") as pasting:
        answer(runtime, "allow")
        out, _ = pasting.communicate(timeout=SECONDS)
    assert out == b"rm -rf ~"
    assert paste(web).stderr == NOTHING
