# SPDX-License-Identifier: LGPL-2.1-or-later
"""cage-apps with the real flatpak and ostree: what is signed is installed, what was touched is refused, and a cage
that is shown what `Trees` says, and no more, can run the application.

The service runs as an unprivileged user on a bus of its own; repositories are built by scripts/build-sample-app.
"""

from __future__ import annotations

import asyncio
import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cage_runtime.bus import Bus
from cage_runtime.errors import (
    CageError,
    InvalidName,
    NameTaken,
    NoSuchApplication,
    RemoteUnavailable,
    UntrustedSource,
    UsageError,
)
from tests.privileged.sample import DIARY, NOTES, PLATFORM, TOP, Sample, run, short_directory

USER = 65534
"""Anybody unprivileged that every system knows: nobody."""
BUS_CONFIG = """<busconfig><type>system</type><listen>unix:path={bus}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/>
<allow receive_sender="*"/></policy></busconfig>"""


class Apps:
    """A running cage-apps and how to call it."""

    def __init__(self, directory: Path, processes: list[subprocess.Popen[bytes]]) -> None:
        self.directory = directory
        self.processes = processes
        self.installation = directory / "state/flatpak"
        self.address = f"unix:path={directory}/bus"

    def call(self, member: str, signature: str = "", *arguments: Any) -> Any:
        async def once() -> Any:
            bus = await Bus.connect(self.address)
            try:
                return await self.ask(bus, member, signature, *arguments)
            finally:
                bus.disconnect()

        return asyncio.run(once())

    async def ask(self, bus: Bus, member: str, signature: str = "", *arguments: Any) -> Any:
        name = "org.cageruntime.Apps1"
        answer = await bus.call(name, "/org/cageruntime/Apps1", name, member, signature, arguments)
        return answer.values[0] if answer.values else None

    def add(self, sample: Sample, name: str = "sample", url: str = "", key: bytes | None = None) -> str:
        address = url or f"file://{sample.repository}"
        return str(self.call("AddRemote", "ssay", name, address, sample.key if key is None else key))

    def install(self, application: str = NOTES, remote: str = "") -> dict[str, str]:
        return dict(self.call("Install", "ss", application, remote))

    def has_no_remotes(self) -> bool:
        # pathlib's * takes hidden names too.
        left = [*self.installation.glob("keys/*"), *self.installation.glob("mirrors/*")]
        return self.call("ListRemotes") == [] and left == []

    def nothing_is_installed(self) -> bool:
        """No application, no runtime, no mirror, no object of either."""
        left = [*self.installation.glob("app/*/*"), *self.installation.glob("runtime/*/*/*/*"),
                *self.installation.glob("mirrors/*"), *self.installation.glob("repo/objects/*/*.commit")]
        return self.call("List") == [] and left == []


@contextmanager
def processes_ended() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield started
    finally:
        for process in reversed(started):
            with process:
                process.terminate()


@pytest.fixture
def apps() -> Iterator[Apps]:
    with short_directory() as directory, processes_ended() as processes:
        apps = Apps(directory, processes)
        installation = directory / "state/flatpak"
        installation.mkdir(parents=True)
        os.chown(installation, USER, USER)
        directory.joinpath("bus.conf").write_text(BUS_CONFIG.format(bus=f"{directory}/bus"))
        directory.joinpath("caged.conf").write_text(
            f'[paths]\nstate = "{directory}/state"\nshipped = "{TOP}/policies"\n'
            '[users]\ncaged = "nobody"\napps = "nobody"\n'
        )
        config = f"--config-file={directory}/bus.conf"
        argv = ["dbus-daemon", config, "--nofork", "--nopidfile", "--print-address=1"]
        bus = subprocess.Popen(argv, stdout=subprocess.PIPE)
        processes.append(bus)
        assert bus.stdout is not None
        assert bus.stdout.readline()
        processes.append(start_service(apps))
        yield apps


def start_service(apps: Apps) -> subprocess.Popen[bytes]:
    """The service, which has its name on the bus when this returns."""

    async def started() -> subprocess.Popen[bytes]:
        bus = await Bus.connect(apps.address)
        present = asyncio.Event()
        bus.listen(lambda message: present.set() if message.body[:1] == ["org.cageruntime.Apps1"] else None)
        await bus.match("type='signal',member='NameOwnerChanged',arg0='org.cageruntime.Apps1'")
        environment = {"PATH": "/usr/bin:/bin", "DBUS_SYSTEM_BUS_ADDRESS": apps.address, "PYTHONPATH": str(TOP),
                       "PYTHONDONTWRITEBYTECODE": "1"}
        argv = [sys.executable, "-m", "cage_runtime.flatpak.service", "--config", f"{apps.directory}/caged.conf"]
        service = subprocess.Popen(argv, env=environment, user=USER, group=USER, extra_groups=[])
        await asyncio.wait_for(present.wait(), 20)
        bus.disconnect()
        return service

    return asyncio.run(started())


