# SPDX-License-Identifier: LGPL-2.1-or-later
"""The scripts that change the machine, on places that are a test's own: nothing of this machine's is written to."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.privileged.runtime import SECONDS
from tests.privileged.sample import TOP

APART = r"""
set -eu
work=$1
mount -t tmpfs none "$work"
mkdir "$work/dpkg"
mount --bind /var/lib/dpkg "$work/dpkg"
cp -a /etc "$work/etc"
mount --bind "$work/etc" /etc
mkdir "$work/upper" "$work/work"
mount -t overlay -o "lowerdir=/usr/share,upperdir=$work/upper,workdir=$work/work" overlay /usr/share
for place in /opt /run /usr/local /var/lib /var/log; do mount -t tmpfs none "$place"; done
mkdir -p /usr/local/bin /usr/local/sbin /usr/local/share/man /var/lib/dpkg
mount --bind "$work/dpkg" /var/lib/dpkg
printf '#!/bin/sh\necho install was run >&2\nexit 9\n' >"$work/stub"
chmod 755 "$work/stub"
"""
"""A mount namespace's /etc, /opt, /run, /usr/local, /usr/share, /var/lib and /var/log, forgotten with it."""


def apart(directory: Path, script: str) -> subprocess.CompletedProcess[str]:
    command = ["unshare", "--mount", "--propagation=private", "sh", "-c", APART + script, "sh", directory]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    return subprocess.run(command, cwd=TOP, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=4 * SECONDS, check=False)  # fmt: skip


# --- quickstart ------------------------------------------------------------------------------------------------------
EARLIER = r"""
mkdir -p /opt/cage-runtime/bin /run/dbus
touch /opt/cage-runtime/.stamp
mount --bind /bin/true scripts/install
printf '#!/bin/sh\necho ready >&4\n' >/opt/cage-runtime/bin/caged
printf '#!/bin/sh\necho the cages were asked for >&2\nexit 9\n' >/opt/cage-runtime/bin/cagectl
chmod 755 /opt/cage-runtime/bin/*
kept=/var/lib/cage-runtime-quickstart
mkdir $kept
for name in {there}; do
    mkdir -p /var/lib/cage-runtime/cages/$name
    echo "{{\"uuid\":\"of-$name\",\"created\":\"\",\"owner\":0}}" >/var/lib/cage-runtime/cages/$name/instance.json
done
printf '{made}' >$kept/cages
scripts/quickstart || status=$?
kill "$(cat /run/cage-runtime-quickstart/dbus-daemon.pid)"
cat $kept/cages
exit ${{status:-0}}
"""
BOTH = r"work of-work kept\nvault of-vault kept\n"
STARTED = "quickstart: starting the runtime (caged --standalone, its log is /var/log/cage-runtime.log)\n"


@pytest.mark.parametrize(
    ("there", "kept"),
    [("work vault", "work and vault of an earlier --keep are kept"), ("vault", "vault of an earlier --keep is kept")],
)
def test_quickstart_starts_the_runtime_and_spares_what_was_kept(tmp_path: Path, there: str, kept: str) -> None:
    ended = apart(tmp_path, EARLIER.format(there=there, made=BOTH))
    sentence = (f"quickstart: the runtime runs; {kept}, so the main job is not shown again; "
                f"to see it: cagectl destroy {there} --yes, then this again\n")
    assert ended.returncode == 0
    assert ended.stderr.endswith(STARTED + sentence)
    assert ended.stdout == BOTH.replace("\\n", "\n")


@pytest.mark.parametrize(
    ("there", "made"),
    [
        ("", BOTH),
        ("work vault", r"work of-work\nvault of-vault\n"),
        ("work", r"work of-another kept\n"),
    ],
    ids=["destroyed since", "interrupted", "another of that name"],
)
def test_quickstart_goes_on_where_nothing_was_kept(tmp_path: Path, there: str, made: str) -> None:
    ended = apart(tmp_path, EARLIER.format(there=there, made=made))
    assert ended.returncode != 0
    assert STARTED + "the cages were asked for\n" in ended.stderr


