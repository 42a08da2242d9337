# SPDX-License-Identifier: LGPL-2.1-or-later
"""The security contexts of the machine, asked of the installed runtime's own modules, and what holds in one alone.

Run as root by the distribution's interpreter: contexts.py configured; contexts.py of PID...; contexts.py try XID ACT
ARGUMENT..., where the act is tried by a process that has lost every wall but that context.  It prints JSON.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys

sys.path[:0] = ["/usr/lib/cage-runtime/lib", "/usr/lib/python3/dist-packages"]

from cage_runtime.spawner.lsm.contexts import Contexts  # noqa: E402


def connect(path: str) -> None:
    kind = socket.SOCK_SEQPACKET if path.endswith("init.sock") else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX, kind) as client:
        client.connect(path)


def read(path: str) -> None:
    with open(path, "rb") as file:
        file.read(1)


ACTS = {"kill": lambda pid: os.kill(int(pid), signal.SIGURG), "connect": connect, "read": read,
        "priority": lambda pid: os.setpriority(os.PRIO_PROCESS, int(pid), 0)}


def tried(contexts: Contexts, xid: int, act: str, argument: str) -> str:
    """`done`, or the name of the error."""
    (go, going), (said, saying) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(going)
        try:
            os.read(go, 1)
            ACTS[act](argument)
            os.write(saying, b"done")
        except OSError as error:
            os.write(saying, errno.errorcode[error.errno or 0].encode())
        finally:
            os._exit(0)
    contexts.enter(os.pidfd_open(child), xid)
    os.write(going, b"!")
    os.close(saying)
    outcome = os.read(said, 64).decode()
    os.waitpid(child, 0)
    return outcome


def main() -> None:
    contexts = Contexts.open()
    match sys.argv[1:]:
        case ["configured"]:
            found: object = sorted(contexts.configured())
        case ["of", *pids]:
            found = [contexts.of(os.pidfd_open(int(pid))) for pid in pids]
        case ["try", xid, act, *arguments]:
            found = [tried(contexts, int(xid), act, argument) for argument in arguments]
        case _:
            raise SystemExit(__doc__)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
