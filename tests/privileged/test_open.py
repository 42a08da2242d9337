# SPDX-License-Identifier: LGPL-2.1-or-later
"""A link or a file opens in another cage, with what that has to open it, and nothing comes back that may not (M60, M61,
M63)."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from cage_runtime.model import EDITED_BYTES_MAX
from tests.privileged.conftest import MakeCage
from tests.privileged.rules import policy, until
from tests.privileged.runtime import Cage, Ended, Runtime

RULES = """open.Uri +ftp desk web deny
open.Uri * desk web allow
open.Uri * desk high allow
open.File * desk web allow max-size=1M
open.File * reader web allow direction=one-way
open.Uri * web desk deny
"""
RECORDS = """
printf '%s\\n' "$#" "$1" >> Documents/opened.new
cat Documents/opened.new >> Documents/opened
rm Documents/opened.new
"""
"""A handler that writes down with how many words it was called, and the first."""

WAITS = "touch Documents/begun; while [ -e Documents/begun ]; do sleep 0.05; done"


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


def handler(cage: Cage, script: str) -> None:
    """Have the cage open things with `script`, which has no record of any yet."""
    cage.sh("mkdir -p .config/incage && cat > .config/incage/open; rm -f Documents/opened", input=script.encode())


def opened(cage: Cage, count: int = 1) -> list[str]:
    """What its handler has recorded, once that is so many lines."""
    waiting = f"""
import os, time
deadline = time.monotonic() + 20
while time.monotonic() < deadline:
    try:
        text = open("Documents/opened").read()
    except FileNotFoundError:
        text = ""
    if text.count("\\n") >= {count}:
        break
    time.sleep(0.02)
