# SPDX-License-Identifier: LGPL-2.1-or-later
"""What follows from the mediators' manifests, as the text of other programs' files: buses, users, folders, units.

Law of this room: text in, text out.  It imports nothing, because what lays the runtime out uses it before there is
anything to import; whoever calls has checked the manifests (cage_runtime.manifest), so that no name needs quoting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cage_runtime.manifest import Mediator

IN_A_CAGE = "/opt/cage-runtime"
"""Where a cage has the runtime."""
CAGES_MEDIATOR = "990"
"""model.MEDIATOR_UID, the user of the cage halves."""
CONNECTIONS, CONNECTIONS_EACH = 14, 10
"""On a gateway's bus, in all and beside that for each mediator: its core half's, its cage half's and one for each of 8
calls that are under way; those of cage halves that are ending are among the first."""
_OF_A_CAGE_HALF = ("RequestName", "ReleaseName", "GetConnectionUnixUser")
"""What the half that serves may ask of its bus, beside what all may; a core half may nothing beside this."""
_OF_A_CORE_HALF = ("Hello", "AddMatch", "GetNameOwner", "NameHasOwner", "RequestName")


def gateway_bus(template: str, mediators: Sequence[Mediator], user_of: Callable[[str], str]) -> str:
    """The configuration of every gateway's bus; `user_of` a mediator's name is the user of its core half."""
    users = {mediator.name: user_of(mediator.name) for mediator in mediators}
    return _filled(template, {
        "CONNECT": [f'<allow user="{user}"/>' for user in dict.fromkeys(users.values())],
        "CALL": [rule for mediator in mediators for rule in _calls(mediator)],
        # A core half answers calls and makes none: through a gateway, any other's would take it for the cage.
        "SERVE": [rule for mediator in mediators for rule in
                  _serving(mediator, users[mediator.name], _OF_A_CORE_HALF, '<deny send_type="method_call"/>')],
        "CONNECTIONS": [str(CONNECTIONS + CONNECTIONS_EACH * len(mediators))],
        "DESCRIPTORS": [_descriptors(mediators)],
    })


def cage_bus(template: str, mediators: Sequence[Mediator]) -> str:
    """The configuration of a cage's own bus, where all cage halves have one user."""
    return _filled(template, {
        "CALL": [rule for mediator in mediators for rule in (*_calls(mediator), *_calls_of_jobs(mediator))],
        "SERVE": [rule for mediator in mediators for rule in
                  _serving(mediator, CAGES_MEDIATOR, _OF_A_CAGE_HALF, also=_of_jobs(mediator))],
        "DESCRIPTORS": [_descriptors(mediators)],
    })


def activation(mediator: Mediator) -> str:
    """The D-Bus service file by which a cage's bus starts the cage half."""
    return ("# SPDX-License-Identifier: LGPL-2.1-or-later\n[D-BUS Service]\n"
            f"Name={mediator.bus_name}\nExec={IN_A_CAGE}/bin/cage-mediator {mediator.name} --cage\n")


def sysusers(names: Iterable[str]) -> str:
    """The lines of sysusers.d(5) for the users of the mediators with these names."""
    return "".join(f'u cage-{name} - "Cage runtime mediator of {name}" / /usr/sbin/nologin\nm cage-{name} '
                   "cage-gateways\n" for name in names)


def tmpfiles(mediators: Iterable[Mediator]) -> str:
    """The lines of tmpfiles.d(5) for the folders of the mediators that have one."""
    return "".join(f"d {_folder(mediator)} 0700 cage-{mediator.name} cage-{mediator.name} -\n"
                   for mediator in mediators if mediator.folder)


def drop_in(mediator: Mediator) -> str | None:
    """What the unit of its core half may beside what all of them may; None for nothing."""
    if mediator.folder is None:
        return None
    return f"# SPDX-License-Identifier: LGPL-2.1-or-later\n[Service]\nReadWritePaths={_folder(mediator)}\n"


def _folder(mediator: Mediator) -> str:
    return f"/var/lib/cage-runtime/{mediator.folder}"


def _descriptors(mediators: Iterable[Mediator]) -> str:
    return str(max((mediator.descriptors for mediator in mediators), default=0))


def _calls(mediator: Mediator) -> list[str]:
    return [f'<allow send_destination="{mediator.bus_name}" send_path="{mediator.path}"\n'
            f'       send_interface="{mediator.bus_name}" send_member="{method}"/>' for method in mediator.methods]


def _of_jobs(mediator: Mediator) -> list[str]:
    """The interfaces of the objects that a cage half has beside the one that every half has."""
    return [f"{mediator.bus_name}.Job", "org.freedesktop.DBus.Properties"] if mediator.jobs else []


def _calls_of_jobs(mediator: Mediator) -> list[str]:
    """Whose objects have no path that is known before; the cage half says whose each is."""
    if not mediator.jobs:
        return []
    of_jobs, of_properties = _of_jobs(mediator)
    each = ((of_jobs, "Cancel"), (of_properties, "Get"), (of_properties, "GetAll"))
    return [f'<allow send_destination="{mediator.bus_name}" send_path="{mediator.path}"\n'
            f'       send_interface="{mediator.bus_name}" send_member="ListJobs"/>',
            *(f'<allow send_destination="{mediator.bus_name}"\n'
              f'       send_interface="{interface}" send_member="{member}"/>' for interface, member in each)]


def _serving(mediator: Mediator, user: str, of_the_bus: Iterable[str], *first: str,
             also: Iterable[str] = ()) -> list[str]:
    """What the half that serves may on its bus, which is to have the name and answer calls of its interface, and of
    those that it has `also`."""
    rules = [*first, f'<allow own="{mediator.bus_name}"/>']
    rules += [f'<allow send_destination="org.freedesktop.DBus" send_path="/org/freedesktop/DBus"\n'
              f'       send_interface="org.freedesktop.DBus" send_member="{member}"/>' for member in of_the_bus]
    rules += [f'<allow receive_type="method_call" receive_interface="{interface}"/>'
              for interface in (mediator.bus_name, *also)]
    rules += ['<allow send_requested_reply="true" send_type="method_return"/>',
              '<allow send_requested_reply="true" send_type="error"/>']
    return [f'<policy user="{user}">', *("  " + rule.replace("\n", "\n  ") for rule in rules), "</policy>"]


def _filled(template: str, blocks: dict[str, list[str]]) -> str:
    """`template` with its @WORDS@: of one on a line of its own, each line of the block has that line's indent."""
    lines = []
    for line in template.splitlines():
        word = line.strip().strip("@")
        if word in blocks and line.strip() == f"@{word}@":
            indent = line[: line.index("@")]
            lines += [indent + each for block in blocks[word] for each in block.split("\n")]
            continue
        for word, block in blocks.items():
            line = line.replace(f"@{word}@", "".join(block))
        lines.append(line)
    return "\n".join(lines) + "\n"
