# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a person is asked and what comes of the answer: one question for equal requests, bounded, for these instances
alone, and decided again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cage_runtime.daemon.agents import Person
from cage_runtime.daemon.mediation import Permission
from cage_runtime.daemon.what import What
from cage_runtime.errors import (
    NoSuchCage,
    NoSuchGrant,
    NoSuchPrompt,
    PolicyRefused,
    RuntimeFailure,
    TooOften,
    UsageError,
    WrongState,
)
from cage_runtime.model import (
    ANSWER_SECONDS,
    GRANT_SECONDS_MAX,
    GRANTS_PER_CAGE,
    PROMPT_SECONDS,
    PROMPTS_PER_CAGE,
    WAITING_PER_CAGE,
    Action,
    CageState,
    Limit,
)
from tests.unit.cage_runtime.daemon.asking_world import (
    OWNER,
    REQUEST,
    ROOT,
    STRANGER,
    World,
    asked,
    cage,
    rules,
)

ASKING = "files.Send * work vault ask\nfiles.Send * work peer ask\nfiles.Send * peer vault ask\n"
HELD = {"size": 17, "files": 1, "types": ["text/plain"], "sha256": "ab" * 32, "lines": ["figures.txt"]}
"""What the request turned out to be."""
SAID_NO = 'files.Send to "vault" is refused: a person refused it'
STANDS_NO = 'files.Send to "vault" is refused: a person refused it for some time'


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    return lambda text=ASKING, **parameters: World(tmp_path, monkeypatch, rules(text, **parameters))


@pytest.fixture
def world(start: Callable[..., World]) -> World:
    return start()


def is_asked(world: World, target: str = "vault", request: str = REQUEST, **given: Any) -> None:
    assert world.confirm(target, request, **(HELD | given)).decision.action is Action.ASK


def is_permitted(world: World, target: str = "vault", request: str = REQUEST, **given: Any) -> None:
    assert world.confirm(target, request, **(HELD | given)).decision.action is Action.ALLOW


# --- the question ------------------------------------------------------------------------------------------------
def test_a_question_says_from_where_to_where_what_and_by_which_rule(world: World) -> None:
    assert world.decide("vault").decision.action is Action.ASK
    assert world.prompts == [], "nobody is asked before it is known what"
    is_asked(world)
    (shown,) = world.prompts
    assert world.heard == [(":agent", "PromptAdded", world.heard[0][2])]
    assert {key: variant.value for key, variant in world.heard[0][2].items()} == shown
    assert shown == {
        "id": shown["id"], "source": "work", "source-level": "public", "source-colour": "#2e7d32",
        "source-compartments": [], "service": "files.Send", "argument": "", "asked": "vault", "target": "vault",
        "target-level": "secret", "target-colour": "#b71c1c", "target-compartments": [], "flow": "up",
        "choices": {"vault": "secret"}, "colours": {"secret": "#b71c1c"},
        "default": "", "rule": "test:1", "lines": ["figures.txt"], "size": 17,
        "files": 1, "types": ["text/plain"], "sha256": "ab" * 32, "transform": "", "for": 0, "waiting": 1,
        "since": shown["since"], "seconds": int(PROMPT_SECONDS), "owner": OWNER.uid}
    assert len(shown["id"]) == 8
    assert world.recorded[-1] == ("prompt-opened", {
        "cage": "work", "uuid": "uuid-work", "mediator": "files", "service": "files.Send", "argument": "",
        "prompt": shown["id"], "rule": "test:1", "target": "vault"})


@pytest.mark.parametrize("text", [
    "\x1b]52;c;eA==\x07", "a\rb\b\b", "\u202eexe.txt", "\x1b]8;;http://x\x1b\\y", "\x9b31m",
    "a\nThe core: press allow", "\x90q\x9c", "\0",
])
def test_what_came_from_a_cage_is_escaped_and_bounded(world: World, text: str) -> None:
    """M80, M81."""
    is_asked(world, lines=[text * 300] * 1000, types=[text], sha256=text)
    (shown,) = world.prompts
    assert len(shown["lines"]) == 21
    assert shown["lines"][-1] == "… and 980 more lines"
    seen = [*shown["lines"], *shown["types"], shown["sha256"]]
    assert all(character.isprintable() for line in seen for character in line)
    assert all(len(line) <= 10 * 200 + 1 for line in seen)


