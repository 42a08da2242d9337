# SPDX-License-Identifier: LGPL-2.1-or-later
"""Flatpak's words, read strictly: names, refs and the metadata of an application or a runtime (flatpak-metadata(5)).

Law of this file: pure, and stricter than flatpak.  Whatever two readers could understand differently is refused: NUL
(CVE-2021-43860: what follows it is hidden from whoever reads a C string), escape sequences and other control
characters (CVE-2023-28101: a terminal shows other permissions than those granted), written out or as the key file's
own escapes, and groups and keys that come twice.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from cage_runtime.errors import InvalidName, UntrustedSource
from cage_runtime.text import escape

METADATA_BYTES_MAX = 256 * 1024
"""Bytes in a metadata file."""
EXTENSIONS_MAX = 256
"""Extension points of one application or runtime."""
NAME_BYTES_MAX = 255

_NAME = r"[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z_0-9][A-Za-z0-9_-]*){2,}"
_APPLICATION = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z_][A-Za-z0-9_-]*){2,}\Z")
_RUNTIME = re.compile(_NAME + r"\Z")
_BRANCH = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_REF = re.compile(rf"(?P<kind>app|runtime)/(?P<name>{_NAME})/(?P<arch>[A-Za-z0-9_]+)/(?P<branch>{_BRANCH})\Z")
_REMOTE = re.compile(r"[a-z][a-z0-9-]{0,30}\Z")
_GROUP = re.compile(r"\[([^\[\]]+)\]\Z")
_KEY = re.compile(r"[^=\[\]]+\Z")
_ESCAPES = {"s": " ", "\\": "\\", ";": "\\;"}
"""Escapes of a key file that stand for something visible; `\\;` stays, as lists are split later."""


class Kind(StrEnum):
    APPLICATION = "app"
    RUNTIME = "runtime"


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Ref:
    """What a repository calls one branch of an application or a runtime: KIND/NAME/ARCH/BRANCH."""

    kind: Kind
    name: str
    arch: str
    branch: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}/{self.arch}/{self.branch}"

    @property
    def tree(self) -> str:
        """The directory of an installation that holds all its branches."""
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Extension:
    """A place where a runtime may be mounted into another or into an application."""

    name: str
    branches: tuple[str, ...]
    subdirectories: bool
    """True where every runtime whose name begins with `name` and a full stop fits."""
    wanted: bool
    """False where it is installed only on request (no-autodownload)."""
    driver: bool
    """True where only what fits the graphics driver is wanted; that is `name`.default everywhere."""

    def fits(self, name: str) -> bool:
        return name == self.name or (self.subdirectories and name.startswith(f"{self.name}."))


@dataclass(frozen=True, kw_only=True, slots=True)
class Metadata:
    """What we have to know of an application or a runtime."""

    kind: Kind
    name: str
    runtime: Ref
    """What it runs on; a runtime names itself."""
    extensions: tuple[Extension, ...]
    command: str = ""
    """What an application is started by."""


def check_application(untrusted_name: str) -> str:
    """The name, if it may be an application's; else InvalidName."""
    if len(untrusted_name) > NAME_BYTES_MAX or not _APPLICATION.match(untrusted_name):
        raise InvalidName(
            f'"{escape(untrusted_name, limit=60)}" cannot be an application\'s name: it has three or more parts of '
            'a-z, A-Z, 0-9, "_" and "-" with full stops between them, as in org.gnome.TextEditor'
        )
    return untrusted_name


def check_remote(untrusted_name: str) -> str:
    """The name, if it may be a remote's; else InvalidName."""
    if not _REMOTE.match(untrusted_name):
        raise InvalidName(
            f'"{escape(untrusted_name, limit=60)}" cannot be a remote\'s name: use 1 to 31 of a-z, 0-9 and "-", '
            "first a letter"
        )
    return untrusted_name


def parse_ref(untrusted_ref: str) -> Ref | None:
    """`untrusted_ref` as a Ref; None where it is none of flatpak's, such as `appstream2/x86_64`."""
    found = _REF.match(untrusted_ref) if len(untrusted_ref) <= 3 * NAME_BYTES_MAX else None
    if found is None:
        return None
    return Ref(kind=Kind(found["kind"]), name=found["name"], arch=found["arch"], branch=found["branch"])


