# SPDX-License-Identifier: LGPL-2.1-or-later
"""The channel of one session: a SOCK_SEQPACKET pair, one end with cage-init, the other with whoever asked.

caged makes the pair and passes one end down to cage-init and the other back to the client, so that neither caged
nor the spawner stands between a person and a running command: both may restart while it runs.

From cage-init, one JSON object a message, in this order:
  {"event": "started"}   with descriptors: a terminal gives one, its master in the cage's devpts; otherwise three,
                         the near ends of the pipes that are the command's standard input, output and error
  {"event": "exit", "status": N}     N as a shell has it: 0 to 255, 128+n for signal n
or, instead of both,
  {"event": "refused", "status": N, "sentence": "…"}   N is 127 for no such command, 125 otherwise
To cage-init:
  {"signal": N}                      to the command's process group
  {"rows": R, "columns": C}          the terminal's new size
End of file without "exit" means that the cage ended.  Everything that comes from a cage is untrusted: a reader takes
at most MESSAGE_MAX bytes, checks the kind of each descriptor, and believes nothing else.

This room's file imports nothing, because cagectl reads it too.
"""

MESSAGE_MAX = 4096
"""Bytes in one message on a channel."""
