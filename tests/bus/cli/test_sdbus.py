# SPDX-License-Identifier: LGPL-2.1-or-later
"""Values and errors through a real bus: what goes in by a signature arrives, and what comes back is understood."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cage_runtime import model, sdbus
from cage_runtime.cli import agent, client
from cage_runtime.cli.client import Peer, core, files, job
from cage_runtime.cli.unit import has_failed
from cage_runtime.errors import (
    CageError,
    NameTaken,
    NoSystemBus,
    NotAuthorized,
    PolicyRefused,
    RuntimeFailure,
    UsageError,
)
from cage_runtime.sdbus import BusError, Connection
from tests.bus.cli.conftest import CONFIGURATION, FakeError, FakeService

CORE = ("org.cageruntime.Core1", "/org/cageruntime/Core1", "org.cageruntime.Core1.Manager")

VALUES: tuple[tuple[str, Any], ...] = (
    ("s", "plain"),
    ("s", ""),
    ("s", "größer → \U0001f512 \u202e"),
    ("o", "/org/cageruntime/Core1/cage/a_2db"),
    ("g", "a{sv}"),
    ("b", True),
    ("b", False),
    ("y", 255),
    ("n", -32768),
    ("q", 65535),
    ("i", -(2**31)),
    ("u", 2**32 - 1),
    ("x", -(2**63)),
    ("t", 2**64 - 1),
    ("d", 1.5),
    ("as", []),
    ("as", ["a", "", "c" * 100_000]),
    ("ay", b""),
    ("ay", bytes(range(256)) * 4000),
    ("a{ss}", {"a": "b", "c": "d"}),
    ("(su)", ("a", 7)),
    ("a(sss)", [("a", "b", "c"), ("d", "e", "f")]),
    ("aas", [["a"], [], ["b", "c"]]),
    ("aa{ss}", [{"a": "b"}, {}]),
)


@pytest.mark.parametrize(("kind", "value"), VALUES, ids=lambda value: str(value)[:20])
def test_every_type_goes_in_and_comes_out(caged: Any, kind: str, value: Any) -> None:
    caged.answers["Echo"] = lambda given: (kind, (given,))
    bus = Connection()
    assert bus.call(*CORE, "Echo", kind, (value,), returns=kind, timeout=20) == (value,)
    bus.close()


def test_variants_go_in_with_their_signatures_and_come_out_plain(caged: Any) -> None:
    given = {"s": "x", "b": True, "u": 7, "d": 1.5, "as": ["a"], "empty": [], "ay": b"k", "q": ("q", 24)}
    wire = {
        "s": ("s", "x"),
        "b": ("b", True),
        "u": ("u", 7),
        "d": ("d", 1.5),
        "as": ("as", ["a"]),
        "empty": ("as", []),
        "ay": ("ay", b"k"),
        "q": ("q", 24),
    }
    caged.answers["Echo"] = lambda options: ("aa{sv}", ([options, {"nested": ("v", ("a{sv}", {"x": ("u", 1)}))}],))
    bus = Connection()
    (rows,) = bus.call(*CORE, "Echo", "a{sv}", (given,), returns="aa{sv}", timeout=20)
    assert caged.calls == [("Echo", wire)]
    assert rows == [given | {"q": 24}, {"nested": {"x": 1}}]
    bus.close()


def test_descriptors_go_in_and_come_out_close_on_exec(caged: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("figures")

    def answer(given: Any) -> tuple[str, tuple[Any, ...]]:
        return "hs", (given.to_raw_fd(), "beside")

    caged.answers["Echo"] = answer
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    bus = Connection()
    received, beside = bus.call(*CORE, "Echo", "h", (descriptor,), returns="hs", timeout=20)
    bus.close()
    assert beside == "beside"
    assert received not in (descriptor, 0, 1, 2)
    assert fcntl.fcntl(received, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert os.read(received, 100) == b"figures"
    os.close(received)
    os.close(descriptor)


def test_no_descriptor_stays_behind(caged: Any) -> None:
    caged.answers["Give"] = lambda: ("ah", ([0, 1, 2],))
    before = len(os.listdir("/proc/self/fd"))
    bus = Connection()
    (descriptors,) = bus.call(*CORE, "Give", returns="ah", timeout=20)
    for descriptor in descriptors:
        os.close(descriptor)
    with pytest.raises(RuntimeFailure, match="unknown shape"):
        bus.call(*CORE, "Give", returns="h", timeout=20)
    bus.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("kind", "value"), [("u", 2**32), ("u", -1), ("y", 256), ("s", "a\0b"), ("s", "\udcff"), ("as", ["\udcff"])]
)
def test_a_value_that_does_not_fit_is_refused_here(caged: Any, kind: str, value: Any) -> None:
    bus = Connection()
    with pytest.raises(UsageError):
        bus.call(*CORE, "Echo", kind, (value,))
    bus.close()
    assert caged.calls == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("org.cageruntime.Error.NameTaken", NameTaken),
        ("org.cageruntime.Error.PolicyRefused", PolicyRefused),
        ("org.cageruntime.Error.OfALaterVersion", RuntimeFailure),
        ("org.freedesktop.DBus.Error.Failed", RuntimeFailure),
        ("org.freedesktop.DBus.Error.AccessDenied", NotAuthorized),
        ("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", NotAuthorized),
    ],
)
def test_an_error_becomes_one_of_the_tree(
    caged: Any, name: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    caged.fail("Echo", name, "one sentence")
    with pytest.raises(kind, match="one sentence"):
        core("list").call("Echo")


@pytest.mark.usefixtures("system_bus")
def test_nobody_there_says_how_to_start_it() -> None:
    with pytest.raises(RuntimeFailure, match=r"^caged is not running; start it with systemctl start caged or caged"):
        core("list").call("List", "a{sv}", {}, returns="aa{sv}")
    with pytest.raises(RuntimeFailure, match=r"^the files mediator of this cage is not running"):
        files().call("Send", "ssha{sv}", "vault", "x", 0, {}, returns="s")


@pytest.mark.parametrize("fault", ["missing", "refusing", "not an address"])
def test_no_bus_names_its_address(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = "nonsense" if fault == "not an address" else f"unix:path={tmp_path}/bus"
    if fault == "refusing":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{tmp_path}/bus")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    with pytest.raises(NoSystemBus, match=f"^no system bus at {address}"):
        core("list").call("List", "a{sv}", {}, returns="aa{sv}")


def test_a_bus_that_hangs_up_is_no_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{tmp_path}/bus")
    listener.listen()
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
    thread = threading.Thread(target=lambda: listener.accept()[0].close())
    thread.start()
    with pytest.raises(NoSystemBus):
        core("list").call("List", "a{sv}", {}, returns="aa{sv}")
    thread.join()
    listener.close()


def test_a_call_has_a_deadline_and_ctrl_c_ends_the_wait(caged: Any) -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def answer() -> tuple[str, tuple[Any, ...]]:
        asked.set()
        may_answer.wait(20)
        return "", ()

    caged.answers["Slow"] = answer
    bus = Connection()
    with pytest.raises(TimeoutError):
        bus.call(*CORE, "Slow", timeout=0.01)
    may_answer.set()
    may_answer.clear()
    asked.clear()

    def interrupt() -> None:
        asked.wait(20)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        bus.call(*CORE, "Slow")
    may_answer.set()
    thread.join()
    caged.answers["Quick"] = lambda: ("s", ("still here",))
    assert bus.call(*CORE, "Quick", returns="s", timeout=20) == ("still here",)
    bus.close()


@pytest.mark.usefixtures("caged")
def test_a_member_that_is_not_there_says_what_the_peer_said() -> None:
    with pytest.raises(RuntimeFailure, match=r"^caged: no FromTheFuture$"):
        core("list").call("FromTheFuture")
    bus = Connection()
    with pytest.raises(BusError):
        bus.call(*CORE, "FromTheFuture")
    bus.close()


def test_what_is_forbidden_is_told_in_the_words_that_were_typed(caged: Any) -> None:
    caged.fail("Forbidden", "org.cageruntime.Error.NotAuthorized", "Forbidden needs root on this host; use sudo")
    with pytest.raises(NotAuthorized, match=r"^app install needs root on this host; use sudo$"):
        core("app install").call("Forbidden")


@pytest.mark.usefixtures("caged")
def test_what_the_bus_forbids_is_a_refusal() -> None:
    with pytest.raises(NotAuthorized, match=r"^the bus does not let this user ask that of caged: "):
        core("list").call("ForbiddenByTheBus")


def test_a_caged_that_is_just_being_started_again_is_waited_for(
    system_bus: str, fake_service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after the bus has said that nobody has its name, and the bus says so of its own accord."""
    came: list[Any] = []
    ask = Connection.call

    def call(bus: Connection, *words: Any, **options: Any) -> tuple[Any, ...]:
        answer = ask(bus, *words, **options)
        if words[3] == "NameHasOwner" and not answer[0]:
            came.append(fake_service(system_bus, "org.cageruntime.Core1"))
            came[-1].answers["Quick"] = lambda: ("s", ("back",))
        return answer

    monkeypatch.setattr(client, "_held", lambda _lock: True)
    monkeypatch.setattr(Connection, "call", call)
    assert core("list").call("Quick", returns="s") == "back"
    (service,) = came
    service.close()


