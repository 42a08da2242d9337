# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs flatpak, ostree and gpg: argument vectors, an environment of our own, bounded time and output, one at a time.

flatpak asks the system bus about parental controls before it installs anything as a user who is not root, and waits
for whoever answers.  It gets a bus that has nobody on it: the answer is immediate and the same on every host.
"""

from __future__ import annotations

import errno
import os
import re
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cage_runtime.errors import CageError, HostUnsupported, RuntimeFailure
from cage_runtime.text import escape

PATH = "/usr/local/bin:/usr/bin:/bin"
OUTPUT_MAX = 64 * 1024**2
"""Bytes that a program may print; the list of all refs of Flathub is 5 MiB."""
COMPLAINT_MAX = 4096
"""Bytes of a program's last words that are kept."""
BUS_SECONDS = 10.0
PACKAGES = {"flatpak": "flatpak", "ostree": "ostree", "gpg": "gnupg", "dbus-daemon": "dbus"}
"""Where the programs that are run here come from, by Debian's names."""
NO_BUS = "unix:path=/nonexistent"

_BUS_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="{user}"/>
    <allow send_destination="org.freedesktop.DBus"/>
    <allow receive_sender="org.freedesktop.DBus"/>
  </policy>
</busconfig>
"""


_NO_SPACE = (os.strerror(errno.ENOSPC), "Not enough disk space", "min-free-space")
"""What ostree and flatpak say of a full disk; they have no status for it, and it is no fault of who offers."""
_ADVICE_TO_DISABLE = re.compile(r" \(use gpg-verify[^)]*\)")
"""ostree ends its refusals with how to switch the check off, which nobody should read here."""


class ProgramFailed(CageError):
    """A program ended with another status than 0; inside this room only, until it is known what that means."""

    def __init__(self, program: str, status: int, untrusted_complaint: bytes) -> None:
        self.complaint = _last_words(untrusted_complaint)
        super().__init__(f"{program} failed: {self.complaint or f'status {status}'}")


class TooSlow(RuntimeFailure):
    """A program did not end in the time it is given."""


def _last_words(untrusted_complaint: bytes) -> str:
    """What a program printed on its standard error, escaped, on one line."""
    lines = [line.strip() for line in untrusted_complaint.decode("utf-8", "backslashreplace").splitlines()]
    said = _ADVICE_TO_DISABLE.sub("", " ".join(line for line in lines if line))
    for prefix in ("error: ", "Error: "):
        said = said.removeprefix(prefix)
    return escape(said, limit=300)


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """The directories that the programs are given instead of a person's own; all below `private`, which is 0700."""

    installation: Path
    private: Path

    def create(self) -> None:
        for name in ("", "home", "gnupg", "run", "config", "cache", "data", "none"):
            self.private.joinpath(name).mkdir(mode=0o700, exist_ok=True)

    @property
    def environment(self) -> dict[str, str]:
        private = {
            "HOME": "home", "GNUPGHOME": "gnupg", "XDG_RUNTIME_DIR": "run", "XDG_CONFIG_HOME": "config",
            "XDG_CACHE_HOME": "cache", "XDG_DATA_HOME": "data", "FLATPAK_SYSTEM_DIR": "none",
            "FLATPAK_SYSTEM_CACHE_DIR": "none", "FLATPAK_CONFIG_DIR": "none", "FLATPAK_TRIGGERSDIR": "none",
        }
        return {
            "PATH": PATH, "LC_ALL": "C.UTF-8", "XDG_DATA_DIRS": "/usr/share", "GIO_USE_VFS": "local",
            "FLATPAK_USER_DIR": str(self.installation),
            "DBUS_SYSTEM_BUS_ADDRESS": NO_BUS, "DBUS_SESSION_BUS_ADDRESS": NO_BUS,
            **{name: str(self.private / directory) for name, directory in private.items()},
        }


