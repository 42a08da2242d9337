# SPDX-License-Identifier: LGPL-2.1-or-later
"""Services of other cages, called from real cages: streams, ends, statuses, and what a caller cannot do."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cage_runtime.model import STREAMS_PER_PAIR
from tests.privileged.conftest import MakeCage
from tests.privileged.rules import policy, until
from tests.privileged.runtime import SECONDS, Cage, Ended, Runtime, wait_readable

POLICY = """
call.Echo      *      caller  server   allow
call.Tell      *      caller  server   allow
call.Status    *      caller  server   allow
call.Sort      *      caller  server   allow
call.Never     *      caller  server   allow
call.Wait      *      caller  server   allow
call.Pid       *      caller  server   allow
call.Socket    *      caller  server   allow
call.Flood     *      caller  server   allow
call.Ignore    *      caller  server   allow
call.Small     *      caller  server   allow   max-size=1K
call.Echo      *      caller  higher   allow
call.Echo      *      caller  lower    allow   declassify
call.Echo      *      caller  stopped  allow
call.Echo      *      caller  private  allow
"""
SERVICES = {
    "Echo": "#!/bin/sh\nexec cat\n",
    "Tell": '#!/bin/sh\necho "$0 $# $CAGE_SOURCE $CAGE_SERVICE $CAGE_ARGUMENT $(id -u) $HOME"\n'
            'echo "of the service" >&2\n',
    "Status": "#!/bin/sh\nexit 42\n",
    "Sort": "#!/usr/bin/env python3\nimport sys\nsys.stdout.writelines(sorted(sys.stdin))\n",
    "Wait": "#!/bin/sh\necho begun\nread line\necho ended >>~/waited\n",
    "Pid": "#!/bin/sh\necho $$\nexec sleep 1000\n",
    "Ignore": "#!/bin/sh\ntrap '' HUP TERM\necho $$\nwhile :; do sleep 100; done\n",
    "Flood": "#!/usr/bin/python3\nimport os\nwhile True:\n    os.write(1, bytes(65536))\n",
    "Small": "#!/bin/sh\nexec cat\n",
}
LISTENING = """
import os, socket
path = os.path.expanduser("~/.config/incage/services/Socket")
with socket.socket(socket.AF_UNIX) as listening:
    listening.bind(path)
    listening.listen()
    print("listening", flush=True)
    connection, _ = listening.accept()
    with connection, connection.makefile("rb") as heard:
        connection.sendall(heard.read()[::-1])
