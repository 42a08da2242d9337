# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table of what each method needs, the bus interface, the bus policy and polkit's actions say the same."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from cage_runtime.config import Users
from cage_runtime.daemon.rights import OWNERS, PRIVATE, RIGHTS, About, Does
from cage_runtime.model import CORE_BUS_NAME

TOP = Path(__file__).parents[4]
DESCRIPTION = ET.parse(TOP / f"cage_runtime/resources/{CORE_BUS_NAME}.xml")
POLKIT = ET.parse(TOP / f"policies/polkit/{CORE_BUS_NAME}.policy").getroot()
ACTIONS = {action.attrib["id"]: action for action in POLKIT.findall("action")}
READING = {"Status", "Show", "Logs", "ListApplications", "ExplainPolicy", "List", "Doctor", "Graph", "ListRemotes",
           "ListPrompts", "ListGrants", "RegisterAgent", "AuditKey"}
"""Methods that change nothing and whose answers are one's own, or no secret."""
DEFAULTS = ("allow_any", "allow_inactive", "allow_active")
OWN = ("auth_self_keep",) * 3
ANSWERING = {"AnswerPrompt", "RevokeGrant"}
"""What a person does at once on the console, or not at all."""
CLICKING = {"NotificationAction"}
"""What a desktop does by itself, when a notification has been there for long enough."""
ADMINISTRATOR = ("auth_admin", "auth_admin", "auth_admin_keep")


def methods() -> dict[str, list[str]]:
    """Of the manager: each method's arguments."""
    manager = DESCRIPTION.find(f"interface[@name='{CORE_BUS_NAME}.Manager']")
    assert manager is not None
    return {method.attrib["name"]: [argument.attrib["name"] for argument in method.findall("arg[@direction='in']")]
            for method in manager.findall("method")}


def defaults(action: str) -> tuple[str, ...]:
    return tuple(ACTIONS[action].findtext(f"defaults/{name}", "") for name in DEFAULTS)


def test_no_method_is_without_an_action_and_no_action_without_a_method() -> None:
    assert RIGHTS.keys() == methods().keys()
    assert ACTIONS.keys() == {action for right in RIGHTS.values() for action in right.actions}


@pytest.mark.parametrize("member", RIGHTS)
def test_what_a_method_is_about_is_what_its_arguments_name(member: str) -> None:
    arguments = methods()[member]
    first = {About.NEW: "name", About.CAGE: "name", About.PAIR: "source", About.ALL: "options"}
    assert arguments[0] == first.get(RIGHTS[member].about, arguments[0])
    assert RIGHTS[member].about is not About.HOST or "name" not in arguments
    assert RIGHTS[member].about is not About.PAIR or arguments[3] == "target"


@pytest.mark.parametrize("member", RIGHTS)
def test_who_may_by_default(member: str) -> None:
    right = RIGHTS[member]
    changing = ADMINISTRATOR if right.about is About.HOST else OWN
    if member in ANSWERING:
        changing = (*OWN[:2], "yes")
    assert defaults(right.action) == (("yes",) * 3 if member in READING | CLICKING else changing)
    for action in right.actions[1:]:
        assert defaults(action) == ADMINISTRATOR


@pytest.mark.parametrize("action", ACTIONS)
def test_polkit_can_read_the_action_and_caged_may_ask_about_it(action: str) -> None:
    """The order of elements is the DTD's; the owner lets one who is not root ask about others, and give details."""
    element = ACTIONS[action]
    assert [child.tag for child in element] == ["description", "message", "defaults", "annotate"]
    assert all("".join(child.itertext()).strip() for child in element)
    assert re.fullmatch(r"org(\.[A-Za-z0-9]+)+\.[a-z-]+", action)
    owner = element.find("annotate[@key='org.freedesktop.policykit.owner']")
    assert owner is not None
    assert owner.text == f"unix-user:{Users().caged}"


def test_a_question_shows_of_a_cage_what_the_person_has_typed_and_no_more() -> None:
    for right in RIGHTS.values():
        shown = {"cage"} if right.about in (About.NEW, About.CAGE, About.PAIR) else set()
        for action in right.actions:
            message = ACTIONS[action].findtext("message", "")
            assert set(re.findall(r"\$\(([^)]*)\)", message)) == shown, action


