# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every call's answer, asked of the compiled programs, against the profiles as they are written."""

from __future__ import annotations

import errno
import itertools
import platform
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

sys.path.append("/usr/lib/python3/dist-packages")

import pyseccomp

from cage_runtime.spawner import seccomp
from tests.unit.cage_runtime.spawner import bpf
from tests.unit.cage_runtime.spawner.test_seccomp import PROFILES

NAMES = ("session", "mediator", "gateway", "scopes", "init", "syscalls", "apps", "core")
ARCHITECTURE = {"x86_64": bpf.X86_64, "aarch64": bpf.AARCH64}[platform.machine()]
NUMBERS = range(501)
HIGH = 0xDEADBEEF << 32
DONE = bpf.ERRNO


@cache
def programs(name: str) -> list[list[tuple[int, int, int, int]]]:
    return [bpf.decode(program) for program in seccomp.build(PROFILES, name).programs]


def answer(name: str, number: int, arguments: tuple[int, ...] = (), architecture: int = ARCHITECTURE) -> int:
    given = bpf.data(number, arguments, architecture)
    return bpf.strictest([bpf.run(program, given) for program in programs(name)])


@cache
def call_of(number: int) -> str | None:
    """Its name, where the libseccomp here knows it."""
    try:
        name: str = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, number).decode()
    except (ValueError, AttributeError):
        return None
    return name


# --- the profiles, read once more, and not by what compiles them -----------------------------------------------------
@cache
def profiles(name: str) -> list[dict[str, Any]]:
    profile = tomllib.loads((PROFILES / f"{name}.toml").read_text())
    base = profiles(profile["extends"]) if "extends" in profile else []
    return [*base, profile]


def rules(name: str, kind: str, call: str) -> list[dict[str, Any]]:
    return [rule for profile in profiles(name) for rule in profile.get(kind, []) if rule["call"] == call]


def fits(rule: dict[str, Any], arguments: tuple[int, ...]) -> bool:
    return (all(arguments[index] & mask == value for index, mask, value in rule["arguments"])
            and all(arguments[index] != value for index, value in rule.get("differs", [])))


def error(word: str) -> int:
    return bpf.ERRNO | (0 if word == "done" else getattr(errno, word))


def expected(name: str, call: str, arguments: tuple[int, ...]) -> int:
    words = [word for profile in profiles(name) for word, calls in profile.get("otherwise", {}).items()
             if call in calls]
    if words and not any(fits(rule, arguments) for rule in rules(name, "allow-if", call)):
        exceptions = [rule["answer"] for rule in rules(name, "otherwise-if", call) if fits(rule, arguments)]
        return error([*exceptions, *words][0])
    for rule in rules(name, "refuse-if", call):
        if fits(rule, arguments):
            return error(rule.get("answer", "EPERM"))
    without = {group for profile in profiles(name) for group in profile.get("without", [])}
    for profile in profiles(name):
        for groups, said in ((profile.get("allow", {}), bpf.ALLOW), (profile.get("refuse", {}), error("EPERM"))):
            if any(call in calls for group, calls in groups.items() if group not in without):
                return said
    allowed = any(fits(rule, arguments) for rule in rules(name, "allow-if", call))
    return bpf.ALLOW if allowed else error("ENOSYS")


def conditions(name: str, call: str) -> Iterator[tuple[int, int, int]]:
    for kind in ("allow-if", "refuse-if", "otherwise-if"):
        for rule in rules(name, kind, call):
            yield from rule["arguments"]
            yield from ((index, (1 << 64) - 1, value) for index, value in rule.get("differs", []))


def tries(name: str, call: str) -> Iterator[tuple[int, ...]]:
    """Arguments at the edges of each condition on the call, with high bits and without, in all combinations."""
    values: list[set[int]] = [{0} for _ in range(6)]
    for index, mask, value in conditions(name, call):
        edges = {value, value | ~mask & 0xFFFFFFFF, value ^ (mask & -mask), value + 1, 0xFFFFFFFF}
        values[index] |= edges | {edge | HIGH for edge in edges} | {value | 1 << 32, (1 << 64) - 1}
    yield from itertools.islice(itertools.product(*map(sorted, values)), 6000)


