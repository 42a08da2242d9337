# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disposable cages: made for a permitted request of another cage, and destroyed with their last process.

Law of this room: a disposable cage is at most what the cage is that it was made for, in its label, its network and in
who may look into it; its name is the core's, and how many there are is bounded for each cage and each person.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from cage_runtime.config import Definition, Paths, parse_definition, read_text
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.define import template_file
from cage_runtime.daemon.manager import Manager
from cage_runtime.errors import CageError, NoSuchCage, RuntimeFailure, UsageError
from cage_runtime.model import (
    DISPOSABLE_PREFIX,
    DISPOSABLE_TARGET,
    DISPOSABLE_TEMPLATE,
    DISPOSABLES_PER_CAGE,
    DISPOSABLES_PER_PERSON,
    CageState,
    Instance,
    Label,
    Levels,
)
from cage_runtime.text import escape

LOG = logging.getLogger(__name__)
TOKEN, DEFAULT_TEMPLATE = DISPOSABLE_TARGET, DISPOSABLE_TEMPLATE
NONE_NOW = "no disposable cage can be made just now; try again later, or ask who runs this host, whose log says why"
"""For a cage, which is not to hear of others: whatever the reason is."""
_NUMBERS = 10_000
"""Names that are taken in turn, so that one that was there just now does not come again at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """What a disposable cage is made from; a level or compartments that its file names cap the caller's."""

    definition: Definition
    caps_level: bool = False
    caps_compartments: bool = False


def load_template(untrusted_name: str, paths: Paths) -> Template:
    """The template of that name, or the default one; UsageError where there is none, DefinitionError for its faults."""
    file = template_file(untrusted_name or DEFAULT_TEMPLATE, paths)
    if file is None:
        raise UsageError(f'there is no template "{escape(untrusted_name or DEFAULT_TEMPLATE, limit=40)}"')
    text = read_text(file)
    definition = parse_definition(text, str(file))
    table = tomllib.loads(text)
    return Template(definition=definition, caps_level="level" in table, caps_compartments="compartments" in table)


def template_of(untrusted_target: str) -> str | None:
    """The template that the target `@disposable` or `@disposable:TEMPLATE` names; None where it is another target."""
    token, _, template = untrusted_target.partition(":")
    return template or DEFAULT_TEMPLATE if token == TOKEN else None


def disposable_label(caller: Label, template: Template, levels: Levels) -> Label:
    """The caller's label, or less where the template has less; UsageError for a template with a label of no host."""
    capped = levels.label(template.definition.level, template.definition.compartments)
    level = capped.level if template.caps_level and capped.rank < caller.rank else caller.level
    compartments = caller.compartments & (capped.compartments if template.caps_compartments else caller.compartments)
    return levels.label(level, compartments)


def disposable_definition(caller: Definition, label: Label, template: Template) -> Definition:
    """The template's definition with the `label`, and in nothing more than the caller's."""
    base = template.definition
    session = msgspec.structs.replace(
        base.session, ephemeral=True, autostart=False, private=base.session.private or caller.session.private)
    return msgspec.structs.replace(
        base, level=label.level, compartments=sorted(label.compartments), session=session,
        # M63: whoever has no network has none by way of another cage either.
        network=caller.network if caller.network.mode == "none" else base.network,
        require=sorted({*base.require, *caller.require}),
    )


class Disposables:
    def __init__(self, manager: Manager, paths: Paths) -> None:
        self._manager, self._paths = manager, paths
        self._numbers = itertools.cycle(range(1, _NUMBERS + 1))
        self._coming: Counter[tuple[str, int]] = Counter()
        """Those that are being made, by the uuid of their caller and their owner."""
        self._ending: dict[str, asyncio.Task[None]] = {}
        manager.over = self._over

    def instance(self, caller: Cage, untrusted_target: str) -> Instance | None:
        """What policy is asked about for `@disposable…`: the cage that would be made; None where none can be."""
        template = template_of(untrusted_target)
        if template is None:
            return None
        try:
            loaded = load_template(template, self._paths)
            label = disposable_label(caller.instance().label, loaded, self._manager.levels)
        except CageError as error:
            LOG.warning("no disposable cage can be made from %s: %s", escape(template, limit=40), error.sentence)
            return None
        return Instance(name=f"{TOKEN}:{template}", uuid="", label=label, owner=caller.record.owner,
                        tags=frozenset(loaded.definition.tags))

    async def make(self, caller: Cage, untrusted_template: str) -> Cage:
        """A new disposable cage, which runs; RuntimeFailure where there are as many as there may be."""
        caller.require(CageState.RUNNING)
        template = load_template(untrusted_template, self._paths)
        label = disposable_label(caller.instance().label, template, self._manager.levels)
        definition = disposable_definition(caller.record.definition, label, template)
        owner = caller.record.owner
        # What a disposable cage has made is of the cage that it is for, or one cage could have all there may be.
        origin = caller.record.caller or caller.uuid
        with self._counted(origin, owner):
            try:
                return await self._manager.create(self._name(), definition, owner=owner, start=True, caller=origin)
            except CageError as error:
                LOG.error("no disposable cage is made for %s: %s", caller.name, error.sentence)
                raise RuntimeFailure(NONE_NOW) from error  # the reason may be what other cages there are

    @contextlib.contextmanager
    def _counted(self, origin: str, owner: int) -> Iterator[None]:
        """One more is being made, for which there is room; a cage that has none may have one whatever others have."""
        there = [cage.record for cage in self._manager.cages() if cage.record.disposable]
        made = Counter((record.caller, record.owner) for record in there
                       if record.uuid not in self._manager.in_hand) + self._coming
        own = sum(count for (of, _), count in made.items() if of == origin)
        if own >= DISPOSABLES_PER_CAGE:
            raise RuntimeFailure(f"this cage has {DISPOSABLES_PER_CAGE} disposable cages already; close one of them")
        if own and sum(count for (_, whose), count in made.items() if whose == owner) >= DISPOSABLES_PER_PERSON:
            LOG.warning("uid %d has %d disposable cages, and gets no more", owner, DISPOSABLES_PER_PERSON)
            raise RuntimeFailure(NONE_NOW)
        self._coming[origin, owner] += 1
        try:
            yield
        finally:
            self._coming[origin, owner] -= 1

    def _name(self) -> str:
        """One that no cage has, nor one that is being made."""
        return next(name for name in (f"{DISPOSABLE_PREFIX}{number}" for number in self._numbers)
                    if not self._manager.is_taken(name))

    def _over(self, cage: Cage) -> None:
        """It does not run any more.  Where it cannot be destroyed now, whoever looks next finds it again."""
        if cage.uuid in self._ending:
            return
        task = self._ending[cage.uuid] = asyncio.get_running_loop().create_task(self._destroy(cage))
        task.add_done_callback(lambda _task: self._ending.pop(cage.uuid))

    async def _destroy(self, cage: Cage) -> None:
        try:
            await self._manager.destroy(cage, "it was disposable, and has ended")
        except NoSuchCage:  # somebody else has
            return
        except CageError as error:
            LOG.error("%s, which has ended, is not destroyed yet: %s", cage.name, error.sentence)