# --- the bus -----------------------------------------------------------------------------------------------------
STANDARD = {"Introspectable": {"Introspect"}, "ObjectManager": {"GetManagedObjects"}, "Peer": {"Ping"},
            "Properties": {"Get", "GetAll"}}


def members(interface: str) -> set[tuple[str, str]]:
    name = f"{CORE_BUS_NAME}.{interface}"
    return {(name, method.attrib["name"]) for method in DESCRIPTION.findall(f"interface[@name='{name}']/method")}


def test_the_bus_lets_everybody_call_what_is_decided_again_and_mediators_the_rest() -> None:
    policy = ET.parse(TOP / f"policies/dbus/{CORE_BUS_NAME}.conf")
    allowed = {(policy_.get("context") or policy_.get("user") or policy_.get("group"), rule.get("send_interface"),
                rule.get("send_member"))
               for policy_ in policy.findall("policy") for rule in policy_.findall("allow[@send_destination]")
               if policy_.get("user") != "root" and policy_.get("group") != Users().watch}
    standard = {(f"org.freedesktop.DBus.{name}", member) for name, of in STANDARD.items() for member in of}
    expected = {("default", *member) for member in members("Manager") | members("Job") | standard}
    assert allowed == expected | {(Users().gateways, *member) for member in members("Mediation")}


def test_every_method_has_a_class_and_what_tells_of_something_is_all_that_the_bus_lets_a_watcher_call() -> None:
    told = {member for member, right in RIGHTS.items() if right.does is Does.TELLS}
    shown = {"Logs", "ListPrompts", "RegisterAgent"}
    host = {"CheckPolicy", "ProvePolicy", "SimulatePolicy", "DiffPolicy", "TailAudit", "VerifyAudit"}
    assert told == (READING | host) - shown
    assert {member for member, right in RIGHTS.items() if right.does is Does.SHOWS} == shown
    assert all(right.recorded is (right.does is Does.CHANGES) for right in RIGHTS.values())
    policy = ET.parse(TOP / f"policies/dbus/{CORE_BUS_NAME}.conf").find(f"policy[@group='{Users().watch}']")
    assert policy is not None
    first, *rules = policy
    assert (first.tag, first.attrib) == ("deny", {"send_destination": CORE_BUS_NAME})
    allowed = {(rule.get("send_interface"), rule.get("send_member")) for rule in rules if rule.get("send_destination")}
    standard = {(f"org.freedesktop.DBus.{name}", member) for name, of in STANDARD.items() for member in of}
    assert allowed == standard | {(f"{CORE_BUS_NAME}.Manager", member) for member in told}
    assert {rule.get("receive_interface") for rule in rules} - {None} == {
        f"{CORE_BUS_NAME}.Manager", "org.freedesktop.DBus.ObjectManager", "org.freedesktop.DBus.Properties"}


def test_what_looks_into_a_private_cage_is_all_that_starts_something_in_it_or_shows_what_came_of_it() -> None:
    of_cages = {member: right for member, right in RIGHTS.items() if right.about is About.CAGE}
    assert {member for member, right in of_cages.items() if right.does is Does.SHOWS} | {
        "Enter", "CopyIn", "CopyOut"} == PRIVATE
    assert {"Run"} == OWNERS


def test_the_example_of_rules_speaks_of_actions_that_there_are() -> None:
    text = (TOP / "policies/examples/50-cage-runtime.rules").read_text()
    whole = set(re.findall(rf"\"({re.escape(CORE_BUS_NAME)}\.[a-z-]+)\"", text))
    (own,) = re.findall(r"var own = \[([^\]]*)\]", text)
    verbs = {f"{CORE_BUS_NAME}.{verb}" for verb in re.findall(r'"([a-z-]+)"', own)}
    assert whole
    assert verbs
    assert whole | verbs <= ACTIONS.keys()
    assert set(re.findall(r'lookup\("(\w+)"\)', text)) <= {"cage", "level", "owner"}
