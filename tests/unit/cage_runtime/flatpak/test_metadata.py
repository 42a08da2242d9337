# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a stranger wrote about an application is read strictly, and a cage sees no more than follows from it."""

from __future__ import annotations

import pytest

from cage_runtime.errors import InvalidName, UntrustedSource
from cage_runtime.flatpak.metadata import (
    EXTENSIONS_MAX,
    METADATA_BYTES_MAX,
    Kind,
    Ref,
    check_application,
    check_remote,
    companions,
    parse_metadata,
    parse_ref,
    trees,
)

APPLICATION = b"""[Application]
name=org.example.Editor
runtime=org.example.Platform/x86_64/23.08
sdk=org.example.Sdk/x86_64/23.08
command=editor

[Context]
shared=network;ipc;
filesystems=xdg-documents;

[Extension org.example.Editor.Plugin]
directory=plugins
subdirectories=true
no-autodownload=true

[Extension org.example.Editor.Locale]
directory=share/runtime/locale
autodelete=true
"""
RUNTIME = b"""[Runtime]
name=org.example.Platform
runtime=org.example.Platform/x86_64/23.08
sdk=org.example.Sdk/x86_64/23.08

[Extension org.example.Platform.GL]
versions=23.08;1.4
subdirectories=true
download-if=active-gl-driver
directory=lib/GL

[Extension org.example.Platform.codecs@tag]
version=2
directory=lib/codecs
"""


def runtime_ref(name: str, branch: str, arch: str = "x86_64") -> Ref:
    return Ref(kind=Kind.RUNTIME, name=name, arch=arch, branch=branch)


def test_an_application_and_its_runtime_are_understood() -> None:
    application = parse_metadata(APPLICATION, "app")
    assert (application.kind, application.name) == (Kind.APPLICATION, "org.example.Editor")
    assert application.runtime == runtime_ref("org.example.Platform", "23.08")
    plugin, locale = application.extensions
    assert plugin.subdirectories
    assert not plugin.wanted
    assert locale.branches == ("23.08",)
    gl, codecs = parse_metadata(RUNTIME, "runtime").extensions
    assert gl.branches == ("23.08", "1.4")
    assert gl.driver
    assert (codecs.name, codecs.branches) == ("org.example.Platform.codecs", ("2",))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"filesystems=home\0;\n", "hidden character U\\+0000"),
        (b"filesystems=home;\x1b[2K\x1b[1A\n", "hidden character U\\+001B"),
        (b"filesystems=home;\r\n", "hidden character U\\+000D"),
        ("filesystems=\u202eemoh\n".encode(), "hidden character U\\+202E"),
        (b"filesystems=xdg-music\\nhost\n", "escape"),
        (b"filesystems=xdg-music\\r\n", "escape"),
        (b"filesystems=xdg-music\\x1b\n", "escape"),
        (b"filesystems=home\\\n", "escape"),
        (b"shared=\nshared=network\n", "key shared comes twice"),
        (b"[Context]\nshared=network\n", "group Context comes twice"),
        (b"filesystems\n", "neither a group nor a key"),
        (b"[Context] \nshared=network\n", "neither a group nor a key"),
        (b"=host\n", "neither a group nor a key"),
    ],
)
def test_what_two_readers_could_understand_differently_is_refused(line: bytes, why: str) -> None:
    head = b"[Application]\nname=org.example.Editor\nruntime=org.example.Platform/x86_64/1\n[Context]\n"
    parse_metadata(head, "app")
    with pytest.raises(UntrustedSource, match=f"line [56]: .*{why}"):
        parse_metadata(head + line, "app")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"name=org.example.Editor\n",
        b"[Application]\nname=org.example.Editor\n",
        b"[Application]\nname=../../etc\nruntime=org.example.Platform/x86_64/1\n",
        b"[Application]\nname=org.example.Editor\nruntime=org.example.Platform/x86_64/..\n",
        b"[Application]\nname=org.example.Editor\nruntime=org.example.Platform/../1\n",
        b"[Application]\nname=a.b.c\nruntime=a.b.d/x/1\n[Runtime]\nname=a.b.c\n",
        b"[Application]\nname=a.b.c\nruntime=a.b.d/x/1\n#" + b"x" * METADATA_BYTES_MAX,
        b"[Application]\nname=a.b.c\nruntime=a.b.d/x/1\n"
        + b"".join(b"[Extension a.b.c%d]\n" % number for number in range(EXTENSIONS_MAX + 1)),
    ],
)
def test_metadata_that_is_none_is_refused(content: bytes) -> None:
    with pytest.raises(UntrustedSource):
        parse_metadata(content, "app")


