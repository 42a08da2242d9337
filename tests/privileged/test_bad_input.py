# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bad input, as a person gives it: one clear sentence, the status that the interface promises, nothing changed."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import PREFIX, SECONDS, Cage, Ended, Runtime
from tests.privileged.sample import NOTES, Sample, short_directory
from tests.privileged.test_flatpak_installation import forge_commit, forge_object, forge_summary, unsign_commit

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
SIZE_RULE = 'a size of 4K or more, such as "512M" or "2G", and at most 999999T'
NAME_RULE = 'use 1 to 31 of a-z, 0-9 and "-", first a letter'


# --- what a refusal looks like -------------------------------------------------------------------------------------
def check_refused(ended: Ended, status: int, sentence: str, program: str = "cagectl") -> None:
    """One line, `sentence` in full as a regular expression, and nothing on standard output."""
    error = ended.stderr.decode()
    assert (ended.returncode, ended.stdout) == (status, b""), error
    assert re.fullmatch(f"{program}: {sentence}\n", error), error


def everything(runtime: Runtime) -> object:
    """What there is of cages, by name and by file; of a running cage nothing that changes by itself."""
    cages = [{**cage, "processes": 0, "documents": True} for cage in runtime.json("list")]
    places = ("state/cages", "state/storage", "state/staging", "run/cages", "run/gateways", "run/storage")
    files = sorted(str(file) for place in places for file in (runtime.top / place).glob("*/*"))
    return cages, files, runtime.json("app", "remotes"), sorted(runtime.cgroups())


@pytest.fixture
def unchanged(runtime: Runtime, bad: Cage, vault: Cage) -> Iterator[None]:
    """Whatever the test does, everything is afterwards as it was."""
    del bad, vault
    before = everything(runtime)
    yield
    assert everything(runtime) == before


@pytest.fixture(scope="module")
def bad(shared_cage: MakeCage) -> Cage:
    """The cage from which and with which bad things are tried."""
    return shared_cage("bad", "--level", "internal")


@pytest.fixture(scope="module")
def vault(shared_cage: MakeCage) -> Cage:
    return shared_cage("bad-vault", "--level", "secret")


# --- names, levels, options ------------------------------------------------------------------------------------------
LONG = "a" * 32
CREATE: list[tuple[str, tuple[str, ...], int, str]] = [
    ("empty name", ("",), 2, f'"" cannot be a cage\'s name: {NAME_RULE}'),
    ("capital", ("Work",), 2, f'"Work" cannot be a cage\'s name: {NAME_RULE}'),
    ("digit first", ("1st",), 2, f'"1st" cannot be a cage\'s name: {NAME_RULE}'),
    ("too long", (LONG,), 2, f'"{LONG}" cannot be a cage\'s name: {NAME_RULE}'),
    ("path", ("../x",), 2, rf'"\.\./x" cannot be a cage\'s name: {NAME_RULE}'),
    ("escape sequence", ("\x1b[31m",), 2, rf'"\\x1b\[31m" cannot be a cage\'s name: {NAME_RULE}'),
    ("option-like", ("--", "-x"), 2, f'"-x" cannot be a cage\'s name: {NAME_RULE}'),
    ("reserved core", ("core",), 2, '"core" is reserved and cannot be a cage\'s name; choose another'),
    ("reserved host", ("host",), 2, '"host" is reserved and cannot be a cage\'s name; choose another'),
    ("reserved all", ("all",), 2, '"all" is reserved and cannot be a cage\'s name; choose another'),
    ("taken", ("bad",), 1, 'there is a cage "bad" already; choose another name, or cagectl destroy bad'),
    ("level", ("x", "--level", "top"), 2, 'there is no level "top"; this host has public, internal, secret'),
    ("empty level", ("x", "--level", ""), 2, f"level: must be {NAME_RULE.removeprefix('use ')}"),
    ("compartment", ("x", "--compartment", "navy"), 2,
     'there is no compartment "navy"; this host has finance, legal, medical'),
    ("template", ("x", "--template", "nope"), 2,
     r'there is no template "nope"; /\S+/etc/templates\.d is where yours belong'),
    ("template's name", ("x", "--template", "../x"), 2, r'there is no template "\.\./x"; \S+ is where yours belong'),
    ("memory", ("x", "--memory", "12Q"), 2, f"memory: must be {SIZE_RULE}"),
    ("cpus", ("x", "--cpus", "9999"), 2, "cpus: must be at most 4096"),
    ("cpus of words", ("x", "--cpus", "many"), 2,
     "create: argument --cpus: a number above 0 is needed, such as 1.5; see cagectl create --help"),
    ("tasks", ("x", "--tasks", "3"), 2, "tasks: must be at least 16"),
    ("network", ("x", "--network", "nat"), 2, 'network "nat" is not offered; only "none" is'),
    ("flag", ("x", "--frobnicate"), 2,
     "create: unrecognized arguments: --frobnicate; see cagectl create --help"),
    ("no name", (), 2, "create: the following arguments are required: NAME; see cagectl create --help"),
    ("no such file", ("x", "--from", "/no/such.toml"), 1, "/no/such.toml: No such file or directory"),
]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("options", "status", "sentence"), [row[1:] for row in CREATE], ids=[row[0] for row in CREATE])
def test_create(runtime: Runtime, options: tuple[str, ...], status: int, sentence: str) -> None:
    check_refused(runtime.cagectl("create", *options), status, sentence)


