# SPDX-License-Identifier: LGPL-2.1-or-later
"""The policy files of this host: all of them or none.

The files are the NN-name.policy of the shipped, the run-time and the administrator's policy.d, in the order of their
names in the C locale; of files with one name the administrator's counts, then the run-time's, then the shipped one.
What is included stands where the instruction is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from cage_runtime.config import Paths
from cage_runtime.errors import PolicySyntaxError
from cage_runtime.model import (
    POLICY_FAULTS_MAX,
    POLICY_FILES_MAX,
    POLICY_INCLUDE_DEPTH,
    POLICY_RULES_MAX,
    POLICY_TOTAL_BYTES_MAX,
    Levels,
    ServiceKind,
)
from cage_runtime.policy.engine import Policy
from cage_runtime.policy.files import File, names_in, read_included, read_policy_file
from cage_runtime.policy.parser import read, sound
from cage_runtime.policy.rule import Include, Rule
from cage_runtime.text import escape

_FILE_NAME = re.compile(r"[0-9]{2}-[A-Za-z0-9][A-Za-z0-9_-]*\.policy\Z")
Kinds = Mapping[str, ServiceKind]
_TRIED = -1
"""The device of a file that is on none."""
_NONE: Mapping[str, File] = {}


def load_policy(paths: Paths, levels: Levels, kinds: Kinds) -> Policy:
    """The policy of this host; one bad line in one file, and PolicySyntaxError refuses all of it.

    `kinds` are the services that mediators have.
    """
    return Policy(rules=tuple(sound(_Reading(levels, kinds).all(paths))), kinds=kinds)


def load_tried(paths: Paths, levels: Levels, kinds: Kinds, untrusted_files: Mapping[str, bytes], *,
               alone: bool = False) -> Policy:
    """The policy that there would be if `untrusted_files`, texts by their names, were the administrator's too; with
    `alone` if there were no others.  PolicySyntaxError for a fault anywhere in it.

    What they include has to lie beside the installed ones: who tries a policy need not be who may read every file.
    """
    for untrusted_name in untrusted_files:
        if not _FILE_NAME.match(untrusted_name):
            raise PolicySyntaxError(f'"{escape(untrusted_name, limit=60)}": {_MISNAMED}')
    directory = Path(paths.administrator, "policy.d")
    tried = {name: File(path=directory / name, identity=(_TRIED, number), untrusted_text=text)
             for number, (name, text) in enumerate(untrusted_files.items())}
    return Policy(rules=tuple(sound(_Reading(levels, kinds).all(paths, tried, alone=alone))), kinds=kinds)


def faults(paths: Paths, levels: Levels, kinds: Kinds) -> list[str]:
    """Everything that is wrong with the policy of this host, a sentence each with file and line; [] where it is sound.

    After POLICY_FAULTS_MAX of them one more says how many there are besides.
    """
    read_all = _Reading(levels, kinds).all(paths)
    found = [fault.sentence for fault in read_all if isinstance(fault, PolicySyntaxError)]
    more = len(found) - POLICY_FAULTS_MAX
    return [*found[:POLICY_FAULTS_MAX], f"{more} more faults are not shown"] if more > 0 else found


def load_or_refuse(paths: Paths, levels: Levels, kinds: Kinds) -> Policy:
    """The policy of this host, or the one that denies everything and says what is wrong with the host's."""
    try:
        return load_policy(paths, levels, kinds)
    except PolicySyntaxError as error:
        return Policy.refusing(error)


