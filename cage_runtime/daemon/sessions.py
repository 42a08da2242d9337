# SPDX-License-Identifier: LGPL-2.1-or-later
"""Commands in cages: enter, run, and the delivery halves of mediators; each by a channel that outlives caged.

caged makes the channel's pair, passes one end to cage-init and the other to whoever asked, and keeps neither.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from cage_runtime.audit.event import Kind
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.manager import Manager
from cage_runtime.daemon.spawner import SpawnerEnded
from cage_runtime.errors import NoSuchApplication, UsageError
from cage_runtime.manifest import Delivery
from cage_runtime.model import ARGUMENT_MAX, ARGV_BYTES_MAX, ARGV_MAX, DIRECTORY_BYTES_MAX, REPEATS_MAX, CageState
from cage_runtime.spawner import spec
from cage_runtime.text import escape

LOGIN_SHELL = ("/bin/bash", "--login")
FLATPAK = ("/usr/bin/flatpak", "run", "--no-documents-portal")
"""As spawner/private.py has it too, by which a private cage knows its applications."""
MEDIATOR = "/opt/cage-runtime/bin/cage-mediator"


class SessionOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of Enter and Run, as the bus carries them."""

    root: bool = False
    cwd: str = ""
    tty: bool = False
    term: str = "dumb"
    rows: int = 24
    columns: int = 80
    detach: bool = False

    def terminal(self) -> spec.Terminal | None:
        if not self.tty:
            return None
        wanted = {"term": self.term, "rows": self.rows, "columns": self.columns}
        try:
            return msgspec.convert(wanted, spec.Terminal)
        except msgspec.ValidationError as error:
            raise UsageError(f"the terminal is not one that a cage can be given: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """The near end of a session's channel, the caller's to close."""

    channel: int


class Sessions:
    def __init__(self, manager: Manager, deliveries: Mapping[str, Delivery]) -> None:
        """`deliveries`: as what the delivery half of each mediator runs."""
        self._manager, self._deliveries = manager, deliveries

    async def enter(self, cage: Cage, command: list[str], options: SessionOptions) -> Started:
        """`command`, or a login shell where it is empty, as the cage's user or, with `root`, its uid 0."""
        if options.detach:
            raise UsageError("enter does not detach; run does")
        request = self._spawn(cage, check_argv(command) or list(LOGIN_SHELL), options)
        self._manager.record(Kind.CAGE_ENTERED, cage, {"command": request.argv[0], "as": request.user})
        return await self._request(request)

    async def run(self, cage: Cage, application: str, arguments: list[str], options: SessionOptions) -> Started:
        """The Flatpak application, which the cage's definition must allow."""
        if application not in cage.record.definition.apps.allow:
            shown = escape(application, limit=100)
            raise NoSuchApplication(
                f"{shown} is not an application of {cage.name}; "
                f"install it with: cagectl app install {cage.name} {shown}"
            )
        if options.root or options.cwd:
            raise UsageError("an application runs as the cage's user, in its home")
        request = self._spawn(cage, [*FLATPAK, application, *check_argv(arguments)], options)
        self._manager.record(Kind.APPLICATION_RUN, cage, {"application": application})
        return await self._request(request)

    def _spawn(self, cage: Cage, argv: list[str], options: SessionOptions) -> spec.Spawn:
        """What to ask of the spawner; whatever is against it is known before anything is recorded."""
        cage.require(CageState.RUNNING)
        return spec.Spawn(
            id=self._manager.spawner.number(), uuid=cage.uuid, argv=argv, user="root" if options.root else "user",
            cwd=check_directory(options.cwd), terminal=options.terminal(), detached=options.detach,
        )

    async def deliver(self, cage: Cage, mediator: str, arguments: list[str], descriptors: Sequence[int]) -> Started:
        """The delivery half of `mediator` in the cage, with the one of `descriptors` as its standard input."""
        cage.require(CageState.RUNNING)
        profile = self._deliveries.get(mediator, Delivery.NONE)
        if profile is Delivery.NONE:
            raise UsageError(f"the mediator {mediator} has no delivery half, as its manifest says")
        if len(descriptors) != 1:
            raise UsageError("a delivery half takes one descriptor, its standard input")
        argv = [MEDIATOR, mediator, "--deliver", *check_argv(arguments)]
        request = spec.Spawn(id=self._manager.spawner.number(), uuid=cage.uuid, argv=argv, own_input=True,
                             profile="delivery" if profile is Delivery.DELIVERY else "session",
                             serves=profile is Delivery.SERVICE)
        if profile is Delivery.SERVICE:
            return await self._request(request, *descriptors)  # not twice: it begins with what it is sent at once
        for _ in range(REPEATS_MAX):
            # One that was cut off may have been started all the same, and ends by itself: nobody has the other end of
            # its channel, which alone lets it finish.  A command of `enter` would have begun: it is not started twice.
            with contextlib.suppress(SpawnerEnded):
                return await self._request(request, *descriptors)
            request = msgspec.structs.replace(request, id=self._manager.spawner.number())
        return await self._request(request, *descriptors)

    async def copy(self, cage: Cage, arguments: list[str], stream: int) -> Started:
        """The half of a copy in the cage, with the descriptor `stream` as its standard input; not twice, because it
        begins with what is there at once."""
        cage.require(CageState.RUNNING)
        argv = [MEDIATOR, "files", "--copy", *check_argv(arguments)]
        request = spec.Spawn(id=self._manager.spawner.number(), uuid=cage.uuid, argv=argv, own_input=True,
                             profile="delivery")
        return await self._request(request, stream)

    async def _request(self, request: spec.Spawn, *descriptors: int) -> Started:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        with near, far:
            await self._manager.spawner.ask(request, (far.fileno(), *descriptors))
            return Started(channel=near.detach())


def check_argv(untrusted_arguments: list[str]) -> list[str]:
    """The arguments, if a command may have them, and those that go before them, too."""
    if len(untrusted_arguments) > ARGV_MAX - 8:
        raise UsageError(f"a command takes at most {ARGV_MAX - 8} arguments")
    if any(len(argument) > ARGUMENT_MAX for argument in untrusted_arguments):
        raise UsageError(f"an argument of a command takes at most {ARGUMENT_MAX} characters")
    if len(msgspec.json.encode(untrusted_arguments)) > ARGV_BYTES_MAX:
        raise UsageError(f"a command's arguments take at most {ARGV_BYTES_MAX} bytes, as JSON has them")
    return list(untrusted_arguments)


def check_directory(untrusted_path: str) -> str:
    """The directory, if a command may be started in one of that name."""
    if len(untrusted_path.encode()) > DIRECTORY_BYTES_MAX:
        raise UsageError(f"the directory of a command takes at most {DIRECTORY_BYTES_MAX} bytes")
    return untrusted_path
