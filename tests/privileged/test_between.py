# SPDX-License-Identifier: LGPL-2.1-or-later
"""What happens between a question and its answer, for every service: whoever asked dies (M16), a cage is made anew
under the same name (M17), policy is reloaded (M18), the same is asked for again (M14), a cage answers for itself (M10).

From a hostile half, which goes on where an honest one would have given up, and from a user's program.
"""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from jeepney import DBusAddress, HeaderFields, MessageType, new_method_call

from tests.privileged.conftest import MakeCage
from tests.privileged.gateways import await_core_half, gateway
from tests.privileged.rules import policy, until
from tests.privileged.runtime import SECONDS, Cage, Runtime
from tests.privileged.sides import DESCRIPTOR
from tests.privileged.test_bounds import DATA

KEY = b"the public key"
SERVICES: dict[str, tuple[str, str, str, tuple[Any, ...]]] = {
    "files.Send": ("Files1", "Send", "ssha{sv}", ("answers", "x", DESCRIPTOR, {})),
    "files.Move": ("Files1", "Send", "ssha{sv}", ("answers", "x", DESCRIPTOR, {"move": ("b", True)})),
    "call.Echo": ("Call1", "Call", "sssa{sv}", ("Echo", "", "answers", {})),
    "keys.List": ("Keys1", "List", "sa{sv}", ("answers", {})),
    "keys.Sign": ("Keys1", "Sign", "ssayayua{sv}", ("answers", "work", KEY, DATA, 0, {})),
    "keys.Secret": ("Keys1", "Secret", "ssa{sv}", ("answers", "org.example.X", {})),
    "open.Uri": ("Open1", "Uri", "ssa{sv}", ("https://example.org/", "answers", {})),
    "open.File": ("Open1", "File", "ssha{sv}", ("x.txt", "answers", DESCRIPTOR, {})),
    "log.Write": ("Log1", "Write", "asa{sv}", (["x"], {})),
    "notify.Show": ("Notify1", "Show", "ssa{sv}", ("x", "", {})),
    "clipboard.Paste": ("Clipboard1", "Paste", "sa{sv}", ("text/plain", {})),
}
TO_A_CAGE = [service for service in SERVICES if service not in {"log.Write", "notify.Show", "clipboard.Paste"}]
"""Of log and notify the core is the target, and of a paste whoever asks, so that nothing else is made anew."""
IN_CAGE = {
    "files.Send": "echo x >~/sent; incage send ~/sent --to answers",
    "files.Move": "echo x >~/moved; incage send --move ~/moved --to answers",
    "call.Echo": "incage call Echo answers", "keys.List": "incage agent --to answers -- ssh-add -l",
    "open.Uri": "incage open https://example.org/ --in answers",
    "open.File": "echo x >~/x.txt; incage open ~/x.txt --in answers",
    "log.Write": "incage log x", "notify.Show": "incage notify x", "clipboard.Paste": "incage paste",
}
ASK = "".join(f"{service} * asks * ask\n{service} * offers asks ask\n" for service in SERVICES)
DENY = ASK.replace(" ask\n", " deny\n")


@pytest.fixture(scope="module", autouse=True)
def asks(shared_cage: MakeCage) -> Cage:
    cage = shared_cage("asks", "--level", "internal")
    cage.enter("incage", "call", "Nothing", "nowhere")  # so that the gateway is there
    return cage


@pytest.fixture(scope="module")
def answers(shared_cage: MakeCage) -> Cage:
    return shared_cage("answers", "--level", "internal")


@pytest.fixture(scope="module")
def offers(shared_cage: MakeCage) -> Cage:
    return shared_cage("offers", "--level", "internal")


def prompts(runtime: Runtime) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = runtime.call("ListPrompts", "a{sv}", {})[0]
    return listed


def question(runtime: Runtime) -> str:
    """The id of the one there is."""
    until(lambda: prompts(runtime), "the question")
    (prompt,) = prompts(runtime)
    return str(prompt["id"][1])


def offer(offers: Cage, service: str) -> None:
    if service == "clipboard.Paste":
        assert offers.enter("incage", "copy", "--pastes", "9", input=b"of offers").returncode == 0


