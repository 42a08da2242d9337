# SPDX-License-Identifier: LGPL-2.1-or-later
"""Calls of cages that are answered in the kernel's stead (seccomp_unotify(2)), by one process for all cages.

Law of this room: nothing that points into a cage's memory is ever answered with "continue"; what is written there goes
to the caller alone, where the caller could write itself; and no cage waits for another's calls.
"""
