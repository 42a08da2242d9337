# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where caged puts menu entries: EXPORTS/UID/share/applications, of which the last folder alone is caged's.

The sessions of a person look for programs in EXPORTS/UID/share (XDG_DATA_DIRS): services of their bus, completions of
their shell.  So nothing there is caged's to write but the folder of the entries, which nobody runs without a click.

Law of this room: an earlier version gave all of it to caged, who may have put anything anywhere, and left lists on what
it owned.  What is not root's is never mended: it is moved aside, to a name that nobody looks at, made anew, and
deleted.  Nothing is lost with that, because caged makes every entry again when it starts.  No path is followed beyond
one name in a directory that is root's.
"""

from __future__ import annotations

import errno
import logging
import os
import pwd
import secrets
import stat
import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from cage_runtime.errors import CageError, HostUnsupported, RuntimeFailure
from cage_runtime.spawner.loop import Loop
from cage_runtime.spawner.mount import opened
from cage_runtime.spawner.spec import UID_MAX
from cage_runtime.spawner.storage import delete

LOG = logging.getLogger(__name__)

SHARE, APPLICATIONS = "share", "applications"
ASIDE = ".gone-"
"""What a name begins with that is moved aside; no uid does."""
LOOKED_AT_MAX, DELETED_AT_ONCE = 10_000, 1000
"""Entries of a folder that are looked at, and those that one rm(1) is given: the rest has its turn afterwards."""

_ACL, _DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"
_VERSION = 2
_OWNER, _USER, _GROUP, _MASK, _OTHERS = 0x01, 0x02, 0x04, 0x10, 0x20
_NONE, _ENTER, _READ_AND_ENTER, _ALL = 0, 1, 5, 7
_NOBODY = 0xFFFFFFFF
"""Stands where an entry names nobody (linux/posix_acl_xattr.h)."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Done = Callable[[CageError | None], None]


class Exports:
    def __init__(self, directory: Path, caged: int, loop: Loop) -> None:
        """Take back what an earlier version left; OSError where that cannot be."""
        self._directory, self._loop = directory, loop
        self._caged, self._group = caged, pwd.getpwuid(caged).pw_gid
        self._deleting = False
        self._next: tuple[frozenset[int], Done] | None = None
        """What is to be done when nothing is being deleted any more: so caged cannot fill the disk with what is."""
        with opened(os.open(directory, _FOLDER)) as top:
            _take(top)
            os.fchmod(top, 0o711)
        self._sweep()

    def welcome(self, uids: Collection[int], done: Done) -> None:
        """Have a folder for each of these persons and for nobody else; `done` is told, now or later."""
        if self._next is not None:
            self._next[1](RuntimeFailure("the folders of menu entries have been asked for anew meanwhile"))
            self._next = None
        if self._deleting:
            self._next = (frozenset(uids), done)
            return
        try:
            with opened(os.open(self._directory, _FOLDER)) as top:
                for uid in sorted(uids):
                    self._have(top, uid)
                wanted = {str(uid) for uid in uids}
                _clear(top, top, lambda name: name in wanted)
                self._delete(top)
        except OSError as error:
            done(self._why(error))
        else:
            done(None)

    def _sweep(self) -> None:
        """Of the persons' folders leave those that are root's, as they have to be; no other is."""
        try:
            with opened(os.open(self._directory, _FOLDER)) as top:
                persons = {name for name in _names(top) if _is_uid(name) and _owner(top, name) == 0}
                _clear(top, top, lambda name: name in persons)
                for name in persons:
                    self._have(top, int(name))
                self._delete(top)
        except OSError as error:
            LOG.warning("%s", self._why(error).sentence)

    def _have(self, top: int, uid: int) -> None:
        with _folder(top, top, str(uid)) as person:
            os.setxattr(person, _ACL, _for(uid, self._caged))
            _clear(top, person, lambda name: name == SHARE)
            with _folder(top, person, SHARE) as share:
                _without(share, _ACL)
                os.fchmod(share, 0o755)
                _clear(top, share, lambda name: name == APPLICATIONS)
                self._give(top, share)

    def _give(self, top: int, share: int) -> None:
        """Have the folder of the entries, which is caged's."""
        owner = _owner(share, APPLICATIONS)
        if owner == self._caged:
            return
        if owner is not None:
            _move_aside(top, share, APPLICATIONS)
        os.mkdir(APPLICATIONS, 0o700, dir_fd=share)
        with opened(os.open(APPLICATIONS, _FOLDER, dir_fd=share)) as applications:
            os.fchmod(applications, 0o755)
            os.fchown(applications, self._caged, self._group)

    def _why(self, error: OSError) -> CageError:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return HostUnsupported("applications in cages are not in anybody's menu, because the file system of "
                                   f"{self._directory} has no access control lists")
        return RuntimeFailure(f"applications in cages may be missing in menus: {self._directory}: {error}")

    # --- deleting, beside everything else: caged may have put much there, and go on with it ------------------------
    def _delete(self, top: int) -> None:
        with os.scandir(top) as entries:
            aside = (entry.name for entry in entries if entry.name.startswith(ASIDE))
            names = list(islice(aside, DELETED_AT_ONCE))
        if not names or self._deleting:
            return
        deleting = delete(*(self._directory / name for name in names))
        pidfd = os.pidfd_open(deleting.pid)
        self._deleting = True

        def deleted() -> None:
            self._loop.forget(pidfd)
            os.close(pidfd)
            self._deleting = False
            self._deleted(failed=deleting.wait() != 0)

        self._loop.watch(pidfd, deleted)

    def _deleted(self, *, failed: bool) -> None:
        if failed:
            LOG.warning("not all that was moved aside in %s could be deleted", self._directory)
        following, self._next = self._next, None
        if following is not None:
            self.welcome(*following)
        elif not failed:
            self._sweep()  # there may be more than was looked at