class Asking:
    """A request on a gateway, of which no answer has come yet."""

    def __init__(self, connection: Any, service: str, key: bytes) -> None:
        name, member, signature, values = SERVICES[service]
        self._connection = connection
        await_core_half(connection, name)
        with open("/etc/hostname", "rb") as file:
            told = {DESCRIPTOR: file.fileno(), KEY: key}
            given = tuple(told.get(value, value) if isinstance(value, str | bytes) else value for value in values)
            address = DBusAddress(f"/org/cageruntime/{name}", f"org.cageruntime.{name}", f"org.cageruntime.{name}")
            connection.send(new_method_call(address, member, signature, given))

    def answer(self) -> tuple[str, str]:
        while True:
            message = self._connection.receive(timeout=SECONDS)
            if message.header.message_type is MessageType.error:
                name = message.header.fields[HeaderFields.error_name].rpartition(".")[2]
                return name, str(message.body[0])
            if message.header.message_type is MessageType.method_return:
                return "", ""


def public_key(answers: Cage) -> bytes:
    """Of a key that the cage has from now on: nobody is asked about one that there is not."""
    text = answers.sh("""mkdir -p ~/.config/incage/keys && cd ~/.config/incage/keys &&
        { [ -e work ] || ssh-keygen -q -t ed25519 -N '' -f work; } && cat work.pub""")
    return base64.b64decode(text.split()[1])


@contextmanager
def asked(runtime: Runtime, asks: Cage, answers: Cage, service: str) -> Iterator[Asking]:
    key = public_key(answers) if service == "keys.Sign" else b""
    with gateway(runtime, asks) as connection:
        yield Asking(connection, service, key)


@pytest.mark.parametrize("service", SERVICES)
def test_a_half_that_dies_takes_its_question_along(runtime: Runtime, asks: Cage, answers: Cage, offers: Cage,
                                                   service: str) -> None:
    offer(offers, service)
    with policy(runtime, ASK):
        with asked(runtime, asks, answers, service):
            identity = question(runtime)
        until(lambda: not prompts(runtime), "the end of the question")
        assert runtime.cagectl("prompts", "answer", identity, "allow").returncode != 0, "and no answer counts any more"


@pytest.mark.usefixtures("answers")
@pytest.mark.parametrize("service", IN_CAGE)
def test_a_program_that_dies_takes_its_question_along(runtime: Runtime, asks: Cage, offers: Cage,
                                                      service: str) -> None:
    offer(offers, service)
    with policy(runtime, ASK):
        process = asks.popen("/bin/sh", "-c", IN_CAGE[service])
        question(runtime)
        process.kill()
        process.wait(SECONDS)
        until(lambda: not prompts(runtime), "the end of the question")


@pytest.mark.parametrize("service", SERVICES)
def test_a_policy_that_denies_meanwhile_counts(runtime: Runtime, asks: Cage, answers: Cage, offers: Cage,
                                               service: str) -> None:
    offer(offers, service)
    with policy(runtime, ASK), asked(runtime, asks, answers, service) as asking:
        question(runtime)
        with policy(runtime, DENY):
            assert asking.answer()[0] == "PolicyRefused"
            assert not prompts(runtime)


@pytest.mark.parametrize("service", TO_A_CAGE)
def test_a_target_that_is_made_anew_is_another(runtime: Runtime, asks: Cage, answers: Cage, service: str) -> None:
    with policy(runtime, ASK), asked(runtime, asks, answers, service) as asking:
        identity = question(runtime)
        runtime.ok("destroy", "answers", "--yes")
        runtime.ok("create", "answers", "--level", "internal")
        runtime.cagectl("prompts", "answer", identity, "allow")
        # A key cage has begun with its part already, which ended with it.
        assert asking.answer()[0] == ("TransferFailed" if service.startswith("keys.") else "PolicyRefused")
        assert answers.sh("cd; ls -A Inbox 2>/dev/null || :") == ""


@pytest.mark.usefixtures("answers")
@pytest.mark.parametrize("service", IN_CAGE)
def test_a_policy_that_denies_meanwhile_counts_for_a_program_too(runtime: Runtime, asks: Cage, offers: Cage,
                                                                 service: str) -> None:
    offer(offers, service)
    with policy(runtime, ASK):
        process = asks.popen("/bin/sh", "-c", IN_CAGE[service])
        question(runtime)
        with policy(runtime, DENY):
            assert process.wait(SECONDS) != 0
            assert not prompts(runtime)


