# SPDX-License-Identifier: LGPL-2.1-or-later
# What the scripts of this folder share; sourced, never run.  Law: each step looks before it works, so that a second
# run is quick and needs no network.
# shellcheck shell=bash

readonly PYTHON=/usr/bin/python3
readonly CAGES=/var/lib/cage-runtime/cages # the runtime's record of each cage

# python_here: the version of it, such as 3.11.
python_here() { "$PYTHON" -IS -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
  say "$*"
  exit 1
}

# is_installed PACKAGE: does the distribution have it here?
is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# need_packages NAME...: installs those of the distribution's packages that are not here yet.
need_packages() {
  local missing=() name
  command -v dpkg-query >/dev/null || die "there is no dpkg here; this script knows Debian and its descendants"
  for name in "$@"; do
    is_installed "$name" || missing+=("$name")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" -eq 0 ] || die "packages are missing and only root can install them: ${missing[*]}"
  say "installing from the distribution: ${missing[*]}"
  local log
  log=$(mktemp)
  if ! { apt-get update --quiet=2 &&
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends "${missing[@]}"; } \
    </dev/null >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    die "the distribution's packages could not be installed; apt's words are above"
  fi
  rm -f "$log"
}

# make_venv DIR SET: a virtual environment on the distribution's Python with scripts/requirements-SET.txt, whole in itself
# (a package that the distribution has too is installed all the same), and the distribution's beside it.
make_venv() {
  local venv=$1 requirements=scripts/requirements-$2.txt wanted
  wanted=$({ "$PYTHON" -VV && cat "$requirements"; } | sha256sum)
  [ "$(cat "$venv/.stamp" 2>/dev/null)" != "$wanted" ] || return 0
  need_packages python3-venv
  say "installing from PyPI into $venv"
  rm -rf "$venv"
  "$PYTHON" -m venv --system-site-packages "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --ignore-installed --require-hashes \
    --requirement "$requirements"
  printf '%s\n' "$wanted" >"$venv/.stamp"
}

# fetch_wheels SET DIR VERSION...: what is in scripts/requirements-SET.txt, for these versions of Python.
fetch_wheels() {
  local requirements=scripts/requirements-$1.txt folder=$2 version machine platforms wanted
  shift 2
  machine=$(uname -m)
  wanted=$({ echo "$machine $*" && cat "$requirements"; } | sha256sum)
  [ "$(cat "$folder/.stamp" 2>/dev/null)" != "$wanted" ] || return 0
  say "fetching from PyPI into $folder"
  rm -rf "$folder"
  platforms=(--platform "manylinux_2_17_$machine" --platform "manylinux_2_28_$machine")
  for version in "$@"; do
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
      --implementation cp --python-version "$version" "${platforms[@]}" \
      --dest "$folder" --requirement "$requirements"
  done
  printf '%s\n' "$wanted" >"$folder/.stamp"
}

# one_at_a_time FILE ARGUMENT...: this script, from its start, with FILE locked; what it leaves running holds no lock.
one_at_a_time() {
  local file=$1
  shift
  [ "${CAGE_RUNTIME_LOCK:-}" = "$file" ] ||
    CAGE_RUNTIME_LOCK=$file exec flock --close "$file" "scripts/${0##*/}" "$@"
}

# living_uuids: of each cage that has processes, its uuid, by a cgroup2 mount of our own; where there can be none, there
# is no cage either.
living_uuids() {
  # shellcheck disable=SC2016 # the inner shell's variables
  unshare --mount sh -c '
    # Over a tmpfs, because mount(2) refuses a file system where it is already, as on most hosts.
    mount -t tmpfs none /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup 2>/dev/null || exit 0
    cd /sys/fs/cgroup
    for cgroup in cage-runtime/*/ cages.slice/cage-*.scope/*/; do
      case $cgroup in *.gateway/) continue ;; esac # beside the cage whose bus it is
      ! grep -qsx "populated 1" "${cgroup}cgroup.events" || basename "$cgroup"
    done'
}

# living: the cages that go on, whether the runtime answers or not, by name in one line.
living() {
  local uuid uuids record names=()
  uuids=$(living_uuids) || die "it cannot be seen whether cages go on"
  for uuid in $uuids; do
    record=$(grep -lsF "\"$uuid\"" "$CAGES"/*/instance.json) || record=$uuid/
    record=${record%/*}
    names+=("${record##*/}")
  done
  printf '%s' "${names[*]}"
}

# within_reach SCRIPT ARGUMENT...: the core's users run the programs under test, and into a home they cannot look: the
# script again, where this tree stands at a place that they reach, in a mount namespace of its own.
within_reach() {
  ! setpriv --reuid=65534 --regid=65534 --clear-groups test -r "$PWD/pyproject.toml" || return 0
  [ "$PWD" != /mnt ] || die "other users cannot read this tree's files; clone it with umask 022"
  exec unshare --mount bash -c 'mount --bind . /mnt && cd /mnt && exec "$@"' test "$@"
}