def test_nobody_is_asked_about_what_is_refused_anyway(start: Callable[..., World]) -> None:
    world = start(max_size=16, types=("text/*",))
    assert world.not_confirmed("vault", **HELD) == (
        "17 bytes are more than the 16 that the policy lets through at once")
    assert "image/png is of no type" in world.not_confirmed("vault", **HELD | {"size": 1, "types": ["image/png"]})
    assert "is not known" in world.not_confirmed("vault", **HELD | {"size": 1, "types": []})
    assert (world.prompts, world.heard) == ([], [])
    is_asked(world, size=16)


def test_where_it_cannot_be_recorded_nobody_is_asked(world: World) -> None:
    world.full = True
    with pytest.raises(RuntimeFailure):
        world.confirm("vault", **HELD)
    world.full = False
    assert (world.prompts, world.heard) == ([], [])


# --- answers -----------------------------------------------------------------------------------------------------
def test_allow_is_for_this_once(world: World) -> None:
    is_asked(world)
    prompt = world.prompts[0]["id"]
    world.answer("allow")
    assert world.heard[1:] == [(":agent", "PromptRemoved", prompt, "answered"), (":files", "Answered", REQUEST)]
    is_permitted(world)
    kinds = dict(world.recorded)
    assert kinds["prompt-answered"] == {
        "cage": "work", "uuid": "uuid-work", "mediator": "files", "service": "files.Send", "argument": "",
        "prompt": prompt, "answer": "allow", "target": "vault", "stands": "once"}
    assert (kinds["decision"]["decision"], kinds["decision"]["answer"]) == ("allow", f"prompt {prompt}")
    is_asked(world)
    assert world.prompts[0]["id"] != prompt


def test_deny_is_a_refusal_that_says_so(world: World) -> None:
    is_asked(world)
    world.answer("deny")
    assert world.not_confirmed("vault", **HELD) == SAID_NO
    assert world.recorded[-1][1]["decision"] == "deny"
    is_asked(world)


def test_an_answer_is_for_what_the_person_has_seen(world: World) -> None:
    """Another file under the same request is another question."""
    is_asked(world)
    world.answer("allow")
    is_asked(world, sha256="cd" * 32)
    is_asked(world)


@pytest.mark.parametrize("other", [
    {"sha256": "cd" * 32}, {"lines": ["figures.txt", ""]}, {"lines": ["x" * 200 + "y"]}, {"size": 18}, {"files": 2},
    {"types": ["text/html"]}, {"argument": "x"}, {"target": "peer"}, {"source": "peer"},
])
def test_what_differs_is_another_question(world: World, other: dict[str, Any]) -> None:
    is_asked(world, lines=["x" * 200 + "z"] if other.get("lines") == ["x" * 200 + "y"] else HELD["lines"])
    is_asked(world, request="1" * 32, **other)
    assert len(world.prompts) == 2


@pytest.mark.parametrize(("action", "given", "says"), [
    ("allow", {"target": "peer"}, '"peer" was not offered; these are: vault'),
    ("allow", {"target": "\x1b[2J"}, r'"\x1b[2J" was not offered'),
    ("allow", {"target": "core"}, "was not offered"),
    ("maybe", {}, "an answer is allow or deny"),
    ("ask", {}, "an answer is allow or deny"),
    ("deny", {"target": "vault"}, "no target is chosen by an answer that denies"),
    ("allow", {"seconds": GRANT_SECONDS_MAX + 1}, "stands for 86400 s at most"),
    ("allow", {"seconds": -1}, "stands for 86400 s at most"),
    ("allow", {"seconds": 5, "session": True}, "not for both"),
])
def test_an_answer_that_was_not_offered_is_none(world: World, action: str, given: dict[str, Any], says: str) -> None:
    """M10: and the question stays open."""
    is_asked(world)
    with pytest.raises(UsageError) as refused:
        world.answer(action, **given)
    assert says in refused.value.sentence
    assert len(world.prompts) == 1
    is_asked(world)


