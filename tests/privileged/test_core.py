# SPDX-License-Identifier: LGPL-2.1-or-later
"""What runs outside of cages is confined too, here where no systemd does it: each program of the core, from outside by
what the kernel says of it, and from inside by a probe that confines itself with the program's own words.
"""

from __future__ import annotations

import json
import pwd
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cage_runtime import confine
from cage_runtime.spawner import capability
from tests.privileged.runtime import PREFIX, USERS, Runtime

NOTHING = "0" * 16
SPAWNER = f"{sum(1 << number for number in capability.SPAWNER):016x}"
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
PROBE = r"""
import ctypes, errno, importlib, json, os, socket, sys
prefix, config_file, module, own, neighbour = sys.argv[1:]
sys.path += [prefix + "/lib", "/usr/lib/python3/dist-packages"]
from pathlib import Path
from cage_runtime.config import load_runtime
from mediators import corehalf
libc = ctypes.CDLL(None, use_errno=True)
config = load_runtime(Path(config_file))
run, state = config.paths.run, config.paths.state
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
    with open(path, "w") as file:
        file.write("x")
    os.unlink(path)
def connect(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
def execute(path):
    pid = os.fork()
    if pid == 0:
        try:
            os.execve(path, ["x"], {})
        except OSError as error:
            os._exit(200 + error.errno % 50)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status >= 200:
        raise OSError(status - 200, "")
def own_program():
    path = own + "/probe"
    with open(path, "wb") as file:
        file.write(true.read())
    os.chmod(path, 0o755)
    try:
        execute(path)
    finally:
        os.unlink(path)
def unshare():
    if libc.unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "")
true = open("/usr/bin/true", "rb")
if module.startswith("mediators."):
    corehalf.begin(module.split(".")[1], config)
else:
    importlib.import_module(module)._confine(config)
print(json.dumps({
    "the policy": tried(lambda: os.listdir(prefix + "/policy.d")),
    "the host's users": tried(lambda: read("/etc/passwd")),
    "the host's name": tried(lambda: read("/etc/hostname")),
    "its memory": tried(lambda: read("/proc/self/maps")),
    "the boot": tried(lambda: read("/proc/sys/kernel/random/boot_id")),
    "the registry": tried(lambda: write(state + "/cages/probe")),
    "the audit chain": tried(lambda: write(state + "/audit/probe")),
    "staging": tried(lambda: write(state + "/staging/probe")),
    "the applications": tried(lambda: write(state + "/flatpak/probe")),
    "/tmp": tried(lambda: write("/tmp/probe-of-the-core")),
    "/dev/shm": tried(lambda: write("/dev/shm/probe-of-the-core")),
    "sockets for cages": tried(lambda: write(run + "/gateways/probe")),
    "caged's folder": tried(lambda: write(run + "/caged/probe")),
    "the bus": tried(lambda: connect(os.environ["DBUS_SYSTEM_BUS_ADDRESS"].removeprefix("unix:path="))),
    "the network": tried(lambda: socket.socket(socket.AF_INET).close()),
    "packets": tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
    "another of its user": tried(lambda: os.kill(int(neighbour), 0)),
    "a namespace": tried(unshare),
    "a program of the host": tried(lambda: execute("/usr/bin/true")),
    "a program of its own": tried(own_program),
}))
"""
CORE = {
    "the policy": "done", "the host's users": "done", "the host's name": "EACCES", "its memory": "EACCES",
    "the boot": "EACCES", "the registry": "EACCES", "the audit chain": "EACCES", "staging": "EACCES",
    "the applications": "EACCES", "/tmp": "EACCES", "/dev/shm": "EACCES", "sockets for cages": "EACCES",
    "caged's folder": "EACCES", "the bus": "done", "the network": "EPERM", "packets": "EAFNOSUPPORT",
    "another of its user": "EPERM", "a namespace": "EPERM", "a program of the host": "EPERM",
    "a program of its own": "EPERM",
}
PROGRAMS = {
    # Below RUN/gateways it writes in what is its own; to that folder it only goes through.
    "caged": ("cage_runtime.daemon.main", "state/cages",
              CORE | dict.fromkeys(("the boot", "the registry", "the audit chain", "caged's folder"), "done")),
    "cage-files": ("mediators.files.core", "state/staging", CORE | {"staging": "done"}),
    "cage-apps": ("cage_runtime.flatpak.service", "state/flatpak", CORE | dict.fromkeys((
        "the host's name", "its memory", "the boot", "the applications", "/tmp", "the network",
        "a program of the host"), "done") | {"a program of its own": "EACCES"}),
}
"""User → where it confines itself, a folder that is its own, and what comes of each attempt."""


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("program", USERS)
def test_a_program_of_the_core_has_no_right_that_it_does_not_need(runtime: Runtime, program: str) -> None:
    status = status_of(runtime.process(program))
    held = SPAWNER if program == "cage-spawner" else NOTHING
    assert {kind: status[kind] for kind in SETS} == {
        "CapInh": NOTHING, "CapPrm": held, "CapEff": held, "CapBnd": held, "CapAmb": NOTHING}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["Uid"].split() == [str(pwd.getpwnam(USERS[program]).pw_uid)] * 4


def test_what_watches_over_them_holds_no_more_than_they_need(runtime: Runtime) -> None:
    assert runtime.supervisor is not None
    status, most = status_of(runtime.supervisor.pid), f"{sum(1 << number for number in confine.SUPERVISOR):016x}"
    assert {kind: status[kind] for kind in SETS} == {
        "CapInh": NOTHING, "CapPrm": most, "CapEff": most, "CapBnd": most, "CapAmb": NOTHING}
    assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize("user", PROGRAMS)
def test_what_is_left_to_a_program_of_the_core(runtime: Runtime, user: str) -> None:
    """Its user could do more: what is refused here is refused by what it has done to itself."""
    module, own, expected = PROGRAMS[user]
    account = pwd.getpwnam(user)
    options: dict[str, Any] = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": [],
                               "env": runtime.environment(), "text": True}
    neighbour = subprocess.Popen(["/usr/bin/sleep", "1000"], **options)
    try:
        words = [PREFIX, runtime.config, module, runtime.top / own, str(neighbour.pid)]
        ended = subprocess.run(["/usr/bin/python3", "-IS", "-c", PROBE, *words], capture_output=True, check=False,
                               **options)
    finally:
        neighbour.kill()
        neighbour.wait()
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout) == expected
