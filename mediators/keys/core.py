# SPDX-License-Identifier: LGPL-2.1-or-later
"""The core half: has a key of one cage sign for another.

Law of this room: it holds no key and decides nothing.  What is to be signed is read here and by the key cage's half,
each for itself; only where both say the same of it a person is asked, and only then is it signed.  Of what went wrong
in the key cage the source hears that nothing came, and no more: not whether there is such a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import logging
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from cage_runtime import attached
from cage_runtime.bus import Answer, Call
from cage_runtime.errors import CageError, PolicyRefused, TransferFailed
from cage_runtime.model import DELIVERY_SECONDS, PROMPT_SECONDS, START_PATIENCE_SECONDS
from cage_runtime.text import escape
from mediators import corehalf, gate, wire
from mediators.keys import protocol
from mediators.keys.protocol import (
    LIST,
    LIST_SERVICE,
    READY,
    SECRET,
    SECRET_SERVICE,
    SIGN,
    SIGN_SERVICE,
    Unsigned,
)
from mediators.places import Turns
from mediators.wire import Caged, Gateway, Permission, What

DONE = {LIST_SERVICE: "listed", SIGN_SERVICE: "signed", SECRET_SERVICE: "derived"}
"""What the record says of what went well."""
LOG = logging.getLogger(__name__)
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
SECONDS = DELIVERY_SECONDS + 2 * PROMPT_SECONDS
"""What a key cage has to start and to answer, which waits for a person in between."""


@dataclass(kw_only=True, slots=True)
class Using:
    """One use of a key cage that policy permitted."""

    source: Gateway
    service: str
    permission: Permission
    arguments: list[str]
    """Of the delivery half."""
    stdin: bytes = b""
    ready: str = READY
    """What that half has to say before a person is asked."""
    lines: tuple[str, ...] = ()
    """What the person is shown."""
    operation: str = ""
    """What an answer that stands is for, beside the cage and the key."""
    output_max: int
    details: dict[str, str] = field(default_factory=dict)
    """What the record says of it."""


class KeysCore:
    """Answers List and Sign, on every gateway."""

    def __init__(self, caged: Caged) -> None:
        self._caged = caged
        self._turns = Turns(START_PATIENCE_SECONDS)

    async def list(self, source: Gateway, call: Call) -> Answer:
        untrusted_target, untrusted_options = call.arguments
        wire.no_options(untrusted_options)
        permission = await self._decide(source, LIST_SERVICE, "", untrusted_target)
        using = Using(source=source, service=LIST_SERVICE, permission=permission, arguments=[LIST],
                      output_max=protocol.LISTING_MAX)
        async with self._recorded(using):
            keys = protocol.parse_listing(await self._use(using))
            using.details["keys"] = str(len(keys))
        return Answer(values=(keys,))

    async def sign(self, source: Gateway, call: Call) -> Answer:
        untrusted_target, untrusted_name, untrusted_key, untrusted_data, untrusted_flags, options = call.arguments
        wire.no_options(options)
        name = protocol.check_key_name(untrusted_name)
        algorithm = protocol.algorithm(untrusted_key, untrusted_flags)
        lines = protocol.about(name, untrusted_key, untrusted_data)
        permission = await self._decide(source, SIGN_SERVICE, name, untrusted_target)
        using = Using(source=source, service=SIGN_SERVICE, permission=permission, arguments=[SIGN, name],
                      stdin=protocol.request(untrusted_key, untrusted_data, untrusted_flags),
                      ready=protocol.announcement(lines), lines=lines, operation=protocol.operation(lines),
                      output_max=protocol.SIGNATURE_MAX,
                      details={"argument": name, "key": protocol.fingerprint(untrusted_key),
                               "signs": "; ".join(lines[1:])})
        async with self._recorded(using):
            signature = protocol.parse_signature(await self._use(using), algorithm)
        return Answer(values=(signature,))

    async def secret(self, source: Gateway, call: Call) -> Answer:
        untrusted_target, untrusted_application, untrusted_options = call.arguments
        wire.no_options(untrusted_options)
        application = protocol.check_application(untrusted_application)
        permission = await self._decide(source, SECRET_SERVICE, application, untrusted_target)
        using = Using(source=source, service=SECRET_SERVICE, permission=permission,
                      arguments=[SECRET, permission.source_name, application],
                      lines=(f"a secret for the application: {application}",), output_max=protocol.SECRET_BYTES,
                      details={"argument": application})
        async with self._recorded(using):
            secret = protocol.parse_secret(await self._use(using))
        return Answer(values=(secret,))

    async def _decide(self, source: Gateway, service: str, argument: str, untrusted_target: str) -> Permission:
        target = wire.check_target(untrusted_target)
        permission = await self._caged.decide(source.uuid, service, argument, target, wire.new_request())
        if not permission.target_uuid:
            raise PolicyRefused("the policy names no cage with keys; name one")
        return permission

    @contextlib.asynccontextmanager
    async def _recorded(self, using: Using) -> AsyncIterator[None]:
        """Record how it went; what the key cage answered or did not is a plain failure to the source."""
        using.details["request"] = using.permission.asked.request
        try:
            yield
        except PolicyRefused as error:
            await self._record(using, f"refused: {error.sentence}")
            raise
        except CageError as error:
            await self._record(using, error.sentence)
            target = using.permission.asked.target or "the cage that policy names"
            raise TransferFailed(f"nothing came from {target}, which may be stopped or have no such key; "
                                 "the core's audit log says why") from error
        except asyncio.CancelledError:
            await self._record(using, "given up, because whoever asked has gone")
            raise
        await self._record(using, DONE[using.service])

    async def _use(self, using: Using) -> bytes:
        """What the key cage answers, once whoever has a say in it has said so."""
        permission = using.permission
        async with contextlib.AsyncExitStack() as turn:
            stdin = turn.enter_context(_sealed(using.stdin))
            # As between files: to start a program costs more than to ask for it.
            starting = await turn.enter_async_context(contextlib.AsyncExitStack())
            await starting.enter_async_context(self._turns.take((using.source.uuid, permission.target_uuid)))
            passing = functools.partial(self._passing, using, starting)
            at = attached.Gate(ready=using.ready.encode(), passing=passing, go=gate.GO)
            channel = await self._caged.deliver(permission, using.arguments, (stdin,), DELIVERY_SECONDS)
            ended = await attached.run_to_end(channel, gate=at, output_max=using.output_max, seconds=SECONDS)
        if ended.status:
            using.details["target-says"] = escape(ended.untrusted_diagnostics, limit=200)
            raise Unsigned(f"the key cage ended it with status {ended.status}")
        return ended.untrusted_output

    async def _passing(self, using: Using, starting: contextlib.AsyncExitStack) -> None:
        """What cannot be recorded is not done: caged records what it permits, before the key cage is told to go on."""
        await starting.aclose()
        confirmed = await self._caged.confirm(using.permission, What(lines=using.lines, operation=using.operation))
        if confirmed.target_uuid != using.permission.target_uuid:
            raise PolicyRefused("the policy names another cage by now; ask again")
        using.permission = confirmed

    async def _record(self, using: Using, outcome: str) -> None:
        """Of what has happened already; that it was permitted is in the chain since before it did."""
        details = using.details | {"outcome": outcome}
        try:
            await self._caged.record(using.source, using.permission.target_uuid, using.service, details)
        except CageError as error:
            LOG.error("not recorded: %s: %s", escape(str(details)), escape(error.sentence))


@contextlib.contextmanager
def _sealed(content: bytes) -> Iterator[int]:
    """A descriptor that `content` can be read from, and nothing else be done with."""
    with contextlib.ExitStack() as held:
        writable = os.memfd_create("keys", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        held.callback(os.close, writable)
        os.write(writable, content)
        os.fchmod(writable, 0o444)
        fcntl.fcntl(writable, fcntl.F_ADD_SEALS, SEALS)
        readable = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
        held.callback(os.close, readable)
        yield readable


def run(arguments: list[str]) -> int:
    """`cage-mediator keys [--config FILE]`."""

    def handlers(caged: Caged) -> dict[str, corehalf.Handler]:
        core = KeysCore(caged)
        return {LIST: core.list, SIGN: core.sign, SECRET: core.secret}

    return corehalf.run("keys", arguments, service="keys", handlers=handlers)
