# SPDX-License-Identifier: LGPL-2.1-or-later
"""What this host offers to cages, what is missing, what that means and how to mend it."""

from __future__ import annotations

import os
import pwd
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from cage_runtime.daemon.walls import landlock_lacks
from cage_runtime.spawner.spec import Host

PROGRAMS = {
    "flatpak": "no applications can be installed or run in cages",
    "bwrap": "Flatpak applications cannot start",
    "xdg-dbus-proxy": "Flatpak applications with a bus cannot start",
    "ostree": "applications cannot be fetched and verified",
    "gpg": "keys of remotes cannot be read",
    "dbus-daemon": "cages have no bus and no mediators",
}
"""Programs of the host and what their absence means."""

CONTROLLERS = {"memory": "memory", "cpu": "cpus", "pids": "tasks", "io": "io-weight"}


class Health(StrEnum):
    OK = "ok"
    LIMITED = "limited"
    MISSING = "missing"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    check: str
    state: Health
    detail: str
    help: str = ""


def examine(
    host: Host, *, authorisation: tuple[bool, str], policy_fault: str | None, policy_faults: int, labels: int,
    unenforced: Mapping[str, tuple[str, ...]],
    orphans: tuple[str, ...] = (), strangers: Mapping[int, int] = MappingProxyType({}), faults: tuple[str, ...] = (),
    counted: bool = True, idle: tuple[str, ...] = (), unseen: int = 0,
) -> list[Check]:
    """Every check, in the order in which a person would go through them; `unenforced` is by cage.  `authorisation` is
    whether others than root can use cages, and why; `strangers` are what `unknown_owners` finds; unless `counted`,
    nothing tells how many cages there are; `idle` are the mediators that do not run; `unseen` is how many open
    questions no program shows to anybody."""
    return [
        *_kernel(host), *_cgroup(host), *_programs(), _policy(policy_fault, policy_faults),
        _authorisation(*authorisation), *_mediators(idle), _questions(unseen),
        Check(check="levels", state=Health.OK, detail=f"{labels} levels"),
        _id_ranges(host, counted=counted),
        *_cages(unenforced),
        *(Check(check="storage", state=Health.LIMITED, detail=f"{uuid} belongs to no cage that is known, and is kept",
                help="restore its definition, or look through it as root and remove it") for uuid in orphans),
        *(_stranger(uid, cages) for uid, cages in strangers.items()),
        *(Check(check="state", state=Health.LIMITED, detail=fault, help="mend it, then start the core again")
          for fault in faults),
    ]


def _id_ranges(host: Host, *, counted: bool) -> Check:
    detail = f"{host.ranges_free} of {host.ranges} free" if counted else "some are free"
    if host.ranges_free:
        return Check(check="id ranges", state=Health.OK, detail=detail)
    help_ = "destroy cages that are not needed"
    return Check(check="id ranges", state=Health.MISSING, detail=detail if counted else "none is free", help=help_)


def unknown_owners(owners: Iterable[int]) -> dict[int, int]:
    """How many of cages that have these owners each uid has whom this host does not know; may ask over the network."""
    return {uid: count for uid, count in sorted(Counter(owners).items()) if not _is_known(uid)}


def _is_known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _stranger(uid: int, cages: int) -> Check:
    return Check(check="persons", state=Health.LIMITED,
                 detail=f"uid {uid}, whom this host does not know, has {cages} cage{'s' if cages != 1 else ''}",
                 help="who is given that uid next has them too: see cagectl list, and destroy them before that")


def _kernel(host: Host) -> Iterator[Check]:
    yield Check(check="kernel", state=Health.OK, detail=host.kernel)
    namespaces = host.user_namespaces
    yield Check(check="user namespaces", state=Health.OK if namespaces else Health.MISSING,
                detail=f"at most {namespaces}",
                help="" if namespaces else "set the sysctl user.max_user_namespaces to 10000 or more")
    lacks = landlock_lacks(host.landlock_abi)
    yield Check(check="landlock", state=Health.LIMITED if lacks else Health.OK,
                detail=f"ABI {host.landlock_abi}" + (f", without rules about {lacks}" if lacks else ""),
                help="what it has no rules about is kept apart by namespaces alone" if lacks else "")
    noexec = host.memfd_noexec
    yield Check(check="memory files", state=Health.OK if noexec else Health.LIMITED,
                detail="cannot be executed in cages" if noexec else "can be executed in cages",
                help="" if noexec else "what a cage writes to a memfd it can run; Linux 6.3 and later forbid it")
    yield _process_memory(host.proc_mem)
    yield _security_context(host)


