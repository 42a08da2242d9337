# SPDX-License-Identifier: LGPL-2.1-or-later
"""Jobs: work that takes longer than a call should, as an object to wait for and to cancel."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from dataclasses import dataclass

from dbus_fast import Variant

from cage_runtime.bus import Answer, Bus, Call, Service, described
from cage_runtime.daemon.authorization import Authorization
from cage_runtime.errors import CageError, RuntimeFailure
from cage_runtime.model import CORE_PATH, GIVING_UP_SECONDS, JOBS_MAX

JOB = "org.cageruntime.Core1.Job"
KEPT_SECONDS = 300.0
"""How long a job that has ended can still be asked for its results."""


@dataclass(kw_only=True, slots=True)
class _Job:
    description: str
    task: asyncio.Task[dict[str, str]]


class Jobs:
    def __init__(self, bus: Bus, authorization: Authorization) -> None:
        self._bus, self._authorization = bus, authorization
        self._numbers = itertools.count(1)
        self._jobs: dict[str, _Job] = {}
        self._ending = False
        self._interface = described("org.cageruntime.Core1.xml", JOB)

    def start(self, description: str, work: Coroutine[None, None, dict[str, str]]) -> str:
        """The path of a new job that does `work`."""
        if len(self._jobs) >= JOBS_MAX:
            ended = next((path for path, job in self._jobs.items() if job.task.done()), None)
            if ended is None:
                work.close()
                raise RuntimeFailure(f"{JOBS_MAX} jobs are under way already; wait for one of them")
            self._drop(ended)
        path = f"{CORE_PATH}/job/{next(self._numbers)}"
        job = self._jobs[path] = _Job(description=description, task=asyncio.get_running_loop().create_task(work))
        job.task.add_done_callback(lambda _task: self._ended(path))
        self._bus.serve(path, Service(
            interface=self._interface, handlers={"Wait": self._wait, "Cancel": self._cancel},
            properties=lambda: {
                "Description": Variant("s", job.description),
                "Progress": _progress(job),
            },
        ))
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

    def _drop(self, path: str) -> None:
        job = self._jobs.pop(path, None)
        self._bus.withdraw(path)
        if job is not None and not job.task.cancelled():
            # Whoever did not wait does not want to know.
            job.task.exception()

    async def _wait(self, call: Call) -> Answer:
        job = self._jobs[call.path]
        await self._authorization.person(call.sender, call.member)
        await asyncio.wait([job.task])
        if job.task.cancelled():
            why = ", because caged was told to end before it was done; try again" if self._ending else ""
            raise CageError(f"{job.description}: cancelled{why}")
        results = job.task.result()
        return Answer(values=({key: Variant("s", value) for key, value in results.items()},))

    async def _cancel(self, call: Call) -> Answer:
        job = self._jobs[call.path]
        await self._authorization.person(call.sender, call.member)
        job.task.cancel()
        return Answer()


def _progress(job: _Job) -> Variant:
    return Variant("s", "done" if job.task.done() else "running")
