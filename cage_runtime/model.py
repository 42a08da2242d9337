# SPDX-License-Identifier: LGPL-2.1-or-later
"""The words of the project as types, and every bound that a caller can move (style rule 11).

Data flows between the rooms as these frozen values; nothing here reads a file or calls the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from cage_runtime.errors import InvalidName, UnknownLevel, UsageError

# --- bounds ----------------------------------------------------------------------------------------------------
NAME_MAX = 31
"""Characters in a cage's name."""
CAGES_MAX = 1000
"""Cages that may be defined on one host; the pool of id ranges holds 4 094."""
CAGES_PER_PERSON = 64
"""Those of them that are one person's; root's may be all."""
DISPOSABLES_PER_CAGE = 4
"""Disposable cages that one cage may have at once, with those that they have made."""
DISPOSABLES_PER_PERSON = 16
"""Those of one person's cages together, root's too; but a cage that has none may have one all the same."""
DISPOSABLE_SECONDS = 30.0
"""A disposable cage in which nothing has been started for so long after its birth ends."""
CLIP_BYTES_MAX = 1024**2
"""Bytes of what is copied for another cage to paste."""
IMAGE_BYTES_MAX = 8 * 1024**2
"""Bytes of an image that is copied so, before and after it is compressed again."""
IMAGE_SIDE_MAX, IMAGE_PIXELS_MAX, IMAGE_RAW_BYTES_MAX = 16_384, 16 * 1024**2, 64 * 1024**2 + 16_384
"""Pixels of one side of it, of all of it, and their bytes, decompressed, with one more for each row."""
IMAGE_SECONDS = 20.0
"""Time in which one is compressed again; the core does that for one image after the other."""
IMAGE_BURST, IMAGES_PER_SECOND = 5, 0.2
"""Images of one cage that are, however fast they come, and those that are after that: each takes up to a second of a
processor."""
CLIPS_LENT_BYTES = 64 * 1024**2
"""Bytes of what one cage has pasted within LENT_SECONDS."""
CLIP_SECONDS, CLIP_SECONDS_MAX = 120, 3600
"""How long it can be pasted, where whoever copies says nothing, and at most."""
CLIP_PASTES_MAX = 100
"""How often it can be pasted at most."""
CLIP_BURST, CLIPS_PER_SECOND = 10, 1.0
"""Copies, and as many pastes, of one cage that are answered however fast they come, and those that are after that: a
cage that pastes has its question counted as one of the cage that copied."""
OPEN_SECONDS = 30.0
"""What a target has to begin to open what it was given."""
EDIT_SECONDS = 24 * 3600.0
"""How long a file that was opened elsewhere may be open there, and still come back."""
EDITS_PER_CAGE = 4
"""Files of one cage that are open elsewhere and may come back, at once."""
EDITED_BYTES_MAX = 64 * 1024**2
"""Bytes of a file that comes back, whatever the policy says."""
LENT_SECONDS = 300.0
"""How long a cage may take to read what the core has handed it and holds for it, in memory or on its disk."""
EDITED_WAIT_SECONDS = 600.0
"""What one call waits for a file to come back; whoever wants to wait longer calls again."""
EDITED_KEPT_SECONDS = 300.0
"""How long a file that has come back waits for whoever asked for it."""
COMPARTMENTS_MAX = 16
"""Compartments of one cage."""
DESCRIPTION_MAX = 200
"""Characters in a definition's description."""
DEFINITION_BYTES_MAX = 64 * 1024
"""Bytes in a cage.toml."""
POLICY_BYTES_MAX = 1024 * 1024
"""Bytes in one policy file (M6)."""
POLICY_LINE_MAX = 4096
"""Bytes in one line of policy (M6)."""
POLICY_RULES_MAX = 100_000
"""Rules in force at once, over all files."""
POLICY_FAULTS_MAX = 1000
"""Faults of the policy files that are told at once."""
POLICY_FINDINGS_MAX = 500
"""Findings of one kind that are told of a policy without faults."""
POLICY_CHANGES_MAX = 10_000
"""Differences between two policies that are told at once."""
GRAPH_CAGES_MAX = 200
"""Cages in one picture of what may flow."""
TRIED_FILES_MAX = 100
"""Policy files that are not installed, of one question about them."""
TRIED_BYTES_MAX = 4 * 1024**2
"""Bytes of all of them."""
POLICY_FILES_MAX = 1000
"""Policy files that are read for one policy, each as often as it is included (M6)."""
POLICY_TOTAL_BYTES_MAX = 16 * 1024**2
"""Bytes of all of them (M6)."""
POLICY_INCLUDE_DEPTH = 8
"""Files that may be within one another by !include (M6)."""
POLICY_TYPES_MAX = 32
"""Types that one rule may name."""
POLICY_NUMBER_MAX = 1_000_000
"""The highest number that a rule may give, of uses or of files."""
POLICY_SECONDS_MAX = 30 * 24 * 3600
"""The longest time that a rule may have an answer stand."""
REDIRECTS_MAX = 8
"""Rules that may send one request on, one after the other (M4)."""
CHOICES_MAX = 64
"""Targets among which a person may choose at once."""
TAGS_MAX = 16
"""Tags of one cage."""
AUDIT_FIELDS_MAX = 32
"""Fields of one audit record; further ones are counted and left out."""
AUDIT_VALUE_MAX = 400
"""Characters of one value in an audit record, before escaping."""
AUDIT_RECORD_BYTES_MAX = 256 * 1024
"""Bytes of one audit record as written: 32 fields, every character of them escaped, fit."""
AUDIT_FILE_BYTES = 16 * 1024**2
"""Size at which the audit chain goes on in the next file."""
AUDIT_TAIL_MAX = 10_000
"""Audit records given out at once."""
APPLICATION_MAX = 200
"""Characters in an application's id: the name of its menu entry, which has the cage's before it and is written under
another name first, stays below FILE_NAME_BYTES."""
ARGV_MAX = 2000
"""Arguments of a command started in a cage."""
ARGV_BYTES_MAX = 96 * 1024
"""Bytes of all arguments of a command started in a cage, as JSON, in which they travel (SPAWNER_MESSAGE_MAX)."""
ARGUMENT_MAX = 64 * 1024
"""Characters of one of them."""
DIRECTORY_BYTES_MAX = 4096
"""Bytes of the directory in which a command is started (PATH_MAX of Linux)."""
PROCESSES_MAX = 256
"""Commands of `enter` and `run` that a cage may have going at once, counting the bus and mediators."""
SPAWNER_MESSAGE_MAX = 128 * 1024
"""Bytes in one message between caged, cage-spawner and cage-init."""
LOG_BYTES = 64 * 1024
"""Bytes of output of detached programs that a cage keeps for `cagectl logs`."""
STOP_SECONDS = 5.0
"""Time that `stop` gives a cage's processes after SIGTERM before they are killed."""
ENDING_SECONDS = 15.0
"""What caged and the spawner, when they are told to end, give the requests in hand.  Of calls that wait for the next
caged, the bus daemon keeps none longer than 25 seconds (dbus-daemon(1), service_start_timeout)."""
GIVING_UP_SECONDS = 3.0
"""What after that is given to the rest, which is cancelled, to say so."""
CORE_RETURN_SECONDS = 60.0
"""How long what was asked of a caged that ended waits for the next one."""
SPAWNER_RETURN_SECONDS = 30.0
"""How long what is asked of a spawner that is not there, or is ending, waits for the next one."""
REPEATS_MAX = 5
"""Times that a request is made again because whoever was at it ended: a request may be what ends it."""
TRANSFER_BYTES_MAX = 64 * 1024**3
"""Bytes in one transfer, whatever the policy says."""
STAGED_BYTES_PER_CAGE = TRANSFER_BYTES_MAX
"""Bytes of one source cage's transfers that the core holds copies of at once."""
TRANSFERS_PER_CAGE = 8
"""Transfers of one source cage that are under way at once (M13); one more is refused."""
CALLS_PER_CAGE = TRANSFERS_PER_CAGE
"""Calls of one cage that a mediator's core half answers at once, unless it says otherwise (M13).  Each has a connection
to the gateway, whose bus has a bound for them (generate.CONNECTIONS_EACH)."""
HEARD_BURST, HEARD_PER_SECOND = 1000, 200.0
"""Messages of one cage that a mediator's core half hears at once, and each second after that; others wait (M13).  Of a
call come three: it, and that its connection has come, and gone."""
REFUSED_COUNTS = 20
"""Messages for which a call counts that is one too many, or is malformed."""
TRANSFERS_PER_PAIR = 4
"""Those of them to one target, which may take its time: it must not hold up those to others."""
START_PATIENCE_SECONDS = 1.0
"""How long one of them waits until the one before it is ready in the target, which has to start a program for each."""
KEPT_PER_CAGE = 32
"""Transfers of one source cage that were accepted and have not arrived yet; one more is not accepted."""
KEPT_BYTES_PER_CAGE = 8 * 1024**3
"""Bytes of those of them that wait for their targets; where that would be more, nothing is accepted but a first one."""
KEPT_SECONDS = 24 * 3600.0
"""How long one waits, at most, before it is given up."""
KEPT_RECORD_BYTES = 16384
"""Bytes of the core's own record of a transfer."""
KEPT_ASIDE = 32
"""Files that were of no use and are kept for whoever looks into that; beyond, the next ones are deleted."""
TRANSFER_SECONDS = 900.0
"""Deadline of one transfer's copy; the worker is killed at it.  No delivery has longer, either."""
TRANSFER_JOBS_MAX = 200
"""Transfers of one cage that are under way or wait for their place in its own half; one more is refused there."""
TRANSFER_JOBS_LISTED = 64
"""Those of one user that are listed at once, the oldest ones: a message of a cage's bus has 32 KiB at most."""
PROGRESS_SECONDS = 0.25
"""Between two figures of how far a transfer is."""
PROGRESS_UNREAD_MAX = 1024
"""Bytes of them that nobody has read yet, beyond which further ones are left out."""
REPORT_BYTES_MAX = 4096
"""Bytes that whoever copies into a cage, or out of it, says of one copy."""
DELIVERY_SECONDS = 30.0
"""Deadline for the start of a delivery, and again for its rest, to which the size adds: the target can stop either."""
DELIVERY_BYTES_PER_SECOND = 2 * 1024**2
"""Bytes for which a delivery has a second more."""
DELIVERY_FILES_PER_SECOND = 200
"""Files of a tree for which it has one."""
DECISIONS_BURST = 100
"""Requests of one source cage that are decided and recorded however fast they come."""
DECISIONS_PER_SECOND = 10.0
"""Those that are after that; the others are refused, and recorded together."""
LOG_LINES_BURST = 500
"""Lines that one cage writes into the host's journal however fast they come (M82)."""
LOG_LINES_PER_SECOND = 10.0
"""Those that it may after that; the others are left out, and counted."""
LOG_CALLS_BURST = 50
"""Calls with such lines that are decided and recorded however fast they come."""
LOG_CALLS_PER_SECOND = 5.0
"""Those that are after that, a half of DECISIONS_PER_SECOND; the others wait."""
LOG_JOURNAL_SECONDS = 2.0
"""Time that a journal without room has to take the lines of one call; those that it does not take are left out."""
LOG_GAP_SECONDS = 10.0
"""Between a line that was left out and the line that says how many were."""
RECORDED_BURST = 100
"""Calls of one person's that write a record (Create, Enable, Enter ...) and are answered however fast they come."""
RECORDED_PER_SECOND = 2.0
"""Those that are after that, so that nobody fills the disk of the record in a day; root is not bounded."""
RECORDED_WAIT_SECONDS = 5.0
"""How long such a call waits for its turn; one that would have to wait longer is refused.  Who calls for one thing
after the other never waits longer than for one turn."""
REFUSALS_BURST = 20
"""Calls that one person is refused for want of authorisation and that are recorded each, however fast they come."""
REFUSALS_PER_SECOND = 0.2
"""Those that are after that; the others are recorded together, as a number."""
DENIALS_SECONDS = 60.0
"""Between two records of what the kernel refuses to one cage; between them the number grows, and no record is made."""
PERSONS_MAX = 256
"""Persons whose calls are counted apart at once; those who come when nobody can be forgotten are counted together."""
NOTIFICATION_LINE_MAX = 200
"""Characters of a line of a notification, before escaping; what is longer is cut."""
NOTIFICATION_LINES_MAX = 50
"""Lines of a notification's body; what is more is cut."""
NOTIFICATION_LABEL_MAX = 40
"""Characters of the label of a notification's action; what is longer is cut."""
NOTIFICATION_ACTIONS_MAX = 8
"""Actions of one notification."""
NOTIFICATIONS_PER_CAGE = 32
"""Notifications of one cage that are there at once; the oldest makes room."""
PORTAL_REQUESTS_MAX = 64
"""Requests of applications that a cage's portal has under way at once."""
PORTAL_REQUESTS_PER_CALLER = 8
"""Those of them that came over one connection."""
PORTAL_ADDRESSES_MAX = 100
"""Addresses of one message that an application composes."""
PORTAL_FILES_MAX = 32
"""Files that an application is handed at once, and that are expected to be written at once."""
PORTAL_SAVE_SECONDS = 3600.0
"""How long a file that an application said that it would save is waited for."""
REQUEST_ID_DIGITS = 32
"""Hexadecimal digits of a request's id."""
SIGNATURE_BYTES_MAX = 8192
"""Of a file's signature, as ssh-keygen -Y sign makes it."""
RECEIPT_BYTES_MAX = 8192
"""Bytes of a receipt: its longest value, a file's name with every character escaped, has not half of that."""
RECEIPTS_PER_CAGE = TRANSFERS_PER_CAGE
"""Requests of one source cage that were confirmed and whose receipt may still be asked for; the oldest makes room."""
JOBS_MAX = 64
"""Jobs that are under way or whose results can still be had."""
JOBS_PER_PERSON = 8
"""Those of them that one person started; root may have all."""
CALLS_AT_ONCE = 512
"""Calls that are being answered at the same time on one connection to a bus, over all callers; one more is refused."""
CALLS_PER_PERSON = 32
"""Those of them that one person made, on however many connections, so that no one person can have all; root and the
mediators, which speak for all cages, are not bounded by it.  A session needs a call only to begin: how many go on is
bounded by the cages that a person may have and PROCESSES_MAX in each."""
CORE_CALLS_AT_ONCE = 80
"""Calls of one core half to caged that wait for an answer, which each comes at once; a bus daemon lets a connection
have 128 (dbus-daemon(1), max_replies_per_connection)."""
CORE_STARTS_AT_ONCE = 40
"""Those besides that have something started in a cage, which may take its time."""
QUESTIONS_PER_PERSON = 4
"""Questions for a password that polkit has open at once for one person's calls."""
QUESTION_SECONDS = 180.0
"""Time in which a person has to answer one."""
AUTHORISATION_SECONDS = 25.0
"""Time in which polkit has to answer by itself."""
PROMPTS_PER_CAGE = 4
"""Questions about one cage's requests that are open at once (M14); one more is a refusal."""
PROMPTS_PER_PERSON = 32
"""Those about all cages of one person."""
PROMPTS_MAX = 1024
"""Those of all persons."""
WAITING_PER_CAGE = 256
"""Requests of one cage that wait for a person's answer; equal ones wait for the same."""
PROMPT_SECONDS = 180.0
"""How long a question is open."""
TICKET_SECONDS = 120
"""How long a core half has to act on what caged has permitted."""
TICKET_MAX = 1024
"""Characters of what it shows for that."""
ANSWER_SECONDS = 60.0
"""How long an answer that was given once waits for the request that it is for."""
GRANTS_PER_CAGE = 64
"""Standing answers to one cage's requests."""
GRANT_SECONDS_MAX = 24 * 3600
"""The longest time that a person may have an answer stand; longer than that is a rule's to say."""
AGENTS_PER_PERSON = 8
"""Programs of one person that are told of questions."""
AGENTS_MAX = 256
"""Those of all persons."""
LIMITS_MAX = 16 * CAGES_MAX
"""Pairs of a cage and a rule's limit= whose use is counted at once."""
SERVICES_TOLD_MAX = 256
"""Services that a cage is told it may ask for, so that they fit into a message of its bus."""
WHAT_LINES_SHOWN = 20
"""Lines of what a request is about that a person is shown of it."""
WHAT_LINE_MAX = 200
"""Characters of one of them, before escaping."""
WHAT_OPERATION_MAX = 1000
"""Characters by which a standing answer knows of what kind a request is."""
WHAT_TYPES_SHOWN = 20
"""MIME types of it that are shown."""
FILE_NAME_BYTES = 255
"""Bytes in a transferred file's name (NAME_MAX of Linux file systems)."""
RENAMES_MAX = 1000
"""Names `NAME (n)` that are tried before a delivery into a full inbox fails."""
MEDIATORS_MAX = 16
"""Mediators of one host; the bus of each gateway has connections for all of them."""
MEDIATOR_NAME_MAX = 20
"""Characters in a mediator's name, which its user's has too."""
MEDIATOR_METHODS_MAX = 16
"""Methods of a mediator that a cage may call."""
MEDIATOR_SERVICES_MAX = 16
"""Services, by policy's word, of one mediator."""
MEDIATOR_DESCRIPTORS_MAX = 4
"""Descriptors in one message between the halves of a mediator, and between a core half and caged."""
STREAMS_PER_CAGE = 16
"""Calls of one source cage's to services of other cages that go on at once (M13); one more is refused."""
STREAMS_PER_PAIR = 8
"""Those of them to one target."""
CALL_BYTES_MAX = 1024**4
"""Bytes that a call may send each way, whatever the policy says."""
CALL_SECONDS = 24 * 3600.0
"""What a call may take in all."""
CALL_IDLE_SECONDS = 3600.0
"""How long a call goes on in which nothing is sent either way."""
ONE_WAY_PER_CAGE = 2
"""One-way calls of one source cage that are being taken at once."""
ONE_WAY_MAX = 64
"""Those of all cages, and again those that are being sent on: with the next bound, 512 MiB of the core's memory."""
CALL_ONE_WAY_BYTES_MAX = 4 * 1024**2
"""Bytes of a one-way call, which the core keeps in memory until there are no more to come."""
DEFAULT_TASKS = 4096
"""Processes and threads of a cage whose definition says nothing; enforced where the host can."""
DEFAULT_TMP_BYTES = 256 * 1024**2
"""Size of each writable tmpfs of a cage (/tmp, /run, /dev/shm)."""
DEFAULT_EPHEMERAL_BYTES = 1024**3
"""Size of the home of an ephemeral cage, which is a tmpfs, where the definition gives no `disk`."""

