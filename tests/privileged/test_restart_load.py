# SPDX-License-Identifier: LGPL-2.1-or-later
"""caged and the spawner end again and again while much is under way: what is said to have arrived has, once and whole.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import PREFIX, SECONDS, Cage, Changes, Runtime
from tests.privileged.test_restart import all_is_well

ROUTES = (("one", "two"), ("one", "three"), ("two", "three"))
FILES, CHURNS = 16, 6
TIMES = 6
"""Replacements: a program that ends at once again and again is started again more and more seldom."""
SEND = """
echo begun
for number in $(seq {files}); do
  name={target}-$number
  head -c $((number * 20000)) /dev/urandom > $name
  incage send $name --to {target} > /dev/null
  echo $? $name $(sha256sum < $name)
done
"""
"""Prints of each file the status of its transfer, its name and its digest."""
CHURN = """
for number in $(seq {churns}); do
  {cagectl} create passing-$number && {cagectl} enter passing-$number -- true && {cagectl} list > /dev/null &&
    {cagectl} destroy passing-$number --yes
  echo $?
done
"""


@pytest.fixture
def cages(runtime: Runtime, cage: MakeCage) -> Iterator[dict[str, Cage]]:
    """A core that has just been started, and cages whose gateways' buses run."""
    runtime.restart()
    made = {name: cage(name, "--level", level)
            for name, level in (("one", "internal"), ("two", "internal"), ("three", "secret"))}
    for source, target in ROUTES:
        made[source].sh(f"echo first > first; incage send first --to {target}")
    yield made
    for listed in runtime.json("list"):
        if listed["name"] not in made:  # whoever made it was not told that it was there
            runtime.ok("destroy", listed["name"], "--yes")


@contextmanager
def under_load(runtime: Runtime, cages: dict[str, Cage], log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Three senders, and somebody who makes, enters and destroys cages; their output is in `log`."""
    script = CHURN.format(churns=CHURNS, cagectl=PREFIX / "bin/cagectl")
    with (log / "churn").open("wb") as output:
        running = [subprocess.Popen(["/bin/sh", "-c", script], env=runtime.environment(), stdin=subprocess.DEVNULL,
                                    stdout=output, stderr=subprocess.STDOUT)]
    for source, target in ROUTES:
        with (log / f"{source}-{target}").open("wb") as output:
            running.append(cages[source].popen("sh", "-c", SEND.format(files=FILES, target=target), stdout=output,
                                               stderr=subprocess.STDOUT))
    try:
        with Changes(log) as changes:  # a command that is only beginning is not begun twice
            changes.until(lambda: all((log / "-".join(route)).stat().st_size for route in ROUTES), "the senders")
        yield running
        for process in running:
            process.wait(4 * SECONDS)
    finally:
        for process in running:
            process.kill()
            process.wait()


def replace_in_turn(runtime: Runtime, running: list[subprocess.Popen[bytes]], number: signal.Signals) -> int:
    """End caged and the spawner by turns, each when the other is back; how often, before all that goes on had ended."""
    for times, program in enumerate(("caged", "cage-spawner") * (TIMES // 2)):
        if all(process.poll() is not None for process in running):
            return times
        runtime.kill_and_wait(program, number)
    return TIMES


def sent(log: Path, source: str, target: str) -> tuple[dict[str, str], list[str]]:
    """Digests of the files that were said to arrive, and the names of the others."""
    arrived, failed = {}, []
    for line in (log / f"{source}-{target}").read_text().splitlines():
        status, _, rest = line.partition(" ")
        if not status.isdigit():
            continue  # what was said of a failure
        name, digest, _ = rest.split()
        if status == "0":
            arrived[name] = digest
        else:
            failed.append(name)
    return arrived, failed


def inbox(runtime: Runtime, source: str, target: Cage) -> dict[str, str]:
    """The digest of everything that is in the target's inbox from `source`, hidden and half made too."""
    top = runtime.storage / target.uuid / "home/Inbox" / source
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in top.iterdir() if path.name != "first"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_core_is_replaced_again_and_again(
    runtime: Runtime, cages: dict[str, Cage], tmp_path: Path, number: signal.Signals
) -> None:
    gateways = {name: runtime.gateway_bus(cage.uuid) for name, cage in cages.items()}
    with runtime.bus_waits_for_caged(), under_load(runtime, cages, tmp_path) as running:
        times = replace_in_turn(runtime, running, number)
    for source, target in ROUTES:
        arrived, failed = sent(tmp_path, source, target)
        said = (tmp_path / f"{source}-{target}").read_text()
        assert len(arrived) + len(failed) == FILES, said
        assert inbox(runtime, source, cages[target]) == arrived, said
        assert number is signal.SIGKILL or failed == [], said
    churned = (tmp_path / "churn").read_text()
    if number is signal.SIGTERM:
        assert [line for line in churned.splitlines() if line.isdigit()] == ["0"] * CHURNS, churned
    assert times == TIMES, "the load was too small for this machine"
    assert {name: runtime.gateway_bus(cage.uuid) for name, cage in cages.items()} == gateways
    for cage in cages.values():
        all_is_well(runtime, cage)
    assert os.listdir(runtime.state / "staging") == []
