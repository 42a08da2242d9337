# SPDX-License-Identifier: LGPL-2.1-or-later
"""Secrets for applications of other cages, derived from one that the key cage keeps.

Law of this room: the cage's secret stays in it, is made once, and is as any key a file that its user alone can read.
What is derived from it is always the same for one application of one cage, and says nothing of any other's.
"""

from __future__ import annotations

import hashlib
import hmac
import os

from mediators.keys import held
from mediators.keys.protocol import SECRET_BYTES, Unsigned
from mediators.sshwire import packed

FOLDER, NAME = ".config/incage", "secret"
"""Where it is, below the home of the cage's user."""


def derive(home: str, source: str, application: str) -> bytes:
    """The secret of the `application` of the cage `source`; Unsigned where there is none to derive it from."""
    folder = os.path.join(home, FOLDER)
    path = os.path.join(folder, NAME)
    if not os.path.lexists(path):
        _make(folder)
    secret = held.read(path, SECRET_BYTES)
    if len(secret) != SECRET_BYTES:
        raise Unsigned(f"{path} is not a secret of {SECRET_BYTES} bytes")
    return hmac.new(secret, packed(source.encode()) + packed(application.encode()), hashlib.sha256).digest()


def _make(folder: str) -> None:
    """A secret in the folder, whole or not at all, and never in the place of one that is there."""
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            unnamed = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory)
            try:
                os.write(unnamed, os.urandom(SECRET_BYTES))
                os.fsync(unnamed)
                os.link(f"/proc/self/fd/{unnamed}", NAME, dst_dir_fd=directory)
            finally:
                os.close(unnamed)
            os.fsync(directory)
        finally:
            os.close(directory)
    except FileExistsError:  # another one was faster
        return
    except OSError as error:
        raise Unsigned(f"{folder}/{NAME} cannot be made: {error.strerror}") from error
