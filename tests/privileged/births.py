# SPDX-License-Identifier: LGPL-2.1-or-later
"""Births that fail, each at another kernel call: a spawner's service without its socket, run by test_birth.py.

Run as root by the installed runtime's interpreter: births.py RUNTIME CONFIG.  It bears one cage with every call of
`CALLS` counted, then as many as there were calls, the Nth call of the Nth failing, on either side of clone3; then one
for each step of the two plans, which fails as a whole.  After each it looks what is left, and bears a cage that has to
live.  It prints one JSON object a birth.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RUNTIME, CONFIG = sys.argv[1:]
sys.path[:0] = [f"{RUNTIME}/lib", "/usr/lib/python3/dist-packages"]

from cage_runtime.config import load_runtime  # noqa: E402
from cage_runtime.errors import CageError  # noqa: E402
from cage_runtime.spawner import birth, capability, cgroup, root, syscall  # noqa: E402
from cage_runtime.spawner.loop import Loop  # noqa: E402
from cage_runtime.spawner.lsm.contexts import FIRST, Context, Contexts  # noqa: E402
from cage_runtime.spawner.lsm.operations import Operation  # noqa: E402
from cage_runtime.spawner.service import Service  # noqa: E402
from cage_runtime.spawner.spec import Birth, Describe, Host, Limits, MakeStorage, Remove, Reply, Stop  # noqa: E402

UUID = "0123456789abcdef" * 2


class FakeContexts:
    """Security contexts that no kernel enforces; `made` are those that there are."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.events_ = os.eventfd(0, os.EFD_CLOEXEC)
        self._next = FIRST

    def new(self, context: Context) -> int:
        assert not context.private
        self._next += 1
        self.made.append(self._next)
        return self._next

    def enter(self, pidfd: int, xid: int) -> None:
        """The process has a context before it has ids, for which it waits before it does anything."""
        (pid,) = (line.split()[1] for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
                  if line.startswith("Pid:"))
        assert Path(f"/proc/{pid}/uid_map").read_text() == ""
        assert xid in self.made

    def tag_socket(self, descriptor: int, xid: int) -> None:
        assert os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
        assert xid in self.made

    def forget(self, xid: int) -> None:
        if xid in self.made:
            self.made.remove(xid)

    def denied(self, _xid: int) -> dict[Operation, int]:
        return {}

    def events(self) -> int:
        return self.events_

    def hooks(self) -> tuple[str, ...]:
        return ("none",)


CONTEXTS = FakeContexts()
Contexts.open = classmethod(lambda _cls: CONTEXTS)
CALLS: dict[Any, tuple[str, ...]] = {
    syscall: ("capbset_drop", "clone3", "file_system", "fsconfig", "fsmount", "fsopen", "keyctl_join_session_keyring",
              "landlock_create_ruleset", "landlock_restrict_self", "mount", "mount_setattr", "move_mount", "open_tree",
              "openat2", "pivot_root", "seccomp_filter", "seccomp_listener", "setdomainname", "sethostname", "setns",
              "unshare"),
    capability: ("hold", "lock_securebits", "one_way"),
    os: ("chdir", "chmod", "chown", "dup", "dup2", "fchdir", "fchmod", "fchown", "mkdir", "mknod", "open", "pipe2",
         "read", "setgroups", "setresgid", "setresuid", "setsid", "symlink", "write"),
    socket.socket: ("bind", "connect", "listen"),
    FakeContexts: ("new", "enter", "tag_socket"),
}
"""What a birth asks of the kernel; each can fail for want of memory, descriptors or space, so each does here."""


class Fault:
    """Counts calls in this process or in its child; the Nth fails.  Both see the count: it is in shared memory."""

    def __init__(self, *, inside: bool, number: int | None) -> None:
        self._inside, self._number = inside, number
        self._parent = os.getpid()
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)

    def step(self, name: str) -> None:
        if (os.getpid() != self._parent) is not self._inside:
            return
        count = self.count + 1
        self._shared[:4] = struct.pack("i", count)
        if count == self._number:
            self._shared[4 : 4 + len(name)] = name.encode()
            raise OSError(errno.ENOMEM, "no memory, says the test", name)

    @property
    def count(self) -> int:
        return int(struct.unpack("i", self._shared[:4])[0])

    @property
    def name(self) -> str:
        """The call that failed."""
        return self._shared[4:64].rstrip(b"\0").decode()


