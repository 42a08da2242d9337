# SPDX-License-Identifier: LGPL-2.1-or-later
"""P7: documents between two cages, against who copies them where they are.

Law of this room: both begin in the same cage, as its user, on the same file system, and both take the place of what the
last run has left, so that what differs is the wall and what it costs to go through it.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.bench.figures import Bound
from tests.bench.runtime import Client

SENT, COPIED = "send 1 GiB to another cage", "cp 1 GiB, sha256sum"
SENT_TREE, COPIED_TREE = "send 10 000 files of 4 KiB", "cp -r 10 000 files of 4 KiB"
BOUNDS = [
    Bound(figure="P7", ours=SENT, peer=COPIED, limit=1 / 0.7),
    Bound(figure="P7", ours=SENT_TREE, peer=COPIED_TREE, limit=1 / 0.5),
]
SOURCE, TARGET = "sender", "receiver"
MAKE = """head -c 1073741824 /dev/urandom > large
mkdir many; head -c 40960000 /dev/urandom | split -a 4 -b 4096 - many/"""
COMMANDS = {
    SENT: f"incage -q send --conflict replace large --to {TARGET}",
    COPIED: "rm -f copy; cp large copy && sha256sum copy",
    SENT_TREE: f"incage -q send --conflict replace many --to {TARGET}",
    COPIED_TREE: "rm -rf copies; cp -r many copies",
}


def make(client: Client) -> None:
    """The two cages, and what is sent."""
    for cage in (SOURCE, TARGET):
        client.create(cage, ephemeral=False)
    _run(client, MAKE)


def contenders(client: Client, *names: str) -> dict[str, Callable[[], None]]:
    return {name: lambda command=COMMANDS[name]: _run(client, command) for name in names}  # type: ignore[misc]


def remove(client: Client) -> None:
    for cage in (SOURCE, TARGET):
        client.destroy(cage)


def _run(client: Client, command: str) -> None:
    if status := client.enter(SOURCE, "/bin/sh", "-c", f"cd; {command}"):
        raise RuntimeError(f"{command} ended with status {status}")