def parse_metadata(untrusted_content: bytes, of: str) -> Metadata:
    """The metadata file of `of`; UntrustedSource, with the line, where it is not one or tries to be two."""
    groups = parse_key_file(untrusted_content, of)
    kinds = [name for name in ("Application", "Runtime") if name in groups]
    if len(kinds) != 1:
        raise UntrustedSource(f"the metadata of {of} describes neither an application nor a runtime, or both")
    main, kind = groups[kinds[0]], Kind.APPLICATION if kinds[0] == "Application" else Kind.RUNTIME
    name, runtime = main.get("name", ""), parse_ref(f"{Kind.RUNTIME}/{main.get('runtime', '')}")
    if not _RUNTIME.match(name) or runtime is None:
        raise UntrustedSource(f"the metadata of {of} has no valid name or runtime")
    points = [_extension(title, keys, runtime) for title, keys in groups.items() if title.startswith("Extension ")]
    if len(points) > EXTENSIONS_MAX:
        raise UntrustedSource(f"the metadata of {of} has more than {EXTENSIONS_MAX} extension points")
    return Metadata(kind=kind, name=name, runtime=runtime, extensions=tuple(p for p in points if p is not None),
                    command=main.get("command", ""))


def _extension(title: str, keys: Mapping[str, str], runtime: Ref) -> Extension | None:
    name = title.removeprefix("Extension ").partition("@")[0]
    if not _RUNTIME.match(name):
        return None
    branches = [b for b in keys.get("versions", keys.get("version", "")).split(";") if b] or [runtime.branch]
    return Extension(
        name=name,
        branches=tuple(branches),
        subdirectories=keys.get("subdirectories") == "true",
        wanted=keys.get("no-autodownload") != "true",
        driver="active-gl-driver" in keys.get("download-if", ""),
    )


def parse_key_file(untrusted_content: bytes, of: str) -> dict[str, dict[str, str]]:
    """The groups of a key file and their keys, values unescaped; UntrustedSource where it could mislead anybody."""
    if len(untrusted_content) > METADATA_BYTES_MAX:
        raise UntrustedSource(f"the metadata of {of} has more than {METADATA_BYTES_MAX} bytes")
    try:
        text = untrusted_content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UntrustedSource(f"the metadata of {of} is not UTF-8 at byte {error.start}") from error
    groups: dict[str, dict[str, str]] = {}
    current: dict[str, str] | None = None
    for number, line in enumerate(text.split("\n"), start=1):
        _check_visible(line, of, number)
        if not line.strip() or line.startswith("#"):
            continue
        if header := _GROUP.match(line):
            if header[1] in groups:
                raise _misleading(of, number, f"the group {escape(header[1], limit=60)} comes twice")
            current = groups[header[1]] = {}
            continue
        key, equals, value = line.partition("=")
        if current is None or not equals or not _KEY.match(key):
            raise _misleading(of, number, "it is neither a group nor a key of one")
        if key.strip() in current:
            raise _misleading(of, number, f"the key {escape(key.strip(), limit=60)} comes twice")
        current[key.strip()] = unescape(value.strip(), _ESCAPES, functools.partial(_misleading, of, number))
    return groups


def _misleading(of: str, line: int, why: str) -> UntrustedSource:
    return UntrustedSource(f"the metadata of {of} could mislead its readers, and is refused: line {line}: {why}")


def _check_visible(line: str, of: str, number: int) -> None:
    for character in line:
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
            raise _misleading(of, number, f"it has the hidden character U+{ord(character):04X}")


def unescape(value: str, escapes: Mapping[str, str], refused: Callable[[str], UntrustedSource]) -> str:
    """A key file's value, in which of its escapes only those of `escapes` may be; else what `refused` says of it."""
    parts = re.split(r"(\\.?)", value)
    for index in range(1, len(parts), 2):
        if parts[index][1:] not in escapes:
            raise refused(f"a value has the escape {escape(parts[index], limit=10)}")
        parts[index] = escapes[parts[index][1:]]
    return "".join(parts)


def companions(metadata: Metadata, offered: Iterable[Ref]) -> list[Ref]:
    """Of the refs that a repository offers, the extensions that belong to `metadata` without being asked for.

    An extension point for many (subdirectories) is left to a later request, except for the default graphics driver;
    translations (NAME.Locale) are not fetched.
    """
    wanted: set[Ref] = set()
    points = [point for point in metadata.extensions if point.wanted and not point.name.endswith(".Locale")]
    names = {f"{p.name}.default" if p.driver and p.subdirectories else p.name: p for p in points}
    for ref in offered:
        point = names.get(ref.name)
        if point and ref.kind is Kind.RUNTIME and ref.arch == metadata.runtime.arch and ref.branch in point.branches:
            wanted.add(ref)
    return sorted(wanted)


def trees(application: Metadata, runtime: Metadata, installed_runtimes: Iterable[str]) -> list[str]:
    """The directories of an installation that a cage has to see to run `application`, by name, sorted: its own, its
    runtime's, and those of installed runtimes that fit an extension point of either; nothing else."""
    points = (*application.extensions, *runtime.extensions)
    fitting = {name for name in installed_runtimes if any(point.fits(name) for point in points)}
    fitting.add(application.runtime.name)
    return sorted({f"{Kind.APPLICATION}/{application.name}", *(f"{Kind.RUNTIME}/{name}" for name in fitting)})
