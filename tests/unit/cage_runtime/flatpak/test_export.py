# SPDX-License-Identifier: LGPL-2.1-or-later
"""Menu entries: of what an application says of itself, what the host is shown, and what not."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime.errors import UntrustedSource
from cage_runtime.flatpak import export
from cage_runtime.flatpak.export import parse_entry, read_entry, render_entry

APPLICATION = "org.example.App"
SAMPLE = Path(__file__).parents[4] / "scripts/sample-app/org.cageruntime.Notes.desktop"
KEYS = {"Type", "Exec", "Icon", "Name", "GenericName", "Comment", "Keywords", "Categories", "Terminal", "NoDisplay",
        "StartupNotify", "X-CageRuntime-Cage", "X-CageRuntime-Application"}


def entry(*lines: str) -> bytes:
    return "\n".join(["[Desktop Entry]", "Type=Application", *lines, ""]).encode()


def made(content: bytes, cage: str = "work", cagectl: str = "/usr/bin/cagectl") -> str:
    return render_entry(parse_entry(content, APPLICATION, "app"), cage=cage, application=APPLICATION, cagectl=cagectl)


def keys(text: str) -> dict[str, str]:
    lines = text.splitlines()
    assert lines[1] == "[Desktop Entry]"
    return dict(line.split("=", 1) for line in lines[2:])


def validate(text: str, directory: Path) -> str:
    """What desktop-file-validate says; it has to be content."""
    file = directory / f"work.{APPLICATION}.desktop"
    file.write_text(text, encoding="utf-8")
    ended = subprocess.run(["desktop-file-validate", "--no-hints", file], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


# --- what is made ----------------------------------------------------------------------------------------------------
def test_the_sample(tmp_path: Path) -> None:
    text = made(SAMPLE.read_bytes())
    assert text == """# Made by the cage runtime, and made anew by it.
