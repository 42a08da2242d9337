# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where things are, and the definitions that people write: caged.conf, levels.toml, cage.toml.

Unknown keys are errors that name file and line; a value out of its bounds is refused before anything is done.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args, get_origin

import msgspec

from cage_runtime.errors import DefinitionError, HostUnsupported, UsageError
from cage_runtime.model import (
    APPLICATION_MAX,
    APPLICATION_PATTERN,
    COMPARTMENTS_MAX,
    DEFINITION_BYTES_MAX,
    DESCRIPTION_MAX,
    FIRST_RANGE,
    LAST_RANGE,
    SIZE_PATTERN,
    TAGS_MAX,
    Levels,
)
from cage_runtime.text import escape

_LIB = Path(__file__).resolve().parents[1]
PREFIX = _LIB.parent if _LIB.name == "lib" else Path("/usr/lib/cage-runtime")
"""Where this runtime lies: its programs in bin, these modules in lib, the shipped defaults beside them.  In a cage that
is another path than on the host; a working tree, which is no installation, goes by the package's."""
CONFIG_PLACES = (Path("/etc/cage-runtime"), Path("/run/cage-runtime"), PREFIX)
"""The directories in which caged.conf is looked for; the first that has one counts."""

# A description completes "must be …" for whoever wrote something else.
_Word = Annotated[
    str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,30}\Z", description='1 to 31 of a-z, 0-9 and "-", first a letter')
]
_PAGE_OR_MORE = (
    r"^(?=0*(?:409[6-9]|4[1-9][0-9]{2}|[5-9][0-9]{3}|[1-9][0-9]{4,}"
    r"|(?:[4-9]|[1-9][0-9]+)K|[1-9][0-9]*[MGT])\Z)"
)
"""A limit below one page of memory would be rounded to nothing."""
_Size = Annotated[
    str,
    msgspec.Meta(
        pattern=_PAGE_OR_MORE + SIZE_PATTERN,
        description='a size of 4K or more, such as "512M" or "2G", and at most 999999T',
    ),
]
_AppId = Annotated[
    str,
    msgspec.Meta(
        pattern=APPLICATION_PATTERN,
        max_length=APPLICATION_MAX,
        description='an application id such as "org.gnome.TextEditor"',
    ),
]
_Colour = Annotated[str, msgspec.Meta(pattern=r"^#[0-9a-f]{6}\Z", description='a colour such as "#2e7d32"')]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """[limits] of cage.toml.  A limit that is named is required of the host; `on_missing` says what if it cannot."""

    memory: _Size | None = None
    memory_guarantee: _Size | None = None
    cpus: Annotated[float, msgspec.Meta(gt=0, le=4096)] | None = None
    cpu_weight: Annotated[int, msgspec.Meta(ge=1, le=10000)] | None = None
    tasks: Annotated[int, msgspec.Meta(ge=16, le=4194304)] | None = None
    disk: _Size | None = None
    disk_files: Annotated[int, msgspec.Meta(ge=16, le=2**40)] | None = None
    io_weight: Annotated[int, msgspec.Meta(ge=1, le=10000)] | None = None
    on_missing: Literal["refuse", "warn"] = "refuse"