# --- what they answer -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_every_number_answers_as_its_profile_says(name: str) -> None:
    wrong = []
    for number in NUMBERS:
        call = call_of(number)
        want = bpf.ERRNO | errno.ENOSYS if call is None else None
        for arguments in tries(name, call) if call else [(0,) * 6]:
            wanted = expected(name, call, arguments) if call else want
            if answer(name, number, arguments) != wanted:
                wrong.append((number, call, [hex(one) for one in arguments], hex(answer(name, number, arguments))))
    assert wrong == []


@pytest.mark.parametrize("name", NAMES)
def test_a_foreign_architecture_and_x32_end_the_process(name: str) -> None:
    foreign = bpf.I386 if ARCHITECTURE == bpf.X86_64 else bpf.X86_64
    for number in NUMBERS:
        assert answer(name, number, architecture=foreign) == bpf.KILL_PROCESS
        if ARCHITECTURE == bpf.X86_64:  # x32: the same architecture, with a bit in the number
            assert answer(name, number | 0x40000000) == bpf.KILL_PROCESS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [501, 1000, 0x3FFFFFFF])
def test_a_number_that_no_call_has_is_no_call(name: str, number: int) -> None:
    assert answer(name, number) == bpf.ERRNO | errno.ENOSYS


def test_every_mask_covers_what_the_kernel_reads() -> None:
    """A condition on 64 bits of what the kernel reads 32 of is passed by high bits."""
    whole = {("unshare", 0), ("prlimit64", 2)}
    for name in NAMES:
        for kind in ("allow-if", "refuse-if", "otherwise-if"):
            for rule in profiles(name)[-1].get(kind, []):
                for index, mask, value in rule["arguments"]:
                    assert value & ~mask == 0, f"{rule} never fits"
                    assert mask <= 0xFFFFFFFF or (rule["call"], index) in whole, rule
                for index, _value in rule.get("differs", []):
                    assert (rule["call"], index) in whole, rule


# --- the known holes, one by one --------------------------------------------------------------------------------------
def number_of(call: str) -> int:
    number: int = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, call)
    return number