@pytest.mark.parametrize("name", ["org.gnome.TextEditor", "org.example.App-two", "_a._b._c"])
def test_good_application_names(name: str) -> None:
    assert check_application(name) == name


@pytest.mark.parametrize(
    "name", ["", "org.example", "-org.example.App", "org.example.App\n", "org/example.a.b", "org..a.b", "a.b.c\0",
             "org.example.1App", "--all", "a." * 200 + "a", "org.example.App//stable"],
)
def test_bad_application_names(name: str) -> None:
    with pytest.raises(InvalidName, match="cannot be an application's name"):
        check_application(name)


@pytest.mark.parametrize("name", ["", "-x", "X", "a/b", "..", "a" * 32, "flat hub", "flathub\n"])
def test_bad_remote_names(name: str) -> None:
    with pytest.raises(InvalidName, match="cannot be a remote's name"):
        check_remote(name)


@pytest.mark.parametrize("ref", ["appstream2/x86_64", "app/org.example.A/x86_64", "app/a.b.c/x/../y", "app/a.b.c/x/-y",
                                 "runtime/a.b.c/x/y\n", "other/a.b.c/x/y", "ostree-metadata"])
def test_what_is_no_ref_is_none(ref: str) -> None:
    assert parse_ref(ref) is None


def test_a_ref_reads_back() -> None:
    text = "runtime/org.freedesktop.Platform.GL.nvidia-550-54/x86_64/1.4"
    assert str(parse_ref(text)) == text


def test_a_cage_sees_the_application_its_runtime_and_what_extends_them_and_nothing_else() -> None:
    installed = {"org.example.Platform", "org.example.Platform.GL.default", "org.example.Editor.Plugin.spell",
                 "org.example.Platform.codecs", "org.example.Platform.GLX", "org.other.Platform", "org.example.Sdk"}
    seen = trees(parse_metadata(APPLICATION, "app"), parse_metadata(RUNTIME, "runtime"), installed)
    assert seen == [
        "app/org.example.Editor", "runtime/org.example.Editor.Plugin.spell", "runtime/org.example.Platform",
        "runtime/org.example.Platform.GL.default", "runtime/org.example.Platform.codecs",
    ]


def test_an_extension_point_for_everything_opens_nothing() -> None:
    greedy = APPLICATION + b"[Extension org]\nsubdirectories=true\n[Extension ..]\nsubdirectories=true\n"
    seen = trees(parse_metadata(greedy, "app"), parse_metadata(RUNTIME, "runtime"), {"org.other.Secret"})
    assert seen == ["app/org.example.Editor", "runtime/org.example.Platform"]


def test_only_wanted_extensions_of_the_right_branch_come_along() -> None:
    wanted = [runtime_ref("org.example.Platform.GL.default", "1.4"), runtime_ref("org.example.Platform.codecs", "2")]
    offered = [
        *wanted, runtime_ref("org.example.Platform.GL.default", "1.3"), runtime_ref("org.example.Platform.codecs", "1"),
        runtime_ref("org.example.Platform.GL.nvidia-550", "1.4"),
        runtime_ref("org.example.Platform.codecs", "2", "aarch64"),
        runtime_ref("org.example.Editor.Plugin", "23.08"), runtime_ref("org.example.Editor.Locale", "23.08"),
    ]
    assert companions(parse_metadata(RUNTIME, "runtime"), offered) == wanted
    assert companions(parse_metadata(APPLICATION, "app"), offered) == []
