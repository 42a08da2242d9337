# SPDX-License-Identifier: LGPL-2.1-or-later
"""One runtime for all privileged tests, cages that go away with their test, and a host that is left as it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from tests.privileged.runtime import Cage, Runtime, arguments_of, is_zombie, processes
from tests.privileged.sample import Sample, short_directory
from tests.privileged.without_caged import Spawner, spawner_alone

OURS = range(0x7000_0000, 0x8000_0000)
"""Host uids of cages."""
_THE_RUNTIME = pytest.StashKey[Runtime]()
_LOG_BEFORE = pytest.StashKey[int]()

MakeCage = Callable[..., Cage]


# --- the host ----------------------------------------------------------------------------------------------------
def mounts() -> set[str]:
    """The mount table of this process, without the numbers that say nothing."""
    return {line.split(" ", 3)[3] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def interfaces() -> set[tuple[str, str]]:
    """Links and addresses of the host's network namespace, by netlink."""
    with IPRoute() as netlink:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in netlink.get_links()}
        addresses = {(names[entry["index"]], entry.get_attr("IFA_ADDRESS")) for entry in netlink.get_addr()}
    return addresses | {(name, "") for name in names.values()}


def cage_processes() -> set[int]:
    """Processes with a cage's uid that are not in another runtime's cgroup."""
    return {pid for pid in processes() if _uid_of(pid) in OURS and "/cage-runtime" not in _cgroup_of(pid)}


def _uid_of(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except FileNotFoundError:
        return -1


def _cgroup_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _processes_of(runtime: Runtime) -> list[str]:
    """Processes that know the runtime's directory or cgroup; with the uid of a cage they are in no other cgroup."""
    name = runtime.top.name
    return [f"{pid}: {' '.join(words)}" for pid in processes() if pid != os.getpid() and not is_zombie(pid)
            for words in [arguments_of(pid)] if name in " ".join(words) or name in _cgroup_of(pid)]


def _left_of_cages(runtime: Runtime) -> list[str]:
    """Directories of cages, of their storage and of what was being made; there is no cage any more."""
    places = ("run/cages", "run/gateways", "run/storage", "run/caged/cages", "state/storage", "state/cages",
              "state/staging")
    return [str(entry) for place in places for entry in (runtime.top / place).iterdir()]


@pytest.fixture(scope="session", autouse=True)
def host_as_it_was() -> Iterator[None]:
    """The suite leaves no mount, interface or process behind."""
    before = mounts(), interfaces(), cage_processes()
    yield
    assert mounts() == before[0]
    assert interfaces() == before[1]
    assert cage_processes() <= before[2]


# --- the runtime -------------------------------------------------------------------------------------------------
def standing(config: pytest.Config) -> Iterator[Runtime]:
    """The core, started once; at the end there may be nothing left of any cage, and then nothing left of it."""
    runtime = Runtime()
    config.stash[_THE_RUNTIME] = runtime
    runtime.start()
    yield runtime
    assert runtime.json("list") == []
    assert runtime.cgroups() == {}
    assert _left_of_cages(runtime) == []
    runtime.stop()
    bus_only = [line for line in _processes_of(runtime) if "dbus-daemon --config-file" not in line]
    runtime.remove()
    assert bus_only == []
    assert _processes_of(runtime) == []
    if config.stash.get(_THE_RUNTIME, None) is runtime:
        del config.stash[_THE_RUNTIME]


@pytest.fixture(scope="session")
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    yield from standing(request.config)


@pytest.fixture
def cage(runtime: Runtime) -> Iterator[MakeCage]:
    """Make cages that are destroyed at the end, unless the test has done so itself."""
    yield from _factory(runtime)


@pytest.fixture(scope="module")
def shared_cage(runtime: Runtime) -> Iterator[MakeCage]:
    """As `cage`, for those that all tests of a file use."""
    yield from _factory(runtime)


def _factory(runtime: Runtime) -> Iterator[MakeCage]:
    made: list[Cage] = []

    def make(name: str, *options: str) -> Cage:
        made.append(Cage(runtime, name))
        runtime.ok("create", name, *options)
        return made[-1]

    yield make
    there = {entry["name"] for entry in runtime.json("list")}
    for cage in made:
        if cage.name in there:
            cage.destroy()


@pytest.fixture(scope="module")
def sample() -> Iterator[Sample]:
    """The sample repository, newly built for the tests of a file."""
    with short_directory() as directory:
        built = Sample(directory=directory / "sample")
        built.build()
        yield built


@pytest.fixture(scope="module")
def spawner() -> Iterator[Spawner]:
    """One without a core, for the tests of a file."""
    with spawner_alone() as made:
        yield made


# --- a failure says what the core said ---------------------------------------------------------------------------
def pytest_runtest_setup(item: pytest.Item) -> None:
    runtime = item.config.stash.get(_THE_RUNTIME, None)
    item.stash[_LOG_BEFORE] = len(runtime.log()) if runtime is not None else 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    runtime = item.config.stash.get(_THE_RUNTIME, None)
    if report.failed and runtime is not None and runtime.top.is_dir():
        report.sections.append(("the core's log", runtime.log()[item.stash.get(_LOG_BEFORE, 0):]))
    return report
