# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a worker does: it reads what a cage handed over, once, and writes the core's copy of it.

Law of this room: all of this runs in a process that holds nothing else, and opens nothing.  What is read is believed in
nothing; what does not fit, or is none that the rule lets through, ends the whole.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

from cage_runtime.filenames import CHUNK
from cage_runtime.intree import Misfit, Tree, read_header
from cage_runtime.model import TRANSFER_BYTES_MAX
from cage_runtime.packing import FILE, HEADER, PROGRAM
from mediators import digest
from mediators.sniff import SNIFFED_BYTES, Sniffer

if TYPE_CHECKING:  # what looks at signatures takes much memory, and few want one
    from mediators.sshsig import Checking

REPORT_MAX = 8192
"""Bytes of one message of a worker."""
HOLES_MAX = 1024**2
"""Bytes that may be missing in a file, however small: what a file system keeps elsewhere or small is not sparse."""
TYPES_MAX = 64
"""Kinds of files in one tree, where they matter."""
_KINDS = {
    stat.S_IFDIR: "is a directory, not a regular file",
    stat.S_IFIFO: "is a pipe, not a regular file",
    stat.S_IFSOCK: "is a socket, not a regular file",
    stat.S_IFCHR: "is a device, not a regular file",
    stat.S_IFBLK: "is a device, not a regular file",
    stat.S_IFLNK: "is a symbolic link; send the file that it names",
}
NO_SPACE = "cannot be sent: the core has no space left for it"
GO = b"go"
_CHANGED = "changed while it was read; send it again when nothing writes to it"


class Unfit(Misfit):
    """What was handed over cannot be sent; the text goes after the file's name."""


class Unpermitted(Unfit):
    """It could be sent, were it not for the rule."""


class TooLarge(Unpermitted):
    """It is more than the rule lets through."""


Work = Callable[[int, socket.socket], str]
"""Fills the staging file that the first is, having had its size granted over the second; what to report of it."""
Copy = Callable[[int, int, int], tuple[int, str]]
"""Copies so many bytes from one descriptor to another, and returns their number and SHA-256; runs in the worker."""
Signature = Callable[[], "Checking"] | None
"""Begins to look at the signature that it has to have; runs in the worker."""


def measure(source: int, policy_max: int = 0) -> int:
    """The size of a regular file that can be sent; Unfit says why it cannot be, TooLarge that policy has it smaller."""
    status = os.fstat(source)
    if not stat.S_ISREG(status.st_mode):
        raise Unfit(_KINDS.get(stat.S_IFMT(status.st_mode), "is not a regular file"))
    if status.st_size == 0:
        raise Unfit("is empty; there is nothing to send")
    if status.st_size > TRANSFER_BYTES_MAX:
        raise Unfit(f"is larger than the {TRANSFER_BYTES_MAX >> 30}G that a transfer takes")
    if 0 < policy_max < status.st_size:
        raise TooLarge(f"is larger than the {policy_max} bytes that the policy lets through at once")
    there = status.st_blocks * 512
    if _is_sparse(status.st_size, there) and _is_sparse(status.st_size, there := _bytes_there(source, status.st_size)):
        raise Unfit(f"is sparse: {status.st_size} bytes, of which {there} are there; copy it without holes first")
    return status.st_size


def _is_sparse(size: int, there: int) -> bool:
    return there < size // 2 and size - there > HOLES_MAX


def _bytes_there(source: int, size: int) -> int:
    """Bytes of a file that are in no hole, counted until they are half of it: a file system that compresses has fewer
    blocks, and no holes.  The position in the file, which its owner may share, is put back."""
    position = os.lseek(source, 0, os.SEEK_CUR)
    there = end = 0
    try:
        while there < size // 2:
            start = os.lseek(source, end, os.SEEK_DATA)
            end = os.lseek(source, start, os.SEEK_HOLE)
            there += end - start
    except OSError as error:
        if error.errno != errno.ENXIO:  # no data behind that offset
            raise
    finally:
        os.lseek(source, position, os.SEEK_SET)
    return there


def copy(source: int, target: int, size: int) -> tuple[int, str]:
    """Copy a regular file by its offsets (never the shared position, never mapped); Unfit where it has another size."""
    os.posix_fallocate(target, 0, size)
    copied, sha256 = digest.copy(source, target, size)
    if copied != size:
        raise Unfit(_CHANGED)
    return copied, sha256


