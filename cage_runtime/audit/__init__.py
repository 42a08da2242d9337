# SPDX-License-Identifier: LGPL-2.1-or-later
"""Audit: what was decided and done, in a chain of records that shows every gap and every change.

Law of this room: it is a sink.  Records are appended and never altered; each holds the hash of the one before it;
every value is escaped before it is written.  A record that cannot be written is an error, never a silence.  The
chain shows tampering within it; whoever may write the directory could still rewrite all of it, or cut its end
while no core has it open.
"""
