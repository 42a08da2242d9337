# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one installation that all cages share: a flatpak user installation of the user that this runs as.

Everything that an operation needs is fetched and checked before flatpak is asked to change anything.  An install that
fails leaves nothing; an update that fails leaves each application and runtime old or new, never between.  One at a
time: whoever has an Installation serialises its calls, `cancel` apart.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cage_runtime.errors import CageError, NoSuchApplication, RemoteUnavailable, RuntimeFailure, UntrustedSource
from cage_runtime.flatpak.command import ProgramFailed, Runner, Surroundings
from cage_runtime.flatpak.export import read_entry
from cage_runtime.flatpak.metadata import (
    METADATA_BYTES_MAX,
    Kind,
    Metadata,
    Ref,
    check_application,
    check_remote,
    companions,
    parse_metadata,
    trees,
)
from cage_runtime.flatpak.remotes import FETCH_SECONDS, QUICK_SECONDS, Mirror, Remote, Remotes, check_url, commit_date

USUAL_BRANCHES = ("stable", "master")
"""Branches that are taken, in this order, where an application has several."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Installed:
    """An application that is there.  `commit` is what was deployed, `runtime` NAME/ARCH/BRANCH."""

    application: str
    branch: str
    commit: str
    remote: str
    runtime: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One remote during one operation: its mirror and what it offers."""

    mirror: Mirror
    refs: frozenset[Ref]