@contextmanager
def patched(fault: Fault) -> Iterator[None]:
    """Every call of CALLS goes through `fault`."""
    before = [(room, name, getattr(room, name)) for room, names in CALLS.items() for name in names]

    def through(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            if arguments != ("/",):  # to go back there is how things are undone
                fault.step(name)
            return call(*arguments, **named)
        return counted

    for room, name, call in before:
        setattr(room, name, through(name, call))
    try:
        yield
    finally:
        for room, name, call in before:
            setattr(room, name, call)


class Nursery:
    def __init__(self) -> None:
        config = load_runtime(Path(CONFIG))
        self.run = Path(config.paths.run)
        self.run.mkdir(parents=True)
        syscall.unshare(syscall.CLONE_NEWNS)
        syscall.mount(None, "/", None, syscall.MS_REC | syscall.MS_SLAVE)
        self.loop = Loop()
        # Also where systemd makes the cgroups of cages: what fails here is a call of the kernel's, and ours.
        cgroup.is_systemds = lambda _hierarchy: False
        self.service = Service(config, self.loop, 65534, lambda _ended: None)
        self.subtree = Path(self._describe().cgroup)

    def _describe(self) -> Host:
        hosts: list[Host] = []
        self.service.obey(Describe(id=1), [], lambda reply: hosts.append(reply.host))
        return hosts[0]

    def ask(self, request: Any) -> None:
        """Until the answer is there; its fault is raised as a CageError."""
        replies: list[Reply] = []

        def respond(reply: Reply) -> None:
            replies.append(reply)
            self.loop.running = False

        self.loop.running = True
        self.service.obey(request, [], respond)
        if not replies:
            self.loop.run()
        if replies[0].fault is not None:
            raise CageError(replies[0].fault.sentence)

    def bear(self) -> None:
        self.ask(Birth(id=1, uuid=UUID, name="child", level="public", compartments=[], exec_home=False,
                       limits=Limits(), processes=64, home_bytes=1 << 20, home_files=64))

    def end(self) -> None:
        self.ask(Stop(id=1, uuid=UUID, seconds=0))

    def standing(self) -> dict[str, list[str]]:
        """All that a birth makes."""
        listed = {name: sorted(os.listdir(self.run / name)) for name in ("cages", "gateways")}
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        descriptors = sorted(_target(entry) for entry in os.listdir("/proc/self/fd"))
        return {
            **listed, "mounts": sorted(line.split(" ", 3)[3] for line in mounts), "descriptors": descriptors,
            "cgroups": sorted(entry.name for entry in self.subtree.iterdir() if entry.is_dir()),
            "contexts": [str(xid) for xid in CONTEXTS.made],
            "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text().split(), "cwd": [os.getcwd()],
        }


def _target(entry: str) -> str:
    """What a descriptor is open on, without the number of a pipe or socket."""
    try:
        return os.readlink(f"/proc/self/fd/{entry}").partition("[")[0]
    except FileNotFoundError:
        return ""


class Failing:
    """A step of a plan that says what the step says, and fails."""

    def __init__(self, step: Any) -> None:
        self._step = step

    def describe(self) -> str:
        return str(self._step.describe())

    def execute(self, *_: Any) -> None:
        raise OSError(errno.ENOMEM, "no memory, says the test")


@contextmanager
def failing(place: Any, name: str, number: int) -> Iterator[list[str]]:
    """The plan that `place.name` makes has a step at `number` that fails; its steps, once it has been made."""
    make, steps = getattr(place, name), []

    def made(*arguments: Any) -> list[Any]:
        plan = make(*arguments)
        steps[:] = [step.describe() for step in plan]
        return [Failing(step) if index == number else step for index, step in enumerate(plan)]

    setattr(place, name, made)
    try:
        yield steps
    finally:
        setattr(place, name, make)


def attempt(nursery: Nursery, fails: Any) -> dict[str, Any]:
    """One birth that fails within `fails`, what it says and leaves, and whether the next one lives."""
    before = nursery.standing()
    said = ""
    try:
        with fails:
            nursery.bear()
    except CageError as error:
        said = error.sentence
    except OSError as error:
        said = f"OSError {error}"
    nursery.end()
    after = nursery.standing()
    left = {key: sorted(set(after[key]) ^ set(before[key])) for key in after if len(after[key]) != len(before[key])
            or set(after[key]) != set(before[key])}
    nursery.bear()
    nursery.end()
    return {"said": said, "left": left}


def bear_among_many(nursery: Nursery) -> None:
    """One more where there are hundreds of cages, each of which has descriptors open: select(2) ends at 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    many = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(1100)]
    nursery.bear()
    nursery.end()
    for descriptor in many:
        os.close(descriptor)


def say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")


def main() -> None:
    nursery = Nursery()
    nursery.ask(MakeStorage(id=1, uuid=UUID, ephemeral=False))
    nursery.bear()  # the first one also copies what all cages share
    nursery.end()
    for inside in (False, True):
        fault = Fault(inside=inside, number=None)
        with patched(fault):
            nursery.bear()
        nursery.end()
        for number in range(1, fault.count + 1):
            one = Fault(inside=inside, number=number)
            outcome = attempt(nursery, patched(one))
            side = "inside" if inside else "outside"
            say({"side": side, "number": number, "of": fault.count, "call": one.name, **outcome})
    for plan, place, name in (("root", root, "plan"), ("child", birth.Newborn, "steps")):
        with failing(place, name, -1) as steps:
            nursery.bear()
        nursery.end()
        for number, step in enumerate(steps):
            outcome = attempt(nursery, failing(place, name, number))
            say({"plan": plan, "step": step, "of": len(steps), **outcome})
    bear_among_many(nursery)
    nursery.ask(Remove(id=1, uuid=UUID))
    nursery.subtree.rmdir()


if __name__ == "__main__":
    signal.alarm(240)
    main()
