# SPDX-License-Identifier: LGPL-2.1-or-later
"""What befell a cage, for whoever may read its log, who is no administrator by that."""

from __future__ import annotations

import json
from typing import Any

from cage_runtime.audit.chain import Chain
from cage_runtime.audit.event import Kind
from cage_runtime.model import AUDIT_TAIL_MAX, Action
from cage_runtime.text import quoted

TRUTH_OF_REFUSAL = ("reason", "rule", "flow")
"""Fields of a decision that say more of the target than its source may know: that it is there, and its level."""


def of_cage(chain: Chain, uuid: str) -> list[str]:
    """A line for each record of the cage among the last AUDIT_TAIL_MAX."""
    events = (json.loads(record) for record in chain.tail(AUDIT_TAIL_MAX) if f'"uuid":"{uuid}"' in record)
    return [_shown(event) for event in events if event["kind"] != Kind.REFUSED]  # which did not befall it


def _shown(event: dict[str, Any]) -> str:
    """A record of the chain as a line for whose cage it is; its values are escaped already.

    Why a request was refused stands in the chain alone: the target may be another person's.
    """
    refused = event["kind"] == Kind.DECISION and event["fields"].get("decision") != Action.ALLOW
    left_out = ("cage", "uuid", *(TRUTH_OF_REFUSAL if refused and "target" in event["fields"] else ()))
    fields = " ".join(f"{key}={quoted(value)}" for key, value in event["fields"].items() if key not in left_out)
    return f"{event['time']} {event['kind']} {fields}".rstrip()