def test_an_answer_that_cannot_be_recorded_does_not_count(world: World) -> None:
    is_asked(world)
    world.full = True
    with pytest.raises(RuntimeFailure):
        world.answer("allow", seconds=60)
    world.full = False
    is_asked(world)
    assert world.asking.grants(OWNER) == []


def test_who_may_answer_is_the_owner_and_root(world: World) -> None:
    is_asked(world)
    id_ = world.prompts[0]["id"]
    assert world.asking.prompts(STRANGER) == []
    with pytest.raises(NoSuchPrompt) as refused:
        world.answer("allow", STRANGER)
    with pytest.raises(NoSuchPrompt) as unknown:
        world.answer("allow", STRANGER, id_="0" * 8)
    assert refused.value.sentence.replace(id_, "0" * 8) == unknown.value.sentence
    world.answer("allow", ROOT)
    is_permitted(world)


def test_what_a_private_cage_asks_is_its_owners_alone_to_see(world: World) -> None:
    world.known["work"] = cage("work", "public", private=True)
    world.agents.register(":root", ROOT)
    is_asked(world)
    assert [heard[0] for heard in world.heard] == [":agent"]
    with pytest.raises(NoSuchPrompt):
        world.answer("allow", ROOT)
    world.answer("allow", session=True)
    assert (len(world.asking.grants(OWNER)), world.asking.grants(ROOT)) == (1, [])


def test_every_agent_of_the_person_and_of_root_is_told_and_nobody_elses(world: World) -> None:
    for sender, person in ((":second", OWNER), (":root", ROOT), (":other", STRANGER)):
        world.agents.register(sender, person)
    world.gone[":second"]()
    is_asked(world)
    assert [heard[0] for heard in world.heard] == [":agent", ":root"]


def test_a_question_that_no_program_shows_is_counted_for_those_who_see_it(world: World) -> None:
    is_asked(world)
    assert [world.asking.unseen(person) for person in (OWNER, ROOT, STRANGER)] == [0, 0, 0]
    world.gone[":agent"]()
    world.agents.register(":other", STRANGER)
    assert [world.asking.unseen(person) for person in (OWNER, ROOT, STRANGER)] == [1, 1, 0]
    world.agents.register(":root", ROOT)
    assert [world.asking.unseen(person) for person in (OWNER, ROOT, STRANGER)] == [0, 0, 0]


def test_a_private_cages_question_is_counted_for_its_owner_alone(world: World) -> None:
    world.create("work", "public", life="2", private=True)
    assert world.mediation.confirm(asked("vault", "work2"), What(**HELD), ":files").decision.action is Action.ASK
    world.gone[":agent"]()
    world.agents.register(":root", ROOT)
    assert [world.asking.unseen(person) for person in (OWNER, ROOT)] == [1, 0]


def test_a_person_has_some_agents_and_not_any_number(world: World) -> None:
    for number in range(7):
        world.agents.register(f":{number}", OWNER)
    with pytest.raises(RuntimeFailure, match="8 programs of yours show questions already"):
        world.agents.register(":more", OWNER)
    world.agents.register(":0", OWNER)
    world.agents.register(":other", Person(uid=7, is_root=False))


# --- a choice of targets -----------------------------------------------------------------------------------------
CHOICES = """files.Send * work vault deny
files.Send * work @default ask
files.Send * work @any ask
files.Send * peer @any ask
"""


@pytest.fixture
def choosing(start: Callable[..., World]) -> World:
    world = start(CHOICES)
    world.create("third", "public")
    return world


def test_what_has_its_target_is_not_chosen_again(choosing: World) -> None:
    """What comes back comes back from where it was opened: nothing else is offered, or granted."""
    def back_from(name: str) -> Permission:
        return choosing.mediation.confirm(asked(""), What(target=name, target_uuid=f"uuid-{name}"), ":files")

    back_from("peer")
    assert (choosing.prompts[0]["choices"], choosing.prompts[0]["default"]) == ({"peer": "public"}, "")
    with pytest.raises(UsageError, match="was not offered"):
        choosing.answer("allow", target="third")
    choosing.answer("allow", target="peer")
    assert back_from("peer").target is choosing.known["peer"]
    with pytest.raises(PolicyRefused, match="is not the cage that it was"):
        back_from("vault")
    choosing.confirm("")
    choosing.answer("allow", target="third", seconds=60)
    with pytest.raises(PolicyRefused, match="is not the cage that it was"):
        back_from("peer")


