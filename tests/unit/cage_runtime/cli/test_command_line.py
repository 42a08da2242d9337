# SPDX-License-Identifier: LGPL-2.1-or-later
"""Argument vectors: what is understood, and that all else is one line on standard error with status 2.

None of the lines here gets as far as a bus: the address leads nowhere, which is status 125 and a sentence of its own.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from cage_runtime.cli import cagectl, incage
from cage_runtime.cli.command import VERSION, Program

TOP = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def no_bus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/no-such-socket")
    monkeypatch.setenv("HOME", str(tmp_path))


GOOD = (
    "create work",
    "create work --level internal --compartment finance --compartment hr --ephemeral --no-start",
    "create work --autostart",
    "enable work vault",
    "disable work",
    "create work --memory 2G --cpus 1.5 --tasks 512 --disk 10G --network none --exec-home",
    "create work --template plain",
    "start work",
    "stop work vault",
    "pause work",
    "resume work",
    "kill work",
    "destroy work vault --yes",
    "destroy --yes -- work",
    "destroy work",
    "enter work",
    "enter work --root --cwd /tmp -- ls --help -h -j",
    "run work org.example.App",
    "run work org.example.App --detach -- --write x",
    "app remotes",
    "app remote-remove here",
    "app install work org.example.App --remote here",
    "app update work",
    "app remove work org.example.App",
    "app list work",
    "list",
    "-j list",
    "--json short list",
    "--json=short list --no-legend --no-pager",
    "--color never app -q list work",
    "status",
    "status work",
    "show work",
    "logs work",
    "logs work -n 3",
    "policy check",
    "policy explain work files.Send+x vault",
    "policy reload",
    "prompts list",
    "prompts answer 0a1b2c3d allow --for 10m --target vault",
    "prompts answer 0a1b2c3d deny --session",
    "prompts answer 0a1b2c3d allow --once",
    "grants list",
    "grants revoke 0a1b2c3d",
    "audit tail -n 3",
    "audit verify",
    "audit key",
    "doctor",
)


@pytest.mark.parametrize("line", GOOD)
def test_a_good_line_gets_as_far_as_the_bus(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = cagectl.main(line.split())
    out, err = capsys.readouterr()
    assert status == 125
    assert out == ""
    assert err.startswith("cagectl: no system bus at unix:path=")
    assert err.endswith("; start it: systemctl start dbus, or dbus-daemon --system --fork\n")
    assert err.count("\n") == 1


BAD = (
    ("", "no command given"),
    ("-j", "no command given"),
    ("app", "no command given"),
    ("bogus", 'no command "bogus"'),
    ("app bogus", 'no command "app bogus"'),
    ("cp a b", "one of SRC and DST has to be NAME:PATH"),
    ("top", 'no command "top"'),
    ("policy simulate x", "after -- belongs what to ask"),
    ("policy simulate x -- work files.Send", "after -- belongs what to ask"),
    ("policy simulate -- work files.Send vault", "FILE"),
    ("policy diff installed", "B"),
    ("graph --format=png", "--format"),
    ("--bogus list", "--bogus is not known"),
    ("--level internal create work", "--level is not known"),
    ("list --bogus", "--bogus"),
    ("list extra", "extra"),
    ("list --json=xml", "--json"),
    ("--json", "no command given"),
    ("list --json", "--json"),
    ("list --color=sometimes", "--color"),
    ("create", "NAME"),
    ("create a b", "b"),
    ("create a --memory", "--memory"),
    ("create a --mem 1G", "--mem"),
    ("create a --cpus nan", "--cpus"),
    ("create a --cpus -1", "--cpus"),
    ("create a --cpus inf", "--cpus"),
    ("create a --tasks 0", "--tasks"),
    ("create a --tasks 1.5", "--tasks"),
    ("create a --tasks 99999999999", "--tasks"),
    ("create a --template x --from y", "not allowed with"),
    ("start", "NAME"),
    ("enter", "enter: the following arguments are required: NAME; see"),
    ("enter work ls", 'put "--" before'),
    ("enter work --", 'no command after "--"'),
    ("run work", "run: the following arguments are required: APP-ID; see"),
    ("run work org.example.App file", 'put "--" before'),
    ("app remote-add here https://example.org", "--gpg-key"),
    ("app install work", "APP-ID"),
    ("app remote-remove", "NAME"),
    ("prompts answer 0a1b2c3d", "allow|deny"),
    ("prompts answer 0a1b2c3d maybe", "allow|deny"),
    ("prompts answer 0a1b2c3d allow --for 10", "--for"),
    ("prompts answer 0a1b2c3d allow --for 0m", "--for"),
    ("prompts answer 0a1b2c3d allow --for 5w", "--for"),
    ("prompts answer 0a1b2c3d allow --for 1m --session", "not allowed with"),
    ("grants revoke", "ID"),
    ("audit tail -n 0", "-n"),
    ("logs work -n 0", "-n"),
    ("policy explain work files.Send", "DST"),
)


@pytest.mark.parametrize(("line", "part"), BAD)
def test_a_bad_line_is_one_sentence_and_status_2(line: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = cagectl.main(line.split())
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("cagectl: ")
    assert part in err
    assert err.count("\n") == 1
    assert "usage:" not in err


def test_hostile_words_reach_the_terminal_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["a\033[2Jb\nc"], ["list", "--\033[2J\n"], ["create", "x", "--cpus", "\u202e\n1"]):
        assert cagectl.main(argv) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "\033" not in err
        assert "\u202e" not in err


def test_a_byte_that_is_not_utf_8_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cagectl.main(["\udcff\\x"]) == 2
    assert capsys.readouterr().err == 'cagectl: there is no command "\\xff\\x"; see cagectl --help\n'


def test_a_key_file_that_is_missing_or_empty_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add = ["app", "remote-add", "here", "https://example.org"]
    assert cagectl.main([*add, f"--gpg-key={tmp_path}/none.asc"]) == 1
    assert capsys.readouterr().err == f"cagectl: {tmp_path}/none.asc: No such file or directory\n"
    (tmp_path / "empty.asc").touch()
    assert cagectl.main([*add, f"--gpg-key={tmp_path}/empty.asc"]) == 2
    assert "is not an OpenPGP public key" in capsys.readouterr().err


def test_a_definition_that_is_not_text_or_too_long_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cage.toml"
    file.write_bytes(b'level = "internal"\n\xff\n')
    assert cagectl.main(["create", "work", "--from", str(file)]) == 2
    assert capsys.readouterr().err == f"cagectl: {file}:2: this is not UTF-8, which a definition has to be\n"
    file.write_bytes(b"#" * 70_000)
    assert cagectl.main(["create", "work", "--from", str(file)]) == 2
    assert f"{file} is longer than 65536 bytes" in capsys.readouterr().err


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["version"] == VERSION
    assert cagectl.main(["version"]) == 0
    assert capsys.readouterr().out == f"cagectl {VERSION}\n"
    assert cagectl.main(["--version"]) == 0
    assert capsys.readouterr().out == f"cagectl {VERSION}\n"


INCAGE_BAD = (
    ("", "no command given"),
    ("copy --pastes 0", "--pastes"),
    ("copy --seconds -1", "--seconds"),
    ("open", "URI|FILE"),
    ("open https://example.org two", "two"),
    ("list", 'no command "list"'),
    ("send --to vault", "FILE"),
    ("send --to vault", "FILE"),
)


@pytest.mark.parametrize(("line", "part"), INCAGE_BAD)
def test_incage_refuses_bad_lines_alike(line: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert incage.main(line.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("incage: ")
    assert part in err
    assert err.count("\n") == 1


HELP = [
    *[("cagectl", [*verb.split(), "--help"]) for verb in cagectl.PROGRAM.verbs],
    *[("incage", [*verb.split(), "--help"]) for verb in incage.PROGRAM.verbs],
    ("cagectl", ["--help"]),
    ("cagectl", ["-h"]),
    ("cagectl", ["app", "-h"]),
    ("cagectl", ["policy", "-h"]),
    ("cagectl", ["audit", "-h"]),
    ("cagectl", ["-h", "list"]),
    ("incage", ["--help"]),
]


@pytest.mark.parametrize(("program", "argv"), HELP)
def test_help_fits_80_columns(program: str, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main = {"cagectl": cagectl.main, "incage": incage.main}[program]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"usage: {program} ")
    assert "--json" in out
    assert "SUPPRESS" not in out
    assert "?." not in out
    assert [line for line in out.splitlines() if len(line) > 80] == []


def test_every_command_of_the_list_exists_in_its_module() -> None:
    for program in (cagectl.PROGRAM, incage.PROGRAM):
        for verb, (module_name, _) in program.verbs.items():
            module = __import__(f"cage_runtime.cli.{module_name}", fromlist=("VERBS",))
            assert verb in module.VERBS


@pytest.mark.parametrize("program", [cagectl.PROGRAM, incage.PROGRAM], ids=lambda program: program.name)
def test_the_manual_has_every_command_and_option(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    page = (TOP / "cage_runtime" / "resources" / "man" / f"{program.name}.1").read_text()
    for verb in program.verbs:
        assert f"Cm {verb}" in page
        assert program.main([*verb.split(), "--help"]) == 0
        for option in re.findall(r"^  (?:-\w, )?--([\w-]+)", capsys.readouterr().out, re.MULTILINE):
            assert re.search(rf"Fl -{option}\b|, -{option}\b", page), f"{verb} --{option} is not in the manual"
