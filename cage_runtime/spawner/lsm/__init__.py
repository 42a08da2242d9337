# SPDX-License-Identifier: LGPL-2.1-or-later
"""The BPF LSM of cages: its programs, their loader, and the contexts."""
