# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the policy says, lets happen and would let happen: policy check, explain, simulate, diff; graph."""

from __future__ import annotations

import errno
import os
import stat

from cage_runtime.cli.client import core
from cage_runtime.cli.output import Screen, cell, visible
from cage_runtime.errors import CageError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

INSTALLED = "installed"
FORMATS = ("text", "dot", "svg")
_PARTS = {"leak": "leaks", "opened": "opened"}
"""Where in the document of `policy check` a finding of that kind stands; every other kind is a warning."""


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


# --- check ---------------------------------------------------------------------------------------------------------
def _check(args: argparse.Namespace, screen: Screen) -> int:
    manager = core(args.verb, args.asks)
    found: dict[str, list[Any]] = {"faults": manager.call("CheckPolicy", "a{sv}", {}, returns="as"),
                                   "leaks": [], "warnings": [], "opened": []}
    if not found["faults"]:  # of a policy that cannot be read nothing can be proved
        for finding in manager.call("ProvePolicy", "a{sv}", {}, returns="aa{sv}"):
            found[_PARTS.get(str(finding.get("kind")), "warnings")].append(finding)
    if screen.as_json:
        screen.document(found)
    else:
        _show_findings(found, screen)
    if found["faults"] or found["leaks"]:
        return 1
    warnings = len(found["warnings"])
    counted = f", {warnings} warning{'' if warnings == 1 else 's'}" if warnings else ""
    screen.done(f"policy: sound{counted}")
    return 0


def _show_findings(found: dict[str, list[Any]], screen: Screen) -> None:
    for fault in found["faults"]:
        screen.line(visible(fault))
    for finding in (*found["leaks"], *found["warnings"], *found["opened"]):
        screen.line(visible(f"{finding.get('kind', '')}: {finding.get('text', '')}"))
        for step in finding.get("chain", []):
            screen.line(visible("  " + _step(step)))


def _step(step: dict[str, Any]) -> str:
    how = [str(step.get("service", ""))]
    if step.get("back"):
        how.append("its answer")
    if step.get("action") == "ask":
        how.append("where a person says so")
    if step.get("declassify"):
        how.append("declassify")
    return f"{step.get('source', '')} -> {step.get('target', '')}: {', '.join(how)} (rule {step.get('rule', '')})"


# --- explain and simulate ------------------------------------------------------------------------------------------
def _question(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="the cage that asks")
    parser.add_argument("service", metavar="SERVICE[+ARG]", help="what for, such as files.Send")
    parser.add_argument("target", metavar="DST",
                        help="the cage it names; or @default, @core, @disposable, @disposable:TEMPLATE")


def _why(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--why", action="store_true", help="also the rules that nearly match, and what would change it")


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    _question(parser)
    _why(parser)


def _explain(args: argparse.Namespace, screen: Screen) -> int:
    asked = _asked(args.source, args.service, args.target)
    decision = core(args.verb, args.asks).call("ExplainPolicy", "ssssa{sv}", *asked, {}, returns="a{sv}")
    return _show_decision(decision, (args.source, args.service, args.target), args.why, screen)


def _asked(source: str, service: str, target: str) -> tuple[str, str, str, str]:
    name, _, argument = service.partition("+")
    return source, name, argument, target


def _show_decision(decision: dict[str, Any], question: tuple[str, str, str], why: bool, screen: Screen) -> int:
    if screen.as_json:
        screen.document(decision)
        return 0
    source, service, target = question
    action, flow, after = (str(decision.get(key, "")) for key in ("action", "flow", "target"))
    direction = f" ({cell(flow)})" if flow else ""
    redirected = f", which goes to {cell(after)}" if action != "deny" and after not in ("", target) else ""
    screen.line(f"{screen.word(cell(action), action)}: {service} from {source} to {target}{redirected}{direction}")
    shown = [(key, decision[key]) for key in ("rule", "reason", "note", "parameters") if decision.get(key)]
    if why:
        shown += [("passed", f"{near.get('rule', '')}: {near.get('text', '')}: {near.get('why', '')}")
                  for near in decision.get("passed", [])]
        shown += [("change", decision["change"])] if decision.get("change") else []
    screen.fields(shown)
    return 0


def _simulate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="a policy file, as if it were installed")
    _why(parser)
    parser.usage = "cagectl policy simulate [OPTION…] FILE… -- SRC SERVICE[+ARG] DST"
    parser.set_defaults(takes_command=True)


