# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which boots the small guests make, of what they are made, and how QEMU is told."""

from __future__ import annotations

from pathlib import Path

from tests.kernels.host.boots import BOOTS, Kernel, emulator, planned
from tests.kernels.host.image import depends, recipe
from tests.vm.host.plan import TOP


def test_each_folder_is_booted_as_it_wants() -> None:
    plan = planned(["-x", "tests/kernels/lsm/test_life.py::TestBounds", "tests/kernels/cost"])
    assert [(boot.name, words) for boot, words in plan] == [
        ("plain", ["-x", "tests/kernels/lsm/test_life.py::TestBounds"]), ("cost", ["-x", "tests/kernels/cost"])]


def test_a_test_of_another_tier_is_booted_plainly() -> None:
    assert [(boot.name, words) for boot, words in planned(["tests/attacks"])] == [("plain", ["tests/attacks"])]


def test_without_paths_all_folders_run() -> None:
    folders = sorted(path.name for path in (TOP / "tests/kernels").iterdir() if any(path.glob("test_*.py")))
    ran = [word.rpartition("/")[2] for _, words in planned([]) for word in words]
    assert sorted(ran) == folders
    assert len(planned([])) == len(BOOTS)


def test_the_disks_cannot_change_places() -> None:
    words = emulator(BOOTS[0], Path("/k"), Path("/r"), Path("/t"))
    assert "nvme,drive=root,serial=root" in words
    assert "virtio-blk-pci,drive=task" in words
    assert [word for word in words if "file=/r" in word and "snapshot=on" in word]


def test_what_the_package_depends_on_is_in_the_guest() -> None:
    found = depends("Package: x\nDepends:\n python3 (>= 3.11), a | b,\n# a word\n ${misc:Depends}, c,\nSection: d\n")
    assert found == ("a", "c", "python3")
    packages = recipe(Kernel.BOOKWORM.suite).packages
    assert {"bubblewrap", "dbus", "flatpak", "libbpf1", "libseccomp2", "python3-prctl"} <= set(packages)
    assert "systemd" not in packages