# --- ids -------------------------------------------------------------------------------------------------------
ID_RANGE = 65536
"""Ids in a cage's range: uid 0 to 65535 inside."""
FIRST_RANGE, LAST_RANGE = 0x7000, 0x7FFD
"""Range numbers (host uid / 65536): 0x70000000 up to systemd's "foreign" range at 0x7FFE0000; nobody else
allocates there (systemd, doc/UIDS-GIDS.md), and Debian's subuids lie below."""
USER_UID = 1000
"""The session's uid and gid inside a cage."""
MEDIATOR_UID = 990
"""uid and gid of the cage halves and of the cage's bus inside a cage; apps cannot signal or trace it."""

ROOT_UID = 0
"""The uid of the host's administrator."""

CORE_BUS_NAME = "org.cageruntime.Core1"
CORE_PATH = "/org/cageruntime/Core1"

APPLICATION_PATTERN = r"^[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*){2,}\Z"
"""An application's id."""
_NAME = re.compile(r"[a-z][a-z0-9-]*\Z")
RESERVED_NAMES = frozenset({"core", "host", "all"})
DISPOSABLE_PREFIX = "disp-"
"""Before a number it is the name of a disposable cage, which the core gives and nobody else."""
_DISPOSABLE_NAME = re.compile(rf"{DISPOSABLE_PREFIX}[0-9]+\Z")


