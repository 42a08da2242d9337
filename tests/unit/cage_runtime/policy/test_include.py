# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can be included in a policy, and what cannot (M6)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cage_runtime.config import Paths
from cage_runtime.errors import PolicySyntaxError
from cage_runtime.model import POLICY_BYTES_MAX, POLICY_INCLUDE_DEPTH, POLICY_LINE_MAX, Levels
from cage_runtime.policy import loader
from cage_runtime.policy.loader import faults, load_policy

LEVELS = Levels(names=("public", "secret"))


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """The administrator's policy.d."""
    found = tmp_path / "etc/policy.d"
    (found / "include").mkdir(parents=True)
    return found


def paths(top: Path) -> Paths:
    return Paths(shipped="/nonexistent", run="/nonexistent", administrator=str(top.parent))


def load(top: Path) -> list[str]:
    """The source column of the rules in force, and where they stand."""
    rules = load_policy(paths(top), LEVELS, {}).rules
    return [f"{rule.source} {rule.place.removeprefix(f'{top}/')}" for rule in rules]


def fault(top: Path) -> str:
    with pytest.raises(PolicySyntaxError) as caught:
        load_policy(paths(top), LEVELS, {})
    return caught.value.sentence.replace(str(top), "TOP")


def put(top: Path, **files: str) -> None:
    for name, text in files.items():
        (top / name.replace("__", "/").replace("_", "-")).write_text(text)


def rule(source: str) -> str:
    return f"* * {source} * deny\n"


def test_what_is_included_stands_where_the_instruction_is(top: Path) -> None:
    (top / "50-a.policy").write_text(f"{rule('first')}!include include/common\n{rule('third')}")
    put(top, include__common=f"# a comment\n{rule('second')}")
    assert load(top) == ["first 50-a.policy:1", "second include/common:2", "third 50-a.policy:3"]


def test_a_path_is_from_the_file_that_includes(top: Path) -> None:
    (top / "50-a.policy").write_text("!include include/more\n")
    put(top, include__more="!include common\n", include__common=rule("here"))
    assert load(top) == ["here include/common:1"]


