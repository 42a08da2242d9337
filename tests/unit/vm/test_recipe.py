# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an image is made of, and that its key changes with anything that would change the image."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.vm.host import recipe
from tests.vm.host.recipe import HOST, Recipe, Suite, dependencies, packages

MADE = Recipe(suite=Suite.BOOKWORM, packages=("dbus", "systemd"), emulator="QEMU 7.2", made_by="digest")


@pytest.mark.parametrize("change", [{"suite": Suite.TRIXIE}, {"packages": ("dbus",)}, {"emulator": "QEMU 10"},
                                    {"made_by": "another"}])
def test_another_ingredient_is_another_key(change: dict[str, object]) -> None:
    assert replace(MADE, **change).key != MADE.key  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["MACHINE", "UNITS_LEFT_OUT", "KERNEL_LINE", "DISK_BYTES"])
def test_another_machine_is_another_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = MADE.key
    monkeypatch.setattr(recipe, name, ())
    assert MADE.key != before


def test_the_order_of_packages_is_no_matter() -> None:
    assert replace(MADE, packages=("systemd", "dbus")).key == MADE.key


def test_a_depends_field_is_read_as_debian_writes_it() -> None:
    field = "python3 (>= 3.11~), python3:any, dbus-daemon | dbus (>= 1.14), adduser,\n libseccomp2 (>= 2.5)\n"
    assert dependencies(field) == ("adduser", "dbus-daemon", "libseccomp2", "python3")
    assert dependencies("") == ()


def test_the_image_has_what_our_package_depends_on() -> None:
    assert {"ostree", "acl", *HOST} <= set(packages("ostree (>= 2022)", "acl"))
