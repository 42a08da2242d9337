# SPDX-License-Identifier: LGPL-2.1-or-later
"""The sandboxes that the attacks are compared in: a cage, bubblewrap, an application of Flatpak, systemd's container.

Each is one in which a person would run a program that they do not trust, with the options that its manual gives for
that, and the probe at `probe.pyz` in it.  Those of a person run as an ordinary user, as a person would.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.attacks.bundle import bundle
from tests.bench.runtime import TOP, Client, Runtime

ORDINARY = 65534
"""The uid of a person: one that owns nothing on a machine."""
PYTHON = ("/usr/bin/python3", "-IS")
PATH = "/usr/bin:/usr/sbin:/bin:/sbin"


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    name: str
    command: tuple[str, ...]
    """What the words after it are executed by, in a new sandbox or in the one that there is."""
    other: tuple[str, ...]
    """The same for another sandbox of its kind, side by side with it."""
    environment: dict[str, str]
    cwd: str = "/"

    def popen(self, *words: str, other: bool = False) -> subprocess.Popen[bytes]:
        command = [*(self.other if other else self.command), *words]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                env=self.environment, cwd=self.cwd)


def as_a_person(*words: str) -> tuple[str, ...]:
    return ("setpriv", f"--reuid={ORDINARY}", f"--regid={ORDINARY}", "--clear-groups", *words)


def _folder(stack: contextlib.ExitStack) -> Path:
    """One that an ordinary user owns, which is its home."""
    path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cage-bench-", dir="/var/tmp")))
    os.chown(path, ORDINARY, ORDINARY)
    (path / "probe.pyz").write_bytes(bundle())
    return path


# --- a cage ----------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def cage(runtime: Runtime, client: Client) -> Iterator[Sandbox]:
    """Two of them as `cagectl create` makes them."""
    def inside(name: str) -> tuple[str, ...]:
        return (runtime.cagectl, "enter", name, "--")

    for name in ("left", "right"):
        client.create(name, ephemeral=False)
        subprocess.run([*inside(name), "sh", "-c", "cat > /tmp/probe.pyz"], input=bundle(), check=True, timeout=60)
    python = (*PYTHON, "/tmp/probe.pyz")
    try:
        yield Sandbox(name="cage", command=(*inside("left"), *python), other=(*inside("right"), *python),
                      environment=dict(os.environ))
    finally:
        for name in ("left", "right"):
            client.destroy(name)


# --- bubblewrap ------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def bubblewrap() -> Iterator[Sandbox]:
    """As in the manual's example: everything unshared, /usr and /etc read-only, a /tmp and a home of its own."""
    with contextlib.ExitStack() as stack:
        folder = _folder(stack)
        words = as_a_person(
            "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--ro-bind", "/usr", "/usr",
            *(word for name in ("bin", "sbin", "lib", "lib64") for word in ("--symlink", f"usr/{name}", f"/{name}")),
            "--ro-bind", "/etc", "/etc", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run",
            "--dir", "/home/user", "--dir", "/mnt", "--setenv", "HOME", "/home/user", "--ro-bind",
            str(folder / "probe.pyz"), "/home/user/probe.pyz", *PYTHON, "/home/user/probe.pyz")
        yield Sandbox(name="bwrap", command=words, other=words, environment={"PATH": PATH, "LANG": "C.UTF-8"})


# --- flatpak ---------------------------------------------------------------------------------------------------------
APPLICATION, PLATFORM = "org.cageruntime.Notes", "org.cageruntime.Platform"


@contextlib.contextmanager
def flatpak() -> Iterator[Sandbox]:
    """The sample application with its own permissions, on its runtime with this machine's Python in it."""
    with contextlib.ExitStack() as stack:
        folder = _folder(stack)
        environment = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder / "run"),
                       "FLATPAK_USER_DIR": str(folder / "installation"), "XDG_DATA_DIRS": "/usr/share",
                       "DBUS_SESSION_BUS_ADDRESS": "unix:path=/nonexistent"}
        _install(folder, environment)
        data = folder / f".var/app/{APPLICATION}/data"
        for place in (folder / "run", data, folder / "Documents"):
            place.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / "probe.pyz", data / "probe.pyz")
        for directory, folders, files in os.walk(folder):
            for name in (".", *folders, *files):
                os.chown(Path(directory, name), ORDINARY, ORDINARY, follow_symlinks=False)
        words = as_a_person("flatpak", "run", "--user", "--no-documents-portal", "--command=/usr/bin/python3",
                            APPLICATION, "-IS", str(data / "probe.pyz"))
        yield Sandbox(name="flatpak run", command=words, other=words, environment=environment, cwd=str(folder))


