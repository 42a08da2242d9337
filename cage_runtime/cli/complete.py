# SPDX-License-Identifier: LGPL-2.1-or-later
"""cagectl --complete: the names that a shell offers while somebody types.

Law of this room: it is quick and silent, whatever happens; it starts nothing and asks nobody for a password; and what
it prints is names, because shells expand what they are given to offer.
"""

from __future__ import annotations

import re

from cage_runtime.cli.client import CORE_NAME, CORE_PATH
from cage_runtime.errors import CageError
from cage_runtime.sdbus import BusError, Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SECONDS = 1.0
"""How long somebody who has pressed Tab waits for a core that hangs."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*\Z")


def names(words: list[str]) -> list[str]:
    """What `words` ask for: ["cages"], or ["applications", WORD…], those of the cage that the last of WORD… names.

    WORD… is the command line so far; options in it do not count.  Nothing for whatever goes wrong.
    """
    kind, line = "".join(words[:1]), [word for word in words[1:] if not word.startswith("-")]
    if kind == "cages":
        found = _asked("List", "a{sv}", {}, key="name")
    elif kind == "applications" and line:
        found = _asked("ListApplications", "sa{sv}", line[-1], {}, key="application")
    else:
        found = []
    return sorted({name for name in found if _NAME.match(name)})


def _asked(member: str, signature: str, *values: object, key: str) -> list[str]:
    try:
        rows: list[dict[str, Any]]
        (rows,) = Connection().call(
            CORE_NAME, CORE_PATH, f"{CORE_NAME}.Manager", member, signature, values,
            returns="aa{sv}", timeout=SECONDS, quietly=True,
        )  # fmt: skip
    except (BusError, CageError, OSError):
        return []
    return [str(row.get(key, "")) for row in rows]
