# SPDX-License-Identifier: LGPL-2.1-or-later
"""The policy files of this host: all of them or none.

The files are the NN-name.policy of the shipped, the run-time and the administrator's policy.d, in the order of their
names in the C locale; of files with one name the administrator's counts, then the run-time's, then the shipped one.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from cage_runtime.config import Paths
from cage_runtime.errors import PolicySyntaxError
from cage_runtime.model import POLICY_BYTES_MAX, POLICY_FAULTS_MAX, POLICY_RULES_MAX, Levels
from cage_runtime.policy.engine import Policy
from cage_runtime.policy.parser import read, sound
from cage_runtime.policy.rule import Rule
from cage_runtime.text import escape

_FILE_NAME = re.compile(r"[0-9]{2}-[A-Za-z0-9][A-Za-z0-9_-]*\.policy\Z")


def load_policy(paths: Paths, levels: Levels) -> Policy:
    """The policy of this host; one bad line in one file, and PolicySyntaxError refuses all of it."""
    return Policy(rules=tuple(sound(_read_all(paths, levels))))


def faults(paths: Paths, levels: Levels) -> list[str]:
    """Everything that is wrong with the policy of this host, a sentence each with file and line; [] where it is sound.

    After POLICY_FAULTS_MAX of them one more says how many there are besides.
    """
    found = [fault.sentence for fault in _read_all(paths, levels) if isinstance(fault, PolicySyntaxError)]
    more = len(found) - POLICY_FAULTS_MAX
    return [*found[:POLICY_FAULTS_MAX], f"{more} more faults are not shown"] if more > 0 else found


def load_or_refuse(paths: Paths, levels: Levels) -> Policy:
    """The policy of this host, or the one that denies everything and says what is wrong with the host's."""
    try:
        return load_policy(paths, levels)
    except PolicySyntaxError as error:
        return Policy.refusing(error)


def _read_all(paths: Paths, levels: Levels) -> Iterator[Rule | PolicySyntaxError]:
    """Rules and faults of all files in their order; what is wrong with the directories comes first."""
    files, misnamed = _policy_files(paths)
    yield from misnamed
    count = 0
    for path in files:
        for found in _read_file(path, levels):
            count += isinstance(found, Rule)
            if isinstance(found, Rule) and count > POLICY_RULES_MAX:
                yield PolicySyntaxError(f"{found.place}: more than {POLICY_RULES_MAX} rules in all")
                return
            yield found


def _policy_files(paths: Paths) -> tuple[list[Path], list[PolicySyntaxError]]:
    """The files that count, in the order of their rules, without those that are masked; and what is named wrongly."""
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
                place = f"{directory}/{escape(untrusted_name)}:1"
                wrong.append(PolicySyntaxError(f"{place}: a policy file is named NN-name.policy, two digits first"))
    return [found[name] for name in sorted(found, key=os.fsencode)], wrong


def _listed(directory: Path) -> list[str]:
    """What is called a policy in one directory; other files, such as an editor's, do not count."""
    try:
        return sorted(name for name in os.listdir(directory) if name.endswith(".policy") and not name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PolicySyntaxError(f"{directory}:1: cannot be read: {error.strerror}") from error


def _read_file(path: Path, levels: Levels) -> Iterator[Rule | PolicySyntaxError]:
    try:
        untrusted_text = _read(path)
    except PolicySyntaxError as error:
        yield error
        return
    if untrusted_text is not None:
        yield from read(untrusted_text, file=str(path), levels=levels)


def _read(path: Path) -> bytes | None:
    """The file's bytes, one more than it may have at most; None where it is a link to /dev/null, which disables it."""
    try:
        # Without O_NONBLOCK a FIFO of this name would hold up the core.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise PolicySyntaxError(f"{path}:1: not a regular file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(POLICY_BYTES_MAX + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise PolicySyntaxError(f"{path}:1: cannot be read: {error.strerror}") from error
    if os.readlink(path) == os.devnull:
        return None
    raise PolicySyntaxError(f"{path}:1: a symbolic link; put the file itself here, or to disable it link to /dev/null")
