# SPDX-License-Identifier: LGPL-2.1-or-later
"""The peers as the distribution has them: one-shot commands, and containers that stand to be entered.

Law of this room: the same work for everybody, which is /bin/true on the host's own read-only /usr, with namespaces
of every kind and ids mapped as a cage's; what a peer does less of than we (seccomp, limits) counts for the peer.
Control groups of theirs are made on cgroup2 alone, below a directory that is ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

TRUE = "/bin/true"
BASE, IDS = 0x7123_0000, 0x1_0000
"""A range of ids that no cage of this run gets."""
PACKAGES = {"bwrap": "bubblewrap", "crun": "crun", "runc": "runc", "nsenter": "util-linux", "unshare": "util-linux"}
SEARCH = "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


def found() -> dict[str, str]:
    """The peers that are installed, and where."""
    paths = {name: shutil.which(name, path=SEARCH) for name in PACKAGES}
    return {name: path for name, path in paths.items() if path is not None}


def one_shot(programs: dict[str, str], folder: Path, cgroup: str) -> dict[str, list[str]]:
    """Contenders that build walls, run TRUE and take all down again, by what they are called."""
    commands: dict[str, list[str]] = {}
    if "unshare" in programs:
        commands["unshare"] = [programs["unshare"], "-Urpfmniu", "--mount-proc", TRUE]
    if "bwrap" in programs:
        commands["bwrap"] = [
            programs["bwrap"], "--unshare-all", "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin",
            "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev",
            "--tmpfs", "/tmp", "--tmpfs", "/run", "--tmpfs", "/home", "--tmpfs", "/etc", TRUE,
        ]
    for name in ("crun", "runc"):
        if name in programs:
            bundle = _bundle(folder / f"{name}-run", [TRUE], f"/{cgroup}/{name}-run")
            start = [programs[name], "--root", str(folder / f"{name}-state")]
            commands[f"{name} run"] = [*start, "run", "--bundle", str(bundle), "bench-run"]
            if name == "crun":
                commands["crun run, no cgroup"] = [
                    *start, "--cgroup-manager=disabled", "run", "--bundle", str(bundle), "bench-run"]
    return commands


@contextlib.contextmanager
def standing(programs: dict[str, str], folder: Path, cgroup: str) -> Iterator[dict[str, list[str]]]:
    """Contenders that run TRUE in a container, which stands as long as the context."""
    with contextlib.ExitStack() as stack:
        commands: dict[str, list[str]] = {}
        for name in ("crun", "runc"):
            if name in programs:
                container = [programs[name], "--root", str(folder / f"{name}-state")]
                pid = stack.enter_context(_container(container, folder / f"{name}-up", f"/{cgroup}/{name}-up"))
                commands[f"{name} exec"] = [*container, "exec", "bench-up", TRUE]
                if "nsenter" in programs:
                    commands.setdefault("nsenter", [programs["nsenter"], "-a", "-t", str(pid), TRUE])
        yield commands


@contextlib.contextmanager
def _container(command: list[str], folder: Path, cgroup: str) -> Iterator[int]:
    bundle = _bundle(folder, ["/bin/sleep", "infinity"], cgroup)
    try:
        subprocess.run([*command, "run", "--detach", "--bundle", str(bundle), "bench-up"], check=True,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=30)
        state = subprocess.run([*command, "state", "bench-up"], check=True, stdout=subprocess.PIPE, timeout=30)
        yield int(json.loads(state.stdout)["pid"])
    finally:
        subprocess.run([*command, "delete", "--force", "bench-up"], check=False, stdout=subprocess.DEVNULL, timeout=30)


def _bundle(folder: Path, argv: list[str], cgroup: str) -> Path:
    """An OCI bundle (runtime-spec, config.md) whose root is the host's /usr and file systems in memory."""
    root = folder / "rootfs"
    for name in ("usr", "proc", "dev", "tmp", "run", "home", "etc"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (folder / "config.json").write_text(json.dumps(_configuration(argv, cgroup)), encoding="utf-8")
    return folder


def _configuration(argv: list[str], cgroup: str) -> dict[str, object]:
    def mount(target: str, kind: str, *options: str, source: str = "none") -> dict[str, object]:
        return {"destination": target, "type": kind, "source": source, "options": ["nosuid", *options]}

    ids = [{"containerID": 0, "hostID": BASE, "size": IDS}]
    sets = ("bounding", "effective", "inheritable", "permitted", "ambient")
    kinds = ("user", "mount", "pid", "network", "ipc", "uts", "cgroup")
    return {
        "ociVersion": "1.0.0",
        "process": {
            "terminal": False, "user": {"uid": 0, "gid": 0}, "args": argv, "env": ["PATH=/usr/bin:/bin"], "cwd": "/",
            "capabilities": {name: [] for name in sets}, "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", "nodev", "noexec"), mount("/usr", "bind", "bind", "ro", "nodev", source="/usr"),
            mount("/dev", "tmpfs", "mode=755"), mount("/dev/pts", "devpts", "newinstance", "ptmxmode=0666"),
            mount("/dev/shm", "tmpfs", "nodev", "noexec"),
            *(mount(path, "tmpfs", "nodev", "noexec") for path in ("/tmp", "/run", "/home")),
        ],
        "linux": {"namespaces": [{"type": kind} for kind in kinds], "uidMappings": ids, "gidMappings": ids,
                  "cgroupsPath": cgroup},
    }


def versions(programs: dict[str, str]) -> dict[str, str]:
    """The first line that each peer says of itself."""
    said = {}
    for name, path in programs.items():
        output = subprocess.run([path, "--version"], check=False, capture_output=True, text=True, timeout=30).stdout
        said[name] = output.partition(os.linesep)[0]
    return said
