# SPDX-License-Identifier: LGPL-2.1-or-later
"""What flatpak says of an application, which anything in the cage may have written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime.portal.application import INFO_BYTES_MAX, read


@pytest.mark.parametrize(("text", "application"), [
    ("[Application]\nname=org.example.App\n", "org.example.App"),
    ("[Context]\nname=org.example.Other\n[Application]\nname=org.example.App\n", "org.example.App"),
    ("", ""), ("[Application]\n", ""), ("name=org.example.App\n", ""), ("[Application]\nname\n", ""),
    ("[Application]\nname=../../../etc\n", ""), ("[Application]\nname=org.example.App/../..\n", ""),
    ("[Application]\nname=org\n", ""), (f"[Application]\nname=org.example.{'a' * 300}\n", ""),
    (" " * INFO_BYTES_MAX + "\n[Application]\nname=org.example.App\n", ""),
])
def test_only_an_application_s_id_counts(tmp_path: Path, text: str, application: str) -> None:
    (tmp_path / "info").write_text(text)
    assert read(str(tmp_path / "info")) == application


@given(st.binary(max_size=200))
def test_no_content_names_a_path(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("info") / "info"
    file.write_bytes(b"[Application]\nname=" + content)
    found = read(str(file))
    assert "/" not in found
    assert ".." not in found


def test_what_is_no_file_is_no_application(tmp_path: Path) -> None:
    """A FIFO would make whoever reads it wait, and a link leads elsewhere."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "real").write_text("[Application]\nname=org.example.App\n")
    (tmp_path / "link").symlink_to("real")
    for name in ("fifo", "link", "nothing"):
        assert read(str(tmp_path / name)) == ""
