# SPDX-License-Identifier: LGPL-2.1-or-later
"""The programs in the kernel: loaded, attached and pinned; those that are pinned are adopted where they are ours.

Pins are PINS/maps/NAME, which every version of the programs shares, and PINS/programs-DIGEST/HOOK, the attached
programs of one object file.  A set comes into being whole, by a rename.  Another version's set is attached beside the
old one, which goes then: at no time is there none.  What is pinned outlives us, and enforces without us.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

from cage_runtime.errors import HostUnsupported
from cage_runtime.spawner.lsm import libbpf

OBJECT = Path(__file__).with_name("bpf") / "cage.bpf.o"
MODULES = Path("/sys/kernel/security/lsm")
MOUNTS = Path("/proc/self/mountinfo")
TYPES = Path("/sys/kernel/btf/vmlinux")
OPTIONAL = frozenset({"uring_allowed", "key_free"})
"""Hooks that a supported kernel may lack: the first came with Linux 6.16, the second is gone since 6.12, where a key's
label goes when another key is made at its address."""

_PREFIX, _UNFINISHED = "programs-", "unfinished-"  # there is no dot in the names of this file system
_TAGS_MAP = "program_tags"


@dataclass(frozen=True, kw_only=True, slots=True)
class Programs:
    """What enforces."""

    hooks: tuple[str, ...]
    maps: dict[str, int]
    """A descriptor of each map, by its name."""

    def close(self) -> None:
        """Our descriptors; the programs stay."""
        for descriptor in self.maps.values():
            os.close(descriptor)


def check_host(modules: Path = MODULES) -> None:
    """HostUnsupported where programs would not be run, though they could be loaded: the kernel then says nothing."""
    try:
        text = modules.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise HostUnsupported("the kernel does not say which security modules it has; mount securityfs: "
                              "mount -t securityfs securityfs /sys/kernel/security") from None
    if "bpf" not in text.split(","):
        raise HostUnsupported(f"the kernel has no BPF security modules in its list ({text}); add them on its command "
                              f"line: lsm={text},bpf")
    try:
        libbpf.available()
    except OSError as error:
        raise HostUnsupported(f"{libbpf.LIBRARY} cannot be loaded ({error}); install the package libbpf1") from error


def check_pins(pins: Path, mounts: Path = MOUNTS) -> None:
    """HostUnsupported where nothing can be pinned: each mount of that file system is one of its own, so that it is the
    host's to have one that outlives us."""
    for line in mounts.read_text(encoding="utf-8").splitlines():
        before, _, after = line.partition(" - ")
        if before.split(" ")[4] == str(pins.parent) and after.split(" ")[0] == "bpf":
            return
    raise HostUnsupported(f"there is no BPF file system on {pins.parent}, where the programs of the security contexts "
                          f"are to be kept; mount it: mount -t bpf bpf {pins.parent}")


def kernel_hooks(types: Path = TYPES) -> frozenset[str]:
    """Those that a program can be attached to, by the functions in the types of the running kernel."""
    found = re.findall(rb"\0bpf_lsm_([a-z0-9_]+)(?=\0)", types.read_bytes())
    return frozenset(name.decode() for name in found)


def wanted(hooks: tuple[str, ...], there: frozenset[str]) -> tuple[str, ...]:
    """Those of the object's hooks that the kernel has; HostUnsupported where it lacks one that is needed."""
    missing = [hook for hook in hooks if hook not in there and hook not in OPTIONAL]
    if missing:
        raise HostUnsupported(f"this kernel lacks hooks of security modules that contexts need: {', '.join(missing)}; "
                              "Linux 6.1 and later have them")
    return tuple(hook for hook in hooks if hook in there)


def stand(pins: Path, file: Path = OBJECT) -> Programs:
    """The programs of the object `file`, attached and pinned below `pins`; HostUnsupported where they cannot be."""
    check_host()
    check_pins(pins)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    ours = pins / f"{_PREFIX}{digest}"
    try:
        object_ = libbpf.Object(file)
        try:
            hooks = tuple(hook for hook, _ in object_.programs())
            attached = _intact(pins, ours, hooks)
            if not attached:
                attached = wanted(hooks, kernel_hooks())
                _stand_anew(object_, pins, ours, attached)
            names = [name for name, _ in object_.maps()]
        finally:
            object_.close()
        for other in _sets(pins):
            if other != ours:
                _clear(other)
        return Programs(hooks=attached, maps={name: libbpf.pinned(pins / "maps" / name) for name in names})
    except OSError as error:
        raise HostUnsupported(_why(error, pins, file)) from error


