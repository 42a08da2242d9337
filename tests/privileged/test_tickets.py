# SPDX-License-Identifier: LGPL-2.1-or-later
"""A core half that somebody has got hold of, as its own user on the system bus: it does what was decided for its own
requests, and nothing else."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from dbus_next.introspection import Node

from tests.foreign import MEDIATION, DbusNext, Refused
from tests.privileged.conftest import MakeCage
from tests.privileged.rules import policy
from tests.privileged.runtime import TOP, Cage, Runtime

RULES = """files.Send * mule high allow
files.Send * mule careful ask
files.Send * mule @disposable allow
log.Write * mule @core allow
"""
REQUEST = "ab" * 16


class Half(DbusNext):
    """Which knows what it may call: the bus lets no core half ask caged for that."""

    def introspect(self, _path: str, _destination: str = "") -> Node:
        return Node.parse(Path(TOP, "cage_runtime/resources/org.cageruntime.Core1.xml").read_text())


@dataclass(kw_only=True)
class Taken:
    """One whose program does what we like."""

    bus: DbusNext
    name: str
    source: str

    def asked(self, target: str) -> tuple[str, ...]:
        service = {"files": "files.Send", "log": "log.Write"}[self.name]
        return (self.source, service, "", target, REQUEST)

    def decided(self, target: str) -> str:
        return str(self.bus.call("Decide", *self.asked(target), "", interface=MEDIATION)["ticket"])

    def confirmed(self, target: str) -> str:
        return str(self.bus.call("Confirm", *self.asked(target), {"size": ("t", 1)}, interface=MEDIATION)["ticket"])

    def delivers(self, ticket: str) -> None:
        with open(os.devnull, "rb") as nothing:
            os.close(self.bus.call("Deliver", ticket, ["x"], [nothing.fileno()], interface=MEDIATION))

    def is_refused(self, ticket: str) -> None:
        for act in (lambda: self.delivers(ticket), lambda: self.bus.call("Dispose", ticket, interface=MEDIATION),
                    lambda: self.bus.call("Show", ticket, {"summary": ("s", "x")}, interface=MEDIATION)):
            with pytest.raises(Refused, match="NotAuthorized"):
                act()


@pytest.fixture(scope="module", autouse=True)
def rules(runtime: Runtime) -> Iterator[None]:
    with policy(runtime, RULES):
        yield


@pytest.fixture(scope="module")
def mule(shared_cage: MakeCage) -> Cage:
    return shared_cage("mule", "--level", "internal")


@pytest.fixture(scope="module", autouse=True)
def targets(shared_cage: MakeCage) -> list[Cage]:
    return [shared_cage(name, "--level", "secret") for name in ("high", "careful")]


def connected(runtime: Runtime, user: str) -> DbusNext:
    """To the system bus, which takes us for that user, in its groups."""
    person, before = pwd.getpwnam(user), os.getgroups()
    os.setgroups(os.getgrouplist(user, person.pw_gid))
    try:
        return Half(runtime.address, uid=person.pw_uid)
    finally:
        os.setgroups(before)


@pytest.fixture
def halves(runtime: Runtime, mule: Cage) -> Iterator[dict[str, Taken]]:
    source = {cage["name"]: cage["uuid"] for cage in runtime.json("list")}[mule.name]
    with contextlib.ExitStack() as held:
        taken = {}
        for name in ("files", "log"):
            bus = held.enter_context(contextlib.closing(connected(runtime, f"cage-{name}")))
            taken[name] = Taken(bus=bus, name=name, source=source)
        yield taken


def started(runtime: Runtime) -> int:
    """How many cages there are: of those that were made for it, one more each."""
    return len(runtime.json("list"))


def test_it_does_nothing_without_a_yes(runtime: Runtime, halves: dict[str, Taken]) -> None:
    files, before = halves["files"], started(runtime)
    noted_before = len(runtime.events("refused"))
    asked = files.confirmed("careful")  # of which a person is still asked
    confirmed = files.confirmed("high")
    middle = len(confirmed) // 2
    for ticket in ("", REQUEST, files.decided("high"), files.decided("@disposable"), asked, confirmed[:-1],
                   confirmed[:middle] + ("1" if confirmed[middle] == "0" else "0") + confirmed[middle + 1:]):
        files.is_refused(ticket)
    files.bus.call("Withdraw", REQUEST, interface=MEDIATION)
    assert started(runtime) == before
    noted = [fields for fields in runtime.events("refused")[noted_before:]
             if fields.get("method") == "Deliver"]
    assert noted[0]["by"] == str(pwd.getpwnam("cage-files").pw_uid), "an administrator finds it"
    assert noted[0]["reason"] == "what it shows for a permission is none that caged has given to it"


def test_another_mediators_yes_is_none(halves: dict[str, Taken]) -> None:
    halves["log"].is_refused(halves["files"].confirmed("high"))
    with pytest.raises(Refused, match="NotAuthorized"):
        halves["files"].bus.call("Show", halves["log"].confirmed("@core"), {"summary": ("s", "x")},
                                 interface=MEDIATION)


def test_a_yes_is_for_its_own_target(halves: dict[str, Taken]) -> None:
    files = halves["files"]
    for member, ticket, rest in (("Dispose", files.confirmed("high"), ()),
                                 ("Show", files.confirmed("high"), ({"summary": ("s", "x")},))):
        with pytest.raises(Refused, match="NotAuthorized"):
            files.bus.call(member, ticket, *rest, interface=MEDIATION)
    with pytest.raises(Refused, match="WrongState"):
        files.delivers(files.confirmed("@disposable"))


def test_a_yes_outlives_caged_and_no_more(runtime: Runtime, halves: dict[str, Taken]) -> None:
    files = halves["files"]
    ticket = files.confirmed("high")
    kept = runtime.run / "caged/tickets.json"
    assert (kept.stat().st_mode & 0o777, kept.owner()) == (0o600, "caged")
    runtime.kill_and_wait("caged")
    files.delivers(ticket)
    kept.unlink()  # as after a boot
    runtime.kill_and_wait("caged")
    files.is_refused(ticket)
    files.delivers(files.confirmed("high"))


def test_what_was_confirmed_is_still_done_after_a_reload_that_denies(runtime: Runtime,
                                                                    halves: dict[str, Taken]) -> None:
    files = halves["files"]
    ticket = files.confirmed("high")
    with policy(runtime, "files.Send * mule * deny\n"):
        files.delivers(ticket)
        with pytest.raises(Refused, match="PolicyRefused"):
            files.confirmed("high")
