# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is laid out, for the package and for a source install, is all of this tree that a machine needs."""

from __future__ import annotations

import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from cage_runtime import manifest
from cage_runtime.config import Paths

TOP = Path(__file__).parents[3]
PROGRAMS = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["scripts"]
IN_A_CAGE = "/opt/cage-runtime/"
"""Where a cage has the programs, whatever the host's prefix is."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    prefix: str
    base: str
    bus: str
    """Where the bus looks for policies."""
    zsh: str


LAYOUTS = {
    "package": Layout(prefix="/usr/lib/cage-runtime", base="/usr", bus="/usr/share/dbus-1", zsh="vendor-completions"),
    "source": Layout(prefix="/opt/cage-runtime", base="/usr/local", bus="/etc/dbus-1", zsh="site-functions"),
}


@dataclass(frozen=True, kw_only=True)
class Staged:
    below: Path
    layout: Layout

    def at(self, path: str) -> Path:
        return self.below / path.lstrip("/")

    def names(self, directory: str) -> set[str]:
        return {path.name for path in self.at(directory).iterdir()}


@pytest.fixture(scope="module", params=LAYOUTS)
def staged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Staged:
    layout, below = LAYOUTS[request.param], tmp_path_factory.mktemp("staged")
    folders = [f"--wheels={TOP}/.build/wheels-here", f"--tools={TOP}/.build/tools"]
    command = [TOP / "scripts/stage", f"--prefix={layout.prefix}", f"--base={layout.base}", *folders, below]
    subprocess.run(command, check=True)
    return Staged(below=below, layout=layout)


def sources(pattern: str) -> set[str]:
    found = {path.name for path in TOP.glob(pattern)}
    assert found, f"there is no {pattern}"
    return found


def test_every_program_starts_from_wherever_it_lies(staged: Staged) -> None:
    programs = staged.at(f"{staged.layout.prefix}/bin")
    assert staged.names(f"{staged.layout.prefix}/bin") == set(PROGRAMS)
    for name in PROGRAMS.keys() - {"cage-mediator", "cage-portal", "cage-spawner"}:
        ended = subprocess.run([programs / name, "--help"], capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert name in ended.stdout
    for name in ("bin/cagectl", "bin/cage-desktop", "sbin/caged"):
        command = staged.at(f"{staged.layout.base}/{name}")
        assert str(command.readlink()) == f"{staged.layout.prefix}/bin/{command.name}"


def test_modules_are_whole_and_find_what_is_delivered_with_them(staged: Staged) -> None:
    lib = staged.at(f"{staged.layout.prefix}/lib")
    for package in ("cage_runtime", "mediators"):
        ours = {path.relative_to(TOP) for path in (TOP / package).rglob("*.py")}
        assert {path.relative_to(lib) for path in (lib / package).rglob("*.py")} == ours
    say = "import dbus_fast, msgspec, pyseccomp; from cage_runtime.config import Paths; print(Paths().shipped)"
    program = ["/usr/bin/python3", "-ISB", "-c", f"import sys; sys.path.append({str(lib)!r}); {say}"]
    found = subprocess.run(program, capture_output=True, text=True, check=True).stdout.strip()
    assert found == str(staged.at(staged.layout.prefix))
    delivered = {path.name for path in (TOP / "policies").iterdir()} - {"dbus", "dbus-services", "polkit"}
    assert staged.names(staged.layout.prefix) == delivered | {"bin", "lib"}
    assert {"caged.conf", "levels.toml", "policy.d", "templates.d", "seccomp.d"} <= delivered


def test_what_systemd_reads_is_complete(staged: Staged) -> None:
    systemd = f"{staged.layout.base}/lib/systemd"
    files = [path for path in (TOP / "systemd").iterdir() if path.is_file()]
    units = {path.name for path in files if path.suffix not in (".conf", ".preset")}
    assert {"caged.service", "cage-spawner.service"} <= units
    mediators = manifest.load(Paths(shipped=str(TOP / "policies"), administrator="/nonexistent"))
    drop_ins = {f"cage-mediator@{mediator.name}.service.d" for mediator in mediators if mediator.folder}
    assert staged.names(f"{systemd}/system") == units | drop_ins | {"cage-mediators.target.wants"}
    assert staged.names(f"{systemd}/system/cage-mediators.target.wants") == {
        f"cage-mediator@{mediator.name}.service" for mediator in mediators}
    assert staged.names(f"{systemd}/system-preset") == sources("systemd/*.preset")
    assert staged.names(f"{systemd}/catalog") == sources("cage_runtime/resources/*.catalog")
    for kind in ("sysusers", "tmpfiles"):
        expected = {name.replace(f".{kind}.conf", ".conf") for name in sources(f"systemd/*.{kind}.conf")}
        assert staged.names(f"{staged.layout.base}/lib/{kind}.d") == expected


def test_what_others_read_is_complete(staged: Staged) -> None:
    share = f"{staged.layout.base}/share"
    assert staged.names(f"{staged.layout.bus}/system.d") == sources("policies/dbus/*.conf")
    pages = {page for section in (1, 5, 8) for page in staged.names(f"{share}/man/man{section}")}
    assert pages == sources("cage_runtime/resources/man/*")
    keys = staged.at("/etc/cage-runtime/keys")
    assert (keys.is_dir(), list(keys.iterdir()), keys.stat().st_mode & 0o777) == (True, [], 0o755)
    assert staged.names("/etc/xdg/autostart") == {"cage-desktop.desktop"}
    assert {"cagectl.1", "incage.1", "cage.policy.5", "cage.toml.5", "caged.conf.5", "org.cageruntime.Core1.5",
            "caged.8"} <= pages  # fmt: skip
    assert staged.names(f"{share}/bash-completion/completions") == {"cagectl", "incage"}
    assert staged.names(f"{share}/zsh/{staged.layout.zsh}") == {"_cagectl", "_incage"}
    assert staged.names(f"{share}/fish/vendor_completions.d") == {"cagectl.fish", "incage.fish"}
    for kind, directory in (("dbus-services/*.service", f"{share}/dbus-1/system-services"),
                            ("polkit/*.policy", "/usr/share/polkit-1/actions")):  # fmt: skip
        wanted = {path.name for path in (TOP / "policies").glob(kind)}
        assert wanted == (staged.names(directory) if wanted else set())


def test_files_name_the_prefix_that_they_are_for(staged: Staged) -> None:
    other = next(layout.prefix for layout in LAYOUTS.values() if layout != staged.layout)
    for file in (path for path in staged.below.rglob("*") if path.is_file() and not path.is_symlink()):
        place = "/" + str(file.relative_to(staged.below))
        if place.startswith(f"{staged.layout.prefix}/lib/"):
            continue
        named = set(re.findall(rf"{other}\S*", file.read_text()))
        # A manual page and the buses of a cage speak of the place inside.
        buses = tuple(f"{staged.layout.prefix}/{name}/" for name in ("cage-bus", "session-bus"))
        inside = place.startswith(buses) or "/man/" in place
        assert not named or (inside and other + "/" == IN_A_CAGE), place
        assert file.stat().st_mode & 0o7777 in (0o644, 0o755)


def test_the_units_start_what_is_there(staged: Staged) -> None:
    for unit in staged.at(f"{staged.layout.base}/lib/systemd/system").glob("*.service"):
        for program in re.findall(r"^ExecStart=(\S+)", unit.read_text(), re.MULTILINE):
            assert staged.at(program).is_file()
            assert program.startswith(f"{staged.layout.prefix}/bin/")


def test_the_package_depends_on_the_versions_of_python_that_it_carries_modules_for() -> None:
    (carried,) = re.findall(r"^readonly PYTHONS=\((.*?)\)", (TOP / "scripts/build-deb").read_text(), re.MULTILINE)
    control = (TOP / "scripts/debian/control").read_text()
    assert carried == "3.11 3.13"
    assert "python3 (>= 3.11), python3 (<< 3.12) | python3 (>= 3.13), python3 (<< 3.14)," in control
    assert "-V 3\\.11-3\\.13/" in (TOP / "scripts/debian/rules").read_text()


def test_the_version_is_one() -> None:
    version = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["version"]
    assert (TOP / "scripts/debian/changelog").read_text().startswith(f"cage-runtime ({version}) ")
    said = subprocess.run([TOP / ".build/runtime/bin/cagectl", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"cagectl {version}\n"
