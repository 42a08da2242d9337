# SPDX-License-Identifier: LGPL-2.1-or-later
"""cage-syscalls: started by cage-spawner when a cage first asks what is mediated; it ends with the spawner.

To write an answer into a caller's memory takes CAP_SYS_PTRACE over the cage's user namespace, and CAP_DAC_OVERRIDE to
open /proc/PID/mem, which stays the caller's when its pid is another's (process_vm_writev(2) knows a pid alone).
Whoever defeats this process has the host's processes; so it reads nothing of a cage but the numbers of a call, and else
has a user of its own, no file system but proc, no network, and the few calls that it makes.  A Landlock domain would
forbid the one thing that it is for (landlock(7), ptrace restrictions).
"""

from __future__ import annotations

import gc
import logging
import os
import pwd
import socket
import sys
from pathlib import Path

import prctl

from cage_runtime import log
from cage_runtime.arguments import Parser
from cage_runtime.config import load_runtime, profiles_of, uid_of
from cage_runtime.spawner import capability, syscall, wire
from cage_runtime.spawner.filters import FILTERS, Filter, Store
from cage_runtime.spawner.helper import exit_status, given_socket
from cage_runtime.syscalls import notification
from cage_runtime.syscalls.answers import Facts
from cage_runtime.syscalls.mediator import Mediator
from cage_runtime.syscalls.spec import Counted, Mediate, decode_asked, encode

LOG = logging.getLogger("cage-syscalls")
CAPABILITIES = frozenset({capability.CAP_DAC_OVERRIDE, capability.CAP_SYS_PTRACE})
PROC = ""
"""Where processes are once proc is our root: /PID."""


def enter_proc(proc: str) -> None:
    """Make the host's processes all the files there are, and leave the network, in namespaces of our own."""
    syscall.unshare(syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS)
    syscall.mount(None, "/", None, syscall.MS_REC | syscall.MS_PRIVATE)
    if not os.path.ismount(proc):  # the spawner may mount none of its own in a container
        syscall.mount("/proc", proc, None, syscall.MS_BIND | syscall.MS_REC)
    os.chdir(proc)
    syscall.pivot_root(".", ".")
    syscall.umount2(".", syscall.MNT_DETACH)
    os.chdir("/")


def seal(user: pwd.struct_passwd, filter_: Filter) -> None:
    """Only lose rights from here on."""
    capability.drop_bounding_set()
    prctl.set_keepcaps(1)
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    capability.hold(CAPABILITIES | {capability.CAP_SETPCAP})
    capability.lock_securebits()
    capability.hold(CAPABILITIES)
    capability.one_way()
    sys.path.clear()
    sys.meta_path.clear()
    filter_.load()


class Server:
    """The spawner's orders, and what it is told."""

    def __init__(self, spawner: socket.socket, memory: int) -> None:
        self._spawner, self._memory = spawner, memory
        self.mediator = Mediator(PROC, self._tell)
        self.mediator.watch(spawner.fileno(), self._hear)
        self.running = True

    def serve(self) -> None:
        """Until the spawner ends."""
        while self.running:
            self.mediator.turn()

    def _tell(self, counted: Counted) -> None:
        try:
            wire.send(self._spawner, encode(counted))
        except BlockingIOError:  # it does not listen now; the next count has this one in it
            return

    def _hear(self) -> None:
        received = wire.receive(self._spawner)
        if received is None:
            self.running = False
            return
        message, descriptors = received
        try:
            asked = decode_asked(message)
            if not isinstance(asked, Mediate):
                self.mediator.forget(asked.uuid)
                return
            if len(descriptors) != 2 or not notification.is_listener(descriptors[0], PROC):
                raise wire.PeerError("calls to be mediated come with their listener and a cgroup")
            listener, cgroup = descriptors
            descriptors = []
            self.mediator.add(asked.uuid, listener, Facts(cgroup=cgroup, born=asked.born, memory=self._memory))
        finally:
            wire.close_all(descriptors)


def _mediate(file: Path | None) -> None:
    """Until the spawner ends."""
    spawner = given_socket("cage-syscalls")
    spawner.setblocking(False)
    config = load_runtime(file)
    filter_ = Store(Path(config.paths.run, FILTERS)).build(profiles_of(config.paths), "syscalls")
    user = pwd.getpwuid(uid_of(config.users.syscalls))
    server = Server(spawner, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    gc.collect()
    gc.freeze()
    enter_proc(str(Path(config.paths.run, "proc")))
    seal(user, filter_)
    server.serve()


def main() -> int:
    options = Parser("cage-syscalls", "answers calls of cages, for cage-spawner alone").parse_args()
    log.set_up("%(name)s: %(message)s")
    return exit_status(lambda: _mediate(options.config), LOG)


if __name__ == "__main__":
    sys.exit(main())