class Sources:
    """Remotes in the order in which they are asked; each is asked once, and only if those before it did not do.

    One that does not answer is passed over; whether that matters is only known when nothing is found.
    """

    def __init__(self, remotes: Sequence[Remote], ask: Callable[[Remote], Source]) -> None:
        self._waiting = list(remotes)
        self._ask = ask
        self._asked: list[Source] = []
        self.silent: list[RemoteUnavailable] = []

    def __iter__(self) -> Iterator[Source]:
        yield from self._asked
        while self._waiting:
            try:
                self._asked.append(self._ask(self._waiting.pop(0)))
            except RemoteUnavailable as error:
                self.silent.append(error)
                continue
            yield self._asked[-1]

    def offering(self, ref: Ref) -> Source:
        """The first that has `ref`; NoSuchApplication where none has."""
        for source in self:
            if ref in source.refs:
                return source
        advice = self.who_is_silent() or "add one that does"
        raise NoSuchApplication(f"no remote that answers offers {ref}, which the application needs; {advice}")

    def who_is_silent(self) -> str:
        """Of the remotes that did not answer, a sentence each; empty where all did."""
        return "; ".join(error.sentence for error in self.silent)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One ref that has to be fetched: from where, and which commit."""

    ref: Ref
    commit: str
    source: Source


class Installation:
    """Applications and runtimes in `directory`, which is created if its parent allows."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        surroundings = Surroundings(installation=directory, private=directory / "private")
        try:
            directory.mkdir(mode=0o755, exist_ok=True)
            surroundings.create()
        except OSError as error:
            raise RuntimeFailure(f"{directory} cannot be used for applications: {error.strerror}; its owner must be "
                                 "the user that applications are kept by") from error
        self._runner = Runner(surroundings)
        self._remotes = Remotes(directory, self._runner)
        self._arch = ""

    def begin(self) -> None:
        """Before each operation that `cancel` may end."""
        self._runner.begin()

    def cancel(self) -> None:
        """End the operation that is under way in another thread; it raises CageError."""
        self._runner.cancel()

    # --- remotes ---------------------------------------------------------------------------------------------
    def add_remote(self, untrusted_name: str, untrusted_url: str, untrusted_key: bytes) -> str:
        """Pin a key for a source of applications, if that shows a summary signed with it, and return its fingerprint;
        UntrustedSource without a good key or signature, RemoteUnavailable where there is nothing to see."""
        name, url = check_remote(untrusted_name), check_url(untrusted_url)
        return self._remotes.add(name, url, untrusted_key, self._look_at).fingerprint

    def _look_at(self, remote: Remote, key: Path) -> None:
        with Mirror.opened(self._mirrors() / remote.name, remote, key, self._runner) as mirror:
            mirror.refs()

    def remove_remote(self, untrusted_name: str) -> None:
        """Forget a source of applications and its key; CageError while something that came from it is there."""
        remote = self._known(check_remote(untrusted_name), "cagectl app remotes lists those that there are")
        ours = [ref for kind in Kind for ref in self._deployed(kind) if self._came_from(ref, remote)]
        if ours:
            names = ", ".join(sorted({ref.name for ref in ours}))
            raise CageError(f'the remote "{remote.name}" is needed: {names} came from it; remove applications first')
        self._remotes.remove(remote.name)
        self._run_on_repository("remote", "delete", "--if-exists", remote.name)

    def remotes(self) -> list[Remote]:
        return self._remotes.all()

    # --- what is there ---------------------------------------------------------------------------------------
    def installed(self) -> list[Installed]:
        """The applications, by name.  Read from the installation's own files, so that it is quick."""
        return [self._describe(ref) for ref in self._deployed(Kind.APPLICATION)]

    def trees(self, untrusted_name: str) -> list[str]:
        """The directories of the installation that a cage has to see to run an application, sorted, such as
        `app/org.example.App` and `runtime/org.example.Platform`; see this room's docstring for what else it needs."""
        ref = self._find(check_application(untrusted_name))
        application = self._metadata(ref)
        runtimes = self._deployed(Kind.RUNTIME)
        if application.runtime not in runtimes:
            raise RuntimeFailure(f"{ref.name} cannot run: its runtime {application.runtime} is not installed; "
                                 "run: cagectl app update CAGE")
        return trees(application, self._metadata(application.runtime), {runtime.name for runtime in runtimes})

    def menu_entry(self, untrusted_name: str) -> dict[str, str]:
        """What the application's own menu entry says of it (export.read_entry)."""
        ref = self._find(check_application(untrusted_name))
        return read_entry(self._active(ref), ref.name, self._metadata(ref).command)

    def _deployed(self, kind: Kind, name: str = "*") -> list[Ref]:
        found = []
        for active in self.directory.glob(f"{kind}/{name}/*/*/active"):
            tree, arch, branch = active.parts[-4:-1]
            if arch != "current":
                found.append(Ref(kind=kind, name=tree, arch=arch, branch=branch))
        return sorted(found)

    def _find(self, application: str) -> Ref:
        found = self._deployed(Kind.APPLICATION, application)
        if not found:
            raise NoSuchApplication(f"{application} is not installed; run: cagectl app install CAGE {application}")
        return found[0]

    def _active(self, ref: Ref) -> Path:
        return self.directory / str(ref) / "active"

    def _deployed_commit(self, ref: Ref) -> str | None:
        try:
            return os.readlink(self._active(ref))
        except FileNotFoundError:
            return None

    def _metadata(self, ref: Ref) -> Metadata:
        try:
            with self._active(ref).joinpath("metadata").open("rb") as file:
                return parse_metadata(file.read(METADATA_BYTES_MAX + 1), ref.name)
        except OSError as error:
            raise RuntimeFailure(f"{ref} is damaged ({error.strerror}); remove it and install it again") from error

    def _origin(self, ref: Ref) -> str:
        origins = [remote.name for remote in self.remotes() if self._came_from(ref, remote)]
        return origins[0] if origins else ""

    def _came_from(self, ref: Ref, remote: Remote) -> bool:
        return self.directory.joinpath("repo/refs/remotes", remote.name, str(ref)).exists()

    def _describe(self, ref: Ref) -> Installed:
        runtime = self._metadata(ref).runtime
        return Installed(
            application=ref.name, branch=ref.branch, commit=self._deployed_commit(ref) or "", remote=self._origin(ref),
            runtime=f"{runtime.name}/{runtime.arch}/{runtime.branch}",
        )

    # --- changing it -----------------------------------------------------------------------------------------
    def install(self, untrusted_name: str, untrusted_remote: str = "") -> Installed:
        """Install an application and what it needs, from one remote or from whichever has it.  One that is there
        already stays as it is.  NoSuchApplication, UntrustedSource or RemoteUnavailable where it cannot be had."""
        name = check_application(untrusted_name)
        wanted = self._remote(check_remote(untrusted_remote)) if untrusted_remote else None
        if deployed := self._deployed(Kind.APPLICATION, name):
            there = self._describe(deployed[0])
            if wanted and wanted.name != there.remote:
                raise CageError(f'{name} is installed from the remote "{there.remote}" already; remove it there first')
            return there
        with self._sources(wanted) as sources:
            ref = self._offered(name, sources, wanted)
            self._bring(self._plan(ref, sources))
        return self._describe(ref)

    def update(self, untrusted_name: str) -> Installed:
        """Bring an application and what it needs to what their remotes have; nothing changes where nothing is new."""
        ref = self._find(check_application(untrusted_name))
        origin = self._remote(self._origin(ref))
        with self._sources(origin) as sources:
            if sources.offering(ref).mirror.remote != origin:
                raise NoSuchApplication(f'the remote "{origin.name}" does not offer {ref.name} any more')
            self._bring(self._plan(ref, sources))
        return self._describe(ref)

    def remove(self, untrusted_name: str) -> None:
        """Remove an application, and the runtimes that nothing needs any more."""
        ref = self._find(check_application(untrusted_name))
        with self._runner.quiet_bus():
            self._flatpak("uninstall", "--", str(ref))
            self._sweep()

    def _remote(self, name: str) -> Remote:
        return self._known(name, "add it with its key: cagectl app remote-add")

    def _known(self, name: str, advice: str) -> Remote:
        for remote in self.remotes():
            if remote.name == name:
                return remote
        raise UntrustedSource(f'there is no remote "{name}"; {advice}')

    def _mirrors(self) -> Path:
        """Where mirrors are during one operation; what an earlier one was kept from clearing away is not there."""
        mirrors = self.directory / "mirrors"
        if mirrors.exists():
            shutil.rmtree(mirrors)
        mirrors.mkdir()
        return mirrors

    @contextmanager
    def _sources(self, first: Remote | None) -> Iterator[Sources]:
        """All remotes, `first` first."""
        mirrors = self._mirrors()
        with ExitStack() as stack:

            def ask(remote: Remote) -> Source:
                key = self._remotes.key_file(remote.name)
                mirror = stack.enter_context(Mirror.opened(mirrors / remote.name, remote, key, self._runner))
                return Source(mirror=mirror, refs=frozenset(mirror.refs()))

            yield Sources(sorted(self.remotes(), key=lambda remote: remote != first), ask)

    def _offered(self, name: str, sources: Sources, wanted: Remote | None) -> Ref:
        """The ref of the application `name` for this machine: `wanted` has it, or the first remote that does."""
        arch, asked = self._architecture(), []
        for source in sources:
            if wanted not in (None, source.mirror.remote):
                break
            asked.append(source.mirror.remote.name)
            refs = {r.branch: r for r in source.refs if (r.kind, r.name, r.arch) == (Kind.APPLICATION, name, arch)}
            for branch in (*USUAL_BRANCHES, *sorted(refs)):
                if branch in refs:
                    return refs[branch]
        silent = sources.who_is_silent()
        if silent and not asked:
            raise RemoteUnavailable(silent)
        if not asked:
            raise NoSuchApplication(f"{name} cannot be installed, as there is no remote; see cagectl app remote-add")
        where = f"the remote{'s' if len(asked) > 1 else ''} {', '.join(asked)}"
        advice = silent or "check the name, or add a remote"
        raise NoSuchApplication(f"there is no {name} for {arch} in {where}; {advice}")

    def _architecture(self) -> str:
        if not self._arch:
            self._arch = self._runner.run("flatpak", "--default-arch", seconds=QUICK_SECONDS).decode("ascii").strip()
        return self._arch

    def _plan(self, ref: Ref, sources: Sources) -> list[Step]:
        """What has to be fetched for `ref` to be there and current, runtimes first.  All of it has been pulled and
        checked when this returns, and its metadata read."""
        step, application = self._read(ref, sources)
        runtime_step, runtime = self._read(application.runtime, sources)
        extras = [
            self._checked(extra, needed.source)
            for metadata, needed in ((runtime, runtime_step), (application, step))
            for extra in companions(metadata, needed.source.refs)
        ]
        return [step for step in (runtime_step, *extras, step) if self._deployed_commit(step.ref) != step.commit]

    def _read(self, ref: Ref, sources: Sources) -> tuple[Step, Metadata]:
        """Where `ref` comes from, and its metadata: pulled and checked, or as it is deployed where that is current."""
        step = self._checked(ref, sources.offering(ref))
        if self._deployed_commit(ref) == step.commit:
            return step, self._metadata(ref)
        metadata = parse_metadata(step.source.mirror.metadata(ref), str(ref))
        if (metadata.kind, metadata.name) != (ref.kind, ref.name):
            raise UntrustedSource(f"{ref} says of itself that it is {metadata.kind}/{metadata.name}, and is refused")
        return step, metadata

    def _checked(self, ref: Ref, source: Source) -> Step:
        """The current commit of `ref`, pulled into the mirror unless it is deployed already."""
        deployed, mirror = self._deployed_commit(ref), source.mirror
        commit = mirror.pull_commit(ref) if deployed else mirror.pull(ref, self._repository())
        if deployed not in (None, commit):
            self._refuse_older(ref, mirror.date(commit), mirror.remote)
            mirror.pull(ref, self._repository())
        return Step(ref=ref, commit=commit, source=source)

    def _refuse_older(self, ref: Ref, offered: datetime, remote: Remote) -> None:
        """Old signatures stay good: a remote that offers yesterday's commit would bring yesterday's faults back."""
        deployed = commit_date(self._runner, self._repository(), self._deployed_commit(ref) or "")
        if offered < deployed:
            raise UntrustedSource(
                f'the remote "{remote.name}" offers {ref} of {offered:%Y-%m-%d %H:%M:%S}, which is older than what is '
                f"installed, of {deployed:%Y-%m-%d %H:%M:%S}; remove the application first if that is what you want"
            )

    def _repository(self) -> Path:
        """The installation's own repository."""
        repository = self.directory / "repo"
        if not repository.joinpath("config").exists():
            self._runner.run("ostree", f"--repo={repository}", "init", "--mode=bare-user-only", seconds=QUICK_SECONDS)
        return repository

    def _bring(self, steps: list[Step]) -> None:
        """Have flatpak install or update what is in the mirrors."""
        if not steps:
            return
        for mirror in {step.source.mirror.path: step.source.mirror for step in steps}.values():
            mirror.offer()
            self._point_at(mirror)
        with self._runner.quiet_bus():
            try:
                for step in steps:
                    self._bring_one(step)
            except CageError:
                self._sweep()
                raise

    def _bring_one(self, step: Step) -> None:
        alone = ("--no-deps", "--no-related")
        if self._deployed_commit(step.ref) is None:
            self._flatpak("install", *alone, "--no-auto-pin", "--", step.source.mirror.remote.name, str(step.ref))
        else:
            self._flatpak("update", *alone, "--", str(step.ref))
        if self._deployed_commit(step.ref) != step.commit:
            raise RuntimeFailure(f"flatpak did not deploy the commit {step.commit} of {step.ref} that was checked")

    def _point_at(self, mirror: Mirror) -> None:
        """Make `mirror` the place that the installation's remote of that name is at.  Commits stay checked against
        the pinned key; the summary is the mirror's own."""
        name = mirror.remote.name
        key = self._remotes.key_file(name)
        self._run_on_repository("remote", "delete", "--if-exists", name)
        self._run_on_repository("remote", "add", "--set=gpg-verify=true", "--set=gpg-verify-summary=false",
                                f"--gpg-import={key}", name, f"file://{mirror.path}")

    def _run_on_repository(self, *words: str) -> None:
        self._runner.run("ostree", f"--repo={self._repository()}", *words, seconds=QUICK_SECONDS)

    def _flatpak(self, verb: str, *words: str, cleaning: bool = False) -> None:
        argv = ("flatpak", verb, "--user", "--assumeyes", "--noninteractive", *words)
        self._runner.run(*argv, seconds=FETCH_SECONDS, cleaning=cleaning)

    def _sweep(self) -> None:
        """Remove the runtimes that no application needs."""
        try:
            self._flatpak("uninstall", "--unused", cleaning=True)
        except ProgramFailed as error:
            raise RuntimeFailure(f"runtimes that nothing needs could not be removed: {error.complaint}") from error
