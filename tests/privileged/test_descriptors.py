# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every kind of descriptor to every mediator, from whoever is in a cage and from a hostile half (M30, and what
SCM_RIGHTS can carry): it is refused for what it is, nothing of it arrives, and nobody else waits for it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
from jeepney import DBusAddress, new_method_call

from tests.privileged import kinds
from tests.privileged.conftest import MakeCage
from tests.privileged.gateways import ask, await_core_half, gateway
from tests.privileged.rules import policy
from tests.privileged.runtime import SECONDS, Cage, Runtime
from tests.privileged.sides import DESCRIPTOR, Said, from_half, from_user, in_its_turn

RULES = """files.Send      *  bad   good   allow
files.Send      *  other good   allow
open.File       *  bad   good   allow
open.File       *  other good   allow
clipboard.Paste *  bad   good   allow
call.Echo       *  bad   good   allow
log.Write       *  bad   @core  allow
notify.Show     *  bad   @core  allow
keys.List       *  bad   good   allow
"""
TAKES = {
    "files": ("Files1", "Send", "ssha{sv}", ("good", "x", DESCRIPTOR, {}), "s"),
    "clipboard": ("Clipboard1", "Copy", "sha{sv}", ("text/plain", DESCRIPTOR, {}), ""),
    "open": ("Open1", "File", "ssha{sv}", ("x.txt", "good", DESCRIPTOR, {}), "s"),
}
"""Those that take a file, by mediator."""
LINGERS = "a socket that lingers"
REASONS = {
    "a directory": "is a directory", "a path": "was not opened for reading",
    "a file's path": "was not opened for reading",
    "a FIFO": "is a pipe", "a pipe": "is a pipe", "a socket": "is a socket", "a pair of sockets": "is a socket",
    "a socket that lingers": "is a socket", "an epoll": "is not a regular file", "an eventfd": "is not a regular file",
    "a process": "is not a regular file", "memory of its own": "", "a device": "is a device",
    "what cannot be read": "was not opened for reading", "nothing in it": "is empty", "holes alone": "",
}
"""What is said of each; where it is empty, whatever is: it is a failure of the transfer all the same."""
TAKES_NONE = {
    "call": ("Call1", "Call", "sssh", ("Echo", "", "good", DESCRIPTOR)),
    "keys": ("Keys1", "List", "sh", ("good", DESCRIPTOR)),
    "log": ("Log1", "Write", "ash", (["x"], DESCRIPTOR)),
    "notify": ("Notify1", "Show", "ssh", ("x", "", DESCRIPTOR)),
    "a paste": ("Clipboard1", "Paste", "sh", ("text/plain", DESCRIPTOR)),
    "a tree": ("Files1", "SendTree", "ssh", ("good", "x", DESCRIPTOR)),
}


@pytest.fixture(scope="module")
def good(shared_cage: MakeCage) -> Cage:
    return shared_cage("good", "--level", "internal")


@pytest.fixture(scope="module")
def other(shared_cage: MakeCage) -> Cage:
    cage = shared_cage("other", "--level", "internal")
    cage.sh("cd; echo of other >doc")
    return cage


@pytest.fixture(scope="module")
def bad(runtime: Runtime, shared_cage: MakeCage, good: Cage, other: Cage) -> Iterator[Cage]:
    cage = shared_cage("bad", "--level", "internal")
    with policy(runtime, RULES):
        cage.enter("incage", "call", "Nothing", "good")  # so that the gateway is there
        assert other.enter("incage", "send", "doc", "--to", "good").returncode == 0
        yield cage
    assert "Inbox/other/doc" in good.sh("cd; find Inbox -type f")


def request(mediator: str, kind: str) -> Said:
    name, member, signature, values, returns = TAKES[mediator]
    return Said(name=name, member=member, signature=signature, values=values, kind=kind, returns=returns)


def arrived(good: Cage) -> list[str]:
    return good.sh("cd; [ ! -d Inbox/bad ] || find Inbox/bad -type f").splitlines()


def is_said(kind: str, error: str, sentence: str) -> None:
    assert error == "TransferFailed", (kind, error, sentence)
    assert REASONS[kind] in sentence or "is not a regular file" in sentence, kind


def test_every_kind_has_its_reason() -> None:
    assert REASONS.keys() == kinds.KINDS.keys()


@pytest.mark.parametrize("mediator", TAKES)
def test_what_is_no_file_is_refused_to_a_user(bad: Cage, good: Cage, mediator: str) -> None:
    said = [request(mediator, kind) for kind in REASONS if kind != LINGERS]  # it would wait itself
    for one, (error, sentence) in zip(said, from_user(bad, *said), strict=True):
        is_said(one.kind, error, sentence)
    assert arrived(good) == []