os.unlink(path)
"""


def offer(cage: Cage, name: str, text: str, mode: str = "755") -> None:
    cage.sh(f"mkdir -p ~/.config/incage/services; cd ~/.config/incage/services; cat > {name}; chmod {mode} {name}",
            input=text.encode())


@pytest.fixture(scope="module")
def server(shared_cage: MakeCage) -> Cage:
    cage = shared_cage("server", "--level", "internal")
    for name, text in SERVICES.items():
        offer(cage, name, text)
    return cage


@pytest.fixture(scope="module")
def caller(runtime: Runtime, shared_cage: MakeCage, server: Cage) -> Iterator[Cage]:
    cage = shared_cage("caller", "--level", "internal")
    assert server.name == "server"
    with policy(runtime, POLICY):
        yield cage


def call(cage: Cage, service: str, target: str = "server", content: bytes = b"") -> Ended:
    return cage.enter("incage", "call", service, target, input=content)


def records(runtime: Runtime, service: str) -> list[dict[str, Any]]:
    return [fields for fields in runtime.events() if fields.get("service") == service]


# --- what works --------------------------------------------------------------------------------------------------
def test_bytes_go_there_and_back(runtime: Runtime, caller: Cage) -> None:
    content = os.urandom(1 << 20)
    ended = call(caller, "Echo", content=content)
    assert (ended.returncode, ended.stdout == content, ended.stderr) == (0, True, b"")
    until(lambda: any("outcome" in fields for fields in records(runtime, "call.Echo")), "the record of the end")
    record = records(runtime, "call.Echo")[-1]
    assert (record["cage"], record["target"], record["status"], record["outcome"]) == (
        "caller", "server", "0", "the service ended")
    assert (record["bytes-in"], record["bytes-out"]) == (str(1 << 20), str(1 << 20))
    assert 0 < float(record["seconds"]) < SECONDS


def test_a_service_is_told_what_the_core_knows(runtime: Runtime, caller: Cage) -> None:
    ended = call(caller, "Tell+some.key-1")
    place, *told = ended.stdout.decode().split()
    assert told == ["0", "caller", "Tell", "some.key-1", "1000", "/home/user"]
    assert place.startswith("/proc/self/fd/")
    assert (ended.returncode, ended.stderr) == (0, b""), "what it complains of is for its own cage"
    until(lambda: "of the service" in runtime.ok("logs", "server"), "its complaint in its cage's log")


def test_the_status_is_the_services(caller: Cage) -> None:
    assert call(caller, "Status").returncode == 42


def test_each_way_ends_by_itself(caller: Cage) -> None:
    assert call(caller, "Sort", content=b"b\nc\na\n").stdout == b"a\nb\nc\n"


def test_where_there_is_no_such_service_the_status_is_127(runtime: Runtime, caller: Cage) -> None:
    ended = call(caller, "Never")
    assert (ended.returncode, ended.stdout) == (127, b"")
    assert ended.stderr.decode().endswith(": status 127, as where there is no such service\n")
    until(lambda: "there is no service Never here, which caller called" in runtime.ok("logs", "server"), "the log")


def test_what_is_no_service_is_not_run(caller: Cage, server: Cage) -> None:
    offer(server, "Never", "#!/bin/sh\necho run\n", "777")
    try:
        ended = call(caller, "Never")
        assert (ended.returncode, ended.stdout, ended.stderr.decode()) == (
            126, b"", "incage: Never: status 126, as where what is there is no service that can be run\n")
    finally:
        server.sh("rm ~/.config/incage/services/Never")


def test_a_socket_is_a_service_too(caller: Cage, server: Cage) -> None:
    with server.popen("/usr/bin/python3", "-c", LISTENING, stdout=subprocess.PIPE) as listening:
        assert listening.stdout is not None
        wait_readable(listening.stdout.fileno(), "the socket")
        ended = call(caller, "Socket", content=b"0123456789" * 10000)
    assert (ended.returncode, ended.stdout) == (0, (b"0123456789" * 10000)[::-1])


# --- ends --------------------------------------------------------------------------------------------------------
def begun(caller: Cage, service: str) -> tuple[subprocess.Popen[bytes], str]:
    """A call that goes on, and the first line that came of it."""
    process = caller.popen("incage", "call", service, "server", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    wait_readable(process.stdout.fileno(), f"a line of {service}")
    return process, process.stdout.readline().decode().strip()


@pytest.mark.parametrize("service", ["Pid", "Ignore"])
def test_a_caller_that_goes_ends_the_service(caller: Cage, server: Cage, service: str) -> None:
    process, pid = begun(caller, service)
    assert server.enter("/bin/kill", "-0", pid).returncode == 0
    caller.sh("pkill -9 -f '[i]ncage call'")
    process.communicate(timeout=SECONDS)
    until(lambda: server.enter("/bin/kill", "-0", pid).returncode != 0, "the end of the service")


def test_a_service_ends_with_the_core_half(runtime: Runtime, caller: Cage, server: Cage) -> None:
    """Nobody is left who could carry its bytes."""
    process, pid = begun(caller, "Ignore")
    half = next(int(pid) for pid in subprocess.run(
        ["pgrep", "-f", f"cage-mediator call --config {runtime.config}"], check=True, capture_output=True,
        text=True).stdout.split())
    os.kill(half, 9)
    _, complaint = process.communicate(timeout=SECONDS)
    assert (process.returncode, complaint.decode()) == (
        125, "incage: the core ended meanwhile, so it is not known how the call did\n")
    until(lambda: server.enter("/bin/kill", "-0", pid).returncode != 0, "the end of the service")
    until(lambda: call(caller, "Status").returncode == 42, "the return of the core half")


def test_a_reader_that_stops_holds_up_nobody_else(caller: Cage) -> None:
    flooded = caller.popen("sh", "-c", "incage call Flood server | (sleep 1000)", stdout=subprocess.PIPE)
    try:
        for _ in range(5):
            before = time.monotonic()
            assert call(caller, "Echo", content=b"x").stdout == b"x"
            assert time.monotonic() - before < 10
    finally:
        flooded.kill()
        flooded.communicate()
        caller.sh("pkill -9 sleep; pkill -9 -f '[i]ncage call'; true")


def test_no_more_go_on_at_once_than_may(caller: Cage) -> None:
    processes = [begun(caller, "Wait")[0] for _ in range(STREAMS_PER_PAIR)]
    try:
        ended = call(caller, "Echo")
        assert ended.returncode == 125
        assert f"{STREAMS_PER_PAIR} calls of this cage to that one are going on" in ended.stderr.decode()
    finally:
        for process in processes:
            process.communicate(b"\n", timeout=SECONDS)
    assert [process.returncode for process in processes] == [0] * STREAMS_PER_PAIR
    until(lambda: call(caller, "Status").returncode == 42, "a place")


def test_no_more_goes_through_than_policy_lets(caller: Cage) -> None:
    assert call(caller, "Small", content=b"x" * 1024).stdout == b"x" * 1024
    ended = call(caller, "Small", content=b"x" * 1025)
    assert (ended.returncode, ended.stdout) == (126, b"")
    assert ended.stderr.decode() == "incage: more bytes than the policy lets through\n"


# --- what is refused ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("argument", [
    "$(id)", "`id`", "a;id", "a\nb", "+a", "-a", "a b", "../x", "x" * 65, "x" * 65001])
def test_an_argument_that_is_more_than_a_word_is_refused(caller: Cage, argument: str) -> None:
    """M1."""
    ended = call(caller, f"Tell+{argument}")
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert b"cannot be the argument of a call" in ended.stderr


def test_bytes_that_are_no_text_are_refused(caller: Cage) -> None:
    """M1."""
    ended = caller.enter("/bin/sh", "-c", r"""incage call "Tell+$(printf '\351')" server""")
    assert (ended.returncode, ended.stdout) == (2, b"")


def test_a_cage_that_may_not_be_called_looks_like_none(caller: Cage, server: Cage, shared_cage: MakeCage) -> None:
    """M3."""
    shared_cage("hidden", "--level", "internal")
    hidden, nothing = call(caller, "Echo", "hidden"), call(caller, "Echo", "nothing")
    back = call(server, "Echo", "caller")
    assert hidden.returncode == nothing.returncode == back.returncode == 126
    assert hidden.stderr.replace(b"hidden", b"X") == nothing.stderr.replace(b"nothing", b"X")


def test_a_cage_does_not_call_itself(caller: Cage) -> None:
    """M9."""
    assert call(caller, "Echo", "caller").returncode == 126


def test_what_answers_cannot_go_down_or_up_unless_declassified(caller: Cage, shared_cage: MakeCage) -> None:
    """An answer of a higher cage comes down, and so a call goes both ways or not at all."""
    shared_cage("higher", "--level", "secret")
    lower = shared_cage("lower", "--level", "public")
    offer(lower, "Echo", SERVICES["Echo"])
    assert call(caller, "Echo", "higher").returncode == 126
    assert call(caller, "Echo", "lower", b"declassified").stdout == b"declassified"


def test_a_cage_that_does_not_run_is_not_started(caller: Cage, shared_cage: MakeCage) -> None:
    shared_cage("stopped", "--level", "internal", "--no-start")
    ended = call(caller, "Echo", "stopped")
    assert (ended.returncode, ended.stdout) == (125, b"")
    assert "could not be called in stopped, which may be stopped" in ended.stderr.decode()


def test_nothing_answers_in_a_private_cage(caller: Cage, shared_cage: MakeCage) -> None:
    """What would is its user's, and its answer would leave the cage."""
    shared_cage("private", "--level", "internal", "--private")
    ended = call(caller, "Echo", "private")
    assert (ended.returncode, ended.stdout) == (125, b"")


