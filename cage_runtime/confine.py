# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the programs of the core confine themselves before they serve: as their units do where systemd starts them, and
where nobody does.

Law of this room: it is done before the first thread, and nothing of it can be undone.  What a program needs is in its
own words, here are only the means: no right to gain any, a filter of system calls (seccomp.d), and of files, TCP,
sockets and signals what Landlock leaves.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

from cage_runtime.config import RuntimeConfig, profiles_of
from cage_runtime.errors import HostUnsupported
from cage_runtime.spawner import capability, landlock, seccomp

MODULES = Path(__file__).parents[1]
"""What the runtime's own modules are in, of which some are imported late."""
DEVICES = ("/dev/urandom", "/dev/random")
SUPERVISOR = frozenset(capability.SPAWNER) | {capability.CAP_KILL}
"""`caged --standalone` gives the spawner what that has to have, starts the others as their users and ends them."""


def confine(config: RuntimeConfig, profile: str, *, readable: Iterable[Path | str] = (),
            writable: Iterable[Path | str] = (), special: Iterable[Path | str] = (),
            executable: Iterable[Path | str] = (), tcp: bool = False) -> None:
    """Confine this process to the filter `profile` and to these files, besides what the C library and Python read.

    In what is `special` there can be more than regular files.  HostUnsupported where the kernel does not do it.
    """
    paths = config.paths
    reach = landlock.Reach(
        readable=(*landlock.LIBRARIES, *landlock.NAMES, *DEVICES, str(MODULES), paths.shipped, paths.administrator,
                  paths.runtime, *map(str, readable)),
        executable=tuple(map(str, executable)), writable=tuple(map(str, writable)), special=tuple(map(str, special)),
        tcp=tcp)
    try:
        filter_ = seccomp.build(profiles_of(paths), profile)
        capability.one_way()
        capability.hold(frozenset())
        reach.restrict()
        filter_.load()
    except OSError as error:
        what = "has seccomp or Landlock switched off" if error.errno in (errno.ENOSYS, errno.EINVAL) else "refuses"
        raise HostUnsupported(f"this host {what}, and the core is not to run unconfined: {error}") from error


def seal() -> None:
    """Confine a worker of this process, which has all that it needs open, to that: it opens nothing, not even what
    /proc has of whoever started it."""
    capability.one_way()
    landlock.Reach().restrict()


def bound_supervisor() -> None:
    """Gain nothing any more, and give up what neither the supervisor nor any of its children is to have.

    Where somebody has taken more, the child that needs it says so.
    """
    capability.one_way()
    capability.bound(SUPERVISOR & capability.permitted())