print(text, end="")
"""
    return cage.enter("/usr/bin/python3", "-ISc", waiting).stdout.decode().splitlines()


def open_(source: Cage, what: str, target: str) -> Ended:
    return source.enter("incage", "open", what, "--in", target)


# --- links -----------------------------------------------------------------------------------------------------------
def test_a_link_opens_in_its_one_form(runtime: Runtime, desk: Cage, web: Cage) -> None:
    handler(web, RECORDS)
    ended = open_(desk, "HTTPS://Example.ORG:443/a b'$(id);".replace(" ", "%20"), "web")
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert opened(web, 2) == ["1", "https://example.org/a%20b%27$(id);"]
    noted = runtime.events("transfer")[-1]
    assert (noted["cage"], noted["target"], noted["service"]) == ("desk", "web", "open.Uri")
    assert (noted["uri"], noted["outcome"]) == ("https://example.org/a%20b%27$(id);", "opens in web")


@pytest.mark.parametrize(("uri", "why"), [
    ("javascript:alert(1)", "is a program"), ("file:///etc/passwd", "is about what is in a cage"),
    ("data:text/html,x", "is a program"), ("http://user@example.org/", "before an @"),
    ("https://example.org/\nhttps://evil.example/", "cannot be seen"), ("https://example.org/" + "a" * 65000, "longer"),
])
def test_m60_what_is_no_plain_link_is_refused_and_opens_nowhere(desk: Cage, web: Cage, uri: str, why: str) -> None:
    handler(web, RECORDS)
    ended = open_(desk, uri, "web")
    assert ended.returncode == 2, ended.stderr
    assert why in ended.stderr.decode()
    assert ended.stderr.decode().strip("\n").isprintable()
    assert open_(desk, "https://example.org/", "web").returncode == 0
    assert opened(web, 2) == ["1", "https://example.org/"], "the first thing that opens"


def test_m60_a_homograph_opens_as_punycode(desk: Cage, web: Cage) -> None:
    handler(web, RECORDS)
    assert open_(desk, "https://аpple.com/", "web").returncode == 0  # noqa: RUF001
    assert opened(web, 2) == ["1", "https://xn--pple-43d.com/"]


@pytest.mark.usefixtures("web")
def test_another_scheme_is_policys_to_name(desk: Cage) -> None:
    ended = open_(desk, "ftp://example.org/x", "web")
    assert ended.returncode == 126, ended.stderr


@pytest.mark.parametrize("target", ["nobody", "closed", "@core"])
def test_what_is_not_permitted_looks_like_what_is_not_there(shared_cage: MakeCage, desk: Cage, target: str) -> None:
    if target == "closed":
        shared_cage("closed", "--level", "internal")
    ended = open_(desk, "https://example.org/", target)
    assert ended.returncode in (2, 126), ended.stderr
    if target != "@core":
        assert ended.stderr.decode() == open_(desk, "https://example.org/", "noone").stderr.decode().replace(
            "noone", target)


# --- files -----------------------------------------------------------------------------------------------------------
def test_an_edited_file_comes_back_in_its_place(runtime: Runtime, desk: Cage, web: Cage) -> None:
    handler(web, 'stat -c "%a %U" "$1" > Documents/opened; cat "$1" >> Documents/opened; echo more >> "$1"\n')
    desk.sh("printf 'one\\n' > Documents/a.txt; chmod 640 Documents/a.txt")
    ended = open_(desk, "Documents/a.txt", "web")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"Documents/a.txt: edited\n", b"")
    assert desk.sh("cat Documents/a.txt; stat -c %a Documents/a.txt; ls -A Documents") == "one\nmore\n640\na.txt\n"
    assert opened(web, 2) == ["600 user", "one"]
    assert web.sh("ls -A .cache/incage") == "", "nothing is left of the copy"
    assert [noted["outcome"] for noted in runtime.events("transfer")[-2:]] == [
        "opens in web", "was edited, and comes back"]
    desk.sh("rm Documents/a.txt")


@pytest.mark.parametrize("script", ["exit 1", 'rm "$1"', ': > "$1"', 'touch "$1"', 'cp "$1" x; mv x "$1"'])
def test_what_is_not_edited_stays_as_it_is(desk: Cage, web: Cage, script: str) -> None:
    handler(web, script)
    desk.sh("echo one > Documents/a.txt")
    ended = open_(desk, "Documents/a.txt", "web")
    assert (ended.returncode, ended.stdout) == (0, b"Documents/a.txt: unchanged\n"), ended.stderr
    assert desk.sh("cat Documents/a.txt") == "one\n"
    desk.sh("rm Documents/a.txt")


def test_an_original_that_has_changed_meanwhile_is_kept(desk: Cage, web: Cage) -> None:
    handler(web, f'{WAITS}; echo edited > "$1"')
    desk.sh("echo one > Documents/a.txt; echo taken > 'Documents/a (edited).txt'")
    with desk.popen("incage", "open", "Documents/a.txt", "--in", "web", stdout=-1, stderr=-1) as opening:
        web.sh("while [ ! -e Documents/begun ]; do sleep 0.05; done")
        desk.sh("echo two > Documents/a.txt")
        web.sh("rm Documents/begun")
        out, err = opening.communicate(timeout=30)
    assert (opening.returncode, out) == (0, b"Documents/a.txt: edited, as Documents/a (edited 2).txt\n"), err
    assert b"has changed meanwhile and is kept" in err
    assert desk.sh("cat Documents/a.txt 'Documents/a (edited 2).txt'") == "two\nedited\n"
    desk.sh("rm Documents/*")


@pytest.mark.parametrize("script", [
    'rm "$1"; mkfifo "$1"', 'rm "$1"; mkdir "$1"', 'rm "$1"; ln -s /etc/passwd "$1"',
    f'truncate -s {EDITED_BYTES_MAX + 1} "$1"', 'head -c 1100000 /dev/zero > "$1"',
])
def test_what_cannot_come_back_does_not(desk: Cage, web: Cage, script: str) -> None:
    handler(web, script)
    desk.sh("echo one > Documents/a.txt")
    ended = open_(desk, "Documents/a.txt", "web")
    assert ended.returncode == 1, ended.stderr
    assert desk.sh("cat Documents/*") == "one\n"
    desk.sh("rm Documents/a.txt")


@pytest.mark.parametrize("name", ["%f.txt", "a;b $(id) `id`.txt", "a %u.desktop", "it's.txt"])
def test_m61_no_name_is_read_as_anything_but_a_name(desk: Cage, web: Cage, name: str) -> None:
    handler(web, RECORDS)
    desk.enter("sh", "-c", 'echo one > "Documents/$1"', "sh", name)
    ended = open_(desk, f"Documents/{name}", "web")
    assert ended.returncode == 0, ended.stderr
    number, path = opened(web, 2)
    assert (number, path.rpartition("/")[2]) == ("1", name)
    assert path.startswith("/home/user/.cache/incage/")
    desk.enter("rm", f"Documents/{name}")


def test_m61_a_name_that_looks_like_an_option_is_refused(desk: Cage, web: Cage) -> None:
    handler(web, RECORDS)
    desk.sh("echo one > Documents/--version")
    ended = open_(desk, "Documents/--version", "web")
    assert ended.returncode == 2
    assert b'a leading "-" is read as an option' in ended.stderr
    desk.sh("rm Documents/--version")


def test_whoever_asked_may_go_and_the_file_stays_open(desk: Cage, web: Cage) -> None:
    handler(web, f'{WAITS}; echo "$#" > Documents/opened')
    desk.sh("echo one > Documents/a.txt")
    with desk.popen("incage", "open", "Documents/a.txt", "--in", "web", stdout=-1, stderr=-1) as opening:
        web.sh("while [ ! -e Documents/begun ]; do sleep 0.05; done")
        opening.terminate()
        opening.communicate(timeout=30)
    web.sh("rm Documents/begun")
    assert opened(web) == ["1"]
    assert desk.sh("cat Documents/a.txt") == "one\n"


def test_a_cage_with_nothing_to_open_it_says_so_in_the_record_alone(runtime: Runtime, shared_cage: MakeCage,
                                                                    desk: Cage) -> None:
    """It is of a higher level, so that the source hears no more than that it did not."""
    high = shared_cage("high", "--level", "secret")
    handler(high, "exit 0")
    assert open_(desk, "https://example.org/", "high").returncode == 0
    runtime.ok("stop", "high")
    ended = open_(desk, "https://example.org/", "high")
    assert ended.returncode == 1
    assert b"it was not opened there; the target may be stopped" in ended.stderr
    assert json.dumps(runtime.events("transfer")[-1]["outcome"]).count("does not run") == 1


# --- what comes back is decided on again -----------------------------------------------------------------------------
EDITS = "printf edited > \"$1\"; " + WAITS
KEPT = "cat .cache/incage/*/*.txt"


@contextlib.contextmanager
def editing(desk: Cage, web: Cage, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """In the block, `incage open` of the file waits for it, which is edited and still open in web."""
    web.sh("rm -rf .cache/incage")
    handler(web, EDITS)
    desk.sh(f"printf original > {name}")
    process = desk.popen("incage", "open", name, "--in", "web", stderr=subprocess.PIPE)
    try:
        until(lambda: web.enter("test", "-e", "Documents/begun").returncode == 0, "the handler")
        yield process
    finally:
        process.kill()
        process.wait()


def heard(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=30)
    return process.returncode, errors.decode()


@pytest.mark.parametrize("rule", ["open.File * desk web deny", "open.File * desk web allow direction=one-way",
                                  "open.File * desk web allow max-size=5"])
def test_what_the_policy_has_denied_meanwhile_stays_where_it_was_edited(runtime: Runtime, desk: Cage, web: Cage,
                                                                        rule: str) -> None:
    with editing(desk, web, "kept.txt") as process, policy(runtime, f"{rule}\n"):
        web.sh("rm Documents/begun")
        status, errors = heard(process)
    assert (status, "what was edited stays where it was edited" in errors) == (126, True), errors
    assert desk.sh("cat kept.txt") == "original"
    until(lambda: web.enter("pgrep", "-f", "cage-mediator open").returncode != 0, "the end of its half")
    assert web.sh(KEPT) == "edited"
    noted = runtime.events("transfer")[-1]
    assert noted["outcome"].startswith("did not come back: what was edited stays where it was edited: ")
    assert (noted["edited-size"], noted["service"]) == ("6", "open.File")


@pytest.mark.parametrize("answer", ["allow", "deny"])
def test_where_a_person_is_asked_by_now_what_was_edited_waits_for_that(runtime: Runtime, desk: Cage, web: Cage,
                                                                      answer: str) -> None:
    with editing(desk, web, "asked.txt") as process, policy(runtime, "open.File * desk web ask\n"):
        web.sh("rm Documents/begun")
        prompts: list[dict[str, Any]] = []
        until(lambda: prompts.extend(runtime.call("ListPrompts", "a{sv}", {})[0]) or prompts, "the question")
        assert prompts[0]["lines"][1] == ["asked.txt, as it was edited there, comes back"]
        assert process.poll() is None
        runtime.call("AnswerPrompt", "ssa{sv}", prompts[0]["id"][1], answer, {})
        status, errors = heard(process)
    until(lambda: web.enter("pgrep", "-f", "cage-mediator open").returncode != 0, "the end of its half")
    if answer == "allow":
        assert (status, errors, desk.sh("cat asked.txt")) == (0, "", "edited")
        assert web.enter("sh", "-c", KEPT).returncode != 0, "nothing is left of what went back"
    else:
        assert (status, desk.sh("cat asked.txt"), web.sh(KEPT)) == (126, "original", "edited"), errors
        assert "a person refused it" in errors


def test_what_nobody_takes_back_any_more_stays(desk: Cage, web: Cage) -> None:
    with editing(desk, web, "gone.txt") as process:
        process.kill()
        process.wait()
    assert desk.sh("cat gone.txt") == "original"
    web.sh("rm Documents/begun")
    until(lambda: web.enter("pgrep", "-f", "cage-mediator open").returncode != 0, "the end of its half")


def test_where_the_rule_is_one_way_nothing_comes_back(shared_cage: MakeCage, web: Cage) -> None:
    reader = shared_cage("reader", "--level", "internal")
    handler(web, 'echo more >> "$1"; cp "$1" Documents/opened')
    reader.sh("echo one > Documents/a.txt")
    ended = open_(reader, "Documents/a.txt", "web")
    assert (ended.returncode, ended.stdout) == (0, b"Documents/a.txt: opened\n"), ended.stderr
    assert opened(web, 2) == ["one", "more"]
    assert reader.sh("cat Documents/a.txt") == "one\n"