def test_the_life_of_an_application(apps: Apps, sample: Sample) -> None:
    fingerprint = apps.add(sample)
    assert fingerprint == apps.add(sample), "the same remote again changes nothing"
    assert apps.call("ListRemotes") == [("sample", f"file://{sample.repository}", fingerprint)]
    installed = apps.install()
    arch = sample.ref.split("/")[2]
    assert installed == {"application": NOTES, "branch": "stable", "commit": sample.commit, "remote": "sample",
                         "runtime": f"{PLATFORM}/{arch}/1"}
    assert apps.install() == installed
    assert apps.call("Update", "s", NOTES) == installed
    assert apps.call("List") == [installed]
    assert apps.call("Trees", "s", NOTES) == [f"app/{NOTES}", f"runtime/{PLATFORM}"]
    exported = apps.installation / "exports/share"
    assert (exported / f"applications/{NOTES}.desktop").exists()
    assert (exported / f"metainfo/{NOTES}.metainfo.xml").exists()
    apps.call("Remove", "s", NOTES)
    assert apps.call("List") == []
    assert not list(apps.installation.glob("runtime/*/*")), "a runtime that nothing needs goes too"
    with pytest.raises(NoSuchApplication, match="is not installed"):
        apps.call("Trees", "s", NOTES)


def test_an_update_brings_what_is_new_and_an_old_repository_brings_nothing(
    apps: Apps, sample: Sample, tmp_path: Path
) -> None:
    with short_directory() as directory:
        served = sample.copy(directory / "served")
        old = served.copy(tmp_path / "old")
        apps.add(served)
        first = apps.install()
        served.build("--force")
        second = apps.call("Update", "s", NOTES)
        assert second["commit"] == served.commit != first["commit"]
        shutil.rmtree(served.directory)
        old.copy(served.directory)
        with pytest.raises(UntrustedSource, match="older than what is installed"):
            apps.call("Update", "s", NOTES)
        assert apps.call("List") == [second]


def test_two_applications_share_a_runtime_and_either_is_updated_alone(apps: Apps, sample: Sample) -> None:
    with short_directory() as directory:
        served = sample.copy(directory / "served")
        first = served.add_diary("first")
        apps.add(served)
        notes = apps.install()
        diary = apps.install(DIARY)
        assert (diary["commit"], diary["runtime"]) == (first, notes["runtime"])
        assert apps.call("List") == [diary, notes]
        second = served.add_diary("second")
        assert apps.call("Update", "s", DIARY)["commit"] == second != first
        assert apps.call("Update", "s", NOTES) == notes
        ref = sample.ref.replace(NOTES, DIARY)
        assert (apps.installation / ref / "active/files/note").read_text() == "second"


def forge_object(sample: Sample) -> None:
    """A file of the application becomes another one, well formed."""
    other, target = sample.file_object("/metadata"), sample.file_object("/files/bin/notes")
    target.unlink()
    shutil.copyfile(other, target)


def break_object(sample: Sample) -> None:
    sample.file_object("/files/bin/notes").write_bytes(b"hello")


def lose_object(sample: Sample) -> None:
    sample.file_object("/files/bin/notes").unlink()


def forge_commit(sample: Sample) -> None:
    commit = sample.object(sample.commit, "commit")
    commit.write_bytes(commit.read_bytes().replace(b"command=notes", b"command=nodes"))


def unsign_commit(sample: Sample) -> None:
    sample.object(sample.commit, "commitmeta").unlink()


def sign_by_another(sample: Sample) -> None:
    unsign_commit(sample)
    with short_directory() as home:
        home.chmod(0o700)
        other = stranger(home)
        sample.ostree("gpg-sign", f"--gpg-homedir={home}", sample.commit, other)
        run("gpgconf", "--homedir", home, "--kill", "all")


def forge_summary(sample: Sample) -> None:
    summary = sample.repository / "summary"
    content = bytearray(summary.read_bytes())
    content[content.index(b"samples")] ^= 0x20
    summary.write_bytes(content)


def unsign_summary(sample: Sample) -> None:
    for signature in sample.repository.glob("summary*.sig"):
        signature.unlink()


