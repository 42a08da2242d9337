# SPDX-License-Identifier: LGPL-2.1-or-later
"""All of the core in a guest whose kernel enforces contexts: what people see of them, and that all else goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cage_runtime.spawner.lsm.contexts import ANSWERS, Contexts
from tests.kernels.lsm.test_cages import Escaped

SECONDS = 300
"""After which something hangs: the guest is emulated."""
NAMES = ("work", "vault", "quiet")


def run(*command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=SECONDS, check=False)


def ok(*command: str, given: str = "") -> str:
    ended = run(*command, given=given)
    assert ended.returncode == 0, ended
    return ended.stdout


def status(name: str) -> dict[str, Any]:
    shown = json.loads(ok("cagectl", "status", name, "--json=short"))
    assert isinstance(shown, dict)
    return shown


@pytest.fixture(scope="module", autouse=True)
def _core() -> Iterator[None]:
    """A system bus, and caged --standalone on it."""
    Path("/run/dbus").mkdir(exist_ok=True)
    bus = subprocess.Popen(["dbus-daemon", "--system", "--nofork", "--nopidfile", "--print-address"],
                           stdout=subprocess.PIPE)
    assert bus.stdout is not None
    assert bus.stdout.readline()
    read, write = os.pipe()
    with Path("/task/results/core.log").open("wb") as log:
        caged = subprocess.Popen(["caged", "--standalone", "--ready-fd", str(write)], pass_fds=(write,), stderr=log)
    os.close(write)
    assert os.read(read, 16) == b"ready\n", Path("/task/results/core.log").read_text()
    os.close(read)
    yield
    print(Path("/task/results/core.log").read_text(errors="replace"))  # noqa: T201 - shown of what fails
    caged.terminate()
    caged.wait(SECONDS)
    bus.terminate()
    bus.communicate()


@pytest.fixture(scope="module")
def cages(_core: None) -> Iterator[None]:
    ok("cagectl", "create", "work", "--level", "internal", "--require", "lsm")
    ok("cagectl", "create", "vault", "--level", "secret", "--require", "lsm")
    ok("cagectl", "create", "quiet", "--level", "secret", "--private", "--require", "lsm")
    yield
    ok("cagectl", "destroy", *NAMES, "--yes")


@pytest.mark.usefixtures("cages")
def test_doctor_and_status_say_that_contexts_are_enforced(contexts: Contexts) -> None:
    (check,) = (check for check in json.loads(run("cagectl", "doctor", "--json=short").stdout)
                if check["check"] == "security context")
    assert (check["state"], check["detail"]) == ("ok", f"enforced by the kernel, at {len(contexts.hooks())} places")
    walls = {name: status(name)["walls"]["lsm"] for name in NAMES}
    assert all(wall["enforced"] for wall in walls.values())
    numbers = {int(wall["detail"].removeprefix("context ")) for wall in walls.values()}
    assert len(numbers) == 3
    assert numbers <= contexts.configured()


@pytest.mark.usefixtures("cages")
def test_documents_go_where_the_policy_lets_them_also_into_a_private_cage() -> None:
    """Over gateways that each their own cage alone can connect to, as descriptors that the core has opened."""
    for target in ("vault", "quiet"):
        sent = run("cagectl", "enter", "work", "--", "sh", "-c", f"echo figures >f && incage send f --to {target}")
        assert (sent.returncode, sent.stderr) == (0, ""), sent
    assert ok("cagectl", "enter", "vault", "--", "cat", "Inbox/work/f") == "figures\n"
    back = run("cagectl", "enter", "vault", "--", "incage", "send", "Inbox/work/f", "--to", "work")
    assert back.returncode == 126, back
    assert {name: status(name)["denials"] for name in NAMES} == {name: {} for name in NAMES}


@pytest.mark.usefixtures("cages")
def test_who_answers_the_cages_system_calls_reaches_private_ones_too(contexts: Contexts) -> None:
    answering, = [int(file.parent.name) for file in Path("/proc").glob("[0-9]*/cmdline")
                  if b"bin/cage-syscalls\0" in file.read_bytes()]
    pidfd = os.pidfd_open(answering)
    assert contexts.of(pidfd) == ANSWERS
    os.close(pidfd)


@pytest.mark.usefixtures("cages")
def test_another_cage_s_gateway_cannot_be_connected_to(contexts: Contexts) -> None:
    """By who has lost every other wall."""
    ok("cagectl", "enter", "vault", "--", "incage", "whoami")
    escaped = Escaped(contexts, int(status("work")["walls"]["lsm"]["detail"].split()[-1]))
    runs = Path("/run/cage-runtime")
    uuid = {name: status(name)["uuid"] for name in NAMES}

    def connects(path: Path) -> str:
        import socket

        kind = socket.SOCK_SEQPACKET if path.name == "init.sock" else socket.SOCK_STREAM

        def connect() -> None:
            with socket.socket(socket.AF_UNIX, kind) as client:
                client.connect(str(path))

        return escaped.tries(connect)

    assert connects(runs / "gateways" / uuid["work"] / "bus") == "done"
    for foreign in (runs / "gateways" / uuid["vault"] / "bus", runs / "cages" / uuid["vault"] / "init.sock",
                    Path("/run/dbus/system_bus_socket")):
        assert connects(foreign) == "EPERM", foreign
    assert status("work")["denials"]["connect"] == 3
    assert status("vault")["state"] == "running"


@pytest.mark.usefixtures("cages")
def test_what_the_kernel_refused_is_in_the_record() -> None:
    uuid = status("work")["uuid"]
    deadline, lines = time.monotonic() + SECONDS, [""]
    while not any("denied-by-kernel" in line and "connect" in line for line in lines):
        """The core looks once a second at most."""
        assert time.monotonic() < deadline, lines
        lines = [line for line in ok("cagectl", "audit", "tail", "-n", "100").splitlines() if uuid in line]


@pytest.mark.usefixtures("cages")
def test_nobody_gets_into_a_private_cage() -> None:
    for line in (("enter", "quiet", "--", "true"), ("logs", "quiet")):
        assert run("cagectl", *line).returncode == 126
    init = next(entry.name for entry in Path("/proc").iterdir() if entry.name.isdecimal()
                and b"cage-init quiet" in (entry / "cmdline").read_bytes())
    entered = run("nsenter", "--target", init, "--all", "--", "/bin/cat", "/home/user/Inbox/work/f")
    assert entered.returncode != 0, entered
    assert "Permission denied" in entered.stderr or "not permitted" in entered.stderr
    for verb in ("pause", "resume", "stop", "start"):
        ok("cagectl", verb, "quiet")


def test_a_cage_that_is_destroyed_leaves_no_context(contexts: Contexts) -> None:
    before = contexts.configured()
    ok("cagectl", "create", "brief", "--require", "lsm")
    xid = int(status("brief")["walls"]["lsm"]["detail"].split()[-1])
    assert contexts.configured() == before | {xid}
    ok("cagectl", "destroy", "brief", "--yes")
    assert contexts.configured() == before


def test_contexts_go_on_when_the_spawner_is_killed(contexts: Contexts) -> None:
    ok("cagectl", "create", "brief", "--require", "lsm")
    try:
        before = status("brief")["walls"]["lsm"]
        (spawner,) = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()
                      and b"/bin/cage-spawner\0" in (entry / "cmdline").read_bytes()
                      and int((entry / "stat").read_text().split()[3]) != 1)
        os.kill(spawner, signal.SIGKILL)
        assert status("brief")["walls"]["lsm"] == before
        assert ok("cagectl", "enter", "brief", "--", "echo", "on") == "on\n"
    finally:
        ok("cagectl", "destroy", "brief", "--yes")
    assert not contexts.configured() & {int(before["detail"].split()[-1])}