# --- where a person is asked -----------------------------------------------------------------------------------------
ASKING = POLICY.replace("call.Echo      *      caller  server   allow", "call.Echo      *      caller  server   ask")


def question(runtime: Runtime) -> dict[str, Any]:
    """The one that is open, once it is."""
    found: list[Any] = []
    until(lambda: found.extend(runtime.call("ListPrompts", "a{sv}", {})[0]) or found, "the question")
    return {key: value for key, (_, value) in found[0].items()}


def asking(caller: Cage) -> subprocess.Popen[bytes]:
    return caller.popen("incage", "call", "Echo+this", "server", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE)


def test_a_service_starts_once_a_person_has_said_so(runtime: Runtime, caller: Cage, server: Cage) -> None:
    with policy(runtime, ASKING), asking(caller) as process:
        asked = question(runtime)
        assert (asked["source"], asked["service"], asked["argument"], asked["target"]) == (
            "caller", "call.Echo", "this", "server")
        assert server.enter("pgrep", "-x", "cat").returncode != 0
        runtime.call("AnswerPrompt", "ssa{sv}", asked["id"], "allow", {})
        output, _ = process.communicate(b"said so", timeout=SECONDS)
    assert (process.returncode, output) == (0, b"said so")


def test_a_person_who_says_no_is_heard(runtime: Runtime, caller: Cage) -> None:
    with policy(runtime, ASKING), asking(caller) as process:
        runtime.call("AnswerPrompt", "ssa{sv}", question(runtime)["id"], "deny", {})
        output, complaint = process.communicate(timeout=SECONDS)
    assert (process.returncode, output) == (126, b"")
    assert complaint.startswith(b"incage: ")


