# SPDX-License-Identifier: LGPL-2.1-or-later
"""Manifests of mediators: what is one, what is none and why, whose counts, and that ours say what their folders are."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime import generate, manifest
from cage_runtime.config import Paths
from cage_runtime.errors import DefinitionError
from cage_runtime.manifest import Delivery, Mediator
from cage_runtime.model import MEDIATOR_DESCRIPTORS_MAX, MEDIATOR_METHODS_MAX, MEDIATORS_MAX, ServiceKind

TOP = Path(__file__).parents[3]
LEAST = 'description = "x"\nmethods = ["Use"]\n[services."thing.Use"]\n'
WHOLE = """description = "things"
methods = ["Use", "Drop"]
descriptors = 2
delivery = "delivery"
folder = "things"
[services."thing.Use"]
one-way = true
parameters = ["max-size", "types"]
[services."thing.*"]
"""


def parse(text: str, name: str = "thing") -> Mediator:
    return manifest.parse(text, name, "thing.toml")


def changed(old: str, new: str) -> str:
    assert old in WHOLE
    return WHOLE.replace(old, new, 1)


def test_a_manifest_says_all_that_there_is_to_know() -> None:
    assert parse(WHOLE) == Mediator(
        name="thing", description="things", methods=("Use", "Drop"), descriptors=2, delivery=Delivery.DELIVERY,
        folder="things", jobs=False, services={
            "thing.Use": ServiceKind(one_way=True, parameters=frozenset({"max-size", "types"})),
            "thing.*": ServiceKind(one_way=False, parameters=frozenset()),
        })
    assert (parse(WHOLE).bus_name, parse(WHOLE).path) == ("org.cageruntime.Thing1", "/org/cageruntime/Thing1")


def test_it_says_whether_what_is_under_way_are_objects() -> None:
    assert parse(changed('folder = "things"', "jobs = true")).jobs is True


def test_what_is_missing_is_the_least() -> None:
    least = parse(LEAST)
    assert (least.descriptors, least.delivery, least.folder, least.jobs) == (0, Delivery.NONE, None, False)
    assert least.services == {"thing.Use": ServiceKind(one_way=False, parameters=frozenset())}


def test_a_service_may_look_before_anybody_is_asked() -> None:
    services = parse(changed("one-way = true", "looks-first = true")).services
    assert [services[name].looks_first for name in ("thing.Use", "thing.*")] == [True, False]


BAD: dict[str, tuple[str, str]] = {
    "nothing": ("", 'thing.toml:1: the key "description" is missing'),
    "no TOML": ("x", "thing.toml:1: not TOML"),
    "an unknown key": (changed("descriptors = 2", "descriptor = 2"), 'thing.toml:3: unknown key "descriptor"'),
    "an unknown key of a service": (changed("one-way", "oneway"),
                                    'thing.toml:6: services."thing.Use": unknown option "oneway"'),
    "no methods": (changed('["Use", "Drop"]', "[]"), "methods: must have at least 1 entries"),
    "a method that is no member": (changed('"Drop"', '"drop"'), "a method's name"),
    "a method that is XML": (changed('"Drop"', "'A\"/><allow own=\"*'"), "a method's name"),
    "a method twice": (changed('"Drop"', '"Use"'), '"Use" is there twice'),
    "too many methods": (changed('["Use", "Drop"]', str([f"M{n}" for n in range(MEDIATOR_METHODS_MAX + 1)])),
                         f"at most {MEDIATOR_METHODS_MAX} entries"),
    "negative descriptors": (changed("= 2", "= -1"), "descriptors: must be at least 0"),
    "too many descriptors": (changed("= 2", f"= {MEDIATOR_DESCRIPTORS_MAX + 1}"), "descriptors: must be at most"),
    "another delivery": (changed('"delivery"\n', '"root"\n'), "delivery: must be"),
    "a path for a folder": (changed('folder = "things"', 'folder = "../x"'), "folder: must be 1 to 30 of a-z"),
    "an empty folder": (changed('folder = "things"', 'folder = ""'), "folder: must be 1 to 30 of a-z"),
    "no services": ('description = "x"\nmethods = ["Use"]\n[services]\n', "services"),
    "another's service": (changed('"thing.Use"', '"files.Send"'), 'services."files.Send": not a service of thing'),
    "a service of all": (changed('"thing.*"', '"*"'), 'services."*": not a service of thing'),
    "a service without a name": (changed('"thing.*"', '"thing."'), 'services."thing.": not a service of thing'),
    "a family below a family": (changed('"thing.*"', '"thing.*.x"'), "not a service of thing"),
    "an escape in a service": (changed('"thing.*"', '"thing.\\u001b"'),
                               'services."thing.\\x1b": not a service of thing'),
    "nobody who could look first": (
        changed("one-way = true", "looks-first = true").replace('delivery = "delivery"\n', ""),
        'services."thing.Use": looks-first: there is no delivery half that could'),
    "an unknown parameter": (changed('"types"', '"declassify"'), 'services."thing.Use": parameters[1]: must be'),
    "a parameter twice": (changed('"types"', '"max-size"'), '"max-size" is there twice'),
    "an empty description": (changed('"things"', '""'), "description: must have at least 1 characters"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_none_is_refused_with_its_place(case: str) -> None:
    text, why = BAD[case]
    with pytest.raises(DefinitionError) as refused:
        parse(text)
    assert why in refused.value.sentence
    assert refused.value.sentence.startswith("thing.toml:")


@given(st.text(max_size=300))
def test_any_text_is_a_manifest_or_a_refusal(text: str) -> None:
    try:
        assert parse(text).methods
    except DefinitionError as error:
        told = error.sentence
    else:
        told = "thing.toml:"
    assert told.startswith("thing.toml:")


# --- whose counts ------------------------------------------------------------------------------------------------
class Host:
    def __init__(self, top: Path) -> None:
        self.paths = Paths(shipped=str(top / "shipped"), administrator=str(top / "etc"))
        for directory in ("shipped", "etc"):
            (top / directory / "mediators.d").mkdir(parents=True)
        self.shipped, self.etc = (top / "shipped/mediators.d", top / "etc/mediators.d")

    def names(self) -> list[str]:
        return [mediator.name for mediator in manifest.load(self.paths)]

    def refusal(self) -> str:
        with pytest.raises(DefinitionError) as refused:
            manifest.load(self.paths)
        return refused.value.sentence


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(tmp_path)
    for name in ("thing", "other"):
        (made.shipped / f"{name}.toml").write_text(LEAST.replace("thing", name))
    return made


def test_mediators_are_those_that_are_delivered(host: Host) -> None:
    (host.shipped / "README").write_text("no manifest")
    (host.shipped / ".thing.toml.swp").write_text("an editor's")
    assert host.names() == ["other", "thing"]
    assert set(manifest.service_kinds(host.paths)) == {"other.Use", "thing.Use"}


def test_the_administrator_s_counts_and_a_link_to_nothing_disables(host: Host) -> None:
    (host.etc / "thing.toml").write_text(WHOLE)
    (host.etc / "other.toml").symlink_to(os.devnull)
    (found,) = manifest.load(host.paths)
    assert found.description == "things"


def test_the_administrator_names_none_that_is_not_there(host: Host) -> None:
    (host.etc / "further.toml").write_text(LEAST.replace("thing", "further"))
    assert host.refusal() == f'{host.etc}/further.toml:1: there is no mediator "further"'


@pytest.mark.parametrize("name", [
    "Thing.toml", "a-b.toml", "thing2.toml", f"{'a' * 21}.toml", "th\u00efng.toml", "x\x1b.toml",
])
def test_a_file_of_another_name_is_told(host: Host, name: str) -> None:
    (host.shipped / name).write_text(LEAST)
    assert "a manifest is named NAME.toml" in host.refusal()
    assert "\x1b" not in host.refusal()


def test_no_two_have_one_folder_and_none_has_one_of_the_core(host: Host) -> None:
    (host.shipped / "thing.toml").write_text(WHOLE)
    (host.shipped / "other.toml").write_text(WHOLE.replace("thing.", "other."))
    assert 'the folder "things" belongs to other' in host.refusal()
    (host.shipped / "other.toml").write_text(WHOLE.replace("thing.", "other.").replace('"things"\n[', '"cages"\n['))
    assert 'the folder "cages" belongs to the core' in host.refusal()


def test_they_have_a_bound(host: Host) -> None:
    for number in range(MEDIATORS_MAX):
        name = f"m{chr(97 + number // 26)}{chr(97 + number % 26)}"
        (host.shipped / f"{name}.toml").write_text(LEAST.replace("thing", name))
    assert f"more than {MEDIATORS_MAX} mediators" in host.refusal()


def test_one_that_is_too_long_or_no_text_is_told(host: Host) -> None:
    (host.etc / "thing.toml").write_bytes(b"#" * (64 * 1024 + 1))
    assert "more than 65536 bytes" in host.refusal()
    (host.etc / "thing.toml").write_bytes(b"\xff")
    assert "not UTF-8" in host.refusal()


# --- ours --------------------------------------------------------------------------------------------------------
OURS = manifest.load(Paths(shipped=str(TOP / "policies"), administrator="/nonexistent"))


def test_each_folder_has_its_manifest_and_each_manifest_its_folder() -> None:
    folders = {path.parent.name for path in (TOP / "mediators").glob("*/__init__.py")}
    assert {mediator.name for mediator in OURS} == folders


@pytest.mark.parametrize("mediator", OURS, ids=lambda mediator: mediator.name)
def test_a_manifest_says_what_its_folder_is(mediator: Mediator) -> None:
    folder = TOP / "mediators" / mediator.name
    interface, *of_jobs = ET.parse(folder / "interface.xml").getroot().findall("interface")
    assert interface.attrib["name"] == mediator.bus_name
    assert [it.attrib["name"] for it in of_jobs] == ([f"{mediator.bus_name}.Job"] if mediator.jobs else [])
    listing = {"ListJobs"} if mediator.jobs else set[str]()
    assert {method.attrib["name"] for method in interface.findall("method")} == set(mediator.methods) | listing
    for method in interface.findall("method"):
        for direction in ("in", "out"):
            types = [arg.attrib["type"] for arg in method.findall("arg") if arg.attrib["direction"] == direction]
            assert "".join(types).count("h") <= mediator.descriptors
    halves = {"core", "cage"} | ({"deliver"} if mediator.delivery is not Delivery.NONE else set())
    for half in halves:
        names = {node.name for node in ast.parse((folder / f"{half}.py").read_text()).body
                 if isinstance(node, ast.FunctionDef)}
        assert "run" in names, half
    assert (folder / "deliver.py").exists() is (mediator.delivery is not Delivery.NONE)


# --- what follows ------------------------------------------------------------------------------------------------
GATEWAY = (TOP / "policies/gateway/bus.conf.in").read_text()
CAGE_BUS = (TOP / "policies/cage-bus/bus.conf.in").read_text()


def gateway(*mediators: Mediator) -> ET.Element:
    return ET.fromstring(generate.gateway_bus(GATEWAY, mediators, lambda name: f"cage-{name}"))


def limit(bus: ET.Element, name: str) -> int:
    return int(str(bus.findtext(f"limit[@name='{name}']")))


def test_each_core_half_has_its_own_name_and_no_other() -> None:
    policies = {policy.get("user"): policy for policy in gateway(*OURS).findall("policy") if policy.get("user")}
    assert set(policies) == {f"cage-{mediator.name}" for mediator in OURS}
    for mediator in OURS:
        rules = policies[f"cage-{mediator.name}"]
        assert [rule.attrib["own"] for rule in rules.findall("allow[@own]")] == [mediator.bus_name]
        received = [rule.attrib["receive_interface"] for rule in rules.findall("allow[@receive_interface]")]
        assert received == [mediator.bus_name]
        assert rules[0].attrib == {"send_type": "method_call"}
        assert rules[0].tag == "deny"
        called = {rule.attrib["send_destination"] for rule in rules.findall("allow[@send_destination]")}
        assert called == {"org.freedesktop.DBus"}


@pytest.mark.parametrize("bus", ["gateway", "cage"])
def test_a_cage_may_call_what_the_manifests_name_and_nothing_more(bus: str) -> None:
    text = generate.gateway_bus(GATEWAY, OURS, str) if bus == "gateway" else generate.cage_bus(CAGE_BUS, OURS)
    default = ET.fromstring(text).find("policy[@context='default']")
    assert default is not None
    allowed = {(rule.attrib["send_destination"], rule.get("send_path"), rule.attrib["send_interface"],
                rule.attrib["send_member"]) for rule in default.findall("allow[@send_destination]")}
    ours = {rule for rule in allowed if rule[0] != "org.freedesktop.DBus"}
    of_jobs = {rule for it in OURS if it.jobs and bus == "cage" for rule in (
        (it.bus_name, it.path, it.bus_name, "ListJobs"), (it.bus_name, None, f"{it.bus_name}.Job", "Cancel"),
        (it.bus_name, None, "org.freedesktop.DBus.Properties", "Get"),
        (it.bus_name, None, "org.freedesktop.DBus.Properties", "GetAll"))}
    assert ours == {(it.bus_name, it.path, it.bus_name, method) for it in OURS for method in it.methods} | of_jobs
    assert "@" not in text.replace("@ signs", "")


def test_the_bounds_of_a_gateway_s_bus_fit_all_mediators_together() -> None:
    for few in (OURS[:1], OURS):
        bus = gateway(*few)
        # For each: the core half, the cage half and 8 calls; and a cage half that is ending with its own.
        assert limit(bus, "max_completed_connections") >= len(few) * (2 + 8) + 9
        assert limit(bus, "max_message_unix_fds") == max(it.descriptors for it in few)
        assert limit(bus, "max_message_unix_fds") <= limit(bus, "max_incoming_unix_fds")
    # dbus-daemon has 1024 descriptors (spawner/child.py).
    most = generate.CONNECTIONS + generate.CONNECTIONS_EACH * MEDIATORS_MAX
    assert most + limit(bus, "max_incoming_unix_fds") < 1024


def test_without_any_mediator_nobody_may_anything() -> None:
    bus = gateway()
    assert [policy.get("user") for policy in bus.findall("policy")] == [None]
    assert bus.find("policy/allow[@own]") is None


def test_what_a_host_needs_follows_from_the_names() -> None:
    thing = parse(WHOLE)
    assert generate.sysusers(["thing"]) == (
        'u cage-thing - "Cage runtime mediator of thing" / /usr/sbin/nologin\nm cage-thing cage-gateways\n')
    assert generate.tmpfiles([thing, parse(LEAST)]) == "d /var/lib/cage-runtime/things 0700 cage-thing cage-thing -\n"
    assert generate.drop_in(parse(LEAST)) is None
    assert "ReadWritePaths=/var/lib/cage-runtime/things\n" in str(generate.drop_in(thing))
    assert "Exec=/opt/cage-runtime/bin/cage-mediator thing --cage\n" in generate.activation(thing)
