# SPDX-License-Identifier: LGPL-2.1-or-later
"""Definitions that people write: every fault with its file, its line and a sentence, and the way there and back."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime import config
from cage_runtime.config import (
    CONFIG_PLACES,
    Apps,
    Definition,
    Limits,
    Paths,
    RuntimeConfig,
    Session,
    line_of,
    load_levels,
    load_runtime,
    masked_file,
    parse_definition,
    parse_table,
    read_text,
    render_definition,
)
from cage_runtime.errors import DefinitionError
from cage_runtime.model import DEFINITION_BYTES_MAX

SHIPPED = Path(__file__).parents[3] / "policies"
WORD = '1 to 31 of a-z, 0-9 and "-", first a letter'
SIZE = 'a size of 4K or more, such as "512M" or "2G", and at most 999999T'
APP = 'an application id such as "org.gnome.TextEditor"'

FAULTS = [
    # unknown keys
    ("bogus = 1", '1: unknown key "bogus"'),
    ('level = "public"\n\n# bogus = 2\nbogus = 1', '4: unknown key "bogus"'),
    ('level = "public"\n[bogus]\nx = 1', '2: unknown key "bogus"'),
    ('[limits]\nmemory = "2G"\nfoo = 1', '3: limits: unknown key "foo"'),
    ('[network]\nmode = "none"\n[limits]\nmode = "none"', '4: limits: unknown key "mode"'),
    ('level = "public"\nrequire = ["lsm", "walls"]', '2: require[1]: must be "lsm" or "landlock"'),
    ('require = "lsm"', "1: require: must be a list, not text"),
    ('require = ["lsm", "lsm", "lsm"]', "1: require: must have at most 2 entries"),
    ('[session]\nprivate = "yes"', "2: session.private: must be true or false, not text"),
    ('[session]\nrequire = ["lsm"]', '2: session: unknown key "require"'),
    ("limits.foo = 1", '1: limits: unknown key "foo"'),
    ("\nlimits = { foo = 1 }", '2: limits: unknown key "foo"'),
    ("[limits]\n[limits.foo]", '2: limits: unknown key "foo"'),
    ('[limits]\n"foo bar" = 1', '2: limits: unknown key "foo bar"'),
    ("[ limits ] # comment\n'foo'=1", '2: limits: unknown key "foo"'),
    ('"a.b" = 1', '1: unknown key "a.b"'),
    ('"x`y" = 1', '1: unknown key "x`y"'),
    ('"\\u001b[2J" = 1', '1: unknown key "\\x1b[2J"'),
    ('[limits]\nmemory_guarantee = "1G"', '2: limits: unknown key "memory_guarantee"'),
    ("[session]\nexec_home = true", '2: session: unknown key "exec_home"'),
    # what looks like a key and is none
    ('description = """\n[limits]\nfoo = 1\n"""\n[limits]\nfoo = 1', '6: limits: unknown key "foo"'),
    ("description = '''\nfoo = 1'''\nfoo = 1", '3: unknown key "foo"'),
    ('description = """a "quoted" \\""""\nfoo = 1', '2: unknown key "foo"'),
    ('description = "# [limits]"\r\nfoo = 1\r\n', '2: unknown key "foo"'),
    # wrong types
    ("level = 3", f"1: level: must be {WORD}, not a whole number"),
    ("[limits]\nmemory = 5", f"2: limits.memory: must be {SIZE}, not a whole number"),
    ('[limits]\ncpus = "2"', "2: limits.cpus: must be a number, not text"),
    ("[limits]\ntasks = 20.5", "2: limits.tasks: must be a whole number, not a number"),
    ("[limits]\ntasks = true", "2: limits.tasks: must be a whole number, not true or false"),
    ('[session]\nephemeral = "yes"', "2: session.ephemeral: must be true or false, not text"),
    ('[apps]\nallow = "org.a.b"', "2: apps.allow: must be a list, not text"),
    ('compartments = "finance"', "1: compartments: must be a list, not text"),
    ("compartments = [3]", f"1: compartments[0]: must be {WORD}, not a whole number"),
    ("limits = 3", "1: limits: must be a table, not a whole number"),
    ('[[limits]]\nmemory = "1G"', "1: limits: must be a table, not a list"),
    # out of range
    ("[limits]\ncpus = 0", "2: limits.cpus: must be more than 0"),
    ("[limits]\ncpus = nan", "2: limits.cpus: must be more than 0"),
    ("[limits]\ncpus = inf", "2: limits.cpus: must be at most 4096"),
    ("[limits]\ntasks = 15", "2: limits.tasks: must be at least 16"),
    ("[limits]\ntasks = 4194305", "2: limits.tasks: must be at most 4194304"),
    ("[limits]\nio-weight = 10001", "2: limits.io-weight: must be at most 10000"),
    ('[limits]\nmemory = "0"', f"2: limits.memory: must be {SIZE}"),
    ('[limits]\nmemory = "1 G"', f"2: limits.memory: must be {SIZE}"),
    ('[limits]\ndisk = "9999999999T"', f"2: limits.disk: must be {SIZE}"),
    ('[limits]\ndisk = "1K"', f"2: limits.disk: must be {SIZE}"),
    ('[limits]\nmemory = "4095"', f"2: limits.memory: must be {SIZE}"),
    ('[limits]\nmemory-guarantee = "0003K"', f"2: limits.memory-guarantee: must be {SIZE}"),
    ('level = "Secret"', f"1: level: must be {WORD}"),
    ('level = "web\\n"', f"1: level: must be {WORD}"),
    ('compartments = [\n  "a",\n  "B"]', f"1: compartments[1]: must be {WORD}"),
    (f"compartments = {['a'] * 17}", "1: compartments: must have at most 16 entries"),
    (f"tags = {['a'] * 17}", "1: tags: must have at most 16 entries"),
    ('tags = ["Desk"]', f"1: tags[0]: must be {WORD}"),
    ('tags = "desk"', "1: tags: must be a list, not text"),
    (f'description = "{"x" * 201}"', "1: description: must have at most 200 characters"),
    ('[apps]\nallow = ["org.a.b", "notes"]', f"2: apps.allow[1]: must be {APP}"),
    ('[apps]\nallow = ["org.a.b\\n"]', f"2: apps.allow[0]: must be {APP}"),
    ('[network]\nmode = "host"', '2: network.mode: must be "none"'),
    ('[limits]\non-missing = "ignore"', '2: limits.on-missing: must be "refuse" or "warn"'),
    # not TOML
    ("level =", "1: not TOML: Invalid value"),
    ('level = "public"\n[limits', "2: not TOML: Expected ']' at the end of a table declaration"),
    ('level = "a\nb"', "1: not TOML at column 11: Illegal character '\\n'"),
    ("\n\nlevel = public", "3: not TOML at column 9: Invalid value"),
    ('level = "a"\nlevel = "b"\n', "2: not TOML at column 12: Cannot overwrite a value"),
]


@pytest.mark.parametrize(("text", "fault"), FAULTS)
def test_faults(text: str, fault: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        parse_definition(text, "/x/cage.toml")
    assert caught.value.sentence == f"/x/cage.toml:{fault}"
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("text", "keys", "line"),
    [
        ('a = [\n  "x", # ]\n  "foo = 1",\n  { foo = 1 },\n]\nfoo = 1', ("foo",), 6),
        ("[a]\nfoo = 1\n[b]\nfoo = 1", ("b", "foo"), 4),
        ("[a]\nfoo = 1\n[b.c]\nfoo = 1", ("b", "c", "foo"), 4),
        ("a.b = 1\na.c = 2", ("a", "c"), 2),
        ("[[a]]\nx = 1\n[[a]]\ny = 1", ("a", "y"), 4),
        ("\n[a]\nb = 1", ("a", "missing"), 2),
        ("b = 1", ("missing",), 1),
        ("", (), 1),
    ],
)
def test_lines(text: str, keys: tuple[str, ...], line: int) -> None:
    assert line_of(text, keys) == line


IN_FULL = """
level = "internal"
compartments = ["finance"]
description = "Company work"
[limits]
memory = "2G"
cpus = 1.5
tasks = 512
disk = "10G"
io-weight = 100
on-missing = "warn"
[network]
mode = "none"
[apps]
allow = ["org.gnome.TextEditor"]
[session]
ephemeral = false
exec-home = true
"""


def test_a_definition_in_full() -> None:
    found = parse_definition(IN_FULL, "cage.toml")
    assert found == Definition(
        level="internal",
        compartments=["finance"],
        description="Company work",
        limits=Limits(memory="2G", cpus=1.5, tasks=512, disk="10G", io_weight=100, on_missing="warn"),
        apps=Apps(allow=["org.gnome.TextEditor"]),
        session=Session(exec_home=True),
    )


def test_an_empty_definition_is_the_default() -> None:
    assert parse_definition("", "cage.toml") == Definition()


@pytest.mark.parametrize(
    "text", ["x = " + "[" * 30_000, "x = " + "{a=" * 15_000, "x = " + "9" * 60_000], ids=["lists", "tables", "number"]
)
def test_a_definition_that_would_exhaust_the_parser(text: str) -> None:
    with pytest.raises(DefinitionError, match=r"\Af:1: "):
        parse_definition(text, "f")


def test_a_long_definition(tmp_path: Path) -> None:
    text = "#" * DEFINITION_BYTES_MAX
    assert parse_definition(text, "f") == Definition()
    with pytest.raises(DefinitionError, match=f"f: more than {DEFINITION_BYTES_MAX} bytes"):
        parse_definition(text + "#", "f")
    file = tmp_path / "cage.toml"
    file.write_text(text + "#")
    with pytest.raises(DefinitionError, match=f"more than {DEFINITION_BYTES_MAX} bytes"):
        read_text(file)


def test_the_line_in_the_longest_definition_is_found_at_once() -> None:
    text = "".join(f"k{number} = 1\n" for number in range(5_000))
    with pytest.raises(DefinitionError, match=r"\Af:1: unknown key \"k0\""):
        parse_definition(text, "f")
    assert line_of(text, ("k4999",)) == 5000


def test_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "cage.toml"
    file.write_bytes(b'level = "public"\n# \xff\n')
    with pytest.raises(DefinitionError) as caught:
        read_text(file)
    assert caught.value.sentence == f"{file}:2: not UTF-8 at byte 19 of the file"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError) as caught:
        load_runtime(tmp_path / "caged.conf")
    assert caught.value.sentence == f"{tmp_path}/caged.conf: cannot be read: No such file or directory"


@given(number=st.integers(0, 5000), zeros=st.integers(0, 2), unit=st.sampled_from(["", "K", "M", "G", "T"]))
def test_a_limit_has_a_page_or_more(number: int, zeros: int, unit: str) -> None:
    size = f"{'0' * zeros}{number}{unit}"
    enough = number * 1024 ** " KMGT".index(unit or " ") >= 4096
    try:
        assert parse_definition(f'limits.memory = "{size}"', "f").limits.memory == size
    except DefinitionError:
        assert not enough
    else:
        assert enough


@pytest.mark.parametrize("size", ["999999T", "999999999G", "999999999999M", "999999999999"])
def test_the_biggest_sizes(size: str) -> None:
    assert parse_definition(f'limits.disk = "{size}"', "f").limits.disk == size
    with pytest.raises(DefinitionError, match="at most 999999T"):
        parse_definition(f'limits.disk = "9999{size}"', "f")


# --- there and back ---------------------------------------------------------------------------------------------

WORDS = st.from_regex(r"[a-z][a-z0-9-]{0,30}", fullmatch=True)
SIZES = st.from_regex(r"[1-9][0-9]{4,5}|[1-9][0-9]{1,5}K|[1-9][0-9]{0,5}[MGT]", fullmatch=True)


def maybe(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.none() | strategy


LIMITS = st.builds(
    Limits,
    memory=maybe(SIZES),
    memory_guarantee=maybe(SIZES),
    cpus=maybe(st.floats(0, 4096, exclude_min=True)),
    cpu_weight=maybe(st.integers(1, 10_000)),
    tasks=maybe(st.integers(16, 4_194_304)),
    disk=maybe(SIZES),
    disk_files=maybe(st.integers(16, 2**40)),
    io_weight=maybe(st.integers(1, 10_000)),
    on_missing=st.sampled_from(["refuse", "warn"]),
)
DEFINITIONS = st.builds(
    Definition,
    level=WORDS,
    compartments=st.lists(WORDS, max_size=16),
    description=st.text(max_size=200),
    require=st.lists(st.sampled_from(["lsm", "landlock"]), max_size=2),
    limits=LIMITS,
    apps=st.builds(Apps, allow=st.lists(st.from_regex(r"[A-Za-z_]{1,9}(\.[A-Za-z_]{1,9}){2,3}", fullmatch=True))),
    session=st.builds(Session, ephemeral=st.booleans(), exec_home=st.booleans(), autostart=st.booleans(),
                      private=st.booleans()),
)


@given(definition=DEFINITIONS)
def test_a_rendered_definition_reads_back_the_same(definition: Definition) -> None:
    assert parse_definition(render_definition(definition), "f") == definition


def test_every_control_character_survives_in_a_description() -> None:
    definition = Definition(description="".join(map(chr, range(0x100))) + "\u2028\ufeff")
    with pytest.raises(DefinitionError):
        parse_definition(render_definition(definition), "f")  # 258 characters: only the bound is in the way
    for half in (definition.description[:130], definition.description[130:]):
        shorter = Definition(description=half)
        assert parse_definition(render_definition(shorter), "f") == shorter


def test_defaults_are_not_written_but_for_the_level() -> None:
    assert render_definition(Definition()) == 'level = "public"\n'


# --- levels.toml, caged.conf and masks --------------------------------------------------------------------------


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    for name in ("shipped", "administrator"):
        (tmp_path / name).mkdir()
    return Paths(shipped=str(tmp_path / "shipped"), administrator=str(tmp_path / "administrator"))


def test_the_shipped_levels(paths: Paths) -> None:
    levels = load_levels(msgspec.structs.replace(paths, shipped=str(SHIPPED)))
    assert levels.names == ("public", "internal", "secret")
    assert levels.compartments == {"finance", "medical", "legal"}
    assert levels.colours == {"public": "#2e7d32", "internal": "#ef6c00", "secret": "#c62828"}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", '1: the key "levels" is missing'),
        ("levels = []", "1: levels: must have at least 1 entries"),
        ('levels = ["a", "a"]', "1: levels: a level is named twice"),
        ('levels = ["a"]\n[colours]\na = "red"', '2: colours: must be a colour such as "#2e7d32"'),
        ('levels = ["a"]\n[colours]\nA = "#000000"', f"2: colours: a key in it must be {WORD}"),
        ('levels = ["a"]\ncolours = 3', "2: colours: must be a table, not a whole number"),
        ('levels = "a"', "1: levels: must be a list, not text"),
        ('levels = ["a"]\nlevel = "b"', '2: unknown key "level"'),
    ],
)
def test_bad_levels(paths: Paths, text: str, fault: str) -> None:
    file = Path(paths.administrator, "levels.toml")
    file.write_text(text)
    with pytest.raises(DefinitionError) as caught:
        load_levels(paths)
    assert caught.value.sentence == f"{file}:{fault}"


def test_missing_or_disabled_levels(paths: Paths) -> None:
    with pytest.raises(DefinitionError, match=r"levels\.toml: not found"):
        load_levels(paths)
    Path(paths.shipped, "levels.toml").write_text('levels = ["a"]')
    assert load_levels(paths).names == ("a",)
    Path(paths.administrator, "levels.toml").symlink_to("/dev/null")
    with pytest.raises(DefinitionError, match=r"levels\.toml: not found"):
        load_levels(paths)


def test_the_administrators_file_masks_the_shipped_one(paths: Paths) -> None:
    assert masked_file(paths, "x") is None
    Path(paths.shipped, "x").touch()
    assert masked_file(paths, "x") == Path(paths.shipped, "x")
    Path(paths.administrator, "x").touch()
    assert masked_file(paths, "x") == Path(paths.administrator, "x")


def test_the_first_configuration_there_is_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = tuple(tmp_path / name for name in ("etc", "run", "lib"))
    monkeypatch.setattr(config, "CONFIG_PLACES", places)
    assert load_runtime(None) == RuntimeConfig()
    for place in reversed(places):
        place.mkdir()
        (place / "caged.conf").write_text(f'[paths]\nrun = "/{place.name}"\n')
        assert load_runtime(None).paths.run == f"/{place.name}"
    (places[0] / "caged.conf").unlink()
    (places[0] / "caged.conf").symlink_to("/dev/null")
    assert load_runtime(None) == RuntimeConfig()


def test_the_places_are_those_of_the_manual() -> None:
    assert [str(place) for place in CONFIG_PLACES] == [
        "/etc/cage-runtime", "/run/cage-runtime", "/usr/lib/cage-runtime"]  # fmt: skip


def test_the_delivered_configuration_is_the_default() -> None:
    text = (SHIPPED / "caged.conf").read_text()
    assert parse_table(text, RuntimeConfig, "caged.conf") == RuntimeConfig()
    meant = "\n".join(line.removeprefix("#") for line in text.splitlines() if not line.startswith("# "))
    table = tomllib.loads(meant)
    table["paths"] |= {name: getattr(Paths(), name) for name in ("shipped", "runtime")}
    assert table == msgspec.to_builtins(RuntimeConfig())


def test_a_runtime_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "caged.conf"
    file.write_text('[paths]\nrun = "/somewhere"\n')
    assert load_runtime(file) == RuntimeConfig(paths=Paths(run="/somewhere"))
    file.write_text('[paths]\nrun = "/somewhere"\nruns = 1\n')
    with pytest.raises(DefinitionError) as caught:
        load_runtime(file)
    assert caught.value.sentence == f'{file}:3: paths: unknown key "runs"'
