# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where applications come from: remotes with the OpenPGP key that somebody pinned for each, and checked copies.

A Mirror is a repository of our own that lives as long as one piece of work.  What is in it was pulled by ostree with
the signatures of summary and commits and the checksum of every object checked, over http and from a directory alike
(--untrusted), so that flatpak may install from it as from any local repository: without checking objects again.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import msgspec

from cage_runtime.decoding import decode
from cage_runtime.errors import NameTaken, RemoteUnavailable, RuntimeFailure, UntrustedSource, UsageError
from cage_runtime.flatpak.command import ProgramFailed, Runner, TooSlow
from cage_runtime.flatpak.metadata import METADATA_BYTES_MAX, Ref, parse_ref
from cage_runtime.text import escape

KEY_BYTES_MAX = 1024 * 1024
"""Bytes in a pinned key file."""
REMOTES_MAX = 64
URL_MAX = 1024
QUICK_SECONDS = 60.0
"""For a command that fetches at most a summary or a commit."""
FETCH_SECONDS = 3600.0
"""For a command that fetches whole applications."""

_WEB = re.compile(r"https?://[A-Za-z0-9.-]+(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~%+-]*)*\Z")
_DIRECTORY = re.compile(r"file://(?:/[A-Za-z0-9_+@~-][A-Za-z0-9._+@~-]*)+/?\Z")
_COMMIT = re.compile(rb"[0-9a-f]{64}\n?\Z")
_DATE = re.compile(rb"^Date:  ([0-9]{4,6}-[0-9]{2}-[0-9]{2} [0-9:]{8} [+-][0-9]{4})$", re.MULTILINE)
_SOUND = frozenset("oqnmfu-")
"""Validity letters of `gpg --with-colons` that neither expiry nor revocation has (gnupg, doc/DETAILS)."""


