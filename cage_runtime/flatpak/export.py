# SPDX-License-Identifier: LGPL-2.1-or-later
"""Menu entries: what an application's own says of itself, and what the host is shown instead (Desktop Entry
Specification 1.5).

Law of this file: pure, apart from one bounded read below a directory.  Whoever made the application is not believed: of
its entry a few keys that are shown to people are taken, value by value, and a new entry is made, whose command, icon
and label are ours.  cage-apps reads, because the file comes from elsewhere; caged makes the new one, and checks every
value again, because cage-apps may have been defeated by what it reads.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from cage_runtime.errors import UntrustedSource
from cage_runtime.flatpak.metadata import unescape
from cage_runtime.text import escape, is_visible

ENTRY_BYTES_MAX = 256 * 1024
"""Bytes in an application's entry; those of big applications in a hundred languages have 40 KiB."""
VALUES_MAX = 1024
"""Values that are taken from one entry."""
TEXT_MAX, NAME_MAX = 256, 64
"""Characters in a value, and in a name, behind which the cage's has to be seen."""
KEYWORDS_MAX = 32
ARGUMENTS = "Arguments"
"""The key under which the plain words are handed on that an application wants to be started with."""
ARGUMENTS_MAX = 16

LOCALISED = frozenset({"Name", "GenericName", "Comment", "Keywords"})
FLAGS = frozenset({"Terminal", "NoDisplay", "StartupNotify"})
_KNOWN = LOCALISED | FLAGS | {"Type", "Hidden", "Categories", "Exec"}
CATEGORIES = frozenset({
    "AudioVideo", "Audio", "Video", "Development", "Education", "Game", "Graphics", "Network", "Office", "Science",
    "Settings", "System", "Utility",
})
"""The main categories, which say where in a menu an entry stands."""
ICON = "application-x-executable"
"""A picture of the host's own: one from the application would be parsed by the host's desktop."""

_KEY = re.compile(r"(?P<name>[A-Za-z]+)(?:\[(?P<locale>[a-z]{2,3}(?:_[A-Z]{2})?(?:@[A-Za-z]{1,16})?)\])?\Z")
_GROUP = "[Desktop Entry]"
_ESCAPES = {"s": " ", "n": "\n", "t": "\t", "r": "\r", "\\": "\\", ";": "\\;"}
"""`\\;` stays, as lists are split later."""
_ARGUMENT = re.compile(r"[A-Za-z0-9._=:,+/-]{1,64}\Z")
_FIELD = re.compile(r"(?:%[A-Za-z]|@@u?)\Z")
"""A word that stands for what is opened, which is nothing here, or encloses one."""
_PLAIN_WORD = re.compile(r"[A-Za-z0-9/._=:,+-]+\Z")


# --- reading, as cage-apps -------------------------------------------------------------------------------------------
def read_entry(active: Path, application: str, command: str) -> dict[str, str]:
    """What the deployed application in `active`, which is started by `command`, says of itself, by key, unescaped;
    empty where it has no entry, or wants none to be seen.  UntrustedSource where its entry cannot be understood in one
    way only."""
    content = _content(active, application)
    return {} if content is None else parse_entry(content, application, command)