DEFINITIONS: list[tuple[str, bytes, str]] = [
    ("unknown key", b'level = "internal"\ncolour = 1\n', ':2: unknown key "colour"'),
    ("unknown key in a table", b'level = "internal"\n\n[limits]\nmemmory = "2G"\n',
     ':4: limits: unknown key "memmory"'),
    ("unknown level", b'description = "x"\nlevel = "top"\n',
     ':2: level: there is no level "top"; this host has public, internal, secret'),
    ("unknown compartment", b'compartments = [\n "navy"]\n',
     ':1: compartments: there is no compartment "navy"; this host has finance, legal, medical'),
    ("wrong type", b"level = 5\n", f":1: level: must be {NAME_RULE.removeprefix('use ')}, not a whole number"),
    ("wrong size", b'[limits]\nmemory = "2X"\n', f":2: limits.memory: must be {SIZE_RULE}"),
    ("wrong choice", b'[limits]\non-missing = "ignore"\n', ':2: limits.on-missing: must be "refuse" or "warn"'),
    ("wrong application", b'[apps]\nallow = ["notes"]\n',
     ':2: apps.allow[0]: must be an application id such as "org.gnome.TextEditor"'),
    ("not TOML", b'level = "internal\n', ":1: not TOML at column 18: Illegal character '\\n'"),
    ("not UTF-8", b"\n\xff\xfe", ":2: this is not UTF-8, which a definition has to be"),
    ("too long", b"#" * 65537, " is longer than 65536 bytes, which no definition is"),
]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("text", "sentence"), [row[1:] for row in DEFINITIONS], ids=[row[0] for row in DEFINITIONS])
def test_create_from_a_file_names_file_and_line(
    runtime: Runtime, tmp_path: Path, text: bytes, sentence: str
) -> None:
    file = tmp_path / "cage.toml"
    file.write_bytes(text)
    check_refused(runtime.cagectl("create", "x", "--from", str(file)), 2, re.escape(f"{file}{sentence}"))


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("words", [
    ("start",), ("stop",), ("pause",), ("resume",), ("kill",), ("destroy", "--yes"), ("status",), ("show",), ("logs",),
    ("enter",), ("app", "list"), ("app", "update"),
], ids=lambda words: " ".join(words))
def test_a_cage_that_is_not_there(runtime: Runtime, words: tuple[str, ...]) -> None:
    ended = runtime.cagectl(*words, "nope")
    check_refused(ended, 1, 'there is no cage "nope"; cagectl list shows those there are')


