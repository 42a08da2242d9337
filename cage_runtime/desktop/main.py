# SPDX-License-Identifier: LGPL-2.1-or-later
"""cage-desktop: the program of a person's session that shows what caged asks and tells."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from typing import TYPE_CHECKING, Any

from cage_runtime import log
from cage_runtime.desktop import prompt as words
from cage_runtime.desktop.desk import Desk
from cage_runtime.desktop.prompt import Answer, Prompt
from cage_runtime.errors import CageError, HostUnsupported, NoSystemBus

if TYPE_CHECKING:
    from cage_runtime.desktop.dialog import Dialog

LOG = logging.getLogger(__name__)
APPLICATION = "org.cageruntime.Desktop"
"""One at a time in a session, by this name on the session's bus."""


class Desktop:
    """All that one person is shown."""

    def __init__(self, system: Any, session: Any) -> None:
        from cage_runtime.desktop.core import Core, Hooks
        from cage_runtime.desktop.notifier import Notifier

        self.desk = Desk(self._show, self._close)
        self.dialogs: dict[str, Dialog] = {}
        self._notifier = Notifier(session, lambda number, action: self._core.act(number, action))
        self._core = Core(system, Hooks(asked=self.desk.add, settled=self.desk.remove, told=self._notifier.tell,
                                        gone=self._gone))

    def _gone(self) -> None:
        self.desk.clear()
        self._notifier.clear()

    def _show(self, prompt: Prompt) -> None:
        from cage_runtime.desktop.dialog import Dialog

        dialog = Dialog(prompt, lambda *answered: self._answer(prompt, *answered),
                        lambda: self.desk.put_aside(prompt.id))
        self.dialogs[prompt.id] = dialog
        dialog.show()

    def _close(self, id_: str) -> None:
        self.dialogs.pop(id_).destroy()

    def _answer(self, prompt: Prompt, answer: Answer, minutes: int, chosen: str) -> None:
        def done(why: str | None) -> None:
            if why is None:
                self.desk.remove(prompt.id)
            elif prompt.id in self.dialogs:
                self.dialogs[prompt.id].refused(why)

        self._core.answer(prompt.id, words.verdict(answer), words.options(prompt, answer, minutes, chosen), done)


def application() -> Any:
    """Ours, which once it runs has a Desktop at `activate`; started again, it shows what was put aside."""
    from cage_runtime.desktop.toolkit import Gdk, GLib, Gtk

    if Gdk.Display.get_default() is None:
        raise HostUnsupported("there is no display; cagectl prompts shows what is asked on a terminal")
    system = _system_bus()
    ours = Gtk.Application(application_id=APPLICATION)
    desktops: list[Desktop] = []

    def activate(_application: Any) -> None:
        if desktops:
            desktops[0].desk.bring_back()
            return
        ours.hold()
        desktops.append(Desktop(system, ours.get_dbus_connection()))

    def ended() -> bool:
        ours.quit()
        return False

    ours.connect("activate", activate)
    ours.desktops = desktops
    for number in (signal.SIGINT, signal.SIGTERM):
        GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, number, ended)
    return ours


def _system_bus() -> Any:
    from cage_runtime.desktop.toolkit import Gio, GLib

    try:
        return Gio.bus_get_sync(Gio.BusType.SYSTEM, None)
    except GLib.Error as error:
        raise NoSystemBus(f"no system bus: {error.message}") from error


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="cage-desktop", allow_abbrev=False,
        description="Shows what the cages of this person ask and tell; started again, also what was put aside.")
    parser.parse_args()
    log.set_up("cage-desktop: %(message)s")
    try:
        return int(application().run([]))
    except CageError as error:
        LOG.error("%s", error.sentence)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