def _content(active: Path, application: str) -> bytes | None:
    """The bytes of export/share/applications/APPLICATION.desktop below `active`, through no link."""
    try:
        directory = os.open(active, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None  # removed just now
    try:
        for name in ("export", "share", "applications"):
            inner = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            os.close(directory)
            directory = inner
        # Not waiting for whoever writes to a pipe of that name.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(f"{application}.desktop", flags, dir_fd=directory), "rb") as file:
            return file.read(ENTRY_BYTES_MAX + 1) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except OSError:
        return None  # no entry, or none that one may follow to
    finally:
        os.close(directory)


def parse_entry(untrusted_content: bytes, of: str, command: str) -> dict[str, str]:
    """The values that may be shown of the group "Desktop Entry" of an entry, each of its known keys given once.

    What else it says is not looked at: nobody but this function reads it.
    """
    if len(untrusted_content) > ENTRY_BYTES_MAX:
        raise UntrustedSource(f"the menu entry of {of} has more than {ENTRY_BYTES_MAX} bytes")
    try:
        text = untrusted_content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UntrustedSource(f"the menu entry of {of} is not UTF-8 at byte {error.start}") from error
    values = _values(text, of)
    if values.get("Type") != "Application" or values.get("Hidden") == "true":
        return {}
    shown = {key: value for key, value in values.items() if _may_be_shown(key, value)}
    if arguments := _arguments(values.get("Exec", ""), of, command):
        shown = {ARGUMENTS: " ".join(arguments), **shown}
    return dict(list(shown.items())[:VALUES_MAX]) if "Name" in shown else {}


def _values(text: str, of: str) -> dict[str, str]:
    values: dict[str, str] = {}
    inside = False
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if stripped.startswith("["):
            if inside:
                break  # the actions that follow are not offered
            if stripped != _GROUP:
                raise _misleading(of, number, f"it begins with the group {escape(stripped, limit=60)}")
            inside = True
            continue
        key, equals, value = map(str.strip, line.partition("="))
        if not inside or not equals:
            raise _misleading(of, number, "it is neither a group nor a key of one")
        if key.partition("[")[0] not in _KNOWN:
            continue
        if key in values:
            raise _misleading(of, number, f"the key {escape(key, limit=60)} comes twice")
        values[key] = value if key == "Exec" else unescape(value, _ESCAPES, functools.partial(_misleading, of, number))
    return values


def _arguments(untrusted_exec: str, application: str, command: str) -> list[str]:
    """The words that follow the application in `flatpak run --command=COMMAND APPLICATION WORD…`, which is what flatpak
    makes of an entry's command; none where one of them is not plain, or they are for another command."""
    words = untrusted_exec.split()
    if application not in words or f"--command={command}" not in words[:words.index(application)]:
        return []
    wanted = [word for word in words[words.index(application) + 1:] if not _FIELD.match(word)]
    return wanted if _are_arguments(wanted) else []


def _are_arguments(untrusted_words: list[str]) -> bool:
    return len(untrusted_words) <= ARGUMENTS_MAX and all(map(_ARGUMENT.match, untrusted_words))


def _misleading(of: str, line: int, why: str) -> UntrustedSource:
    return UntrustedSource(f"the menu entry of {of} could mislead its readers, and is refused: line {line}: {why}")


def _may_be_shown(untrusted_key: str, untrusted_value: str) -> bool:
    """Whether this is one of the few values that are taken: short, visible, of a known key and locale.

    What cannot be seen is no reason to be without the rest: some languages are written with marks of direction.
    """
    match = _KEY.match(untrusted_key)
    if match is None:
        return False
    name = match["name"]
    if untrusted_key == ARGUMENTS:
        return _are_arguments(untrusted_value.split(" "))
    if name in FLAGS and not match["locale"]:
        return untrusted_value in ("true", "false")
    if name not in LOCALISED and untrusted_key != "Categories":
        return False
    return bool(untrusted_value.strip()) and len(untrusted_value) <= TEXT_MAX and is_visible(untrusted_value)


# --- making a new one, as caged --------------------------------------------------------------------------------------
def render_entry(untrusted_values: Mapping[str, str], *, cage: str, application: str, cagectl: str) -> str:
    """The entry that starts `application` in `cage`, from what cage-apps says that the application says of itself.

    `cagectl` is the program's path.  UntrustedSource where nothing is left that could be shown.
    """
    if len(untrusted_values) > VALUES_MAX:
        raise UntrustedSource(f"the menu entry of {application} has more than {VALUES_MAX} values")
    values = {key: value for key, value in untrusted_values.items() if _may_be_shown(key, value)}
    if "Name" not in values:
        raise UntrustedSource(f"the menu entry of {application} has no name that can be shown")
    terminal = values.get("Terminal") == "true"
    # On a terminal a person sees it end; elsewhere it is the cage's, and goes on when whoever began it has gone.
    command = [cagectl, "run", cage, application, *([] if terminal else ["--detach"])]
    if ARGUMENTS in values:
        command += ["--", *values[ARGUMENTS].split(" ")]
    lines = {"Type": "Application", **_texts(values, cage), "Exec": " ".join(map(_word, command)), "Icon": ICON,
             "Categories": _categories(values.get("Categories", ""))}
    lines |= {key: values.get(key, "false") for key in sorted(FLAGS)}
    lines |= {"X-CageRuntime-Cage": cage, "X-CageRuntime-Application": application}
    return "".join(f"{line}\n" for line in ("# Made by the cage runtime, and made anew by it.", _GROUP,
                                            *(f"{key}={value}" for key, value in lines.items() if value)))


def _texts(values: Mapping[str, str], cage: str) -> dict[str, str]:
    """The localised values, as they are written down; each name with its cage."""
    written = {}
    for key, value in values.items():
        kind = key.partition("[")[0]
        if kind == "Name":
            written[key] = _escaped(f"{_without_brackets(value)[:NAME_MAX].strip()} [{cage}]")
        elif kind == "Keywords":
            written[key] = _list(_split(value)[:KEYWORDS_MAX])
        elif kind in LOCALISED:
            written[key] = _escaped(_without_brackets(value))
    return written


def _without_brackets(text: str) -> str:
    """An application called "Bank [vault]" would be taken for one in another cage."""
    return text.translate({ord("["): "(", ord("]"): ")"})


def _escaped(text: str) -> str:
    return text.strip().replace("\\", "\\\\")


def _split(value: str) -> list[str]:
    """The elements of a list, whose `\\;` stands for a semicolon."""
    return [element.replace("\0", ";").strip() for element in value.replace("\\;", "\0").split(";") if element.strip()]


def _list(elements: list[str]) -> str:
    return "".join(_escaped(element).replace(";", "\\;") + ";" for element in elements)


def _categories(value: str) -> str:
    wanted = [category for category in dict.fromkeys(_split(value)) if category in CATEGORIES]
    if {"Audio", "Video"} & set(wanted) and "AudioVideo" not in wanted:
        wanted.insert(0, "AudioVideo")
    return _list(wanted or ["Utility"])


def _word(argument: str) -> str:
    """One word of a command line as Exec has it: quoted where anything in it has a meaning there."""
    if _PLAIN_WORD.match(argument):
        return argument
    quoted = re.sub(r'(["`$\\])', r"\\\1", argument.replace("%", "%%"))
    return _escaped(f'"{quoted}"')
