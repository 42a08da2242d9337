# SPDX-License-Identifier: LGPL-2.1-or-later
"""What caged may ask of the spawner, and the spawner of cage-init: typed, bounded, decoded strictly.

One SOCK_SEQPACKET message is one request or one reply, JSON; descriptors ride beside it.  A message that does not
decode is a fault of the sender: the connection is closed.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from cage_runtime.decoding import decode
from cage_runtime.model import ARGUMENT_MAX, ARGV_MAX, CAGES_MAX, Wall

Uuid = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,30}\Z")]
Tree = Annotated[str, msgspec.Meta(pattern=r"^(app|runtime)/[A-Za-z0-9_][A-Za-z0-9_.-]*\Z", max_length=300)]
Text = Annotated[str, msgspec.Meta(max_length=ARGUMENT_MAX, pattern=r"^[^\x00]*\Z")]
Term = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9+.-]{0,31}\Z")]
Bytes = Annotated[int, msgspec.Meta(ge=4096, le=2**60)]
SENTENCE_MAX = 4000
"""Characters in what a failed request says."""
UID_MAX = 2**32 - 2
"""The number after it stands for no uid (chown(2))."""
Uid = Annotated[int, msgspec.Meta(ge=0, le=UID_MAX)]
Cells = Annotated[int, msgspec.Meta(ge=1, le=9999)]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the cgroup of a cage is to enforce; None leaves the kernel's default.  Sizes in bytes."""

    memory: Bytes | None = None
    memory_guarantee: Bytes | None = None
    cpus: Annotated[float, msgspec.Meta(gt=0, le=4096)] | None = None
    cpu_weight: Annotated[int, msgspec.Meta(ge=1, le=10000)] | None = None
    tasks: Annotated[int, msgspec.Meta(ge=16, le=4194304)] | None = None
    io_weight: Annotated[int, msgspec.Meta(ge=1, le=10000)] | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op"):
    id: Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class Describe(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="describe"):
    """What does this host offer?"""


class Standing(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="standing"):
    """Which cages run, and which have storage?"""


class MakeStorage(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="make-storage"):
    """An id range and a home for a new cage; an ephemeral one has neither on disk."""

    uuid: Uuid
    ephemeral: bool
    private: bool = False
    """For good: a cage with this storage is private, whatever its births say."""


class Keep(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="keep"):
    """The new cage is written down: its storage stays until it is condemned."""

    uuid: Uuid


class Condemn(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="condemn"):
    """The cage is destroyed: whatever happens from now on, its storage will be deleted."""

    uuid: Uuid


class Birth(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="birth"):
    """Start the cage: its namespaces, root, cgroup and cage-init."""

    uuid: Uuid
    name: Name
    level: Name
    compartments: list[Name]
    exec_home: bool
    limits: Limits
    processes: Annotated[int, msgspec.Meta(ge=16, le=4194304)]
    home_bytes: Bytes
    """Size of the home of an ephemeral cage."""
    home_files: Annotated[int, msgspec.Meta(ge=16, le=2**40)]
    private: bool = False
    """Nothing is started in it but applications by `flatpak run` and deliveries, and its log is nobody's."""
    require: Annotated[list[Wall], msgspec.Meta(max_length=4)] = []
    """It is not born where one of these is not enforced."""
    disposable: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.0
    """Where it is not 0 the cage ends by itself when nothing runs in it any more but its buses and what they have
    started, and when nothing has been started in it in the first so many seconds."""


class Expose(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="expose"):
    """Show these directories of the applications' installation in the running cage, read-only."""

    uuid: Uuid
    trees: Annotated[list[Tree], msgspec.Meta(max_length=64)]


class Conceal(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="conceal"):
    """Take them away again; what runs from them keeps them until it ends."""

    uuid: Uuid
    trees: Annotated[list[Tree], msgspec.Meta(max_length=64)]


class Terminal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    term: Term
    rows: Cells
    columns: Cells


class Spawn(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="spawn"):
    """Run a command in the cage.  Descriptors: the channel, and the standard input where `own_input`."""

    uuid: Uuid
    argv: Annotated[list[Text], msgspec.Meta(min_length=1, max_length=ARGV_MAX)]
    user: Literal["user", "root"] = "user"
    cwd: Text = ""
    """Empty for the user's home."""
    terminal: Terminal | None = None
    detached: bool = False
    """Output goes to the cage's log; the channel says whether the command started, and then ends."""
    own_input: bool = False
    serves: bool = False
    """It answers somebody outside of the cage who is not to hear all of it: its errors go to the cage's log, and it
    does not outlive its channel.  With `own_input` alone."""
    profile: Literal["session", "delivery"] = "session"


class OpenGateway(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="open-gateway"):
    """Start the bus of the cage's gateway, unless it runs, on the listening socket that comes with the request."""

    uuid: Uuid


class AdmitGateway(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="admit-gateway"):
    """From now on this cage and the core alone can connect to the listening socket that comes with the request, where
    the host has security contexts; it is to be that of the cage's gateway."""

    uuid: Uuid


class Enforced(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="enforced"):
    """What does the kernel enforce for the running cage, and what has it refused to it?"""

    uuid: Uuid


class Inspect(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="inspect"):
    """What is in the cage, without asking anything that is."""

    uuid: Uuid


class Logs(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="logs"):
    """The last that those commands printed in the cage that run detached."""

    uuid: Uuid


class Freeze(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="freeze"):
    uuid: Uuid
    frozen: bool


