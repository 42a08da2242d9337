# SPDX-License-Identifier: LGPL-2.1-or-later
"""Applications: where they come from, the one installation that all cages share, and what a cage sees of it.

Law of this room: nothing is installed that cannot be traced, object by object, to a key that somebody pinned.
libostree checks the objects of an http remote and not those of a local one, so that the core first pulls everything,
checked, into a mirror of its own, and lets flatpak install from that mirror alone.  This room runs as an unprivileged
user, and everything that comes from a remote is untrusted until the signature over it has been checked; afterwards it
is still only what a stranger signed, and is parsed as such.

What a cage sees (`flatpak run` of 1.14 refuses to start without any of the three things in `repo`):
  /var/lib/flatpak/app/ID          bound, read-only, for each application that the cage may run
  /var/lib/flatpak/runtime/ID      bound, read-only, for each runtime and extension that these need
  /var/lib/flatpak/repo/config     three lines: [core], repo_version=1, mode=bare-user-only
  /var/lib/flatpak/repo/objects/   empty
  /var/lib/flatpak/repo/tmp/       empty
Neither the objects and refs of the real repository nor `exports` or `.changed` are needed, and none is shown.
"""
