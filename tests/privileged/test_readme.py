# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the README shows is what happens: its sessions are typed into a shell and compared with what comes out.

Places differ: the sample repository, the administrator's directory and the shipped files of this runtime are shown
where an installed system has them.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests import readme
from tests.privileged.runtime import PREFIX, SECONDS, Runtime
from tests.privileged.sample import TOP, Sample


def test_the_sessions_are_what_happens(sample: Sample) -> None:
    runtime = Runtime()
    runtime.start()
    here = {"/var/lib/cage-runtime-quickstart/sample": str(sample.directory),
            "/etc/cage-runtime": f"{runtime.top}/etc", "/usr/lib/cage-runtime": str(PREFIX)}
    expected = readme.steps()
    environment = {**runtime.environment(), "PATH": f"{PREFIX}/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    commands = [readme.replaced(step.command, here) for step in expected]
    outputs = readme.typed(commands, environment, 4 * SECONDS)
    runtime.ok("destroy", "work", "vault", "--yes")
    runtime.remove()
    assert readme.shown(expected, outputs, {path: name for name, path in here.items()}) == readme.promised(expected)


def test_it_is_short() -> None:
    assert len(readme.TEXT.splitlines()) <= 150


def test_what_it_names_is_there() -> None:
    for script in set(re.findall(r"\bscripts/[a-z-]+\b", readme.TEXT)):
        assert os.access(TOP / script, os.X_OK), script
    for directory in set(re.findall(r"\btests/[a-z]+\b", readme.TEXT)):
        assert (TOP / directory).is_dir(), directory
    named = {f"{name}.{section}" for name, section in re.findall(r"\b([A-Za-z0-9.-]+)\((\d)\)", readme.TEXT)}
    assert named == {page.name for page in Path(TOP, "cage_runtime/resources/man").iterdir()}


def test_every_option_it_names_is_known() -> None:
    for script, option in (("quickstart", "--keep"), ("quickstart", "--stop"), ("uninstall", "--purge")):
        told = subprocess.run([TOP / "scripts" / script, "--help"], capture_output=True, text=True, check=True)
        assert option in told.stdout
