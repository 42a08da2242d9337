# SPDX-License-Identifier: LGPL-2.1-or-later
"""A of the catalogue, on the host's side: what others on it and files of a cage's making do to the core (11 to 18)."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
from pathlib import Path

import pytest

from tests.attacks.conftest import PYTHON
from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import PREFIX, Cage, Runtime

POLICY = "files.send * * allow\n"
CANARY = "nobody put this here\n"
SWAPS = Path(__file__).with_name("swaps.py")


# --- 11, 16: a cage's own files are no configuration -----------------------------------------------------------------
OWN = {
    ".config/cage-runtime/caged.conf": "[paths]\nstate = \"/tmp\"\n",
    ".config/cage-runtime/policy.d/00-own.policy": POLICY, ".config/cage/policy.d/00-own.policy": POLICY,
    "cage.toml": 'level = "public"\nexec-home = true\n', ".cage.toml": "exec-home = true\n",
    ".config/autostart/evil.desktop": "[Desktop Entry]\nType=Application\nName=x\nExec=/home/user/started\n",
    ".config/systemd/user/default.target.wants/evil.service": "[Service]\nExecStart=/bin/touch /home/user/started\n",
    ".config/environment.d/evil.conf": "LD_PRELOAD=/home/user/evil.so\n",
    ".local/share/flatpak/overrides/global": "[Context]\nfilesystems=host;\n",
    ".local/share/dbus-1/services/org.cageruntime.Files1.service":
        "[D-BUS Service]\nName=org.cageruntime.Files1\nExec=/home/user/evil\n",
    ".bwrap": "--bind / /\n", ".config/containers/containers.conf": "[containers]\nprivileged = true\n",
    ".pam_environment": "LD_PRELOAD=/home/user/evil.so\n", ".python_history": "import os\n",
}


def test_a_cage_that_ships_configuration_is_run_as_before(runtime: Runtime, cage: MakeCage) -> None:
    """CVE-2026-40226."""
    own = cage("own", "--level", "secret")
    before = {key: value for key, value in own.status.items() if key in ("uuid", "level", "exec-home", "limits")}
    for name, content in OWN.items():
        own.sh(f"mkdir -p \"$(dirname '{name}')\"; cat > '{name}'", input=content.encode())
    environment = own.sh("env")
    runtime.ok("stop", "own")
    runtime.ok("start", "own")
    assert {key: value for key, value in own.status.items() if key in before} == before
    assert own.sh("env") == environment
    assert own.sh("ls started 2>&1 || true").startswith("ls: ")
    assert own.enter("sh", "-c", "cp /usr/bin/true own; ./own").returncode == 126
    refused = own.enter("sh", "-c", "incage send cage.toml --to left")
    assert refused.returncode == 126
    assert str(own.runtime.state) not in refused.stderr.decode()


def test_the_cages_root_has_no_configuration_to_write_either(left: Cage) -> None:
    for directory in ("/etc/cage-runtime", "/etc/flatpak", "/usr/share/flatpak", "/opt/cage-runtime/policy.d",
                      "/usr/lib/systemd/system", "/etc/systemd/system", "/etc/dbus-1/system.d"):
        ended = left.enter("sh", "-c", f"mkdir -p {directory} && touch {directory}/own", root=True)
        assert (ended.returncode, b"Read-only file system" in ended.stderr) == (1, True), directory


# --- 12: names that are paths ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["../../etc/cron.d/x", "/etc/cron.d/x", "a/../../b", "..", ".", "x\ny", "x\x1by"])
@pytest.mark.parametrize("option", ["template", "name"])
def test_a_name_that_is_a_path_is_refused_before_anything_is_opened(
    runtime: Runtime, option: str, name: str
) -> None:
    """CVE-2026-23954: by the bus, past what cagectl checks itself."""
    before = sorted(str(path) for path in runtime.top.rglob("*") if path.name != "log")
    words = (name, {}) if option == "name" else ("template-name", {"template": ("s", name)})
    said = runtime.call("Create", "sa{sv}", *words)
    assert "cannot be a cage's name" in said[0] or "there is no template" in said[0], said
    assert sorted(str(path) for path in runtime.top.rglob("*") if path.name != "log") == before
    assert runtime.state_of("template-name") is None


# --- 13, 14: others on the host --------------------------------------------------------------------------------------
LOOK = """
import errno, os, socket, sys
def tried(what):
    try: what()
    except OSError as error: return errno.errorcode[error.errno]
    return "allowed"
