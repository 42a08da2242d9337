# SPDX-License-Identifier: LGPL-2.1-or-later
"""cage-desktop: shows a person what caged asks and tells, on the person's own desktop.

Law of this room: it decides nothing.  What came from a cage is plain text here, never markup; what is answered is what
a person did with a window that had been looked at.  `toolkit` alone imports GTK; what is said, and what may be answered
when, is in files without it.
"""
