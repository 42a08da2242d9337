# SPDX-License-Identifier: LGPL-2.1-or-later
"""The manual pages name every flag and every key that there is, and none that there is not."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
import types
from pathlib import Path
from typing import Literal, get_args
from xml.etree import ElementTree as ET

import msgspec
import pytest

from cage_runtime import errors
from cage_runtime.audit.journal import FIELDS, MESSAGES, UNTOLD
from cage_runtime.cli import cagectl, incage
from cage_runtime.cli.command import Program
from cage_runtime.cli.parser import Parser
from cage_runtime.config import Definition, Paths, RuntimeConfig, load_levels, parse_definition, parse_table
from cage_runtime.daemon import main as caged
from cage_runtime.daemon.asking import AnswerOptions
from cage_runtime.daemon.copies import CopyOptions
from cage_runtime.daemon.define import CreateOptions
from cage_runtime.daemon.options import NoOptions
from cage_runtime.daemon.proof_service import DiffOptions
from cage_runtime.daemon.service import InstallOptions, TailOptions
from cage_runtime.daemon.sessions import SessionOptions
from cage_runtime.manifest import service_kinds
from cage_runtime.model import (
    POLICY_FILES_MAX,
    POLICY_INCLUDE_DEPTH,
    POLICY_SECONDS_MAX,
    POLICY_TOTAL_BYTES_MAX,
    TAGS_MAX,
    Action,
    Direction,
    Logged,
    Parameters,
)
from cage_runtime.policy.parser import kind_of, parse
from cage_runtime.policy.rule import AnyCage, Core, Default, Disposable, Relation, SameOwner
from tests import pages

TOP = Path(caged.__file__).parents[2]
PAGES = Path(caged.__file__).parents[1] / "resources/man"


def page(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


def example(name: str) -> str:
    """The last that is set off in a page, as it is read."""
    return str(re.findall(r"\.Bd -literal -offset indent\n(.*?)\.Ed", page(name), re.DOTALL)[-1])


def flags_in(text: str) -> set[str]:
    """The flags of an mdoc page: `Fl -level` is --level, and `Fl h , -help` is two."""
    found = re.findall(r"\bFl (-?[a-z][a-z-]*(?: , -[a-z][a-z-]*)*)", text)
    return {f"-{word}" for group in found for word in group.split(" , ")}


def flags_of(program: Program) -> set[str]:
    flags = {"--version"}
    for verb, (module, _) in program.verbs.items():
        parser = Parser(prog=verb, description="", asks=program.asks)
        importlib.import_module(f"cage_runtime.cli.{module}").VERBS[verb][0](parser)
        flags |= set(parser._option_string_actions)
    return flags


@pytest.mark.parametrize("program", [cagectl.PROGRAM, incage.PROGRAM], ids=lambda program: program.name)
def test_a_programs_page_has_its_commands_and_flags(program: Program) -> None:
    text = page(f"{program.name}.1")
    for verb in program.verbs:
        assert re.search(rf"\bCm {verb}\b", text), verb
    assert flags_in(text) == flags_of(program)


def test_cageds_page_has_its_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["caged", "--help"])
    with pytest.raises(SystemExit):
        caged.main()
    assert flags_in(page("caged.8")) == set(re.findall(r"(?<![a-z-])--?[a-z][a-z-]*", capsys.readouterr().out))


def keys_in(text: str) -> dict[str, set[str]]:
    """The keys of each table; those before any table are in the table ""."""
    tables: dict[str, set[str]] = {}
    for section in text.split("\n.Ss ")[1:]:
        heading, _, body = section.partition("\n")
        body = body.partition("\n.Sh ")[0]
        tables[heading.strip("[]") if heading.startswith("[") else ""] = set(re.findall(r"^\.It Cm (\S+)", body, re.M))
    return tables


def keys_of(kind: type[msgspec.Struct]) -> dict[str, set[str]]:
    tables: dict[str, set[str]] = {"": set()}
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            tables[field.encode_name] = set(field.type.__struct_encode_fields__)
        else:
            tables[""].add(field.encode_name)
    return {name: keys for name, keys in tables.items() if keys}


@pytest.mark.parametrize(("name", "kind"), [("cage.toml.5", Definition), ("caged.conf.5", RuntimeConfig)])
def test_a_files_page_has_its_keys(name: str, kind: type[msgspec.Struct]) -> None:
    assert keys_in(page(name)) == keys_of(kind)


def test_the_defaults_of_caged_conf_are_the_true_ones() -> None:
    told = re.findall(r"^\.It Cm (\S+)\n(?:(?!\.It).*\n)*?Default:\n\.(?:Pa|Li) (\S+) \.", page("caged.conf.5"), re.M)
    tables = msgspec.to_builtins(RuntimeConfig()).values()
    values = {key: str(value) for table in tables for key, value in table.items()}
    assert dict(told) == values


def test_the_policys_page_has_its_words() -> None:
    text = page("cage.policy.5")
    tokens = re.findall(r"^\.It Li (@[a-z-]+)", text, re.M)
    alone = {str(token()) for token in (AnyCage, Core, Default, Disposable, SameOwner)}
    assert set(tokens) == {*alone, "@level", "@compartment", "@tag", *Relation}
    assert set(re.findall(r"@[a-z-]+", text)) == set(tokens)
    there = {field.name.replace("_", "-") for field in dataclasses.fields(Parameters)}
    assert set(re.findall(r"^\.It Cm (\S+)", text, re.M)) == there - {"stands"} | {"for"}
    for words in (Direction, Logged):
        assert f" Ns = Ns Cm {' | '.join(words)}\n" in text
    actions = text.partition("\n.It Ar action\n")[2].partition("\n.El\n")[0]
    assert set(re.findall(r"\.Li (\w+)", actions)) == set(Action)
    assert set(re.findall(r"^\.It Li (!\S+)", text, re.M)) == {"!include", "!include-dir"}


def test_the_bounds_of_the_policys_page_are_the_true_ones() -> None:
    text = " ".join(page("cage.policy.5").split())
    assert f"more than {POLICY_INCLUDE_DEPTH} within one another, more than {POLICY_FILES_MAX} and" in text
    assert f"{POLICY_TOTAL_BYTES_MAX // 1024**2} MiB in all" in text
    assert f"at most {POLICY_SECONDS_MAX // 86400}d." in text
    assert f"at most {TAGS_MAX} words" in " ".join(page("cage.toml.5").split())


# --- the bus interface ---------------------------------------------------------------------------------------------
CORE = "org.cageruntime.Core1"
XML = PAGES.parent / f"{CORE}.xml"
OPTIONS: dict[str, tuple[type[msgspec.Struct], set[str]]] = {
    "Create": (CreateOptions, set()), "Enter": (SessionOptions, {"detach"}), "Run": (SessionOptions, {"root", "cwd"}),
    "CopyIn": (CopyOptions, set()),
    "InstallApplication": (InstallOptions, set()), "TailAudit": (TailOptions, set()),
    "AnswerPrompt": (AnswerOptions, set()), "DiffPolicy": (DiffOptions, set()),
}
"""What each method takes for options, and those of them that it refuses; every other method takes none."""
TYPES = {Literal["fail", "rename", "skip", "replace"]: {"s"}, str: {"s"}, bool: {"b"}, int: {"u", "q"}, float: {"d"},
         list[str]: {"as"}}


def arguments_of(element: ET.Element, direction: str = "") -> list[tuple[str, str]]:
    return [(each.attrib["type"], each.attrib["name"]) for each in element.findall("arg")
            if each.get("direction", "") == direction]


def test_the_interfaces_page_has_its_members() -> None:
    written, told = {each.attrib["name"]: each for each in ET.parse(XML).getroot()}, pages.interfaces()
    assert told.keys() == written.keys()
    for name, interface in written.items():
        assert told[name].properties == {p.attrib["name"]: p.attrib["type"] for p in interface.findall("property")}
        assert told[name].signals == {s.attrib["name"]: arguments_of(s) for s in interface.findall("signal")}
        assert {member: (method.takes, method.gives) for member, method in told[name].methods.items()} == {
            m.attrib["name"]: (arguments_of(m, "in"), arguments_of(m, "out")) for m in interface.findall("method")}


def test_the_interfaces_page_has_its_options() -> None:
    """So has the description, in its comments."""
    comments = {name: comment for comment, name in re.findall(
        r'<!--((?:(?!-->).)*)-->\s*<method name="(\w+)">', XML.read_text(encoding="utf-8"), re.DOTALL)}
    for member, method in pages.interfaces()[f"{CORE}.Manager"].methods.items():
        kind, refused = OPTIONS.get(member, (NoOptions, set()))
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)
                  if field.encode_name not in refused}
        assert method.options.keys() == fields.keys(), member
        for name, type_ in fields.items():
            (plain,) = set(get_args(type_) if isinstance(type_, types.UnionType) else (type_,)) - {type(None)}
            assert method.options[name] in TYPES[plain], (member, name)
        if fields:
            listed = re.findall(r"([a-z-]+) (s|b|u|d|q|as)\b", comments[member].partition("options:")[2])
            assert dict(listed) == method.options, member


def test_the_interfaces_page_has_every_error() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CageError)]
    assert pages.errors() == {
        kind("").bus_error: "" if issubclass(kind, errors.ProtocolError) else str(kind.exit_status) for kind in kinds}


FOREIGN = {"dot.1", "journalctl.1", "machinectl.1", "pkttyagent.1", "polkit.8", "ssh-keygen.1", "sudo.8", "sysinfo.2",
           "systemctl.1", "systemd-cgls.1", "userdel.8"}
"""Pages of other packages that ours send to."""


def test_every_page_is_seen_from_another() -> None:
    pages = {file.name for file in PAGES.iterdir()}
    named = {f"{name}.{section}" for text in map(page, pages) for name, section in re.findall(r"\.Xr (\S+) (\d)", text)}
    assert named - FOREIGN == pages


def test_the_daemons_page_has_the_journals_fields_and_ids() -> None:
    text = page("caged.8").partition("\n.Sh JOURNAL\n")[2].partition("\n.Sh ")[0]
    told = dict(re.findall(r"^\.It Li ([a-z-]+)\n\.Li ([0-9a-f]{32})$", text, re.M))
    assert told == {kind.value: message.id for kind, message in MESSAGES.items()}
    assert f".Li {UNTOLD.id} ," in text
    fields = {name for line in re.findall(r"^\.It Li (.*)$", text, re.M) for name in re.findall(r"([A-Z_0-9]+)=", line)}
    others = {"MESSAGE_ID", "SOURCE", "RULE_FILE", "RULE_LINE", "REASON", "AUDIT_SEQUENCE", "AUDIT_HASH"}
    assert fields == set(FIELDS.values()) | others


def test_the_examples_are_read_as_they_stand() -> None:
    shipped = Paths(shipped=str(TOP / "policies"), administrator="/nonexistent", run="/nonexistent")
    levels, kinds = load_levels(shipped), service_kinds(shipped)
    rules = parse(example("cage.policy.5").encode(), file="p", levels=levels, kinds=kinds)
    assert {kind_of(rule.service.name, kinds) is None for rule in rules if rule.service} == {False}
    definition = parse_definition(example("cage.toml.5"), "d")
    assert levels.label(definition.level, definition.compartments)
    assert parse_table(example("caged.conf.5"), RuntimeConfig, "c").paths.cgroup == "other"
