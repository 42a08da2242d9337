# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the chain has recorded, told to systemd-journald as well: for people, who search it by fields and may have it on
another host too.

The chain is the record.  So nothing here waits or fails: what a journal does not take is counted, and the number is
told with the next event that it takes.  Where there is no journald nothing happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cage_runtime.audit.event import Kind, Record
from cage_runtime.journald import SOCKET, Journald, Priority
from cage_runtime.model import AUDIT_VALUE_MAX

IDENTIFIER = "caged"
MESSAGE_CHARACTERS_MAX = 4 * AUDIT_VALUE_MAX
"""Of the sentence of one event; with all fields at their longest, one datagram holds the whole event."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """What a kind of event is to the journal."""

    id: str
    """MESSAGE_ID: never changes, and has an entry in resources/cage-runtime.catalog."""
    text: str
    """The sentence, with {fields} of the event; its reason follows by itself."""
    priority: Priority = Priority.INFO


MESSAGES: Mapping[Kind, Message] = {
    Kind.CORE_STARTED: Message(id="7f12f56e590b4af4a898e4a9f2485908", text="The core has started"),
    Kind.CORE_STOPPED: Message(id="e3eb3e3bdd8549a7978c095202d8c520", text="The core was told to end"),
    Kind.RECOVERED: Message(id="74af1eeb6eed42cd9ad265810d18c60d", priority=Priority.WARNING,
                            text="What was cut off has been put in order"),
    Kind.CLOCK_SET_BACK: Message(id="f4cdc476b5e24217abf528240575585c", priority=Priority.WARNING,
                            text="The clock of this host was set back, to {to}"),
    Kind.CAGE_CREATED: Message(id="9e31413c7eeb40569d0debc1ad550562",
                            text="The cage {cage} was created at the level {level}"),
    Kind.CAGE_STARTED: Message(id="8f18854e968a4842a87a6eea59d584a9", text="The cage {cage} has started"),
    Kind.CAGE_ADOPTED: Message(id="785415419b934ef080a7daca7e4f3f94", text="The cage {cage} was found running"),
    Kind.CAGE_PAUSED: Message(id="2578c2bf85a44c37baac55869b510d58", text="The cage {cage} is paused"),
    Kind.CAGE_RESUMED: Message(id="24050d1854a44d688913b23c6ee9b374", text="The cage {cage} goes on"),
    Kind.CAGE_STOPPED: Message(id="87acec813593421e8160539c78686a7c", text="The cage {cage} is stopped"),
    Kind.CAGE_FAILED: Message(id="6826c615a1f846abaf71124a66c0a48f", priority=Priority.ERROR,
                            text="The cage {cage} does not work"),
    Kind.CAGE_DESTROYED: Message(id="14527a900951448183c6618ef907d701", text="The cage {cage} is destroyed"),
    Kind.CAGE_ENTERED: Message(id="613337c83c284a8da7b506ff91d617b5",
                            text="{command} is run in the cage {cage} as {as}"),
    Kind.COPY: Message(id="a25b9572e7f84b8e8569f668e677e5e2",
                       text="Copy {direction}: {path} of the cage {cage}"),
    Kind.CAGE_ENABLED: Message(id="1e00786bd8454a4aa93cc9b24500311c",
                            text="The cage {cage} will be started with the host"),
    Kind.CAGE_DISABLED: Message(id="12f5f164764e4cd296b7eff0f80a2e2e",
                            text="The cage {cage} will not be started with the host"),
    Kind.AUTOSTART_FAILED: Message(id="49e75cfbdbe645a8b4e24c253ed0e25b", priority=Priority.ERROR,
                            text="The cage {cage} was not started with the host"),
    Kind.REFUSED: Message(id="9fe992e4bf544f7a85345f8db3520535", priority=Priority.NOTICE,
                            text="uid {by} was refused {method}"),
    Kind.DECISION: Message(id="0d6598ce843c4c62bfe9facc41855395", text="{cage} asked for {service} towards {target}"),
    Kind.MALFORMED: Message(id="0589dfc7f6134e3b8ac565f931052c8c", priority=Priority.WARNING,
                            text="The cage {cage} asked for {service} in a way that no honest program does"),
    Kind.DENIED_BY_KERNEL: Message(id="c771f66349fb4a4f9d44ea9faeb945dd", priority=Priority.WARNING,
                            text="The kernel refused {operation} to the cage {cage}, {count} times"),
    Kind.CALLS_ANSWERED: Message(id="0ab879caadee4e66af49bcf07ef3652f",
                            text="{operation} of the cage {cage} was answered in the kernel's stead, {count} times"),
    Kind.TRANSFER: Message(id="fddc3e41bbda41988a46934ba5ffce1d", text="{service} of {cage} for {target}"),
    Kind.REMOTE_ADDED: Message(id="5480015934d34da6a05e1006e8a7a017",
                            text="{url} is a source of applications, by the name {remote}"),
    Kind.REMOTE_REMOVED: Message(id="5bd024f43ca24578872dd62715bacd91",
                            text="{remote} is no source of applications any more"),
    Kind.APPLICATION_INSTALLED: Message(id="77dc296d46ea4418865c54df2908a08c",
                            text="{application} is installed in the cage {cage}"),
    Kind.APPLICATION_UPDATED: Message(id="50b6c350955148568623302e5476bbc3",
                            text="{application} of the cage {cage} was updated"),
    Kind.APPLICATION_REMOVED: Message(id="d80565ee337c482b8d90e85e3eea2578",
                            text="{application} is removed from the cage {cage}"),
    Kind.APPLICATION_RUN: Message(id="e5dff3bc48fd4e7eb664d5d50c7f2dc6",
                            text="{application} is run in the cage {cage}"),
    Kind.PROMPT_OPENED: Message(id="72556dc9668b458d80ac1cf5e1f8099e",
                            text="A person is asked whether {cage} may use {service} towards {target}"),
    Kind.PROMPT_ANSWERED: Message(id="6485c508454346cd9bdea5041f2567ca",
                            text="{answer} was answered to {cage} for {service} towards {target} (stands: {stands})"),
    Kind.PROMPT_WITHDRAWN: Message(id="a9ff1af2d07143a3bbe8eb8dce63d31c",
                            text="The question about {cage} and {service} is none any more"),
    Kind.GRANT_MADE: Message(id="9b3d06ddb1854c3e9fcb25fa5fcbebdb",
                            text="{answer} stands for {cage} and {service} towards {target}"),
    Kind.GRANT_REVOKED: Message(id="db294ff688c845b5afb4ffbf039a95bd",
                            text="{answer} does not stand for {cage} and {service} towards {target} any more"),
    Kind.GRANT_EXPIRED: Message(id="05a9067620e5462fba0ce40d11ff7506",
                            text="The time of {answer} for {cage} and {service} towards {target} is over"),
    Kind.POLICY_LOADED: Message(id="2a27e8a53adb4323bd88259286152bbf", text="A policy of {rules} rules is in force"),
    Kind.POLICY_REFUSED: Message(id="ca60c436a3c34391bd06009f63fac6e3", priority=Priority.ERROR,
                            text="The policy on disk cannot be used"),
    Kind.RECEIPT_KEY_MADE: Message(id="4b752b18f64d4b7091c0bf22d155c9ba",
                            text="The core has made a key, with which it signs receipts"),
}
REFUSED = Priority.NOTICE
"""The priority of a decision that is not to allow."""
UNTOLD = Message(id="f8d26557b80d4afab868eccfa936f977", priority=Priority.WARNING,
                 text="{count} events were not told to the journal; cagectl audit tail shows them")
"""Not an event: what the journal did not take before."""

FIELDS = {
    "cage": "CAGE", "uuid": "CAGE_UUID", "mediator": "MEDIATOR", "service": "SERVICE", "target": "TARGET",
    "decision": "DECISION", "request": "REQUEST_ID", "flow": "FLOW", "name": "FILE_NAME", "size": "FILE_SIZE",
    "sha256": "FILE_SHA256", "level": "LEVEL", "application": "APPLICATION", "remote": "REMOTE", "by": "BY_UID",
    "method": "METHOD", "operation": "OPERATION", "count": "COUNT",
}
"""Field of an event → field of the journal.  What is not named here is in the sentence, or in the chain alone."""
_REASONS = ("reason", "why", "what", "fault", "outcome")
"""Fields of an event that say why, as the journal's REASON; an event has one of them."""
_WITH_SOURCE = frozenset({
    Kind.DECISION, Kind.MALFORMED, Kind.TRANSFER, Kind.PROMPT_OPENED, Kind.PROMPT_ANSWERED, Kind.PROMPT_WITHDRAWN,
    Kind.GRANT_MADE, Kind.GRANT_REVOKED, Kind.GRANT_EXPIRED,
})
"""Events of a request, whose cage is its SOURCE."""


