# SPDX-License-Identifier: LGPL-2.1-or-later
"""The machines that are kept between runs, each in a directory named by its suite and key.

A lock of the suite is held by who looks and builds, a lock of a machine's directory by who uses it: two runs at once
build one machine, and an older machine is removed when nobody runs it.  What a killed run has left is removed by the
next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.vm.host.image import Files
from tests.vm.host.recipe import Recipe


def place() -> Path:
    """Where the machines are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cage-runtime-vm"


@contextlib.contextmanager
def machine(recipe: Recipe, build: Callable[[Path], Files], top: Path) -> Iterator[Files]:
    """The machine of a recipe, built into an empty directory where there is none yet; nobody removes it meanwhile."""
    top.mkdir(parents=True, exist_ok=True)
    directory = top / f"{recipe.suite}-{recipe.key}"
    with contextlib.ExitStack() as using:
        with _locked(top / f"{recipe.suite}.lock"):
            if not directory.is_dir():
                _build(directory, build)
            using.enter_context(_locked(directory, shared=True))
            _remove_older(top, directory, recipe.suite)
        yield Files(directory=directory)


@contextlib.contextmanager
def run_directory(top: Path) -> Iterator[Path]:
    """For the disk and the logs of one run; gone at its end."""
    with contextlib.ExitStack() as using:
        with _locked(top / "runs.lock"):
            for left in top.glob("run-*"):
                _remove_unused(left)
            directory = Path(tempfile.mkdtemp(prefix="run-", dir=top))
            using.enter_context(_locked(directory))
        using.callback(shutil.rmtree, directory)
        yield directory


def _build(directory: Path, build: Callable[[Path], Files]) -> None:
    half_done = directory.with_name(directory.name + ".new")
    if half_done.exists():
        shutil.rmtree(half_done)
    half_done.mkdir()
    with contextlib.ExitStack() as undoing:
        undoing.callback(shutil.rmtree, half_done)
        build(half_done)
        half_done.rename(directory)
        undoing.pop_all()


def _remove_older(top: Path, current: Path, suite: str) -> None:
    for other in top.glob(f"{suite}-*"):
        if other != current:
            _remove_unused(other)


def _remove_unused(directory: Path) -> None:
    """Remove a directory that nobody has locked; our own callers do so one at a time."""
    with contextlib.suppress(BlockingIOError), _locked(directory, wait=False):
        shutil.rmtree(directory)


@contextlib.contextmanager
def _locked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Hold a lock on a file (made where it is missing) or on a directory; BlockingIOError where it is not to wait."""
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)