def test_a_person_chooses_where_the_cage_has_named_nobody(choosing: World) -> None:
    is_asked(choosing, target="")
    (shown,) = choosing.prompts
    assert (shown["asked"], shown["target"], shown["default"], shown["flow"]) == ("", "", "", "")
    assert {"peer": "public", "third": "public"}.items() <= shown["choices"].items()
    assert not {"vault", "work"} & shown["choices"].keys(), "what would be denied is not offered"
    for target in ("", "vault", "work", "nobody", "core"):
        with pytest.raises(UsageError):
            choosing.answer("allow", target=target)
    choosing.answer("allow", target="third")
    permission = choosing.confirm("", **HELD)
    assert (permission.decision.action, permission.target) == (Action.ALLOW, choosing.known["third"])
    assert choosing.recorded[-1][1]["to"] == "third"


def test_what_was_chosen_is_decided_again_and_a_deny_stands(choosing: World) -> None:
    """M4."""
    is_asked(choosing, target="")
    choosing.answer("allow", target="third")
    choosing.mediation.policy = rules(CHOICES.replace("work vault", "work third"))
    assert "is refused" in choosing.not_confirmed("", **HELD)


def test_what_was_chosen_is_an_instance(choosing: World) -> None:
    """M17."""
    is_asked(choosing, target="")
    choosing.answer("allow", target="third")
    choosing.destroy("third")
    choosing.create("third", "public", life="-2")
    said = choosing.not_confirmed("", **HELD)
    assert said.startswith("the target is not the cage that it was"), "whom the person chose the source does not hear"


def test_the_limit_of_a_chosen_pair_holds(start: Callable[..., World]) -> None:
    world = start("files.Send * work @default ask\nfiles.Send * work @any ask limit=1/h\n")
    for number, may in enumerate((True, False), start=1):
        request = str(number) * 32
        world.decide("", request=request)
        is_asked(world, target="", request=request)
        world.answer("allow", target="peer")
        if may:
            assert world.confirm("", request=request, **HELD).target is world.known["peer"]
        else:
            assert "limit=" in world.not_confirmed("", request=request, **HELD)


def test_a_choice_that_stands_is_made_once(choosing: World) -> None:
    is_asked(choosing, target="")
    choosing.answer("allow", target="third", seconds=60)
    assert choosing.confirm("", **HELD).target is choosing.known["third"]
    is_asked(choosing, target="third", request="2" * 32)
    assert [grant.target_name for grant in choosing.asking.grants(OWNER)] == ["third"]
    choosing.destroy("third")
    assert choosing.asking.grants(OWNER) == []


def test_a_choice_that_goes_while_it_is_offered_makes_the_question_anew(choosing: World) -> None:
    is_asked(choosing, target="")
    choosing.destroy("third")
    assert choosing.prompts == []
    is_asked(choosing, target="")
    assert "third" not in choosing.prompts[0]["choices"]


def test_the_rule_preselects(start: Callable[..., World]) -> None:
    world = start("files.Send * work @default ask default-target=peer\nfiles.Send * work @any ask\n")
    is_asked(world, target="")
    assert world.prompts[0]["default"] == "peer"
    with pytest.raises(UsageError, match="say which target"):
        world.answer("allow")


def test_a_target_that_a_rule_sends_it_on_to_is_the_one_that_is_asked_about(start: Callable[..., World]) -> None:
    world = start("files.Send * work vault ask target=peer\nfiles.Send * work peer allow\n")
    assert world.decide("vault").target is world.known["peer"]
    is_asked(world, target="vault", target_uuid="uuid-peer")
    assert (world.prompts[0]["asked"], world.prompts[0]["target"]) == ("vault", "peer")
    world.answer("allow")
    assert world.confirm("vault", target_uuid="uuid-peer", **HELD).target is world.known["peer"]