STOP = r"""
mkdir -p /opt/cage-runtime/bin /run/dbus /run/cage-runtime-quickstart
cp "$work/stub" /opt/cage-runtime/bin/cagectl
dbus-uuidgen --ensure=/etc/machine-id
dbus-daemon --system --fork --nopidfile --print-pid >/run/cage-runtime-quickstart/dbus-daemon.pid
test -S /run/dbus/system_bus_socket
scripts/quickstart --stop
test ! -e /run/dbus/system_bus_socket
"""


def test_quickstart_stop_leaves_no_socket_of_a_bus_that_it_started(tmp_path: Path) -> None:
    ended = apart(tmp_path, STOP)
    assert ended.returncode == 0, ended.stderr


# --- install and uninstall -------------------------------------------------------------------------------------------
LIST = ("find /usr/local /usr/share/polkit-1 /opt /etc/dbus-1 -type l -printf '%p -> %l\\n' -o -printf '%p\\n' "
        "| grep -v ^/opt/cage-runtime/ | sort")
INSTALL = rf"""
mkdir -p /usr/local/share/man/man8 /usr/share/polkit-1
touch /usr/local/share/man/man8/other.8
before=$({LIST})
scripts/install
{LIST}
caged --help >"$work/help"
grep -q -- --standalone "$work/help"
scripts/uninstall
test "$({LIST})" = "$before"
"""


def test_uninstall_takes_what_install_put_there(tmp_path: Path) -> None:
    ended = apart(tmp_path, "PATH=/usr/local/sbin:/usr/local/bin:$PATH" + INSTALL)
    assert ended.returncode == 0, ended.stderr
    links = dict(line.split(" -> ") for line in ended.stdout.splitlines() if " -> " in line)
    assert links["/usr/local/bin/cagectl"] == "/opt/cage-runtime/bin/cagectl"
    assert links["/usr/local/sbin/caged"] == "/opt/cage-runtime/bin/caged"
    assert "/usr/local/share/man/man8/caged.8" in ended.stdout.splitlines()


THEIRS = rf"""
mkdir -p /usr/local/bin /usr/local/share/man/man8 /etc/dbus-1/system.d /usr/share/polkit-1 /usr/local/lib
echo theirs >/usr/local/bin/cagectl
ln -s /srv/theirs /etc/dbus-1/system.d/org.cageruntime.Core1.conf
mkdir -p /usr/local/share/man/man8/caged.8
echo theirs >/usr/local/lib/tmpfiles.d
before=$({LIST})
scripts/install && exit 9
test "$({LIST})" = "$before"
test "$(cat /usr/local/bin/cagectl)" = theirs
test ! -e /opt/cage-runtime/.installed
"""


def test_install_replaces_nothing_that_is_somebody_else_s(tmp_path: Path) -> None:
    """Not even a part of it: a file, a link, a folder in a file's place, and a file in a folder's."""
    ended = apart(tmp_path, THEIRS)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.endswith(
        "install: nothing is installed, because this is here already and none of the runtime's; move it away: "
        "/etc/dbus-1/system.d/org.cageruntime.Core1.conf, /usr/local/bin/cagectl, /usr/local/lib/tmpfiles.d, "
        "/usr/local/share/man/man8/caged.8\n")  # fmt: skip


OURS = r"""
mkdir -p /usr/share/polkit-1
{earlier}
scripts/install
cmp policies/dbus/org.cageruntime.Core1.conf /etc/dbus-1/system.d/org.cageruntime.Core1.conf
test "$(readlink /usr/local/bin/cagectl)" = /opt/cage-runtime/bin/cagectl
scripts/uninstall
test ! -e /etc/dbus-1/system.d/org.cageruntime.Core1.conf
test ! -e /opt/cage-runtime
"""
BEFORE = {
    "of another version": r"""
        scripts/install
        echo earlier >/etc/dbus-1/system.d/org.cageruntime.Core1.conf
        ln -sfn /opt/cage-runtime/bin/earlier /usr/local/bin/cagectl
        rm /opt/cage-runtime/.stamp""",
    "of the earlier layout": r"""
        mkdir -p /opt/cage-runtime/venv/lib/python3.11/site-packages /opt/cage-runtime/bin
        ln -s venv/lib/python3.11/site-packages /opt/cage-runtime/lib
        echo earlier >/etc/dbus-1/system.d/org.cageruntime.Core1.conf
        echo earlier >/opt/cage-runtime/bin/cagectl
        ln -s /opt/cage-runtime/bin/cagectl /usr/local/bin/cagectl""",
    "cut off": r"""
        mkdir "$work/cut"
        printf '#!/bin/sh\ncase $* in *tmpfiles*) exit 1 ;; esac\nexec /bin/mv "$@"\n' >"$work/cut/mv"
        chmod 755 "$work/cut/mv"
        PATH="$work/cut:$PATH" scripts/install && exit 9
        echo earlier >/etc/dbus-1/system.d/org.cageruntime.Core1.conf""",
}


