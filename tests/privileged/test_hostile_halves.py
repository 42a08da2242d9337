# SPDX-License-Identifier: LGPL-2.1-or-later
"""The core halves of call and keys, and a cage half that is not ours: what no cage half may have, it does not get."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from jeepney.io.blocking import DBusConnection

from cage_runtime.model import STREAMS_PER_CAGE, STREAMS_PER_PAIR
from tests.privileged.conftest import MakeCage
from tests.privileged.gateways import ask, gateway
from tests.privileged.rules import policy, until
from tests.privileged.runtime import SECONDS, Cage, Runtime, wait_readable
from tests.privileged.sides import Said, from_half

POLICY = """
call.Echo   *      hostile  answers  allow
call.Wait   *      hostile  answers  allow
call.Wait   *      hostile  second   allow
call.Wait   *      hostile  third    allow
call.Keep   *      hostile  answers  allow  direction=one-way
call.Hang   *      hostile  answers  allow  direction=one-way
keys.List   *      hostile  answers  allow
keys.Sign   +work  hostile  answers  allow
"""
ODD_WORDS = ["$(id)", "`id`", "a;id", "a\nb", "+a", "-a", "a b", "../x", ".", "a/b", "x" * 65, "x" * 20000, "\u202ea"]
BLOB = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + b"k" * 32
DATA = b"SSHSIG\0\0\0\x04file\0\0\0\0\0\0\0\x06sha512\0\0\0\x40" + b"d" * 64


@pytest.fixture(scope="module")
def answers(shared_cage: MakeCage) -> Cage:
    cage = shared_cage("answers", "--level", "internal")
    cage.sh("""mkdir -p ~/.config/incage/services ~/.config/incage/keys && cd ~/.config/incage &&
        printf '#!/bin/sh\\nexec cat\\n' >services/Echo &&
        printf '#!/bin/sh\\necho begun\\nread line\\n' >services/Wait &&
        printf '#!/bin/sh\\necho >>~/hanging; exec sleep 1000\\n' >services/Hang &&
        printf '#!/bin/sh\\ncat >~/kept.new; mv ~/kept.new ~/kept; echo said; exit 3\\n' >services/Keep &&
        chmod 755 services/* && ssh-keygen -q -t ed25519 -N '' -f keys/work""")
    return cage


@pytest.fixture(scope="module")
def hostile(runtime: Runtime, shared_cage: MakeCage, answers: Cage) -> Iterator[Cage]:
    cage = shared_cage("hostile", "--level", "internal")
    for name in ("second", "third"):
        other = shared_cage(name, "--level", "internal")
        other.sh("mkdir -p ~/.config/incage/services; cat >~/.config/incage/services/Wait; "
                 "chmod 755 ~/.config/incage/services/Wait", answers.sh("cat ~/.config/incage/services/Wait").encode())
    with policy(runtime, POLICY):
        cage.enter("incage", "call", "Nothing", "answers")  # so that the gateway is there
        yield cage


@pytest.fixture
def half(runtime: Runtime, hostile: Cage) -> Iterator[DBusConnection]:
    with gateway(runtime, hostile) as connection:
        yield connection


def call(half: DBusConnection, service: str, target: str = "answers", argument: str = "") -> tuple[str, Any]:
    return ask(half, "Call1", "Call", "sssa{sv}", service, argument, target, {})


def pipes(half: DBusConnection, service: str, target: str = "answers") -> list[int]:
    """The three ends of a call that came about."""
    error, body = call(half, service, target)
    assert error == "", body
    return [received.to_raw_fd() for received in body]


def close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def outcome(status: int) -> dict[str, Any]:
    wait_readable(status, "how the call ended")
    told: dict[str, Any] = json.loads(os.read(status, 4096))
    return told


def records(runtime: Runtime, kind: str) -> list[dict[str, Any]]:
    return [fields for fields in runtime.events(kind) if fields.get("cage") == "hostile"]


# --- call --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("word", ODD_WORDS)
def test_a_word_that_is_none_is_refused_and_recorded(runtime: Runtime, half: DBusConnection, word: str) -> None:
    """M1, by whoever skips the checks of the cage half."""
    before = len(records(runtime, "malformed"))
    assert call(half, word)[0] == call(half, "Echo", argument=word)[0] == "InvalidArgument"
    assert call(half, "Echo", target=word)[0] in {"InvalidName", "InvalidArgument"}
    assert len(records(runtime, "malformed")) > before


@pytest.mark.parametrize(("signature", "values"), [
    ("sss", ("Echo", "", "answers")), ("ssssa{sv}", ("work", "Echo", "", "answers", {})),
    ("sssa{ss}", ("Echo", "", "answers", {})), ("sssas", ("Echo", "", "answers", []))])
def test_what_has_another_shape_closes_the_channel(
        runtime: Runtime, hostile: Cage, signature: str, values: tuple[Any, ...]) -> None:
    """M2: there is no place to say who one is; and M11."""
    with gateway(runtime, hostile) as half:
        assert ask(half, "Call1", "Call", signature, *values)[0] == "InvalidArgs"
    until(lambda: hostile.enter("incage", "call", "Echo", "answers", input=b"x").stdout == b"x", "the channel again")


@pytest.mark.parametrize("options", [{"user": ("s", "root")}, {"source": ("s", "answers")}, {"env": ("as", ["A=b"])}])
def test_there_are_no_options(half: DBusConnection, options: dict[str, Any]) -> None:
    assert ask(half, "Call1", "Call", "sssa{sv}", "Echo", "", "answers", options)[0] == "InvalidArgument"


def test_what_one_may_ask_for_is_told_of_nobody_else(runtime: Runtime, hostile: Cage, answers: Cage) -> None:
    """There is no place to say of whom."""
    with gateway(runtime, hostile) as half:
        error, (rows,) = ask(half, "Call1", "Services", "")
        assert (error, ("call.Echo", "allow") in rows) == ("", True)
        assert ask(half, "Call1", "Services", "s", answers.uuid)[0] == "InvalidArgs"
    until(lambda: hostile.enter("incage", "call", "Echo", "answers", input=b"x").stdout == b"x", "the channel again")


def test_its_ends_are_pipes_that_it_can_make_nothing_block_by(half: DBusConnection) -> None:
    inward, outward, status = pipes(half, "Echo")
    assert [os.get_blocking(end) for end in (inward, outward, status)] == [True, True, True], "ours are not"
    for end, mode in ((inward, os.O_RDWR), (outward, os.O_RDWR), (status, os.O_WRONLY)):
        with pytest.raises(PermissionError):  # as whoever is not root in the initial user namespace, as no cage is
            _as_nobody(lambda end=end, mode=mode: os.open(f"/proc/self/fd/{end}", mode))
    os.write(inward, b"x" * 64)
    assert os.read(outward, 100) == b"x" * 64
    close(inward)
    assert os.read(outward, 100) == b""
    assert outcome(status) == {"status": 0}
    close(outward, status)


def _as_nobody(work: Any) -> None:
    """Do it as a user of no name; what fails with EACCES there fails here."""
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        try:
            work()
        except PermissionError:
            os._exit(13)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 13:
        raise PermissionError


def test_a_call_outlives_the_channel_that_it_came_through(runtime: Runtime, hostile: Cage) -> None:
    """Whoever has the pipes has the call."""
    with gateway(runtime, hostile) as half:
        inward, outward, status = pipes(half, "Echo")
    os.write(inward, b"still there")
    wait_readable(outward, "an answer")
    assert os.read(outward, 100) == b"still there"
    close(inward, outward)
    assert outcome(status) == {"status": 0}
    close(status)


def test_no_more_go_on_at_once_than_may(half: DBusConnection, answers: Cage) -> None:
    """M13: neither to one cage nor in all, whatever the cage half lets through."""
    open_ends = []
    for target in ("answers", "second"):
        open_ends += [pipes(half, "Wait", target) for _ in range(STREAMS_PER_PAIR)]
        assert "are going on" in call(half, "Wait", target)[1]
    assert len(open_ends) == STREAMS_PER_CAGE
    assert "of this cage are going on" in call(half, "Wait", "third")[1]
    for ends in open_ends:
        close(*ends)
    until(lambda: answers.enter("pgrep", "-f", "services").returncode != 0, "the end of all of them")
    until(lambda: call(half, "Wait", "third")[0] == "", "a place")


def test_a_cage_that_floods_a_call_holds_up_nobody(half: DBusConnection, hostile: Cage) -> None:
    """Nobody reads what comes back, and no more is taken than there is room for."""
    inward, outward, status = pipes(half, "Echo")
    os.set_blocking(inward, False)
    written = 0
    poll = select.poll()
    poll.register(inward, select.POLLOUT)
    while poll.poll(1000):
        written += os.write(inward, bytes(65536))
    assert written < 2 << 20
    assert hostile.enter("incage", "call", "Echo", "answers", input=b"x").stdout == b"x"
    close(status, inward, outward)


def test_one_way_nothing_comes_back(runtime: Runtime, half: DBusConnection, answers: Cage) -> None:
    """Not what it says, not its status, and not whether it runs; and it hears of nothing before it is all there."""
    inward, outward, status = pipes(half, "Keep")
    assert os.read(outward, 1) == b""
    os.write(inward, b"all ")
    assert answers.enter("test", "-e", "/home/user/kept.new").returncode != 0
    os.write(inward, b"of it")
    close(inward)
    assert outcome(status) == {"status": 0}, "accepted"
    close(outward, status)
    until(lambda: answers.enter("cat", "kept").stdout == b"all of it", "what was sent")
    until(lambda: [fields for fields in records(runtime, "transfer") if fields.get("status") == "3"], "the record")


@pytest.mark.parametrize("size", [4 << 20, (4 << 20) + 1])
def test_one_way_no_more_is_taken_than_may_be(half: DBusConnection, size: int) -> None:
    inward, outward, status = pipes(half, "Keep")
    rest = memoryview(bytes(size))
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        while rest:
            rest = rest[os.write(inward, rest) :]
    except BrokenPipeError:
        assert size > 4 << 20
    close(inward)
    assert outcome(status)["status"] == (0 if size == 4 << 20 else 126)
    close(outward, status)


def test_one_way_whoever_goes_before_the_end_has_sent_nothing(half: DBusConnection, answers: Cage) -> None:
    answers.sh("rm -f ~/kept")
    inward, outward, status = pipes(half, "Keep")
    os.write(inward, b"half of it")
    close(status, outward, inward)
    assert call(half, "Echo", "nowhere")[0] == "PolicyRefused"  # answered after
    assert answers.enter("test", "-e", "/home/user/kept").returncode != 0


def test_one_way_nobody_hears_how_busy_the_target_is(runtime: Runtime, half: DBusConnection, answers: Cage) -> None:
    """More than the target takes at once are accepted all the same; what it did not take is in the record."""
    for _ in range(STREAMS_PER_PAIR + 1):
        inward, outward, status = pipes(half, "Hang")
        close(inward, outward)
        assert outcome(status) == {"status": 0}
        close(status)
    until(lambda: [fields for fields in records(runtime, "transfer") if "one way are going on" in fields["outcome"]],
          "the record of the one too many")
    until(lambda: answers.sh("wc -l <~/hanging").strip() == str(STREAMS_PER_PAIR), "all that the target takes")
    answers.sh("pkill sleep")


# --- keys --------------------------------------------------------------------------------------------------------
def sign(half: DBusConnection, *values: Any, signature: str = "ssayayua{sv}") -> tuple[str, Any]:
    return ask(half, "Keys1", "Sign", signature, *values)


@pytest.mark.parametrize("name", ["-oProxyCommand=id", "../work", "", "work\0", "x" * 65, "a/b", "\u202ework"])
def test_a_name_that_is_none_is_refused(half: DBusConnection, name: str) -> None:
    """M70, M72."""
    if "\0" in name:
        name = name.replace("\0", "\x01")  # a bus ends whoever sends NUL in a text
    assert sign(half, "answers", name, BLOB, DATA, 0, {})[0] == "InvalidArgument"


@pytest.mark.parametrize(("blob", "data", "flags"), [
    (b"", DATA, 0), (b"x" * 3000, DATA, 0), (BLOB, b"", 0), (BLOB, b"x" * 17000, 0), (BLOB, b"anything", 0),
    (BLOB, DATA + b"x", 0), (BLOB, DATA, 1), (BLOB, DATA, 2**32 - 1)])
def test_what_cannot_be_said_asks_nobody(runtime: Runtime, half: DBusConnection, blob: bytes, data: bytes,
                                         flags: int) -> None:
    """M75, M12: it comes to no decision, and to no key cage."""
    before = len(records(runtime, "decision"))
    assert sign(half, "answers", "work", blob, data, flags, {})[0] == "InvalidArgument"
    assert len(records(runtime, "decision")) == before


def test_another_public_key_is_no_key(half: DBusConnection) -> None:
    """M73: it exists, under this name, and is not the one that was asked for."""
    error, sentence = sign(half, "answers", "work", BLOB, DATA, 0, {})
    assert error == "TransferFailed"
    assert sentence == ("nothing came from answers, which may be stopped or have no such key; "
                        "the core's audit log says why")


def test_descriptors_are_not_among_what_it_takes(runtime: Runtime, hostile: Cage) -> None:
    """M71: where a signer was once told descriptors by number, and twice the same; here there are none to tell."""
    with gateway(runtime, hostile) as half, open(os.devnull, "rb") as null:
        error, _ = sign(half, "answers", "work", BLOB, DATA, 0, null, signature="ssayayuh")
    assert error == "InvalidArgs"
    until(lambda: hostile.enter("incage", "call", "Echo", "answers", input=b"x").stdout == b"x", "the other channel")


def test_its_own_traffic_does_not_lengthen_an_answer(runtime: Runtime, hostile: Cage, shared_cage: MakeCage) -> None:
    """M74: a person said yes for some seconds; asking on and on does not make them more."""
    assert shared_cage
    rules = POLICY.replace("keys.List   *      hostile  answers  allow", "keys.List   *      hostile  answers  ask")
    again = Said(name="Keys1", member="List", signature="sa{sv}", values=("answers", {}))
    with policy(runtime, rules):
        process = hostile.popen("incage", "agent", "--to", "answers", "--", "ssh-add", "-l")
        prompts: list[Any] = []
        until(lambda: prompts.extend(runtime.call("ListPrompts", "a{sv}", {})[0]) or prompts, "the question")
        identity = prompts[0]["id"][1]
        runtime.call("AnswerPrompt", "ssa{sv}", identity, "allow", {"for": ("u", 60)})
        assert process.wait(SECONDS) == 0
        (grant,) = runtime.call("ListGrants", "a{sv}", {})[0]
        left = grant["seconds"][1]
        for _ in range(5):
            assert hostile.enter("incage", "agent", "--to", "answers", "--", "ssh-add", "-l").returncode == 0
            assert from_half(runtime, hostile, again)[0] == ""
        (grant,) = runtime.call("ListGrants", "a{sv}", {})[0]
        assert grant["seconds"][1] <= left
        runtime.call("RevokeGrant", "sa{sv}", grant["id"][1], {})