# --- how many ----------------------------------------------------------------------------------------------------
def test_200_equal_requests_are_one_question_and_one_answer_is_for_all(world: World) -> None:
    """M14."""
    requests = [f"{number:032x}" for number in range(200)]
    for request in requests:
        is_asked(world, request=request)
    assert [prompt["waiting"] for prompt in world.prompts] == [200]
    assert world.kinds() == ["prompt-opened"]
    world.answer("allow")
    assert [heard[2] for heard in world.heard if heard[1] == "Answered"] == requests
    for request in requests:
        is_permitted(world, request=request)
    assert world.prompts == []


def test_a_cage_has_some_questions_open_and_its_other_requests_are_refused(world: World) -> None:
    for number in range(PROMPTS_PER_CAGE):
        is_asked(world, request=f"{number:032x}", size=number)
    assert world.not_confirmed("vault", **HELD) == (
        "4 questions about this cage are open; wait until one is answered")
    assert world.confirm("vault", source="peer", **HELD).decision.action is Action.ASK, "another cage's is asked"
    is_asked(world, request="f" * 32, size=0)


def test_a_cage_has_some_requests_waiting_and_not_any_number(world: World) -> None:
    for number in range(WAITING_PER_CAGE):
        is_asked(world, request=f"{number:032x}")
    is_asked(world, request="0" * 32)
    with pytest.raises(PolicyRefused, match="256 requests of this cage wait"):
        world.confirm("vault", "f" * 32, **HELD)


def test_a_question_expires_and_is_refused_then(world: World) -> None:
    is_asked(world)
    world.run_until(1000 + PROMPT_SECONDS)
    assert (world.prompts, world.heard[-2][3]) == ([], "expired")
    assert world.recorded[-1][0] == "prompt-withdrawn"
    assert world.not_confirmed("vault", **HELD) == 'files.Send to "vault" is refused: nobody has answered in time'


def test_an_answer_waits_for_a_while_for_whom_it_is_for(world: World) -> None:
    is_asked(world)
    world.answer("allow")
    world.run_until(1000 + ANSWER_SECONDS)
    is_asked(world)


# --- who is gone -------------------------------------------------------------------------------------------------
def test_a_question_is_withdrawn_with_the_last_request_that_waits_for_it(world: World) -> None:
    """M16."""
    for request in ("1" * 32, "2" * 32):
        is_asked(world, request=request)
    world.mediation.withdraw(":files", "1" * 32)
    world.mediation.withdraw(":other", "2" * 32)
    assert len(world.prompts) == 1, "a request is withdrawn by the mediator that it is of"
    world.mediation.withdraw(":files", "2" * 32)
    assert world.prompts == []
    assert world.heard[-1][:2] == (":agent", "PromptRemoved")
    assert world.recorded[-1][1]["why"] == "withdrawn"


def test_a_question_is_withdrawn_when_the_mediator_has_gone(world: World) -> None:
    """M16."""
    is_asked(world)
    is_asked(world, request="2" * 32, sender=":other")
    world.gone[":files"]()
    assert [prompt["waiting"] for prompt in world.prompts] == [1]
    world.gone[":other"]()
    assert world.prompts == []


def test_an_answer_to_a_request_that_is_gone_is_nobody_elses(world: World) -> None:
    is_asked(world)
    world.answer("allow")
    world.mediation.withdraw(":files", REQUEST)
    is_asked(world)


@pytest.mark.parametrize("end", [
    lambda world: world.set_state("work", CageState.STOPPED), lambda world: world.set_state("work", CageState.STOPPING),
    lambda world: world.destroy("work"),
])
def test_nothing_is_asked_for_a_cage_that_has_ended(world: World, end: Callable[[World], None]) -> None:
    """M16."""
    is_asked(world)
    end(world)
    assert world.prompts == []
    assert world.heard[-1] == (":files", "Answered", REQUEST)
    with pytest.raises((NoSuchCage, WrongState), match="the cage that asks"):
        world.confirm("vault", **HELD)


def test_a_cage_that_is_paused_meanwhile_still_waits(world: World) -> None:
    is_asked(world)
    world.set_state("work", CageState.PAUSED)
    world.set_state("vault", CageState.STOPPED)
    assert len(world.prompts) == 1


