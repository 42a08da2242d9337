# SPDX-License-Identifier: LGPL-2.1-or-later
"""What crosses the wall of a clip: its types and options, checked by each half that receives them."""

from __future__ import annotations

from dataclasses import dataclass

from cage_runtime.bus import Variant
from cage_runtime.errors import PolicyRefused, UsageError
from cage_runtime.model import CLIP_PASTES_MAX, CLIP_SECONDS, CLIP_SECONDS_MAX
from cage_runtime.text import escape

SERVICE = "clipboard.Paste"
"""What policy calls it: from the cage in which something was copied to the one that pastes."""
TEXT, IMAGE = "text/plain", "image/png"
NOTHING = "there is nothing that this cage may paste"
"""All that a cage hears of what another has copied, and policy does not let it have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyOptions:
    pastes: int = 1
    seconds: int = CLIP_SECONDS


_MOST = {"pastes": CLIP_PASTES_MAX, "seconds": CLIP_SECONDS_MAX}


def check_type(untrusted_type: str) -> str:
    """The type, if it is one that can be copied; else UsageError."""
    if untrusted_type not in (TEXT, IMAGE):
        raise UsageError(f'"{escape(untrusted_type, limit=60)}" cannot be copied; {TEXT} and {IMAGE} can')
    return untrusted_type


def copy_options(untrusted_options: dict[str, Variant]) -> CopyOptions:
    """The options of Copy; UsageError names the one that is wrong."""
    values = {}
    for name, variant in untrusted_options.items():
        most = _MOST.get(name)
        if most is None:
            raise UsageError(f'there is no option "{escape(name, limit=40)}"')
        if variant.signature != "u" or not 1 <= variant.value <= most:
            raise UsageError(f"{name}: 1 to {most}")
        values[name] = int(variant.value)
    return CopyOptions(**values)


def nothing() -> PolicyRefused:
    return PolicyRefused(NOTHING)
