# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a notification server is told."""

from __future__ import annotations

from typing import Any

import pytest

from cage_runtime.desktop import notification
from cage_runtime.errors import RuntimeFailure

ALL = ("actions", "body", "body-markup")


def shown(capabilities: tuple[str, ...] = ALL, **more: Any) -> notification.Shown:
    values = {"kind": "notification", "source": "work", "source-level": "internal", "summary": "done", **more}
    return notification.shown(notification.read(values), capabilities)


@pytest.mark.parametrize("values", [{"kind": "notification"}, {"kind": 1, "source": "x"},
                                    {"kind": "x", "source": "x", "actions": [["a"]]}])
def test_what_is_none_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(RuntimeFailure, match="another version"):
        notification.read(values)


@pytest.mark.parametrize(("body", "with_markup"), [
    ("<a href='x'>y</a>", "&lt;a href='x'&gt;y&lt;/a&gt;"), ("&amp;&lt;", "&amp;amp;&amp;lt;"), ("a\nb", "a\nb")])
def test_text_stays_text(body: str, with_markup: str) -> None:
    """M50."""
    assert shown(body=body).body == with_markup
    assert shown(("body",), body=body).body == body


def test_who_speaks_comes_first() -> None:
    """M51."""
    assert shown(summary="vault (secret): x").summary == "work (internal): vault (secret): x"
    assert shown(**{"source-level": ""}).application == "Cage work"


@pytest.mark.parametrize(("urgency", "number"), [("low", 0), ("normal", 1), ("critical", 2), ("other", 1)])
def test_urgency(urgency: str, number: int) -> None:
    assert shown(urgency=urgency).urgency == number


def test_keys_are_ours_and_names_the_cage_s() -> None:
    it = shown(actions=[["default", "Show"], ["click", ""]])
    assert it.actions == ["a0", "Show", "default", "Open"]
    assert it.names == {"a0": "default", "default": "click"}
    assert shown((), actions=[["a", "A"]]).actions == []