class Runner:
    """One program at a time; `cancel` may be called from another thread than the one that runs it."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._cancelled = False
        self._bus = NO_BUS

    def begin(self) -> None:
        """A new piece of work: what was cancelled before does not count any more."""
        with self._lock:
            self._cancelled = False

    def cancel(self) -> None:
        """End the running program and all that it started, and refuse to start another in this piece of work."""
        with self._lock:
            self._cancelled = True
            if self._running is not None:
                _kill_group(self._running)

    def run(self, *argv: str, seconds: float, cleaning: bool = False) -> bytes:
        """What `argv` prints.  ProgramFailed if its status is not 0, CageError if it was cancelled (which does not
        touch a program that is `cleaning` up), RuntimeFailure past `seconds` or OUTPUT_MAX."""
        process = self._start(argv, cleaning=cleaning)
        try:
            output, complaint = _collect(process, time.monotonic() + seconds)
        finally:
            with self._lock:
                self._running = None
            _kill_group(process)
            status = _end(process)
        if self._cancelled and not cleaning:
            raise CageError("cancelled before it was done")
        if status != 0:
            failed = ProgramFailed(argv[0], status, complaint)
            if any(sign in failed.complaint for sign in _NO_SPACE):
                raise RuntimeFailure(f"no space is left for applications in {self._surroundings.installation}")
            raise failed
        return output

    def _start(self, argv: Sequence[str], *, cleaning: bool) -> subprocess.Popen[bytes]:
        environment = {**self._surroundings.environment, "DBUS_SYSTEM_BUS_ADDRESS": self._bus}
        with self._lock:
            if self._cancelled and not cleaning:
                raise CageError("cancelled before it was done")
            process = _spawn(argv, environment)
            self._running = None if cleaning else process
        return process

    @contextmanager
    def quiet_bus(self) -> Iterator[None]:
        """What runs meanwhile has a system bus with nobody on it."""
        directory = self._surroundings.private / "run"
        socket, config = directory / "bus", directory / "bus.conf"
        config.write_text(_BUS_CONFIG.format(socket=socket, user=os.geteuid()), encoding="utf-8")
        socket.unlink(missing_ok=True)
        argv = ("dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--print-address=1")
        daemon = _spawn(argv, self._surroundings.environment)
        try:
            self._bus = _address(daemon)
            yield
        finally:
            self._bus = NO_BUS
            _kill_group(daemon)
            _end(daemon)
            socket.unlink(missing_ok=True)


def _spawn(argv: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """`argv` as the leader of its own session; it dies with the thread that starts it, and so with the service."""
    if shutil.which(argv[0], path=PATH) is None:
        raise HostUnsupported(f"{argv[0]} is not installed; install the distribution's package {PACKAGES[argv[0]]}")
    try:
        return subprocess.Popen(
            ("setpriv", "--pdeathsig", "KILL", "--", *argv),  # noqa: S607 - found by the PATH below, which is ours
            env=environment, cwd="/", umask=0o022,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )
    except OSError as error:
        raise HostUnsupported(f"setpriv cannot be started ({error.strerror}); install util-linux") from error


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills `process`, which has not been waited for, so that its id is still its own, and all of its group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _collect(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bytes]:
    """What `process` prints until it has ended: one that has closed its output may still have work to do."""
    output, complaint = bytearray(), bytearray()
    program = escape(" ".join(map(str, process.args[4:6]))) if isinstance(process.args, tuple) else "a program"
    with selectors.DefaultSelector() as selector, os.fdopen(os.pidfd_open(process.pid), "rb") as ended:
        selector.register(ended, selectors.EVENT_READ)
        for pipe, kept in ((process.stdout, output), (process.stderr, complaint)):
            if pipe is not None:
                selector.register(pipe, selectors.EVENT_READ, kept)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TooSlow(f"{program} did not end in the time it is given")
            for key, _ in ready:
                if key.fileobj is ended:
                    selector.unregister(ended)
                    continue
                part = os.read(key.fd, 65536)
                if not part:
                    selector.unregister(key.fileobj)
                key.data.extend(part)
            if len(output) > OUTPUT_MAX:
                raise RuntimeFailure(f"{program} printed more than {OUTPUT_MAX} bytes")
            del complaint[:-COMPLAINT_MAX]
    return bytes(output), bytes(complaint)


def _end(process: subprocess.Popen[bytes]) -> int:
    """The status of `process`, which ends or has been killed; its pipes are closed."""
    with process:
        return process.wait()


def _address(daemon: subprocess.Popen[bytes]) -> str:
    """The address that dbus-daemon prints as soon as it listens."""
    with selectors.DefaultSelector() as selector:
        if daemon.stdout is None:
            raise RuntimeFailure("dbus-daemon has no standard output")
        selector.register(daemon.stdout, selectors.EVENT_READ)
        line = os.read(daemon.stdout.fileno(), 4096) if selector.select(BUS_SECONDS) else b""
    if not line.endswith(b"\n"):
        raise RuntimeFailure("dbus-daemon did not start; is the package dbus installed?")
    return line.decode("ascii").strip()
