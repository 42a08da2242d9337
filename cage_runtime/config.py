# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where things are, and the definitions that people write: caged.conf, levels.toml, cage.toml.

Unknown keys are errors that name file and line; a value out of its bounds is refused before anything is done.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from cage_runtime.errors import DefinitionError
from cage_runtime.model import COMPARTMENTS_MAX, DEFINITION_BYTES_MAX, DESCRIPTION_MAX, Levels
from cage_runtime.text import escape

SYSTEM_CONFIG = Path("/etc/cage-runtime/caged.conf")

_Word = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,30}\Z")]
_Size = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,12}[KMGT]?\Z")]
_AppId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*){2,}\Z", max_length=255)]


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


class Definition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cage.toml (man page cage.toml(5))."""

    level: _Word = "public"
    compartments: Annotated[list[_Word], msgspec.Meta(max_length=COMPARTMENTS_MAX)] = []
    description: Annotated[str, msgspec.Meta(max_length=DESCRIPTION_MAX)] = ""
    limits: Limits = Limits()
    network: Network = Network()
    apps: Apps = Apps()
    session: Session = Session()


class Paths(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[paths] of caged.conf: a second runtime beside the system's (tests have one) differs in these alone."""

    state: str = "/var/lib/cage-runtime"
    run: str = "/run/cage-runtime"
    shipped: str = "/opt/cage-runtime/share"
    """levels.toml, policy.d, templates.d and seccomp.d as delivered."""
    administrator: str = "/etc/cage-runtime"
    """The same names in here mask the shipped ones."""
    runtime: str = "/opt/cage-runtime"
    """The installed programs; each cage sees them, read-only, at /opt/cage-runtime."""
    cgroup: str = "cage-runtime"
    """The subtree for cages, below the cgroup2 mount (or below the delegated cgroup under systemd)."""


class Users(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[users] of caged.conf: the system users that the processes run as."""

    caged: str = "caged"
    files: str = "cage-files"
    apps: str = "cage-apps"


class RuntimeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A caged.conf (man page caged.conf(5)); every key has the default of an installed system."""

    paths: Paths = Paths()
    users: Users = Users()


class _LevelsFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    levels: Annotated[list[_Word], msgspec.Meta(min_length=1, max_length=32)]
    compartments: Annotated[list[_Word], msgspec.Meta(max_length=256)] = []
    colours: dict[_Word, Annotated[str, msgspec.Meta(pattern=r"^#[0-9a-f]{6}\Z")]] = {}


_Table = TypeVar("_Table", bound=msgspec.Struct)


def parse_table(text: str, kind: type[_Table], file: str) -> _Table:
    """`text`, TOML, as a `kind`; DefinitionError names `file` and the line of what is wrong."""
    if len(text.encode()) > DEFINITION_BYTES_MAX:
        raise DefinitionError(f"{file}: more than {DEFINITION_BYTES_MAX} bytes")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DefinitionError(f"{file}: {error}") from error
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        line = _line_of(text, message)
        raise DefinitionError(f"{file}:{line}: {_plain(message)}") from error


def _plain(message: str) -> str:
    """msgspec's sentence in the words of the file: a key rather than an object's field, a place rather than `$`."""
    place = re.search(r" - at `\$\.?([^`]*)`\Z", message)
    text = message[: place.start()] if place else message
    text = re.sub(r"Object contains unknown field `(.*)`", lambda found: f'unknown key "{escape(found[1])}"', text)
    where = place[1] if place else ""
    return f"{where}: {text}" if where else text


def _line_of(text: str, message: str) -> int:
    """The line on which the key stands that msgspec complains of; 1 where it is missing altogether."""
    place = re.search(r" - at `\$\.?([^`]*)`\Z", message)
    keys = [re.sub(r"\[.*\]\Z", "", part) for part in place[1].split(".")] if place and place[1] else []
    if unknown := re.match(r"Object contains unknown field `(.*?)`", message):
        keys.append(unknown[1])
    if not keys:
        return 1
    section, table = "", ".".join(keys[:-1])
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\s*([^\]]*?)\s*\]", line):
            section = header[1]
            if section == ".".join(keys):
                return number
        written = re.match(r"""\s*["']?([^"'=\s]+)["']?\s*=""", line)
        if written and section == table and written[1] == keys[-1]:
            return number
        if written and not section and written[1] == ".".join(keys):
            return number
    return 1


def read_text(path: Path) -> str:
    """The text of a file that the administrator or the product wrote, at most DEFINITION_BYTES_MAX bytes."""
    with path.open("rb") as file:
        content = file.read(DEFINITION_BYTES_MAX + 1)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DefinitionError(f"{path}: not UTF-8 at byte {error.start}") from error


def load_runtime(path: Path | None) -> RuntimeConfig:
    """The configuration at `path`; the defaults where `path` is None and the system has no file of its own."""
    if path is None and not SYSTEM_CONFIG.exists():
        return RuntimeConfig()
    file = path or SYSTEM_CONFIG
    return parse_table(read_text(file), RuntimeConfig, str(file))


def masked_file(paths: Paths, name: str) -> Path | None:
    """The administrator's file `name` before the shipped one; None where it is disabled by a link to /dev/null."""
    for directory in (paths.administrator, paths.shipped):
        file = Path(directory, name)
        if file.is_symlink() and os.readlink(file) == os.devnull:
            return None
        if file.exists():
            return file
    return None


def load_levels(paths: Paths) -> Levels:
    """levels.toml; DefinitionError where it is missing, disabled or wrong."""
    file = masked_file(paths, "levels.toml")
    if file is None:
        raise DefinitionError(f"{paths.shipped}/levels.toml: not found; reinstall the runtime")
    table = parse_table(read_text(file), _LevelsFile, str(file))
    if len(set(table.levels)) != len(table.levels):
        raise DefinitionError(f"{file}:1: levels: a level is named twice")
    return Levels(names=tuple(table.levels), compartments=frozenset(table.compartments))


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
            lines.append(f"{key} = {msgspec.json.encode(value).decode()}")
    for name, inner, usual in nested:
        if inner != usual:
            lines.append(f"[{name}]")
            _render(inner, usual, f"{name}.", lines)