class _Reading:
    """One way through all files, with what it has come across on it: the bounds are for all of them together."""

    def __init__(self, levels: Levels, kinds: Kinds) -> None:
        self._levels, self._kinds = levels, kinds
        self._rules = self._files = self._bytes = 0

    def all(self, paths: Paths, tried: Mapping[str, File] = _NONE, *,
            alone: bool = False) -> Iterator[Rule | PolicySyntaxError]:
        """Rules and faults of all files in their order; what is wrong with the directories comes first.

        Files of `tried` are in the place of those of their names; `alone` there are no others.
        """
        installed, misnamed = ({}, []) if alone else _policy_files(paths)
        yield from misnamed
        files: dict[str, Path | File] = {**installed, **tried}
        for found in self._top([files[name] for name in sorted(files, key=os.fsencode)]):
            self._rules += isinstance(found, Rule)
            if isinstance(found, Rule) and self._rules > POLICY_RULES_MAX:
                yield PolicySyntaxError(f"{found.place}: more than {POLICY_RULES_MAX} rules in all")
                return
            yield found
            if self._too_much():
                return

    def _too_much(self) -> bool:
        return self._files > POLICY_FILES_MAX or self._bytes > POLICY_TOTAL_BYTES_MAX

    def _top(self, files: list[Path | File]) -> Iterator[Rule | PolicySyntaxError]:
        for each in files:
            try:
                file = each if isinstance(each, File) else read_policy_file(each)
            except PolicySyntaxError as error:
                yield error
                continue
            if file is not None:
                yield from self._file(file, f"{_shown(file)}:1", ())

    def _file(self, file: File, place: str, around: tuple[File, ...]) -> Iterator[Rule | PolicySyntaxError]:
        """What the file says, in the files `around` it; `place` is what it is there for."""
        self._files += 1
        self._bytes += len(file.untrusted_text)
        if self._too_much():
            most = f"{POLICY_FILES_MAX} files, or than {POLICY_TOTAL_BYTES_MAX} bytes in them"
            yield PolicySyntaxError(f"{place}: more than {most}, in all")
            return
        for found in read(file.untrusted_text, file=_shown(file), levels=self._levels, kinds=self._kinds):
            if isinstance(found, Include):
                yield from self._included(found, (*around, file))
            else:
                yield found
            if self._too_much():
                return

    def _included(self, include: Include, around: tuple[File, ...]) -> Iterator[Rule | PolicySyntaxError]:
        if len(around) > POLICY_INCLUDE_DEPTH:
            yield PolicySyntaxError(f"{include.place}: more than {POLICY_INCLUDE_DEPTH} files within one another")
            return
        if around[-1].identity[0] == _TRIED and include.path.startswith("/"):
            yield PolicySyntaxError(f"{include.place}: a file that is not installed includes none by its whole path")
            return
        path = around[-1].path.parent / include.path
        try:
            paths = [path / name for name in _names(path, include.place)] if include.directory else [path]
            files = [read_included(each, include.place) for each in paths]
        except PolicySyntaxError as error:
            yield error
            return
        for file in files:
            if file.identity in {each.identity for each in around}:
                yield PolicySyntaxError(f"{include.place}: {file.path} includes itself")
            else:
                yield from self._file(file, include.place, around)


def _shown(file: File) -> str:
    """What its rules and faults are said to be in: of what is not installed the name alone, as it is nowhere here."""
    return file.path.name if file.identity[0] == _TRIED else str(file.path)


def _names(directory: Path, place: str) -> list[str]:
    """What counts in an included directory, in the order of its names: as in policy.d."""
    found = []
    for untrusted_name in names_in(directory, place):
        if not _counts(untrusted_name):
            continue
        if not _FILE_NAME.match(untrusted_name):
            raise PolicySyntaxError(f"{place}: {directory}/{escape(untrusted_name)}: {_MISNAMED}")
        found.append(untrusted_name)
    if len(found) > POLICY_FILES_MAX:
        raise PolicySyntaxError(f"{place}: {directory}: more than {POLICY_FILES_MAX} files")
    return sorted(found, key=os.fsencode)


_MISNAMED = "a policy file is named NN-name.policy, two digits first"


def _counts(untrusted_name: str) -> bool:
    """Whether it is called a policy; other files, such as an editor's, do not count."""
    return untrusted_name.endswith(".policy") and not untrusted_name.startswith(".")


def _policy_files(paths: Paths) -> tuple[dict[str, Path], list[PolicySyntaxError]]:
    """The files that count by their names, without those that are masked; and what is named wrongly."""
    found: dict[str, Path] = {}
    wrong: list[PolicySyntaxError] = []
    for parent in (paths.shipped, paths.run, paths.administrator):
        directory = Path(parent, "policy.d")
        try:
            untrusted_names = _listed(directory)
        except PolicySyntaxError as error:
            wrong.append(error)
            continue
        for untrusted_name in untrusted_names:
            if _FILE_NAME.match(untrusted_name):
                found[untrusted_name] = directory / untrusted_name
            else:
                wrong.append(PolicySyntaxError(f"{directory}/{escape(untrusted_name)}:1: {_MISNAMED}"))
    return found, wrong


def _listed(directory: Path) -> list[str]:
    """What is called a policy in one of the three directories, which need not be there."""
    try:
        return sorted(name for name in os.listdir(directory) if _counts(name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PolicySyntaxError(f"{directory}:1: cannot be read: {error.strerror}") from error
