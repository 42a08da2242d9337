# SPDX-License-Identifier: LGPL-2.1-or-later
"""The whole bus interface in real cages, by clients that share no code with us, under the bus policy we ship."""

from __future__ import annotations

import contextlib
import pwd
from collections.abc import Iterator
from xml.etree import ElementTree as ET

import pytest

from tests import life
from tests.foreign import CORE, INTERFACES, PATH, Busctl, Client, DbusNext, followed
from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import APPS, Runtime
from tests.privileged.sample import NOTES, Sample

USAGE = b"Usage: notes --write TEXT FILE    TEXT and a newline become what FILE holds"


@pytest.fixture(params=["dbus-next", "busctl"])
def client(request: pytest.FixtureRequest, runtime: Runtime) -> Iterator[Client]:
    if request.param == "busctl":
        yield Busctl(runtime.address)
        return
    with contextlib.closing(DbusNext(runtime.address)) as next_:
        yield next_


def test_all_of_it_is_driven(client: Client, sample: Sample) -> None:
    world = life.World(application=NOTES, url=f"file://{sample.repository}", key=sample.key, said=(b"hello\n", USAGE))
    job = life.lead(client, world)
    assert client.succeeded == life.EVERYTHING - life.NOT_SERVED - life.NEEDS_A_REQUEST
    life.misuse(client, job)
    assert client.refused == life.EVERYTHING
    assert client.call("List", {}) == []


def test_what_a_command_gets_and_gives_by_another_library(runtime: Runtime, cage: MakeCage) -> None:
    cage("entered")
    with contextlib.closing(DbusNext(runtime.address)) as client:
        channel = client.call("Enter", "entered", ["sh", "-c", "id -u; pwd; exit 7"], {"root": ("b", True)})
    output, events = followed(channel)
    assert output == b"0\n/root\n"
    assert events == [{"event": "started"}, {"event": "exit", "status": 7}]


def test_the_applications_installation_says_what_its_description_says(runtime: Runtime) -> None:
    with contextlib.closing(DbusNext(runtime.address, uid=pwd.getpwnam("caged").pw_uid)) as client:
        (text,) = client.send("/org/cageruntime/Apps1", life.INTROSPECTABLE, "Introspect", destination=APPS)
    told = {each.attrib["name"]: each for each in ET.fromstring(text).findall("interface")}
    assert ET.canonicalize(ET.tostring(told[APPS], encoding="unicode"), strip_text=True) == ET.canonicalize(
        ET.tostring(INTERFACES[APPS], encoding="unicode"), strip_text=True)


def test_busctl_shows_real_cages(runtime: Runtime, cage: MakeCage) -> None:
    cage("tree-one", "--ephemeral")
    busctl = Busctl(runtime.address)
    assert f"{PATH}/cage/tree_2done" in busctl.run("tree", "--list", CORE).splitlines()
    assert '"running"' in busctl.run("introspect", CORE, f"{PATH}/cage/tree_2done")