# --- other instances ---------------------------------------------------------------------------------------------
def test_a_target_that_is_made_anew_between_question_and_answer_is_another(world: World) -> None:
    """M17."""
    is_asked(world, target_uuid="uuid-vault")
    id_ = world.prompts[0]["id"]
    world.destroy("vault")
    world.create("vault", "secret", life="-2")
    with pytest.raises(NoSuchPrompt):
        world.answer("allow", id_=id_)
    assert "is not the cage that it was" in world.not_confirmed("vault", target_uuid="uuid-vault", **HELD)
    assert world.prompts == []


def test_a_target_that_is_made_anew_between_answer_and_use_is_another(world: World) -> None:
    """M17: for a core half, too, that does not say which instance it means."""
    is_asked(world)
    world.answer("allow", seconds=60)
    world.destroy("vault")
    world.create("vault", "secret", life="-2")
    assert world.asking.grants(OWNER) == []
    is_asked(world)


def test_a_source_that_is_made_anew_has_none_of_its_namesakes_answers(world: World) -> None:
    """M17."""
    is_asked(world)
    world.answer("allow", session=True)
    world.destroy("work")
    world.create("work", "public", life="-2")
    is_asked(world, source="work-2")


# --- another policy ----------------------------------------------------------------------------------------------
def test_a_policy_that_denies_meanwhile_makes_the_question_moot(world: World) -> None:
    """M18."""
    is_asked(world)
    id_ = world.prompts[0]["id"]
    world.put_in_force(rules("files.Send * work vault deny\n"))
    assert (world.prompts, world.heard[-2][1:]) == ([], ("PromptRemoved", id_, "moot"))
    assert "the rule denies it" in world.not_confirmed("vault", **HELD)


def test_a_policy_that_denies_between_answer_and_use_stands(world: World) -> None:
    """M18."""
    is_asked(world)
    world.answer("allow", session=True)
    world.put_in_force(rules("files.Send * work vault deny\n"))
    assert "the rule denies it" in world.not_confirmed("vault", **HELD)
    assert world.asking.grants(OWNER) == []
    assert world.recorded[-2][1]["why"] == "the rule that asked decides it no more"


def test_a_policy_that_allows_meanwhile_needs_no_answer(world: World) -> None:
    """M18."""
    is_asked(world)
    world.put_in_force(rules("files.Send * work vault allow\n"))
    assert world.prompts == []
    is_permitted(world)


def test_another_rule_that_asks_is_another_question(world: World) -> None:
    """M18."""
    is_asked(world)
    before = world.prompts[0]["id"]
    world.put_in_force(rules("files.Send * work vault ask max-size=1M\n"))
    is_asked(world)
    assert [prompt["id"] == before for prompt in world.prompts] == [False]


def test_the_same_rule_on_another_line_is_the_same_question(world: World) -> None:
    is_asked(world)
    before = world.prompts[0]["id"]
    world.put_in_force(rules("# a comment\n\n" + ASKING))
    world.answer("allow", id_=before)
    is_permitted(world)


# --- answers that stand ------------------------------------------------------------------------------------------
def test_an_answer_stands_for_its_time_and_no_longer(world: World) -> None:
    is_asked(world)
    world.answer("allow", seconds=60)
    (grant,) = world.asking.grants(OWNER)
    for number in range(3):
        is_permitted(world, request=f"{number:032x}", size=number)
    assert world.recorded[-1][1]["answer"] == f"grant {grant.id}"
    world.time += 59.9
    is_permitted(world)
    world.time += 0.2
    assert world.asking.grants(OWNER) == []
    is_asked(world)
    world.run_until(world.time + 2)
    assert world.recorded[-1] == ("grant-expired", {
        "cage": "work", "uuid": "uuid-work", "grant": grant.id, "service": "files.Send", "argument": "",
        "target": "vault", "answer": "allow", "rule": "test:1"})


def test_it_stands_for_that_target_and_argument_alone(world: World) -> None:
    is_asked(world)
    world.answer("allow", seconds=60)
    is_asked(world, target="peer")
    is_asked(world, argument="x", request="2" * 32)
    is_asked(world, source="peer", request="3" * 32)


