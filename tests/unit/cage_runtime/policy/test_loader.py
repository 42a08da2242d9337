# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which policy files count, in which order, and that one bad one refuses all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cage_runtime.config import Paths
from cage_runtime.errors import PolicySyntaxError
from cage_runtime.model import POLICY_BYTES_MAX, Levels
from cage_runtime.policy import loader
from cage_runtime.policy.loader import faults, load_or_refuse, load_policy

LEVELS = Levels(names=("public", "secret"))
PLACES = ("shipped", "run", "administrator")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    for place in PLACES:
        (tmp_path / place / "policy.d").mkdir(parents=True)
    return Paths(**{place: str(tmp_path / place) for place in PLACES})


def put(paths: Paths, place: str, name: str, text: str | bytes) -> Path:
    file = Path(getattr(paths, place), "policy.d", name)
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def names(paths: Paths) -> list[str]:
    """The source column of the rules in force, in which the tests write who they are."""
    return [str(rule.source) for rule in load_policy(paths, LEVELS, {}).rules]


def rule(source: str) -> str:
    return f"* * {source} * deny\n"


def test_files_are_read_in_the_order_of_their_names_over_all_directories(paths: Paths) -> None:
    put(paths, "administrator", "60-b.policy", rule("third"))
    put(paths, "run", "50-b.policy", rule("second"))
    put(paths, "shipped", "50-Z.policy", rule("first"))
    put(paths, "shipped", "90-a.policy", rule("fifth"))
    put(paths, "run", "60-c.policy", rule("fourth"))
    assert names(paths) == ["first", "second", "third", "fourth", "fifth"]


def test_the_same_name_masks(paths: Paths) -> None:
    for place in PLACES:
        put(paths, place, "50-a.policy", rule(place))
    assert names(paths) == ["administrator"]
    Path(paths.administrator, "policy.d", "50-a.policy").unlink()
    assert names(paths) == ["run"]
    Path(paths.run, "policy.d", "50-a.policy").unlink()
    assert names(paths) == ["shipped"]


def test_a_link_to_dev_null_disables(paths: Paths) -> None:
    put(paths, "shipped", "50-a.policy", rule("shipped"))
    put(paths, "shipped", "60-b.policy", rule("other"))
    Path(paths.administrator, "policy.d", "50-a.policy").symlink_to("/dev/null")
    assert names(paths) == ["other"]


def test_other_links_are_refused(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "real").write_text(rule("linked"))
    link = Path(paths.administrator, "policy.d", "50-a.policy")
    link.symlink_to(tmp_path / "real")
    with pytest.raises(PolicySyntaxError) as caught:
        load_policy(paths, LEVELS, {})
    assert caught.value.sentence.startswith(f"{link}:1: a symbolic link")


def test_a_masked_file_is_not_looked_at(paths: Paths) -> None:
    put(paths, "shipped", "50-a.policy", "nonsense")
    put(paths, "administrator", "50-a.policy", rule("mine"))
    assert names(paths) == ["mine"]


def test_one_bad_line_refuses_all(paths: Paths) -> None:
    put(paths, "shipped", "50-a.policy", "* * * * allow\n")
    bad = put(paths, "administrator", "99-z.policy", "\n* * * * alow\n")
    with pytest.raises(PolicySyntaxError) as caught:
        load_policy(paths, LEVELS, {})
    assert caught.value.sentence == f'{bad}:2: "alow" is not an action: write allow, ask or deny'
    refusing = load_or_refuse(paths, LEVELS, {})
    assert (refusing.rules, refusing.fault) == ((), caught.value.sentence)


