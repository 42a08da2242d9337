# SPDX-License-Identifier: LGPL-2.1-or-later
"""What Landlock leaves of files, TCP, sockets and signals to a process that nothing else confines, rule by rule."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import prctl
import pytest

from cage_runtime.spawner import landlock, syscall

REFUSED = "EACCES"


def tried(what: Callable[[], object]) -> str:
    try:
        what()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def in_a_child(confine: Callable[[], object], attempts: dict[str, Callable[[], object]],
               flags: int = syscall.CLONE_NEWNET) -> dict[str, str]:
    """What comes of each of the attempts after `confine`, in new namespaces: a network of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        syscall.unshare(flags)
        if flags & syscall.CLONE_NEWNS:
            syscall.mount(None, "/", None, syscall.MS_REC | syscall.MS_PRIVATE)
        prctl.set_no_new_privs(1)
        confine()
        os.write(write, json.dumps({name: tried(attempt) for name, attempt in attempts.items()}).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as said:
        text = said.read()
    assert os.waitpid(pid, 0)[1] == 0
    answers: dict[str, str] = json.loads(text)
    return answers


def bind() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))


def connect() -> None:
    with socket.socket() as client:
        client.connect(("127.0.0.1", 9))


TCP: dict[str, Callable[[], object]] = {"bind": bind, "connect": connect}
FREE = {"bind": "done", "connect": "ENETUNREACH"}
"""In a namespace whose loopback is down."""


@pytest.fixture(scope="module")
def abi() -> int:
    found = syscall.landlock_abi()
    assert found >= 2, "Debian 12 has ABI 2"
    return found


def test_tcp_is_nobody_s_who_has_a_reach(abi: int) -> None:
    assert in_a_child(lambda: None, TCP) == FREE
    found = in_a_child(landlock.Reach().restrict, TCP)
    assert found == (dict.fromkeys(TCP, REFUSED) if abi >= landlock.TCP_ABI else FREE)
    assert in_a_child(landlock.Reach(tcp=True).restrict, TCP) == FREE


def test_a_scope_leaves_tcp_and_files_alone() -> None:
    """Sessions have it: what a cage can reach is its network namespace's to say."""
    files: dict[str, Callable[[], object]] = {
        "read": lambda: os.listdir("/etc"), "mount": lambda: syscall.mount("x", "/mnt", "tmpfs", 0)}
    found = in_a_child(landlock.enter_scope, TCP | files, flags=syscall.CLONE_NEWNET | syscall.CLONE_NEWNS)
    assert found == FREE | dict.fromkeys(files, "done")
    found = in_a_child(landlock.Reach().restrict, TCP | files, flags=syscall.CLONE_NEWNET | syscall.CLONE_NEWNS)
    assert (found["read"], found["mount"]) == (REFUSED, "EPERM")


def test_signals_and_abstract_sockets_end_at_the_domain(abi: int) -> None:
    outside, name = os.getpid(), f"\0landlock-{os.getpid()}"

    def reach_abstract() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(name)

    attempts: dict[str, Callable[[], object]] = {"signal": lambda: os.kill(outside, 0), "abstract": reach_abstract}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        assert in_a_child(lambda: None, attempts, flags=0) == dict.fromkeys(attempts, "done")
        for confine in (landlock.enter_scope, landlock.Reach().restrict):
            found = in_a_child(confine, attempts, flags=0)
            assert found == dict.fromkeys(attempts, "EPERM" if abi >= landlock.SCOPE_ABI else "done")


def test_files_by_what_a_reach_says_of_them(tmp_path: Path) -> None:
    for name in ("readable", "writable", "special", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    reach = landlock.Reach(readable=(str(tmp_path / "readable"),), writable=(str(tmp_path / "writable"),),
                           special=(str(tmp_path / "special"), str(tmp_path / "nothing")))

    def attempts(name: str) -> dict[str, Callable[[], object]]:
        directory = tmp_path / name
        return {
            f"{name} read": (directory / "file").read_text, f"{name} list": lambda: os.listdir(directory),
            f"{name} write": lambda: (directory / "file").write_text("y"),
            f"{name} make": lambda: (directory / "new").write_text(""),
            f"{name} link": lambda: (directory / "link").symlink_to("x"),
            f"{name} device": lambda: os.mknod(directory / "device", 0o020600, os.makedev(1, 3)),
            f"{name} execute": lambda: os.execve(directory / "file", ["x"], {}),
        }

    every = {key: value for name in ("readable", "writable", "special", "elsewhere")
             for key, value in attempts(name).items()}
    found = in_a_child(reach.restrict, every)
    done = {name for name, answer in found.items() if answer == "done"}
    assert done == {
        "readable read", "readable list", "writable read", "writable list", "writable write", "writable make",
        "special read", "special list", "special write", "special make", "special link"}
    assert {answer for name, answer in found.items() if name not in done} == {REFUSED}