FORGERIES = [
    (forge_object, "an object of it is altered or missing"),
    (break_object, "an object of it is altered or missing"),
    (lose_object, "an object of it is altered or missing"),
    (forge_commit, "its commit is unsigned, signed by another key, or altered: .*Corrupted commit"),
    (unsign_commit, "its commit is unsigned, signed by another key, or altered: .*no signatures found"),
    (sign_by_another, "its commit is unsigned, signed by another key, or altered: .*public key not found"),
    (forge_summary, "the summary of the remote .* is not signed by the key .*BAD signature"),
    (unsign_summary, "the summary of the remote .* is not signed by the key .*no summary signatures found"),
]
FORGED_SUMMARIES = FORGERIES[-2:]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Requests are no news."""


@contextmanager
def over_http(directory: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@contextmanager
def directly(directory: Path) -> Iterator[str]:
    yield f"file://{directory}"


@pytest.mark.parametrize("way", [directly, over_http])
@pytest.mark.parametrize(("forge", "why"), FORGERIES)
def test_what_was_touched_is_refused_and_leaves_nothing(
    apps: Apps, sample: Sample, forge: Callable[[Sample], None], why: str, way: Callable[[Path], Any]
) -> None:
    with short_directory() as directory:
        forged = sample.copy(directory / "forged")
        with way(forged.repository) as url:
            apps.add(forged, url=url)
            forge(forged)
            with pytest.raises(UntrustedSource, match=why):
                apps.install()
        assert apps.nothing_is_installed()


@pytest.mark.parametrize("way", [directly, over_http])
@pytest.mark.parametrize(("forge", "why"), FORGED_SUMMARIES)
def test_a_remote_whose_summary_is_not_signed_is_not_added(
    apps: Apps, sample: Sample, forge: Callable[[Sample], None], why: str, way: Callable[[Path], Any]
) -> None:
    with short_directory() as directory:
        forged = sample.copy(directory / "forged")
        forge(forged)
        with way(forged.repository) as url, pytest.raises(UntrustedSource, match=why):
            apps.add(forged, url=url)
    assert apps.has_no_remotes()
    assert apps.add(sample), "the name is free"


def test_a_forged_update_leaves_what_was_installed(apps: Apps, sample: Sample) -> None:
    with short_directory() as directory:
        served = sample.copy(directory / "served")
        apps.add(served)
        before = apps.install()
        served.build("--force")
        notes = apps.installation / f"{sample.ref}/active/files/bin/notes"
        content = notes.read_bytes()
        forge_commit(served)
        with pytest.raises(UntrustedSource, match="its commit"):
            apps.call("Update", "s", NOTES)
        assert apps.call("List") == [before]
        assert notes.read_bytes() == content


def stranger(home: Path) -> str:
    """A new key in the GnuPG home `home`, by its fingerprint."""
    gpg = ("gpg", "--batch", "--quiet", "--homedir", home)
    run(*gpg, "--passphrase", "", "--quick-generate-key", "stranger@example.invalid", "ed25519", "sign", "never")
    listing = run(*gpg, "--with-colons", "--list-secret-keys").splitlines()
    return next(line.split(":")[9] for line in listing if line.startswith("fpr:"))


def test_a_repository_signed_by_another_key_is_refused(apps: Apps, sample: Sample) -> None:
    with short_directory() as home:
        home.chmod(0o700)
        fingerprint = stranger(home)
        key = subprocess.run(["gpg", "--homedir", home, "--export"], stdout=subprocess.PIPE, check=True).stdout
        run("gpgconf", "--homedir", home, "--kill", "all")
    with pytest.raises(UntrustedSource, match=f"is not signed by the key {fingerprint}"):
        apps.add(sample, key=key)
    assert apps.has_no_remotes()


def test_a_remote_needs_one_good_key(apps: Apps, sample: Sample) -> None:
    with pytest.raises(UntrustedSource, match="has no key"):
        apps.add(sample, key=b"")
    with pytest.raises(UsageError, match="is no OpenPGP key"):
        apps.add(sample, key=b"hello")
    with pytest.raises(UntrustedSource, match="is a secret key"):
        apps.add(sample, key=sample.directory.joinpath("secret.asc").read_bytes())
    assert apps.has_no_remotes()


def test_names_and_addresses_are_checked_before_anything_runs(apps: Apps, sample: Sample) -> None:
    with pytest.raises(InvalidName):
        apps.add(sample, name="--gpg-import=x")
    with pytest.raises(UsageError, match="cannot be the address"):
        apps.add(sample, url="file:///etc/../root")
    apps.add(sample)
    with pytest.raises(NameTaken, match="there is a remote"):
        apps.add(sample, url="https://example.invalid/repo")
    with pytest.raises(InvalidName):
        apps.install("--system")
    with pytest.raises(InvalidName):
        apps.install(NOTES, "../sample")


def test_what_nobody_offers_is_named_with_the_remotes_that_were_asked(apps: Apps, sample: Sample) -> None:
    with pytest.raises(NoSuchApplication, match="there is no remote"):
        apps.install()
    apps.add(sample)
    with pytest.raises(NoSuchApplication, match=r"there is no org.example.Nothing for \w+ in the remote sample"):
        apps.install("org.example.Nothing")
    with pytest.raises(UntrustedSource, match='there is no remote "flathub"'):
        apps.install(NOTES, "flathub")


def test_a_remote_that_is_not_there_is_not_added(apps: Apps, sample: Sample) -> None:
    with pytest.raises(RemoteUnavailable, match='the remote "absent" offers no repository at file:///nonexistent/repo'):
        apps.add(sample, name="absent", url="file:///nonexistent/repo")
    assert apps.has_no_remotes()


def test_a_remote_that_does_not_answer_matters_only_if_it_is_needed(apps: Apps, sample: Sample) -> None:
    with short_directory() as directory:
        apps.add(sample.copy(directory / "absent"), name="absent")
    with pytest.raises(RemoteUnavailable, match='the remote "absent" offers no repository'):
        apps.install()
    apps.add(sample)
    with pytest.raises(RemoteUnavailable):
        apps.install(NOTES, "absent")
    with pytest.raises(NoSuchApplication, match=r'^there is no org.example.Nothing for \w+ in the remote sample; '
                                                'the remote "absent" offers no repository at file:'):
        apps.install("org.example.Nothing")
    assert apps.install()["remote"] == "sample"


def test_a_remote_is_removed_once_nothing_of_it_is_there(apps: Apps, sample: Sample) -> None:
    apps.add(sample)
    apps.add(sample, name="other")
    apps.install(NOTES, "sample")
    with pytest.raises(CageError, match=f'the remote "sample" is needed: {NOTES}, {PLATFORM} came from it; '):
        apps.call("RemoveRemote", "s", "sample")
    apps.call("RemoveRemote", "s", "other")
    assert [name for name, *_ in apps.call("ListRemotes")] == ["sample"]
    apps.call("Remove", "s", NOTES)
    apps.call("RemoveRemote", "s", "sample")
    assert apps.has_no_remotes()
    assert "sample" not in apps.installation.joinpath("repo/config").read_text()
    for name, kind in (("sample", UntrustedSource), ("../x", InvalidName)):
        with pytest.raises(kind):
            apps.call("RemoveRemote", "s", name)
    assert apps.add(sample, url=f"file://{sample.repository}/"), "the name is free for another place"


@dataclass(frozen=True, kw_only=True, slots=True)
class Silent:
    """A web server that takes requests and, once it is `mute`, never answers: `asked` when one came then, `left` when
    its client was gone."""

    url: str
    mute: threading.Event
    asked: threading.Event
    left: threading.Event


@contextmanager
def silent_server(repository: Path) -> Iterator[Silent]:
    mute, asked, left = threading.Event(), threading.Event(), threading.Event()

    class Handler(Quiet):
        def do_GET(self) -> None:
            if mute.is_set():
                self.wait()
            else:
                super().do_GET()

        def wait(self) -> None:
            asked.set()
            with suppress(ConnectionResetError):
                self.connection.recv(1)
            left.set()

    handler = functools.partial(Handler, directory=str(repository))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Silent(url=f"http://127.0.0.1:{server.server_address[1]}/", mute=mute, asked=asked, left=left)
        server.shutdown()


def test_work_ends_when_its_caller_cancels_or_leaves(apps: Apps, sample: Sample) -> None:
    async def leave(silent: Silent) -> None:
        bus, other = await Bus.connect(apps.address), await Bus.connect(apps.address)
        await apps.ask(bus, "AddRemote", "ssay", "silent", silent.url, sample.key)
        silent.mute.set()
        install = asyncio.ensure_future(apps.ask(bus, "Install", "ss", NOTES, "silent"))
        assert await asyncio.to_thread(silent.asked.wait, 30)
        await apps.ask(bus, "Cancel")
        with pytest.raises(CageError, match="cancelled"):
            await install
        assert await asyncio.to_thread(silent.left.wait, 30)
        silent.asked.clear()
        silent.left.clear()
        abandoned = asyncio.ensure_future(apps.ask(bus, "Install", "ss", NOTES, "silent"))
        assert await asyncio.to_thread(silent.asked.wait, 30)
        url = f"file://{sample.repository}"
        waiting = asyncio.ensure_future(apps.ask(other, "AddRemote", "ssay", "sample", url, sample.key))
        assert await apps.ask(other, "List") == [], "who only reads does not wait"
        bus.disconnect()
        abandoned.cancel()
        await asyncio.wait_for(waiting, 30)
        assert await asyncio.to_thread(silent.left.wait, 30)
        other.disconnect()

    with silent_server(sample.repository) as silent:
        asyncio.run(leave(silent))
    assert apps.nothing_is_installed()
    assert apps.install(NOTES, "sample")["application"] == NOTES


def test_a_killed_service_takes_its_programs_along_and_starts_where_it_was(apps: Apps, sample: Sample) -> None:
    apps.add(sample)
    with silent_server(sample.repository) as silent:
        apps.add(sample, name="silent", url=silent.url)
        silent.mute.set()
        with ThreadPoolExecutor() as pool:
            install = pool.submit(apps.install, NOTES, "silent")
            assert silent.asked.wait(30)
            apps.processes[-1].kill()
            with pytest.raises(CageError):
                install.result(30)
        assert silent.left.wait(30), "the program that was fetching goes with the service"
    assert list(apps.installation.glob("mirrors/*")), "or this test tests nothing"
    apps.processes.append(start_service(apps))
    assert apps.install(NOTES, "sample")["commit"] == sample.commit
    assert not list(apps.installation.glob("mirrors/*"))


def test_only_caged_is_served(apps: Apps) -> None:
    argv = ["dbus-send", f"--bus={apps.address}", "--print-reply", "--dest=org.cageruntime.Apps1",
            "/org/cageruntime/Apps1", "org.cageruntime.Apps1.List"]
    done = subprocess.run(argv, user="daemon", extra_groups=[], capture_output=True, text=True, check=False)
    assert "org.cageruntime.Error.NotAuthorized" in done.stderr


def test_no_root_no_service() -> None:
    argv = [sys.executable, "-m", "cage_runtime.flatpak.service"]
    done = subprocess.run(argv, cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert "refusing to run as root" in done.stderr


CAGE_VIEW = r"""
set -eu
view=$1 installation=$2 home=$3; shift 3
mount -t tmpfs -o mode=755 none "$view"
cd "$view"
mkdir -p repo/objects repo/tmp
printf '[core]\nrepo_version=1\nmode=bare-user-only\n' >repo/config
for tree; do
    mkdir -p "$tree"
    mount --bind "$installation/$tree" "$tree"
    mount -o remount,bind,ro,nosuid,nodev "$tree"