@pytest.mark.parametrize("earlier", BEFORE)
def test_install_replaces_what_is_its_own(tmp_path: Path, earlier: str) -> None:
    ended = apart(tmp_path, OURS.format(earlier=BEFORE[earlier]))
    assert ended.returncode == 0, ended.stderr


PURGE = r"""
mkdir "$work/bin"
printf '#!/bin/sh\n[ "$1" != cage-files ] || { echo "$1 is busy" >&2; exit 8; }\n' >"$work/bin/userdel"
cp /bin/true "$work/bin/groupdel"
chmod 755 "$work/bin"/*
mkdir -p /opt/cage-runtime /var/lib/cage-runtime
PATH="$work/bin:$PATH" scripts/uninstall --purge
"""


def test_a_user_that_cannot_be_removed_is_named(tmp_path: Path) -> None:
    ended = apart(tmp_path, PURGE)
    assert ended.returncode == 1
    assert ended.stderr == ("cage-files is busy\nuninstall: all is removed but the user cage-files, "
                            "for the reasons above; end what uses them, then this again\n")


MOUNTED = r"""
mkdir "$work/disk" "$work/bin"
echo kept >"$work/disk/letters"
mkdir -p /opt/cage-runtime /var/lib/cage-runtime/storage/of-work/home
touch /var/lib/cage-runtime/storage/of-work/range
mount -t tmpfs none /var/lib/cage-runtime/storage/of-work/home
cp "$work/disk/letters" /var/lib/cage-runtime/storage/of-work/home
for program in userdel groupdel; do cp /bin/true "$work/bin/$program"; done
PATH="$work/bin:$PATH" scripts/uninstall --purge || status=$?
cat /var/lib/cage-runtime/storage/of-work/home/letters
test ! -e /var/lib/cage-runtime/storage/of-work/range
exit ${status:-0}
"""


def test_what_somebody_has_mounted_in_a_home_is_not_purged_with_it(tmp_path: Path) -> None:
    ended = apart(tmp_path, MOUNTED)
    assert (ended.returncode, ended.stdout) == (1, "kept\n")
    assert "skipping '/var/lib/cage-runtime/storage/of-work/home'" in ended.stderr


GOING_ON = r"""
mkdir "$work/cgroup2" /opt/cage-runtime
mount -t cgroup2 none "$work/cgroup2"
top=$work/cgroup2/cage-scripts-$$
mkdir -p "$top/cage-runtime/of-work" "$top/cage-runtime/of-vault" /var/lib/cage-runtime/cages/work
echo '{{"uuid":"of-work"}}' >/var/lib/cage-runtime/cages/work/instance.json
mkfifo "$work/fifo"
cat "$work/fifo" &
echo $! >"$top/cage-runtime/of-work/cgroup.procs"
sh -c 'echo $$ >"$1/cgroup.procs" && exec unshare --cgroup {command}' sh "$top" || status=$?
: >"$work/fifo"
wait $!
rmdir "$top/cage-runtime/of-work" "$top/cage-runtime/of-vault" "$top/cage-runtime" "$top"
test -d /opt/cage-runtime
exit ${{status:-0}}
"""
"""In a cgroup namespace, whose top has the cgroups of a running cage and of one that has stopped."""


def test_uninstall_ends_where_a_cage_goes_on(tmp_path: Path) -> None:
    ended = apart(tmp_path, GOING_ON.format(command="scripts/uninstall"))
    assert (ended.returncode, ended.stderr) == (1, "uninstall: these cages go on, and what could stop them is not "
                                                   "installed: work; run scripts/install first\n")  # fmt: skip


