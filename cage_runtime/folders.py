# SPDX-License-Identifier: LGPL-2.1-or-later
"""The folders of the core below STATE, each for the one process that writes it; and what is wrong with one.

Law of this room: what is there is looked at and never mended.  It holds what people wrote, and whoever gave it to
somebody else, or made it read-only, is told so and what would put it right.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cage_runtime import manifest
from cage_runtime.config import RuntimeConfig, uid_of
from cage_runtime.errors import HostUnsupported


@dataclass(frozen=True, kw_only=True, slots=True)
class Owned:
    """A folder as it has to be."""

    path: Path
    uid: int
    mode: int
    earlier: int | None = None
    """Whose it was in an earlier version; the spawner takes it back."""

    @property
    def owner(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    def make(self) -> None:
        """Make it where it is missing; OSError where that cannot be."""
        self.path.mkdir(mode=self.mode, parents=True)
        self.path.chmod(self.mode)  # as long as it is ours
        os.chown(self.path, self.uid, pwd.getpwuid(self.uid).pw_gid)


def of_state(config: RuntimeConfig, *names: str) -> list[Owned]:
    """Those of `names`, or all, each after the one that it is in; HostUnsupported where a user of theirs is missing."""
    state, users = Path(config.paths.state), config.users
    folders = [Owned(path=Path(state, name), uid=uid_of(user), mode=mode) for name, user, mode in (
        ("", "root", 0o755), ("cages", users.caged, 0o700), ("audit", users.caged, 0o700),
        ("flatpak", users.apps, 0o755), ("storage", "root", 0o700),
        *((mediator.folder, users.mediator(mediator.name), 0o700)
          for mediator in manifest.load(config.paths) if mediator.folder),
    ) if name in names or not names]
    if "exports" in names or not names:
        folders.append(Owned(path=state / "exports", uid=0, mode=0o711, earlier=uid_of(users.caged)))
    return folders


def prepare(folders: Iterable[Owned]) -> None:
    """Make those that are missing, if all the others are as they have to be; HostUnsupported otherwise."""
    folders = list(folders)
    check_present(folders)
    for owned in folders:
        if not owned.path.exists():
            try:
                owned.make()
            except OSError as error:
                raise HostUnsupported(f"{owned.path} is missing and cannot be made: {error.strerror}"
                                      f"{_advice(error.errno)}") from error


def check_present(folders: Iterable[Owned]) -> None:
    """As `check`, for those that are there: what is missing is somebody's to make."""
    check([owned for owned in folders if os.path.lexists(owned.path)])


def check(folders: Iterable[Owned]) -> None:
    """HostUnsupported that says of each one that is not as it has to be what is wrong, and what would help."""
    if faults := [fault for owned in folders if (fault := _fault(owned))]:
        raise HostUnsupported("; ".join(faults))


def _fault(owned: Owned) -> str:
    path = owned.path
    try:
        found = path.stat()
    except FileNotFoundError:
        return f"{path} is missing: start cage-spawner, which makes it, or restore it from a backup"
    except OSError as error:
        return f"{path} cannot be looked at: {error.strerror}{_advice(error.errno)}"
    mode = stat.S_IMODE(found.st_mode) & 0o777
    if not stat.S_ISDIR(found.st_mode):
        return f"{path} is not a directory: move away what is there"
    if found.st_uid == owned.earlier:
        return ""
    if found.st_uid != owned.uid:
        # What is in those of root belongs to others too.
        chown = f"chown -R {owned.owner}:" if owned.uid else "chown root:"
        return f"{path} belongs to uid {found.st_uid} and has to belong to {owned.owner}: {chown} {path}"
    if mode != owned.mode:
        return f"{path} has the mode {mode:04o} and has to have {owned.mode:04o}: chmod {owned.mode:04o} {path}"
    if not os.access(path, os.W_OK, effective_ids=True):
        return f"{path} cannot be written{_advice(errno.EROFS)}"
    return ""


def _advice(number: int | None) -> str:
    if number == errno.EROFS:
        return ": its file system is read-only; mount it writable, or name another place in caged.conf"
    return ": the directories that it is in have to let everybody pass (chmod a+x)" if number == errno.EACCES else ""
