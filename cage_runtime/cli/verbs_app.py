# SPDX-License-Identifier: LGPL-2.1-or-later
"""Applications: app remote-add, remote-remove, remotes, install, update, remove, list."""

from __future__ import annotations

from cage_runtime.cli.client import Peer, core, job
from cage_runtime.cli.output import Screen, cell
from cage_runtime.errors import CageError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

KEY_BYTES_MAX = 1024 * 1024
"""Bytes in a file of OpenPGP keys."""
REMOTE_SECONDS = 240.0
"""How long it may take to add a remote, whose summary is fetched and checked first."""


def _remote_add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("remote", metavar="NAME", help="what the remote shall be called here")
    parser.add_argument("url", metavar="URL", help="where its repository is")
    parser.add_argument("--gpg-key", metavar="FILE", help="the OpenPGP public key that signs all it offers (needed)")


def _remote_add(args: argparse.Namespace, screen: Screen) -> int:
    if not args.gpg_key:
        raise UsageError(f"a remote needs the key that signs what it offers; say --gpg-key=FILE for {args.remote}")
    with open(args.gpg_key, "rb") as file:
        key = file.read(KEY_BYTES_MAX + 1)
    if not 0 < len(key) <= KEY_BYTES_MAX:
        raise UsageError(f"{args.gpg_key} is not an OpenPGP public key: it has {len(key) or 'no'} bytes")
    core(args.verb, args.asks).call("AddRemote", "ssaya{sv}", args.remote, args.url, key, {}, timeout=REMOTE_SECONDS)
    _report(screen, {"name": args.remote, "url": args.url}, f"{args.remote}: added")
    return 0


def _remote_remove_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("remote", metavar="NAME", help="a remote from which nothing is installed any more")


def _remote_remove(args: argparse.Namespace, screen: Screen) -> int:
    core(args.verb, args.asks).call("RemoveRemote", "sa{sv}", args.remote, {})
    _report(screen, {"name": args.remote}, f"{args.remote}: removed")
    return 0


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def _remotes(args: argparse.Namespace, screen: Screen) -> int:
    remotes = core(args.verb, args.asks).call("ListRemotes", "a{sv}", {}, returns="aa{sv}")
    _show(screen, remotes, ("name", "url", "key"), "remote")
    return 0


def _cage_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cage", metavar="CAGE", help="a cage")


def _application_arguments(parser: argparse.ArgumentParser) -> None:
    _cage_arguments(parser)
    parser.add_argument("application", metavar="APP-ID", help="an application, such as org.cageruntime.Notes")


def _install_arguments(parser: argparse.ArgumentParser) -> None:
    _application_arguments(parser)
    parser.add_argument("--remote", metavar="NAME", help="from this remote alone")


def _install(args: argparse.Namespace, screen: Screen) -> int:
    options = {"remote": args.remote} if args.remote else {}
    results = _job(args, "InstallApplication", "ssa{sv}", args.cage, args.application, options)
    commit = cell(str(results.get("commit", "")))
    shown = cell(results.get("application", args.application))
    _report(screen, results, f"{shown}: installed in {args.cage}, commit {commit[:8]}…")
    return 0


def _update(args: argparse.Namespace, screen: Screen) -> int:
    results = _job(args, "UpdateApplications", "sa{sv}", args.cage, {})
    if screen.as_json:
        screen.document(results)
    # One key an application; its value is the commit that is there now.
    for application, commit in results.items():
        screen.done(f"{cell(application)}: up to date in {args.cage}, commit {cell(commit)[:8]}…")
    if not results:
        screen.done(f"{args.cage}: no applications")
    return 0


def _remove(args: argparse.Namespace, screen: Screen) -> int:
    results = _job(args, "RemoveApplication", "ssa{sv}", args.cage, args.application, {})
    _report(screen, results, f"{args.application}: removed from {args.cage}")
    return 0


def _list(args: argparse.Namespace, screen: Screen) -> int:
    rows = core(args.verb, args.asks).call("ListApplications", "sa{sv}", args.cage, {}, returns="aa{sv}")
    _show(screen, rows, ("application", "commit", "runtime", "remote"), "application")
    return 0


def _job(args: argparse.Namespace, member: str, signature: str, *values: object) -> dict[str, Any]:
    """The results of the job that `member` starts; Ctrl-C cancels it."""
    manager = core(args.verb, args.asks)
    path = manager.call(member, signature, *values, returns="o")
    work: Peer = job(manager, path)
    try:
        results: dict[str, Any] = work.call("Wait", returns="a{sv}", timeout=None)
    except KeyboardInterrupt:
        work.call("Cancel")
        raise Cancelled("cancelled") from None
    return results


class Cancelled(CageError):
    """The person took the request back (Ctrl-C)."""

    exit_status = 130


def _report(screen: Screen, results: dict[str, Any], sentence: str) -> None:
    if screen.as_json:
        screen.document(results)
    screen.done(sentence)


def _show(screen: Screen, rows: list[dict[str, Any]], keys: tuple[str, ...], noun: str) -> None:
    if screen.as_json:
        screen.document(rows)
        return
    screen.table([key.upper() for key in keys], [[row.get(key, "") for key in keys] for row in rows], noun)


VERBS = {
    "app remote-add": (_remote_add_arguments, _remote_add),
    "app remote-remove": (_remote_remove_arguments, _remote_remove),
    "app remotes": (_no_arguments, _remotes),
    "app install": (_install_arguments, _install),
    "app update": (_cage_arguments, _update),
    "app remove": (_application_arguments, _remove),
    "app list": (_cage_arguments, _list),
}