class Stop(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="stop"):
    """SIGTERM to all, SIGKILL to what is left after `seconds`; the reply comes when nothing is left."""

    uuid: Uuid
    seconds: Annotated[float, msgspec.Meta(ge=0, le=600)]


class Remove(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="remove"):
    """Delete the condemned (or never kept, or ephemeral) storage of a cage that does not run; its range is free."""

    uuid: Uuid


class Welcome(Request, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="welcome"):
    """These persons, and nobody else, have a folder for menu entries: as many as there may be cages."""

    uids: Annotated[list[Uid], msgspec.Meta(max_length=CAGES_MAX)]


AnyRequest = (
    Describe | Standing | MakeStorage | Keep | Condemn | Birth | Expose | Conceal | Spawn | Inspect | Logs | Freeze
    | Stop | Remove | OpenGateway | AdmitGateway | Enforced | Welcome
)

REPEATABLE = (Describe, Standing, Keep, Condemn, Expose, Conceal, Inspect, Logs, Freeze, Stop, Remove,
              OpenGateway, AdmitGateway, Enforced, Welcome)
"""What comes to the same if it is done again, and so may be asked of the next spawner where one has ended at it."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a request failed: `kind` is the bus_name of an error of cage_runtime.errors."""

    kind: Annotated[str, msgspec.Meta(max_length=64)]
    sentence: Annotated[str, msgspec.Meta(max_length=SENTENCE_MAX)]


class Standings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    running: dict[Uuid, float]
    """Since when, in seconds of the epoch."""
    paused: list[Uuid]
    gateways: list[Uuid]
    """Cages the bus of whose gateway runs."""
    new: list[Uuid]
    """Storage that was made and not kept."""
    stored: list[Uuid]
    """Storage that is kept."""
    ephemeral: list[Uuid]
    condemned: list[Uuid]


class Insight(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    processes: int
    """All that are in the cage, its own first one too."""
    documents: bool
    """Somebody may miss something if its home is deleted."""
    mediated: Counts = {}
    """Calls that were answered in the kernel's stead since its birth or the spawner's start, whichever came last."""


Operation = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z-]{0,31}\Z")]
Counts = Annotated[dict[Operation, Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]], msgspec.Meta(max_length=64)]
"""Of a cage since its birth, what the kernel has refused it or what was answered in the kernel's stead, how often."""


class Enforcement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `Enforced` answers."""

    xid: int
    """The number of the cage's security context; 0 where it has none."""
    lsm: str
    """Why that is not enforced, in a sentence; empty where it is."""
    denials: Counts


class Host(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the host offers to cages, for `doctor` and for refusing limits that cannot be enforced."""

    kernel: str
    cgroup: str
    controllers: list[str]
    landlock_abi: int
    user_namespaces: int
    memfd_noexec: bool
    lsm: str
    """Why there are no security contexts, and what would help, in a sentence; empty where they are enforced."""
    lsm_hooks: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Places in the kernel at which they are."""
    proc_mem: str = ""
    """Who may write to memory that is not mapped for it (the kernel's proc_mem.force_override): "always", "ptrace" or
    "never"; empty where the kernel is too old to be told."""
    ranges: int
    ranges_free: int


class Reply(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="reply", tag="reply"):
    id: int
    fault: Fault | None = None
    host: Host | None = None
    standings: Standings | None = None
    insight: Insight | None = None
    enforcement: Enforcement | None = None
    since: float = 0.0
    """When the cage was born that was asked for, in seconds of the epoch."""
    log: bytes = b""
    """As it was printed; base64 on the wire, so that its size there does not depend on what a cage prints."""


class Ended(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="reply", tag="ended"):
    """A cage ended, whether or not it was asked to stop."""

    uuid: Uuid
    answered: Counts = {}
    """How many of its system calls were answered in the kernel's stead, by their names."""


class GatewayEnded(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="reply",
                   tag="gateway-ended"):
    """The bus of a cage's gateway ended, and the cage goes on."""

    uuid: Uuid


class Listening(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="reply",
                tag="listening"):
    """Of cage-init, when it is connected to.  Descriptor: where the mediated calls of its cage wait for an answer."""

    born: Annotated[float, msgspec.Meta(ge=0, le=2**40)]
    """When its cage was, in seconds of the host's CLOCK_BOOTTIME."""


class Denied(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="reply", tag="denied"):
    """The kernel has refused more to a cage; all since its birth is counted, so that none is lost on the way."""

    uuid: Uuid
    xid: int
    denials: Counts


Event = Ended | GatewayEnded | Denied
AnyReply = Reply | Event
FromInit = Reply | Listening

_ENCODER = msgspec.json.Encoder()
_REQUESTS = msgspec.json.Decoder(AnyRequest)
_REPLIES = msgspec.json.Decoder(AnyReply)
_FROM_INIT = msgspec.json.Decoder(FromInit)


def encode(message: AnyRequest | AnyReply | Listening) -> bytes:
    return _ENCODER.encode(message)


def decode_request(untrusted_message: bytes) -> AnyRequest:
    """The request, or msgspec.DecodeError (of which a validation error is one)."""
    request: AnyRequest = decode(untrusted_message, _REQUESTS)
    return request


def decode_reply(untrusted_message: bytes) -> AnyReply:
    reply: AnyReply = decode(untrusted_message, _REPLIES)
    return reply


def decode_from_init(untrusted_message: bytes) -> FromInit:
    """What a cage-init says, or msgspec.DecodeError."""
    message: FromInit = decode(untrusted_message, _FROM_INIT)
    return message