@pytest.mark.parametrize("kind", REASONS)
@pytest.mark.parametrize("mediator", TAKES)
def test_what_is_no_file_is_refused_to_a_half(runtime: Runtime, bad: Cage, good: Cage, mediator: str,
                                              kind: str) -> None:
    is_said(kind, *in_its_turn(lambda: from_half(runtime, bad, request(mediator, kind))))
    assert arrived(good) == []


@pytest.mark.parametrize("kind", ["a directory", "a socket that lingers"])
@pytest.mark.parametrize("mediator", TAKES_NONE)
def test_where_none_is_taken_one_costs_the_channel(runtime: Runtime, bad: Cage, mediator: str, kind: str) -> None:
    name, member, signature, values = TAKES_NONE[mediator]
    said = Said(name=name, member=member, signature=signature, values=values, kind=kind)
    assert from_half(runtime, bad, said)[0] == "InvalidArgs"
    if kind != LINGERS:
        ((error, _),) = from_user(bad, said)
        assert error == "InvalidArgs", "and the cage half, which is the cage's own, says so by itself"


@pytest.mark.parametrize("mediator", TAKES)
def test_whoever_closes_it_last_waits_for_nothing(runtime: Runtime, bad: Cage, other: Cage, mediator: str) -> None:
    """A socket that lingers, whose last holder is the core half: others are served all the same, and at once."""
    with gateway(runtime, bad) as connection:
        name, member, signature, values, _ = TAKES[mediator]
        await_core_half(connection, name)
        descriptor, _kept = kinds.of("a socket that lingers")
        address = DBusAddress(f"/org/cageruntime/{name}", f"org.cageruntime.{name}", f"org.cageruntime.{name}")
        given = tuple(descriptor if value == DESCRIPTOR else value for value in values)
        connection.send(new_method_call(address, member, signature, given))
        os.close(descriptor)
        began = time.monotonic()
        said = request(mediator, "nothing in it")
        is_said(said.kind, *from_user(other, said)[0])
        assert time.monotonic() - began < SECONDS, "it says a minute"


@pytest.mark.parametrize("mediator", ["files", "open"])
def test_what_changes_while_it_is_read_is_whole_or_refused(runtime: Runtime, bad: Cage, good: Cage,
                                                           mediator: str) -> None:
    """A memfd without seals that is cut short and filled again, which kills whoever has mapped it, and a file that is
    still being written."""
    name, member, signature, values, _ = TAKES[mediator]
    whole, descriptor, stop = b"a" * 400_000, os.memfd_create("churned"), threading.Event()

    def churn() -> None:
        while not stop.is_set():
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, whole, 0)
            os.pwrite(descriptor, b"b", len(whole) // 2)

    os.pwrite(descriptor, whole, 0)
    churning = threading.Thread(target=churn)
    churning.start()
    try:
        with gateway(runtime, bad) as connection:
            await_core_half(connection, name)
            for _ in range(8):
                given = tuple(descriptor if value == DESCRIPTOR else value for value in values)
                error, sentence = ask(connection, name, member, signature, *given)
                assert error in {"", "TransferFailed"}, sentence
    finally:
        stop.set()
        churning.join()
        os.close(descriptor)
    there = good.sh("cd; [ ! -d Inbox/bad ] || cat Inbox/bad/*; rm -rf Inbox/bad")
    assert set(there) <= {"a", "b"}


@pytest.mark.parametrize("root", [False, True])
def test_a_cage_has_no_file_that_a_program_of_its_own_answers_for(bad: Cage, root: bool) -> None:
    """A FUSE file that never answers would hold up whoever closes it: no cage can make one.  (What is handed over on a
    gateway comes from the cage, and from nobody else.)"""
    program = """
import ctypes, errno, os
libc, said = ctypes.CDLL(None, use_errno=True), []
try:
    os.open("/dev/fuse", os.O_RDWR)
except OSError as error:
    said.append(errno.errorcode[error.errno])
try:
    os.mknod("/tmp/fuse", 0o20666, os.makedev(10, 229))
except OSError as error:
    said.append(errno.errorcode[error.errno])
for kind in (b"fuse", b"fuseblk"):
    libc.mount(b"x", b"/tmp", kind, 0, b"fd=0,rootmode=40000,user_id=0,group_id=0")
    said.append(errno.errorcode[ctypes.get_errno()])
print(*said)
"""
    ended = bad.enter("/usr/bin/python3", "-IS", "-c", program, root=root)
    fuse, node, *mounts = ended.stdout.decode().split()
    assert (fuse, node) == ("ENOENT", "EPERM")
    assert set(mounts) <= {"EPERM", "ENOSYS"}
