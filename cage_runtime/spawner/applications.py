# SPDX-License-Identifier: LGPL-2.1-or-later
"""The applications that a running cage sees: mounts that the spawner hands over, attached and detached by cage-init.

Law of this room: the directory is the cage's root's, who may put links there, so that none is followed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from cage_runtime.spawner.mount import FOLDER, Root, opened

DIRECTORY = "/var/lib/flatpak"


def attach(trees: Sequence[str], mounts: Sequence[int]) -> None:
    """Show detached `mounts`, one for each tree; one that is there already stays."""
    with opened(os.open(DIRECTORY, FOLDER)) as top:
        root = Root(top)
        for tree, mount in zip(trees, mounts, strict=True):
            for path in (tree.partition("/")[0], tree):
                with root.parent(path) as (parent, name), contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=parent)
            if not root.is_mount(tree):
                root.attach(mount, tree)


def detach(trees: Sequence[str]) -> None:
    """Take them away; what is not there is left out, and what runs from one keeps it."""
    with opened(os.open(DIRECTORY, FOLDER)) as top:
        root = Root(top)
        for tree in trees:
            with contextlib.suppress(FileNotFoundError), root.parent(tree) as (parent, name):
                if root.is_mount(tree):
                    root.detach(tree)
                os.rmdir(name, dir_fd=parent)
