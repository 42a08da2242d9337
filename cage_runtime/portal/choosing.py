# SPDX-License-Identifier: LGPL-2.1-or-later
"""FileChooser: a file of the cage for an application to read, and one of an application's for another cage.

A sandboxed application sees of the home its own folder alone, ~/.var/app/ID.  What it may open is linked there; what it
saves is written there, and sent by the `files` mediator as soon as it is written: to where, policy or a person says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from cage_runtime.bus import Answer, Bus, Call, Service, Variant, described
from cage_runtime.errors import CageError, RuntimeFailure, UsageError
from cage_runtime.model import PORTAL_FILES_MAX, PORTAL_SAVE_SECONDS
from cage_runtime.portal import chooser, inotify
from cage_runtime.portal.application import application_of
from cage_runtime.portal.mediated import ask
from cage_runtime.portal.requests import DESCRIPTION, Requests, Results
from cage_runtime.text import escape

LOG = logging.getLogger(__name__)
FILE_CHOOSER = "org.freedesktop.portal.FileChooser"
FOLDER = "cache/portal"
"""Below an application's own folder, and below the home's .cache for what is no Flatpak application."""


class FileChooser:
    def __init__(self, bus: Bus, requests: Requests, home: Path, changed: Callable[[], None]) -> None:
        """`changed` is called when a file that was awaited has been written."""
        self._bus, self._requests, self._home, self._changed = bus, requests, home, changed
        self._saving: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Files that applications are expected to write."""
        return len(self._saving)

    def service(self) -> Service:
        handlers = {"OpenFile": self._open, "SaveFile": self._save}
        return Service(interface=described(DESCRIPTION, FILE_CHOOSER), handlers=handlers,
                       properties=lambda: {"version": Variant("u", 3)})

    async def _open(self, call: Call) -> Answer:
        _window, title, options = call.arguments
        multiple, directory = (_flag(options, name) for name in ("multiple", "directory"))
        if directory:
            raise UsageError("a folder cannot be handed to an application; choose files")

        async def work() -> Results:
            chosen = await chooser.ask(title, self._home, multiple=multiple)
            folder = await self._folder(call.sender)
            return _uris([_link(path, folder) for path in chosen[:PORTAL_FILES_MAX]])

        return self._requests.begin(call, options, work)

    async def _save(self, call: Call) -> Answer:
        _window, _title, options = call.arguments
        name = _file_name(options)

        async def work() -> Results:
            if len(self._saving) >= PORTAL_FILES_MAX:
                raise RuntimeFailure(f"{PORTAL_FILES_MAX} files are being saved; wait until one is written")
            folder = await self._folder(call.sender)
            watch = inotify.Watch(folder)
            task = asyncio.get_running_loop().create_task(self._send_when_written(folder / name, watch))
            self._saving.add(task)
            task.add_done_callback(self._saved)
            return _uris([folder / name])

        return self._requests.begin(call, options, work)

    def _saved(self, task: asyncio.Task[None]) -> None:
        self._saving.discard(task)
        self._changed()

    async def _folder(self, sender: str) -> Path:
        """A new folder that the application sees under the same path as we do."""
        application = await application_of(self._bus, sender)
        parent = self._home / (f".var/app/{application}/{FOLDER}" if application else ".cache/portal")
        folder = parent / secrets.token_hex(8)
        folder.mkdir(mode=0o700, parents=True)
        return folder

    async def _send_when_written(self, path: Path, watch: inotify.Watch) -> None:
        """Send what is written to `path`, once, and remove it where it has arrived; what has not stays."""
        with watch, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PORTAL_SAVE_SECONDS):
                await watch.written(path.name)
                try:
                    await _send(path)
                    shutil.rmtree(path.parent)
                except (CageError, OSError) as error:
                    why = error.sentence if isinstance(error, CageError) else str(error)
                    LOG.warning("%s is kept, it was not sent: %s", escape(str(path)), escape(why, limit=400))


async def _send(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        await ask("files", "Send", "ssha{sv}", ("", path.name, 0, {}), (descriptor,))
    finally:
        os.close(descriptor)


def _link(path: Path, folder: Path) -> Path:
    """The file at `path` in `folder`: the same one, so that what is written into it is written there."""
    target = folder / path.name
    os.link(path, target, follow_symlinks=False)
    return target


def _uris(paths: list[Path]) -> Results:
    return {"uris": Variant("as", [f"file://{quote(str(path))}" for path in paths])}


def _flag(options: dict[str, Variant], name: str) -> bool:
    given = options.get(name)
    return given is not None and given.signature == "b" and bool(given.value)


def _file_name(options: dict[str, Variant]) -> str:
    given = options.get("current_name")
    name = str(given.value) if given is not None and given.signature == "s" else ""
    if not name or "/" in name or "\0" in name or name in (".", "..") or len(name.encode("utf-8", "replace")) > 255:
        raise UsageError("current_name has to be the name of a file, which is sent under it")
    return name