class Remote(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A source of applications and the fingerprint of the key that has to sign all that comes from it."""

    name: str
    url: str
    fingerprint: str


def check_url(untrusted_url: str) -> str:
    """The URL, if a repository may be there; else UsageError.  http is as good as https: signatures decide."""
    if len(untrusted_url) > URL_MAX or not (_WEB.match(untrusted_url) or _DIRECTORY.match(untrusted_url)):
        raise UsageError(
            f'"{escape(untrusted_url, limit=120)}" cannot be the address of a repository: write https://HOST/PATH, '
            "or file:///PATH for a directory of this machine"
        )
    return untrusted_url


class Remotes:
    """The record of the remotes and their keys, in `directory`; a remote exists once the record names it."""

    def __init__(self, directory: Path, runner: Runner) -> None:
        self._directory = directory
        self._runner = runner

    def key_file(self, name: str) -> Path:
        return self._directory / "keys" / f"{name}.gpg"

    def all(self) -> list[Remote]:
        """The remotes, by name."""
        try:
            content = (self._directory / "remotes.json").read_bytes()
        except FileNotFoundError:
            return []
        try:
            return sorted(decode(content, msgspec.json.Decoder(list[Remote])), key=lambda remote: remote.name)
        except msgspec.DecodeError as error:
            raise RuntimeFailure(f"{self._directory}/remotes.json is damaged: {error}") from error

    def add(self, name: str, url: str, untrusted_key: bytes, look: Callable[[Remote, Path], None]) -> Remote:
        """Pin `untrusted_key` for what comes from `url`, once `look`, given the remote and its key's file, has raised
        nothing.  The same again changes nothing; UntrustedSource without a good key, UsageError where it is none at
        all, NameTaken where `name` stands for something else."""
        self._directory.joinpath("keys").mkdir(exist_ok=True)
        incoming = self.key_file(f".{name}")
        try:
            remote = Remote(name=name, url=url, fingerprint=self._inspect(name, untrusted_key, incoming))
            known = self.all()
            if taken := next((other for other in known if other.name == name), None):
                return _the_same(taken, remote)
            if len(known) >= REMOTES_MAX:
                raise UsageError(f"there are {REMOTES_MAX} remotes already, which is the most there may be")
            look(remote, incoming)
            incoming.replace(self.key_file(name))
            self._store([*known, remote])
            return remote
        finally:
            incoming.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Forget a remote, then its key."""
        self._store([remote for remote in self.all() if remote.name != name])
        self.key_file(name).unlink(missing_ok=True)

    def _store(self, remotes: list[Remote]) -> None:
        _store(self._directory / "remotes.json", msgspec.json.encode(remotes))

    def _inspect(self, name: str, untrusted_key: bytes, file: Path) -> str:
        """The fingerprint of the one public key in `untrusted_key`, which is in `file` afterwards."""
        advice = "give the public OpenPGP key that signs what it offers"
        if not untrusted_key:
            raise UntrustedSource(f'the remote "{name}" has no key, so that nothing from it could be checked; {advice}')
        if len(untrusted_key) > KEY_BYTES_MAX:
            raise UntrustedSource(f'the key of the remote "{name}" has more than {KEY_BYTES_MAX} bytes')
        try:
            file.write_bytes(untrusted_key)
            listing = self._runner.run(
                "gpg", "--batch", "--no-options", "--no-default-keyring", "--with-colons", "--show-keys",
                "--", str(file), seconds=QUICK_SECONDS,
            )
        except ProgramFailed as error:
            raise UsageError(f'the key given for the remote "{name}" is no OpenPGP key; {advice}') from error
        return _only_key(listing.decode("utf-8", "replace"), name)


def _the_same(taken: Remote, remote: Remote) -> Remote:
    if taken != remote:
        raise NameTaken(
            f'there is a remote "{taken.name}" already, at {taken.url} with the key {taken.fingerprint}; '
            "choose another name"
        )
    return taken


def _only_key(listing: str, name: str) -> str:
    """The fingerprint of the only key in what `gpg --with-colons --show-keys` prints."""
    records = [line.split(":") for line in listing.splitlines()]
    keys = [(record, records[at + 1 :]) for at, record in enumerate(records) if record[0] in ("pub", "sec")]
    if any(record[0] == "sec" for record, _ in keys):
        raise UntrustedSource(f'the key of the remote "{name}" is a secret key; give its public half (gpg --export)')
    if len(keys) != 1:
        raise UntrustedSource(f'the key file of the remote "{name}" holds {len(keys)} keys; give exactly one')
    record, rest = keys[0]
    if len(record) < 2 or (record[1] or "-")[0] not in _SOUND:
        raise UntrustedSource(f'the key of the remote "{name}" has expired or was revoked; ask its owner for a new one')
    fingerprint = next((other[9] for other in rest if other[0] == "fpr" and len(other) > 9), "")
    if not re.match(r"[0-9A-F]{40,64}\Z", fingerprint):
        raise UntrustedSource(f'the key of the remote "{name}" is of an old kind without a usable fingerprint')
    return fingerprint


def _store(file: Path, content: bytes) -> None:
    """Write `content` to `file`: all of it or, whatever happens, nothing."""
    fresh = file.with_name(f".{file.name}.new")
    with fresh.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(file)
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class Mirror:
    """Checked copies of what we want from one remote; see `opened`."""

    def __init__(self, *, path: Path, remote: Remote, runner: Runner) -> None:
        self.path = path
        self.remote = remote
        self._runner = runner

    @classmethod
    @contextmanager
    def opened(cls, path: Path, remote: Remote, key: Path, runner: Runner) -> Iterator[Mirror]:
        """An empty mirror of `remote` at `path`; nothing is there before and after."""
        _clear(path)
        try:
            _create(path, remote, key, runner, verify=True)
            yield cls(path=path, remote=remote, runner=runner)
        finally:
            _clear(path)

    def _ostree(self, *words: str, seconds: float = QUICK_SECONDS) -> bytes:
        # ostree knows no "--" after its verbs; names, refs and URLs were checked and cannot begin with "-".
        return self._runner.run("ostree", f"--repo={self.path}", *words, seconds=seconds)

    def refs(self) -> list[Ref]:
        """What the remote offers, by its signed summary; UntrustedSource where the signature is not the pinned key's,
        RemoteUnavailable where there is no repository to ask, or it does not answer."""
        try:
            listing = self._ostree("remote", "refs", self.remote.name)
        except ProgramFailed as error:
            self._refuse_summary(error)
        except TooSlow as error:
            raise self._silent() from error
        prefix = f"{self.remote.name}:"
        lines = listing.decode("utf-8", "replace").splitlines()
        return [ref for line in lines if line.startswith(prefix) and (ref := parse_ref(line.removeprefix(prefix)))]

    def _refuse_summary(self, error: ProgramFailed) -> NoReturn:
        """Raises what it means that the summary could not be had; the same without checking tells the two apart."""
        name, plain = self.remote.name, self.path.with_name(f"{self.path.name}.unchecked")
        _clear(plain)
        try:
            _create(plain, self.remote, None, self._runner, verify=False)
            self._runner.run("ostree", f"--repo={plain}", "remote", "refs", name, seconds=QUICK_SECONDS)
        except ProgramFailed as reason:
            raise RemoteUnavailable(
                f'the remote "{name}" offers no repository at {self.remote.url}: {reason.complaint}'
            ) from error
        except TooSlow:
            raise self._silent() from error
        finally:
            _clear(plain)
        raise UntrustedSource(
            f'the summary of the remote "{name}" is not signed by the key {self.remote.fingerprint} that is pinned '
            f"for it, so that nothing was taken from it: {error.complaint}"
        ) from error

    def _silent(self) -> RemoteUnavailable:
        remote = self.remote
        return RemoteUnavailable(
            f'the remote "{remote.name}" did not answer at {remote.url} within {QUICK_SECONDS:.0f} seconds'
        )

    def pull_commit(self, ref: Ref) -> str:
        """The commit that the remote has for `ref`, without its objects and without the ref, as `offer` takes each ref
        for whole; UntrustedSource where its signature or its checksum is wrong."""
        try:
            self._pull("--commit-metadata-only", ref)
        except ProgramFailed as error:
            self._refuse(ref, "its commit is unsigned, signed by another key, or altered", error)
        commit = self._commit(ref)
        self._ostree("refs", "--delete", str(ref))
        return commit

    def pull(self, ref: Ref, known: Path) -> str:
        """All of `ref`, each object checked, and its commit; objects that the repository `known` has are not fetched
        again.  UntrustedSource where a signature or a checksum is wrong or something is missing."""
        try:
            self._pull(f"--localcache-repo={known}", ref)
        except ProgramFailed as error:
            self.pull_commit(ref)
            self._refuse(ref, "an object of it is altered or missing", error)
        return self._commit(ref)

    def _pull(self, option: str, ref: Ref) -> None:
        words = ("pull", "--mirror", "--untrusted", option, self.remote.name, str(ref))
        self._ostree(*words, seconds=FETCH_SECONDS)

    def _refuse(self, ref: Ref, why: str, error: ProgramFailed) -> NoReturn:
        # A remote that still shows its signed summary was not simply cut off.
        self.refs()
        raise UntrustedSource(
            f'{ref} from the remote "{self.remote.name}" failed its check and was not taken: {why}: {error.complaint}'
        ) from error

    def _commit(self, ref: Ref) -> str:
        commit = self._ostree("rev-parse", str(ref))
        if not _COMMIT.match(commit):
            raise RuntimeFailure(f"ostree names no commit for {ref}")
        return commit.decode("ascii").strip()

    def date(self, commit: str) -> datetime:
        return commit_date(self._runner, self.path, commit)

    def metadata(self, ref: Ref) -> bytes:
        """The metadata file of `ref`, which has been pulled."""
        try:
            content = self._ostree("cat", str(ref), "/metadata")
        except ProgramFailed as error:
            raise UntrustedSource(f"{ref} has no metadata file and is no Flatpak: {error.complaint}") from error
        return content[: METADATA_BYTES_MAX + 1]

    def offer(self) -> None:
        """Give the mirror the summary that flatpak asks for.  It is ours and unsigned, and its place is only ours."""
        argv = ("flatpak", "build-update-repo", "--no-update-appstream", "--", str(self.path))
        self._runner.run(*argv, seconds=FETCH_SECONDS)


def commit_date(runner: Runner, repository: Path, commit: str) -> datetime:
    """When `commit`, which is in `repository`, was made, as its signer says."""
    shown = runner.run("ostree", f"--repo={repository}", "show", commit, seconds=QUICK_SECONDS)
    found = _DATE.search(shown)
    if found is None:
        raise RuntimeFailure(f"ostree shows no date for the commit {commit}")
    return datetime.strptime(found[1].decode("ascii"), "%Y-%m-%d %H:%M:%S %z")


def _create(path: Path, remote: Remote, key: Path | None, runner: Runner, *, verify: bool) -> None:
    runner.run("ostree", f"--repo={path}", "init", "--mode=archive", seconds=QUICK_SECONDS)
    checks = [f"--set=gpg-verify={str(verify).lower()}", f"--set=gpg-verify-summary={str(verify).lower()}"]
    imports = [f"--gpg-import={key}"] if key else []
    words = ("remote", "add", *checks, *imports, remote.name, remote.url)
    runner.run("ostree", f"--repo={path}", *words, seconds=QUICK_SECONDS)


def _clear(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