def check_cage_name(untrusted_name: str) -> str:
    """The name, if it may be a cage's: 1 to 31 of `a-z 0-9 -`, first a letter, not reserved; else InvalidName."""
    from cage_runtime.text import escape

    if len(untrusted_name) > NAME_MAX or not _NAME.match(untrusted_name):
        raise InvalidName(
            f'"{escape(untrusted_name, limit=40)}" cannot be a cage\'s name: '
            f'use 1 to {NAME_MAX} of a-z, 0-9 and "-", first a letter'
        )
    if untrusted_name in RESERVED_NAMES:
        raise InvalidName(f'"{untrusted_name}" is reserved and cannot be a cage\'s name; choose another')
    return untrusted_name


def is_cage_name(untrusted_name: str) -> bool:
    """Whether `check_cage_name` takes it."""
    try:
        check_cage_name(untrusted_name)
    except InvalidName:
        return False
    return True


def check_new_name(untrusted_name: str) -> str:
    """As `check_cage_name`, for a cage that a person makes: the names of disposable cages are the core's."""
    name = check_cage_name(untrusted_name)
    if _DISPOSABLE_NAME.match(name):
        raise InvalidName(f'"{name}" is a name that the core gives to disposable cages; choose another')
    return name


SIZE_PATTERN = r"^(?=[0-9]*[1-9])(?:[0-9]{1,12}[KM]?|[0-9]{1,9}G|[0-9]{1,6}T)\Z"
"""A size as people write it: not 0, and small enough (2**60) that no kernel interface wraps it around."""
_SIZE = re.compile(SIZE_PATTERN)


