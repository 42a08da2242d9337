# SPDX-License-Identifier: LGPL-2.1-or-later
"""The commands: cagectl for a person on the host, incage for someone inside a cage.

Law of this room: it decides nothing and may do nothing by itself; it asks on a bus and shows the answer, escaped.
It starts in a few milliseconds: no asyncio, no D-Bus library in Python, no dataclasses, and only the sub-command in
hand is imported.
"""