def test_an_answer_that_stands_answers_what_is_open_already(world: World) -> None:
    is_asked(world, request="1" * 32)
    is_asked(world, request="2" * 32, size=2)
    world.answer("allow", seconds=60)
    assert world.prompts == []
    assert world.heard[-1] == (":files", "Answered", "2" * 32)
    is_permitted(world, request="2" * 32, size=2)


def test_no_stands_too_and_is_heard_before_anything_is_read(world: World) -> None:
    is_asked(world)
    world.answer("deny", seconds=60)
    assert world.not_confirmed("vault", **HELD) == STANDS_NO
    assert world.refused("vault") == STANDS_NO
    assert world.decide("peer").decision.action is Action.ASK
    world.time += 60
    assert world.decide("vault").decision.action is Action.ASK


def test_a_session_ends_with_the_source(world: World) -> None:
    is_asked(world)
    world.answer("allow", session=True)
    world.time += 10 * GRANT_SECONDS_MAX
    is_permitted(world)
    world.set_state("vault", CageState.STOPPED)
    world.set_state("work", CageState.PAUSED)
    assert len(world.asking.grants(OWNER)) == 1
    world.set_state("work", CageState.STOPPED)
    assert world.asking.grants(OWNER) == []
    assert world.recorded[-1][1]["why"] == "work has stopped"


def test_a_time_goes_on_when_the_source_is_started_anew(world: World) -> None:
    is_asked(world)
    world.answer("allow", seconds=60)
    world.set_state("work", CageState.STOPPED)
    world.set_state("work", CageState.RUNNING)
    is_permitted(world)


def test_for_is_how_long_it_stands_and_the_most(start: Callable[..., World]) -> None:
    world = start(stands=600)
    is_asked(world)
    assert world.prompts[0]["for"] == 600
    for given in ({"seconds": 601}, {"session": True}):
        with pytest.raises(UsageError, match="600 s"):
            world.answer("allow", **given)
    world.answer("allow")
    assert [world.asking.left(grant) for grant in world.asking.grants(OWNER)] == [600]
    world.time += 600
    is_asked(world)
    world.answer("allow", seconds=0)
    is_permitted(world)
    is_asked(world)
    world.answer("deny")
    assert world.not_confirmed("vault", **HELD) == SAID_NO
    is_asked(world)


def test_what_is_revoked_stands_no_more(world: World) -> None:
    is_asked(world)
    world.answer("allow", seconds=60)
    (grant,) = world.asking.grants(OWNER)
    with pytest.raises(NoSuchGrant):
        world.asking.revoke(grant.id, STRANGER)
    world.asking.revoke(grant.id, ROOT)
    assert world.recorded[-1][1]["why"] == "a person revoked it"
    is_asked(world)
    with pytest.raises(NoSuchGrant, match="no standing answer"):
        world.asking.revoke(grant.id, OWNER)


def test_a_revocation_that_cannot_be_recorded_does_not_happen(world: World) -> None:
    is_asked(world)
    world.answer("allow", seconds=60)
    (grant,) = world.asking.grants(OWNER)
    world.full = True
    with pytest.raises(RuntimeFailure):
        world.asking.revoke(grant.id, OWNER)
    assert len(world.asking.grants(OWNER)) == 1


def test_a_cage_has_some_answers_standing_and_not_any_number(world: World) -> None:
    for number in range(GRANTS_PER_CAGE):
        is_asked(world, argument=f"a{number}")
        world.answer("deny", seconds=60)
    is_asked(world, argument="more")
    with pytest.raises(RuntimeFailure, match="64 answers to this cage stand already"):
        world.answer("allow", seconds=60)
    world.answer("allow")
    is_permitted(world, argument="more")


# --- another caged -----------------------------------------------------------------------------------------------
def test_what_stands_stands_for_the_next_caged_and_what_is_open_does_not(world: World) -> None:
    is_asked(world)
    world.answer("allow", seconds=60)
    is_asked(world, target="peer")
    world.time += 30
    world.begin()
    assert world.prompts == []
    is_permitted(world)
    world.run_until(world.time + 31)
    assert world.recorded[-1][0] == "grant-expired"
    is_asked(world)


