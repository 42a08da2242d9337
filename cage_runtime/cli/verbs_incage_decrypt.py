# SPDX-License-Identifier: LGPL-2.1-or-later
"""incage decrypt, incage keygen: reading what was encrypted on its way here (cage-encrypted(5)).

Law of this room: an output has its name once all of it has been found unchanged, and never in the place of another.
"""

from __future__ import annotations

import os
import stat

from cage_runtime.cli.output import Screen, cell
from cage_runtime.errors import CageError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import BinaryIO

    from cage_runtime.encrypted import Decryption

KEY = "~/.config/incage/private-key"


def _decrypt_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the encrypted file, which ends in .cage")
    parser.add_argument("--key", metavar="FILE", default=KEY, help="the private key (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", help="what to call what was in it (default: FILE without .cage)")


def _keygen_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", default=KEY, help="the new file (default: %(default)s)")


def _keygen(args: argparse.Namespace, screen: Screen) -> int:
    from cage_runtime import encrypted

    path = os.path.expanduser(args.file)
    private = encrypted.new_private_key()
    os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(encrypted.write_private(private))
        file.flush()
        os.fsync(file.fileno())
    screen.line(encrypted.write_public(encrypted.public_key(private)).rstrip())
    return 0


def _private_key(path: str) -> bytes:
    from cage_runtime import encrypted

    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise CageError(f'"{cell(path)}": others can read this private key; take it from them with chmod 600')
        try:
            return encrypted.read_private(file.read(encrypted.KEY_FILE_BYTES_MAX))
        except ValueError as error:
            raise CageError(f'"{cell(path)}" is no private key of incage keygen') from error


def _decrypt(args: argparse.Namespace, screen: Screen) -> int:
    from cage_runtime import encrypted

    output = args.output or args.file.removesuffix(encrypted.SUFFIX)
    if output == args.file:
        raise UsageError(f'"{cell(args.file)}" does not end in {encrypted.SUFFIX}; say --output')
    private = _private_key(os.path.expanduser(args.key))
    where = os.path.dirname(output) or "."
    with (
        open(_opened(args.file, os.O_RDONLY), "rb") as file,
        open(_opened(where, os.O_TMPFILE | os.O_RDWR), "wb") as plain,
    ):
        try:
            write(encrypted.Decryption(private, file.read(encrypted.HEADER_BYTES)), file, plain)
        except encrypted.Undecryptable as error:
            raise CageError(f'"{cell(args.file)}" {error.sentence}') from error
        plain.flush()
        os.fsync(plain.fileno())
        directory = _opened(where, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.link(f"/proc/self/fd/{plain.fileno()}", os.path.basename(output), dst_dir_fd=directory)
        except FileExistsError as error:
            raise CageError(f'"{cell(output)}" is there already; say --output') from error
        finally:
            os.close(directory)
    screen.done(f"{cell(args.file)} -> {cell(output)}")
    return 0


def _opened(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CageError(f'"{cell(path)}": {error.strerror}') from error


def write(decryption: Decryption, file: BinaryIO, plain: BinaryIO) -> None:
    from cage_runtime.encrypted import CHUNK, TAG_BYTES

    chunk = file.read(CHUNK + TAG_BYTES)
    while True:
        after = file.read(CHUNK + TAG_BYTES)
        plain.write(decryption.chunk(chunk, last=not after))
        if not after:
            return
        chunk = after


VERBS = {"decrypt": (_decrypt_arguments, _decrypt), "keygen": (_keygen_arguments, _keygen)}
