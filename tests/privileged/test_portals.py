# SPDX-License-Identifier: LGPL-2.1-or-later
"""Applications that know nothing of cages reach the mediators: an unmodified one of the distribution's, in Flatpak."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.privileged import debian
from tests.privileged.agent import Desktop
from tests.privileged.conftest import MakeCage
from tests.privileged.rules import policy, until
from tests.privileged.runtime import Cage, Ended, Runtime
from tests.privileged.sample import Sample, short_directory


@pytest.fixture(scope="module")
def remote(runtime: Runtime) -> Iterator[str]:
    """The remote that has the application, known for the time of this file."""
    with short_directory() as directory:
        sample = Sample(directory=directory / "sample")
        sample.build()
        debian.offer(sample)
        runtime.call("AddRemote", "ssaya{sv}", "debian", f"file://{sample.repository}", sample.key, {})
        yield "debian"
        runtime.ok("app", "remote-remove", "debian")


@pytest.fixture(scope="module")
def work(runtime: Runtime, remote: str, shared_cage: MakeCage) -> Iterator[Cage]:
    cage = shared_cage("work", "--level", "internal")
    installed = runtime.cagectl("app", "install", "work", debian.TOOLS, "--remote", remote, seconds=180)
    assert installed.returncode == 0, installed.stderr
    yield cage
    runtime.ok("app", "remove", "work", debian.TOOLS)


@pytest.fixture(scope="module")
def vault(shared_cage: MakeCage) -> Cage:
    return shared_cage("vault", "--level", "secret")


def tools(runtime: Runtime, cage: Cage, *command: str) -> Ended:
    """The command in the application's sandbox in the cage."""
    return runtime.cagectl("run", cage.name, debian.TOOLS, "--", *command)


@pytest.fixture
def desktop(runtime: Runtime) -> Iterator[Desktop]:
    with Desktop(runtime) as there:
        yield there


def test_notify_send_shows_under_the_cage_s_name(runtime: Runtime, work: Cage, desktop: Desktop) -> None:
    with policy(runtime, "notify.Show * work @core allow\n"):
        ended = tools(runtime, work, "notify-send", "--urgency=critical", "It is done", "<b>12</b> files")
    assert ended.returncode == 0, ended.stderr
    told = desktop.told()
    assert {key: told[key] for key in ("kind", "source", "source-level", "summary", "body", "urgency")} == {
        "kind": "notification", "source": "work", "source-level": "internal", "summary": "It is done",
        "body": "<b>12</b> files", "urgency": "critical"}


ASK = """
import sys
from gi.repository import Gio, GLib
interface, member, arguments = sys.argv[1], sys.argv[2], GLib.Variant.parse(None, sys.argv[3], None, None)
bus, loop = Gio.bus_get_sync(Gio.BusType.SESSION), GLib.MainLoop()
path = "/org/freedesktop/portal/desktop/request/" + bus.get_unique_name()[1:].replace(".", "_") + "/t"
answers = []
def answered(*signal):
    answers.append(signal[5].unpack())
    loop.quit()
bus.signal_subscribe("org.freedesktop.portal.Desktop", "org.freedesktop.portal.Request", "Response", path, None, 0,
                     answered)
bus.call_sync("org.freedesktop.portal.Desktop", "/org/freedesktop/portal/desktop",
              "org.freedesktop.portal." + interface, member, arguments, None, 0, 20000)
GLib.timeout_add_seconds(20, loop.quit)
loop.run()
response, results = answers[0]
if member == "SaveFile" and not response:
    with open(GLib.filename_from_uri(results["uris"][0])[0], "w") as file:
        file.write(sys.argv[4])
print(response, *results.get("uris", []))
"""
"""Asks a portal something, as applications do, and prints the answer; what is to be saved is written."""
TOKEN = "'handle_token': <'t'>"


def ask(runtime: Runtime, cage: Cage, interface: str, member: str, arguments: str, *more: str) -> str:
    ended = tools(runtime, cage, "python3", "-c", ASK, interface, member, arguments, *more)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.decode().strip()


def save(runtime: Runtime, cage: Cage, name: str, content: str) -> str:
    arguments = f"('', 'Save', {{{TOKEN}, 'current_name': <'{name}'>}})"
    return ask(runtime, cage, "FileChooser", "SaveFile", arguments, content)


def test_what_an_application_saves_goes_to_where_policy_says(runtime: Runtime, work: Cage, vault: Cage) -> None:
    """Export: the file that the portal names is sent as soon as it is written, and then it is gone from the cage."""
    with policy(runtime, "files.Send * work @default allow target=vault\n"):
        said = save(runtime, work, "report.txt", "figures")
        response, uri = said.split()
        assert response == "0"
        assert uri.startswith(f"file:///home/user/.var/app/{debian.TOOLS}/cache/portal/")
        until(lambda: vault.enter("cat", "Inbox/work/report.txt").stdout == b"figures", "the report in vault")
    until(lambda: work.enter("ls", "-A", f".var/app/{debian.TOOLS}/cache/portal").stdout == b"", "nothing left of it")


