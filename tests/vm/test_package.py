# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the package has put on the machine: it is what dpkg says, the core runs, and shells offer what there is."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from tests.vm.conftest import MakeCage
from tests.vm.machine import MEDIATORS, ok, properties, run

PREFIX = Path("/usr/lib/cage-runtime")
COMPLETE = """
source /usr/share/bash-completion/completions/cagectl
COMP_WORDS=(cagectl "$@") COMP_CWORD=$#
_shtab_cagectl
echo "${COMPREPLY[@]}"
"""


def test_every_file_is_the_packages_and_as_it_was_built() -> None:
    assert ok("dpkg", "--verify", "cage-runtime") == ""
    listed = {Path(line) for line in ok("dpkg", "--listfiles", "cage-runtime").splitlines()}
    there = {Path(folder, name) for folder, _, files in os.walk(PREFIX) for name in files}
    bytecode = {path for path in there if path.parent.name == "__pycache__"}
    assert there - bytecode <= listed
    # Made for the machine's own Python when the package was installed, because the core may not write there.
    modules = {path for path in there if path.suffix == ".py"}
    compiled = {path.parent.parent / f"{path.name.partition('.')[0]}.py" for path in bytecode}
    assert compiled == modules
    links = {name: str(Path(name).resolve()) for name in ("/usr/bin/cagectl", "/usr/sbin/caged")}
    assert links == {"/usr/bin/cagectl": f"{PREFIX}/bin/cagectl", "/usr/sbin/caged": f"{PREFIX}/bin/caged"}


def test_the_core_is_started_now_and_with_the_host() -> None:
    assert ok("systemctl", "is-enabled", "caged") == "enabled\n"
    assert properties("caged", "ActiveState", "UnitFilePreset") == {
        "ActiveState": "active", "UnitFilePreset": "enabled"}  # fmt: skip
    for unit in ("caged", "cage-apps", "cage-spawner"):
        assert properties(unit, "FragmentPath")["FragmentPath"].endswith(f"/lib/systemd/system/{unit}.service")


def test_users_have_no_shell_and_folders_belong_to_them() -> None:
    for name in ("caged", "cage-apps", "cage-syscalls", *(f"cage-{name}" for name in MEDIATORS)):
        user = pwd.getpwnam(name)
        assert user.pw_shell == "/usr/sbin/nologin"
        assert 0 < user.pw_uid < 1000
    for line in Path("/usr/lib/tmpfiles.d/cage-runtime.conf").read_text().splitlines():
        words = line.split()
        if words and words[0] == "d":
            folder = Path(words[1])
            assert (f"{folder.stat().st_mode & 0o7777:04o}", folder.owner(), folder.group()) == tuple(words[2:5]), line


def test_shells_offer_the_cages_that_there_are(cage: MakeCage) -> None:
    cage("offered", "--no-start")
    assert "offered" in ok("bash", "-c", COMPLETE, "bash", "enter", "").split()
    assert ok("bash", "-c", COMPLETE, "bash", "enter", "offe") == "offered\n"
    assert ok("bash", "-c", COMPLETE, "bash", "app", "lis") == "list\n"
    # Neither started for it nor waited for.
    ok("systemctl", "stop", "caged")
    assert run("cagectl", "--complete", "cages").stdout == ""
    assert properties("caged", "ActiveState") == {"ActiveState": "inactive"}
    ok("systemctl", "start", "caged")
