# SPDX-License-Identifier: LGPL-2.1-or-later
"""The delivery half: runs in the target cage as its user, finds the service that is called, and becomes it.

Law of this room: what a service is, its cage says; who calls it, the core.  The file that was looked at is the one that
runs: it is held from the look on, and its interpreter reads it by that descriptor.  (A home cannot be executed from, so
that a service in it is a script; the kernel would not take its first line.)
"""

from __future__ import annotations

import errno
import os
import signal
import stat

from cage_runtime.errors import CageError
from cage_runtime.text import escape
from mediators.call import protocol
from mediators.call.protocol import NO_SERVICE, NOT_EXECUTABLE, Delivery

DIRECTORIES = (".config/incage/services", "/etc/cage-runtime/services")
"""Where services are: below the home of the cage's user, and those of whoever runs the host."""
LINE_MAX = 256
"""Bytes in the first line of a script (execve(2), BINPRM_BUF_SIZE)."""
CHUNK = 64 * 1024
O_PATH = 0o10000000


class NoService(CageError):
    """The sentence is for the log of the cage, the status for whoever calls."""

    exit_status = NO_SERVICE


class NotExecutable(NoService):
    exit_status = NOT_EXECUTABLE


def run(arguments: list[str]) -> int:
    """`cage-mediator call --deliver SERVICE ARGUMENT SOURCE`; returns only where the service is a socket."""
    delivery = protocol.parse_delivery(arguments)
    path, held = find(os.environ.get("HOME", "/home/user"), delivery)
    if stat.S_ISSOCK(os.fstat(held).st_mode):
        return _relay(held, path)
    _execute(held, path, dict(os.environ) | environment(delivery))
    raise AssertionError("execve(2) does not return")


def environment(delivery: Delivery) -> dict[str, str]:
    """What a service is told of its call."""
    return {"CAGE_SOURCE": delivery.source, "CAGE_SERVICE": delivery.service, "CAGE_ARGUMENT": delivery.argument}


def find(home: str, delivery: Delivery) -> tuple[str, int]:
    """The service's path, and a descriptor of it (O_PATH); NoService where there is none.

    That of the name and the argument goes before that of the name alone, and the user's before the host's.
    """
    whole = [f"{delivery.service}+{delivery.argument}"] if delivery.argument else []
    for name in (*whole, delivery.service):
        for directory in DIRECTORIES:
            path = os.path.join(home, directory, name)
            try:
                held = os.open(path, O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise NotExecutable(f"{path}: {error.strerror}") from error
            _check(held, path)
            return path, held
    raise NoService(f"there is no service {delivery.service} here, which {delivery.source} called")


def _check(held: int, path: str) -> None:
    """NotExecutable unless it is a regular file or a socket that nobody else can have put there or changed."""
    status = os.fstat(held)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISSOCK(status.st_mode)):
        raise NotExecutable(f"{path} is neither a regular file nor a socket; a link is not followed")
    # What is in /etc is the host's, and its owner has no name in here.
    if status.st_uid != os.getuid() and not path.startswith("/etc/"):
        raise NotExecutable(f"{path} is not its user's own")
    if stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NotExecutable(f"{path} can be written by others; chmod go-w makes it a service")
    if stat.S_ISREG(status.st_mode) and not status.st_mode & stat.S_IXUSR:
        raise NotExecutable(f"{path} is not executable; chmod u+x makes it a service")


def _execute(held: int, path: str, environment: dict[str, str]) -> None:
    """Become the program or script open as `held`; does not return."""
    place = f"/proc/self/fd/{held}"
    file = os.open(place, os.O_RDONLY)
    line = os.pread(file, LINE_MAX, 0)
    if not line.startswith(b"#!"):
        _become(place, [path], environment, path)
    interpreter, *rest = script_words(line, path)
    os.set_inheritable(file, True)
    _become(interpreter, [interpreter, *rest, f"/proc/self/fd/{file}"], environment, path)


def script_words(line: bytes, path: str) -> list[str]:
    """The interpreter and its one argument, if it has one, from a script's first line, as the kernel reads it."""
    first, end, _ = line[2:].partition(b"\n")
    if not end and len(line) == LINE_MAX:
        raise NotExecutable(f"{path}: its first line is longer than {LINE_MAX} bytes")
    words = os.fsdecode(first.strip(b" \t")).replace("\t", " ").split(" ", 1)
    if b"\0" in first:
        raise NotExecutable(f"{path}: its first line has a NUL")
    if not words[0].startswith("/"):
        raise NotExecutable(f'{path}: its interpreter, "{escape(words[0], limit=80)}", is not an absolute path')
    return [words[0], *(word.strip() for word in words[1:])]


def _become(program: str, argv: list[str], environment: dict[str, str], path: str) -> None:
    try:
        os.execve(program, argv, environment)  # noqa: S606 - a shell is what we do not want
    except OSError as error:
        why = os.strerror(error.errno or 0)
        if error.errno == errno.EACCES and program != argv[0]:
            why += "; a home cannot be executed from, unless the cage's definition has exec-home: make it a script"
        raise NotExecutable(f"{path} cannot be executed: {why}") from error


def _relay(held: int, path: str) -> int:
    """Between our standard streams and the socket open as `held`, until it ends."""
    import socket

    with socket.socket(socket.AF_UNIX) as connection:
        try:
            # By the descriptor: what was looked at is what is connected to.
            connection.connect(f"/proc/self/fd/{held}")
        except OSError as error:
            raise NotExecutable(f"{path} cannot be connected to: {error.strerror}") from error
        # A process for each direction, so that neither waits for the other.
        sending = os.fork()
        if sending == 0:
            try:
                _copy(0, connection.fileno())
                connection.shutdown(socket.SHUT_WR)
            finally:
                os._exit(0)
        os.close(0)
        try:
            _copy(connection.fileno(), 1)
        finally:
            os.kill(sending, signal.SIGKILL)
            os.waitpid(sending, 0)
    return 0


def _copy(source: int, sink: int) -> None:
    """Until the source ends, or nobody reads the sink."""
    try:
        while chunk := os.read(source, CHUNK):
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(sink, rest) :]
    except (BrokenPipeError, ConnectionResetError):
        return