# --- limits that this host does not enforce ------------------------------------------------------------------------
LIMITS = {"--memory=1G": "memory", "--cpus=1.5": "cpu", "--tasks=100": "pids"}


@pytest.mark.parametrize("option", LIMITS)
def test_a_limit_is_enforced_or_refused(runtime: Runtime, cage: MakeCage, option: str) -> None:
    """Which of the two is the host's to say: doctor does."""
    controller = LIMITS[option]
    states = {check["check"]: check["state"] for check in runtime.json("doctor")}
    if states[f"controller {controller}"] == "ok":
        assert cage("limited", option).status["unenforced"] == []
    else:
        limit = option.strip("-").partition("=")[0]
        check_refused(runtime.cagectl("create", "limited", option), 125,
                      f"{limit}: this host's cgroup v2 has no {controller} controller, so the limit cannot be "
                      r'enforced; leave it out, or set on-missing = "warn" under \[limits\]')
        assert runtime.state_of("limited") is None


@pytest.mark.usefixtures("unchanged")
def test_a_limit_that_no_host_enforces_is_refused(runtime: Runtime) -> None:
    check_refused(runtime.cagectl("create", "x", "--disk", "1G"), 125,
                  "disk: the home's file system has no quotas that this runtime can set, so the limit cannot be "
                  r'enforced; leave it out, or set on-missing = "warn" under \[limits\]')


def test_a_limit_that_may_be_missing_is_told_by_status_and_doctor(
    runtime: Runtime, cage: MakeCage, tmp_path: Path
) -> None:
    file = tmp_path / "cage.toml"
    file.write_text('[limits]\ndisk = "1G"\non-missing = "warn"\n')
    told = "disk: the home's file system has no quotas that this runtime can set"
    warned = cage("warned", "--from", str(file))
    assert warned.status["unenforced"] == [told]
    assert f"Not enforced: {told}\n" in runtime.ok("status", "warned")
    assert f"limited cage warned: {told}; see cagectl status warned\n" in runtime.ok("doctor")
    runtime.kill_and_wait("caged")
    assert warned.status["unenforced"] == [told]


# --- what is sent ----------------------------------------------------------------------------------------------------
SOURCES = [
    ("mkdir -p D; ln -s /etc D/away", "D", '"D/away" is a symbolic link, which is not followed; remove it, or put '
     "there what it stands for"),
    ("mkdir -p E; mkfifo E/pipe", "E", '"E/pipe" is neither a file nor a directory; only those can be sent'),
    ("mkfifo -m 600 F", "F", '"F" is a FIFO; only regular files can be sent'),
    (": > empty", "empty", '"empty" is empty; there is nothing to send'),
    ("ln -sf /etc/passwd out", "out",
     '"out" is a symbolic link, which is not followed; send the file that it stands for'),
    ("ln -sfn /etc etc", "etc/passwd",
     '"etc/passwd" leads out of your home directory; only what is there can be sent'),
    (":", "../../etc/passwd",
     r'"\.\./\.\./etc/passwd" leads out of your home directory; only what is there can be sent'),
    (":", "/etc/passwd", '"/etc/passwd" is not in your home directory /home/user; only what is there can be sent'),
    (":", "absent", '"absent" does not exist'),
    ("install -m 000 /dev/null closed", "closed", '"closed" cannot be read: you have no permission'),
]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("prepare", "source", "sentence"), SOURCES, ids=[row[1] for row in SOURCES])
def test_send_what_cannot_be_sent(bad: Cage, vault: Cage, prepare: str, source: str, sentence: str) -> None:
    bad.sh(f"rm -rf D F empty out etc closed; {prepare}")
    ended = bad.enter("incage", "send", source, "--to", vault.name)
    check_refused(ended, 1, sentence, program="incage")
    assert vault.sh("ls -A Inbox 2>/dev/null || true") == ""


