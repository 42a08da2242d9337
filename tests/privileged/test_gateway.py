# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bus of a cage's gateway: what it may do on the host, how long it runs, and that it is nobody's but its cage's."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from jeepney import DBusAddress, new_method_call

from cage_runtime.spawner import gateway, seccomp
from tests.privileged.conftest import MakeCage
from tests.privileged.gateways import await_core_half
from tests.privileged.gateways import gateway as raw_gateway
from tests.privileged.rules import until
from tests.privileged.runtime import SECONDS, TOP, Cage, Runtime, arguments_of, wait_gone

PROBE = """
import errno, json, os, socket, sys
def tried(what):
    try:
        what()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def own(descriptor):
    with socket.socket(fileno=os.dup(descriptor)) as listener:
        return listener.getsockname()
run, state, caged = sys.argv[1:]
print(json.dumps({
    "uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(),
    "listener": own(3), "for us": os.environ["LISTEN_PID"] == str(os.getpid()), "count": os.environ["LISTEN_FDS"],
    "higher": [number for number in range(4, 64) if tried(lambda: os.fstat(number)) == "done"],
    "its configuration": tried(lambda: open(run + "/caged/gateway.conf").close()),
    "the host's users": tried(lambda: open("/etc/passwd").close()),
    "the host's name": tried(lambda: open("/etc/hostname").close()),
    "the host's programs": tried(lambda: os.listdir("/usr/bin")),
    "itself in /proc": tried(lambda: open("/proc/self/status").close()),
    "a shell": tried(lambda: os.execve("/usr/bin/dash", ["sh"], {})),
    "the audit chain": tried(lambda: os.listdir(state + "/audit")),
    "the registry": tried(lambda: os.listdir(state + "/cages")),
    "a file of caged's": tried(lambda: open(run + "/caged/mine", "w").close()),
    "another program": tried(os.fork),
    "a socket": tried(lambda: socket.socket(socket.AF_UNIX).close()),
    "the network": tried(lambda: socket.socket(socket.AF_INET).close()),
    "caged": tried(lambda: os.kill(int(caged), 0)),
}), file=sys.stderr)
"""


