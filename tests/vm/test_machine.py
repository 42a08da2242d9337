# SPDX-License-Identifier: LGPL-2.1-or-later
from tests.vm.machine import ok, run

def test_a():
    print(ok("cagectl", "doctor"))
    print(ok("cagectl", "create", "work"))
    print(ok("cagectl", "status", "work"))
    print(ok("cagectl", "destroy", "work", "--yes"))