def test_what_may_not_go_stays(runtime: Runtime, work: Cage, vault: Cage) -> None:
    with policy(runtime, "files.Send * work * deny\n"):
        said = save(runtime, work, "kept.txt", "x")
        path = said.split()[1].removeprefix("file://")
        until(lambda: "kept, it was not sent" in runtime.ok("logs", "work"), "the cage's log says so")
    assert work.enter("cat", path).stdout == b"x"
    assert vault.enter("test", "-e", "Inbox/work/kept.txt").returncode == 1


@pytest.mark.parametrize("name", ["", "..", "a/b", "x" * 256])
def test_what_is_no_name_of_a_file_is_not_saved(runtime: Runtime, work: Cage, name: str) -> None:
    ended = tools(runtime, work, "python3", "-c", ASK, "FileChooser", "SaveFile",
                  f"('', 'Save', {{{TOKEN}, 'current_name': <'{name}'>}})", "x")
    assert b"current_name has to be the name of a file" in ended.stderr


def test_nobody_chooses_where_there_is_no_display(runtime: Runtime, work: Cage) -> None:
    assert ask(runtime, work, "FileChooser", "OpenFile", f"('', 'Open', {{{TOKEN}}})") == "2"


XDG = "/usr/libexec/flatpak-xdg-utils"
"""Where the distribution has what runtimes have as xdg-open and xdg-email."""


@pytest.fixture(scope="module")
def opened(vault: Cage) -> str:
    """Where vault notes what it is given to open; of a file, the content too."""
    vault.sh("mkdir -p .config/incage && cat > .config/incage/open",
             input=b'[ ! -f "$1" ] || cat "$1" > ~/content\necho "$1" >> ~/opened\n')
    return "opened"


def has_opened(vault: Cage, opened: str, what: str) -> bool:
    return what in vault.enter("cat", opened).stdout.decode().splitlines()


@pytest.mark.parametrize(("command", "arrives"), [
    (("gio", "open", "https://example.org/a?b=c"), "https://example.org/a?b=c"),
    ((f"{XDG}/xdg-open", "https://example.org/x"), "https://example.org/x"),
    ((f"{XDG}/xdg-email", "--subject", "Figures & sums", "press@example.org"),
     "mailto:press@example.org?subject=Figures%20%26%20sums"),
])
def test_links_and_messages_open_where_policy_says(runtime: Runtime, work: Cage, vault: Cage, opened: str,
                                                   command: tuple[str, ...], arrives: str) -> None:
    with policy(runtime, "open.Uri * work @default allow target=vault\nopen.Uri * work vault allow\n"):
        ended = tools(runtime, work, *command)
        assert ended.returncode == 0, ended.stderr
        until(lambda: has_opened(vault, opened, arrives), f"{arrives} is opened in vault")


def test_what_policy_refuses_opens_nowhere(runtime: Runtime, work: Cage, vault: Cage, opened: str) -> None:
    with policy(runtime, "open.Uri * work * deny\n"):
        assert ask(runtime, work, "OpenURI", "OpenURI", f"('', 'https://example.org/no', {{{TOKEN}}})") == "2"
    assert not has_opened(vault, opened, "https://example.org/no")


def test_a_file_opens_as_a_copy(runtime: Runtime, work: Cage, vault: Cage, opened: str) -> None:
    """gio hands a descriptor over; what is opened has the file's name and content."""
    folder = f".var/app/{debian.TOOLS}/data"
    work.sh(f"mkdir -p {folder} && echo figures > {folder}/report.txt")
    rules = "open.File * work @default allow declassify target=vault\nopen.File * work vault allow declassify\n"
    with policy(runtime, rules):
        ended = tools(runtime, work, "gio", "open", f"/home/user/{folder}/report.txt")
        assert ended.returncode == 0, ended.stderr
        until(lambda: b"report.txt" in vault.enter("cat", opened).stdout, "the file is opened in vault")
    assert vault.enter("cat", "content").stdout == b"figures\n"


def test_a_message_with_an_attachment_is_not_sent_without_it(runtime: Runtime, work: Cage) -> None:
    ended = tools(runtime, work, "python3", "-c", ASK, "Email", "ComposeEmail",
                  f"('', {{{TOKEN}, 'attachments': <['file:///etc/passwd']>}})")
    assert b"attachments cannot be passed on" in ended.stderr
