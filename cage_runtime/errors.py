# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one error tree.

Law of this room: every refusal is a type, and the type alone decides the exit status (interfaces: 1 failed,
2 usage, 125 the runtime itself, 126 refused) and the name of the D-Bus error.  The text is one sentence for a
person: what happened, to what, and what would help.  Nothing else in the project maps errors.
"""

from __future__ import annotations

BUS_ERROR_PREFIX = "org.cageruntime.Error."
STANDARD_ERROR_PREFIX = "org.freedesktop.DBus.Error."


class CageError(Exception):
    """Root of the tree; on its own it means that a request failed for a reason that its sentence gives."""

    exit_status = 1
    bus_prefix, bus_name = BUS_ERROR_PREFIX, "Failed"

    @property
    def bus_error(self) -> str:
        """The whole name of the D-Bus error."""
        return self.bus_prefix + self.bus_name

    @property
    def sentence(self) -> str:
        return str(self.args[0]) if self.args else self.bus_name


class UsageError(CageError):
    """The request itself is malformed: a bad name, an unknown option, a value out of its bounds."""

    exit_status = 2
    bus_name = "InvalidArgument"


class InvalidName(UsageError):
    bus_name = "InvalidName"


class DefinitionError(UsageError):
    """A configuration or definition file is wrong; the sentence names the file and the line."""

    bus_name = "InvalidDefinition"


class UnknownLevel(UsageError):
    bus_name = "UnknownLevel"


class ProtocolError(UsageError):
    """The call is none that the object answers to.  These have the names of the D-Bus specification, by which every
    client knows them; whoever is called by one of our own programs in this way is of another version."""

    bus_prefix, bus_name = STANDARD_ERROR_PREFIX, "NotSupported"


class UnknownObject(ProtocolError):
    bus_name = "UnknownObject"


class UnknownInterface(ProtocolError):
    bus_name = "UnknownInterface"


class UnknownMethod(ProtocolError):
    bus_name = "UnknownMethod"


class UnknownProperty(ProtocolError):
    bus_name = "UnknownProperty"


class PropertyReadOnly(ProtocolError):
    bus_name = "PropertyReadOnly"


class WrongSignature(ProtocolError):
    """The arguments are not of the types that the method takes."""

    bus_name = "InvalidArgs"


class NameTaken(CageError):
    bus_name = "NameTaken"


class NoSuchCage(CageError):
    bus_name = "NoSuchCage"


class NoSuchPrompt(CageError):
    """The question is not open any more, or not the caller's to answer."""

    bus_name = "NoSuchPrompt"


class NoSuchNotification(CageError):
    """The notification is not there any more, or not the caller's to act on."""

    bus_name = "NoSuchNotification"


class NoSuchGrant(CageError):
    """The standing answer is not there any more, or not the caller's to revoke."""

    bus_name = "NoSuchGrant"


class WrongState(CageError):
    """The cage is not in a state in which this can be done, for example `enter` of a stopped cage."""

    bus_name = "WrongState"


class NoSuchApplication(CageError):
    bus_name = "NoSuchApplication"


class UntrustedSource(CageError):
    """Software that cannot be traced to a pinned key: a remote without one, a commit that fails its signature."""

    bus_name = "UntrustedSource"


class RemoteUnavailable(CageError):
    """A source of applications that does not answer; nothing is known against it."""

    bus_name = "RemoteUnavailable"


class TransferFailed(CageError):
    """A transfer was permitted and could not be completed; nothing of it is visible in the target."""

    bus_name = "TransferFailed"


class Cancelled(CageError):
    """It was given up because whoever may have it so asked for that; nothing has come of it."""

    bus_name = "Cancelled"


class Refused(CageError):
    """Base of every refusal by policy or authorisation (exit status 126).  Fail closed: catch-alls raise this."""

    exit_status = 126
    bus_name = "Refused"


class PolicyRefused(Refused):
    """The policy refuses; the sentence says why, and the record by which rule."""

    bus_name = "PolicyRefused"


class TooOften(PolicyRefused):
    """It would be permitted, were it not for how often it was asked for just now."""

    bus_name = "TooOften"


class PolicySyntaxError(PolicyRefused):
    """A policy that cannot be read *is* a refusal: nothing can be allowed by it."""

    bus_name = "PolicySyntaxError"


class NotAuthorized(Refused):
    bus_name = "NotAuthorized"


class PrivateCage(NotAuthorized):
    """The cage is private: what would let somebody look into it is nobody's to do."""

    bus_name = "PrivateCage"


class AuthenticationNeeded(NotAuthorized):
    """A password would do, and the call does not allow to ask for one."""

    bus_name = "AuthenticationNeeded"


class TicketExpired(CageError):
    """What was permitted was not done in time, and would have to be permitted anew."""

    bus_name = "TicketExpired"


class RuntimeFailure(CageError):
    """The runtime itself failed or this host lacks what it needs (exit status 125)."""

    exit_status = 125
    bus_name = "RuntimeFailure"


class CutOff(RuntimeFailure):
    """Whoever was asked ended, or was cut off, before it answered: what it has done is not known."""

    bus_name = "CutOff"


class Unanswered(CutOff):
    """Whoever was asked is there, and has not answered in time."""

    bus_name = "Unanswered"


class NothingDone(RuntimeFailure):
    """Whoever was asked ended before anything could come of it: it can be asked again."""

    bus_name = "NothingDone"


class NobodyAnswers(RuntimeFailure):
    """There is nobody of that name on the bus, nor anybody who could be started."""

    bus_name = "NobodyAnswers"


class HostUnsupported(RuntimeFailure):
    """The host does not offer something that the request requires; the sentence names it and how to get it."""

    bus_name = "HostUnsupported"


class SpawnerUnavailable(RuntimeFailure):
    bus_name = "SpawnerUnavailable"


class NoSystemBus(RuntimeFailure):
    bus_name = "NoSystemBus"


def _subclasses(kind: type[CageError]) -> list[type[CageError]]:
    found = [kind]
    for child in kind.__subclasses__():
        found.extend(_subclasses(child))
    return found


BY_BUS_NAME: dict[str, type[CageError]] = {
    kind.bus_name: kind for kind in _subclasses(CageError) if not issubclass(kind, ProtocolError)
}
"""Every error of ours by the last part of its D-Bus name, for whoever receives one."""


def from_bus(error_name: str, sentence: str) -> CageError:
    """The error that `error_name` stands for; one that is not ours is a failure of the runtime."""
    ours = error_name.startswith(BUS_ERROR_PREFIX)
    kind = BY_BUS_NAME.get(error_name.removeprefix(BUS_ERROR_PREFIX)) if ours else None
    return kind(sentence) if kind else RuntimeFailure(sentence or error_name)