def parse_size(untrusted_size: str) -> int:
    """Bytes in `untrusted_size`, a whole number with an optional K, M, G or T (powers of 1024); else UsageError."""
    from cage_runtime.text import escape

    if not _SIZE.match(untrusted_size):
        shown = escape(untrusted_size, limit=40)
        raise UsageError(f'"{shown}" is not a size: write a number, perhaps with K, M, G or T, such as 512M')
    return int(untrusted_size.rstrip("KMGT")) << {"K": 10, "M": 20, "G": 30, "T": 40}.get(untrusted_size[-1], 0)


class CageState(StrEnum):
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    FAILED = "failed"


class Wall(StrEnum):
    """What stands around a cage, each by itself (wall.md)."""

    NAMESPACES = "namespaces"
    SECCOMP = "seccomp"
    LANDLOCK = "landlock"
    LSM = "lsm"


class Action(StrEnum):
    """What a rule says, and so what a decision is."""

    ALLOW = "allow"
    ASK = "ask"
    DENY = "deny"


class Flow(StrEnum):
    """The direction of data between two labels."""

    UP = "up"
    LEVEL = "level"
    DOWN = "down"
    INCOMPARABLE = "incomparable"


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """A level's rank and a set of compartments.  `rank` counts from the lowest level, which is 0."""

    level: str
    rank: int
    compartments: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return "+".join([self.level, *sorted(self.compartments)])

    def dominates(self, other: Label) -> bool:
        return self.rank >= other.rank and self.compartments >= other.compartments

    def flow_to(self, target: Label) -> Flow:
        if self.rank == target.rank and self.compartments == target.compartments:
            return Flow.LEVEL
        if target.dominates(self):
            return Flow.UP
        return Flow.DOWN if self.dominates(target) else Flow.INCOMPARABLE