TARGETS = [
    ("nope", 126, r'files\.Send to "nope" is refused: the rule denies it, and only an allowing rule before that one '
                  r"would change it \(cagectl policy explain says which rule\)"),
    ("bad", 126, r'files\.Send to "bad" is refused: a cage and its target must be two different cages'),
    ("Vault", 2, f'"Vault" cannot be a cage\'s name: {NAME_RULE}'),
    ("core", 2, '"core" is reserved and cannot be a cage\'s name; choose another'),
]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("target", "status", "sentence"), TARGETS, ids=[row[0] for row in TARGETS])
def test_send_to_what_is_no_target(bad: Cage, target: str, status: int, sentence: str) -> None:
    bad.sh("echo figures > f")
    check_refused(bad.enter("incage", "send", "f", "--to", target), status, sentence, program="incage")


def test_send_to_a_cage_that_is_forbidden_sounds_as_to_one_that_is_not_there(
    bad: Cage, cage: MakeCage
) -> None:
    cage("below", "--level", "public")
    bad.sh("echo figures > f")
    forbidden, absent = (bad.enter("incage", "send", "f", "--to", target) for target in ("below", "nobody"))
    assert (forbidden.returncode, absent.returncode) == (126, 126)
    assert forbidden.stderr.replace(b"below", b"nobody") == absent.stderr


def test_send_to_a_cage_that_does_not_run(runtime: Runtime, bad: Cage, cage: MakeCage) -> None:
    cage("asleep", "--level", "internal", "--no-start")
    bad.sh("echo figures > f")
    ended = bad.enter("incage", "send", "f", "--to", "asleep")
    check_refused(ended, 1, "the target does not run; start it, and send again", program="incage")
    assert runtime.state_of("asleep") == "stopped"


GROWING = """
head -c 300000000 /dev/zero > growing || exit 99
( while [ ! -e told ]; do echo more >> growing; done ) &
incage send growing --to bad-vault
status=$?
: > told
wait
rm -f growing told
exit $status
"""


@pytest.mark.usefixtures("unchanged")
def test_send_what_changes_while_it_is_read(bad: Cage, vault: Cage) -> None:
    ended = bad.enter("/bin/sh", "-c", GROWING)
    check_refused(ended, 1, '"growing" changed while it was read.*', program="incage")
    assert vault.sh("ls -A Inbox 2>/dev/null || true") == ""


# --- who asks, and whom ----------------------------------------------------------------------------------------------
def run(*words: str | Path, **environment: str) -> Ended:
    """A program of the runtime, which has to end by itself."""
    return subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS,
                          env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **environment}, check=False)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("words", "verb"), [
    ("list", "list"), ("create x", "create"), ("enter bad", "enter"), ("destroy bad --yes", "destroy"),
    ("app install bad org.cageruntime.Notes", "app install"), ("doctor", "doctor"),
])
def test_without_root_nothing_is_done(runtime: Runtime, words: str, verb: str) -> None:
    ended = run(*NOBODY, PREFIX / "bin/cagectl", *words.split(), **runtime.environment())
    check_refused(ended, 126, f"{verb} needs root on this host; use sudo")


NOT_ROOT = [
    ("caged", ("--standalone",), "caged --standalone starts a process that makes namespaces: run it as root"),
    ("cage-spawner", (), "cage-spawner makes namespaces and id maps: run it as root"),
]


@pytest.mark.parametrize(("program", "options", "sentence"), NOT_ROOT, ids=[row[0] for row in NOT_ROOT])
def test_a_process_that_needs_root_says_so(
    runtime: Runtime, program: str, options: tuple[str, ...], sentence: str
) -> None:
    ended = run(*NOBODY, PREFIX / "bin" / program, *options, "--config", runtime.config, **runtime.environment())
    check_refused(ended, 125, sentence, program)


