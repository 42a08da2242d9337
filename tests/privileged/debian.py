# SPDX-License-Identifier: LGPL-2.1-or-later
"""A Flatpak application made of the distribution's own packages, as they are: gio of GLib, notify-send of libnotify,
xdg-open and xdg-email of flatpak-xdg-utils, and Python with the bindings of GLib; none of them knows of cages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.privileged.sample import TOP, Sample, run, short_directory

TOOLS, PLATFORM, BRANCH = "org.debian.Tools", "org.debian.Platform", "stable"
PACKAGES = ("busybox-static", "flatpak-xdg-utils", "libc-bin", "libglib2.0-bin", "libnotify-bin", "python3-gi")
NOT_USED = {"libglib2.0-data", "libicu72", "libxml2", "shared-mime-info"}
"""What some of it needs for what nobody asks of it here, and is large."""
CACHE = TOP / ".build/debs"
_ONLY_NEEDED = tuple(f"--no-{kind}" for kind in (
    "recommends", "suggests", "conflicts", "breaks", "replaces", "enhances"))


def offer(sample: Sample) -> None:
    """Add it, and its runtime, to the repository of the sample, signed by the same key."""
    with short_directory() as directory:
        home = directory / "home"
        home.mkdir(mode=0o700)
        run("gpg", "--batch", "--quiet", "--homedir", home, "--import", sample.directory / "secret.asc")
        listing = run("gpg", "--homedir", home, "--with-colons", "--list-secret-keys").splitlines()
        key = next(line.split(":")[9] for line in listing if line.startswith("fpr:"))
        signed = (f"--gpg-sign={key}", f"--gpg-homedir={home}")
        platform, tools = directory / "platform", directory / "tools"
        _make_platform(platform)
        _make_tools(tools)
        run("flatpak", "build-export", "--runtime", "--files=usr", *signed, sample.repository, platform, BRANCH)
        run("flatpak", "build-export", *signed, sample.repository, tools, BRANCH)
        run("flatpak", "build-update-repo", *signed, sample.repository)
        run("gpgconf", "--homedir", home, "--kill", "all")


def _make_platform(tree: Path) -> None:
    root = tree / "root"
    root.mkdir(parents=True)
    for package in _packages():
        run("dpkg", "-x", package, root)
    for name in ("bin", "sbin", "lib", "lib64"):  # as the distribution merges them when it installs them
        if (root / name).is_dir() and not (root / name).is_symlink():
            shutil.copytree(root / name, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
    (root / "usr").rename(tree / "usr")
    shutil.rmtree(root)
    (tree / "usr/bin/sh").symlink_to("busybox")
    shutil.copy2(tree / "usr/sbin/ldconfig", tree / "usr/bin/ldconfig")
    (tree / "usr/etc").mkdir(exist_ok=True)
    arch = run("flatpak", "--default-arch")
    (tree / "metadata").write_text(f"[Runtime]\nname={PLATFORM}\nruntime={PLATFORM}/{arch}/{BRANCH}\n"
                                   f"sdk={PLATFORM}/{arch}/{BRANCH}\n")


def _make_tools(tree: Path) -> None:
    (tree / "files/bin").mkdir(parents=True)
    tool = tree / "files/bin/tools"
    tool.write_text('#!/bin/sh\nexec "$@"\n')
    tool.chmod(0o755)
    arch = run("flatpak", "--default-arch")
    (tree / "metadata").write_text(f"[Application]\nname={TOOLS}\nruntime={PLATFORM}/{arch}/{BRANCH}\n"
                                   f"sdk={PLATFORM}/{arch}/{BRANCH}\n")
    run("flatpak", "build-finish", "--command=tools", tree)


def _packages() -> list[Path]:
    """What they are, and what they need."""
    told = run("apt-cache", "depends", "--recurse", *_ONLY_NEEDED, *PACKAGES).splitlines()
    names = sorted({line for line in told if line[:1].isalnum()} - NOT_USED)
    CACHE.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "--quiet=2", "-o", "APT::Sandbox::User=root", "download", *names], cwd=CACHE, check=True,
                   capture_output=True)
    return [next(CACHE.glob(f"{name}_*.deb")) for name in names]