@dataclass(frozen=True, kw_only=True, slots=True)
class Levels:
    """The host's levels from lowest to highest, and its compartments (levels.toml)."""

    names: tuple[str, ...]
    compartments: frozenset[str] = frozenset()
    colours: Mapping[str, str] = field(default_factory=dict, hash=False)
    """By level, as `#rrggbb`; levels.toml need not give one to each."""

    def label(self, level: str, compartments: Iterable[str] = ()) -> Label:
        """The label of `level` and `compartments`; UnknownLevel or UsageError names what the host does not know."""
        from cage_runtime.text import escape

        if level not in self.names:
            raise UnknownLevel(f'there is no level "{escape(level, limit=40)}"; this host has {", ".join(self.names)}')
        wanted = frozenset(compartments)
        if unknown := sorted(wanted - self.compartments):
            there = ", ".join(sorted(self.compartments)) or "none; levels.toml names them"
            raise UsageError(f'there is no compartment "{escape(unknown[0], limit=40)}"; this host has {there}')
        return Label(level=level, rank=self.names.index(level), compartments=wanted)


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """One life of a cage: the name may come again after `destroy`, the uuid never does."""

    name: str
    uuid: str
    label: Label
    owner: int
    """The uid of the person on the host whose cage it is."""
    tags: frozenset[str] = frozenset()


