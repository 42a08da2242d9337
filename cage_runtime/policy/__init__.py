# SPDX-License-Identifier: LGPL-2.1-or-later
"""Policy: text becomes rules, rules become verdicts.

Law of this room: it is pure.  It knows no bus, no kernel and no clock; `loader` and `files` alone read files, policy
files only.  It fails closed by type: a policy that cannot be read is a value that denies everything.  Nothing outside
this room decides what may flow.
"""
