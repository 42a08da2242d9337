# SPDX-License-Identifier: LGPL-2.1-or-later
"""With what a cage opens things: words, never a line, and never what a menu entry's Exec says (M61)."""

from __future__ import annotations

from pathlib import Path

import pytest

from mediators.open import handler

FLATPAK = list(handler.FLATPAK)
LINK = "https://example.org/%20$(id)"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, and beside it the applications of the cage, of which there are none yet."""
    monkeypatch.setattr(handler, "APPLICATIONS", str(tmp_path / "app"))
    monkeypatch.setattr(handler, "XDG_OPEN", str(tmp_path / "no-xdg-open"))
    (tmp_path / "home/.config/incage").mkdir(parents=True)
    return tmp_path / "home"


def add(home: Path, application: str, entry: str) -> None:
    directory = home.parent / "app" / application / "current/active/export/share/applications"
    directory.mkdir(parents=True)
    (directory / f"{application}.desktop").write_text(entry)


def test_nothing_opens_it(home: Path) -> None:
    assert handler.command(str(home), LINK, "https") is None


def test_the_script_comes_first(home: Path) -> None:
    add(home, "org.a.B", "[Desktop Entry]\nMimeType=x-scheme-handler/https;\n")
    (home / handler.SCRIPT).write_text("exit 0")
    assert handler.command(str(home), LINK, "https") == ["/bin/sh", str(home / handler.SCRIPT), LINK]


def test_m61_an_application_is_run_by_its_id_whatever_its_entry_says(home: Path) -> None:
    add(home, "org.a.B", "[Desktop Entry]\nExec=sh -c %u --evil %F\nMimeType=text/html;x-scheme-handler/https;\n")
    assert handler.command(str(home), LINK, "https") == [*FLATPAK, "org.a.B", LINK]
    assert handler.command(str(home), LINK, "ftp") is None


@pytest.mark.parametrize(("name", "grant"), [
    ("a.txt", "a.txt"), ("%f.txt", "%f.txt"), ("a:create.txt", "a\\:create.txt"), ("a\\b.txt", "a\\\\b.txt"),
])
def test_an_application_is_granted_the_one_file(home: Path, name: str, grant: str) -> None:
    add(home, "org.a.B", "[Desktop Entry]\nMimeType=text/plain\n")
    path = f"/home/user/.cache/incage/x/{name}"
    assert handler.command(str(home), path, "") == [
        *FLATPAK, f"--filesystem=/home/user/.cache/incage/x/{grant}", "org.a.B", path]


def test_the_default_of_the_home_counts_where_it_is_able(home: Path) -> None:
    for name in ("org.a.B", "org.c.D", "org.e.F"):
        add(home, name, "[Desktop Entry]\nMimeType=text/plain;\n" if name != "org.e.F" else "[Desktop Entry]\n")
    defaults = home / handler.DEFAULTS
    for said, chosen in (("", "org.a.B"), ("org.c.D.desktop", "org.c.D"), ("org.e.F.desktop;", "org.a.B"),
                         ("x.desktop;org.c.D.desktop", "org.c.D"), ("--evil.desktop", "org.a.B")):
        defaults.write_text(f"[Default Applications]\ntext/plain={said}\n")
        command = handler.command(str(home), "/x/a.txt", "")
        assert command is not None
        assert command[-2] == chosen


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[Desktop Entry", b"MimeType=text/plain\n", b"", b"[a]\n[a]\nx",
                                     b"[Desktop Entry]\nMimeType\n"])
def test_an_entry_that_cannot_be_read_is_none(home: Path, content: bytes) -> None:
    add(home, "org.a.B", "")
    (entry,) = home.parent.rglob("*.desktop")
    entry.write_bytes(content)
    assert handler.command(str(home), "/x/a.txt", "") is None
