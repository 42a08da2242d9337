# SPDX-License-Identifier: LGPL-2.1-or-later
"""The seal is one-way: what a cage's processes hold, by what the kernel says of each, and every way back, tried."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cage_runtime.spawner import capability
from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import Cage, Runtime, arguments_of, is_zombie, wait_readable

NOTHING = "0" * 16
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
PROBE = r"""
import ctypes, errno, json, os, resource, signal, stat, struct, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def said(result):
    return errno.errorcode[ctypes.get_errno()] if result < 0 else "done"
def tried(what):
    try:
        what()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def capset(effective, permitted, inheritable):
    header = struct.pack("Ii", 0x20080522, 0)
    return said(libc.capset(header, struct.pack("6I", effective, permitted, inheritable, 0, 0, 0)))
def prctl(*words):
    return said(libc.prctl(*[ctypes.c_ulong(word) for word in words]))
def write(path, text):
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text)
    finally:
        os.close(descriptor)
def marked(value):
    path = "/tmp/marked"
    with open(path, "wb"):
        pass
    try:
        os.setxattr(path, "security.capability", value)
    finally:
        os.unlink(path)
def ptraced(pid):
    libc.ptrace.restype = ctypes.c_long
    return said(libc.ptrace(ctypes.c_long(0x4206), ctypes.c_long(pid), None, None))