class _Words(dict[str, str]):
    """The fields of an event; one that it does not have is a question mark in the sentence."""

    def __missing__(self, _key: str) -> str:
        return "?"


def fields_of(record: Record) -> dict[str, str]:
    """The journal's fields for an event, whose values are escaped and bounded already."""
    kind, found = Kind(record.event.kind), record.event.fields
    fields = {FIELDS[key]: value for key, value in found.items() if key in FIELDS}
    if kind in _WITH_SOURCE and "cage" in found:
        fields["SOURCE"] = found["cage"]
    file, colon, line = found.get("rule", "").rpartition(":")
    if colon:
        fields |= {"RULE_FILE": file, "RULE_LINE": line}
    if reason := _reason(found):
        fields["REASON"] = reason
    # Whoever has these on another host can tell that the chain was cut, or made anew.
    fields |= {"AUDIT_SEQUENCE": str(record.sequence), "AUDIT_HASH": record.hash}
    priority = MESSAGES[kind].priority
    if kind is Kind.DECISION and found.get("decision") != "allow":
        priority = REFUSED
    return _addressed(MESSAGES[kind].id, priority, sentence(kind, found)) | fields


def sentence(kind: Kind, found: Mapping[str, str]) -> str:
    """The event in words."""
    text = MESSAGES[kind].text.format_map(_Words(found))
    if kind is Kind.DECISION:
        text = _decision(found)
    if kind is Kind.REFUSED:
        text = _refused(found)
    reason = _reason(found)
    whole = f"{text}: {reason}" if reason else text
    return whole if len(whole) <= MESSAGE_CHARACTERS_MAX else whole[:MESSAGE_CHARACTERS_MAX] + "…"


