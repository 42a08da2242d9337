# SPDX-License-Identifier: LGPL-2.1-or-later
"""The delivery half: runs in the key cage as its user, and lists its keys or signs with one of them.

Law of this room: it says what it is about to sign, from the bytes that it has to sign, and signs them once the core
half has said so, and no others.  Which key there is none of, and why, the key cage's own log says and nobody else.
"""

from __future__ import annotations

import os

from cage_runtime.errors import UsageError
from mediators import gate
from mediators.keys import protocol
from mediators.keys.protocol import LIST, READY, SECRET, SIGN, UNFIT, UNKNOWN, Unsigned


class _Unknown(Unsigned):
    exit_status = UNKNOWN


class _Unfit(Unsigned):
    exit_status = UNFIT


def run(arguments: list[str]) -> int:
    """`cage-mediator keys --deliver List`, `Sign KEY`, of which standard input is what is asked of it, or
    `Secret SOURCE APPLICATION`."""
    gate.prepare()
    home = os.environ.get("HOME", "/home/user")
    match arguments:
        case [word] if word == LIST:
            _write(_list(home))
        case [word, name] if word == SIGN:
            _write(_sign(home, protocol.check_key_name(name)))
        case [word, source, application] if word == SECRET:
            _write(_secret(home, protocol.check_application(source), protocol.check_application(application)))
        case _:
            raise UsageError("--deliver takes List, Sign KEY, or Secret SOURCE APPLICATION")
    return 0


def _list(home: str) -> bytes:
    from mediators.keys import secret

    found = protocol.listing((name, key.blob) for name, key in secret.each(home))
    gate.pass_(READY)
    return found


def _sign(home: str, name: str) -> bytes:
    from mediators.keys import secret

    try:
        blob, data, flags = protocol.parse_request(_read(0, protocol.REQUEST_MAX))
        lines = protocol.about(name, blob, data)
        protocol.algorithm(blob, flags)
    except UsageError as error:
        raise _Unfit(error.sentence) from error
    try:
        key = secret.load(home, name)
    except Unsigned as error:
        raise _Unknown(error.sentence) from error
    if key.blob != blob:
        raise _Unknown(f"the key {name} is another than was asked for")
    gate.pass_(protocol.announcement(lines))
    return key.sign(data, flags)


def _secret(home: str, source: str, application: str) -> bytes:
    from mediators.keys import derive

    gate.pass_(READY)
    return derive.derive(home, source, application)


def _read(descriptor: int, most: int) -> bytes:
    """All that there is, from its beginning; UsageError where it is more than `most` bytes."""
    content = b""
    while chunk := os.pread(descriptor, most + 1 - len(content), len(content)):
        content += chunk
    if len(content) > most:
        raise UsageError(f"a request to sign has at most {most} bytes")
    return content


def _write(content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(1, rest) :]