def in_a_user_namespace(what):
    read, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer = "no namespace"
        before = os.open("/proc/self/ns/user", os.O_RDONLY)
        if libc.unshare(0x10000000) == 0:
            answer = what(before)
        os.write(end, answer.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return os.read(read, 64).decode()
def capabilities():
    with open("/proc/self/status") as file:
        return next(line.split()[1] for line in file if line.startswith("CapEff"))
def raised(kind):
    soft, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY:
        raise OSError(errno.EPERM, "it is without end already")
    try:
        resource.setrlimit(kind, (hard + 1, hard + 1))
    except ValueError:  # what Python makes of EPERM
        raise OSError(errno.EPERM, "")
setuid = "/usr/bin/mount"
auxv = subprocess.run([setuid, "--version"], env={"LD_SHOW_AUXV": "1"}, capture_output=True, text=True).stdout
auxiliary = dict(line.split(":", 1) for line in auxv.splitlines() if line.startswith("AT_"))
capable = struct.pack("<5I", 0x02000001, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0)
capable_of_root = struct.pack("<6I", 0x03000001, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0, 0)
print(json.dumps({
    "capset: effective": capset(1 << 21, 1 << 21, 0), "capset: permitted": capset(0, 1 << 21, 0),
    "capset: inheritable": capset(0, 0, 1 << 21), "capset: nothing": capset(0, 0, 0),
    "ambient": prctl(47, 2, 21, 0, 0), "securebits": prctl(28, 0, 0, 0, 0), "keep capabilities": prctl(8, 1, 0, 0, 0),
    "no_new_privs off": prctl(38, 0, 0, 0, 0), "seccomp off": prctl(22, 0, 0, 0, 0),
    "bounding set": prctl(24, 21, 0, 0, 0), "its memory's layout": prctl(35, 1, 0x10000, 0, 0),
    "a file's capabilities": tried(lambda: marked(capable)), "a root's": tried(lambda: marked(capable_of_root)),
    "setuid is set": bool(os.stat(setuid).st_mode & stat.S_ISUID),
    "after setuid": auxiliary["AT_EUID"].strip(), "secure": auxiliary["AT_SECURE"].strip(),
    "groups": tried(lambda: os.setgroups([0, 27])), "uid_map": tried(lambda: write("/proc/self/uid_map", b"0 0 1")),
    "trace cage-init": ptraced(1), "be traced by all, and trace": (prctl(0x59616d61, 2**64 - 1), ptraced(1))[1],
    "its dumpable": prctl(4, 1, 0, 0, 0), "dumpable, as root would": prctl(4, 2, 0, 0, 0),
    "oom_score_adj": tried(lambda: write("/proc/self/oom_score_adj", b"-1000")),
    "more processes": tried(lambda: raised(resource.RLIMIT_NPROC)),
    "more descriptors": tried(lambda: raised(resource.RLIMIT_NOFILE)),
    "a nested namespace": in_a_user_namespace(lambda _: capabilities()),
    "from it back": in_a_user_namespace(lambda before: said(libc.setns(before, 0x10000000))),
    "from it: mount": in_a_user_namespace(lambda _: said(libc.mount(b"x", b"/tmp", b"tmpfs", 0, None))),
    "from it: cage-init": in_a_user_namespace(lambda _: tried(lambda: os.kill(1, signal.SIGKILL))),
    "from it: a file of another's": in_a_user_namespace(lambda _: tried(lambda: os.chown("/tmp", 0, 0))),
    "from it: the host's name": in_a_user_namespace(lambda _: said(libc.sethostname(b"x", 1))),
}))
"""
EVERYBODY = dict.fromkeys((
    "capset: effective", "capset: permitted", "capset: inheritable", "ambient", "securebits", "keep capabilities",
    "bounding set", "its memory's layout", "a file's capabilities", "a root's", "groups", "uid_map", "trace cage-init",
    "be traced by all, and trace", "more processes", "more descriptors", "from it back", "from it: mount",
    "from it: the host's name"), "EPERM",
) | {
    "capset: nothing": "done", "no_new_privs off": "EINVAL", "seccomp off": "EINVAL", "setuid is set": True,
    # Of itself it may: what is not to be looked into is cage-init, and whatever becomes a command.
    "its dumpable": "done", "dumpable, as root would": "EINVAL", "oom_score_adj": "EACCES", "secure": "0",
}


@pytest.fixture(scope="module")
def sealed(shared_cage: MakeCage) -> Cage:
    return shared_cage("sealed")


@pytest.fixture(scope="module", params=["user", "root"])
def answers(request: pytest.FixtureRequest, sealed: Cage) -> tuple[str, dict[str, Any]]:
    ended = sealed.enter("/usr/bin/python3", "-IS", "-", input=PROBE.encode(), root=request.param == "root")
    assert (ended.returncode, ended.stderr) == (0, b"")
    return request.param, json.loads(ended.stdout)


def test_every_way_back_is_refused_for_the_stated_reason(answers: tuple[str, dict[str, Any]]) -> None:
    who, found = answers
    own = {"after setuid": "1000" if who == "user" else "0",
           # The cage's root has its uid; the kernel drops what PID 1 does not handle.
           "from it: cage-init": "EPERM" if who == "user" else "done"}
    # In a namespace of one's own one may everything that is of that namespace alone.
    nested = {"a nested namespace": f"{(1 << capability.LAST + 1) - 1:016x}", "from it: a file of another's": "EINVAL"}
    assert found == EVERYBODY | own | nested


# --- from outside ------------------------------------------------------------------------------------------------
def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def held_by(pid: int) -> tuple[str, ...]:
    status = status_of(pid)
    return tuple(status[kind] for kind in (*SETS, "NoNewPrivs", "Seccomp"))


def mask(capabilities: frozenset[int]) -> str:
    return f"{sum(1 << number for number in capabilities):016x}"


@pytest.fixture
def everybody(runtime: Runtime, sealed: Cage) -> Iterator[dict[str, int]]:
    """One process of each kind that there is in a cage, by its command line."""
    ready = "echo ready; exec sleep 1000"
    sandbox = ("bwrap", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-net", "--bind", "/", "/", "sh",
               "-c", "echo ready; exec sleep 1002")
    with contextlib.ExitStack() as ends:
        for words in (("sh", "-c", ready), ("--root", "--", "sh", "-c", "echo ready; exec sleep 1001"), sandbox):
            given = words if words[0] == "--root" else ("--", *words)
            process = ends.enter_context(runtime.popen("enter", sealed.name, *given, stdout=subprocess.PIPE))
            ends.callback(process.terminate)
            assert process.stdout is not None
            wait_readable(process.stdout.fileno(), " ".join(words))
            assert process.stdout.readline() == b"ready\n", words
        # The cage's buses and a cage half; the core half refuses what is sent to nobody.
        sealed.sh("echo x > x; incage send x --to nobody; test $? = 126; rm x")
        sealed.sh("dbus-send --session --dest=org.freedesktop.DBus --print-reply / org.freedesktop.DBus.ListNames")
        there = (pid for pid in runtime.cage_processes(sealed.uuid) if not is_zombie(pid))
        yield {" ".join(arguments_of(pid)).strip(): pid for pid in there}


def test_nobody_in_a_cage_holds_anything_but_cage_init(everybody: dict[str, int]) -> None:
    init = everybody.pop("cage-init sealed")
    assert held_by(init) == (NOTHING, mask(capability.INIT_CEILING), mask(capability.INIT_USUAL), NOTHING, NOTHING,
                             "1", "2")
    kinds = {kind: [line for line in everybody if kind in line]
             for kind in ("sleep 1000", "sleep 1001", "sleep 1002", "cage-bus/bus.conf", "session-bus/bus.conf",
                          "cage-mediator")}
    assert [kind for kind, lines in kinds.items() if not lines] == []
    assert {line: held_by(pid) for line, pid in everybody.items()} == dict.fromkeys(
        everybody, (NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, "1", "2"))


def test_cage_init_is_not_looked_into(everybody: dict[str, int]) -> None:
    """Not dumpable: its files in /proc are the host's root's, whom no uid of the cage is."""
    init = everybody["cage-init sealed"]
    assert os.stat(f"/proc/{init}/environ").st_uid == 0