def _reason(found: Mapping[str, str]) -> str:
    """Why, or what came of it; empty where the event says all by itself."""
    if "bytes-cut" in found:
        damage = f", and {found['damaged-file']} is damaged" if "damaged-file" in found else ""
        return f"{found['bytes-cut']} bytes of an unfinished record at the end of the audit chain{damage}"
    return next((found[key] for key in _REASONS if key in found), "")


def _decision(found: Mapping[str, str]) -> str:
    verb = "may" if found.get("decision") == "allow" else "may not"
    if "service" not in found:
        return f"{found.get('cage', '?')} {verb}"
    by = f" by {found['rule']}" if found.get("rule") else ""
    when = f" ({found['when']})" if "when" in found else ""
    return f"{found.get('cage', '?')} {verb} use {found['service']} towards {found.get('target', '?')}{by}{when}"


def _refused(found: Mapping[str, str]) -> str:
    who = f"uid {found['by']} was refused" if "by" in found else "Several persons were refused"
    return " ".join([who, *([found["method"]] if "method" in found else ()),
                     *([f"of the cage {found['cage']}"] if "cage" in found else ())])


def _addressed(message_id: str, priority: Priority, text: str) -> dict[str, str]:
    return {"MESSAGE": text, "MESSAGE_ID": message_id, "PRIORITY": str(int(priority)), "SYSLOG_IDENTIFIER": IDENTIFIER}


class Journal:
    """The journal of this host, if it has one."""

    def __init__(self, path: str = SOCKET) -> None:
        self._journald = Journald(path)
        self.untold = 0
        """Events that a journal which is there did not take, and has not been told of yet."""

    def tell(self, record: Record) -> None:
        """Tell the journal of what the chain has recorded, or count that it could not be told."""
        if self.untold and self._send(_addressed(
                UNTOLD.id, UNTOLD.priority, UNTOLD.text.format(count=self.untold)) | {"UNTOLD": str(self.untold)}):
            self.untold = 0
        if not self._send(fields_of(record)):
            self.untold += 1

    def _send(self, fields: Mapping[str, str]) -> bool:
        """Whether the journal took it; also where there is none, which misses nothing."""
        return self._journald.send(fields) is not False

    def close(self) -> None:
        self._journald.close()
