# SPDX-License-Identifier: LGPL-2.1-or-later
"""The runtime that is attacked, its cages, and the probe in them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.attacks.bundle import bundle
from tests.attacks.host import Found, marked
from tests.attacks.probe.kernel import Answer
from tests.privileged.conftest import (
    cage,
    host_as_it_was,
    pytest_runtest_makereport,
    pytest_runtest_setup,
    sample,
    shared_cage,
    standing,
)
from tests.privileged.runtime import SECONDS, Cage, Runtime, wait_readable

__all__ = ["cage", "host_as_it_was", "pytest_runtest_makereport", "pytest_runtest_setup", "sample", "shared_cage"]

PYTHON = ("/usr/bin/python3", "-IS")


@pytest.fixture(scope="package")
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    yield from standing(request.config)


class Inside:
    """The probe in a cage, as its user or its root."""

    def __init__(self, cage: Cage, *, root: bool = False) -> None:
        self.cage, self.root = cage, root
        self._path = f"/tmp/probe-{'root' if root else 'user'}.pyz"
        ended = cage.enter("sh", "-c", f"cat > {self._path}", input=bundle(), root=root)
        assert ended.returncode == 0, ended.stderr.decode()

    def command(self, *words: str) -> tuple[str, ...]:
        return (*PYTHON, self._path, *words)

    def run(self, *words: str, seconds: float = SECONDS) -> list[Any]:
        """What the probe says, a JSON value a line."""
        ended = self.cage.enter(*self.command(*words), root=self.root, seconds=seconds)
        assert ended.returncode == 0, ended.stderr.decode()
        return [json.loads(line) for line in ended.stdout.splitlines()]

    def answers(self, verb: str, given: dict[str, Any]) -> list[Answer]:
        return [Answer(**said) for said in self.run(verb, json.dumps(given), seconds=2 * SECONDS)]

    @contextmanager
    def waiting(self, *words: str) -> Iterator[Waiting]:
        """The probe, once it says that it holds what it will; it ends with the context."""
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        as_root = ["--root"] if self.root else []
        command = ["enter", self.cage.name, *as_root, "--", *self.command(*words)]
        with self.cage.runtime.popen(*command, **options) as process:
            waiting = Waiting(process)
            try:
                yield waiting
            finally:
                waiting.end()
                process.wait(SECONDS)


class Waiting:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.first = self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        wait_readable(self.process.stdout.fileno(), "the probe", 2 * SECONDS)
        return self.process.stdout.readline().decode().strip()

    def said(self) -> Any:
        """What it says when it is told to end."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        line = self._line()
        self.end()
        return json.loads(line)

    def end(self) -> None:
        """What waits for a line takes the end of its input for one."""
        assert self.process.stdin is not None
        self.process.stdin.close()


@pytest.fixture(scope="package")
def found() -> Iterator[Found]:
    """What there is on the host to be found."""
    with marked() as found:
        yield found


@pytest.fixture(scope="package")
def standing_cages(runtime: Runtime) -> Iterator[dict[str, Cage]]:
    """Two ordinary cages for all that does not harm them."""
    made = {name: Cage(runtime, name) for name in ("left", "right")}
    runtime.ok("create", "left")
    runtime.ok("create", "right", "--level", "secret")
    yield made
    for name in made:
        runtime.ok("destroy", name, "--yes")


@pytest.fixture
def left(standing_cages: dict[str, Cage]) -> Cage:
    return standing_cages["left"]


@pytest.fixture
def right(standing_cages: dict[str, Cage]) -> Cage:
    return standing_cages["right"]


