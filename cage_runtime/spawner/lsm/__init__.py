# SPDX-License-Identifier: LGPL-2.1-or-later
"""Security contexts: the kernel's own wall between cages, as BPF programs, and what loads and drives them.

Law of this room: it imports nothing of the spawner's but the errors, and no D-Bus; what it cannot enforce it says.
"""