@contextmanager
def _folder(top: int, parent: int, name: str) -> Iterator[int]:
    """The folder `name` in `parent`, root's; it is made where there is none, or something else is in its place."""
    owner = _owner(parent, name)
    if owner not in (None, 0):
        _move_aside(top, parent, name)
    if owner != 0:
        os.mkdir(name, 0o700, dir_fd=parent)
    with opened(os.open(name, _FOLDER, dir_fd=parent)) as folder:
        _without(folder, _DEFAULT_ACL)
        yield folder


def _owner(parent: int, name: str) -> int | None:
    """Whose the folder `name` is; None where there is nothing, -1 where there is something else."""
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_uid if stat.S_ISDIR(found.st_mode) else -1


def _take(folder: int) -> None:
    """Have it root's, and rid of lists: caged's could let it write, and a default one where something is made below."""
    os.fchown(folder, 0, 0)
    _without(folder, _ACL)
    _without(folder, _DEFAULT_ACL)


def _without(folder: int, name: str) -> None:
    try:
        os.removexattr(folder, name)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in islice(entries, LOOKED_AT_MAX)]


def _is_uid(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name and int(name) <= UID_MAX


def _clear(top: int, folder: int, belongs: Callable[[str], bool]) -> None:
    """Move aside what does not belong in `folder`, and is not moved aside yet."""
    for name in _names(folder):
        if not belongs(name) and not (folder == top and name.startswith(ASIDE)):
            _move_aside(top, folder, name)


def _move_aside(top: int, folder: int, name: str) -> None:
    os.rename(name, ASIDE + secrets.token_hex(8), src_dir_fd=folder, dst_dir_fd=top)


def _for(uid: int, caged: int) -> bytes:
    """The access control list of a folder of root's that `uid` may read and enter, caged enter, and nobody else."""
    users = sorted({caged: _ENTER, uid: _READ_AND_ENTER}.items())
    entries = ((_OWNER, _ALL, _NOBODY), *((_USER, rights, user) for user, rights in users), (_GROUP, _NONE, _NOBODY),
               (_MASK, _READ_AND_ENTER, _NOBODY), (_OTHERS, _NONE, _NOBODY))
    return struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
