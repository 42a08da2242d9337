# SPDX-License-Identifier: LGPL-2.1-or-later
"""The two disks of a small guest: the distribution, made once and kept, and the task, made for each boot.

The task's disk holds the runtime as its package has it, the tests, and afterwards what they came to; it is made and
read without a mount.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.vm.host import image
from tests.vm.host.image import Files
from tests.vm.host.plan import TOP
from tests.vm.host.recipe import KERNEL, Recipe, Suite, dependencies

INIT = Path(__file__).parents[1] / "init"
FOR_GUEST = (KERNEL, "bash", "e2fsprogs", "iproute2", "kmod", "procps", "systemd-standalone-sysusers", "util-linux")
FOR_TESTS = ("python3-pytest", "strace")
ROOT_BYTES = 2 << 30
TASK_BYTES = 192 << 20
PUSHED = ("README.md", "scripts", "systemd", "tests")
PYTEST = ("python3", "-B", "-m", "pytest", "-c", "tests/kernels/pytest.ini", "--rootdir=.",
          "--confcutdir=tests/kernels", "--verbose", "--junitxml=/task/results/junit.xml")


def depends(control: str) -> tuple[str, ...]:
    """The packages that the runtime's package depends on, from the text of scripts/debian/control."""
    lines = [line for line in control.splitlines() if not line.startswith("#")]
    start = lines.index("Depends:") + 1
    field = []
    for line in lines[start:]:
        if not line.startswith(" "):
            break
        field.append(line)
    return tuple(name for name in dependencies("".join(field)) if not name.startswith("$"))


def recipe(suite: Suite) -> Recipe:
    """The distribution's own, with what the runtime depends on and no service manager."""
    needed = set(depends((TOP / "scripts/debian/control").read_text(encoding="utf-8"))) - {"systemd"}
    sources = (INIT, Path(__file__), Path(image.__file__))
    made_by = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    packages = tuple(sorted({*FOR_GUEST, *FOR_TESTS, *needed}))
    return Recipe(suite=suite, packages=packages, emulator="", made_by=made_by)


def build(wanted: Recipe, directory: Path) -> Files:
    """Kernel and root disk in an empty directory."""
    files = Files(directory=directory)
    root = directory / "root"
    image.install(wanted, root)
    shutil.copyfile(INIT, root / "init")
    (root / "init").chmod(0o755)
    (root / "task").mkdir()
    (root / "usr/lib/cage-runtime").mkdir()
    shutil.rmtree(root / "var/lib/apt/lists")
    image.copy_kernel(root, files.kernel)
    image.make_disk(root, files.disk, ROOT_BYTES)
    shutil.rmtree(root)
    return files


def task(directory: Path, runtime: Path, extra: Iterable[Path], arguments: Sequence[str]) -> Path:
    """A disk with the runtime (laid out below `runtime`), the tests, `extra` programs and the command, as a file."""
    tree = directory / "task"
    shutil.copytree(runtime, tree / "below", symlinks=True)
    for name in PUSHED:
        source, place = TOP / name, tree / "tree" / name
        if source.is_dir():
            shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, place)
    (tree / "bin").mkdir()
    for program in extra:
        shutil.copy(program, tree / "bin")
    (tree / "results").mkdir()
    (tree / "command").write_text(f"cd /task/tree\nexec {shlex.join([*PYTEST, *arguments])}\n", encoding="utf-8")
    disk = directory / "task.ext4"
    image.make_disk(tree, disk, TASK_BYTES)
    shutil.rmtree(tree)
    return disk


def read_results(disk: Path, place: Path) -> None:
    """What the guest has left in the folder of results, into the directory `place`."""
    subprocess.run(["debugfs", "-R", f"rdump /results {place}", disk], check=True, stdin=subprocess.DEVNULL,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
