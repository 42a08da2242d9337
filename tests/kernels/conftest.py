# SPDX-License-Identifier: LGPL-2.1-or-later
"""The small guests: a stock kernel, a minimal Debian without a service manager, and nothing else.

To add a test, write tests/kernels/FOLDER/test_*.py as any other; the folder says how the guest is booted
(host/boots.py), and `lsm` is as plain as it gets.  It runs as root in the initial namespaces of a machine of its own,
with the distribution's Python and pytest, the runtime at /usr/lib/cage-runtime as its package has it, and what the
package depends on.  Nothing that it does outlives the guest, but the tests of one boot share one.  A C file in the
folder is built, static, and is on the PATH by its name.  A test of another tier runs here by its path:
`scripts/kernel-test 6.1 tests/privileged/test_cage.py`.  What is slow to know: the guest is emulated, 30 to 60 times
slower than its host, so that no test may have a time in it.
"""