@pytest.mark.parametrize("service", [service for service in IN_CAGE if service in TO_A_CAGE])
def test_a_target_that_is_made_anew_is_another_to_a_program_too(runtime: Runtime, asks: Cage, answers: Cage,
                                                                service: str) -> None:
    with policy(runtime, ASK):
        process = asks.popen("/bin/sh", "-c", IN_CAGE[service])
        identity = question(runtime)
        runtime.ok("destroy", "answers", "--yes")
        runtime.ok("create", "answers", "--level", "internal")
        runtime.cagectl("prompts", "answer", identity, "allow")
        assert process.wait(SECONDS) != 0
        assert answers.sh("cd; ls -A Inbox 2>/dev/null || :") == ""


# --- many requests, and an answer of one's own -----------------------------------------------------------------------
REQUESTS, PENDING = 200, 32
"""How many are made, and how many of them a bus lets one connection wait for: the others are answered."""
POSTS = f"""
import select, sys
sys.path[:0] = ["/opt/cage-runtime/lib"]
from cage_runtime.sdbus import Connection
bus = Connection()
for _ in range({REQUESTS}):
    bus.post("org.cageruntime.Notify1", "/org/cageruntime/Notify1", "org.cageruntime.Notify1", "Show", "ssa{{sv}}",
             ("x", "", {{}}))
answers = 0
while answers < {REQUESTS - PENDING}:
    select.select([bus], [], [], 0.1)
    while bus.take() is not None:
        answers += 1
print(answers, flush=True)
sys.stdin.read()
"""


def test_200_requests_of_a_program_are_one_question(runtime: Runtime, asks: Cage) -> None:
    """M14; what waits is one question, and what cannot wait is refused."""
    with policy(runtime, ASK):
        process = asks.popen("/usr/bin/python3", "-IS", "-c", POSTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        assert int(process.stdout.readline()) >= REQUESTS - PENDING
        question(runtime)
        process.stdin.close()
        process.wait(SECONDS)
        until(lambda: not prompts(runtime), "the end of the question")


def test_200_requests_of_a_half_are_one_question(runtime: Runtime, asks: Cage) -> None:
    """M14."""
    name, member, signature, values = SERVICES["notify.Show"]
    address = DBusAddress(f"/org/cageruntime/{name}", f"org.cageruntime.{name}", f"org.cageruntime.{name}")
    with policy(runtime, ASK):
        with gateway(runtime, asks) as connection:
            await_core_half(connection, name)
            for _ in range(REQUESTS):
                connection.send(new_method_call(address, member, signature, values))
            answers = 0
            while answers < REQUESTS - PENDING:
                answers += connection.receive(timeout=SECONDS).header.message_type is MessageType.error
            question(runtime)
        until(lambda: not prompts(runtime), "the end of the question")


def test_nobody_in_a_cage_answers_for_a_person(runtime: Runtime, asks: Cage, answers: Cage) -> None:
    """M10, by a half on its gateway and by a program on its cage's bus: caged is on neither."""
    answer = ("org.cageruntime.Core1", "/org/cageruntime/Core1", "org.cageruntime.Core1.Manager", "AnswerPrompt")
    said = f"""
import sys
sys.path[:0] = ["/opt/cage-runtime/lib"]
from cage_runtime.sdbus import BusError, Connection
try:
    Connection().call(*{answer!r}, "ssa{{sv}}", (sys.argv[1], "allow", {{}}), timeout=20)
except BusError as error:
    print(error.name)
"""
    with policy(runtime, ASK), asked(runtime, asks, answers, "notify.Show"):
        identity = question(runtime)
        with gateway(runtime, asks) as half:
            call = new_method_call(DBusAddress(answer[1], answer[0], answer[2]), answer[3], "ssa{sv}",
                                   (identity, "allow", {}))
            reply = half.send_and_get_reply(call, timeout=SECONDS)
        assert reply.header.message_type is MessageType.error
        assert reply.header.fields[HeaderFields.error_name] in NOT_THERE
        assert asks.enter("/usr/bin/python3", "-IS", "-c", said, identity).stdout.decode().strip() in NOT_THERE
        assert question(runtime) == identity, "it is still open"


NOT_THERE = {f"org.freedesktop.DBus.Error.{why}" for why in ("AccessDenied", "ServiceUnknown")}
