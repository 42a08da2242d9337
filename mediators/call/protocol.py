# SPDX-License-Identifier: LGPL-2.1-or-later
"""What crosses the wall in a call: the interface, its limits, and the checks that every half makes again.

Law of this room: of what the caller says, a service in another cage is given its name, one argument and bytes, never
an argument vector or an environment.  The delivery half starts once a call, so this file imports only what costs
nothing.
"""

from __future__ import annotations

import string

from cage_runtime.errors import UsageError
from cage_runtime.text import escape

BUS_NAME = INTERFACE = "org.cageruntime.Call1"
PATH = "/org/cageruntime/Call1"
CALL, SERVICES = "Call", "Services"
FAMILY = "call"
"""Policy calls the service NAME `call.NAME`."""

SERVICE_MAX = 64 - len(FAMILY) - 1
"""Characters in a service's name: with the family's, as many as policy takes."""
ARGUMENT_MAX = 64
_LETTERS = frozenset(string.ascii_letters)
_OF_NAMES = _LETTERS | frozenset(string.digits) | {"-"}
_FIRST_OF_ARGUMENTS = _LETTERS | frozenset(string.digits)
_OF_ARGUMENTS = _FIRST_OF_ARGUMENTS | frozenset("._-")

NO_SERVICE, NOT_EXECUTABLE, REFUSED, FAILED = 127, 126, 126, 125
"""Statuses that are not a service's own, as a shell and the commands have them."""


def check_service(untrusted_service: str) -> str:
    """The name, if it may be a service's: words of letters, digits and "-" with dots between; else UsageError."""
    words = untrusted_service.split(".") if len(untrusted_service) <= SERVICE_MAX else [""]
    if not all(word and word[0] in _LETTERS and _OF_NAMES.issuperset(word) for word in words):
        raise UsageError(f'"{escape(untrusted_service, limit=40)}" cannot be a service\'s name: use at most '
                         f'{SERVICE_MAX} of a-z, A-Z, 0-9, "-" and "." between words that begin with a letter')
    return untrusted_service


def check_argument(untrusted_argument: str) -> str:
    """The argument, which may be empty for none, if a service may be called with it; else UsageError."""
    if untrusted_argument and (
        len(untrusted_argument) > ARGUMENT_MAX or untrusted_argument[0] not in _FIRST_OF_ARGUMENTS
        or not _OF_ARGUMENTS.issuperset(untrusted_argument)
    ):
        raise UsageError(f'"{escape(untrusted_argument, limit=40)}" cannot be the argument of a call: use at most '
                         f'{ARGUMENT_MAX} of a-z, A-Z, 0-9, ".", "_" and "-", first a letter or a digit')
    return untrusted_argument


def split(untrusted_service: str) -> tuple[str, str]:
    """Name and argument of SERVICE or SERVICE+ARG; UsageError where either cannot be one, or nothing follows the +."""
    name, plus, argument = untrusted_service.partition("+")
    if plus and not argument:
        raise UsageError(f'"{escape(untrusted_service, limit=40)}" has a "+" and no argument after it')
    return check_service(name), check_argument(argument)


class Delivery:
    """What the core half asks of the delivery half; its standard streams are the call's.  Immutable by custom."""

    __slots__ = ("argument", "service", "source")

    def __init__(self, *, service: str, argument: str, source: str) -> None:
        self.service, self.argument, self.source = service, argument, source

    def arguments(self) -> list[str]:
        """The command line after --deliver, which caged puts there."""
        return [self.service, self.argument, self.source]


def parse_delivery(untrusted_arguments: list[str]) -> Delivery:
    """The delivery that `untrusted_arguments`, those after --deliver, ask for; else UsageError."""
    if len(untrusted_arguments) != 3:
        raise UsageError("--deliver takes SERVICE ARGUMENT SOURCE")
    service, argument, source = untrusted_arguments
    if not source or len(source) > ARGUMENT_MAX or not (_OF_NAMES | {"@"}).issuperset(source):
        raise UsageError("the source of a call is the name of a cage")
    return Delivery(service=check_service(service), argument=check_argument(argument), source=source)
