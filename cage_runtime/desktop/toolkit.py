# SPDX-License-Identifier: LGPL-2.1-or-later
"""GTK 3 and GIO, as the distribution's python3-gi has them: the only file that imports them."""

from __future__ import annotations

from cage_runtime.errors import HostUnsupported

try:
    import gi

    gi.require_version("Gdk", "3.0")
    gi.require_version("Gtk", "3.0")
    from gi.repository import Gdk, Gio, GLib, Gtk, Pango
except (ImportError, ValueError) as error:
    raise HostUnsupported("GTK is missing; install the packages python3-gi and gir1.2-gtk-3.0") from error

__all__ = ["Gdk", "Gio", "GLib", "Gtk", "Pango"]
