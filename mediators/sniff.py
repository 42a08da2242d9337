# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a file is, by what is in it: libmagic (libmagic(3)).

Law of this room: a name is not believed, and what a cage has made is parsed in a worker alone, which can open nothing
and has but this one transfer.  Where the library is missing nothing is anything, so that a rule with types= permits
nothing.
"""

from __future__ import annotations

import ctypes
import logging
from ctypes import c_char_p, c_int, c_size_t, c_void_p

from cage_runtime.errors import RuntimeFailure

LOG = logging.getLogger(__name__)
SNIFFED_BYTES = 16 * 1024
"""The first bytes of a file, by which its type is known."""
UNKNOWN = "application/octet-stream"
_MIME_TYPE, _RAW = 0x10, 0x100
_NO_CHECKS = 0x1000 | 0x2000 | 0x8000 | 0x40000
"""Neither into archives nor for what needs the file itself: compression, tar, applications' own checks, CDF."""
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.+-/_")
_TYPE_MAX = 100


class Sniffer:
    """To be made before the process confines itself: the library's data is read once."""

    def __init__(self) -> None:
        """RuntimeFailure where the library, or its data, is not there."""
        try:
            self._library = ctypes.CDLL("libmagic.so.1")
        except OSError as error:
            raise RuntimeFailure(f"libmagic is not there: install libmagic1 ({error})") from error
        self._library.magic_open.restype = c_void_p
        self._library.magic_open.argtypes = [c_int]
        self._library.magic_load.argtypes = [c_void_p, c_char_p]
        self._library.magic_buffer.restype = c_char_p
        self._library.magic_buffer.argtypes = [c_void_p, c_char_p, c_size_t]
        self._cookie = self._library.magic_open(_MIME_TYPE | _RAW | _NO_CHECKS)
        if not self._cookie or self._library.magic_load(self._cookie, None):
            raise RuntimeFailure("libmagic cannot read what it knows files by: install libmagic-mgc")

    def type_of(self, untrusted_start: bytes) -> str:
        """The MIME type of a file that begins so."""
        found = self._library.magic_buffer(self._cookie, untrusted_start, len(untrusted_start))
        text = (found or b"").decode("ascii", "replace").lower()
        return text if text.count("/") == 1 and len(text) <= _TYPE_MAX and set(text) <= _LETTERS else UNKNOWN


def sniffer() -> Sniffer | None:
    """None, and a word in the log, where none can be had."""
    try:
        return Sniffer()
    except RuntimeFailure as error:
        LOG.warning("nothing can be sent by rules that have types=: %s", error.sentence)
        return None