ROOT = [
    ("caged", 78, "caged does not run as root: start it as the user caged, or use --standalone"),
    ("cage-apps", 125, "ERROR: refusing to run as root: downloads are handled here; run as the user cage-apps"),
]


@pytest.mark.parametrize(("program", "status", "sentence"), ROOT, ids=[row[0] for row in ROOT])
def test_a_process_that_must_not_be_root_says_so(runtime: Runtime, program: str, status: int, sentence: str) -> None:
    ended = run(PREFIX / "bin" / program, "--config", runtime.config, **runtime.environment())
    check_refused(ended, status, sentence, program)


NO_BUS = "unix:path=/nonexistent"


def test_no_system_bus() -> None:
    check_refused(run(PREFIX / "bin/cagectl", "list", DBUS_SYSTEM_BUS_ADDRESS=NO_BUS), 125,
                  f"no system bus at {NO_BUS} \\(No such file or directory\\); "
                  "start it: systemctl start dbus, or dbus-daemon --system --fork")


def test_no_system_bus_for_the_core(runtime: Runtime) -> None:
    ended = run(PREFIX / "bin/caged", "--standalone", "--config", runtime.config, DBUS_SYSTEM_BUS_ADDRESS=NO_BUS)
    check_refused(ended, 125, rf"no bus answers at {NO_BUS} \(.*\); start it: dbus-daemon --system", "caged")


CONFIGURATIONS = [
    ('[paths]\nstat = "/x"\n', 2, ':2: paths: unknown key "stat"'),
    ('[users]\ncaged = "nosuchuser"\n', 125,
     "there is no user nosuchuser on this host; systemd-sysusers cage-runtime.conf adds it"),
    ('[users]\ngateways = "nosuch"\n', 125,
     "there is no group nosuch on this host; systemd-sysusers cage-runtime.conf adds it"),
    ('[paths]\nruntime = "/nonexistent"\n', 125,
     "/nonexistent/bin/cage-spawner is not there; install the runtime, or name its place in caged.conf"),
]


@pytest.mark.parametrize(("text", "status", "sentence"), CONFIGURATIONS, ids=["key", "user", "group", "programs"])
def test_a_configuration_that_cannot_be_is_told_at_once(
    runtime: Runtime, tmp_path: Path, text: str, status: int, sentence: str
) -> None:
    file = tmp_path / "caged.conf"
    file.write_text(text)
    ended = run(PREFIX / "bin/caged", "--standalone", "--config", file, **runtime.environment())
    check_refused(ended, status, re.escape(f"{file}{sentence}" if sentence[0] == ":" else sentence), "caged")


def test_caged_is_not_running() -> None:
    with Apart() as apart:
        apart.stop()
        check_refused(apart.cagectl("list"), 125,
                      "caged is not running; start it with systemctl start caged or caged --standalone")
        apart.start()


# --- runtimes of their own, for hosts that lack something ------------------------------------------------------------
class Apart(Runtime):
    """Another runtime, started through a command that changes its surroundings, and gone at the end.

    In that command, @STATE@ is its state directory.
    """

    def __init__(self, *through: str) -> None:
        super().__init__()
        self.state.mkdir()
        self._through = tuple(word.replace("@STATE@", str(self.state)) for word in through)

    def __enter__(self) -> Apart:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for cage in self.json("list"):
            self.ok("destroy", cage["name"], "--yes")
        self.remove()

    @property
    def inside(self) -> Path:
        """The state directory as the runtime sees it."""
        assert self.supervisor is not None
        return Path(f"/proc/{self.supervisor.pid}/root{self.state}")


def with_mounts(script: str) -> tuple[str, ...]:
    """A command that runs the words after it in a mount namespace of their own, in which `script` was run before."""
    return ("unshare", "--mount", "/bin/sh", "-ec", f'{script}\nexec "$@"', "sh")