def _process_memory(force_override: str) -> Check:
    """/proc/PID/mem, through which a program could write into what it may only execute."""
    if force_override == "never":
        return Check(check="process memory", state=Health.OK, detail="what is mapped read-only cannot be written")
    detail = "a program in a cage can write to its own memory that is mapped read-only, through /proc/self/mem"
    help_ = "boot with proc_mem.force_override=never on the kernel's command line"
    if not force_override:
        help_ = "this kernel is too old to forbid it; Linux 6.12 and later do, with proc_mem.force_override=never"
    return Check(check="process memory", state=Health.LIMITED, detail=detail, help=help_)


def _security_context(host: Host) -> Check:
    if not host.lsm:
        return Check(check="security context", state=Health.OK,
                     detail=f"enforced by the kernel, at {host.lsm_hooks} places")
    return Check(check="security context", state=Health.LIMITED, detail=host.lsm,
                 help="until then a lost namespace has no second wall behind it, and what requires lsm does not run")


def _cgroup(host: Host) -> Iterator[Check]:
    yield Check(check="cgroup v2", state=Health.OK, detail=host.cgroup)
    for controller, limits in CONTROLLERS.items():
        there = controller in host.controllers
        yield Check(check=f"controller {controller}", state=Health.OK if there else Health.LIMITED,
                    detail="enforced" if there else f"the limit {limits} cannot be enforced",
                    help="" if there else "boot with a unified cgroup hierarchy (systemd.unified_cgroup_hierarchy=1)")
    yield Check(check="disk limits", state=Health.LIMITED, detail="the limits disk and disk-files cannot be enforced",
                help="an ephemeral cage's home is bounded; a home that persists has what the disk has")


def _cages(unenforced: Mapping[str, tuple[str, ...]]) -> Iterator[Check]:
    for name, faults in unenforced.items():
        for fault in faults:
            yield Check(check=f"cage {name}", state=Health.LIMITED, detail=fault,
                        help=f"see cagectl status {name}")


def _programs() -> Iterator[Check]:
    for program, meaning in PROGRAMS.items():
        path = shutil.which(program, path="/usr/bin:/bin")
        yield Check(check=program, state=Health.OK if path else Health.MISSING, detail=path or meaning,
                    help="" if path else f"install the package that has {program}")
    systemd = os.path.isdir("/run/systemd/system")
    yield Check(check="systemd", state=Health.OK if systemd else Health.LIMITED,
                detail="runs the core" if systemd else "not the first process here; caged --standalone runs the core",
                help="" if systemd else "whoever starts it with the machine has cages started that are enabled")


def _policy(fault: str | None, faults: int) -> Check:
    if fault is None and faults:
        return Check(check="policy", state=Health.LIMITED, help="see cagectl policy check",
                     detail=f"in force, but its files have faults by now ({faults}): a restart would deny everything")
    if fault is None:
        return Check(check="policy", state=Health.OK, detail="in force")
    return Check(check="policy", state=Health.MISSING, detail=fault, help="mend the line, then cagectl policy reload")


def _mediators(idle: tuple[str, ...]) -> Iterator[Check]:
    if not idle:
        yield Check(check="mediators", state=Health.OK, detail="all of them run")
    for name in idle:
        yield Check(check=f"mediator {name}", state=Health.LIMITED, detail="does not run, so what it carries waits",
                    help=f"see systemctl status cage-mediator@{name}; it is started with caged")


def _questions(unseen: int) -> Check:
    """Of those who are asked nobody may know it: they are told by programs alone, such as cage-desktop."""
    if not unseen:
        return Check(check="questions", state=Health.OK, detail="no open question is unseen")
    which = "1 open question is" if unseen == 1 else f"{unseen} open questions are"
    return Check(check="questions", state=Health.LIMITED, detail=f"{which} shown by no program of whose cage it is",
                 help="start cage-desktop in that person's session, or see cagectl prompts list and answer there")


def _authorisation(persons: bool, why: str) -> Check:
    if persons:
        return Check(check="authorisation", state=Health.OK, detail=why)
    return Check(check="authorisation", state=Health.LIMITED, detail=f"only root may use cages ({why})",
                 help="use sudo; or install polkitd, and this runtime's actions in /usr/share/polkit-1/actions")
