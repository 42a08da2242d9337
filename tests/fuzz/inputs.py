# SPDX-License-Identifier: LGPL-2.1-or-later
"""The targets of the fuzzer, the inputs that are kept for each, and which of new ones are worth to be kept.

A target is a file of tests/fuzz/targets: `run` takes bytes that a cage can make up, and may raise MAY_RAISE and nothing
else.  What is kept of its inputs is what somebody made by hand, seed-*, and what comes to lines that nothing smaller
comes to.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

HERE = Path(__file__).parent
KEPT = HERE / "corpus"
KEPT_BYTES_MAX = 48 * 1024
"""Of one target, so that the repository stays small."""
INPUT_BYTES_MAX = 4096
OURS = ("cage_runtime", "mediators")
SEED = "seed-"


def names() -> list[str]:
    return sorted(file.stem for file in (HERE / "targets").glob("*.py"))


def target(name: str) -> ModuleType:
    """Its module, with `run` and MAY_RAISE."""
    return importlib.import_module(f"tests.fuzz.targets.{name}")


def attempt(module: ModuleType, untrusted: bytes) -> None:
    """Run the target; what it may raise is no fault."""
    try:
        module.run(untrusted)
    except module.MAY_RAISE:
        return


def read(*directories: Path, like: str = "*") -> list[bytes]:
    """The smallest first."""
    found = {file.read_bytes() for directory in directories for file in directory.glob(like) if file.is_file()}
    return sorted(found, key=lambda content: (len(content), content))


def arcs(module: ModuleType, untrusted: bytes) -> set[tuple[str, int, int]]:
    """From which line to which it goes in our files and the target's; empty for an input at which that fails."""
    taken: set[tuple[str, int, int]] = set()

    def trace(frame: FrameType, _event: str, _argument: Any) -> Any:
        file = frame.f_code.co_filename
        if not any(f"/{room}/" in file for room in (*OURS, "fuzz/targets")):
            return None
        before = 0

        def line(frame: FrameType, event: str, _argument: Any) -> Any:
            nonlocal before
            if event == "line":
                taken.add((file, before, frame.f_lineno))
                before = frame.f_lineno
            return line

        return line

    sys.settrace(trace)
    try:
        attempt(module, untrusted)
    except Exception:  # a finding, of which the run that comes upon it makes its report: it is nothing to keep
        return set()
    finally:
        sys.settrace(None)
    return taken


def worth_keeping(module: ModuleType, seeds: Iterable[bytes], candidates: Iterable[bytes]) -> list[bytes]:
    """Of `candidates`, the smallest first, those that come to something new beside the `seeds`, as many as fit."""
    seen: set[tuple[str, int, int]] = set()
    kept, size = [], 0
    for content in seeds:
        seen |= arcs(module, content)
        size += len(content)
    for content in candidates:
        if len(content) > INPUT_BYTES_MAX or size + len(content) > KEPT_BYTES_MAX:
            continue
        here = arcs(module, content)
        if here - seen:
            seen |= here
            kept.append(content)
            size += len(content)
    return kept


def keep(name: str, found: Path) -> int:
    """Lay the inputs of `found` beside those that are kept already, and leave what is worth it; how many that are."""
    folder = KEPT / name
    folder.mkdir(exist_ok=True)
    seeds = read(folder, like=f"{SEED}*")
    kept = worth_keeping(target(name), seeds, read(folder, found))
    for file in folder.iterdir():
        if not file.name.startswith(SEED):
            file.unlink()
    for content in kept:
        folder.joinpath(hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)
    return len(seeds) + len(kept)
