# SPDX-License-Identifier: LGPL-2.1-or-later
"""What mediates in a cage: what is left to it of files, of sockets and of signals, tried from inside.

Each attempt is made by a session of the same cage too, which can do what Landlock forbids the halves: so that a refusal
is Landlock's and not for want of anything else.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.privileged.runtime import CAGED_CONFIGURATION, PREFIX

HALVES = Path(__file__).with_name("halves.py")
PROBE = r"""
import ctypes, errno, fcntl, json, os, signal, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def tried(what):
    try:
        what()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def read(path):
    with open(path, "rb") as file:
        file.read(1)
def write(path):
    with open(path, "wb") as file:
        file.write(b"x")
    os.unlink(path)
def execute(path):
    pid = os.fork()
    if pid == 0:
        try:
            for number in (1, 2):
                os.dup2(os.open("/dev/null", os.O_RDWR), number)
            os.execve(path, ["x", "--version"], {})
        except OSError as error:
            os._exit(200 + error.errno % 50)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status >= 200:
        raise OSError(status - 200, "")
def link():
    write_only = os.open("/home/user/first", os.O_WRONLY | os.O_CREAT)
    os.close(write_only)
    try:
        os.link("/home/user/first", "/home/user/Documents/second")
        os.unlink("/home/user/Documents/second")
    finally:
        os.unlink("/home/user/first")
def special(make):
    make()
    os.unlink("/home/user/special")
def bound():
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("/home/user/special")
def signalled():
    others = [pid for pid in range(2, 64) if pid != os.getpid() and tried(lambda: os.kill(pid, 0)) == "done"]
    if not others:
        raise OSError(errno.EPERM, "")
def call(number, *words):
    libc.syscall.restype = ctypes.c_long
    if libc.syscall(number, *words) < 0:
        raise OSError(ctypes.get_errno(), "")
found = {
    "uid": os.getuid(),
    "libraries": tried(lambda: os.listdir("/usr/lib")),
    "names": tried(lambda: read("/etc/passwd")),
    "own programs": tried(lambda: read("/opt/cage-runtime/levels.toml")),
    "null": tried(lambda: os.write(os.open("/dev/null", os.O_RDWR), b"x")),
    "own file system root": tried(lambda: os.listdir("/")),
    "the home": tried(lambda: os.listdir("/home/user")),
    "a file in the home": tried(lambda: write("/home/user/written")),
    "a directory in the home": tried(lambda: (os.mkdir("/home/user/made"), os.rmdir("/home/user/made"))),
    "a link in the home": tried(link),
    "a symbolic link in the home": tried(lambda: special(lambda: os.symlink("x", "/home/user/special"))),
    "a FIFO in the home": tried(lambda: special(lambda: os.mkfifo("/home/user/special"))),
    "a socket in the home": tried(lambda: special(bound)),
    "a file in /tmp": tried(lambda: write("/tmp/written")),
    "a file in /dev/shm": tried(lambda: write("/dev/shm/written")),
    "/tmp": tried(lambda: os.listdir("/tmp")),
    "/usr/bin": tried(lambda: os.listdir("/usr/bin")),
    "/usr/share": tried(lambda: os.listdir("/usr/share")),
    "/run": tried(lambda: os.listdir("/run")),
    "the identity": tried(lambda: read("/run/cage/identity.json")),
    "applications": tried(lambda: os.listdir("/var/lib/flatpak")),
    "/proc": tried(lambda: os.listdir("/proc")),
    "itself in /proc": tried(lambda: read("/proc/self/maps")),
    "the kernel's settings": tried(lambda: read("/proc/sys/kernel/osrelease")),
    "the machine's id": tried(lambda: read("/etc/machine-id")),
    "devices": [name for name in ("full", "ptmx", "random", "urandom", "zero")
                if tried(lambda: os.open("/dev/" + name, os.O_RDONLY)) == "done"],
    "a shell": tried(lambda: execute("/usr/bin/dash")),
    "another program": tried(lambda: execute("/usr/bin/env")),
    "the bus": tried(lambda: execute("/usr/bin/dbus-daemon")),
    "the half itself": tried(lambda: execute("/opt/cage-runtime/bin/cage-mediator")),
    "mounts": tried(lambda: call(165, b"none", b"/tmp", b"tmpfs", 0, 0)),
    "a TCP socket": tried(lambda: socket.socket(socket.AF_INET).close()),
    "an abstract socket of a session": tried(lambda: socket.socket(socket.AF_UNIX).connect("\0" + sys.argv[1])),
    "a signal to a session": tried(signalled),
    "TCP": sorted({tried(lambda: socket.socket().bind(("127.0.0.1", 0))),
                   tried(lambda: socket.socket().connect(("127.0.0.1", 9)))}),
    "no_new_privs": libc.prctl(39, 0, 0, 0, 0),
    "seccomp": libc.prctl(21, 0, 0, 0, 0),
}
print(json.dumps(found))
"""

FOR_ALL = {
    "libraries": "done", "names": "done", "own programs": "done", "null": "done", "the half itself": "done",
    "no_new_privs": 1, "seccomp": 2,
}
OF_HALVES = FOR_ALL | dict.fromkeys((
    "own file system root", "a symbolic link in the home", "a FIFO in the home", "a socket in the home",
    "a file in /tmp", "a file in /dev/shm", "/tmp", "/usr/bin", "/usr/share", "/run", "the identity", "applications",
    "/proc", "itself in /proc", "the kernel's settings", "the machine's id", "a shell", "another program"), "EACCES",
) | {
    "devices": [], "mounts": "ENOSYS", "a TCP socket": "EPERM", "TCP": ["EPERM"],
    "an abstract socket of a session": "EPERM", "a signal to a session": "EPERM",
}
HOME = ("the home", "a file in the home", "a directory in the home", "a link in the home")
EXPECTED = {
    "mediator": OF_HALVES | dict.fromkeys(HOME, "EACCES") | {"uid": 990, "the bus": "done"},
    # Of one directory to another nothing is linked or moved: whoever gives a file its name does it where it is.
    "delivery": OF_HALVES | dict.fromkeys(HOME, "done") | {"uid": 1000, "the bus": "EACCES",
                                                           "a link in the home": "EXDEV"},
    # So that a refusal above says something.
    "session": FOR_ALL | dict.fromkeys(OF_HALVES.keys() - FOR_ALL.keys(), "done") | dict.fromkeys(HOME, "done") | {
        "uid": 1000, "the bus": "done", "devices": ["full", "ptmx", "random", "urandom", "zero"], "mounts": "EPERM",
        "TCP": ["ECONNREFUSED", "done"]},
}


@pytest.fixture(scope="module")
def answers() -> dict[str, dict[str, Any]]:
    top = Path(tempfile.mkdtemp(prefix="halves-"))
    top.chmod(0o755)
    try:
        config = top / "caged.conf"
        config.write_text(CAGED_CONFIGURATION.format(top=top, prefix=PREFIX, cgroup=f"cage-runtime-{top.name}"))
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
                   "/usr/bin/python3", "-IS", HALVES, PREFIX, config, PROBE]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
        assert (ended.returncode, ended.stderr) == (0, "")
    finally:
        shutil.rmtree(top)
    found: dict[str, dict[str, Any]] = json.loads(ended.stdout)
    return found


@pytest.mark.parametrize("profile", EXPECTED)
def test_what_is_left_to_it(answers: dict[str, dict[str, Any]], profile: str) -> None:
    assert answers[profile] == EXPECTED[profile]
