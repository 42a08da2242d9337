# SPDX-License-Identifier: LGPL-2.1-or-later
from tests.vm.machine import ok


def test_a():
    print(ok("systemctl", "is-active", "caged.service"))
