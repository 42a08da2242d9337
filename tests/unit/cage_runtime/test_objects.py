# SPDX-License-Identifier: LGPL-2.1-or-later
"""Objects that belong to somebody are there for whom they are, and for others as if they had never been."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from dbus_fast import Variant

from cage_runtime.errors import NotAuthorized, UsageError
from cage_runtime.objects import Answer, Call, Objects, Service

TOP, MINE, HERS = "/top", "/top/cage/mine", "/top/cage/hers"
DBUS = "org.freedesktop.DBus"
ALICE, BOB = 1000, 1001


def interface(name: str) -> ET.Element:
    return ET.fromstring(f'<interface name="{name}"><method name="Do"/></interface>')


async def do(_call: Call) -> Answer:
    return Answer(values=("done",))


async def alice(_call: Call) -> Callable[[str, int], bool]:
    return lambda _path, owner: owner == ALICE


async def nobody(_call: Call) -> Callable[[str, int], bool]:
    raise NotAuthorized("not for you")


def objects(sight: Any = alice, **owners: int) -> Objects:
    """The manager, and below it a cage for each of `owners`."""
    served = Objects()
    served.sight = sight
    served.managing.add(TOP)
    served.serve(TOP, (Service(interface=interface("x.Manager"), handlers={"Do": do}),), None)
    for name, owner in owners.items():
        cage = Service(interface=interface("x.Cage"), handlers={"Do": do}, properties=lambda: {"A": Variant("s", "a")})
        served.serve(f"{TOP}/cage/{name}", (cage,), owner)
    return served


def ask(served: Objects, path: str, member: str, interface: str | None, signature: str = "", *arguments: Any) -> Any:
    async def asked() -> Any:
        call = Call(sender=":1.1", path=path, member=member, arguments=list(arguments), descriptors=())
        _, handler = await served.find(call, interface, signature)
        return (await handler(call)).values[0]

    return asyncio.run(asked())


QUESTIONS: list[tuple[str, str | None, str, tuple[str, ...]]] = [
    ("Do", "x.Cage", "", ()), ("Do", None, "", ()), ("Introspect", f"{DBUS}.Introspectable", "", ()),
    ("GetAll", f"{DBUS}.Properties", "s", ("x.Cage",)), ("Get", f"{DBUS}.Properties", "ss", ("x.Cage", "A")),
    ("GetManagedObjects", f"{DBUS}.ObjectManager", "", ()), ("Ping", f"{DBUS}.Peer", "", ()),
    ("Do", "x.Cage", "s", ("too much",)),
]


def refusal(served: Objects, path: str, question: tuple[str, str | None, str, tuple[str, ...]]) -> str:
    member, interface_, signature, arguments = question
    with pytest.raises(UsageError) as refused:
        ask(served, path, member, interface_, signature, *arguments)
    return refused.value.sentence


@pytest.mark.parametrize("question", QUESTIONS, ids=[f"{row[0]}-{row[1]}-{row[2]}" for row in QUESTIONS])
def test_one_that_is_anothers_answers_as_one_that_is_not(question: Any) -> None:
    there, gone = objects(mine=ALICE, hers=BOB), objects(mine=ALICE)
    assert refusal(there, HERS, question) == refusal(gone, HERS, question)
    assert refusal(there, f"{HERS}/below", question) == refusal(gone, f"{HERS}/below", question)
    # Nor does the folder of them tell that there is one.
    assert refusal(objects(hers=BOB), f"{TOP}/cage", question) == refusal(objects(), f"{TOP}/cage", question)


def test_what_lists_objects_leaves_out_those_of_others() -> None:
    served = objects(mine=ALICE, hers=BOB)
    assert list(ask(served, TOP, "GetManagedObjects", f"{DBUS}.ObjectManager")) == [MINE]
    folder = ET.fromstring(ask(served, f"{TOP}/cage", "Introspect", f"{DBUS}.Introspectable"))
    assert [node.attrib["name"] for node in folder.findall("node")] == ["mine"]
    assert ask(served, MINE, "GetAll", f"{DBUS}.Properties", "s", "x.Cage")["A"].value == "a"
    assert ask(served, MINE, "Do", "x.Cage") == "done"


def test_what_belongs_to_nobody_is_there_for_everybody_and_nobody_is_asked() -> None:
    assert ask(objects(nobody, hers=BOB), TOP, "Do", "x.Manager") == "done"


def test_whoever_may_see_nothing_hears_why_also_of_what_is_not_there() -> None:
    served = objects(nobody, hers=BOB)
    for path in (HERS, f"{TOP}/cage/none"):
        with pytest.raises(NotAuthorized, match=r"^not for you$"):
            ask(served, path, "GetAll", f"{DBUS}.Properties", "s", "x.Cage")
    described = ET.fromstring(ask(served, TOP, "Introspect", f"{DBUS}.Introspectable"))
    assert described.findall("node") == []


def test_an_object_that_comes_again_may_be_somebody_elses() -> None:
    served = objects(hers=BOB)
    served.withdraw(HERS)
    served.serve(HERS, (Service(interface=interface("x.Cage"), handlers={"Do": do}),), ALICE)
    assert ask(served, HERS, "Do", "x.Cage") == "done"
