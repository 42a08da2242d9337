# SPDX-License-Identifier: LGPL-2.1-or-later
"""Portals: org.freedesktop.portal.Desktop on a cage's session bus, for applications that know nothing of cages.

Law of this room: it is a front end, as incage is.  It runs as the cage's user and may do nothing that the user may not;
what leaves the cage goes through the cage halves of the mediators, which ask the core.  xdg-desktop-portal itself needs
a FUSE file system for documents, which cannot be mounted in a user namespace.
"""
