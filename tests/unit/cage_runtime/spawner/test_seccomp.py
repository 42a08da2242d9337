# SPDX-License-Identifier: LGPL-2.1-or-later
"""The filter that a command adds to cage-init's, tried in a process of its own."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

# python3-prctl and libseccomp's binding are the distribution's and the environment's, wherever the spawner runs.
sys.path.append("/usr/lib/python3/dist-packages")

from cage_runtime.errors import DefinitionError
from cage_runtime.spawner import seccomp, syscall

PROFILES = Path(__file__).parents[4] / "policies" / "seccomp.d"
PR_SET_NO_NEW_PRIVS = 38
LIBC = ctypes.CDLL(None, use_errno=True)


def errno_under(filters: tuple[seccomp.Filter, ...], call: Callable[[], object]) -> int:
    """What `call` fails with in a process that has loaded `filters`; 0 where it does not."""
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            for one in filters:
                one.load()
            call()
            status = 0
        except OSError as error:
            status = error.errno or 254
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def attach() -> None:
    syscall.move_mount(-1, "/")


def test_a_command_cannot_attach_what_cage_init_can() -> None:
    init, less = seccomp.build(PROFILES, "init"), seccomp.without_own(PROFILES, "init")
    assert errno_under((init,), attach) not in (0, errno.ENOSYS)
    assert errno_under((init, less), attach) == errno.ENOSYS


@pytest.mark.parametrize("call", [os.getppid, lambda: os.stat("/"), lambda: os.fork() or os._exit(0)])
def test_what_a_session_may_it_may_with_the_difference(call: Callable[[], object]) -> None:
    filters = seccomp.build(PROFILES, "init"), seccomp.without_own(PROFILES, "init")
    assert errno_under(filters, call) == 0


@pytest.mark.parametrize("more", ['[refuse]\nx = ["getpid"]\n', '[[allow-if]]\ncall = "socket"\narguments = []\n'])
def test_a_difference_that_is_not_plain_is_refused(tmp_path: Path, more: str) -> None:
    (tmp_path / "session.toml").write_text('[allow]\nx = ["getpid"]\n')
    (tmp_path / "init.toml").write_text(f'extends = "session"\n{more}')
    with pytest.raises(DefinitionError, match=r"init\.toml: it may extend another profile by \[allow\]"):
        seccomp.without_own(tmp_path, "init")


def test_what_the_base_allows_too_stays_allowed(tmp_path: Path) -> None:
    (tmp_path / "session.toml").write_text('[allow]\nx = ["getppid"]\n')
    (tmp_path / "init.toml").write_text('extends = "session"\n[allow]\ny = ["getppid", "move_mount"]\n')
    less = seccomp.without_own(tmp_path, "init")
    assert errno_under((less,), os.getppid) == 0
    assert errno_under((less,), attach) == errno.ENOSYS


@pytest.mark.parametrize(("call", "refused"), [
    (lambda: LIBC.setns(-1, 0x80), False), (lambda: LIBC.setns(-1, 0x40000000), True),
    (lambda: LIBC.setns(-1, 0), True),
    (lambda: LIBC.syscall(syscall.NUMBERS["keyctl"], 1, None), False),
    (lambda: LIBC.syscall(syscall.NUMBERS["keyctl"], 0, 0, 0), True), (lambda: LIBC.ptrace(0, 0, 0, 0), True),
    (lambda: LIBC.chroot(b"/nowhere"), False), (lambda: LIBC.mount(b"", b"/nowhere", b"", 0x1000, 0), False),
])
def test_what_the_spawner_gives_up_for_itself_and_all_cages(call: Callable[[], int], refused: bool) -> None:
    def tried() -> None:
        if call() < 0:
            raise OSError(ctypes.get_errno(), "")

    answer = errno_under((seccomp.refusing(PROFILES, "spawner"),), tried)
    assert (answer == errno.EPERM) is refused or (os.geteuid() != 0 and answer == errno.EPERM)


def test_no_session_may_what_the_spawner_gave_up() -> None:
    """So that its filter, which cages inherit, changes nothing for them."""
    session = tomllib.loads((PROFILES / "session.toml").read_text())
    spawner = tomllib.loads((PROFILES / "spawner.toml").read_text())
    allowed = {call for calls in session["allow"].values() for call in calls}
    allowed |= {rule["call"] for rule in session["allow-if"]}
    given_up = {call for calls in spawner["refuse"].values() for call in calls}
    assert not allowed & (given_up | {rule["call"] for rule in spawner["refuse-if"]})
