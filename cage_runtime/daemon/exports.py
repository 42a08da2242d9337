# SPDX-License-Identifier: LGPL-2.1-or-later
"""Menu entries of applications in cages: EXPORTS/UID/share/applications/CAGE.APPLICATION.desktop.

Law of this room: which cages a person has is nobody else's to know.  The folders are the spawner's to make, for those
persons that it is told of: EXPORTS can be entered and not listed, and EXPORTS/UID is opened to that person and to caged
by an access control list, so that a file system that has none gets no entries.  Nothing but `applications` is caged's
to write, because sessions look beside it for what they run.  Each file is whole or not there, and what no cage accounts
for is removed when caged starts.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path

from cage_runtime.daemon.state import Record
from cage_runtime.errors import CageError, UntrustedSource
from cage_runtime.flatpak.export import render_entry
from cage_runtime.model import CAGES_MAX

LOG = logging.getLogger(__name__)


class Exports:
    def __init__(self, directory: Path, cagectl: str, ask: Callable[[list[int]], Awaitable[object]]) -> None:
        """`ask` has the spawner make the folders of those persons, and of nobody else."""
        self._directory, self._cagectl, self._ask = directory, cagectl, ask
        self._refused, self._missing = "", ""
        """What the spawner has said last, and what went wrong with entries."""

    @property
    def fault(self) -> str:
        """Why there are no entries, or not all, in a sentence for an administrator; empty where that is not so."""
        return self._refused or self._missing

    async def welcome(self, owners: Iterable[int]) -> None:
        """These have cages: each has a folder from now on, so that whoever watches it sees the first entry."""
        try:
            await self._ask(sorted(set(owners))[:CAGES_MAX])
        except CageError as error:
            self._refused = error.sentence
            LOG.warning("%s", self._refused)
        else:
            self._refused = ""

    def welcomes(self, owner: int) -> bool:
        """Whether that person has a folder."""
        return os.path.isdir(self._applications(owner))

    def begin(self, records: Sequence[Record]) -> None:
        """Remove whatever is not of one of these cages."""
        known = {(record.owner, _name(record, application)) for record in records
                 for application in record.definition.apps.allow}
        try:
            for owner in {record.owner for record in records}:
                for entry in self._applications(owner).glob("*"):
                    if (owner, entry.name) not in known:
                        entry.unlink()
        except OSError as error:
            self._fail(error)

    def put(self, record: Record, application: str, untrusted_values: Mapping[str, str]) -> None:
        """Make the entry of an application in a cage, of what that says of itself; none where it says nothing."""
        try:
            if not untrusted_values:
                self.drop(record, application)
                return
            text = render_entry(untrusted_values, cage=record.name, application=application, cagectl=self._cagectl)
            self._write(record.owner, _name(record, application), text)
        except UntrustedSource as error:
            LOG.warning("%s: %s", record.name, error.sentence)
            self.drop(record, application)
        except OSError as error:
            self._fail(error)

    def _write(self, owner: int, name: str, text: str) -> None:
        directory = self._applications(owner)
        new = directory / f".{name}.new"
        new.write_text(text, encoding="utf-8")
        new.chmod(0o644)
        new.rename(directory / name)

    def has(self, record: Record, application: str) -> bool:
        try:
            return self._applications(record.owner).joinpath(_name(record, application)).exists()
        except OSError as error:
            self._fail(error)
            return False

    def drop(self, record: Record, application: str) -> None:
        """Remove the entry of an application in a cage, if there is one."""
        try:
            self._applications(record.owner).joinpath(_name(record, application)).unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            self._fail(error)

    def forget(self, record: Record) -> None:
        """The cage is gone."""
        for application in record.definition.apps.allow:
            self.drop(record, application)

    def _applications(self, owner: int) -> Path:
        return self._directory / str(owner) / "share/applications"

    def _fail(self, error: OSError) -> None:
        if self._refused and isinstance(error, FileNotFoundError):
            return  # for want of the folder, which has been told
        self._missing = f"applications in cages may be missing in menus: {error}"
        LOG.warning("%s", self._missing)


def _name(record: Record, application: str) -> str:
    return f"{record.name}.{application}.desktop"