def _marks(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def report(work: Work, target: int, far: socket.socket) -> bytes:
    """What comes of `work`, in the words that whoever started the worker knows."""
    try:
        return b"copied " + work(target, far).encode()
    except Unpermitted as error:
        return f"refused {error}".encode()[:REPORT_MAX]
    except Misfit as error:
        return f"unfit {error}".encode()[:REPORT_MAX]
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        return f"unfit {NO_SPACE if full else f'cannot be sent: {os.strerror(error.errno or errno.EIO)}'}".encode()


def _have_granted(far: socket.socket, size: int) -> None:
    """Returns once the core half has granted so many bytes."""
    far.send(b"size %d" % size)
    if far.recv(len(GO)) != GO:
        os._exit(0)


class Types:
    """The types of the files that are seen, in the worker."""

    def __init__(self, sniffer: Sniffer | None) -> None:
        self._sniffer, self._found = sniffer, set[str]()

    @property
    def wanted(self) -> bool:
        return self._sniffer is not None

    def see(self, untrusted_start: bytes) -> None:
        if self._sniffer is not None:
            self._found.add(self._sniffer.type_of(untrusted_start))
            if len(self._found) > TYPES_MAX:
                raise Unfit(f"has files of more than {TYPES_MAX} types; send it in parts")

    def __str__(self) -> str:
        return ",".join(sorted(self._found)) or "-"


def report_file(copier: Copy, source: int, policy_max: int, types: Types, signature: Signature, target: int,
                far: socket.socket) -> str:
    before = _marks(os.fstat(source))
    checking = signature() if signature else None
    size = measure(source, policy_max)
    _have_granted(far, size)
    copied, sha256 = copier(source, target, size)
    if _marks(os.fstat(source)) != before:
        raise Unfit(_CHANGED)
    if checking:  # of the copy: what was signed is what arrives
        for offset in range(0, size, CHUNK):
            checking.digest.update(_exactly(target, min(CHUNK, size - offset), offset))
        checking.end()
    types.see(os.pread(target, SNIFFED_BYTES, 0))
    return f"{copied} {copied} 1 {sha256} {types}"


def report_encrypted(recipient: bytes, source: int, policy_max: int, types: Types, signature: Signature, target: int,
                     far: socket.socket) -> str:
    """As `report_file`, a chunk at a time, so that nothing but what is encrypted is ever written."""
    from cage_runtime import encrypted

    checking = signature() if signature else None
    before = _marks(os.fstat(source))
    size = measure(source, policy_max)
    length = encrypted.length(size)
    if length > TRANSFER_BYTES_MAX:
        raise Unfit(f"is larger, once it is encrypted, than the {TRANSFER_BYTES_MAX >> 30}G that a transfer takes")
    _have_granted(far, length)
    os.posix_fallocate(target, 0, length)
    encryption = encrypted.Encryption(recipient)
    plain, sealed = hashlib.sha256(), hashlib.sha256()

    def write(chunk: bytes) -> None:
        sealed.update(chunk)
        digest.write_all(target, chunk)

    write(encryption.header)
    for offset in range(0, size, encrypted.CHUNK):
        chunk = _exactly(source, min(encrypted.CHUNK, size - offset), offset)
        if not offset:
            types.see(chunk[:SNIFFED_BYTES])
        plain.update(chunk)
        if checking:
            checking.digest.update(chunk)
        write(encryption.chunk(chunk, last=offset + len(chunk) == size))
    if checking:
        checking.end()
    if _marks(os.fstat(source)) != before:
        raise Unfit(_CHANGED)
    return f"{length} {size} 1 {sealed.hexdigest()} {types} {plain.hexdigest()}"


def _exactly(source: int, size: int, offset: int) -> bytes:
    found = b""
    while len(found) < size and (piece := os.pread(source, size - len(found), offset + len(found))):
        found += piece
    if len(found) != size:
        raise Unfit(_CHANGED)
    return found


def report_tree(stream: int, max_size: int, max_files: int, types: Types, target: int, far: socket.socket) -> str:
    """Copy the stream as it is, and look at all that is in it on the way."""
    first = b""
    while len(first) < HEADER.size and (chunk := os.read(stream, HEADER.size - len(first))):
        first += chunk
    announced = read_header(first)
    if 0 < max_size < announced.content:
        raise TooLarge(f"is larger than the {max_size} bytes that the policy lets through at once")
    if 0 < max_files < announced.entries:
        raise TooLarge(f"has more than the {max_files} files that the policy lets through at once")
    _have_granted(far, announced.length)
    os.posix_fallocate(target, 0, announced.length)
    digest.write_all(target, first)

    def source(most: int) -> bytes:
        chunk = os.read(stream, min(most, CHUNK))
        digest.write_all(target, chunk)
        return chunk

    tree = Tree(announced, source)
    for kind, _name in tree.steps():
        if kind in (FILE, PROGRAM):
            start = b""
            for piece in tree.content():
                if types.wanted and len(start) < SNIFFED_BYTES:
                    start += piece[: SNIFFED_BYTES - len(start)]
            types.see(start)
    return f"{announced.length} {announced.content} {announced.entries} {tree.digest} {types}"