# --- the package, and it and a source install ------------------------------------------------------------------------
PREINST, PRERM = "sh scripts/debian/cage-runtime.preinst install", "sh scripts/debian/cage-runtime.prerm remove"
HAS_PACKAGE = r"""
mkdir "$work/bin"
printf '#!/bin/sh\n[ "$4" = cage-runtime ] && echo installed\n' >"$work/bin/dpkg-query"
chmod 755 "$work/bin/dpkg-query"
PATH="$work/bin:$PATH" scripts/install || status=$?
ls /opt
exit ${status:-0}
"""
RUNS = ("cage-runtime: caged or cages still run; end them with cagectl stop, then caged, "
        "and remove the package again\n")


def test_a_source_install_is_refused_where_the_package_is(tmp_path: Path) -> None:
    ended = apart(tmp_path, HAS_PACKAGE)
    assert (ended.returncode, ended.stdout, ended.stderr) == (
        1, "", "install: the package cage-runtime is installed here; apt remove it first, cages and documents stay\n"
    )  # fmt: skip


def test_the_package_is_refused_where_a_source_install_is(tmp_path: Path) -> None:
    ended = apart(tmp_path, f"mkdir -p /opt/cage-runtime/bin; touch /opt/cage-runtime/bin/caged; {PREINST}")
    assert (ended.returncode, ended.stderr) == (
        1, "cage-runtime: what scripts/install put in /opt/cage-runtime is still there; run scripts/uninstall first, "
           "cages and documents stay\n")  # fmt: skip
    assert apart(tmp_path, PREINST).returncode == 0


def test_without_systemd_the_package_is_not_removed_while_a_core_runs(tmp_path: Path) -> None:
    ended = apart(tmp_path, f"mkdir /run/cage-runtime; flock /run/cage-runtime/spawner.lock {PRERM}")
    assert (ended.returncode, ended.stderr) == (1, RUNS)


def test_without_systemd_the_package_is_not_removed_while_a_cage_goes_on(tmp_path: Path) -> None:
    ended = apart(tmp_path, GOING_ON.format(command=PRERM))
    assert (ended.returncode, ended.stderr) == (1, RUNS)


def test_without_systemd_the_package_is_removed_where_nothing_runs(tmp_path: Path) -> None:
    script = f"mkdir /run/cage-runtime; touch /run/cage-runtime/spawner.lock; unshare --cgroup {PRERM}"
    ended = apart(tmp_path, script)
    assert (ended.returncode, ended.stderr) == (0, "")


POSTRM = r"""
mkdir -p "$work/theirs" /run/cage-runtime/cages /etc/cage-runtime /var/lib/cage-runtime/exports/1000/share
touch "$work/theirs/kept" /run/cage-runtime/cages/socket
mkdir /var/lib/cage-runtime/staging
for link in exports/1000/share/applications exports/0 staging/link; do
    ln -s "$work/theirs" /var/lib/cage-runtime/$link
done
ln -s "$work/theirs" /run/cage-runtime/caged
before=$(find /run /var/lib/cage-runtime /etc/cage-runtime)
for word in upgrade failed-upgrade abort-install abort-upgrade disappear; do
    sh scripts/debian/cage-runtime.postrm $word 0.0.9
done
test "$(find /run /var/lib/cage-runtime /etc/cage-runtime)" = "$before"
sh scripts/debian/cage-runtime.postrm remove
test ! -e /run/cage-runtime
test "$(find /var/lib/cage-runtime /etc/cage-runtime | wc -l)" = "$(echo "$before" | grep -vc ^/run)"
sh scripts/debian/cage-runtime.postrm purge
test ! -e /var/lib/cage-runtime
test ! -e /etc/cage-runtime
find "$work/theirs" -printf '%f %U\n'
"""


def test_the_package_deletes_what_it_is_told_to_and_follows_no_link(tmp_path: Path) -> None:
    """caged and the mediators write in these folders; dpkg also calls this where it goes back on something."""
    ended = apart(tmp_path, POSTRM)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "theirs 0\nkept 0\n", "")
