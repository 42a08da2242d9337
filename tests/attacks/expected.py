# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each attempt of the catalogue is answered in a cage: the table of the suite.

An attempt that is refused for another reason than the one here has proved nothing, and fails.
"""

from __future__ import annotations

from tests.attacks.probe import calls, files, tells

Table = dict[int, dict[str, tuple[str, ...]]]
"""By the attack's number: the reason, and the attempts that it is the reason of."""


def _calls(attack: int, *but: str) -> tuple[str, ...]:
    return tuple(name for name in calls.CALLS[attack] if name not in but)


_NEW_MOUNT_API = ("clone3", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
                  "open_tree_attr", "statmount", "listmount")
_UNNAMED = ("mbind", "set_mempolicy", "memfd_secret", "vmsplice", "a number that no call has")
"""What the filter does not name at all."""
_WRITTEN = ("/etc/passwd", "/etc/resolv.conf", "/etc/hosts", "/etc/machine-id", "/usr/bin/env")

EXPECTED: Table = {
    1: {"ENOENT": ("/proc/1/exe for writing",)},
    2: {"ENOENT": ("/proc/1/fd",), "none": ("files of the host", "inherited descriptors")},
    3: {"ENOENT": ("/proc/1/mem", "/proc/1/environ"), "none": ("files of processes of others",)},
    4: {"ENOENT": ("/proc/1/root", "/proc/1/cwd")},
    6: {"EROFS": tuple(f"rename {path}" for path in files.MASKED),
        "allowed": tuple(f"{path} is the device" for path in ("/dev/null", "/dev/zero", "/dev/tty"))},
    8: {"EPERM": ("nested: mount cgroup2", "nested: mount cgroup v1")},
    9: {"none": ("control files of cgroups", "the path of one's own cgroup")},
    10: {
        "EACCES": tuple(f"write /proc/{name}" for name in (
            "kmsg", "kallsyms", "mtrr", "timer_list", "sys/kernel/core_pattern", "sys/vm/memfd_noexec")),
        "ENOENT": ("write /proc/sysrq-trigger", "write /proc/kcore", "write /sys/kernel/uevent_helper",
                   "write /proc/sys/fs/binfmt_misc/register", "write /proc/sys/kernel/modprobe"),
        "EPERM": ("nested: binfmt_misc of the host", "nested: mount debugfs"),
        "none": tuple(f"write below {top}" for top in files.WALKED),
    },
    15: {"EROFS": (*(f"write {path}" for path in _WRITTEN), *(f"put a link at {path}" for path in _WRITTEN))},
    17: {"none": ("mounts without nosuid",)},
    19: {"EPERM": ("ptrace(SEIZE, 1)",)},
    21: {"EPERM": ("ioctl(TIOCSTI)", "ioctl(TIOCSTI, high bits)", "ioctl(TIOCLINUX)", "ioctl(TIOCLINUX, high bits)",
                   "ioctl(TIOCCONS)", "TIOCSCTTY of another's terminal", "ioctl(VT_ACTIVATE)", "ioctl(KDSKBENT)",
                   "ioctl(KDSETMODE)"),
         "allowed": ("TIOCGWINSZ",)},
    22: {"ENOSYS": _NEW_MOUNT_API, "EPERM": _calls(22, *_NEW_MOUNT_API), "allowed": ("unshare(NEWUSER)",)},
    23: {"EPERM": _calls(23)},
    24: {"ENOSYS": _UNNAMED, "EPERM": _calls(24, *_UNNAMED), "SIGSYS": ("x32 getpid",)},
    25: {"EPERM": _calls(25)},
    26: {"EPERM": _calls(26), "allowed": ("personality(asks)",)},
    27: {"EPERM": _calls(27)},
    28: {"EACCES": ("exec in /tmp", "exec in /var/tmp", "exec in /dev/shm", "exec of a memfd"),
         "EPERM": (*_calls(28), "map in /tmp", "map in /var/tmp", "map in /dev/shm"), "127": ("exec by the loader",),
         "none": ("mounts to write and to execute",), "EIO": ("write through /proc/self/mem",)},
    29: {
        "EPERM": (*_calls(29), *(f"nested: {name}" for name in (
            "remount /usr writable", "remount /tmp with dev", "remount /usr's superblock", "mount sysfs",
            "mount a proc of the cage", "a device", "sethostname"))),
        # As the kernel says of a locked mount (mount_namespaces(7)).
        "EINVAL": ("nested: umount /usr", "nested: umount /proc", "nested: umount the home",
                   "nested: bind one mount without those on it"),
        "ENOENT": ("write in /proc",), "ENOSYS": ("nested: open_tree",),
        "EROFS": (*(f"write in {path}" for path in files.READ_ONLY if path != "/proc"), "nested: write /etc/passwd"),
        # bubblewrap needs it; what is masked has to stay so in there (39).
        "allowed": ("nested: mount another proc",),
    },
    30: {"EAFNOSUPPORT": _calls(30, "socket(SOCK_RAW)"), "EPERM": ("socket(SOCK_RAW)",),
         "allowed": tuple(calls.ALLOWED[30])},
    # A cage's calls are answered by cage-syscalls, and the kernel lets there be one who answers (seccomp(2)).
    31: {"EBUSY": ("a filter with USER_NOTIF",), "its own children alone": ("a filter with TRACE",)},
    32: {"none": ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "no_new_privs", "uid 0 gains by exec",
                  "prctl(CAPBSET_READ)")},
    34: {"EPERM": _calls(34), "none": ("core dump", "the host's handler of core dumps"),
         "allowed": tuple(calls.ALLOWED[34])},
    37: {"EPERM": _calls(37)},
    38: {"EPERM": _calls(38)},
    40: {"ENOENT": ("the machine-id of the bus", *(f"DMI {name}" for name in tells.DMI)),
         "its own": ("machine-id", "boot_id"),
         "none": ("hardware addresses", "host name", "uuid1's node", "mountinfo: roots", "mountinfo: options",
                  "mountinfo: devices")},
    41: {"none": ("files below /sys",)},
    43: {"ENETUNREACH": ("metadata of a cloud", "a resolver", "mDNS"), "none": ("routes",)},
    51: {"EACCES": ("the gate", "the gateway")},
}
OF_THE_USER: Table = {
    17: {"EPERM": ("setuid(0)",)}, 19: {"EPERM": ("kill(1)", "pidfd_send_signal(1)")},
    28: {"EACCES": ("exec in /home/user", "exec in /run/user/1000"),
         "EPERM": ("map in /home/user", "map in /run/user/1000")},
    29: {"EPERM": ("nested: remount the home with exec",)},
}
OF_THE_CAGES_ROOT: Table = {
    # It may signal its PID 1, which the kernel has ignore that; and it has nowhere to write.
    19: {"dropped": ("kill(1)", "pidfd_send_signal(1)")},
    28: {"EROFS": ("exec in /root", "map in /root"), "ENOENT": ("exec in /run/user/0", "map in /run/user/0")},
    29: {"EINVAL": ("nested: remount the home with exec",)},
}
HELD_SOMEHOW: dict[int, tuple[str, ...]] = {
    33: ("user namespaces in user namespaces",),
    39: (*(f"/proc/{name}" for name in tells.TELLING), "nested: read /proc/kallsyms of another proc",
         *(f"sysinfo: {field}" for field in tells.SYSTEM_INFORMATION)),
}
"""What has more than one right answer: a file that this kernel does not have, has for its root alone, or that is
masked or the cage's own."""
