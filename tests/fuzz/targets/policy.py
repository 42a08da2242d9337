# SPDX-License-Identifier: LGPL-2.1-or-later
"""A file of policy: the administrator's, and whatever it is, it is rules or a fault with its line."""

from __future__ import annotations

import re

from cage_runtime.errors import PolicySyntaxError
from cage_runtime.model import Levels, ServiceKind
from cage_runtime.policy.parser import parse, read
from cage_runtime.policy.rule import Rule
from cage_runtime.text import is_visible

MAY_RAISE = ()
LEVELS = Levels(names=("public", "internal", "secret"), compartments=frozenset({"finance"}))
KINDS = {
    "files.Send": ServiceKind(one_way=True, parameters=frozenset(
        {"max-size", "max-files", "types", "transform", "require"})),
    "call.*": ServiceKind(one_way=False, parameters=frozenset({"user", "direction", "max-size"})),
}


def run(untrusted: bytes) -> None:
    for found in read(untrusted, file="f", levels=LEVELS, kinds=KINDS):
        if isinstance(found, Rule):
            again = parse(str(found).encode(), file="f", levels=LEVELS, kinds=KINDS)
            assert [str(rule) for rule in again] == [str(found)]
        elif isinstance(found, PolicySyntaxError):
            assert is_visible(found.sentence)
            assert re.match(r"f:[1-9][0-9]*: ", found.sentence)
