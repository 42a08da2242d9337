# SPDX-License-Identifier: LGPL-2.1-or-later
"""Everything that can be told of a sound policy: what leaks, what declassify opens, and rules that come to nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

from cage_runtime.model import POLICY_FINDINGS_MAX, Instance
from cage_runtime.policy.cells import Host
from cage_runtime.policy.engine import Policy
from cage_runtime.policy.flow import Chain, prove
from cage_runtime.policy.rule import Rule
from cage_runtime.policy.shadow import Shadowed, shadowed
from cage_runtime.policy.witness import needs


class About(StrEnum):
    """What a finding is."""

    LEAK = "leak"
    """A chain of allowed flows to a label that does not dominate its start, without declassify."""
    SHADOWED = "shadowed"
    DUPLICATE = "duplicate"
    EXPIRED = "expired"
    UNKNOWN_CAGE = "unknown-cage"
    UNKNOWN_SERVICE = "unknown-service"
    UNKNOWN_TAG = "unknown-tag"
    OPENED = "opened"
    """A chain that declassify lets."""
    CUT = "cut"
    """More than are told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    kind: About
    text: str
    """A sentence."""
    rules: tuple[str, ...] = ()
    """FILE:LINE of each that it is about."""
    chain: Chain = ()


def findings(policy: Policy, world: Mapping[str, Instance], host: Host) -> list[Finding]:
    """Of each kind at most POLICY_FINDINGS_MAX, and then how many there are besides; leaks first."""
    proof = prove(policy, world, host)
    told: list[Finding] = []
    for kind in (
        (_chain(About.LEAK, chain) for chain in proof.leaks),
        (_dead(found) for found in shadowed(policy, host)),
        _lost(policy.rules, world, host),
        (_chain(About.OPENED, chain) for chain in proof.opened),
    ):
        told += _bounded(kind)
    return told


def _bounded(found: Iterator[Finding]) -> Iterator[Finding]:
    yield from islice(found, POLICY_FINDINGS_MAX)
    if more := sum(1 for _ in found):
        yield Finding(kind=About.CUT, text=f"{more} more of the last kind are not shown")


def _chain(kind: About, chain: Chain) -> Finding:
    way = f"data can get from {chain[0].source} to {chain[-1].target}"
    text = f"{way}, and no rule says declassify" if kind is About.LEAK else way
    return Finding(kind=kind, text=text, rules=tuple(dict.fromkeys(step.rule for step in chain)), chain=chain)


def _dead(found: Shadowed) -> Finding:
    by = tuple(rule.place for rule in found.by)
    place = found.rule.place
    if found.duplicate:
        return Finding(kind=About.DUPLICATE, text=f"{place}: {by[0]} has the same columns, and decides",
                       rules=(place, *by))
    decides = f"{by[0]} decides" if len(by) == 1 else " and ".join(by[:3]) + (
        f" and {len(by) - 3} more decide" if len(by) > 3 else " decide")
    return Finding(kind=About.SHADOWED, text=f"{place}: never decides anything: {decides} all that it is about",
                   rules=(place, *by))


def _lost(rules: Iterable[Rule], world: Mapping[str, Instance], host: Host) -> Iterator[Finding]:
    """Rules that are about what there is not, now."""
    for rule in rules:
        for kind, text in _faults(rule, world, host):
            yield Finding(kind=kind, text=f"{rule.place}: {text}", rules=(rule.place,))


def _faults(rule: Rule, world: Mapping[str, Instance], host: Host) -> Iterator[tuple[About, str]]:
    wanted = (needs(rule.source), needs(rule.target))
    parameters = rule.parameters
    if parameters.until is not None and parameters.until <= host.now:
        yield About.EXPIRED, "its time is over, so that it matches nothing any more"
    if rule.service and not host.has(rule.service.name):
        yield About.UNKNOWN_SERVICE, f'no mediator offers "{rule.service.name}"'
    # What a rule sends on need be no cage's name.
    asked = wanted[:1] if parameters.target else wanted
    names = [found.name for found in asked] + [parameters.target, parameters.default_target]
    for name in dict.fromkeys(name for name in names if name and not name.startswith("@")):
        if name not in world:
            yield About.UNKNOWN_CAGE, f'there is no cage "{name}"'
    for tag in dict.fromkeys(found.tag for found in wanted if found.tag):
        if not any(tag in cage.tags for cage in world.values()):
            yield About.UNKNOWN_TAG, f'no cage has the tag "{tag}"'
