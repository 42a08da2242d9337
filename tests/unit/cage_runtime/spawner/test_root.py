# SPDX-License-Identifier: LGPL-2.1-or-later
"""The plan of a root, as text; and the layer of /etc that cages share."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from cage_runtime.model import MEDIATOR_UID, USER_UID
from cage_runtime.spawner import root
from cage_runtime.spawner.mount import Again, File, FileSystem, Masks, Source
from cage_runtime.spawner.root import NOBODYS_UID, RootSpec, SharedEtc, inside, plan

SPEC = RootSpec(
    name="work", machine_id="0" * 32, identity="{}\n", base=0x70000000,
    home=Source(name="/storage/home", descriptor=-1), home_bytes=1 << 20, home_files=64, exec_home=False,
    programs="/programs", etc="/layer", empty="/empty", gateway=Source(name="/gateway", descriptor=-1),
    boot_id="00000000-0000-4000-8000-000000000000", born=1_700_000_000, memory=1 << 30, processors=(0, 2),
)


def described(spec: RootSpec) -> list[str]:
    return [step.describe() for step in plan(spec)]


def mounts(spec: RootSpec) -> list[str]:
    return [line for line in described(spec) if line.startswith(("tmpfs ", "overlay ", "bind "))]


def test_what_can_be_written_cannot_be_executed() -> None:
    for line in mounts(SPEC):
        assert " ro," in line or "noexec" in line, line


def test_every_mount_refuses_setuid_files() -> None:
    assert [line for line in mounts(SPEC) if "nosuid" not in line] == []


def test_devices_are_in_one_place_alone() -> None:
    assert [line.split()[1] for line in mounts(SPEC) if "nodev" not in line] == ["/dev"]


def test_exec_home_loosens_the_home_alone() -> None:
    loosened = set(described(dataclasses.replace(SPEC, exec_home=True))) - set(described(SPEC))
    assert loosened == {"bind /storage/home /home/user nosuid,nodev"}


def test_the_home_of_an_ephemeral_cage_is_in_memory_and_bounded() -> None:
    lines = described(dataclasses.replace(SPEC, home=None))
    assert "tmpfs /home/user nosuid,nodev,noexec size=1048576 mode=700 uid=1879049192" in lines
    assert not any("/storage/home" in line for line in lines)


def test_the_last_steps_make_what_was_assembled_read_only() -> None:
    assert described(SPEC)[-2:] == ["read-only /dev", "read-only /"]


# --- /proc -------------------------------------------------------------------------------------------------------
def shown(spec: RootSpec) -> dict[str, str]:
    files = [step for step in plan(spec) if isinstance(step, File)]
    return {step.path: step.content for step in files if step.path.startswith("/.proc/")}


def test_what_masks_show_is_assembled_before_and_all_of_it_is_used() -> None:
    (masks,) = (step for step in inside() if isinstance(step, Masks))
    made = [line.split()[1] for line in described(SPEC) if line.split()[1].startswith("/.proc/")]
    assert {mask for _, mask in masks.over} == set(made) - {"/.proc/whole"}


def test_the_place_of_masks_is_of_an_id_that_nobody_has() -> None:
    assert f"directory /.proc 700 uid={0x70000000 + NOBODYS_UID}" in described(SPEC)
    assert NOBODYS_UID not in (0, USER_UID, MEDIATOR_UID)


def test_a_procfs_is_whole_at_a_second_place_before_it_is_masked() -> None:
    assert [type(step) for step in inside()] == [FileSystem, Again, Masks]


def test_what_is_told_of_processors_and_memory_is_the_cages() -> None:
    told = shown(SPEC)
    assert [line.split()[0] for line in told["/.proc/stat"].splitlines()][:3] == ["cpu", "cpu0", "cpu2"]
    assert "btime 1700000000\n" in told["/.proc/stat"]
    assert told["/.proc/meminfo"].startswith("MemTotal:        1048576 kB\n")
    assert told["/.proc/sys-kernel-random-boot_id"] == "00000000-0000-4000-8000-000000000000\n"


# --- /etc --------------------------------------------------------------------------------------------------------
@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SharedEtc:
    monkeypatch.setattr(root, "ETC_FROM_HOST", ("os-release",))
    return SharedEtc(tmp_path / "etc")


def test_the_layer_of_etc_is_made_once(etc: SharedEtc, tmp_path: Path) -> None:
    layer = Path(etc.path())
    (layer / "mark").touch()
    assert SharedEtc(tmp_path / "etc").path() == str(layer)
    assert (layer / "mark").exists(), "a layer on which cages may stand was made anew"
    assert "user:x:1000:" in (layer / "passwd").read_text()


def test_a_changed_host_gives_another_layer_and_keeps_the_old(etc: SharedEtc, monkeypatch: pytest.MonkeyPatch) -> None:
    before = etc.path()
    monkeypatch.setattr(root, "ETC_GENERATED", {**root.ETC_GENERATED, "motd": "new\n"})
    assert etc.path() != before
    assert Path(before, "passwd").exists()


def test_a_copy_that_was_cut_off_is_made_again(etc: SharedEtc) -> None:
    layer = Path(etc.path())
    layer.rename(layer.with_suffix(".new"))
    (layer.with_suffix(".new") / "leftover").touch()
    assert etc.path() == str(layer)
    assert not (layer / "leftover").exists()


def test_private_files_of_the_host_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root, "ETC_FROM_HOST", ("shadow", "gshadow"))
    layer = Path(SharedEtc(tmp_path / "etc").path())
    assert not (layer / "shadow").exists()
    assert not (layer / "gshadow").exists()


def test_services_of_the_hosts_are_in_every_cages_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what makes them such, and those born after a change have the new ones."""
    host = tmp_path / "host"
    (host / root.SERVICES).mkdir(parents=True)
    monkeypatch.setattr(root, "ETC_FROM_HOST", (root.SERVICES,))
    monkeypatch.setattr(root, "HOSTS_ETC", host)
    script = host / root.SERVICES / "Echo"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    (host / root.SERVICES / "Secret").touch(mode=0o600)
    etc = SharedEtc(tmp_path / "etc")
    first = Path(etc.path(), root.SERVICES)
    assert [entry.name for entry in first.iterdir()] == ["Echo"]
    assert (first / "Echo").stat().st_mode & 0o777 == 0o755
    assert etc.path() == str(first.parents[1])
    script.write_text("#!/bin/sh\nexec cat\n")
    os.utime(script, ns=(1, 1))
    assert Path(etc.path(), root.SERVICES, "Echo").read_text().endswith("exec cat\n")
