# SPDX-License-Identifier: LGPL-2.1-or-later
"""The listener's ioctls, on real calls."""

from __future__ import annotations

import errno
import os
import select

import pytest

from cage_runtime.syscalls import notification
from tests.unit.cage_runtime.syscalls.listeners import FILTER, SYSINFO, Caller, sysinfo


def called(caller: Caller) -> notification.Notification:
    poll = select.poll()
    poll.register(caller.listener, select.POLLIN)
    assert poll.poll(10_000)
    received = notification.receive(caller.listener)
    assert received is not None
    return received


def test_a_call_comes_with_its_number_its_caller_and_its_arguments() -> None:
    with Caller(lambda: sysinfo(0x1234)) as caller:
        received = called(caller)
        assert (received.number, received.pid, received.arguments[0]) == (SYSINFO, caller.pid, 0x1234)
        assert notification.is_valid(caller.listener, received)
        notification.respond(caller.listener, received, errno.EDOM)
        assert caller.status() == errno.EDOM


def test_no_error_is_success() -> None:
    with Caller() as caller:
        notification.respond(caller.listener, called(caller), 0)
        assert caller.status() == 0


def test_a_caller_that_has_gone_is_not_valid_and_needs_no_answer() -> None:
    with Caller() as caller:
        received = called(caller)
        caller.kill()
        assert not notification.is_valid(caller.listener, received)
        notification.respond(caller.listener, received, 0)


def test_a_caller_that_goes_before_it_is_heard_is_none() -> None:
    with Caller() as caller:
        poll = select.poll()
        poll.register(caller.listener, select.POLLIN)
        assert poll.poll(10_000)
        caller.kill()
        assert notification.receive(caller.listener) is None


def test_a_listener_is_known_by_its_kind() -> None:
    read, write = os.pipe()
    with Caller() as caller:
        assert notification.is_listener(caller.listener)
        assert not notification.is_listener(read)
    os.close(read)
    os.close(write)


def listen_twice() -> int:
    try:
        FILTER.listen()
    except OSError as error:
        return error.errno or 255
    return 0


def test_there_is_one_listener_for_all_that_a_process_starts() -> None:
    with Caller(listen_twice) as caller:
        assert caller.status() == errno.EBUSY


def test_where_all_are_gone_the_call_ends() -> None:
    with Caller() as caller:
        os.close(caller.given())
        assert caller.status() == errno.ENOSYS


@pytest.mark.parametrize("flag", [notification.NO_FLAGS])
def test_no_call_is_ever_let_go_on(flag: int) -> None:
    assert flag == 0, "SECCOMP_USER_NOTIF_FLAG_CONTINUE"
