# SPDX-License-Identifier: LGPL-2.1-or-later
"""caged, as an agent of a person's sees it: what is asked and told comes, what is answered goes.

Law of this room: what comes is heard from the connection that owns caged's name, because anybody can send a signal to
us alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cage_runtime.desktop import notification, prompt
from cage_runtime.desktop.notification import Told
from cage_runtime.desktop.prompt import Prompt
from cage_runtime.desktop.toolkit import Gio, GLib
from cage_runtime.errors import BUS_ERROR_PREFIX, CageError
from cage_runtime.model import CORE_BUS_NAME, CORE_PATH

LOG = logging.getLogger(__name__)
MANAGER = f"{CORE_BUS_NAME}.Manager"
_NO_END = 2**31 - 1
"""Milliseconds, for GDBus: as long as a person takes to give a password."""
AGAIN_SECONDS, AGAIN_SECONDS_MAX = 1, 60
"""After which it asks again to be told, where it was refused: at first, and at most; each wait is twice the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """What is told of what caged says."""

    asked: Callable[[list[Prompt]], None]
    """These prompts are open."""
    settled: Callable[[str], None]
    """The prompt of that id is not any more."""
    told: Callable[[Told], None]
    gone: Callable[[], None]
    """caged is not there, and nothing that it has said holds."""


class Core:
    def __init__(self, bus: Any, hooks: Hooks) -> None:
        self._bus, self._hooks = bus, hooks
        self._owner = ""
        self._heard: list[int] = []
        self._again, self._wait = 0, AGAIN_SECONDS
        """The source of the main loop that asks again, 0 where none does, and after how long the next one does."""
        self._watch = Gio.bus_watch_name_on_connection(bus, CORE_BUS_NAME, Gio.BusNameWatcherFlags.NONE,
                                                       self._appeared, self._vanished)

    def answer(self, id_: str, verdict: str, options: dict[str, tuple[str, object]],
               done: Callable[[str | None], None]) -> None:
        """AnswerPrompt; `done` is told what caged says against it, None where it has taken it."""
        arguments = GLib.Variant("(ssa{sv})", (id_, verdict, _variants(options)))
        self._call("AnswerPrompt", arguments, lambda _values: done(None), done, interactive=True)

    def act(self, number: int, action: str) -> None:
        """NotificationAction: what a person clicked, or "" where it was closed, for which nobody gives a password."""
        self._call("NotificationAction", GLib.Variant("(usa{sv})", (number, action, {})), lambda _values: None,
                   lambda why: LOG.info("a click was not taken: %s", why), interactive=bool(action))

    def _appeared(self, _bus: Any, _name: str, owner: str) -> None:
        self._owner = owner
        for member, heard in (("PromptAdded", self._added), ("PromptRemoved", self._removed), ("Notified", self._told)):
            self._heard.append(self._bus.signal_subscribe(
                owner, MANAGER, member, CORE_PATH, None, Gio.DBusSignalFlags.NONE, self._from_owner(heard)))
        self._register()

    def _register(self) -> bool:
        """Have caged tell us, and ask what it has asked so far; false, as a source that is done."""
        self._again, none, owner = 0, GLib.Variant("(a{sv})", ({},)), self._owner

        def failed(why: str) -> None:
            if owner == self._owner:  # or there is another by now, or none, and that must not be started
                self._failed(why)

        self._call("RegisterAgent", none, lambda _values: self._call("ListPrompts", none, self._listed, failed), failed)
        return False

    def _from_owner(self, heard: Callable[..., None]) -> Callable[..., None]:
        def signal(_bus: Any, sender: str, _path: str, _interface: str, _member: str, values: Any) -> None:
            if sender != self._owner:
                return
            try:
                heard(*values.unpack())
            except CageError as error:
                LOG.error("%s", error.sentence)

        return signal

    def _vanished(self, _bus: Any, _name: str) -> None:
        for one in self._heard:
            self._bus.signal_unsubscribe(one)
        self._heard.clear()
        self._owner = ""
        self._stop_waiting()
        self._hooks.gone()

    def _added(self, values: dict[str, Any]) -> None:
        self._hooks.asked([prompt.read(values)])

    def _removed(self, id_: str, _reason: str) -> None:
        self._hooks.settled(id_)

    def _told(self, values: dict[str, Any]) -> None:
        self._hooks.told(notification.read(values))

    def _listed(self, values: tuple[Any, ...]) -> None:
        self._stop_waiting()
        try:
            self._hooks.asked([prompt.read(each) for each in values[0]])
        except CageError as error:
            LOG.error("%s", error.sentence)

    def _failed(self, why: str) -> None:
        """Said once; what is the matter may pass, such as too many programs, or a polkit that is not there yet."""
        if self._wait == AGAIN_SECONDS:
            LOG.error("caged shows its questions elsewhere: %s; cagectl prompts list shows them, too", why)
        if not self._again:
            self._again = GLib.timeout_add_seconds(self._wait, self._register)
            self._wait = min(2 * self._wait, AGAIN_SECONDS_MAX)

    def _stop_waiting(self) -> None:
        if self._again:
            GLib.source_remove(self._again)
        self._again, self._wait = 0, AGAIN_SECONDS

    def _call(self, member: str, arguments: Any, done: Callable[[tuple[Any, ...]], None],
              failed: Callable[[str], None], *, interactive: bool = False) -> None:
        """`interactive`, polkit may have the person asked for a password first."""
        owner = self._owner
        flags = Gio.DBusCallFlags.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else Gio.DBusCallFlags.NONE

        def answered(bus: Any, result: Any) -> None:
            try:
                reply = bus.call_finish(result)
            except GLib.Error as error:
                failed(_sentence(error))
                return
            if owner == self._owner:
                done(reply.unpack())

        self._bus.call(owner or CORE_BUS_NAME, CORE_PATH, MANAGER, member, arguments, None,
                       flags, _NO_END, None, answered)


def _variants(options: dict[str, tuple[str, object]]) -> dict[str, Any]:
    return {name: GLib.Variant(kind, value) for name, (kind, value) in options.items()}


def _sentence(error: Any) -> str:
    """What caged says, or what the bus does."""
    name = Gio.DBusError.get_remote_error(error) or ""
    # GDBus writes the name before it, and takes it away again from a copy alone where it is called from Python.
    message = str(error.message).removeprefix(f"GDBus.Error:{name}: ")
    return message if name.startswith(BUS_ERROR_PREFIX) else f"caged cannot be asked: {message}"
