# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pictures of a display: picture.py screen FILE, of all of it, and picture.py label TEXT FILE, of a text alone."""

from __future__ import annotations

import sys

from cage_runtime.desktop.toolkit import Gdk, GLib, Gtk


def screen(file: str) -> None:
    root = Gdk.get_default_root_window()
    Gdk.pixbuf_get_from_window(root, 0, 0, root.get_width(), root.get_height()).savev(file, "png", [], [])


def label(text: str, file: str) -> None:
    window, shown = Gtk.OffscreenWindow(), Gtk.Label()
    shown.set_text(text)
    window.add(shown)
    window.show_all()

    def drawn(*_: object) -> None:
        window.get_pixbuf().savev(file, "png", [], [])
        Gtk.main_quit()

    window.connect("damage-event", lambda *_: GLib.idle_add(drawn))
    Gtk.main()


if __name__ == "__main__":
    {"screen": screen, "label": label}[sys.argv[1]](*sys.argv[2:])
