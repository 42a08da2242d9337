# SPDX-License-Identifier: LGPL-2.1-or-later
"""What there is on a machine that a package may bring and must take away again.

`python3 -m tests.vm.footprint FILE` notes it, before the package is installed; at last it must be the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TREES = ("/etc", "/opt", "/usr", "/var/lib", "/var/lib/systemd/deb-systemd-helper-enabled", "/var/cache",
         "/run/cage-runtime", "/sys/fs/bpf")  # fmt: skip
OTHERS = ("/var/lib/apt", "/var/lib/dpkg", "/var/cache/apt", "/var/cache/debconf", "/var/cache/ldconfig", "/usr/tmp",
          "/var/cache/man", "/var/lib/private", "/var/lib/systemd")  # fmt: skip
"""Whose business is not the package's, and goes on meanwhile."""
BACKUPS = {f"/etc/{name}-" for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")}
"""What shadow's programs keep of the files that they change, for whichever user: those of other tests too."""
OURS = "cage"
"""In the name of everything of ours that has a name."""
Footprint = dict[str, list[str]]


def taken() -> Footprint:
    return {
        "files": sorted(path for tree in TREES for path in _below(tree)),
        "users": _names("passwd"),
        "groups": _names("group"),
        "mounts": sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        "control groups": [path for path in _folders("/sys/fs/cgroup") if OURS in path],
        "units": _named("systemctl", "list-unit-files", "--no-legend"),
        "loaded units": _named("systemctl", "list-units", "--all", "--plain", "--no-legend"),
        "bus names": _named("busctl", "list", "--no-legend"),
        "processes": _processes(),
        "messages": [line for line in _lines("journalctl", "--list-catalog") if OURS in line],
    }


def _below(tree: str) -> list[str]:
    """Files by their names; bytecode is every Python program's own, but for ours, whose folders would stay."""
    found = []
    for folder, folders, files in os.walk(tree):
        folders[:] = [name for name in folders if f"{folder}/{name}" not in OTHERS
                      and (name != "__pycache__" or OURS in folder)]  # fmt: skip
        found += [path for name in (*folders, *files) if (path := f"{folder}/{name}") not in BACKUPS]
    return found


def _folders(tree: str) -> list[str]:
    return sorted(folder for folder, _, _ in os.walk(tree))


def _names(database: str) -> list[str]:
    return sorted(line.partition(":")[0] for line in _lines("getent", database))


def _named(*command: str) -> list[str]:
    """The first words, where they are ours."""
    return sorted({line.split()[0] for line in _lines(*command) if OURS in line.split()[0]})


def _processes() -> list[str]:
    """Command lines of our programs, wherever they run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "cage-runtime/bin/" in line:
            found.append(line)
    return sorted(found)


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(taken()), encoding="utf-8")
