# SPDX-License-Identifier: LGPL-2.1-or-later
"""The registry: which cages there are, on disk, so that it survives kill -9 and power loss at any instant (law 9).

A cage is a directory CAGES/NAME with its definition and its instance record.  It comes to be by one rename and ends by
one rename; whatever else a crash leaves (`.new-…`, `.gone-…`) is removed at the next start.  Ephemeral cages are
kept the same way under RUN, which the next boot forgets.
"""

from __future__ import annotations

import errno
import os
import pwd
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from cage_runtime.config import Definition, parse_definition, read_text, render_definition
from cage_runtime.decoding import decode
from cage_runtime.errors import DefinitionError, NameTaken, UsageError
from cage_runtime.model import check_cage_name

_NEW, _GONE = ".new-", ".gone-"


class _InstanceFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    uuid: str
    created: str
    owner: int
    caller: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A cage as it is written down.  `fault` says what is wrong with a definition that cannot be read any more."""

    name: str
    uuid: str
    created: str
    """RFC 3339, UTC."""
    owner: int
    """The uid of the person on the host whose cage it is."""
    definition: Definition
    fault: str = ""
    caller: str = ""
    """Of a disposable cage, the uuid of the cage that it was made for, or of the one that this was made for where it is
    disposable too; empty of any other."""

    @property
    def ephemeral(self) -> bool:
        return self.definition.session.ephemeral

    @property
    def disposable(self) -> bool:
        return bool(self.caller)


def now() -> str:
    return moment(datetime.now(UTC).timestamp())


def moment(seconds: float) -> str:
    """Seconds of the epoch as RFC 3339, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class Registry:
    def __init__(self, persistent: Path, ephemeral: Path) -> None:
        self._directories = {False: persistent, True: ephemeral}
        self.faults: list[str] = []
        for directory in self._directories.values():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def load(self) -> list[Record]:
        """Every cage; leftovers of what was cut off are removed first.  `faults` says what could not be read."""
        records = []
        for ephemeral, directory in self._directories.items():
            for entry in sorted(directory.iterdir()):
                try:
                    _check_owner(entry)
                    if entry.name.startswith((_NEW, _GONE)):
                        shutil.rmtree(entry)
                    else:
                        records.append(_read(entry, ephemeral=ephemeral))
                except UsageError as error:
                    # One that cannot be read is no reason to be without the others.
                    self.faults.append(error.sentence)
                except OSError as error:
                    self.faults.append(f"{error.filename or entry}: {error.strerror}; see to {entry}")
        return records

    def add(self, record: Record) -> None:
        """Write the cage down for good; NameTaken where its name has a directory already."""
        parent = self._directories[record.ephemeral]
        fresh = parent / (_NEW + record.uuid)
        fresh.mkdir(mode=0o700)
        durable = not record.ephemeral
        instance = _InstanceFile(uuid=record.uuid, created=record.created, owner=record.owner,
                                 caller=record.caller)
        try:
            _write(fresh / "instance.json", msgspec.json.encode(instance), durable=durable)
            _write(fresh / "cage.toml", render_definition(record.definition).encode(), durable=durable)
            if durable:
                _sync(fresh)
            fresh.rename(parent / record.name)
        except OSError as error:
            shutil.rmtree(fresh)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise NameTaken(f'there is a cage "{record.name}" already') from error
            raise
        if durable:
            _sync(parent)

    def redefine(self, record: Record, definition: Definition) -> Record:
        """Replace the cage's definition, at one instant."""
        directory = self._directories[record.ephemeral] / record.name
        fresh = directory / "cage.toml.new"
        try:
            _write(fresh, render_definition(definition).encode(), durable=not record.ephemeral)
            fresh.rename(directory / "cage.toml")
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        if not record.ephemeral:
            _sync(directory)
        return replace(record, definition=definition)

    def remove(self, record: Record) -> None:
        """Forget the cage for good."""
        parent = self._directories[record.ephemeral]
        gone = parent / (_GONE + record.uuid)
        (parent / record.name).rename(gone)
        if not record.ephemeral:
            _sync(parent)
        shutil.rmtree(gone)


def _check_owner(directory: Path) -> None:
    """DefinitionError where the cage's directory is not ours, as after a backup was restored by somebody else."""
    if (uid := directory.lstat().st_uid) != os.geteuid():
        raise DefinitionError(f"{directory} belongs to uid {uid}: {_ours(directory)}")


def _ours(directory: Path) -> str:
    """What gives a cage's directory back to us."""
    return f"chown -R {pwd.getpwuid(os.geteuid()).pw_name}: {directory}, and start caged again"


def _read(directory: Path, *, ephemeral: bool) -> Record:
    name = check_cage_name(directory.name)
    file = directory / "instance.json"
    try:
        instance = decode(file.read_bytes(), msgspec.json.Decoder(_InstanceFile))
    except PermissionError as error:
        raise DefinitionError(f"{file}: {error.strerror}: {_ours(directory)}") from error
    except (OSError, msgspec.DecodeError) as error:
        raise DefinitionError(f"{file}: {error}; restore it from a backup, or remove {directory}") from error
    definition, fault = Definition(), ""
    try:
        definition = parse_definition(read_text(directory / "cage.toml"), str(directory / "cage.toml"))
    except (OSError, DefinitionError) as error:
        fault = str(error)
    session = msgspec.structs.replace(definition.session, ephemeral=ephemeral)
    return Record(name=name, uuid=instance.uuid, created=instance.created, owner=instance.owner,
                  definition=msgspec.structs.replace(definition, session=session), fault=fault, caller=instance.caller)


def _write(path: Path, content: bytes, *, durable: bool) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
