# SPDX-License-Identifier: LGPL-2.1-or-later
"""OpenURI and Email: what an application wants opened goes to the `open` mediator, as `incage open` does.

Policy says where; nothing is opened in the cage itself behind the person's back.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from urllib.parse import quote

from cage_runtime.bus import Answer, Call, Service, Value, Variant, described
from cage_runtime.errors import CageError, UsageError
from cage_runtime.model import PORTAL_ADDRESSES_MAX
from cage_runtime.portal.mediated import ask
from cage_runtime.portal.requests import DESCRIPTION, Requests, Results

OPEN_URI, EMAIL = "org.freedesktop.portal.OpenURI", "org.freedesktop.portal.Email"
VERSIONS = {OPEN_URI: 2, EMAIL: 3}
ANYWHERE = ""
"""No target named: policy, or a person, says which."""
O_PATH = 0o10000000


def services(requests: Requests) -> tuple[Service, ...]:
    """Both interfaces, whose requests are among `requests`."""

    async def open_uri(call: Call) -> Answer:
        _window, uri, options = call.arguments

        async def work() -> Results:
            await ask("open", "Uri", "ssa{sv}", (uri, ANYWHERE, {}))
            return {}

        return requests.begin(call, options, work, outlives=True)

    async def open_file(call: Call) -> Answer:
        _window, index, options = call.arguments
        descriptor = os.dup(call.descriptors[index])

        async def work() -> Results:
            try:
                name = _name_of(descriptor)
                await ask("open", "File", "ssha{sv}", (name, ANYWHERE, 0, {}), (descriptor,))
            finally:
                os.close(descriptor)
            return {}

        try:
            return requests.begin(call, options, work, outlives=True)
        except CageError:
            os.close(descriptor)
            raise

    async def compose(call: Call) -> Answer:
        _window, options = call.arguments
        uri = mailto(options)

        async def work() -> Results:
            await ask("open", "Uri", "ssa{sv}", (uri, ANYWHERE, {}))
            return {}

        return requests.begin(call, options, work, outlives=True)

    handlers = {OPEN_URI: {"OpenURI": open_uri, "OpenFile": open_file}, EMAIL: {"ComposeEmail": compose}}
    return tuple(Service(interface=described(DESCRIPTION, name), handlers=theirs,
                         properties=_version(VERSIONS[name])) for name, theirs in handlers.items())


def _version(number: int) -> Callable[[], dict[str, Variant]]:
    return lambda: {"version": Variant("u", number)}


def _name_of(descriptor: int) -> str:
    """The last part of the name of a file that can be read; UsageError where it is none."""
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & O_PATH or not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise UsageError("a file that is to be opened is a regular one, opened for reading")
    return os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}").removesuffix(" (deleted)"))


def mailto(options: dict[str, Variant]) -> str:
    """The mailto URI (RFC 6068) that stands for ComposeEmail's `options`; UsageError where none can.

    An attachment cannot go with a URI, so that a message with one is refused and not sent without it.
    """
    if _given(options, "attachments", "as") or _given(options, "attachment_fds", "ah"):
        raise UsageError("a message with attachments cannot be passed on; send the files by themselves")
    address = _given(options, "address", "s")
    to = [*([address] if address else []), *(_given(options, "addresses", "as") or [])]
    copies = {"cc": _given(options, "cc", "as") or [], "bcc": _given(options, "bcc", "as") or []}
    if sum(map(len, (to, *copies.values()))) > PORTAL_ADDRESSES_MAX:
        raise UsageError(f"a message goes to at most {PORTAL_ADDRESSES_MAX} addresses")
    fields = {name: ",".join(_quoted(each) for each in addresses) for name, addresses in copies.items()}
    fields |= {name: _quoted(_given(options, name, "s") or "") for name in ("subject", "body")}
    query = "&".join(f"{name}={value}" for name, value in fields.items() if value)
    return f"mailto:{','.join(_quoted(each) for each in to)}" + (f"?{query}" if query else "")


def _given(options: dict[str, Variant], name: str, signature: str) -> Value:
    variant = options.get(name)
    if variant is None:
        return None
    if variant.signature != signature:
        raise UsageError(f'the option "{name}" has the type {signature}')
    return variant.value


def _quoted(text: str) -> str:
    return quote(text, safe="@")
