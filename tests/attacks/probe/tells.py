# SPDX-License-Identifier: LGPL-2.1-or-later
"""C of the catalogue, alone: what the kernel and the files of a sandbox tell of the host (39 to 41, 43)."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import struct
import uuid
from collections.abc import Iterator
from typing import Any

from .kernel import HELD, LIBC, THROUGH, Answer, apart, checked, judged, text, tried

TELLING = ("uptime", "loadavg", "stat", "meminfo", "interrupts", "softirqs", "diskstats", "pressure/cpu", "pressure/io",
           "pressure/memory", "locks", "keys", "key-users", "vmstat", "timer_list", "kallsyms", "config.gz", "cmdline",
           "slabinfo", "buddyinfo", "pagetypeinfo", "zoneinfo", "schedstat", "modules", "swaps", "partitions",
           "iomem", "ioports", "kcore", "kmsg", "sched_debug", "vmallocinfo", "kpagecount", "kpageflags",
           "sys/fs/dentry-state", "sys/fs/file-nr", "sys/fs/inode-nr")
"""Files of /proc that are of the whole machine."""
SYSTEM_INFORMATION = ("uptime", "load", "processes")
DMI = ("product_uuid", "product_serial", "sys_vendor", "board_serial")
OF_THE_HOST = "the host's"


def system_information() -> dict[str, int]:
    """Of sysinfo(2), what hardly changes while one looks; the load is that of a quarter of an hour."""
    buffer = ctypes.create_string_buffer(128)
    checked(LIBC.sysinfo(buffer), "sysinfo")
    words = struct.unpack_from("=q3Q6QH", buffer.raw)
    return dict(zip(SYSTEM_INFORMATION, (words[0], words[3], words[10]), strict=True))


def facts(*marks: str) -> dict[str, Any]:
    """What the host's own files say, to compare with: by whoever runs the probe, on the host.

    `marks` are what is in its lists of locks and keys.
    """
    return {
        "marks": marks, "sysinfo": system_information(),
        "files": {name: _fingerprint(name) for name in TELLING},
        "boot_id": text("/proc/sys/kernel/random/boot_id").strip(),
        "machine_id": text("/etc/machine-id").strip() if os.path.exists("/etc/machine-id") else "",
        "addresses": sorted(_addresses() - {"00:00:00:00:00:00"}),
        "hostname": os.uname().nodename,
    }


def alone(given: dict[str, Any]) -> Iterator[Answer]:
    yield from kernel_tells(given["facts"])
    for field, ours in system_information().items():
        theirs = given["facts"]["sysinfo"][field]
        like = theirs > 0 and ours >= theirs * (0.8 if field == "uptime" else 0.5)
        yield judged(39, f"sysinfo: {field}", OF_THE_HOST if like else "its own", ("its own",))
    yield from identities(given["facts"])
    yield from mount_sources()
    yield from skeleton()
    yield from reached()


# --- 39 --------------------------------------------------------------------------------------------------------------
def _fingerprint(name: str) -> str:
    """What of the file stays the same while one looks; "" where there is nothing in it or it is refused."""
    try:
        content = text(f"/proc/{name}")
    except OSError:
        return ""
    match name:
        case "uptime":
            return content.split()[0].partition(".")[0]
        case "loadavg":
            # How many threads there are.
            return content.split()[3].partition("/")[2]
        case "swaps":
            return "\n".join(content.splitlines()[1:])
        case "stat":
            return next((line for line in content.splitlines() if line.startswith("btime")), "")
        case "meminfo":
            return " ".join(re.findall(r"(?:MemTotal|SwapTotal|Hugepagesize): +(\d+)", content))
        case _:
            return re.sub(r"[0-9]+", "0", content)[:80]


def kernel_tells(host: dict[str, Any]) -> Iterator[Answer]:
    for name in TELLING:
        reason = tried(text, f"/proc/{name}")
        if reason == "allowed":
            reason = _told(name, host)
        yield judged(39, f"/proc/{name}", reason, ("EPERM", "EACCES", "ENOENT", "EIO", "none", "its own"))


def _told(name: str, host: dict[str, Any]) -> str:
    content = text(f"/proc/{name}")
    if not content.strip():
        return "none"
    if name == "kallsyms":
        return "addresses" if int(content.split()[0], 16) else "names without addresses"
    if name == "swaps" and len(content.splitlines()) == 1:
        return "none"
    if name in ("locks", "keys", "key-users"):
        return OF_THE_HOST if any(mark in content for mark in host["marks"]) else "its own"
    ours, theirs = _fingerprint(name), host["files"].get(name, "")
    if name in ("uptime", "loadavg"):
        # The host's clock is not behind what it was, and most of its threads are still there.
        return OF_THE_HOST if int(ours) >= 0.8 * int(theirs) else "its own"
    return OF_THE_HOST if ours == theirs else "its own"


# --- 40, 41 ----------------------------------------------------------------------------------------------------------
def _addresses() -> set[str]:
    """Hardware addresses of all interfaces (netdevice(7), SIOCGIFHWADDR)."""
    import fcntl

    found = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for _, name in socket.if_nameindex():
            said = fcntl.ioctl(control, 0x8927, struct.pack("16s24x", name.encode()))
            found.add(":".join(f"{byte:02x}" for byte in said[18:24]))
    return found


def identities(host: dict[str, Any]) -> Iterator[Answer]:
    def compared(attempt: str, path: str, theirs: str) -> Answer:
        reason = tried(text, path)
        if reason == "allowed":
            reason = OF_THE_HOST if text(path).strip() == theirs else "its own"
        return judged(40, attempt, reason, ("ENOENT", "EACCES", "EPERM", "none", "its own"))

    yield compared("boot_id", "/proc/sys/kernel/random/boot_id", host["boot_id"])
    yield compared("machine-id", "/etc/machine-id", host["machine_id"])
    yield compared("the machine-id of the bus", "/var/lib/dbus/machine-id", host["machine_id"])
    for name in DMI:
        yield compared(f"DMI {name}", f"/sys/class/dmi/id/{name}", "\0")
    theirs = _addresses() & set(host["addresses"])
    yield judged(40, "hardware addresses", OF_THE_HOST if theirs else "none")
    yield judged(40, "host name", OF_THE_HOST if os.uname().nodename == host["hostname"] else "none")
    node = f"{uuid.getnode():012x}"
    seen = any(address.replace(":", "") == node for address in host["addresses"])
    yield judged(40, "uuid1's node", OF_THE_HOST if seen else "none")


PLAIN = {"/", "/null", "none"}


def mount_sources() -> Iterator[Answer]:
    """Paths of the host in /proc/self/mountinfo: roots of binds, layers of overlays, devices (proc(5))."""
    told: dict[str, set[str]] = {"roots": set(), "options": set(), "devices": set()}
    for line in text("/proc/self/mountinfo").splitlines():
        words = line.split()
        dash = words.index("-")
        if words[3] not in PLAIN:
            told["roots"].add(words[3])
        if words[dash + 2].startswith("/"):
            told["devices"].add(words[dash + 2])
        told["options"] |= {option for option in words[dash + 3].split(",") if _is_path(option)}
    for kind, found in told.items():
        yield Answer(attack=40, attempt=f"mountinfo: {kind}", outcome=THROUGH if found else HELD,
                     reason=", ".join(sorted(found))[:200] or "none")


def _is_path(option: str) -> bool:
    """Of the host's; that of a descriptor of who mounted it tells nothing."""
    return any(part.startswith("/") and not part.startswith("/proc/self/fd/")
               for part in option.partition("=")[2].split(":"))


def skeleton() -> Iterator[Answer]:
    """41: flatpak's five empty directories are all of /sys that anybody needs."""
    if not os.path.isdir("/sys"):
        yield judged(41, "files below /sys", "none")
        return
    files = [f"{directory}/{name}" for directory, folders, names in os.walk("/sys") for name in names]
    yield judged(41, "files below /sys", f"{len(files)} files" if files else "none")


# --- 43 --------------------------------------------------------------------------------------------------------------
def reached() -> Iterator[Answer]:
    """Addresses that are nobody's but a host's: metadata of clouds, mDNS, and a router."""
    for name, address in (("metadata of a cloud", ("169.254.169.254", 80)), ("a resolver", ("192.0.2.53", 53))):
        yield judged(43, name, apart(tried, _connected, address))
    yield judged(43, "mDNS", apart(tried, _connected, ("224.0.0.251", 5353)))
    yield judged(43, "routes", _routes())


def _connected(address: tuple[str, int]) -> None:
    # A datagram socket's connect(2) looks for a route and sends nothing.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.connect(address)


def _routes() -> str:
    try:
        lines = text("/proc/self/net/route").splitlines()[1:]
    except OSError:
        return "none"
    return "none" if not lines else f"{len(lines)} routes"