WITHOUT_NAMESPACES = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
process, (unshared, unshare), (mapped, map_) = os.getpid(), os.pipe(), os.pipe()
if os.fork() == 0:
    os.read(unshared, 1)
    for kind in "uid_map", "gid_map":
        with open(f"/proc/{process}/{kind}", "w") as file:
            file.write("0 0 4294967295")
    os.write(map_, b"!")
    os._exit(0)
assert libc.unshare(0x10000000 | 0x00020000 | 0x02000000) == 0, os.strerror(ctypes.get_errno())
os.write(unshare, b"!")
os.read(mapped, 1)
os.wait()
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("0")
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""In a user namespace with all ids, whose own limit of namespaces is 0: the host's stays as it is."""


def test_no_user_namespaces() -> None:
    before = Path("/proc/sys/user/max_user_namespaces").read_text()
    sentence = (r"this host gives no user namespace to a cage \(user.max_user_namespaces is 0\); "
                "set the sysctl user.max_user_namespaces to 10000 or more")
    with short_directory() as directory:
        script = directory / "without"
        script.write_text(WITHOUT_NAMESPACES)
        with Apart("/usr/bin/python3", str(script)) as apart:
            check_refused(apart.cagectl("create", "x"), 125, sentence)
            assert apart.json("list") == []
            assert list(apart.storage.iterdir()) == []
            doctor = apart.cagectl("doctor")
            assert doctor.returncode == 1
            assert b"missing user namespaces: at most 0; set the sysctl user.max_user_namespaces" in doctor.stdout
            apart.ok("create", "x", "--no-start")
            check_refused(apart.cagectl("start", "x"), 125, sentence)
            assert apart.state_of("x") == "stopped"
    assert Path("/proc/sys/user/max_user_namespaces").read_text() == before


def add_remote(runtime: Runtime, name: str, sample: Sample) -> None:
    key = f"--gpg-key={sample.directory}/key.gpg"
    runtime.ok("app", "remote-add", name, f"file://{sample.repository}", key)


def test_no_flatpak(sample: Sample) -> None:
    with short_directory() as directory:
        nothing = directory / "nothing"
        nothing.write_bytes(b"")
        nothing.chmod(0o644)
        with Apart(*with_mounts(f"mount --bind {nothing} /usr/bin/flatpak")) as apart:
            doctor = apart.cagectl("doctor")
            assert doctor.returncode == 1
            assert (b"missing flatpak: no applications can be installed or run in cages; "
                    b"install the package that has flatpak\n") in doctor.stdout
            apart.ok("create", "x")
            add_remote(apart, "sample", sample)
            check_refused(apart.cagectl("app", "install", "x", NOTES), 125,
                          "flatpak is not installed; install the distribution's package flatpak")
            assert apart.json("app", "list", "x") == []


# --- a full disk -----------------------------------------------------------------------------------------------------
FULL = r"No space left on device; make room there"


@pytest.fixture(scope="module")
def small() -> Iterator[Apart]:
    """A runtime whose state is on a disk of 4 MB, with a cage and its bigger document."""
    with Apart(*with_mounts("mount -t tmpfs -o size=4m,mode=755 tmpfs @STATE@")) as small:
        small.ok("create", "a")
        small.ok("create", "b", "--level", "secret")
        yield small


