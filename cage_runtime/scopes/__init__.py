# SPDX-License-Identifier: LGPL-2.1-or-later
"""cage-scopes: what systemd has to be asked for a cage, apart from the spawner.

On a host that systemd manages each cage has a scope unit of its own, cage-NAME.scope, in which its cgroup is.  To ask
for one takes a D-Bus library and a conversation; the process that clones has neither.  This one has no capability,
can write no file, and ends with the spawner.
"""