def test_an_absolute_path_is_one(top: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text(rule("there"))
    (top / "50-a.policy").write_text(f"!include {tmp_path}/other\n")
    assert [each.split()[0] for each in load(top)] == ["there"]


def test_a_directory_is_read_as_policy_d_is(top: Path) -> None:
    (top / "50-a.policy").write_text("!include-dir include\n")
    for name, source in (("20-b.policy", "second"), ("10-a.policy", "first"), ("20-Z.policy", "between")):
        (top / "include" / name).write_text(rule(source))
    for name in ("README", "10-a.policy~", ".10-b.policy"):
        (top / "include" / name).write_text("nonsense")
    assert [each.split()[0] for each in load(top)] == ["first", "between", "second"]
    (top / "include" / "mine.policy").write_text("")
    assert fault(top) == (
        "TOP/50-a.policy:1: TOP/include/mine.policy: a policy file is named NN-name.policy, two digits first"
    )


def test_an_empty_directory_is_none(top: Path) -> None:
    (top / "50-a.policy").write_text("!include-dir include\n")
    assert load(top) == []


def test_one_file_may_be_included_twice(top: Path) -> None:
    (top / "50-a.policy").write_text("!include include/common\n!include include/common\n")
    put(top, include__common=rule("here"))
    assert load(top) == ["here include/common:1"] * 2


def test_a_bad_line_of_an_included_file_refuses_all(top: Path) -> None:
    (top / "50-a.policy").write_text("* * * * deny\n!include include/common\n")
    put(top, include__common="\nnonsense\n")
    assert fault(top).startswith("TOP/include/common:2: 1 words are no rule")


@pytest.mark.parametrize(("first", "common"), [
    ("!include 50-a.policy\n", ""), ("!include include/common\n", "!include common\n"),
    ("!include-dir include\n", ""),
])  # fmt: skip
def test_loops_are_refused(top: Path, first: str, common: str) -> None:
    (top / "50-a.policy").write_text(first)
    put(top, include__common=common)
    absolute = f"!include-dir {top}/include\n"
    (top / "include" / "10-a.policy").write_text(absolute)
    assert fault(top).endswith(" includes itself")


def test_a_loop_by_a_hard_link_is_one(top: Path) -> None:
    (top / "50-a.policy").write_text("!include include/twin\n")
    (top / "include" / "twin").hardlink_to(top / "50-a.policy")
    assert fault(top) == "TOP/50-a.policy:1: TOP/include/twin includes itself"


@pytest.mark.parametrize("path", ["../x", "a/../x", "..", "./x", "a//b", "a/", "", "~root", "$HOME", "include/*"])
def test_paths_that_lead_elsewhere_are_refused(top: Path, path: str) -> None:
    (top / "50-a.policy").write_text(f"!include {path}\n")
    assert fault(top).startswith("TOP/50-a.policy:1: ")


def test_links_are_refused_on_the_whole_way(top: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "common").write_text(rule("x"))
    (top / "link").symlink_to(tmp_path / "real")
    (top / "include" / "link").symlink_to(tmp_path / "real" / "common")
    (top / "include" / "null").symlink_to("/dev/null")
    says = {
        "!include link/common": "a directory on the way is a symbolic link or none",
        "!include include/link": "a symbolic link", "!include include/null": "a symbolic link",
        "!include-dir link": "a symbolic link", f"!include {top}/link/common": "a directory on the way",
    }  # fmt: skip
    for line, said in says.items():
        (top / "50-a.policy").write_text(f"{line}\n")
        assert said in fault(top), line


@pytest.mark.parametrize("path", ["none", "none/common", "include", "fifo"])
def test_what_is_no_file_is_refused_and_holds_nothing_up(top: Path, path: str) -> None:
    os.mkfifo(top / "fifo")
    (top / "50-a.policy").write_text(f"!include {path}\n")
    assert fault(top).startswith(f"TOP/50-a.policy:1: TOP/{path}")
    (top / "50-a.policy").write_text(f"!include-dir {path.replace('include', '50-a.policy')}\n")
    assert fault(top).startswith("TOP/50-a.policy:1: TOP/")


def test_how_deep_files_are_within_one_another_is_bounded(top: Path) -> None:
    """M12: the most, and one more."""
    for depth in range(POLICY_INCLUDE_DEPTH):
        (top / "include" / f"f{depth}").write_text(f"!include f{depth + 1}\n")
    (top / "include" / f"f{POLICY_INCLUDE_DEPTH}").write_text(rule("deep"))
    (top / "50-a.policy").write_text("!include include/f1\n")
    assert [each.split()[0] for each in load(top)] == ["deep"]
    (top / "50-a.policy").write_text("!include include/f0\n")
    assert f"more than {POLICY_INCLUDE_DEPTH} files within one another" in fault(top)


def test_how_many_files_are_read_is_bounded(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "POLICY_FILES_MAX", 5)
    put(top, include__common="")
    (top / "50-a.policy").write_text("!include include/common\n" * 4)
    assert load(top) == []
    (top / "50-a.policy").write_text("!include include/common\n" * 5)
    assert fault(top).startswith("TOP/50-a.policy:5: more than 5 files")
    assert len(faults(paths(top), LEVELS, {})) == 1


def test_files_that_include_two_others_each_end_soon(top: Path) -> None:
    """M6: without a bound that is 2**8 times the last one, and its bytes as often."""
    for depth in range(POLICY_INCLUDE_DEPTH - 1):
        (top / "include" / f"f{depth}").write_text(f"!include f{depth + 1}\n" * 4)
    (top / "include" / f"f{POLICY_INCLUDE_DEPTH - 1}").write_text("#" * 4000)
    (top / "50-a.policy").write_text("!include include/f0\n")
    assert "more than 1000 files" in fault(top)


def test_how_many_bytes_are_read_is_bounded(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "POLICY_TOTAL_BYTES_MAX", 3 * 4000)
    put(top, include__common="#" * 3999 + "\n")
    (top / "50-a.policy").write_text("!include include/common\n" * 2)
    assert load(top) == []
    (top / "50-a.policy").write_text("!include include/common\n" * 3)
    assert "12000 bytes in them" in fault(top)


def test_an_included_file_has_the_bounds_of_any_other(top: Path) -> None:
    """M6: 10 MB in one line."""
    (top / "50-a.policy").write_text("!include include/common\n")
    (top / "include" / "common").write_bytes(b"x" * 10_000_000)
    assert fault(top) == f"TOP/include/common:1: the file has more than {POLICY_BYTES_MAX} bytes; divide it"
    (top / "include" / "common").write_bytes(b"x" * (POLICY_LINE_MAX + 1))
    assert fault(top) == f"TOP/include/common:1: the line has more than {POLICY_LINE_MAX} bytes"


def test_all_faults_of_included_files_are_told(top: Path) -> None:
    (top / "50-a.policy").write_text("!include include/common\nnonsense\n!include none\n")
    put(top, include__common="bad\n* * * * deny\nworse\n")
    found = [each.replace(str(top), "TOP").partition(": ")[0] for each in faults(paths(top), LEVELS, {})]
    assert found == ["TOP/include/common:1", "TOP/include/common:3", "TOP/50-a.policy:2", "TOP/50-a.policy:3"]