def test_a_caller_that_goes_takes_the_question_along(runtime: Runtime, caller: Cage) -> None:
    """M16."""
    with policy(runtime, ASKING), asking(caller) as process:
        assert question(runtime)
        caller.sh("pkill -9 -f '[i]ncage call'")
        process.communicate(timeout=SECONDS)
        until(lambda: not runtime.call("ListPrompts", "a{sv}", {})[0], "the end of the question")


def test_a_policy_that_is_another_by_the_answer_is_the_one_that_counts(runtime: Runtime, caller: Cage) -> None:
    """M18: it may not go both ways any more, whatever the person says to the earlier question."""
    with policy(runtime, ASKING), asking(caller) as process:
        question(runtime)
        with policy(runtime, ASKING.replace("server   ask", "server   allow  direction=one-way")):
            output, complaint = process.communicate(timeout=SECONDS)
    assert (process.returncode, output) == (126, b"")
    assert complaint.decode() == "incage: the policy lets nothing come back by now; call again\n"


# --- what a cage may ask for ------------------------------------------------------------------------------------------
def whoami(cage: Cage) -> tuple[str, dict[str, str]]:
    ended = cage.enter("incage", "whoami", "--no-legend")
    assert (ended.returncode, ended.stderr) == (0, b"")
    first, *rows = ended.stdout.decode().splitlines()
    return first, {row.split()[0]: row.split()[1] for row in rows}


def test_a_cage_is_told_what_it_may_ask_for(caller: Cage, server: Cage) -> None:
    first, services = whoami(caller)
    assert first == "caller: internal"
    assert services.items() >= {"call.Echo": "allow", "files.Send": "allow", "clipboard.Paste": "ask"}.items()
    assert not services.keys() & {"call.*", "keys.Sign"}
    assert not [service for service in whoami(server)[1] if service.startswith("call.")]


def test_it_hears_of_no_other_cage_by_that(runtime: Runtime, caller: Cage) -> None:
    """The same before a cage is there that a rule names, while it is, and after it."""
    with policy(runtime, "call.Secret * caller newcomer ask\nfiles.Send * caller @level:public deny\n"):
        before = whoami(caller)
        assert before[1]["call.Secret"] == "ask"
        runtime.ok("create", "newcomer", "--level", "internal")
        assert whoami(caller) == before
        runtime.ok("destroy", "newcomer", "--yes")
        assert whoami(caller) == before
    assert "call.Secret" not in whoami(caller)[1]


# --- what goes on when the policy is another --------------------------------------------------------------------------
@pytest.mark.parametrize("ended", ["caller", "server"])
def test_a_call_that_goes_on_is_ended_by_stopping_a_cage_and_not_by_a_policy(
        runtime: Runtime, caller: Cage, server: Cage, ended: str) -> None:
    with caller.popen("incage", "call", "Pid", "server", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        wait_readable(process.stdout.fileno(), "its first line")
        service = process.stdout.readline().decode().strip()
        with policy(runtime, "call.Pid * * * deny\n"):
            assert call(caller, "Pid").returncode == 126
            assert server.enter("kill", "-0", service).returncode == 0
            assert process.poll() is None
            runtime.ok("stop", ended)
            status = process.wait(SECONDS)
            runtime.ok("start", ended)
        assert status in (137, 143), "by SIGTERM, which its stop begins with, or SIGKILL"
        assert server.enter("pgrep", "-f", "sleep 1000").returncode == 1