# --- passwords -------------------------------------------------------------------------------------------------------
AGENT = """#!/bin/bash
echo "$*" >{folder}/agent
[ "$*" = "--notify-fd=${{1#--notify-fd=}} --fallback" ] || exit 1
trap 'echo ended >>{folder}/agent; exit' TERM
echo "$PPID" >>{folder}/agent
eval "exec ${{1#--notify-fd=}}>&-"
while :; do read -r line <{folder}/never || :; done
"""
"""What pkttyagent is to us: it closes the descriptor that it is told of once it is there, and stays until SIGTERM."""
PASSWORD_WOULD_DO = (("AuthenticationNeeded", True), ("NoSuchCage", False), ("NotAuthorized", False),
                     ("NameTaken", False))


def agent_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A terminal as standard input, and an agent beside it; the file in which it tells what it was asked."""
    program = folder / "pkttyagent"
    program.write_text(AGENT.format(folder=folder))
    program.chmod(0o755)
    os.mkfifo(folder / "never")
    monkeypatch.setattr(agent, "PROGRAM", str(program))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "isatty", lambda descriptor: descriptor == 0)
    return folder / "agent"


def willing(caged: Any, error: str) -> None:
    """Stop is refused with `error` unless somebody may be asked."""

    def stop(*_: object) -> tuple[str, tuple[Any, ...]]:
        if not caged.interactive[-1]:
            raise FakeError(f"org.cageruntime.Error.{error}", "Stop is not to be")
        return "", ()

    caged.answers["Stop"] = stop


@pytest.mark.parametrize(("error", "asked"), PASSWORD_WOULD_DO)
def test_a_password_is_asked_for_where_one_may_help(
    caged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, asked: bool
) -> None:
    told = agent_in(tmp_path, monkeypatch)
    willing(caged, error)
    if not asked:
        with pytest.raises(CageError):
            core("stop", True).call("Stop", "s", "work")
        assert (caged.interactive, told.exists()) == ([False], False)
        return
    core("stop", True).call("Stop", "s", "work")
    assert caged.calls == [("Stop", "work")] * 2
    assert caged.interactive == [False, True]
    # It was there by then, as a child of ours, and is not any more.
    assert told.read_text().splitlines()[1:] == [str(os.getpid()), "ended"]


def test_nobody_is_asked_who_does_not_want_to_be_and_root_never(
    caged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = agent_in(tmp_path, monkeypatch)
    willing(caged, "AuthenticationNeeded")
    for euid, asks in ((1000, False), (0, True)):
        monkeypatch.setattr(os, "geteuid", lambda euid=euid: euid)
        with pytest.raises(NotAuthorized, match=r"^stop is not to be$"):
            core("stop", asks).call("Stop")
    assert (caged.interactive, told.exists()) == ([False, False], False)


def test_without_a_terminal_an_agent_of_the_desktop_may_ask(
    caged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = agent_in(tmp_path, monkeypatch)
    monkeypatch.setattr(os, "isatty", lambda _descriptor: False)
    willing(caged, "AuthenticationNeeded")
    core("stop", True).call("Stop")
    assert (caged.interactive, told.exists()) == ([False, True], False)


def test_an_agent_that_cannot_start_holds_nobody_up(
    caged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent_in(tmp_path, monkeypatch)
    (tmp_path / "pkttyagent").write_text("#!/bin/sh\nexit 127\n")
    willing(caged, "AuthenticationNeeded")
    core("stop", True).call("Stop")
    assert caged.interactive == [False, True]


def test_a_question_has_the_time_that_caged_gives_it() -> None:
    assert client.QUESTION_SECONDS == model.QUESTION_SECONDS


def test_who_is_started_by_the_bus_and_comes_late_is_asked_once_more(caged: Any) -> None:
    caged.fail("Never", "org.freedesktop.DBus.Error.TimedOut", "Failed to activate service")
    with pytest.raises(RuntimeFailure, match=r"^caged was started and has not come up in time; see its journal$"):
        core("list").call("Never")
    late = iter((True, False))

    def answer() -> tuple[str, tuple[Any, ...]]:
        if next(late):
            raise FakeError("org.freedesktop.DBus.Error.TimedOut", "Failed to activate service")
        return "s", ("here",)

    caged.answers["Late"] = answer
    assert core("list").call("Late", returns="s") == "here"
    assert [call[0] for call in caged.calls] == ["Never", "Never", "Late", "Late"]


# --- a caged that does not start --------------------------------------------------------------------------------------
@pytest.fixture
def waiting(caged: Any) -> Iterator[threading.Event]:
    """What is asked of caged gets no answer before this is set, as when the bus waits for it to come."""
    may_answer = threading.Event()

    def answer(*_: object) -> tuple[str, tuple[Any, ...]]:
        may_answer.wait(20)
        return "s", ("came all the same",)

    caged.answers["List"] = answer
    yield may_answer
    may_answer.set()
    with caged.turn:  # until it has
        pass


@pytest.fixture
def unit(system_bus: str, fake_service: Any) -> Iterator[dict[str, tuple[str, Any]]]:
    """What systemd says of caged.service."""
    systemd = fake_service(system_bus, "org.freedesktop.systemd1")
    shown: dict[str, tuple[str, Any]] = {}
    path = "/org/freedesktop/systemd1/unit/caged_2eservice"
    systemd.answers["GetUnit"] = lambda name: ("o", ({"caged.service": path}[name],))
    systemd.answers["Get"] = lambda _, name: ("v", (shown[name],))
    yield shown
    systemd.close()


@pytest.mark.usefixtures("waiting")
def test_a_core_that_systemd_has_given_up_is_not_waited_for(unit: dict[str, tuple[str, Any]],
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdbus, "SILENCE_SECONDS", 0.01)
    unit |= {"Job": ("(uo)", (0, "/")), "ActiveState": ("s", "failed")}
    with pytest.raises(RuntimeFailure, match=r"^caged does not start; systemctl status caged says why$"):
        core("list").call("List", returns="s")


@pytest.mark.parametrize("shown", [
    {"Job": ("(uo)", (7, "/org/freedesktop/systemd1/job/7")), "ActiveState": ("s", "failed")},
    {"Job": ("(uo)", (0, "/")), "ActiveState": ("s", "active")},
    {"Job": ("(uo)", (0, "/")), "ActiveState": ("s", "activating")},
])
def test_one_that_systemd_starts_or_has_started_is(
    waiting: threading.Event, unit: dict[str, tuple[str, Any]], shown: dict[str, tuple[str, Any]],
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdbus, "SILENCE_SECONDS", 0.01)
    unit |= shown
    looks = []

    def look(name: str) -> bool:
        looks.append(failed := has_failed(name))
        if len(looks) == 2:
            waiting.set()
        return failed

    monkeypatch.setattr("cage_runtime.cli.unit.has_failed", look)
    assert core("list").call("List", returns="s") == "came all the same"
    assert looks[:2] == [False, False]


@pytest.mark.usefixtures("system_bus")
def test_without_systemd_no_unit_has_failed() -> None:
    assert not has_failed("caged.service")


def test_a_job_is_another_object_of_the_same_peer(caged: Any) -> None:
    caged.answers["Wait"] = lambda: ("a{sv}", ({"commit": ("s", "1234")},))
    work: Peer = job(core("app install"), "/org/cageruntime/Core1/job/1")
    assert work.call("Wait", returns="a{sv}") == {"commit": "1234"}


# --- a bus with a bound for a message, as a cage's is ---------------------------------------------------------------
@pytest.fixture
def narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Echo, on a bus that takes as much in one message as a cage's, and ends the connection at more."""
    limit = f'<limit name="max_message_size">{client.CAGE_MESSAGE_BYTES}</limit></busconfig>'
    (tmp_path / "bus.conf").write_text(CONFIGURATION.format(socket=tmp_path / "bus").replace("</busconfig>", limit))
    command = ["dbus-daemon", "--nofork", "--print-address", f"--config-file={tmp_path}/bus.conf"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("unix:")
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
        service = FakeService(f"unix:path={tmp_path}/bus", CORE[0], {"Take": lambda *_: ("", ())})
        yield service
        service.close()
        process.terminate()


def test_the_bound_is_that_of_a_cages_bus() -> None:
    for kind in ("cage-bus", "gateway"):
        text = (Path(__file__).parents[3] / f"policies/{kind}/bus.conf.in").read_text()
        assert f'"max_message_size">{client.CAGE_MESSAGE_BYTES}</limit>' in text


SIZED: list[tuple[str, Callable[[int], Any]]] = [
    ("s", lambda size: "x" * size), ("ay", bytes), ("as", lambda size: ["x"] * (size // 12)),
    ("a{sv}", lambda size: {str(number): ("s", "") for number in range(size // 24)}),
    ("a{sv}", lambda size: {"x": ("a(ss)", [("a", "b")] * (size // 16))}), ("au", lambda size: [7] * (size // 4)),
]


@pytest.mark.parametrize(("kind", "sized"), SIZED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_too_much_for_one_message_is_told_as_that(narrow: Any, kind: str, sized: Callable[[int], Any]) -> None:
    """From what surely goes to what surely does not: never does the bus have to end the connection."""
    told = []
    for size in range(10_000, 50_000, 500):
        bus = Connection(message_bytes=client.CAGE_MESSAGE_BYTES)
        try:
            bus.call(*CORE, "Take", kind, (sized(size),), timeout=20)
            told.append("")
        except UsageError as error:
            told.append(error.sentence)
        bus.close()
    went = told.count("")
    assert told[:went] == [""] * len(narrow.calls)
    assert 0 < went < len(told)
    for sentence in told[went:]:
        assert sentence.startswith("all that is given to Take has ")
        assert "one message on this bus has at most 32768" in sentence


def test_nearly_all_of_a_message_can_be_used(narrow: Any) -> None:
    bus = Connection(message_bytes=client.CAGE_MESSAGE_BYTES)
    bus.call(*CORE, "Take", "s", ("x" * (client.CAGE_MESSAGE_BYTES - 512),), timeout=20)
    assert len(narrow.calls) == 1
    bus.close()


@pytest.mark.usefixtures("narrow")
def test_a_bus_that_ends_the_connection_is_not_said_to_be_missing() -> None:
    bus = Connection()
    with pytest.raises(NoSystemBus) as ended:
        bus.call(*CORE, "Take", "s", ("x" * client.CAGE_MESSAGE_BYTES,), timeout=20)
    assert ended.value.sentence.startswith("the system bus at unix:path=")
    assert "has ended this connection" in ended.value.sentence