def _install(folder: Path, environment: dict[str, str]) -> None:
    def run(*words: str | Path) -> None:
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False,
                              env=environment, cwd=folder, timeout=300)
        if done.returncode:
            raise RuntimeError(f"{words}: {done.stdout}{done.stderr}")

    run(TOP / "scripts/build-sample-app", folder / "sample")
    repository = folder / "sample/repo"
    arch = subprocess.run(["flatpak", "--default-arch"], check=True, capture_output=True, text=True).stdout.strip()
    ref = f"runtime/{PLATFORM}/{arch}/1"
    run("ostree", "checkout", f"--repo={repository}", "--user-mode", ref, folder / "platform")
    tree = folder / "tree"
    shutil.copytree(folder / "platform/files", tree / "usr", symlinks=True)
    shutil.copy(folder / "platform/metadata", tree / "metadata")
    _add_python(tree / "usr")
    run("flatpak", "build-export", "--runtime", "--files=usr", repository, tree, "1")
    run("flatpak", "remote-add", "--user", "--no-gpg-verify", "sample", repository)
    run("flatpak", "install", "--user", "--noninteractive", "sample", APPLICATION)
    for directory in ("sample", "platform", "tree"):
        shutil.rmtree(folder / directory)


def _add_python(usr: Path) -> None:
    """The interpreter, its library and the shared libraries of both, where this machine has them."""
    python = Path("/usr/bin/python3").resolve()
    modules = Path(f"/usr/lib/{python.name}")
    programs = [python, Path("/usr/bin/env"), Path("/usr/bin/true")]
    for library in sorted(_libraries([*programs, *modules.glob("lib-dynload/*.so")])):
        target = usr / library.removeprefix("/usr/").removeprefix("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    for program in programs:
        (usr / "bin" / program.name).unlink(missing_ok=True)
        shutil.copy(program, usr / "bin" / program.name)
    if python.name != "python3":
        (usr / "bin/python3").symlink_to(python.name)
    skipped = shutil.ignore_patterns("__pycache__", "test", "idlelib", "tkinter", "dist-packages", "ensurepip")
    shutil.copytree(modules, usr / "lib" / python.name, ignore=skipped, symlinks=False, ignore_dangling_symlinks=True)


def _libraries(programs: Sequence[Path]) -> set[str]:
    """By ldd(1), with the loader itself."""
    said = subprocess.run(["ldd", *map(str, programs)], check=False, capture_output=True, text=True).stdout
    words = [line.split() for line in said.splitlines() if line.startswith("\t")]
    return {word for line in words for word in line if word.startswith("/") and Path(word).is_file()}


# --- systemd ---------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def nspawn() -> Iterator[Sandbox]:
    """A container on the host's /usr with ids of its own, and an ordinary user in it, as systemd-nspawn(1) advises."""
    with contextlib.ExitStack() as stack:
        folder = _folder(stack)

        def words(name: str) -> tuple[str, ...]:
            root = folder / name
            for directory in ("usr", "etc", "proc", "sys", "dev", "run", "tmp", "var", "home", "root", "mnt"):
                (root / directory).mkdir(parents=True)
            for file in ("passwd", "group"):
                (root / "etc" / file).touch()
            for link in ("bin", "sbin", "lib", "lib64"):
                (root / link).symlink_to(f"usr/{link}")
            shutil.copy("/etc/os-release", root / "etc/os-release")
            return ("systemd-nspawn", "--quiet", f"--directory={root}", "--bind-ro=/usr", "--private-users=pick",
                    "--bind-ro=/etc/passwd", "--bind-ro=/etc/group", "--user=nobody", "--setenv=HOME=/tmp", "--as-pid2",
                    "--pipe", "--private-network", f"--machine=cage-bench-{name}",
                    f"--bind-ro={folder}/probe.pyz:/probe.pyz", *PYTHON, "/probe.pyz")

        yield Sandbox(name="systemd-nspawn", command=words("left"), other=words("right"),
                      environment={"PATH": PATH, "LANG": "C.UTF-8"})


def found() -> list[str]:
    """The peers that this machine can run."""
    there = [name for name in ("bwrap", "flatpak") if shutil.which(name)]
    booted = Path("/run/systemd/system").is_dir() and shutil.which("systemd-nspawn")
    return [*there, *(["systemd-nspawn"] if booted else [])]
