# SPDX-License-Identifier: LGPL-2.1-or-later
"""The wall: everything that needs root or stands between a cage and the kernel.

Law of this room: it imports no D-Bus, reads no policy, holds no secret, and takes nothing but typed specs from its
one socket, each validated here again.
"""
