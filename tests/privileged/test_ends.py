# SPDX-License-Identifier: LGPL-2.1-or-later
"""When a cage ends by itself: at a signal of the host's administrator, and a disposable one with what ran in it."""

from __future__ import annotations

import json
import os
import select
import signal
from pathlib import Path

import pytest

from cage_runtime.spawner import wire
from cage_runtime.spawner.spec import Ended, Remove, Standing, decode_reply
from tests.privileged.runtime import SECONDS, arguments_of, processes, wait_gone
from tests.privileged.without_caged import Cage, Spawner, event, is_of

pytestmark = pytest.mark.privileged


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGRTMIN + 4])
def test_the_host_s_administrator_ends_a_cage_by_a_signal(spawner: Spawner, number: int) -> None:
    """As systemd does, which sends it to the others as well: what they do on their end is done."""
    cage = Cage(spawner)
    with cage.spawn("sh", "-c", "trap 'exit 3' TERM; while :; do sleep 1 & wait; done") as channel:
        assert event(channel)["event"] == "started"
        init = cage.init()
        while not catches(cage, signal.SIGTERM):
            assert not select.select([channel], [], [], 0)[0], "it has ended"
        os.kill(init, number)
        assert event(channel) == {"event": "exit", "status": 3}
    wait_gone(init)
    received = wire.receive(spawner.connection)
    assert received is not None
    assert decode_reply(received[0]) == Ended(uuid=cage.uuid)
    cage.destroy()


def catches(cage: Cage, number: signal.Signals) -> bool:
    """Whether a command of the cage, which is a shell, has its trap set."""
    for pid in processes():
        if is_of(pid, cage.uuid) and arguments_of(pid)[:1] == ["sh"]:
            words = Path(f"/proc/{pid}/status").read_text().split()
            return bool(int(words[words.index("SigCgt:") + 1], 16) >> (number - 1) & 1)
    return False


def wait_ended(cage: Cage) -> None:
    """Until the spawner says that the cage has ended by itself, and nothing of it is left."""
    cage.spawner.connection.settimeout(SECONDS)
    received = wire.receive(cage.spawner.connection)
    assert received is not None
    ended = decode_reply(received[0])
    assert isinstance(ended, Ended)
    assert ended.uuid == cage.uuid
    assert cage.spawner.ask(Remove(id=0, uuid=cage.uuid)).fault is None
    assert [pid for pid in processes() if is_of(pid, cage.uuid)] == []


def is_running(cage: Cage) -> bool:
    standings = cage.spawner.ask(Standing(id=0)).standings
    return standings is not None and cage.uuid in standings.running


def test_a_disposable_cage_ends_with_its_last_command(spawner: Spawner) -> None:
    cage = Cage(spawner, 600.0)
    first, last = cage.spawn("sleep", "1001"), cage.spawn("sleep", "1002")
    for channel in (first, last):
        assert event(channel)["event"] == "started"
    first.send(json.dumps({"signal": signal.SIGKILL.value}).encode())
    assert event(first) == {"event": "exit", "status": 137}
    assert is_running(cage)
    last.send(json.dumps({"signal": signal.SIGKILL.value}).encode())
    assert event(last) == {"event": "exit", "status": 137}
    wait_ended(cage)
    first.close()
    last.close()


def test_what_a_command_left_behind_keeps_a_disposable_cage_and_its_bus_does_not(spawner: Spawner) -> None:
    cage = Cage(spawner, 600.0)
    script = ("dbus-send --session --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.GetId >/dev/null"
              " && setsid --fork sh -c 'echo; exec sleep 4711' && exit 0")
    with cage.spawn("sh", "-c", script) as channel:
        received = wire.receive(channel)
        assert received is not None
        os.read(received[1][1], 1)
        while not any(arguments_of(pid) == ["sleep", "4711"] for pid in processes()):
            os.sched_yield()
        wire.close_all(received[1])
        assert event(channel) == {"event": "exit", "status": 0}
    assert is_running(cage)
    left = cage.pid_of("sleep", "4711")
    assert any("dbus-daemon" in arguments_of(pid)[0] for pid in processes() if is_of(pid, cage.uuid)
               and arguments_of(pid))
    os.kill(left, signal.SIGKILL)
    wait_ended(cage)


@pytest.mark.parametrize("argv", [("/nonexistent",), ("true",)])
def test_a_disposable_cage_ends_with_a_command_that_did_not_last(spawner: Spawner, argv: tuple[str, ...]) -> None:
    cage = Cage(spawner, 600.0)
    with cage.spawn(*argv) as channel:
        assert event(channel)["event"] in ("started", "refused")
    wait_ended(cage)


def test_a_disposable_cage_in_which_nothing_is_started_ends(spawner: Spawner) -> None:
    wait_ended(Cage(spawner, 0.3))


def test_one_that_is_used_outlives_the_time_in_which_it_had_to_be(spawner: Spawner) -> None:
    cage = Cage(spawner, 0.5)
    with cage.spawn("sh", "-c", "sleep 1; echo; exec cat") as channel:
        received = wire.receive(channel)
        assert received is not None
        output = received[1][1]
        os.read(output, 1)  # after the time
        assert is_running(cage)
        wire.close_all(received[1])
    wait_ended(cage)
