# SPDX-License-Identifier: LGPL-2.1-or-later
"""The sample repository of scripts/build-sample-app, and what can be done to it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOP = Path(__file__).parents[2]
NOTES, PLATFORM = "org.cageruntime.Notes", "org.cageruntime.Platform"
DIARY = "org.cageruntime.Diary"
"""What `Sample.add_diary` makes."""
EDITOR = "org.cageruntime.Editor"
"""What `Sample.add_editor` makes."""


def run(*argv: str | Path, **options: Any) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return str(done.stdout).strip()


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory that an unprivileged user may enter and a socket's address has room for."""
    with tempfile.TemporaryDirectory(prefix="apps-", ignore_cleanup_errors=False) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    directory: Path

    @property
    def repository(self) -> Path:
        return self.directory / "repo"

    @property
    def key(self) -> bytes:
        return (self.directory / "key.gpg").read_bytes()

    def ostree(self, verb: str, *words: str) -> str:
        return run("ostree", verb, f"--repo={self.repository}", *words)

    @property
    def ref(self) -> str:
        return next(ref for ref in self.ostree("refs").splitlines() if ref.startswith(f"app/{NOTES}/"))

    @property
    def commit(self) -> str:
        return self.ostree("rev-parse", self.ref)

    def file_object(self, path: str) -> Path:
        return self.object(self.ostree("ls", "-C", self.ref, path).split()[4], "filez")

    def object(self, checksum: str, kind: str) -> Path:
        return self.repository / "objects" / checksum[:2] / f"{checksum[2:]}.{kind}"

    def copy(self, directory: Path) -> Sample:
        shutil.copytree(self.directory, directory, symlinks=True)
        return Sample(directory=directory)

    def build(self, *options: str) -> None:
        run(TOP / "scripts/build-sample-app", *options, self.directory)

    def add_diary(self, note: str) -> str:
        """Offer one more application on the same runtime, signed by the same key: a copy of Notes with `note` in it.
        The commit."""
        return self._add(DIARY, {"files/note": note})

    def add_editor(self, script: str, types: str) -> str:
        """As `add_diary`, but one that executes `script`, and whose menu entry has the MIME `types`."""
        entry = f"[Desktop Entry]\nType=Application\nName=Editor\nExec=notes --bad %U\nMimeType={types}\n"
        return self._add(EDITOR, {"files/bin/notes": script, f"export/share/applications/{EDITOR}.desktop": entry})

    def _add(self, application: str, files: Mapping[str, str]) -> str:
        with short_directory() as directory:
            tree, home = directory / "tree", directory / "home"
            home.mkdir(mode=0o700)
            run("gpg", "--batch", "--quiet", "--homedir", home, "--import", self.directory / "secret.asc")
            self.ostree("checkout", "--user-mode", self.ref, str(tree))
            shutil.rmtree(tree / "export")
            tree.joinpath("export").mkdir()
            metadata = (tree / "metadata").read_text().replace(f"name={NOTES}", f"name={application}")
            for name, content in {"metadata": metadata, **files}.items():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                (tree / name).unlink(missing_ok=True)
                (tree / name).write_text(content)
                if "/bin/" in name:
                    (tree / name).chmod(0o755)
            listing = run("gpg", "--homedir", home, "--with-colons", "--list-secret-keys").splitlines()
            key = next(line.split(":")[9] for line in listing if line.startswith("fpr:"))
            signed = (f"--gpg-sign={key}", f"--gpg-homedir={home}")
            run("flatpak", "build-export", *signed, self.repository, tree, "stable")
            run("gpgconf", "--homedir", home, "--kill", "all")
        return self.ostree("rev-parse", self.ref.replace(NOTES, application))
