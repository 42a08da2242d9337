# SPDX-License-Identifier: LGPL-2.1-or-later
"""The dictionaries of the bus: options that come as types, words that go."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from dbus_fast import Variant

from cage_runtime.config import convert

_Options = TypeVar("_Options", bound=msgspec.Struct)


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


def options(untrusted_options: dict[str, Variant], kind: type[_Options]) -> _Options:
    """The a{sv} of a call as a `kind`; UsageError names an option that is unknown or of the wrong type."""
    return convert({key: variant.value for key, variant in untrusted_options.items()}, kind)


def text(values: dict[str, str]) -> dict[str, Variant]:
    return {key: Variant("s", value) for key, value in values.items()}
