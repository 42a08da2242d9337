# SPDX-License-Identifier: LGPL-2.1-or-later
"""cage-desktop, which says on standard output what is where on the screen as often as a line comes on standard input;
a line with the id of a prompt has its window closed, as by the cross in its frame.

Run as driven.py SECONDS, for which its buttons are dead.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from cage_runtime import log
from cage_runtime.desktop import guard, main
from cage_runtime.desktop.toolkit import GLib, Gtk


def below(widget: Any) -> list[Any]:
    found = [widget]
    if isinstance(widget, Gtk.Container):
        for child in widget.get_children():
            found += below(child)
    return found


def text_of(widget: Any) -> str:
    if isinstance(widget, Gtk.Label):
        return str(widget.get_text())
    if isinstance(widget, Gtk.TextView):
        buffer = widget.get_buffer()
        return str(buffer.get_text(buffer.get_start_iter(), buffer.get_end_iter(), False))
    if isinstance(widget, Gtk.Button) and not isinstance(widget, Gtk.RadioButton):
        return text_of(widget.get_child())
    return ""


def about(widget: Any, window: Any) -> dict[str, Any]:
    _, left, top = window.get_window().get_origin()
    x, y = widget.translate_coordinates(window, 0, 0)
    size = widget.get_allocation()
    return {"kind": type(widget).__name__, "text": text_of(widget), "x": left + x, "y": top + y, "width": size.width,
            "height": size.height, "alive": widget.is_sensitive(), "markup": isinstance(widget, Gtk.Label)
            and widget.get_use_markup(), "active": isinstance(widget, Gtk.RadioButton) and widget.get_active()}


def windows(desktop: Any) -> list[dict[str, Any]]:
    return [{"id": id_, "title": dialog.window.get_title(), "xid": dialog.window.get_window().get_xid(),
             "focus": type(dialog.window.get_focus()).__name__, "front": dialog.window.is_active(),
             "widgets": [about(widget, dialog.window) for widget in below(dialog.window) if widget.get_mapped()]}
            for id_, dialog in desktop.dialogs.items()]


def look(_source: int, condition: Any, application: Any) -> bool:
    if condition & GLib.IO_IN and (line := sys.stdin.readline()):
        if closing := line.strip():
            application.desktops[0].dialogs[closing].window.close()
        print(json.dumps([each for desktop in application.desktops for each in windows(desktop)]), flush=True)  # noqa: T201
        return True
    application.quit()
    return False


if __name__ == "__main__":
    import gi

    gi.require_version("GdkX11", "3.0")
    from gi.repository import GdkX11  # noqa: F401 - with which a window has a number

    log.set_up("cage-desktop: %(message)s")
    guard.DEAD_SECONDS = float(sys.argv[1])
    running = main.application()
    GLib.io_add_watch(0, GLib.PRIORITY_DEFAULT, GLib.IO_IN | GLib.IO_HUP, look, running)
    sys.exit(running.run([]))
