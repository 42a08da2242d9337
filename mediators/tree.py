# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reading a tree that came as one stream, for the halves of mediators: cage_runtime.intree, as cagectl has it."""

from __future__ import annotations

from cage_runtime.intree import CHANGED as CHANGED
from cage_runtime.intree import Announced as Announced
from cage_runtime.intree import Misfit as Misfit
from cage_runtime.intree import Source as Source
from cage_runtime.intree import Tree as Tree
from cage_runtime.intree import read_header as read_header
