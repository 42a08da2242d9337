# SPDX-License-Identifier: LGPL-2.1-or-later
"""Secret: what an application locks its own store with, made by the key cage for this cage's application alone."""

from __future__ import annotations

import os
import stat

from cage_runtime.bus import Answer, Bus, Call, Service, Variant, described
from cage_runtime.errors import CageError, UsageError
from cage_runtime.portal.application import application_of
from cage_runtime.portal.mediated import ask
from cage_runtime.portal.requests import DESCRIPTION, Requests, Results

SECRET = "org.freedesktop.portal.Secret"  # noqa: S105 - a name


def service(bus: Bus, requests: Requests) -> Service:
    async def retrieve(call: Call) -> Answer:
        index, options = call.arguments
        descriptor = os.dup(call.descriptors[index])

        async def work() -> Results:
            try:
                await _write_secret(descriptor, await application_of(bus, call.sender))
            finally:
                os.close(descriptor)
            return {}

        try:
            return requests.begin(call, options, work)
        except CageError:
            os.close(descriptor)
            raise

    return Service(interface=described(DESCRIPTION, SECRET), handlers={"RetrieveSecret": retrieve},
                   properties=lambda: {"version": Variant("u", 1)})


async def _write_secret(descriptor: int, application: str) -> None:
    if not application:
        raise UsageError("only a Flatpak application has a secret of its own")
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode) and not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise UsageError("a secret is written to a pipe or a file")
    answer = await ask("keys", "Secret", "ssa{sv}", ("", application, {}))
    os.set_blocking(descriptor, False)
    os.write(descriptor, bytes(answer.values[0]))