class Network(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[network] of cage.toml; `none` is a network namespace with loopback alone."""

    mode: Literal["none"] = "none"


class Apps(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[apps] of cage.toml: the Flatpak applications that this cage may run."""

    allow: list[_AppId] = []


class Session(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """[session] of cage.toml."""

    ephemeral: bool = False
    exec_home: bool = False
    autostart: bool = False
    private: bool = False
    """Nobody enters it or reads its log; that cannot be taken back while its storage is there."""


class Definition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cage.toml (man page cage.toml(5))."""

    level: _Word = "public"
    compartments: Annotated[list[_Word], msgspec.Meta(max_length=COMPARTMENTS_MAX)] = []
    description: Annotated[str, msgspec.Meta(max_length=DESCRIPTION_MAX)] = ""
    tags: Annotated[list[_Word], msgspec.Meta(max_length=TAGS_MAX)] = []
    """What policy may know it by, beside its name and its label."""
    require: Annotated[list[Literal["lsm", "landlock"]], msgspec.Meta(max_length=2)] = []
    """What it is not to run without, of what not every host has, in model.Wall's words."""
    limits: Limits = Limits()
    network: Network = Network()
    apps: Apps = Apps()
    session: Session = Session()


class Paths(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[paths] of caged.conf: a second runtime beside the system's (tests have one) differs in these alone."""

    state: str = "/var/lib/cage-runtime"
    run: str = "/run/cage-runtime"
    shipped: str = str(PREFIX)
    """levels.toml, policy.d, templates.d and seccomp.d as delivered."""
    administrator: str = "/etc/cage-runtime"
    """The same names in here mask the shipped ones."""
    runtime: str = str(PREFIX)
    """The installed programs; each cage sees them, read-only, at /opt/cage-runtime."""
    cgroup: str = "cage-runtime"
    """The subtree for cages, below the cgroup2 mount (or below the delegated cgroup under systemd)."""


class Users(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[users] of caged.conf: the system users that the processes run as."""

    caged: str = "caged"
    mediators: str = "cage-*"
    """The user of each mediator's core half; * stands for the mediator's name."""
    apps: str = "cage-apps"
    syscalls: str = "cage-syscalls"
    gateways: str = "cage-gateways"
    """The group of those who may reach the gateways on the host: caged and the core halves."""
    watch: str = "cage-watch"
    """The group of those who may see all cages and the record, and change nothing."""

    def mediator(self, name: str) -> str:
        """The user of the core half of the mediator `name`."""
        return self.mediators.replace("*", name)


class Ids(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[ids] of caged.conf: the ranges of 65 536 that cages get theirs from, by number (host uid / 65 536)."""

    first: Annotated[int, msgspec.Meta(ge=FIRST_RANGE, le=LAST_RANGE)] = FIRST_RANGE
    last: Annotated[int, msgspec.Meta(ge=FIRST_RANGE, le=LAST_RANGE)] = LAST_RANGE

    def numbers(self) -> range:
        return range(self.first, self.last + 1)


class RuntimeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A caged.conf (man page caged.conf(5)); every key has the default of an installed system."""

    paths: Paths = Paths()
    users: Users = Users()
    ids: Ids = Ids()


def _missing(kind: str, name: str) -> HostUnsupported:
    return HostUnsupported(f"there is no {kind} {name} on this host; systemd-sysusers cage-runtime.conf adds it")


def uid_of(user: str) -> int:
    """The uid of one of the system users of caged.conf; HostUnsupported where this host does not have it."""
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError as error:
        raise _missing("user", user) from error


def gid_of(group: str) -> int:
    """As `uid_of`, for a group."""
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise _missing("group", group) from error


class _LevelsFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    levels: Annotated[list[_Word], msgspec.Meta(min_length=1, max_length=32)]
    compartments: Annotated[list[_Word], msgspec.Meta(max_length=256)] = []
    colours: dict[_Word, _Colour] = {}


_Table = TypeVar("_Table", bound=msgspec.Struct)


def parse_table(text: str, kind: type[_Table], file: str) -> _Table:
    """`text`, TOML, as a `kind`; DefinitionError names `file` and the line of what is wrong."""
    if len(text.encode()) > DEFINITION_BYTES_MAX:
        raise DefinitionError(f"{file}: more than {DEFINITION_BYTES_MAX} bytes")
    try:
        table = tomllib.loads(text)
    except RecursionError as error:
        raise DefinitionError(f"{file}:1: nested too deeply") from error
    except ValueError as error:  # also what int() says of a number with too many digits
        raise DefinitionError(_not_toml(text, file, str(error))) from error
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        fault = _Fault.of(str(error))
        raise DefinitionError(f"{file}:{line_of(text, fault.keys)}: {fault.sentence(kind)}") from error


def convert(untrusted_values: object, kind: type[_Table]) -> _Table:
    """`untrusted_values`, the options of a request, as a `kind`; UsageError names the one that is wrong, and how."""
    try:
        return msgspec.convert(untrusted_values, kind)
    except msgspec.ValidationError as error:
        raise UsageError(_Fault.of(str(error)).sentence(kind, "option")) from error


def _not_toml(text: str, file: str, message: str) -> str:
    """tomllib's sentence with its line where files have theirs."""
    place = re.search(r" \(at (?:line (\d+), (column \d+)|end of document)\)\Z", message)
    if place is None:
        return f"{file}:1: not TOML: {message[:200]}"
    line = int(place[1]) if place[1] else max(1, len(text.rstrip("\n").split("\n")))
    column = f" at {place[2]}" if place[2] else ""
    # What tomllib quotes of the file is already in Python's own escaped form.
    return f"{file}:{line}: not TOML{column}: {message[: place.start()][:200]}"


_TYPES = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "array": "a list"}
_TYPES |= {"object": "a table"}
_BOUNDS = {"<=": "at most", ">=": "at least", "<": "less than", ">": "more than"}


class _Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What msgspec found wrong.  It has only a sentence to say so; where that is one we do not know, it is shown."""

    message: str
    place: str
    keys: tuple[str, ...]
    unknown: str | None
    of_a_key: bool

    @classmethod
    def of(cls, message: str) -> _Fault:
        found = re.search(r" - at (`key` in )?`\$\.?([^`]*)`\Z", message)
        place = found[2].replace("[...]", "") if found else ""
        if found:
            message = message[: found.start()]
        keys = tuple(part for part in re.sub(r"\[[0-9]+\]", "", place).split(".") if part)
        lacking = re.fullmatch(r"Object (contains unknown|missing required) field `(.*)`", message, re.DOTALL)
        return cls(
            message=message,
            place=place,
            keys=(*keys, lacking[2]) if lacking else keys,
            unknown=lacking[2] if lacking and lacking[1] == "contains unknown" else None,
            of_a_key=bool(found and found[1]),
        )

    def sentence(self, kind: type[msgspec.Struct], noun: str = "key") -> str:
        """The fault in the words of the file, with the place in it."""
        place = f"{self.place}: " if self.place else ""
        if self.of_a_key:
            place += "a key in it "
        if self.unknown is not None:
            return f'{place}unknown {noun} "{escape(self.unknown, limit=60)}"'
        return place + (self._in_words(kind) or escape(self.message))

    def _in_words(self, kind: type[msgspec.Struct]) -> str | None:
        wanted = _described(_Word) if self.of_a_key else _wanted(kind, self.keys)
        if found := re.fullmatch(r"Expected `(.*)`, got `(.*)`", self.message):
            expected = found[1].removesuffix(" | null")
            # What is described of a list or a table is what is in it.
            plain = wanted if wanted and expected not in ("array", "object") else _TYPES.get(expected, expected)
            return f"must be {plain}, not {_TYPES.get(found[2], found[2])}"
        if found := re.fullmatch(r"Expected `(str|array)` of length (<=|>=) (\d+)", self.message):
            what = "characters" if found[1] == "str" else "entries"
            return f"must have {_BOUNDS[found[2]]} {found[3]} {what}"
        if found := re.fullmatch(r"Expected `\w+` (<=|>=|<|>) ([\d.]+?)(?:\.0)?", self.message):
            return f"must be {_BOUNDS[found[1]]} {found[2]}"
        if wanted and self.message.startswith(("Expected `str` matching regex ", "Invalid enum value ")):
            return f"must be {wanted}"
        missing = self.message.startswith("Object missing required field")
        return f'the key "{self.keys[-1]}" is missing' if missing else None


def _wanted(kind: type[msgspec.Struct], keys: tuple[str, ...]) -> str | None:
    """What may be written for the key at `keys`, if its type says so."""
    hint: object = kind
    for key in keys:
        if not (isinstance(hint, type) and issubclass(hint, msgspec.Struct)):
            return None
        types = {field.encode_name: field.type for field in msgspec.structs.fields(hint)}
        hint = types.get(key)
    return _described(hint)


def _described(hint: object) -> str | None:
    if get_origin(hint) is Literal:
        return " or ".join(f'"{choice}"' for choice in get_args(hint))
    for meta in getattr(hint, "__metadata__", ()):
        if isinstance(meta, msgspec.Meta) and meta.description:
            return meta.description
    # Of a table or a list, what is written in it comes last: dict[key, value], list[entry].
    return next(filter(None, map(_described, reversed(get_args(hint)))), None)


_TOML_TOKEN = re.compile(
    r'''"""(?:\\.|[^\\])*?"""(?:"{0,2})'''
    r"""|'''.*?'''(?:'{0,2})"""
    r'''|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|\#[^\n]*|[][{}\n]''',
    re.DOTALL,
)
_TOML_KEY = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|[^"'=])+""")


def line_of(text: str, keys: tuple[str, ...]) -> int:
    """The line of `text`, valid TOML, where the statement begins that sets `keys`, or the nearest table around it."""
    best, length, table = 1, 0, ()  # type: tuple[int, int, tuple[str, ...]]
    for line, statement in _statements(text):
        if statement.startswith("["):
            path = table = _path(tomllib.loads(statement))
        else:
            key = _TOML_KEY.match(statement)
            path = table + _path(tomllib.loads(f"{key[0]}= 0")) if key else table
        common = min(len(path), len(keys))
        if common > length and path[:common] == keys[:common]:
            best, length = line, common
    return best


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Each key with its value and each header of valid TOML, with the line on which it begins."""
    begin, first, line, depth = 0, 1, 1, 0
    for token in _TOML_TOKEN.finditer(text + "\n"):
        line += token[0].count("\n")
        if token[0] in ("[", "{"):
            depth += 1
        elif token[0] in ("]", "}"):
            depth -= 1
        elif token[0] == "\n" and depth == 0:
            statement = text[begin : token.start()].strip()
            if statement and not statement.startswith("#"):
                yield first, statement
            begin, first = token.end(), line


def _path(table: object) -> tuple[str, ...]:
    """The keys that lead to the innermost value of a table with one value."""
    if isinstance(table, list):
        return _path(table[0])
    if isinstance(table, dict) and table:
        key, inner = next(iter(table.items()))
        return (key, *_path(inner))
    return ()


def read_text(path: Path) -> str:
    """The text of a file that the administrator or the product wrote; DefinitionError where it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(DEFINITION_BYTES_MAX + 1)
    except OSError as error:
        raise DefinitionError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > DEFINITION_BYTES_MAX:
        raise DefinitionError(f"{path}: more than {DEFINITION_BYTES_MAX} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DefinitionError(f"{path}:{line}: not UTF-8 at byte {error.start} of the file") from error


def load_runtime(path: Path | None) -> RuntimeConfig:
    """The configuration at `path`, or where that is None the system's; the defaults where it has none."""
    file = path or _first(CONFIG_PLACES, "caged.conf")
    return parse_table(read_text(file), RuntimeConfig, str(file)) if file else RuntimeConfig()


def masked_file(paths: Paths, name: str) -> Path | None:
    """The administrator's file `name` before the shipped one; None where it is disabled by a link to /dev/null."""
    return _first((Path(paths.administrator), Path(paths.shipped)), name)


def _first(directories: tuple[Path, ...], name: str) -> Path | None:
    for directory in directories:
        file = directory / name
        if file.is_symlink() and os.readlink(file) == os.devnull:
            return None
        if file.exists():
            return file
    return None


def profiles_of(paths: Paths) -> Path:
    """The directory of the seccomp profiles: the administrator's instead of the shipped one."""
    masked = Path(paths.administrator, "seccomp.d")
    return masked if masked.is_dir() else Path(paths.shipped, "seccomp.d")


def load_levels(paths: Paths) -> Levels:
    """levels.toml; DefinitionError where it is missing, disabled or wrong."""
    file = masked_file(paths, "levels.toml")
    if file is None:
        raise DefinitionError(f"{paths.shipped}/levels.toml: not found; reinstall the runtime")
    table = parse_table(read_text(file), _LevelsFile, str(file))
    if len(set(table.levels)) != len(table.levels):
        raise DefinitionError(f"{file}:1: levels: a level is named twice")
    return Levels(names=tuple(table.levels), compartments=frozenset(table.compartments), colours=table.colours)


def parse_definition(text: str, file: str) -> Definition:
    """A cage.toml's text; DefinitionError names `file` and line."""
    return parse_table(text, Definition, file)


def render_definition(definition: Definition) -> str:
    """`definition` as a cage.toml that `parse_definition` reads back the same; keys at their default are left out."""
    lines: list[str] = []
    _render(definition, Definition(), "", lines)
    return "\n".join(lines) + "\n"


def _render(table: msgspec.Struct, default: msgspec.Struct, prefix: str, lines: list[str]) -> None:
    nested: list[tuple[str, msgspec.Struct, msgspec.Struct]] = []
    names = zip(table.__struct_fields__, table.__struct_encode_fields__, strict=True)
    for field, key in names:
        value, usual = getattr(table, field), getattr(default, field)
        if isinstance(value, msgspec.Struct):
            nested.append((f"{prefix}{key}", value, usual))
        elif value is not None and (value != usual or key == "level"):
            # JSON is TOML for these values, but for DEL, which TOML has only escaped.
            lines.append(f"{key} = {msgspec.json.encode(value).decode()}".replace("\x7f", "\\u007f"))
    for name, inner, usual in nested:
        if inner != usual:
            lines.append(f"[{name}]")
            _render(inner, usual, f"{name}.", lines)