@pytest.fixture
def filled(small: Apart) -> Iterator[Apart]:
    """The same, full."""
    ballast = small.inside / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (65536, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    yield small
    ballast.unlink()


def test_an_application_that_does_not_fit(small: Apart, sample: Sample) -> None:
    add_remote(small, "sample", sample)
    check_refused(small.cagectl("app", "install", "a", NOTES), 125, r"no space is left for applications in \S+/flatpak")
    assert small.json("app", "list", "a") == []
    assert list((small.inside / "flatpak/mirrors").iterdir()) == []


def test_a_document_that_does_not_fit(small: Apart) -> None:
    small.ok("enter", "a", "--", "sh", "-c", "head -c 1500000 /dev/zero > document")
    ended = small.cagectl("enter", "a", "--", "incage", "send", "document", "--to", "b")
    check_refused(ended, 1, '"document" (did not arrive in b, which may be stopped or full; the core\'s audit log says '
                            "why|cannot be sent: the core has no space left for it)", "incage")
    assert list((small.inside / "staging").iterdir()) == []
    assert small.ok("enter", "b", "--", "sh", "-c", "ls -A Inbox 2>/dev/null || true") == ""


def test_on_a_full_disk_nothing_begins(filled: Apart) -> None:
    def there() -> list[Path]:
        return sorted(file for place in ("cages", "storage") for file in (filled.inside / place).rglob("*"))

    before = there()
    no_record = rf"no audit record can be written in \S+/audit: {FULL}"
    no_storage = r"\S+/storage takes no storage for another cage: No space left on device"
    check_refused(filled.cagectl("create", "c"), 125, f"({no_record}|{no_storage})")
    # What is left of the chain's last block takes a few records yet.
    while (last := filled.cagectl("enter", "a", "--", "true")).returncode == 0:
        continue
    check_refused(last, 125, no_record)
    check_refused(filled.cagectl("create", "c", "--ephemeral"), 125, no_record)
    assert filled.state_of("c") is None
    assert there() == before


def test_on_a_full_disk_everything_can_be_ended(filled: Apart) -> None:
    """A cage may be what has filled it."""
    filled.ok("pause", "b")
    filled.ok("stop", "a")
    filled.ok("destroy", "a", "--yes")
    assert filled.state_of("a") is None
    assert filled.ok("audit", "verify") == "audit: the chain is whole\n"


# --- applications ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    """A runtime whose remotes are nobody else's."""
    with Apart() as apart:
        apart.ok("create", "work")
        yield apart


def test_an_application_that_nobody_offers(apart: Apart, sample: Sample) -> None:
    check_refused(apart.cagectl("app", "install", "work", NOTES), 1, ".*no remote.*")
    add_remote(apart, "sample", sample)
    check_refused(apart.cagectl("app", "install", "work", "org.example.Nope"), 1,
                  r"there is no org\.example\.Nope for \w+ in the remote sample; check the name, or add a remote")
    check_refused(apart.cagectl("app", "install", "work", NOTES, "--remote", "nope"), 1,
                  'there is no remote "nope"; add it with its key: cagectl app remote-add')
    check_refused(apart.cagectl("app", "install", "work", "notes"), 2,
                  'work: "notes" is not an application\'s id, such as org.example.App')
    check_refused(apart.cagectl("run", "work", "org.example.Nope"), 1,
                  r"org\.example\.Nope is not an application of work; "
                  r"install it with: cagectl app install work org\.example\.Nope")
    check_refused(apart.cagectl("app", "remove", "work", "org.example.Nope"), 1,
                  r"org\.example\.Nope is not an application of work")
    assert apart.json("app", "list", "work") == []


def test_a_remote_without_a_key(apart: Apart, sample: Sample) -> None:
    before = apart.json("app", "remotes")
    url, key = f"file://{sample.repository}", f"{sample.directory}/key.gpg"
    add = ("app", "remote-add", "keyless", url)
    check_refused(apart.cagectl(*add), 2,
                  "a remote needs the key that signs what it offers; say --gpg-key=FILE for keyless")
    for file, status, sentence in (
        ("/dev/null", 2, "/dev/null is not an OpenPGP public key: it has no bytes"),
        ("/no/such", 1, "/no/such: No such file or directory"),
        ("/etc/passwd", 2, 'the key given for the remote "keyless" is no OpenPGP key; '
                           "give the public OpenPGP key that signs what it offers"),
        (f"{sample.directory}/secret.asc", 1,
         'the key of the remote "keyless" is a secret key; give its public half \\(gpg --export\\)'),
    ):
        check_refused(apart.cagectl(*add, f"--gpg-key={file}"), status, sentence)
    check_refused(apart.cagectl("app", "remote-add", "Key Less", url, f"--gpg-key={key}"), 2,
                  f'"Key Less" cannot be a remote\'s name: {NAME_RULE}')
    check_refused(apart.cagectl("app", "remote-add", "keyless", "ftp://x/y", f"--gpg-key={key}"), 2,
                  '"ftp://x/y" cannot be the address of a repository: write https://HOST/PATH, or file:///PATH for a '
                  "directory of this machine")
    assert apart.json("app", "remotes") == before


FORGERIES: list[tuple[str, Callable[[Sample], None], str]] = [
    ("object", forge_object, r'app/\S+ from the remote "object" failed its check and was not taken: '
                             "an object of it is altered or missing: .*"),
    ("commit", forge_commit, r'app/\S+ from the remote "commit" failed its check and was not taken: '
                             "its commit is unsigned, signed by another key, or altered: .*"),
    ("unsigned", unsign_commit, r'app/\S+ from the remote "unsigned" failed its check and was not taken: '
                                "its commit is unsigned, signed by another key, or altered: .*"),
    ("summary", forge_summary, r'the summary of the remote "summary" is not signed by the key [0-9A-F]{40} that is '
                               "pinned for it, so that nothing was taken from it: .*"),
]


@pytest.mark.parametrize(("name", "forge", "sentence"), FORGERIES, ids=[row[0] for row in FORGERIES])
def test_what_was_tampered_with_is_not_taken(
    apart: Apart, sample: Sample, name: str, forge: Callable[[Sample], None], sentence: str
) -> None:
    with short_directory() as directory:
        forged = sample.copy(directory / "forged")
        add_remote(apart, name, forged)
        forge(forged)
        check_refused(apart.cagectl("app", "install", "work", NOTES, "--remote", name), 1, sentence)
    assert apart.json("app", "list", "work") == []
    assert NOTES not in apart.ok("show", "work")
    assert [*apart.state.glob("flatpak/app/*"), *apart.state.glob("flatpak/mirrors/*")] == []


def test_a_remote_that_does_not_answer(apart: Apart, sample: Sample) -> None:
    key = f"--gpg-key={sample.directory}/key.gpg"
    before = apart.json("app", "remotes")
    check_refused(apart.cagectl("app", "remote-add", "gone", "file:///nonexistent/repo", key), 1,
                  'the remote "gone" offers no repository at file:///nonexistent/repo: .*')
    assert apart.json("app", "remotes") == before
    with short_directory() as directory:
        add_remote(apart, "gone", sample.copy(directory / "gone"))
    check_refused(apart.cagectl("app", "install", "work", NOTES, "--remote", "gone"), 1,
                  r'the remote "gone" offers no repository at file:/\S+: .*')
    add_remote(apart, "sample", sample)
    check_refused(apart.cagectl("app", "install", "work", "org.example.Nope"), 1,
                  r'there is no org\.example\.Nope for \w+ in the remotes? .*sample.*; '
                  r'.*the remote "gone" offers no repository at file:.*')


def test_a_remote_is_taken_away_again(apart: Apart, sample: Sample) -> None:
    """When nothing that is installed came from it."""
    remove = ("app", "remote-remove", "leaves")
    check_refused(apart.cagectl(*remove), 1, 'there is no remote "leaves".*')
    add_remote(apart, "leaves", sample)
    apart.ok("app", "install", "work", NOTES, "--remote", "leaves")
    check_refused(apart.cagectl(*remove), 1, r'.*remote "leaves".*')
    apart.ok("app", "remove", "work", NOTES)
    assert apart.ok(*remove) == "leaves: removed\n"
    assert "leaves" not in apart.ok("app", "remotes")
    assert "remote-removed" in apart.ok("audit", "tail", "-n", "1")
