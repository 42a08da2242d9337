# SPDX-License-Identifier: LGPL-2.1-or-later
"""Persons who are asked, over a real bus by a real caged: who hears of a question, who answers it, who waits for it."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cage_runtime.model import DECISIONS_BURST
from tests.bus.core.conftest import CORE, Client, Core, Refusal
from tests.bus.core.polkit import NO, YES, FakePolkit
from tests.bus.core.test_authorisation import ALICE, BOB, HERS, HIS, polkit

MEDIATION = f"{CORE}.Mediation"
RULES = """files.Send * @level:public vault ask
files.Send * work peer allow
"""
REQUEST = "1" * 32
WHAT = {"size": ("t", 17), "files": ("u", 1), "lines": ("as", ["figures.txt"])}
__all__ = ["polkit"]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it connects as several persons")


class Mediator:
    """The core half of the files mediator, as far as caged sees it."""

    def __init__(self, core: Core) -> None:
        self.client = core.client_of(core.user.pw_name) if os.geteuid() == 0 else core.client()

    def close(self) -> None:
        self.client.close()

    def decide(self, source: str, target: str, request: str = REQUEST) -> str:
        """The action, or the sentence of the refusal."""
        return self._called("Decide", "ssssss", source, "files.Send", "", target, request, "")

    def confirm(self, source: str, target: str, request: str = REQUEST, **what: Any) -> str:
        return self._called("Confirm", "sssssa{sv}", source, "files.Send", "", target, request, WHAT | what)

    def _called(self, member: str, signature: str, *arguments: Any) -> str:
        try:
            return str(self.client.call(member, signature, *arguments, interface=MEDIATION)["action"][1])
        except Refusal as refusal:
            if refusal.name != "PolicyRefused":
                raise
            return refusal.sentence

    @contextlib.contextmanager
    def answered(self) -> Iterator[Any]:
        """In the block, what it gives waits for the next request that has an answer."""
        with self.client.signals() as following:

            def next_() -> str:
                while (signal := following())[1] != "Answered":
                    continue
                return str(signal[2][0])

            yield next_


@pytest.fixture
def mediator(core: Core) -> Iterator[Mediator]:
    mediator = Mediator(core)
    yield mediator
    mediator.close()


@pytest.fixture
def cages(core: Core, client: Client) -> dict[str, str]:
    """Uuids by name; of work to peer is allowed, of public ones to vault is asked about."""
    core.write_policy(RULES)
    client.call("ReloadPolicy", "a{sv}", {})
    for name, level in (("work", "public"), ("peer", "public"), ("vault", "secret")):
        client.call("Create", "sa{sv}", name, {"level": ("s", level)})
    return uuids(client)


def uuids(client: Client) -> dict[str, str]:
    return {cage["name"][1]: cage["uuid"][1] for cage in client.call("List", "a{sv}", {})}


def prompts(client: Client) -> list[dict[str, Any]]:
    return [{key: value for key, (_, value) in prompt.items()} for prompt in client.call("ListPrompts", "a{sv}", {})]


def records(client: Client) -> list[dict[str, Any]]:
    return [json.loads(line) for line in client.call("TailAudit", "a{sv}", {"count": ("u", 1000)})]


def answer(client: Client, said: str, **options: Any) -> None:
    client.call("AnswerPrompt", "ssa{sv}", prompts(client)[0]["id"], said, options)


def questions(client: Client) -> tuple[str, str]:
    (check,) = [check for check in client.call("Doctor", "a{sv}", {}) if check["check"][1] == "questions"]
    return check["state"][1], check["help"][1]


def test_doctor_tells_of_questions_that_nobody_sees(client: Client, mediator: Mediator, cages: dict[str, str]) -> None:
    assert questions(client)[0] == "ok"
    assert mediator.confirm(cages["work"], "vault") == "ask"
    state, help_ = questions(client)
    assert (state, "cagectl prompts list" in help_) == ("limited", True)
    client.call("RegisterAgent", "a{sv}", {})
    assert questions(client)[0] == "ok"


# --- from the request to the answer ------------------------------------------------------------------------------
def test_a_request_waits_for_its_answer_and_is_decided_again(
    client: Client, mediator: Mediator, cages: dict[str, str]
) -> None:
    work = cages["work"]
    assert mediator.decide(work, "vault") == "ask"
    with mediator.answered() as answered:
        assert mediator.confirm(work, "vault") == "ask"
        (prompt,) = prompts(client)
        assert (prompt["source"], prompt["target"], prompt["lines"]) == ("work", "vault", ["figures.txt"])
        answer(client, "allow")
        assert answered() == REQUEST
        assert mediator.confirm(work, "vault") == "allow"
        assert mediator.confirm(work, "vault") == "ask"
        answer(client, "deny")
        assert answered() == REQUEST
    assert mediator.confirm(work, "vault") == 'files.Send to "vault" is refused: a person refused it'
    kinds = [record["kind"] for record in records(client) if record["fields"].get("service")]
    assert kinds == ["decision", "prompt-opened", "prompt-answered", "decision", "prompt-opened", "prompt-answered",
                     "decision"]


def test_an_answer_that_was_not_offered_leaves_the_question_open(
    client: Client, mediator: Mediator, cages: dict[str, str]
) -> None:
    """M10."""
    mediator.confirm(cages["work"], "vault")
    (prompt,) = prompts(client)
    for said, options in (("allow", {"target": ("s", "peer")}), ("allow", {"target": ("s", "core")}), ("yes", {}),
                          ("allow", {"for": ("u", 86401)}), ("allow", {"for": ("s", "1")}),
                          ("allow", {"to": ("s", "x")}), ("allow", {"target": ("s", "\x1b[2J" * 1000)})):
        with pytest.raises(Refusal) as refused:
            client.call("AnswerPrompt", "ssa{sv}", prompt["id"], said, options)
        assert refused.value.name == "InvalidArgument"
        assert refused.value.sentence.isprintable()
    for id_ in ("", "0" * 8, prompt["id"].upper() + "0", prompt["id"] + " ", "\x1b[2J"):
        with pytest.raises(Refusal) as refused:
            client.call("AnswerPrompt", "ssa{sv}", id_, "allow", {})
        assert refused.value.name == "NoSuchPrompt"
    assert [shown["id"] for shown in prompts(client)] == [prompt["id"]]
    assert mediator.confirm(cages["work"], "vault") == "ask"


def test_equal_requests_are_one_question(client: Client, mediator: Mediator, cages: dict[str, str]) -> None:
    """M14: 200 asks of a cage make one prompt, which one answer closes for all."""
    requests = [f"{number:032x}" for number in range(200)]
    with mediator.answered() as answered:
        for request in requests:
            assert mediator.confirm(cages["work"], "vault", request) == "ask"
        assert [prompt["waiting"] for prompt in prompts(client)] == [200]
        answer(client, "allow")
        assert [answered() for _ in requests] == requests
    assert {mediator.confirm(cages["work"], "vault", request) for request in requests} == {"allow"}
    assert prompts(client) == []


# --- who is gone -------------------------------------------------------------------------------------------------
def gone(client: Client, reason: str) -> None:
    client.until(lambda: prompts(client) == [])
    closed = [record["fields"] for record in records(client) if record["kind"] == "prompt-withdrawn"]
    assert [fields["why"] for fields in closed] == [reason]


def test_a_mediator_that_goes_takes_its_questions_along(
    core: Core, client: Client, mediator: Mediator, cages: dict[str, str]
) -> None:
    """M16."""
    other = Mediator(core)
    for one in (mediator, other):
        assert one.confirm(cages["work"], "vault") == "ask"
    other.close()
    client.until(lambda: [prompt["waiting"] for prompt in prompts(client)] == [1])
    mediator.client.call("Withdraw", "s", REQUEST, interface=MEDIATION)
    gone(client, "withdrawn")


@pytest.mark.parametrize("member", ["Stop", "Kill", "Destroy"])
def test_a_cage_that_ends_takes_its_questions_along(
    client: Client, mediator: Mediator, cages: dict[str, str], member: str
) -> None:
    """M16."""
    with mediator.answered() as answered:
        mediator.confirm(cages["work"], "vault")
        client.call(member, "sa{sv}", "work", {})
        assert answered() == REQUEST
    gone(client, "moot")


def test_a_cage_that_dies_takes_its_questions_along(
    core: Core, client: Client, mediator: Mediator, cages: dict[str, str]
) -> None:
    mediator.confirm(cages["work"], "vault")
    core.spawner.end(cages["work"])
    gone(client, "moot")


# --- other instances, other rules --------------------------------------------------------------------------------
def test_a_target_that_comes_again_under_its_name_is_another(
    client: Client, mediator: Mediator, cages: dict[str, str]
) -> None:
    """M17: between question and answer, and between answer and use."""
    held = {"target-uuid": ("s", cages["vault"])}
    mediator.confirm(cages["work"], "vault", **held)
    (prompt,) = prompts(client)
    client.call("Destroy", "sa{sv}", "vault", {})
    client.call("Create", "sa{sv}", "vault", {"level": ("s", "secret")})
    with pytest.raises(Refusal, match="NoSuchPrompt"):
        client.call("AnswerPrompt", "ssa{sv}", prompt["id"], "allow", {})
    assert "is not the cage that it was" in mediator.confirm(cages["work"], "vault", **held)
    assert mediator.confirm(cages["work"], "vault", "2" * 32) == "ask"
    answer(client, "allow", session=("b", True))
    client.call("Destroy", "sa{sv}", "vault", {})
    client.call("Create", "sa{sv}", "vault", {"level": ("s", "secret")})
    assert mediator.confirm(cages["work"], "vault", "2" * 32) == "ask"


def test_a_policy_put_in_force_between_question_and_answer_counts(
    core: Core, client: Client, mediator: Mediator, cages: dict[str, str]
) -> None:
    """M18; and M5: a bad one is not in force."""
    mediator.confirm(cages["work"], "vault")
    (prompt,) = prompts(client)
    core.write_policy(RULES + "nonsense\n")
    with pytest.raises(Refusal, match="the policy in force stays"):
        client.call("ReloadPolicy", "a{sv}", {})
    assert [shown["id"] for shown in prompts(client)] == [prompt["id"]]
    with mediator.answered() as answered:
        core.write_policy(RULES.replace("ask", "deny"))
        client.call("ReloadPolicy", "a{sv}", {})
        assert answered() == REQUEST
    with pytest.raises(Refusal, match="NoSuchPrompt"):
        client.call("AnswerPrompt", "ssa{sv}", prompt["id"], "allow", {})
    assert "the rule denies it" in mediator.confirm(cages["work"], "vault")


def test_a_policy_put_in_force_between_answer_and_use_counts(
    core: Core, client: Client, mediator: Mediator, cages: dict[str, str]
) -> None:
    """M18."""
    for options in ({}, {"session": ("b", True)}):
        core.write_policy(RULES)
        client.call("ReloadPolicy", "a{sv}", {})
        assert mediator.confirm(cages["work"], "vault") == "ask"
        answer(client, "allow", **options)
        core.write_policy(RULES.replace("ask", "deny"))
        client.call("ReloadPolicy", "a{sv}", {})
        assert "the rule denies it" in mediator.confirm(cages["work"], "vault")
    assert client.call("ListGrants", "a{sv}", {}) == []


def test_a_core_that_starts_with_a_bad_policy_lets_nothing_through_until_it_is_mended(
    core: Core, client: Client, mediator: Mediator, cages: dict[str, str]
) -> None:
    """M5."""
    mediator.confirm(cages["work"], "vault")
    answer(client, "allow", session=("b", True))
    core.stop()
    core.write_policy(RULES + "nonsense\n")
    core.start()
    for target in ("peer", "vault", "nobody"):
        for said in (mediator.decide(cages["work"], target), mediator.confirm(cages["work"], target)):
            assert "the policy of this host cannot be read and refuses everything" in said
    assert [record["kind"] for record in records(client) if record["kind"].startswith("policy")][-1] == "policy-refused"
    core.write_policy(RULES)
    client.call("ReloadPolicy", "a{sv}", {})
    assert mediator.confirm(cages["work"], "peer") == "allow"


# --- answers that stand ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kill", [False, True])
def test_what_stands_outlives_caged_and_what_is_open_does_not(
    core: Core, client: Client, mediator: Mediator, cages: dict[str, str], kill: bool
) -> None:
    mediator.confirm(cages["work"], "vault")
    answer(client, "allow", **{"for": ("u", 600)})
    mediator.confirm(cages["peer"], "vault")
    core.stop(kill=kill)
    core.start()
    assert prompts(client) == []
    assert mediator.confirm(cages["work"], "vault") == "allow"
    (grant,) = client.call("ListGrants", "a{sv}", {})
    assert 590 < grant["seconds"][1] <= 600
    client.call("RevokeGrant", "sa{sv}", grant["id"][1], {})
    core.stop(kill=kill)
    core.start()
    assert mediator.confirm(cages["work"], "vault") == "ask"


def test_a_session_that_ended_while_no_caged_ran_is_over(
    core: Core, client: Client, mediator: Mediator, cages: dict[str, str]
) -> None:
    mediator.confirm(cages["work"], "vault")
    answer(client, "allow", session=("b", True))
    core.stop(kill=True)
    core.spawner._stop(cages["work"])
    core.start()
    assert client.call("ListGrants", "a{sv}", {}) == []
    client.call("Start", "sa{sv}", "work", {})
    assert mediator.confirm(cages["work"], "vault") == "ask"


# --- whose it is -------------------------------------------------------------------------------------------------
@as_root
def test_who_hears_of_a_question_and_answers_it_is_the_owner_and_root(
    core: Core, client: Client, mediator: Mediator, polkit: FakePolkit
) -> None:
    polkit.says = lambda _asked: YES
    core.write_policy(f"files.Send * {HERS} * ask\n")
    client.call("ReloadPolicy", "a{sv}", {})
    with contextlib.ExitStack() as ends:
        alice, bob = (ends.enter_context(contextlib.closing(core.client_of(person))) for person in (ALICE, BOB))
        for name in (HERS, "d-cage"):
            alice.call("Create", "sa{sv}", name, {"level": ("s", "public")})
        bob.call("Create", "sa{sv}", HIS, {"level": ("s", "public")})
        alices, bobs, roots = (ends.enter_context(one.signals()) for one in (alice, bob, client))
        for one in (alice, bob, client):
            one.call("RegisterAgent", "a{sv}", {})
        assert mediator.confirm(uuids(client)[HERS], "d-cage") == "ask"
        added = alices()
        assert added[1] == "PromptAdded"
        id_ = added[2][0]["id"][1]
        assert roots()[2][0]["id"][1] == id_
        assert ([prompt["id"] for prompt in prompts(alice)], prompts(bob)) == ([id_], [])
        told = []
        for wanted in (id_, "0" * 8):
            with pytest.raises(Refusal) as refused:
                bob.call("AnswerPrompt", "ssa{sv}", wanted, "allow", {})
            told.append((refused.value.name, refused.value.sentence.replace(wanted, "")))
        assert told[0] == told[1]
        assert told[0][0] == "NoSuchPrompt"
        alice.call("AnswerPrompt", "ssa{sv}", id_, "allow", {"for": ("u", 60)})
        assert (alices()[1:], roots()[1:]) == (("PromptRemoved", (id_, "answered")),) * 2
        assert (len(alice.call("ListGrants", "a{sv}", {})), bob.call("ListGrants", "a{sv}", {})) == (1, [])
        (grant,) = client.call("ListGrants", "a{sv}", {})
        with pytest.raises(Refusal, match="NoSuchGrant"):
            bob.call("RevokeGrant", "sa{sv}", grant["id"][1], {})
        # What bob hears next is of his own: nothing of hers came before.
        core.write_policy("files.Send * * * ask\n")
        client.call("ReloadPolicy", "a{sv}", {})
        bob.call("Create", "sa{sv}", "e-cage", {"level": ("s", "public")})
        assert mediator.confirm(uuids(client)[HIS], "e-cage") == "ask"
        while not (first := bobs())[1].startswith("Prompt"):
            continue
        assert (first[1], first[2][0]["source"][1]) == ("PromptAdded", HIS)


@as_root
def test_who_polkit_says_no_to_is_asked_nothing(
    core: Core, client: Client, mediator: Mediator, polkit: FakePolkit, cages: dict[str, str]
) -> None:
    mediator.confirm(cages["work"], "vault")
    polkit.says = lambda _asked: NO
    with contextlib.closing(core.client_of(ALICE)) as alice:
        for member, signature, arguments in (
            ("ListPrompts", "a{sv}", ({},)), ("AnswerPrompt", "ssa{sv}", (prompts(client)[0]["id"], "allow", {})),
            ("ListGrants", "a{sv}", ({},)), ("RevokeGrant", "sa{sv}", ("0" * 8, {})), ("RegisterAgent", "a{sv}", ({},)),
        ):
            with pytest.raises(Refusal) as refused:
                alice.call(member, signature, *arguments)
            assert refused.value.name == "NotAuthorized"


def test_an_agent_that_goes_makes_room_for_another(core: Core, client: Client) -> None:
    agents = [core.client() for _ in range(3)]
    for agent in agents:
        agent.call("RegisterAgent", "a{sv}", {})
        agent.call("RegisterAgent", "a{sv}", {})
        agent.close()
    client.call("RegisterAgent", "a{sv}", {})


# --- what a cage learns, and what it costs others ----------------------------------------------------------------
def test_an_unknown_and_a_forbidden_target_look_alike(client: Client, mediator: Mediator) -> None:
    """M3: the same reply, the same code, the time within 5 ms over 200 tries."""
    tries, share = 200, DECISIONS_BURST // 2
    for number in range(tries // share):
        client.call("Create", "sa{sv}", f"high-{number}", {"level": ("s", "secret")})
    client.call("Create", "sa{sv}", "below", {"level": ("s", "public")})
    sources = uuids(client)
    took: dict[str, list[float]] = {"below": [], "nobody": []}
    said: dict[str, set[str]] = {name: set() for name in took}
    for number in range(tries):
        for name, times in took.items():
            before = time.perf_counter()
            sentence = mediator.decide(sources[f"high-{number // share}"], name)
            times.append(time.perf_counter() - before)
            said[name].add(sentence.replace(name, ""))
    assert said["below"] == said["nobody"]
    assert len(said["below"]) == 1
    forbidden, unknown = (statistics.median(times) for times in took.values())
    assert abs(unknown - forbidden) < 0.005
