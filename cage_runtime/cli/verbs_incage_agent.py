# SPDX-License-Identifier: LGPL-2.1-or-later
"""An SSH agent for someone inside a cage, whose keys are in another: agent."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile

from cage_runtime.cli.output import Screen, cell
from cage_runtime.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from cage_runtime.cli.sshagent import Server


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_command=True)
    parser.usage = "%(prog)s [--to CAGE] [OPTION…] [-- COMMAND [ARG…]]"
    parser.epilog = (
        "With a command: it runs with SSH_AUTH_SOCK set, and the exit status is its own.\n"
        "Without: SSH_AUTH_SOCK is printed as a shell takes it, and the agent runs until\n"
        "it is interrupted."
    )
    parser.add_argument("--to", metavar="CAGE", default="", help="where the keys are; or where the policy says")


def _agent(args: argparse.Namespace, screen: Screen) -> int:
    from cage_runtime.cli.sshagent import Server
    from cage_runtime.cli.verbs_incage import require_inside

    if args.has_command and not args.command:
        raise UsageError('agent: no command after "--"')
    require_inside()
    folder = tempfile.mkdtemp(prefix="incage-agent-", dir=os.environ.get("XDG_RUNTIME_DIR"))
    try:
        path = os.path.join(folder, "agent")
        server = Server(path, args.to, args.program)
        if args.command:
            return _with_command(server, args.command, path)
        screen.line(f"SSH_AUTH_SOCK={path}; export SSH_AUTH_SOCK;")
        sys.stdout.flush()
        server.run(_ends())
    finally:
        shutil.rmtree(folder)
    return 0


def _ends() -> int:
    """A descriptor that is readable once we are told to end."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    return read


def _with_command(server: Server, command: list[str], path: str) -> int:
    """Serve for as long as the command runs; its status."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # of a terminal, the command gets it too, and ends or not
    pid = os.fork()
    if pid == 0:
        _become(command, path)
    pidfd = os.pidfd_open(pid)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    signal.signal(signal.SIGHUP, lambda *_: os.kill(pid, signal.SIGHUP))
    server.run(pidfd)
    os.close(pidfd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def _become(command: list[str], path: str) -> None:
    try:
        for number in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        os.execvpe(command[0], command, {**os.environ, "SSH_AUTH_SOCK": path})  # noqa: S606
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        sys.stderr.write(f"incage: {cell(command[0])}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(127 if missing else 126)


VERBS = {"agent": (_arguments, _agent)}