def test_what_ended_while_no_caged_ran_stands_no_more(world: World) -> None:
    for target, given in (("vault", {"session": True}), ("peer", {"seconds": 60})):
        is_asked(world, target=target)
        world.answer("allow", **given)
    world.known["work"].state = CageState.STOPPED
    del world.known["peer"]
    world.begin()
    assert world.asking.grants(OWNER) == []


def test_what_the_policy_of_the_next_caged_decides_otherwise_stands_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_asked(world)
    world.answer("allow", seconds=60)
    from cage_runtime.daemon import mediation

    monkeypatch.setattr(mediation, "load_or_refuse", lambda *_: rules("files.Send * work vault deny\n"))
    world.begin()
    assert "the rule denies it" in world.not_confirmed("vault", **HELD)


@pytest.mark.parametrize("text", [b"", b"{", b'{"boot": "this-boot", "grants": [{"id": 3}]}', b'{"boot": 1}'])
def test_a_list_that_is_of_no_use_is_none(world: World, text: bytes) -> None:
    is_asked(world)
    world.answer("allow", seconds=60)
    (world.tmp_path / "grants.json").write_bytes(text)
    world.begin()
    is_asked(world)


def test_a_list_of_another_boot_is_none(world: World) -> None:
    is_asked(world)
    world.answer("allow", seconds=60)
    file = world.tmp_path / "grants.json"
    file.write_text(file.read_text().replace("this-boot", "that-boot"))
    world.begin()
    is_asked(world)


def test_what_was_revoked_does_not_come_back_where_the_list_cannot_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_asked(world)
    world.answer("allow", seconds=60)

    def full(_path: Path, _text: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    world.asking.revoke(world.asking.grants(OWNER)[0].id, OWNER)
    assert not (world.tmp_path / "grants.json").exists()


# --- notify= -----------------------------------------------------------------------------------------------------
def test_a_rule_that_says_notify_has_the_person_told_of_what_came_of_it(start: Callable[..., World]) -> None:
    world = start(notify=True)
    world.decide("vault")
    is_asked(world)
    world.answer("allow")
    is_permitted(world)
    is_asked(world)
    world.answer("deny")
    world.not_confirmed("vault", **HELD)
    told = [{key: variant.value for key, variant in about.items()}
            for _, member, about, *_ in world.heard if member == "Notified"]
    assert told == [{
        "kind": "decision", "action": action, "source": "work", "source-level": "public", "source-colour": "#2e7d32",
        "service": "files.Send", "argument": "", "target": "vault", "rule": "test:1"} for action in ("allow", "deny")]


# --- limit= ------------------------------------------------------------------------------------------------------
def test_a_rules_limit_is_counted_for_each_source_and_service(start: Callable[..., World]) -> None:
    world = start("files.Send * * vault allow\n", limit=Limit(count=3, seconds=60.0))
    for _ in range(3):
        world.decide("vault")
    assert world.refused("vault") == (
        "files.Send to \"vault\" is refused: the rule's limit= lets it be used no more just now; try again later")
    world.decide("vault", source="peer")
    world.time += 20
    world.decide("vault")
    assert "limit=" in world.refused("vault")
    with pytest.raises(TooOften):
        world.decide("vault")
    assert world.refused("nobody") != world.refused("vault")


def test_what_is_denied_takes_nothing_of_a_limit(start: Callable[..., World]) -> None:
    world = start("files.Send * * vault ask\n", limit=Limit(count=1, seconds=60.0))
    is_asked(world)
    world.answer("deny", seconds=60)
    for _ in range(5):
        assert world.refused("vault") == STANDS_NO
    world.time += 60
    world.decide("vault")


def test_a_cage_that_is_gone_is_not_counted_any_more(start: Callable[..., World]) -> None:
    world = start("files.Send * * vault allow\n", limit=Limit(count=1, seconds=60.0))
    world.decide("vault")
    world.decide("vault", source="peer")
    world.destroy("work")
    assert [key[0] for key in world.mediation._limits._buckets] == ["uuid-peer"]
