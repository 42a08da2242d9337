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
from pathlib import Path

from cage_runtime.config import Paths
from cage_runtime.errors import PolicySyntaxError
from cage_runtime.model import POLICY_BYTES_MAX, POLICY_RULES_MAX, Levels
from cage_runtime.policy.engine import Policy
from cage_runtime.policy.parser import parse
from cage_runtime.policy.rule import Rule
from cage_runtime.text import escape

_FILE_NAME = re.compile(r"[0-9]{2}-[A-Za-z0-9][A-Za-z0-9_-]*\.policy\Z")


def load_policy(paths: Paths, levels: Levels) -> Policy:
    """The policy of this host; one bad line in one file, and PolicySyntaxError refuses all of it."""
    rules: list[Rule] = []
    for path in policy_files(paths):
        text = _read(path)
        if text is not None:
            rules.extend(parse(text, file=str(path), levels=levels))
        if len(rules) > POLICY_RULES_MAX:
            raise PolicySyntaxError(f"{rules[POLICY_RULES_MAX].place}: more than {POLICY_RULES_MAX} rules in all")
    return Policy(rules=tuple(rules))


def load_or_refuse(paths: Paths, levels: Levels) -> Policy:
    """The policy of this host, or the one that denies everything and says what is wrong with the host's."""
    try:
        return load_policy(paths, levels)
    except PolicySyntaxError as error:
        return Policy.refusing(error)


def policy_files(paths: Paths) -> list[Path]:
    """The files that count, in the order of their rules; a masked file is not among them."""
    found: dict[str, Path] = {}
    for parent in (paths.shipped, paths.run, paths.administrator):
        directory = Path(parent, "policy.d")
        for name in _listed(directory):
            found[name] = directory / name
    return [found[name] for name in sorted(found, key=os.fsencode)]


def _listed(directory: Path) -> list[str]:
    """The policy files of one directory.  Other files, such as an editor's, do not count; misnamed ones are refused."""
    try:
        names = [name for name in os.listdir(directory) if name.endswith(".policy") and not name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PolicySyntaxError(f"{directory}:1: cannot be read: {error.strerror}") from error
    for untrusted_name in sorted(names):
        if not _FILE_NAME.match(untrusted_name):
            raise PolicySyntaxError(
                f"{directory}/{escape(untrusted_name)}:1: a policy file is named NN-name.policy, two digits first"
            )
    return names


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
