# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the units, the system users, the bus policy and the project say of the same things is the same."""

from __future__ import annotations

import configparser
import tomllib
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

from cage_runtime import generate, manifest
from cage_runtime.config import Paths, Users

TOP = Path(__file__).parents[2]
UNITS = {path.name: path for path in (TOP / "systemd").glob("*.service")}
PROGRAMS = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["scripts"]
MEDIATORS = manifest.load(Paths(shipped=str(TOP / "policies"), administrator="/nonexistent"))
GENERATED = {
    "cage-runtime.sysusers.conf": generate.sysusers(mediator.name for mediator in MEDIATORS),
    "cage-runtime.tmpfiles.conf": generate.tmpfiles(MEDIATORS),
}
"""What scripts/stage adds to these files."""
OF_MEDIATORS = {Users().mediator(mediator.name) for mediator in MEDIATORS}
USERS = set(msgspec.structs.asdict(Users()).values()) - {Users().mediators} | OF_MEDIATORS


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(TOP / "systemd" / name)
    return parser


def declared(file: str) -> list[list[str]]:
    """The lines of a sysusers.d or tmpfiles.d file, as words."""
    lines = ((TOP / "systemd" / file).read_text() + GENERATED[file]).splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


def bus_policy(name: str) -> ET.Element:
    return ET.parse(TOP / "policies/dbus" / f"{name}.conf").getroot()


def test_the_system_users_are_those_of_the_configuration() -> None:
    assert {words[1] for words in declared("cage-runtime.sysusers.conf")} == USERS


def test_folders_are_where_the_configuration_looks_and_belong_to_its_users() -> None:
    folders = declared("cage-runtime.tmpfiles.conf")
    assert {Paths().run, Paths().state} <= {words[1] for words in folders}
    assert all(words[1].startswith((Paths().run, Paths().state)) for words in folders)
    assert {words[3] for words in folders} <= USERS | {"root"}


@pytest.mark.parametrize("name", UNITS)
def test_units_start_installed_programs_as_the_configured_users(name: str) -> None:
    service = unit(name)["Service"]
    program = Path(service["ExecStart"].split()[0])
    assert program.parent == Path(Paths().runtime, "bin")
    assert program.name in PROGRAMS
    expected = {"cage-spawner.service": "root", "cage-mediator@.service": "cage-%i"}
    user = service.get("User", "root")
    assert user == expected.get(name, user)
    assert user in USERS | set(expected.values())


def test_a_restart_of_one_process_is_a_restart_of_no_other() -> None:
    for name in UNITS:
        tied = {word for key in ("Requires", "BindsTo", "PartOf") for word in unit(name)["Unit"].get(key, "").split()}
        assert tied <= {"dbus.socket", "cage-spawner.socket"}


def test_what_runs_for_caged_runs_as_long_as_caged() -> None:
    """Mediators by way of their target, which scripts/stage lets each of them be wanted by."""
    wanted = set(unit("caged.service")["Unit"]["Wants"].split())
    assert wanted == UNITS.keys() - {"caged.service", "cage-mediator@.service"} | {
        "cage-spawner.socket", "cage-mediators.target"}
    assert {unit(name)["Unit"]["StopWhenUnneeded"] for name in wanted | {"cage-mediator@.service"}} == {"yes"}


def test_the_spawner_s_socket_is_where_caged_connects_and_caged_s_alone() -> None:
    listener = unit("cage-spawner.socket")["Socket"]
    assert listener["ListenSequentialPacket"] == f"{Paths().run}/spawner.sock"
    assert (listener["SocketUser"], listener["SocketMode"]) == (Users().caged, "0600")


def test_the_preset_enables_what_can_be_enabled() -> None:
    preset = (TOP / "systemd/90-cage-runtime.preset").read_text().splitlines()
    enabled = {line.removeprefix("enable ") for line in preset if line.startswith("enable ")}
    units = [path.name for kind in ("service", "socket", "slice") for path in (TOP / "systemd").glob(f"*.{kind}")]
    assert enabled == {name for name in units if unit(name).has_section("Install")}


@pytest.mark.parametrize("name", UNITS)
def test_a_failed_process_comes_back(name: str) -> None:
    assert unit(name)["Service"]["Restart"] == "on-failure"


@pytest.mark.parametrize(
    ("name", "owner", "callers"),
    [
        ("org.cageruntime.Core1", Users().caged, {None, "root", Users().gateways}),
        ("org.cageruntime.Apps1", Users().apps, {Users().caged}),
    ],
)
def test_the_bus_denies_by_default(name: str, owner: str, callers: set[str | None]) -> None:
    """What is allowed to everybody (no user) comes after, each member by its name; test_rights.py knows which."""
    policy = bus_policy(name)
    default = policy.findall("policy[@context='default']/*")
    denied = [(rule.tag, *rule.attrib.items()) for rule in default if rule.tag == "deny"]
    assert [rule.tag for rule in default] == sorted((rule.tag for rule in default), reverse=True)
    assert set(denied) - {("deny", ("receive_sender", name), ("receive_type", "signal"))} == {
        ("deny", ("own", name)),
        ("deny", ("send_destination", name)),
    }
    for rule in policy.findall("policy[@context='default']/allow"):
        assert set(rule.attrib) in ({"send_destination", "send_interface", "send_member"},
                                    {"receive_sender", "receive_type", "receive_interface", "receive_member"})
    owners = {each.get("user") for each in policy.findall("policy") if each.find(f"allow[@own='{name}']") is not None}
    assert owners == {owner}
    named = [each for each in policy.findall("policy") if each.find("allow[@send_destination]") is not None]
    allowed = {each.get("user") or each.get("group") for each in named if each.get("group") != Users().watch}
    assert allowed == callers
