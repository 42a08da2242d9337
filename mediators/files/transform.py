# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the core half does with a file where the rule has transform=encrypt:KEY, and whose key it is.

Law of this room: a key is root's to say.  Without one that can be used nothing is sent; there is no other way to send
it.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from pathlib import Path

from cage_runtime import encrypted
from cage_runtime.errors import PolicyRefused

LOG = logging.getLogger(__name__)
ENCRYPT = "encrypt"
DIRECTORY = "keys"
"""Below the administrator's folder; in it, NAME.pub."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_O_PATH = 0o10000000
_FOLDER = _O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""The core half is confined to reading files there; it cannot list the folder."""
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def recipient(transform: str, administrator: Path, owner: int = 0) -> bytes:
    """The public key that `transform` names, or nothing where it is empty; PolicyRefused, worded to follow the file's
    name, where it is not there as it has to be.  `owner` is the user whose files are believed."""
    if not transform:
        return b""
    kind, _, name = transform.partition(":")
    if kind != ENCRYPT or not NAME.match(name):
        raise PolicyRefused("cannot be sent: the policy wants it changed in a way that files cannot")
    try:
        content = read_key(administrator / DIRECTORY, f"{name}.pub", encrypted.KEY_FILE_BYTES_MAX, owner)
        public = encrypted.read_public(content)
        encrypted.Encryption(public)  # whether it can be used
    except (OSError, ValueError) as error:
        LOG.warning("nothing is encrypted for %s: %s", name, error)
        raise PolicyRefused(f"cannot be sent: the policy has it encrypted for {name}, whose key the core does not have "
                            "or cannot use; an administrator puts it there") from error
    return public


def read_key(directory: Path, name: str, most: int, owner: int) -> bytes:
    """The content of a file, of at most `most` bytes, that is the owner's alone to write; OSError and ValueError say
    what it is not."""
    top = os.open(directory, _FOLDER)
    try:
        _check(os.fstat(top), owner)
        descriptor = os.open(name, _FLAGS, dir_fd=top)
    finally:
        os.close(top)
    try:
        status = os.fstat(descriptor)
        _check(status, owner)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise ValueError("no file of a key")
        return os.read(descriptor, most)
    finally:
        os.close(descriptor)


def _check(status: os.stat_result, owner: int) -> None:
    if status.st_uid != owner or status.st_mode & _OTHERS_WRITE:
        raise ValueError("others can write it")