def connect(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as own: own.connect(path)
for verb, path in zip(sys.argv[1::2], sys.argv[2::2]):
    print(tried({"list": lambda: os.listdir(path), "make": lambda: os.mkdir(path), "open": lambda: open(path, "rb"),
                 "connect": lambda: connect(path), "link": lambda: os.symlink("/", path)}[verb]))
"""


def by(uid: int, *words: str) -> list[str]:
    said = subprocess.run([*PYTHON, "-c", LOOK, *words], user=uid, group=uid, extra_groups=[], check=True,
                          capture_output=True, text=True, timeout=30)
    return said.stdout.split()


def test_storage_and_instances_are_nobody_elses(runtime: Runtime, left: Cage, right: Cage) -> None:
    """13, 14: by nobody, caged, mediators, and by the users of the same cage and of another one."""
    storage, instance = runtime.storage / left.uuid, runtime.run / "cages" / left.uuid
    fake = f"{runtime.run}/cages/{'0' * 32}"
    attempts = ("list", str(storage), "list", f"{storage}/home", "open", f"{storage}/range", "make", f"{storage}/x",
                "list", str(instance), "connect", f"{instance}/init.sock", "make", fake, "link", fake,
                "connect", f"{runtime.run}/spawner.sock", "make", f"{runtime.storage}/{'0' * 32}")
    others = [65534, *(pwd.getpwnam(name).pw_uid for name in ("cage-files", "cage-apps")), left.base + 1000,
              right.base + 1000, right.base]
    for uid in others:
        assert set(by(uid, *attempts)) == {"EACCES"}, uid
    # The spawner's socket is caged's, and the only thing that is.
    caged = pwd.getpwnam("caged").pw_uid
    assert set(by(caged, *attempts[:16], *attempts[18:])) == {"EACCES"}


def test_an_instance_that_is_not_one_is_not_joined(runtime: Runtime, cage: MakeCage) -> None:
    """CVE-2022-31214: one that somebody's hand has put there, with a process of the host behind its socket."""
    real = cage("real")
    fake = runtime.run / "cages" / ("f" * 32)
    fake.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(fake / "init.sock"))
        listener.listen()
        runtime.kill_and_wait("cage-spawner")
        assert real.sh("echo here") == "here\n"
        assert not fake.exists()
    assert "f" * 32 not in {entry["uuid"] for entry in runtime.json("list")}


def test_no_record_of_an_instance_has_a_pid_in_it(runtime: Runtime, left: Cage) -> None:
    """14: what could be used again by somebody else is not written down: cages are found by their socket and cgroup."""
    pids = {str(pid) for pid in runtime.cage_processes(left.uuid)}
    assert pids
    for directory in (runtime.run / "cages" / left.uuid, runtime.storage / left.uuid):
        for path in directory.iterdir():
            if path.is_file():
                assert not pids & set(path.read_text().split())


# --- 7, 15, 48: links in a cage's home -------------------------------------------------------------------------------
def test_links_in_a_home_are_not_followed_by_whoever_starts_or_ends_the_cage(
    runtime: Runtime, cage: MakeCage, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    canary.mkdir(mode=0o777)
    (canary / "kept").write_text(CANARY)
    os.chmod(tmp_path, 0o755)
    linked = cage("linked")
    for name in (".config", ".local", ".var", ".cache", "Documents", "Downloads", "Pictures"):
        linked.sh(f"rm -rf {name}; ln -s {canary} {name}")
    runtime.ok("stop", "linked")
    runtime.ok("start", "linked")
    assert linked.sh("echo here") == "here\n"
    linked.destroy()
    assert [path.name for path in canary.iterdir()] == ["kept"]
    assert (canary / "kept").read_text() == CANARY


# --- 6, 7: swapped while the root is assembled -----------------------------------------------------------------------
def test_no_step_of_a_root_follows_a_link_that_is_put_there(tmp_path: Path) -> None:
    """CVE-2021-30465 and its kin, by somebody who can write where nobody but root can."""
    ended = subprocess.run([*PYTHON, SWAPS, PREFIX, tmp_path], capture_output=True, text=True, check=False, timeout=100)
    assert ended.returncode == 0, ended.stderr
    steps = [json.loads(line) for line in ended.stdout.splitlines()]
    kinds = {step["step"].split()[0] for step in steps}
    assert {"tmpfs", "overlay", "bind", "directory", "file", "link", "device"} <= kinds
    assert [step for step in steps if step["said"] not in ("ENOTDIR", "ELOOP", "EEXIST")] == []
    assert [step for step in steps if (step["canary"], step["owner"], step["mode"]) != ([], 0, 0o755)] == []