AF_INET, AF_INET6, STREAM, DGRAM, RAW, SEQPACKET, DCCP = 2, 10, 1, 2, 3, 5, 6
CLOEXEC = 0o2000000
HOLES: list[tuple[str, tuple[int, ...], str]] = [
    ("ioctl", (0, 0x5412), "EPERM"), ("ioctl", (0, 0x5412 | HIGH), "EPERM"), ("ioctl", (0, 0x541C | HIGH), "EPERM"),
    ("ioctl", (0, 0x541D), "EPERM"), ("ioctl", (0, 0x5423 | HIGH), "EPERM"), ("ioctl", (0, 0x4B4E), "EPERM"),
    ("ioctl", (0, 0x5606 | HIGH), "EPERM"), ("ioctl", (0, 0x5401), "allowed"),
    ("clone", (0x02000000,), "EPERM"), ("clone", (0x04000011 | HIGH,), "EPERM"), ("clone", (0x11,), "allowed"),
    ("clone3", (), "ENOSYS"), ("unshare", (0x10000000,), "allowed"), ("unshare", (0x10000000 | HIGH,), "EPERM"),
    ("unshare", (0x10000080,), "EPERM"), ("setns", (), "EPERM"),
    ("memfd_create", (0, 0x10 | HIGH), "EPERM"), ("memfd_create", (0, 0x13), "EPERM"),
    ("memfd_create", (0, 0xB), "allowed"), ("preadv2", (0, 0, 0, 0, 0, 0x8 | HIGH), "EPERM"),
    ("fadvise64", (3, 0, 0, 4 | HIGH), "done"), ("fadvise64", (3, 0, 0, 3), "allowed"),
    ("madvise", (0, 0, 12 | HIGH), "EINVAL"), ("madvise", (0, 0, 4), "allowed"),
    ("prctl", (35 | HIGH,), "EPERM"), ("prctl", (62,), "EINVAL"), ("prctl", (15,), "allowed"),
    ("setsockopt", (3, 0, 64), "EPERM"), ("setsockopt", (3, HIGH, 65 | HIGH), "EPERM"),
    ("setsockopt", (3, 41, 64), "EPERM"), ("setsockopt", (3, 0, 97), "EPERM"), ("setsockopt", (3, 0, 128), "EPERM"),
    ("setsockopt", (3, 6, 31), "EPROTONOSUPPORT"), ("setsockopt", (3, 1, 64), "allowed"),
    ("setsockopt", (3, 41, 26), "allowed"),
    ("socket", (AF_INET, STREAM | CLOEXEC, 0), "allowed"), ("socket", (AF_INET6, DGRAM | CLOEXEC, 17), "allowed"),
    ("socket", (AF_INET, RAW, 1), "EPERM"), ("socket", (AF_INET6, RAW | CLOEXEC, 58), "EPERM"),
    ("socket", (AF_INET, STREAM, 132), "EPROTONOSUPPORT"), ("socket", (AF_INET, SEQPACKET, 132), "EPROTONOSUPPORT"),
    ("socket", (AF_INET, STREAM, 262), "EPROTONOSUPPORT"), ("socket", (AF_INET, DCCP, 33), "EPROTONOSUPPORT"),
    ("socket", (AF_INET, DGRAM, 115), "EPROTONOSUPPORT"), ("socket", (40, DGRAM, 0), "EAFNOSUPPORT"),
    ("socket", (38 | HIGH, SEQPACKET, 0), "EAFNOSUPPORT"), ("socket", (16, RAW, 6), "EAFNOSUPPORT"),
    ("prlimit64", (0, 4, 1 << 40), "done"), ("prlimit64", (0, 4, 0), "allowed"), ("prlimit64", (7, 4, 1), "EPERM"),
    ("prlimit64", (7, 7, 0), "EPERM"), ("prlimit64", (HIGH, 7, 0), "allowed"),
    ("setrlimit", (4 | HIGH, 1 << 40), "done"), ("setrlimit", (7, 1 << 40), "allowed"), ("dup3", (), "allowed"),
    ("personality", (0x40000,), "EPERM"), ("personality", (0xFFFFFFFF | HIGH,), "allowed"),
    ("mknodat", (-100, 0, 0o020600, 0), "EPERM"), ("mknodat", (-100, 0, 0o060600 | HIGH, 0), "EPERM"),
    ("chroot", (), "allowed"), ("pivot_root", (), "allowed"),  # in a user namespace of one's own, and nowhere else
    ("process_mrelease", (), "ENOSYS"), ("remap_file_pages", (), "ENOSYS"), ("vmsplice", (), "ENOSYS"),
    ("io_uring_setup", (), "EPERM"), ("userfaultfd", (), "EPERM"), ("bpf", (), "EPERM"), ("keyctl", (), "EPERM"),
    ("pidfd_getfd", (), "EPERM"), ("kcmp", (), "EPERM"), ("mincore", (), "EPERM"), ("cachestat", (), "EPERM"),
    ("memfd_secret", (), "ENOSYS"), ("open_by_handle_at", (), "EPERM"),
    *((call, (), "ENOSYS") for call in ("open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick",
                                        "mount_setattr", "mbind", "set_mempolicy", "get_mempolicy")),
]


@pytest.mark.parametrize(("call", "arguments", "said"), HOLES)
def test_a_known_hole_is_closed_in_a_session(call: str, arguments: tuple[int, ...], said: str) -> None:
    wanted = {"allowed": bpf.ALLOW, "done": DONE}.get(said) or error(said)
    assert answer("session", number_of(call), arguments) == wanted


NEW = {"map_shadow_stack": 453, "statmount": 457, "listmount": 458, "lsm_get_self_attr": 459, "lsm_set_self_attr": 460,
       "lsm_list_modules": 461, "setxattrat": 463, "getxattrat": 464, "listxattrat": 465, "removexattrat": 466,
       "open_tree_attr": 467, "file_getattr": 468, "file_setattr": 469, "set_mempolicy_home_node": 450}
"""Calls of Linux 5.17 to 6.17, which this libseccomp need not know."""


@pytest.mark.parametrize(("call", "number"), NEW.items())
def test_a_new_call_is_no_call_unless_it_is_allowed(call: str, number: int) -> None:
    allowed = {name for names in profiles("session")[0]["allow"].values() for name in names}
    assert (answer("session", number) == bpf.ALLOW) is (call in allowed and call_of(number) == call)
    if call not in allowed:
        assert answer("session", number) == bpf.ERRNO | errno.ENOSYS
