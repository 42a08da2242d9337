# SPDX-License-Identifier: LGPL-2.1-or-later
"""With what a cage opens a URI or a file: the command of it, as a list of words, never a line.

Law of this room: no .desktop file's Exec is carried out and no field code expanded; what is opened is the last word of
the command, a URI in its one form or an absolute path, so that no program takes it for an option.

In this order: the cage's own script ~/.config/incage/open, which sh reads (a home is not executable); of the cage's
Flatpak applications the one that ~/.config/mimeapps.list names for the type, or the first that has it; xdg-open.
"""

from __future__ import annotations

import configparser
import glob
import mimetypes
import os

SCRIPT = ".config/incage/open"
DEFAULTS = ".config/mimeapps.list"
APPLICATIONS = "/var/lib/flatpak/app"
FLATPAK = ("/usr/bin/flatpak", "run", "--no-documents-portal")
XDG_OPEN = "/usr/bin/xdg-open"
_FILE_MAX = 1024 * 1024
"""Bytes of a menu entry or a list of defaults that is read."""


def command(home: str, opened: str, scheme: str) -> list[str] | None:
    """What opens `opened`, a URI of `scheme`, or where that is empty an absolute path; None where nothing does."""
    script = os.path.join(home, SCRIPT)
    if os.path.isfile(script):
        return ["/bin/sh", script, opened]
    kind = f"x-scheme-handler/{scheme}" if scheme else mimetypes.guess_type(opened)[0] or "application/octet-stream"
    application = _application(home, kind)
    if application is not None:
        grant = [] if scheme else [f"--filesystem={_escaped(opened)}"]
        return [*FLATPAK, *grant, application, opened]
    return [XDG_OPEN, opened] if os.access(XDG_OPEN, os.X_OK) else None


def _escaped(path: str) -> str:
    """As flatpak's --filesystem takes it, where what follows a colon is a mode (flatpak-run(1))."""
    return path.replace("\\", "\\\\").replace(":", "\\:")


def _application(home: str, kind: str) -> str | None:
    """The Flatpak application of this cage for the type."""
    able = [name for name in sorted(_applications()) if kind in _types(name)]
    defaults = _read(os.path.join(home, DEFAULTS)).get("Default Applications", {})
    wanted = [entry.removesuffix(".desktop") for entry in defaults.get(kind, "").split(";")]
    return next((name for name in wanted if name in able), next(iter(able), None))


def _applications() -> list[str]:
    try:
        return os.listdir(APPLICATIONS)
    except OSError:
        return []


def _types(application: str) -> list[str]:
    """The types in all of the application's menu entries."""
    entries = glob.glob(f"{APPLICATIONS}/{glob.escape(application)}/current/active/export/share/applications/*.desktop")
    return [kind for entry in entries for kind in _read(entry).get("Desktop Entry", {}).get("MimeType", "").split(";")]


def _read(path: str) -> dict[str, dict[str, str]]:
    """The groups and keys of a desktop file; nothing where it cannot be read."""
    parser = configparser.RawConfigParser(delimiters=("=",), comment_prefixes=("#",), strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_string(file.read(_FILE_MAX))
    except (OSError, UnicodeDecodeError, configparser.Error):
        return {}
    return {name: dict(parser[name]) for name in parser.sections()}