done
mount -o remount,ro "$view"
exec setpriv --reuid 65534 --regid 65534 --clear-groups env -i PATH=/usr/bin:/bin LC_ALL=C.UTF-8 HOME="$home" \
    XDG_RUNTIME_DIR="$home" FLATPAK_SYSTEM_DIR="$view" \
    flatpak run --no-documents-portal org.cageruntime.Notes --write figures '~/Documents/f.txt'
"""


def test_a_cage_that_is_shown_the_trees_can_run_the_application(apps: Apps, sample: Sample) -> None:
    """This is the whole list of what has to be in a cage's /var/lib/flatpak (cage_runtime/flatpak/__init__.py)."""
    apps.add(sample)
    apps.install()
    trees = apps.call("Trees", "s", NOTES)
    home, view = apps.directory / "home", apps.directory / "view"
    view.mkdir()
    home.mkdir(mode=0o700)
    os.chown(home, USER, USER)
    alone = ("unshare", "--mount", "--propagation=private")
    output = run(*alone, "sh", "-c", CAGE_VIEW, "sh", view, apps.installation, home, *trees)
    assert output == f"notes: 8 bytes in {home}/Documents/f.txt"
    assert home.joinpath("Documents/f.txt").read_text() == "figures\n"


def test_the_sample_is_built_only_when_there_is_something_to_build(sample: Sample) -> None:
    before = sample.commit
    assert run(TOP / "scripts/build-sample-app", sample.directory) == f"{sample.repository} is up to date"
    assert sample.commit == before
    assert sample.directory.joinpath("secret.asc").stat().st_mode & 0o777 == 0o600