def _why(error: OSError, pins: Path, file: Path) -> str:
    told = f"the programs of the security contexts could not be set up: {error.filename}: {error.strerror}"
    if error.errno == errno.EPERM and error.filename == str(file):
        return f"{told}; loading them takes CAP_BPF and CAP_PERFMON, and some patched kernels refuse it to root too"
    if error.errno == errno.EINVAL and error.filename == str(file) and _sets(pins):
        return (f"{told}; what is pinned below {pins} may be of a version that does not go together with this one: end "
                f"all cages, remove it, and start again")
    return told


def remove(pins: Path) -> None:
    """Everything: tasks that have a context are the core's from then on, so there must be none."""
    for directory in _sets(pins):
        _clear(directory)
    _clear(pins / "maps")
    if pins.is_dir():
        pins.rmdir()


def _sets(pins: Path) -> list[Path]:
    return [*pins.glob(f"{_PREFIX}*"), *pins.glob(f"{_UNFINISHED}*")]


def _clear(directory: Path) -> None:
    if directory.is_dir():
        shutil.rmtree(directory)


def _intact(pins: Path, ours: Path, hooks: tuple[str, ...]) -> tuple[str, ...]:
    """The hooks at which the programs of a pinned set are attached, where all of them are, and as they were loaded."""
    if not ours.is_dir():
        return ()
    there = tuple(hook for hook in hooks if (ours / hook).exists())
    if set(hooks) - set(there) - OPTIONAL:
        return ()
    tags = libbpf.pinned(pins / "maps" / _TAGS_MAP)
    try:
        for number, hook in enumerate(hooks):
            if hook in there and _pinned_tag(ours / hook) != _kept_tag(tags, number):
                return ()
    finally:
        os.close(tags)
    return there


def _pinned_tag(pin: Path) -> int:
    link = libbpf.pinned(pin)
    try:
        return libbpf.tag_of_link(link)
    finally:
        os.close(link)


def _kept_tag(tags: int, number: int) -> int:
    value = libbpf.lookup(tags, struct.pack("=I", number), 8)
    return struct.unpack("=Q", value or bytes(8))[0]  # type: ignore[no-any-return]


def _stand_anew(object_: libbpf.Object, pins: Path, ours: Path, hooks: tuple[str, ...]) -> None:
    """A set of our own, where there is none that is whole; one that fails leaves what there was."""
    unfinished = ours.with_name(_UNFINISHED + ours.name)
    _clear(unfinished)
    alone = not pins.is_dir()
    try:
        _attach(object_, pins, unfinished, hooks)
    except OSError:
        _clear(unfinished)
        if alone:
            remove(pins)
        raise
    _clear(ours)  # where it is there, something has been taken out of it
    unfinished.rename(ours)


def _attach(object_: libbpf.Object, pins: Path, unfinished: Path, hooks: tuple[str, ...]) -> None:
    (pins / "maps").mkdir(mode=0o700, parents=True, exist_ok=True)
    pins.chmod(0o700)
    for name, map_ in object_.maps():
        libbpf.pin_at(map_, name, pins / "maps" / name)
    for hook, program in object_.programs():
        if hook not in hooks:
            libbpf.leave_out(program, hook)
    object_.load()
    unfinished.mkdir(mode=0o700)
    tags = libbpf.pinned(pins / "maps" / _TAGS_MAP)
    try:
        for number, (hook, program) in enumerate(object_.programs()):
            if hook in hooks:
                tag = libbpf.tag_of_program(libbpf.descriptor_of(program, hook))
                libbpf.update(tags, struct.pack("=I", number), struct.pack("=Q", tag))
                libbpf.attach(program, hook, unfinished / hook)
    finally:
        os.close(tags)
