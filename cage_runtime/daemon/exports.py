# SPDX-License-Identifier: LGPL-2.1-or-later
"""Menu entries of applications in cages: EXPORTS/UID/share/applications/CAGE.APPLICATION.desktop.

Law of this room: which cages a person has is nobody else's to know.  EXPORTS can be entered and not listed; EXPORTS/UID
belongs to caged and is opened to that person by an access control list, or else not at all: a file system that has
none gets no entries.  Each file is whole or not there, and what no cage accounts for is removed when caged starts.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cage_runtime.daemon.state import Record
from cage_runtime.errors import UntrustedSource
from cage_runtime.flatpak.export import render_entry

LOG = logging.getLogger(__name__)

_ACL = "system.posix_acl_access"
_VERSION = 2
_OWNER, _USER, _GROUP, _MASK, _OTHERS = 0x01, 0x02, 0x04, 0x10, 0x20
_NONE, _READ_AND_ENTER, _ALL = 0, 5, 7
_NOBODY = 0xFFFFFFFF
"""Stands where an entry names nobody (linux/posix_acl_xattr.h)."""


class Exports:
    def __init__(self, directory: Path, cagectl: str) -> None:
        self._directory, self._cagectl = directory, cagectl
        self.fault = ""
        """Why there are no entries, or not all, in a sentence for an administrator; empty where that is not so."""
        self._welcome: set[int] = set()

    def begin(self, records: Sequence[Record]) -> None:
        """Remove whatever is not of one of these cages."""
        known = {(record.owner, _name(record, application)) for record in records
                 for application in record.definition.apps.allow}
        owners = {str(record.owner) for record in records}
        try:
            for person in self._directory.iterdir():
                if person.name not in owners:
                    shutil.rmtree(person)
                    continue
                for entry in _applications(person).glob("*"):
                    if (int(person.name), entry.name) not in known:
                        entry.unlink()
        except OSError as error:
            self._say(error)

    def welcome(self, record: Record) -> None:
        """There is a cage: its owner has a directory from now on, so that whoever watches it sees the first entry."""
        if record.owner not in self._welcome:
            self._welcome.add(record.owner)
            try:
                self._open(record.owner)
            except OSError as error:
                self._say(error)

    def _open(self, owner: int) -> None:
        """Have a directory for the entries of that person, whom alone it lets in; OSError where it cannot be had."""
        person = self._directory / str(owner)
        person.mkdir(mode=0o700, exist_ok=True)
        try:
            os.setxattr(person, _ACL, _for(owner), follow_symlinks=False)
        except OSError:
            shutil.rmtree(person, ignore_errors=True)
            raise
        for directory in (person / "share", _applications(person)):
            directory.mkdir(mode=0o755, exist_ok=True)
            directory.chmod(0o755)

    def put(self, record: Record, application: str, untrusted_values: Mapping[str, str]) -> None:
        """Make the entry of an application in a cage, of what that says of itself; none where it says nothing."""
        try:
            if not untrusted_values:
                self.drop(record, application)
                return
            text = render_entry(untrusted_values, cage=record.name, application=application, cagectl=self._cagectl)
            self._open(record.owner)
            self._write(record.owner, _name(record, application), text)
        except UntrustedSource as error:
            LOG.warning("%s: %s", record.name, error.sentence)
            self.drop(record, application)
        except OSError as error:
            self._say(error)

    def _write(self, owner: int, name: str, text: str) -> None:
        directory = _applications(self._directory / str(owner))
        new = directory / f".{name}.new"
        new.write_text(text, encoding="utf-8")
        new.chmod(0o644)
        new.rename(directory / name)

    def has(self, record: Record, application: str) -> bool:
        try:
            return _applications(self._directory / str(record.owner)).joinpath(_name(record, application)).exists()
        except OSError as error:
            self._say(error)
            return False

    def drop(self, record: Record, application: str) -> None:
        """Remove the entry of an application in a cage, if there is one."""
        try:
            _applications(self._directory / str(record.owner)).joinpath(_name(record, application)).unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            self._say(error)

    def forget(self, record: Record, others: Iterable[Record]) -> None:
        """The cage is gone; with their last one, a person's directory goes too."""
        for application in record.definition.apps.allow:
            self.drop(record, application)
        if record.owner not in {other.owner for other in others}:
            self._welcome.discard(record.owner)
            shutil.rmtree(self._directory / str(record.owner), ignore_errors=True)

    def _say(self, error: OSError) -> None:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            self.fault = (f"applications in cages are not in anybody's menu, because the file system of "
                          f"{self._directory} has no access control lists")
        else:
            self.fault = f"applications in cages may be missing in menus: {error}"
        LOG.warning("%s", self.fault)


def _name(record: Record, application: str) -> str:
    return f"{record.name}.{application}.desktop"


def _applications(person: Path) -> Path:
    return person / "share/applications"


def _for(uid: int) -> bytes:
    """The access control list of a directory that its owner may change and `uid` read and enter, and nobody else."""
    entries = ((_OWNER, _ALL, _NOBODY), (_USER, _READ_AND_ENTER, uid), (_GROUP, _NONE, _NOBODY),
               (_MASK, _READ_AND_ENTER, _NOBODY), (_OTHERS, _NONE, _NOBODY))
    return struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