CORE_TARGET = "@core"
"""The target of what the core itself does."""
DISPOSABLE_TARGET = "@disposable"
"""The target that is a cage made for the request, from the template that may follow after a colon."""
DISPOSABLE_TEMPLATE = "disposable"
"""The template of disposable cages where the request names none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What policy is asked.  The source is who the gateway says it is; the target is only what was written: a cage's
    name, CORE_TARGET, DISPOSABLE_TARGET, or nothing."""

    service: str
    argument: str
    source: Instance
    target_name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceKind:
    """What the manifest of its mediator says of a service."""

    one_way: bool
    """Nothing comes back but whether it was accepted."""
    parameters: frozenset[str]
    """Those of `max-size max-files types transform require user` that it keeps; and `direction`, where a rule can make
    it one-way."""
    looks_first: bool = False
    """Its delivery half starts before anybody is asked, and waits: what a person is shown is found out there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """`limit=N/s|min|h`: so many uses in so many seconds."""

    count: int
    seconds: float


class Direction(StrEnum):
    """`direction=`: whether anything may come back to the source."""

    ONE_WAY = "one-way"
    TWO_WAY = "two-way"


class Logged(StrEnum):
    """`log=`: what is recorded of what a rule lets through."""

    NO = "no"
    META = "meta"
    DIGEST = "digest"


class ReceiptOutcome(StrEnum):
    """What a receipt says that came of a request, as far as its source may hear it."""

    ACCEPTED = "accepted"
    """Nothing comes back (direction=one-way), and it was permitted, whole, and is sent on."""
    ARRIVED = "arrived"
    SKIPPED = "skipped"
    """Nothing was delivered because the name is taken, as asked for."""
    HANDED_OVER = "handed-over"
    """To a target of another level, which has it, or has skipped it where that was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """What a rule adds to its action."""

    declassify: bool = False
    """Data may leave the label downwards or sideways."""
    max_size: int | None = None
    """Bytes in one transfer."""
    max_files: int | None = None
    types: tuple[str, ...] = ()
    """MIME types, with * for any subtype; empty for any."""
    limit: Limit | None = None
    stands: int | None = None
    """`for=`, in seconds: how long an answer stands where a person does not say, and the longest that it may."""
    until: float | None = None
    """Seconds of the epoch."""
    direction: Direction | None = None
    transform: str = ""
    """What changes the data on its way, `NAME` or `NAME:ARGUMENT`."""
    require: str = ""
    """What has to find it good, likewise."""
    log: Logged | None = None
    user: str = ""
    notify: bool = False
    autostart: bool = False
    target: str = ""
    """Where the request is sent on to, as a target is written; empty where the rule sends it nowhere else."""
    default_target: str = ""
    """What is preselected where a person chooses."""

    @property
    def one_way(self) -> bool:
        """`direction=one-way`."""
        return self.direction is Direction.ONE_WAY


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The answer: `rule` is FILE:LINE of the rule that decided, empty where none matched; `reason` one clause."""

    action: Action
    rule: str
    reason: str
    flow: Flow | None = None
    """None where the target is not a cage of this host."""
    target: str = ""
    """The name after redirects; "@core"; "@disposable:TEMPLATE"; empty where a person has to choose it."""
    parameters: Parameters = field(default_factory=Parameters)
    """Those in force."""
    choices: tuple[str, ...] = ()
    """Where a person is asked: the targets that may be chosen, each evaluated."""
    default_target: str = ""
    """The one of them that the rule preselects."""
    two_way: bool = False
    rule_text: str = ""
    """The rule, whole; empty where none matched."""

    @property
    def max_size(self) -> int | None:
        """Bytes that the rule lets one transfer have; None where it sets no bound of its own."""
        return self.parameters.max_size