def _simulate(args: argparse.Namespace, screen: Screen) -> int:
    if len(args.command) != 3:
        raise UsageError("policy simulate: after -- belongs what to ask: SRC SERVICE[+ARG] DST")
    source, service, target = args.command
    files = {os.path.basename(path): _read(path) for path in args.files}
    if len(files) < len(args.files):
        raise UsageError("policy simulate: two of the files have one name")
    asked = (*_asked(source, service, target), files)
    decision = core(args.verb, args.asks).call("SimulatePolicy", "ssssa{say}a{sv}", *asked, {}, returns="a{sv}")
    return _show_decision(decision, (source, service, target), args.why, screen)


# --- diff ----------------------------------------------------------------------------------------------------------
def _diff_arguments(parser: argparse.ArgumentParser) -> None:
    meant = f"{INSTALLED}, a directory (a whole policy), or a file in the place of the installed one"
    parser.add_argument("before", metavar="A", help=meant)
    parser.add_argument("after", metavar="B", help="the same")


def _diff(args: argparse.Namespace, screen: Screen) -> int:
    (before, before_alone), (after, after_alone) = _side(args.before), _side(args.after)
    told = {"before-alone": before_alone, "after-alone": after_alone}
    changes = core(args.verb, args.asks).call("DiffPolicy", "a{say}a{say}a{sv}", before, after, told, returns="aa{sv}")
    if screen.as_json:
        screen.document(changes)
        return 0
    keys = ("source", "service", "target", "before", "after", "rule-before", "rule-after")
    rows = [[change.get(key, "") for key in keys] for change in changes]
    screen.table([key.upper() for key in keys], rows, "change")
    return 0


def _side(path: str) -> tuple[dict[str, bytes], bool]:
    """The files that stand for one of the two policies, and whether they are all of it."""
    if path == INSTALLED:
        return {}, False
    if not os.path.isdir(path):
        return {os.path.basename(path): _read(path)}, False
    try:
        names = sorted(name for name in os.listdir(path) if name.endswith(".policy"))
    except OSError as error:
        raise CageError(f"{path}: {error.strerror}") from error
    return {name: _read(os.path.join(path, name)) for name in names}, True


def _read(path: str) -> bytes:
    """The text of a policy file; none that caged would take is longer."""
    from cage_runtime.model import POLICY_BYTES_MAX

    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            text = file.read(POLICY_BYTES_MAX + 1)
    except OSError as error:
        raise CageError(f"{path}: {error.strerror}") from error
    if len(text) > POLICY_BYTES_MAX:
        raise CageError(f"{path}: more than {POLICY_BYTES_MAX} bytes; divide it")
    return text


# --- graph ---------------------------------------------------------------------------------------------------------
def _graph_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], metavar="FORM",
                        help="text, dot (for graphviz) or svg")


def _graph(args: argparse.Namespace, screen: Screen) -> int:
    graph = core(args.verb, args.asks).call("Graph", "a{sv}", {}, returns="a{sv}")
    levels, cages, flows = graph["levels"], graph["cages"], graph["flows"]
    if screen.as_json:
        screen.document(graph)
    elif args.format == FORMATS[0]:
        _show_graph(levels, cages, flows, screen)
    else:
        from cage_runtime.cli import drawing

        drawn = (drawing.dot if args.format == "dot" else drawing.svg)(levels, cages, flows)
        screen.line(drawn.rstrip("\n"))
    return 0


def _show_graph(levels: list[Any], cages: list[Any], flows: list[Any], screen: Screen) -> None:
    from cage_runtime.cli.drawing import label_of

    there = [(level["name"], [cage for cage in cages if cage["level"] == level["name"]]) for level in reversed(levels)]
    width = max(len(str(name)) for name, _ in there)
    for name, here in there:
        shown = ", ".join(cage["name"] + (f" ({label_of(cage)})" if cage["compartments"] else "") for cage in here)
        screen.line(visible(f"{name:<{width}}  {shown or '-'}"))
    screen.line("")
    rows = [[flow["source"], "<->" if flow["two-way"] else "->", flow["target"], flow["action"],
             "declassify" if flow["declassify"] else "", ", ".join(flow["services"])] for flow in flows]
    screen.table(("SOURCE", "", "TARGET", "ACTION", "DOWN", "SERVICES"), rows, "flow")


VERBS = {
    "policy check": (_no_arguments, _check),
    "policy explain": (_explain_arguments, _explain),
    "policy simulate": (_simulate_arguments, _simulate),
    "policy diff": (_diff_arguments, _diff),
    "graph": (_graph_arguments, _graph),
}
