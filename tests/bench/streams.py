# SPDX-License-Identifier: LGPL-2.1-or-later
"""P8: a round trip through a call that is established, beside one through a bus, both between processes of cages.

Law of this room: the samples are taken by one program in one cage, in turns, so that whatever else the machine does
falls on both alike; it is the same Python that writes and reads on either way.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

from tests.bench.figures import Row, summary
from tests.bench.runtime import Client, Runtime

CALL, BUS = "64 bytes through a call and back", "a call of D-Bus and its answer"
TRIPS = 100
"""Round trips in one sample, which is what one of them took on average."""
POLICY = "call.Echo  *  near  far  allow\n"
SERVICE = "mkdir -p ~/.config/incage/services; cd ~/.config/incage/services; printf '#!/bin/sh\\nexec cat\\n' >Echo; " \
          "chmod 755 Echo"
PROGRAM = r"""
import json, os, select, subprocess, sys, time
sys.path[:0] = ["/opt/cage-runtime/lib"]
from cage_runtime.cli.client import mediator
from cage_runtime.sdbus import Connection

runs, trips = map(int, sys.argv[1:])
inward, outward, told = mediator("call", "").call("Call", "sssa{sv}", "Echo", "", "far", {}, returns="hhh")
os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = os.environ["DBUS_SESSION_BUS_ADDRESS"]
# The library itself answers Ping, so that nothing of the other side's is interpreted.
DAEMON = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
is_up, up = os.pipe()
if os.fork() == 0:
    bus = Connection()
    bus.call(*DAEMON, "RequestName", "su", ("org.cageruntime.Bench", 0), returns="u")
    os.write(up, b"x")
    poll = select.poll()
    poll.register(bus.fileno(), select.POLLIN)
    while True:
        while bus.take() is not None:
            pass
        poll.poll()
os.read(is_up, 1)
bus = Connection()
content = b"x" * 64

def call():
    os.write(inward, content)
    got = os.read(outward, 64)
    assert got == content, got

def ping():
    bus.call("org.cageruntime.Bench", "/", "org.freedesktop.DBus.Peer", "Ping")

samples = {"call": [], "bus": []}
for number in range(runs + 3):
    for kind, trip in (("call", call), ("bus", ping)):
        began = time.perf_counter_ns()
        for _ in range(trips):
            trip()
        if number >= 3:
            samples[kind].append((time.perf_counter_ns() - began) / trips / 1e6)
print(json.dumps(samples))
sys.stdout.flush()
os.killpg(0, 15)
"""


def rows(runtime: Runtime, client: Client, runs: int) -> Iterator[Row]:
    file = runtime.administrator / "policy.d/10-bench.policy"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(POLICY, encoding="ascii")
    subprocess.run([runtime.cagectl, "policy", "reload"], check=True, stdout=subprocess.DEVNULL)
    for name in ("near", "far"):
        client.create(name, ephemeral=True)
    if client.enter("far", "/bin/sh", "-c", SERVICE):
        raise RuntimeError("the service could not be written")
    ended = subprocess.run(
        [runtime.cagectl, "enter", "near", "--", "/usr/bin/python3", "-IS", "-c", PROGRAM, str(runs), str(TRIPS)],
        stdout=subprocess.PIPE, check=False)
    samples = json.loads(ended.stdout)
    yield summary("P8", CALL, "ms", samples["call"])
    yield summary("P8", BUS, "ms", samples["bus"])
    for name in ("near", "far"):
        client.destroy(name)
