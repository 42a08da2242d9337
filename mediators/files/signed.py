# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose signature a file has to have where the rule has require=signed:KEY.

Law of this room: a key is root's to say, as in transform.py.  Without one that can be used nothing is sent.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from cage_runtime.errors import PolicyRefused
from cage_runtime.text import escape
from mediators.files.transform import DIRECTORY, NAME, read_key

if TYPE_CHECKING:
    from mediators.sshsig import Signer

LOG = logging.getLogger(__name__)
SIGNED = "signed"


def check_file(name: str, require: str, *, tree: bool) -> None:
    """PolicyRefused for a tree, which nobody can have signed, where the rule wants a signature."""
    if tree and require:
        raise PolicyRefused(f'"{escape(name)}" is a directory, and the policy wants what is sent there signed, file by '
                            "file; send its files, or an archive of them")


def signer_of(require: str, administrator: Path, owner: int = 0) -> Signer | None:
    """The key that `require` names, None where it is empty; PolicyRefused, worded to follow the file's name, where it
    is not there as it has to be.  `owner` is the user whose files are believed."""
    if not require:
        return None
    kind, _, name = require.partition(":")
    if kind != SIGNED or not NAME.match(name):
        raise PolicyRefused("cannot be sent: the policy wants it looked at in a way that files cannot")
    from mediators.sshsig import PUBLIC_FILE_MAX, signer  # takes much memory, and few rules want it

    try:
        return signer(name, read_key(administrator / DIRECTORY, f"{name}.pub", PUBLIC_FILE_MAX, owner))
    except (OSError, ValueError) as error:
        LOG.warning("nothing signed by %s is known: %s", name, error)
        raise PolicyRefused(f"cannot be sent: the policy wants it signed by {name}, whose public key the core does not "
                            "have or cannot use; an administrator puts it there") from error
