# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the policy lets happen, for persons: explained, proved, tried before it is installed, compared and drawn.

All of it is worked out beside the loop, one question after the other: what is asked here takes seconds where there are
thousands of rules, and requests of cages are decided meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from cage_runtime.config import Paths
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.define import template_names
from cage_runtime.daemon.disposables import disposable_label, load_template, template_of
from cage_runtime.daemon.manager import Manager
from cage_runtime.daemon.mediation import Mediation
from cage_runtime.errors import CageError, DefinitionError, PolicySyntaxError, UsageError
from cage_runtime.model import (
    CORE_TARGET,
    GRAPH_CAGES_MAX,
    POLICY_CHANGES_MAX,
    TRIED_BYTES_MAX,
    TRIED_FILES_MAX,
    Instance,
    Label,
    Request,
    ServiceKind,
    is_cage_name,
)
from cage_runtime.policy.cells import Host
from cage_runtime.policy.check import Finding, findings
from cage_runtime.policy.diff import Change, differences
from cage_runtime.policy.engine import Policy
from cage_runtime.policy.explain import Explanation, explain
from cage_runtime.policy.loader import load_tried
from cage_runtime.policy.match import canonical
from cage_runtime.policy.picture import Line, picture
from cage_runtime.policy.rule import Named
from cage_runtime.policy.witness import DEFAULT, Case
from cage_runtime.text import escape

_Result = TypeVar("_Result")
_DEFAULT = "@default"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """A policy that need not be installed: texts by the names of their files, in the place of the installed ones of
    those names, or `alone`."""

    untrusted_files: Mapping[str, bytes]
    alone: bool = False

    def check(self) -> None:
        """UsageError where that is more than is looked at."""
        if len(self.untrusted_files) > TRIED_FILES_MAX:
            raise UsageError(f"more than {TRIED_FILES_MAX} policy files")
        if sum(map(len, self.untrusted_files.values())) > TRIED_BYTES_MAX:
            raise UsageError(f"the policy files have more than {TRIED_BYTES_MAX} bytes")


INSTALLED = Tried(untrusted_files={})


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked: may this cage use this service towards that target?"""

    source: Cage
    service: str
    argument: str
    target: str
    """As it is asked for: a name, @core, @disposable or @disposable:TEMPLATE, or @default."""


class Proofs:
    def __init__(self, manager: Manager, mediation: Mediation, paths: Paths, *, kinds: Mapping[str, ServiceKind],
                 clock: Callable[[], float] = time.time) -> None:
        self._manager, self._mediation, self._paths, self._clock = manager, mediation, paths, clock
        self._kinds = kinds
        self._turn = asyncio.Lock()

    # --- the host as policy sees it --------------------------------------------------------------------------
    def _host(self) -> Host:
        return Host(levels=self._manager.levels, now=self._clock(), kinds=self._kinds, templates=self._templates(),
                    disposable=self._disposable)

    def _templates(self) -> dict[str, Label]:
        """Templates of disposable cages, and the label that one has at most: that of one for whoever has everything."""
        levels = self._manager.levels
        everything = levels.label(levels.names[-1], levels.compartments)
        found = {}
        for name in template_names(self._paths):
            with contextlib.suppress(CageError):  # what is wrong with it is for whoever would have it made
                found[name] = disposable_label(everything, load_template(name, self._paths), levels)
        return found

    def _disposable(self, source: Instance, untrusted_target: str) -> Instance | None:
        template = template_of(untrusted_target)
        if template is None:
            return None
        try:
            loaded = load_template(template, self._paths)
            label = disposable_label(source.label, loaded, self._manager.levels)
        except CageError:
            return None
        return Instance(name=canonical(untrusted_target), uuid="", label=label, owner=source.owner,
                        tags=frozenset(loaded.definition.tags))

    def _world(self, cages: Iterable[Cage] | None = None) -> dict[str, Instance]:
        """The cages that policy can be asked about, by name."""
        return {cage.name: cage.instance() for cage in (self._manager.cages() if cages is None else cages)
                if cage.label is not None and not cage.record.fault}

    def _load(self, tried: Tried) -> Policy:
        try:
            return load_tried(self._paths, self._manager.levels, self._kinds, tried.untrusted_files,
                              alone=tried.alone)
        except PolicySyntaxError as error:
            # Towards a cage a policy that cannot be read is a refusal; to whoever wrote it, it is a fault of a file.
            raise DefinitionError(error.sentence) from error

    async def _apart(self, work: Callable[[], _Result]) -> _Result:
        async with self._turn:
            return await asyncio.to_thread(work)

    # --- what is asked ---------------------------------------------------------------------------------------
    async def prove(self) -> list[Finding]:
        """What can be told of the policy on disk; DefinitionError where it cannot be read."""
        world, host = self._world(), self._host()
        return await self._apart(lambda: findings(self._load(INSTALLED), world, host))

    async def explain(self, question: Question) -> Explanation:
        """What the policy in force decides."""
        policy = self._mediation.policy
        case, host = self._case(question), self._host()
        return await self._apart(lambda: explain(policy, case, host))

    async def simulate(self, question: Question, tried: Tried) -> Explanation:
        """What `tried` would decide; DefinitionError names what is wrong in it."""
        tried.check()
        case, host = self._case(question), self._host()
        return await self._apart(lambda: explain(self._load(tried), case, host))

    def speaks_of(self, untrusted_target: str) -> bool:
        """Whether a rule of the policy in force is about that target, or it is a word, which is no cage's name."""
        return not is_cage_name(untrusted_target) or any(
            isinstance(rule.target, Named) and rule.target.name == untrusted_target
            for rule in self._mediation.policy.rules)

    def _case(self, question: Question) -> Case:
        name = DEFAULT if question.target == _DEFAULT else question.target
        if name not in (DEFAULT, CORE_TARGET) and not is_cage_name(name) and template_of(name) is None:
            shown = escape(name, limit=60)
            raise UsageError(f'"{shown}" cannot be asked for: a target is a cage, @core, @default, @disposable or '
                             "@disposable:TEMPLATE")
        request = Request(service=question.service, argument=question.argument, source=question.source.instance(),
                          target_name=name)
        return Case(request=request, world=self._world())

    async def diff(self, before: Tried, after: Tried) -> list[Change]:
        """What `after` decides otherwise, at most POLICY_CHANGES_MAX."""
        for tried in (before, after):
            tried.check()
        world, host = self._world(), self._host()

        def work() -> list[Change]:
            return list(islice(differences(self._load(before), self._load(after), world, host), POLICY_CHANGES_MAX))

        return await self._apart(work)

    async def graph(self, cages: Iterable[Cage]) -> tuple[list[Instance], list[Line]]:
        """What the policy in force lets flow between `cages`; UsageError for more than make a picture."""
        policy, world, host = self._mediation.policy, self._world(cages), self._host()
        if len(world) > GRAPH_CAGES_MAX:
            raise UsageError(f"{len(world)} cages are no picture; it has at most {GRAPH_CAGES_MAX}")
        return list(world.values()), await self._apart(lambda: list(picture(policy, world, host)))