def test_every_fault_of_every_file_is_told(paths: Paths) -> None:
    first = put(paths, "shipped", "50-a.policy", "* * * * alow\n* * * * allow\nnonsense\n* * ! * deny # first\n")
    link = Path(paths.administrator, "policy.d", "60-b.policy")
    link.symlink_to("/etc/passwd")
    misnamed = [put(paths, "run", name, "") for name in ("b.policy", "a.policy")]
    last = put(paths, "administrator", "99-z.policy", b"* * * * deny\n\xff")
    found = faults(paths, LEVELS, {})
    places = [fault.partition(": ")[0] for fault in found]
    assert places == [f"{misnamed[1]}:1", f"{misnamed[0]}:1", f"{first}:1", f"{first}:3", f"{first}:4", f"{link}:1",
                      f"{last}:2"]  # fmt: skip
    assert load_or_refuse(paths, LEVELS, {}).fault == found[0], "loading stays all or nothing"


def test_a_sound_policy_has_no_faults(paths: Paths) -> None:
    put(paths, "shipped", "50-a.policy", "* * * * allow\n")
    assert faults(paths, LEVELS, {}) == []


def test_too_many_faults_are_counted(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "POLICY_FAULTS_MAX", 2)
    file = put(paths, "shipped", "50-a.policy", "x\n" * 5)
    assert [fault.partition(": ")[0] for fault in faults(paths, LEVELS, {})] == [
        f"{file}:1", f"{file}:2", "3 more faults are not shown"]  # fmt: skip


def test_rules_are_placed_by_their_path(paths: Paths) -> None:
    file = put(paths, "shipped", "50-a.policy", "# x\n* * * * deny\n")
    assert [found.place for found in load_policy(paths, LEVELS, {}).rules] == [f"{file}:2"]


@pytest.mark.parametrize("name", ["README", "50-a.policy~", "50-a.policy.dpkg-old", ".50-a.policy", ".#50-a.policy"])
def test_other_files_do_not_count(paths: Paths, name: str) -> None:
    put(paths, "administrator", name, "nonsense")
    assert names(paths) == []


@pytest.mark.parametrize("name", ["a.policy", "5-a.policy", "500-a.policy", "50-.policy", "50-a b.policy"])
def test_a_misnamed_policy_is_refused_rather_than_forgotten(paths: Paths, name: str) -> None:
    put(paths, "administrator", name, rule("x"))
    with pytest.raises(PolicySyntaxError, match="a policy file is named NN-name"):
        load_policy(paths, LEVELS, {})


def test_missing_directories_are_empty(tmp_path: Path) -> None:
    paths = Paths(**{place: str(tmp_path / "none" / place) for place in PLACES})
    assert load_policy(paths, LEVELS, {}).rules == ()


def test_a_fifo_is_refused_and_does_not_hold_up(paths: Paths) -> None:
    os.mkfifo(Path(paths.administrator, "policy.d", "50-a.policy"))
    with pytest.raises(PolicySyntaxError, match="not a regular file"):
        load_policy(paths, LEVELS, {})


def test_a_directory_is_refused(paths: Paths) -> None:
    Path(paths.administrator, "policy.d", "50-a.policy").mkdir()
    with pytest.raises(PolicySyntaxError, match="not a regular file"):
        load_policy(paths, LEVELS, {})


def test_a_directory_that_is_none_is_refused(tmp_path: Path, paths: Paths) -> None:
    (tmp_path / "run" / "policy.d").rmdir()
    (tmp_path / "run" / "policy.d").write_text("")
    with pytest.raises(PolicySyntaxError, match="cannot be read: Not a directory"):
        load_policy(paths, LEVELS, {})


def test_a_big_file_is_refused(paths: Paths) -> None:
    put(paths, "shipped", "50-a.policy", b"#" * (POLICY_BYTES_MAX + 1))
    with pytest.raises(PolicySyntaxError, match="divide it"):
        load_policy(paths, LEVELS, {})


def test_too_many_rules_are_refused(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "POLICY_RULES_MAX", 10)
    put(paths, "shipped", "50-a.policy", "* * * * deny\n" * 10)
    assert len(load_policy(paths, LEVELS, {}).rules) == 10
    last = put(paths, "shipped", "99-z.policy", "\n* * * * deny\n")
    with pytest.raises(PolicySyntaxError) as caught:
        load_policy(paths, LEVELS, {})
    assert caught.value.sentence == f"{last}:2: more than 10 rules in all"