[Desktop Entry]
Type=Application
Name=Notes [work]
Comment=Keep notes as plain text files
Exec=/usr/bin/cagectl run work org.example.App
Icon=application-x-executable
Categories=Utility;
NoDisplay=false
StartupNotify=false
Terminal=true
X-CageRuntime-Cage=work
X-CageRuntime-Application=org.example.App
"""
    assert validate(text, tmp_path) == ""


def test_an_entry_as_they_are(tmp_path: Path) -> None:
    text = made(entry(
        "Name=Text Editor", "Name[de]=Texteditor", "Name[sr@latin]=Uređivač teksta", "Name[pt_BR]=Editor de texto",
        "GenericName=Editor", "Comment=View and edit text; and more", "Comment[de]=Ansehen",
        "Keywords=write;notepad;a\\;b;", "Keywords[de]=Schreiben;", "Exec=gnome-text-editor %U", "TryExec=x",
        "Icon=/app/share/evil.svg", "DBusActivatable=true", "MimeType=text/plain;text/html;", "StartupNotify=true",
        "Categories=GNOME;GTK;Utility;TextEditor;X-Evil;", "Actions=new-window;", "X-Flatpak=org.example.App",
        "StartupWMClass=x", "Path=/", "Implements=org.example.X;", "", "[Desktop Action new-window]",
        "Name=New Window", "Exec=gnome-text-editor --new-window"))
    shown = keys(text)
    assert {key.partition("[")[0] for key in shown} == KEYS
    assert shown["Name"] == "Text Editor [work]"
    assert shown["Name[sr@latin]"] == "Uređivač teksta [work]"
    assert (shown["Keywords"], shown["Keywords[de]"]) == ("write;notepad;a\\;b;", "Schreiben;")
    assert (shown["Comment"], shown["Categories"]) == ("View and edit text; and more", "Utility;")
    assert shown["Exec"] == "/usr/bin/cagectl run work org.example.App --detach"
    assert shown["StartupNotify"] == "true"
    assert all(name.endswith(" [work]") for key, name in shown.items() if key.startswith("Name"))
    assert validate(text, tmp_path) == ""


@pytest.mark.parametrize(("given_", "made_"), [
    ("Audio;", "AudioVideo;Audio;"), ("Game;Game;", "Game;"), ("Nonsense;", "Utility;"), ("", "Utility;"),
    ("Settings;System;", "Settings;System;"),
])
def test_categories(given_: str, made_: str, tmp_path: Path) -> None:
    text = made(entry("Name=x", f"Categories={given_}"))
    assert keys(text)["Categories"] == made_
    validate(text, tmp_path)


@pytest.mark.parametrize("directory", ["/opt/cage runtime", '/a"b', "/100%U", "/$HOME", "/back\\slash", "/tick`"])
def test_the_command_is_one_command_wherever_the_program_lies(directory: str, tmp_path: Path) -> None:
    text = made(entry("Name=x"), cagectl=f"{directory}/cagectl")
    validate(text, tmp_path)
    line = keys(text)["Exec"].replace("\\\\", "\\")  # the escapes of a string, then those of a command line
    shell = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True)
    words = [word.replace("%%", "%") for word in shell.stdout.splitlines()]
    assert words == [f"{directory}/cagectl", "run", "work", APPLICATION, "--detach"]


RUN = "Exec=/usr/bin/flatpak run --branch=stable --arch=x86_64 --command=app"


@pytest.mark.parametrize(("line", "words"), [
    (f"{RUN} {APPLICATION} --list --width=80", "-- --list --width=80"),
    (f"{RUN} --file-forwarding {APPLICATION} @@u %U @@", ""),
    (f"{RUN} {APPLICATION} --view @@ %f @@", "-- --view"),
    (f"{RUN} {APPLICATION} $(reboot)", ""),
    (f"{RUN} {APPLICATION} 'a b'", ""),
    (f"{RUN} {APPLICATION} \\$x", ""),
    (f"{RUN} {APPLICATION} --a=%U", ""),
    (f"{RUN} {APPLICATION} é", ""),
    (f"{RUN} {APPLICATION} " + "x " * 17, ""),
    (f"{RUN.replace('=app', '=other')} {APPLICATION} --list", ""),
    (f"Exec=sh {APPLICATION} --list", ""),
    (f"Exec=sh {APPLICATION} --command=app --list", ""),
    (f"{RUN} --list", ""),
])
def test_plain_words_for_the_same_command_are_kept(line: str, words: str, tmp_path: Path) -> None:
    text = made(entry("Name=x", line))
    assert keys(text)["Exec"] == f"/usr/bin/cagectl run work org.example.App --detach {words}".rstrip()
    validate(text, tmp_path)


# --- what would mislead ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "shown"), [
    ("Bank [vault]", "Bank (vault) [work]"),
    ("100% %c %i %U", "100% %c %i %U [work]"),
    ("a\\\\nb", "a\\\\nb [work]"),
    ("  spaces\\s\\s", "spaces [work]"),
    ("x" * 200, "x" * export.NAME_MAX + " [work]"),
    ("$(reboot) `reboot` ;&|", "$(reboot) `reboot` ;&| [work]"),
    ("=Exec=evil", "=Exec=evil [work]"),
    ("#", "# [work]"),
])
def test_a_name_is_a_name(name: str, shown: str, tmp_path: Path) -> None:
    text = made(entry(f"Name={name}", f"Comment={name[:100]}"))
    assert keys(text)["Name"] == shown
    assert keys(text)["Exec"] == "/usr/bin/cagectl run work org.example.App --detach"
    validate(text, tmp_path)


@pytest.mark.parametrize("value", [
    "a\\nExec=evil", "a\\rb", "tab\\tbed", "\u202egnp.exe", "\u2066x\u2069", "zero\u200bwidth", "\x1b[31mred",
    "li\u2028ne", "nul\x00", "\ue000", "x" * (export.TEXT_MAX + 1), "", "   ",
])
def test_what_cannot_be_seen_is_left_out(value: str) -> None:
    shown = keys(made(entry("Name=App", f"Name[fa]={value}", f"Comment={value}", f"Keywords={value}")))
    assert not {"Name[fa]", "Comment", "Keywords"} & set(shown)
    with pytest.raises(UntrustedSource, match="no name that can be shown"):
        made(entry(f"Name={value}"))


@pytest.mark.parametrize("key", [
    "Name[]", "Name[de", "Name[de]]", "Name[DE]", "Name[de_DE.UTF-8]", "Name[../x]", "Name[d e]", "Terminal[de]",
    "Categories[de]", "Name[\u202e]",
])
def test_what_is_no_locale_is_left_out(key: str) -> None:
    assert set(keys(made(entry("Name=App", f"{key}=true")))) & {key} == set()


@pytest.mark.parametrize(("content", "why"), [
    (entry("Name=a", "Name=b"), "the key Name comes twice"),
    (entry("Name=a", "Name[de]=b", "Name[de]=c"), r"the key Name\[de\] comes twice"),
    (b"Name=x\n" + entry(), "neither a group nor a key of one"),
    (b"[Other]\n" + entry("Name=x"), "it begins with the group"),
    (entry("Name=a\\qb"), "a value has the escape"),
    (entry("Name=a\\"), "a value has the escape"),
    (entry("no key"), "neither a group nor a key of one"),
    (entry("Name=\xff").decode().encode("latin-1"), "is not UTF-8"),
    (entry("#" * export.ENTRY_BYTES_MAX), "has more than"),
])
def test_what_can_be_read_in_two_ways_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(UntrustedSource, match=why):
        parse_entry(content, APPLICATION, "app")


@pytest.mark.parametrize("content", [
    b"", b"[Desktop Entry]\n", entry().replace(b"Application", b"Link") + b"Name=x\nURL=file:///etc\n",
    entry("Name=x", "Hidden=true"), entry("Comment=nameless"), b"[Desktop Entry]\nName=x\n",
])
def test_what_is_no_entry_of_an_application_is_none(content: bytes) -> None:
    assert parse_entry(content, APPLICATION, "app") == {}


def test_escapes_of_keys_that_are_not_taken_are_nobody_s_business() -> None:
    content = entry("Name=x", 'Exec=sh -c "\\$x \\`"', "X-a_b=1", "X-a_b=1")
    assert parse_entry(content, APPLICATION, "app") == {"Name": "x"}


def test_who_reads_is_not_believed_either() -> None:
    """What caged gets from cage-apps it checks again."""
    ours = {"Type": "Link", "Exec": "evil", "Icon": "/x", "URL": "file:///", "Name": "App", "Name[x]y": "z",
            "Terminal": "true\nExec=evil", "Name[de]": "a\nExec=evil", "\nExec": "evil", "Categories": "Game\n;",
            "X-CageRuntime-Cage": "vault", "Arguments": "a  b"}
    shown = keys(render_entry(ours, cage="work", application=APPLICATION, cagectl="/usr/bin/cagectl"))
    assert shown == {
        "Type": "Application", "Name": "App [work]", "Exec": "/usr/bin/cagectl run work org.example.App --detach",
        "Icon": export.ICON, "Categories": "Utility;", "NoDisplay": "false", "StartupNotify": "false",
        "Terminal": "false", "X-CageRuntime-Cage": "work", "X-CageRuntime-Application": APPLICATION}
    with pytest.raises(UntrustedSource, match="has more than"):
        render_entry({f"Name[{number}]": "x" for number in range(2000)}, cage="work", application=APPLICATION,
                     cagectl="/usr/bin/cagectl")


LINES = st.lists(st.tuples(
    st.sampled_from(["Name", "Name[de]", "Comment", "Keywords", "Categories", "Terminal", "Exec", "MimeType", "["]),
    st.text(max_size=40)), max_size=12)


@given(LINES)
def test_whatever_it_says_the_command_is_ours(lines: list[tuple[str, str]]) -> None:
    content = entry(*(f"{key}={value}" for key, value in lines)).decode().encode("utf-8", "surrogatepass")
    try:
        text = made(content)
    except UntrustedSource:
        return
    assert text.isprintable() or set(filter(lambda c: not c.isprintable(), text)) <= {"\n"} | _SPACES
    assert re.findall(r"(?m)^(?:Exec|TryExec|MimeType|Icon|URL)=.*$", text) == [
        text[(begin := text.index("Exec=")):text.index("\n", begin)], f"Icon={export.ICON}"]
    shown = keys(text)
    assert shown["Exec"].startswith("/usr/bin/cagectl run work org.example.App")
    assert {key.partition("[")[0] for key in shown} <= KEYS
    assert shown["Name"].endswith(" [work]")


_SPACES = set("\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000")


# --- reading ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def active(tmp_path: Path) -> Path:
    (tmp_path / "commit/export/share/applications").mkdir(parents=True)
    (tmp_path / "active").symlink_to("commit")
    return tmp_path / "active"


def test_the_entry_is_read_from_where_it_is(active: Path) -> None:
    (active / f"export/share/applications/{APPLICATION}.desktop").write_bytes(entry("Name=App"))
    assert read_entry(active, APPLICATION, "app")["Name"] == "App"
    assert read_entry(active, "org.example.Other", "app") == {}
    assert read_entry(active.with_name("gone"), APPLICATION, "app") == {}


def test_no_link_is_followed_and_nobody_is_waited_for(active: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.desktop"
    outside.write_bytes(entry("Name=App"))
    place = active / f"export/share/applications/{APPLICATION}.desktop"
    place.symlink_to(outside)
    assert read_entry(active, APPLICATION, "app") == {}
    place.unlink()
    os.mkfifo(place)
    assert read_entry(active, APPLICATION, "app") == {}
    place.unlink()
    place.mkdir()
    assert read_entry(active, APPLICATION, "app") == {}
    place.rmdir()
    place.parent.rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"elsewhere/{APPLICATION}.desktop").write_bytes(entry("Name=App"))
    place.parent.symlink_to(tmp_path / "elsewhere")
    assert read_entry(active, APPLICATION, "app") == {}