def started_as_a_gateway(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the probe says that is started as the bus of a gateway is, but for its cgroup."""
    caged = pwd.getpwnam("caged")
    recipe = gateway.Recipe(configuration=runtime.run / "caged/gateway.conf", uid=caged.pw_uid, gid=caged.pw_gid,
                            filter=seccomp.build(TOP / "policies/seccomp.d", "gateway"))
    words = ["/usr/bin/python3", "-I", "-S", "-c", PROBE, str(runtime.run), str(runtime.state),
             str(runtime.process("caged"))]
    monkeypatch.setattr(gateway, "_command", lambda _recipe: words)
    monkeypatch.setattr(gateway, "PROGRAM", os.path.realpath(words[0]))
    read, write = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime.top / "probe"))
        listener.listen()
        pid = os.fork()
        if pid == 0:
            os.dup2(write, 2)
            gateway._become(listener.fileno(), recipe)
    os.close(write)
    with open(read, "rb") as said:
        text = said.read()
    os.waitpid(pid, 0)
    (runtime.top / "probe").unlink()
    try:
        found: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError:
        pytest.fail(text.decode())
    return found


def test_what_it_may(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """To others on the host it would be caged, and what it reads comes from a cage."""
    caged = pwd.getpwnam("caged")
    assert started_as_a_gateway(runtime, monkeypatch) == {
        "uid": [caged.pw_uid] * 3, "gid": [caged.pw_gid] * 3, "groups": [],
        "listener": str(runtime.top / "probe"), "for us": True, "count": "1", "higher": [],
        "its configuration": "done", "the host's users": "done", "the host's name": "EACCES",
        "the host's programs": "EACCES", "itself in /proc": "EACCES", "a shell": "EACCES",
        "the audit chain": "EACCES", "the registry": "EACCES",
        "a file of caged's": "EACCES", "another program": "EPERM", "a socket": "EPERM", "the network": "EPERM",
        "caged": "EPERM",
    }


@pytest.fixture
def sender(runtime: Runtime, cage: MakeCage) -> Cage:
    """A cage that has sent something, to itself, which nobody may; its gateway's bus runs."""
    made = cage("sender")
    send(made)
    assert len(runtime.gateway_bus(made.uuid)) == 1
    return made


def send(cage: Cage) -> None:
    """It is refused by policy, and so it has come to the core half."""
    ended = cage.enter("sh", "-c", "echo x > x; incage send x --to nobody")
    assert ended.returncode == 126, ended.stderr


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_it_has_no_right_and_is_not_in_the_cage(runtime: Runtime, sender: Cage) -> None:
    (pid,) = runtime.gateway_bus(sender.uuid)
    status, caged = status_of(pid), str(pwd.getpwnam("caged").pw_uid)
    assert arguments_of(pid)[0] == "/usr/bin/dbus-daemon"
    assert status["Uid"].split() == [caged] * 4
    assert {status[kind] for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    opened = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    assert {link for link in opened if link.startswith("/")} == {"/dev/null"}
    assert pid not in runtime.cage_processes(sender.uuid)
    for space in ("user", "mnt", "net", "pid", "ipc"):
        inside = os.readlink(f"/proc/{min(runtime.cage_processes(sender.uuid))}/ns/{space}")
        assert os.readlink(f"/proc/{pid}/ns/{space}") != inside


def test_it_runs_as_long_as_its_cage(runtime: Runtime, sender: Cage) -> None:
    """Whatever becomes of caged and of the spawner; no cage has it, and a pause is not its own."""
    (pid,) = runtime.gateway_bus(sender.uuid)
    group = runtime.cgroups()[sender.uuid].with_name(f"{sender.uuid}.gateway")
    for program in ("caged", "cage-spawner", "caged"):
        runtime.kill_and_wait(program)
        send(sender)
        assert runtime.gateway_bus(sender.uuid) == [pid]
    runtime.ok("pause", sender.name)
    assert "frozen 0" in (group / "cgroup.events").read_text()
    runtime.ok("resume", sender.name)
    runtime.restart()
    send(sender)
    assert runtime.gateway_bus(sender.uuid) == [pid]
    runtime.ok("stop", sender.name)
    wait_gone(pid)
    assert not group.exists()
    runtime.ok("start", sender.name)
    send(sender)
    assert runtime.gateway_bus(sender.uuid) != [pid]


TRACER = """
import ctypes, os, signal, sys
PTRACE_SEIZE = 0x4206
libc = ctypes.CDLL(None, use_errno=True)
if libc.ptrace(PTRACE_SEIZE, int(sys.argv[1]), None, None):
    sys.exit(os.strerror(ctypes.get_errno()))
print("traced", flush=True)
signal.pause()
"""


def test_whoever_traces_it_holds_nobody_up(runtime: Runtime, sender: Cage) -> None:
    """Its end is told to the tracer first, and to the spawner when that has ended: caged's user can have one."""
    (pid,) = runtime.gateway_bus(sender.uuid)
    caged = pwd.getpwnam("caged")
    with subprocess.Popen(["/usr/bin/python3", "-IS", "-c", TRACER, str(pid)], user=caged.pw_uid, group=caged.pw_gid,
                          extra_groups=[], stdout=subprocess.PIPE, text=True) as tracer:  # fmt: skip
        try:
            assert tracer.stdout is not None
            assert tracer.stdout.readline() == "traced\n"
            runtime.ok("stop", sender.name)
            assert status_of(pid)["State"].startswith("Z")
            runtime.ok("start", sender.name)
        finally:
            tracer.kill()
    wait_gone(pid)


@pytest.mark.parametrize("program", [None, "caged", "cage-spawner"])
def test_one_that_is_killed_is_started_by_the_next_who_needs_it(
    runtime: Runtime, sender: Cage, program: str | None
) -> None:
    """Also where another caged has it from an earlier one, or nobody looks while it ends."""
    (pid,) = runtime.gateway_bus(sender.uuid)
    if program is None:
        os.kill(pid, signal.SIGKILL)
    else:
        runtime.kill_and_wait("caged")
        with runtime.coming_back(program):
            runtime.kill(program)
            os.kill(pid, signal.SIGKILL)
    wait_gone(pid)
    send(sender)
    (another,) = runtime.gateway_bus(sender.uuid)
    assert another != pid


def test_what_it_refuses_floods_no_log(runtime: Runtime, sender: Cage) -> None:
    """M82: it has a line to say of each call too many, and some of them are told once it has ended."""
    refusal = "The maximum number of pending replies"
    address = DBusAddress("/org/cageruntime/Call1", "org.cageruntime.Call1", "org.cageruntime.Call1")
    said = b"".join(new_method_call(address, "Call", "sssa{sv}", ("Nothing", "", "nobody", {})).serialise(serial)
                    for serial in range(100, 1100))
    before = runtime.log().count(refusal)
    with raw_gateway(runtime, sender) as half:
        await_core_half(half, "Call1")
        half.sock.sendall(said)
        assert half.receive(timeout=SECONDS)
    (pid,) = runtime.gateway_bus(sender.uuid)
    assert runtime.log().count(refusal) == before
    os.kill(pid, signal.SIGKILL)
    until(lambda: runtime.log().count(refusal) > before, "what it has said")
    assert runtime.log().count(refusal) <= before + 20
