# SPDX-License-Identifier: LGPL-2.1-or-later
"""Jobs: work that takes longer than a call should, as an object to wait for and to cancel.

A job belongs to whoever started it; for others than root it is not there (cage_runtime.objects).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass

from dbus_fast import Variant

from cage_runtime.bus import Answer, Bus, Call, Service, described
from cage_runtime.errors import CageError, RuntimeFailure, UsageError
from cage_runtime.model import CORE_PATH, GIVING_UP_SECONDS, JOBS_MAX, JOBS_PER_PERSON, ROOT_UID

JOB = "org.cageruntime.Core1.Job"
KEPT_SECONDS = 300.0
"""How long a job that has ended can still be asked for its results."""


@dataclass(kw_only=True, slots=True)
class _Job:
    description: str
    owner: int
    task: asyncio.Task[dict[str, str]]


class Jobs:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._jobs: dict[str, _Job] = {}
        self._ending = False
        self._interface = described("org.cageruntime.Core1.xml", JOB)

    def start(self, description: str, work: Coroutine[None, None, dict[str, str]], owner: int) -> str:
        """The path of a new job that does `work` for the person `owner`."""
        try:
            self._make_room(owner)
        except RuntimeFailure:
            work.close()
            raise
        # No number in a row: how many jobs there are is nobody's to count.
        path = f"{CORE_PATH}/job/{secrets.token_hex(8)}"
        task = asyncio.get_running_loop().create_task(work)
        job = self._jobs[path] = _Job(description=description, owner=owner, task=task)
        job.task.add_done_callback(lambda _task: self._ended(path))
        self._bus.serve(path, Service(
            interface=self._interface, handlers={"Wait": self._wait, "Cancel": self._cancel},
            properties=lambda: {
                "Description": Variant("s", job.description),
                "Progress": _progress(job),
            },
        ), owner=owner)
        return path

    def _ended(self, path: str) -> None:
        asyncio.get_running_loop().call_later(KEPT_SECONDS, self._drop, path)
        if path in self._jobs:
            self._bus.properties_changed(path, JOB, {"Progress": _progress(self._jobs[path])})

    async def end(self, seconds: float) -> None:
        """Let what is under way come to its end; cancel, as by Cancel, what has not after `seconds`."""
        under_way = [job.task for job in self._jobs.values() if not job.task.done()]
        if not under_way:
            return
        _, late = await asyncio.wait(under_way, timeout=seconds)
        self._ending = True
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=GIVING_UP_SECONDS)

    def _make_room(self, owner: int) -> None:
        """Drop a job that has ended where there are as many as there may be; RuntimeFailure where none has."""
        own = [path for path, job in self._jobs.items() if job.owner == owner]
        if owner != ROOT_UID and len(own) >= JOBS_PER_PERSON:
            self._drop_ended(own, f"{JOBS_PER_PERSON} jobs of yours are under way already; wait for one of them")
        elif len(self._jobs) >= JOBS_MAX:
            self._drop_ended([*self._jobs], f"{JOBS_MAX} jobs are under way already; wait for one of them")

    def _drop_ended(self, paths: list[str], else_: str) -> None:
        ended = next((path for path in paths if self._jobs[path].task.done()), None)
        if ended is None:
            raise RuntimeFailure(else_)
        self._drop(ended)

    def _drop(self, path: str) -> None:
        job = self._jobs.pop(path, None)
        self._bus.withdraw(path)
        if job is not None and not job.task.cancelled():
            # Whoever did not wait does not want to know.
            job.task.exception()

    def _find(self, call: Call) -> _Job:
        if call.path not in self._jobs:
            raise UsageError(f"{call.path} has ended, and its results are not kept any more")
        return self._jobs[call.path]

    async def _wait(self, call: Call) -> Answer:
        job = self._find(call)
        await asyncio.wait([job.task])
        if job.task.cancelled():
            why = ", because caged was told to end before it was done; try again" if self._ending else ""
            raise CageError(f"{job.description}: cancelled{why}")
        results = job.task.result()
        return Answer(values=({key: Variant("s", value) for key, value in results.items()},))

    async def _cancel(self, call: Call) -> Answer:
        self._find(call).task.cancel()
        return Answer()


def _progress(job: _Job) -> Variant:
    return Variant("s", "done" if job.task.done() else "running")
