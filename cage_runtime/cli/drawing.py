# SPDX-License-Identifier: LGPL-2.1-or-later
"""The picture of what may flow, as DOT for graphviz and as SVG for everybody else.

Law of this room: text goes in through `_dot` or `_xml` alone, and nothing from outside decides the form.  Levels are
layers, the highest on top, and a cage stands in the layer of its level.
"""

from __future__ import annotations

from cage_runtime.cli.output import visible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    Rows = Sequence[Mapping[str, Any]]

CORE = "@core"
_GREY, _RED, _INK = "#9e9e9e", "#b71c1c", "#212121"
_WIDTH, _HEIGHT, _GAP = 150, 44, 50
"""A cage's box, and what is between two of them."""
_LAYER, _MARGIN, _NAMES = 150, 24, 110
"""The height of a layer; the picture's edge; what the names of the layers take on the left."""
_LETTER = 6.2
"""How wide a letter of the small text is, about."""
_CLIP = 21
"""Letters that a box has room for."""


def label_of(cage: Mapping[str, Any]) -> str:
    """Level and compartments as one word."""
    return "+".join([str(cage.get("level", "")), *map(str, cage.get("compartments", []))])


def dot(levels: Rows, cages: Rows, flows: Rows) -> str:
    """The picture for graphviz; `levels` from the lowest to the highest."""
    lines = ["digraph cages {", "  rankdir=BT;", '  node [shape=box, style=filled, fontname="sans-serif"];',
             '  edge [fontname="sans-serif", fontsize=9];']
    for number, level in enumerate(levels):
        here = [cage for cage in cages if cage.get("level") == level["name"]]
        colour = _dot(level.get("colour") or _GREY)
        lines += [f"  subgraph cluster_{number} {{", f"    label={_dot(level['name'])};", f"    color={colour};"]
        for cage in here:
            lines.append(f"    {_dot(cage['name'])} [label={_dot_lines(cage['name'], label_of(cage))}, "
                         f'color={colour}, fillcolor="white", penwidth=2];')
        lines.append("  }")
    if any(flow["target"] == CORE for flow in flows):
        lines.append(f"  {_dot(CORE)} [shape=ellipse];")
    for flow in flows:
        marks = [f"label={_dot_lines(*flow['services'])}"]
        if flow.get("action") == "ask":
            marks.append("style=dashed")
        if flow.get("declassify"):
            marks += [f"color={_dot(_RED)}", f"fontcolor={_dot(_RED)}"]
        if flow.get("two-way"):
            marks.append("dir=both")
        lines.append(f"  {_dot(flow['source'])} -> {_dot(flow['target'])} [{', '.join(marks)}];")
    return "\n".join([*lines, "}"]) + "\n"


def _dot(text: object) -> str:
    """`text` as a quoted identifier of the DOT language, in which `\\` begins an escape of its own."""
    return '"' + _dot_text(text) + '"'


def _dot_lines(*texts: object) -> str:
    return '"' + "\\n".join(map(_dot_text, texts)) + '"'


def _dot_text(text: object) -> str:
    return visible(str(text)).replace("\\", "\\\\").replace('"', '\\"')


def svg(levels: Rows, cages: Rows, flows: Rows) -> str:
    """The picture as a drawing that needs nothing else; `levels` from the lowest to the highest."""
    layers = [[cage for cage in cages if cage.get("level") == level["name"]] for level in levels]
    with_core = any(flow["target"] == CORE for flow in flows)
    widest = max([len(layer) for layer in layers] + [1])
    width = 2 * _MARGIN + _NAMES + widest * (_WIDTH + _GAP)
    height = 2 * _MARGIN + (len(layers) + with_core) * _LAYER
    top = _MARGIN + with_core * _LAYER
    places: dict[str, tuple[float, float]] = {}
    boxes: list[str] = []
    for depth, (level, layer) in enumerate(reversed(list(zip(levels, layers, strict=True)))):
        middle = top + depth * _LAYER + _LAYER / 2
        boxes += _layer(str(level["name"]), _colour(level), middle, width)
        for number, cage in enumerate(layer):
            at = (_MARGIN + _NAMES + (number + 0.5) * (width - 2 * _MARGIN - _NAMES) / len(layer), middle)
            places[str(cage["name"])] = at
            boxes += _box(str(cage["name"]), label_of(cage), _colour(level), at)
    if with_core:
        places[CORE] = (_MARGIN + _NAMES + (width - 2 * _MARGIN - _NAMES) / 2, _MARGIN + _LAYER / 2)
        boxes += _box(CORE, "the core", _INK, places[CORE])
    lines = [line for flow in _fanned(flows) for line in _edge(flow, places)]
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif">')
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', head, *_ARROWS,
                      f'<rect width="{width}" height="{height}" fill="#ffffff"/>', *boxes, *lines, "</svg>"]) + "\n"


_ARROWS = ["<defs>", *(
    f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
    f'orient="auto-start-reverse"><path d="M 0 0 L 10 5 L 0 10 z" fill="{colour}"/></marker>'
    for name, colour in (("arrow", _INK), ("down", _RED))
), "</defs>"]


def _colour(level: Mapping[str, Any]) -> str:
    """The level's colour, which levels.toml holds to `#rrggbb`; grey for whatever is something else."""
    colour = str(level.get("colour", ""))
    fits = len(colour) == 7 and colour[0] == "#" and all(digit in "0123456789abcdef" for digit in colour[1:])
    return colour if fits else _GREY


def _layer(name: str, colour: str, middle: float, width: float) -> list[str]:
    above = middle - _LAYER / 2
    return [
        f'<rect x="{_MARGIN}" y="{above + 4:.1f}" width="{width - 2 * _MARGIN}" height="{_LAYER - 8}" rx="6" '
        f'fill="{colour}" fill-opacity="0.08"/>',
        f'<text x="{_MARGIN + 10}" y="{middle + 5:.1f}" font-size="14" fill="{colour}">{_xml(name)}</text>',
    ]


def _box(name: str, label: str, colour: str, at: tuple[float, float]) -> list[str]:
    x, y = at
    shown = label if len(label) <= _CLIP else label[: _CLIP - 1] + "…"
    return [
        f'<g><title>{_xml(f"{name} ({label})")}</title>',
        f'<rect x="{x - _WIDTH / 2:.1f}" y="{y - _HEIGHT / 2:.1f}" width="{_WIDTH}" height="{_HEIGHT}" rx="5" '
        f'fill="#ffffff" stroke="{colour}" stroke-width="2"/>',
        f'<text x="{x:.1f}" y="{y - 3:.1f}" font-size="{13 if len(name) < 18 else 9}" text-anchor="middle" '
        f'fill="{_INK}">{_xml(name)}</text>',
        f'<text x="{x:.1f}" y="{y + 13:.1f}" font-size="10" text-anchor="middle" fill="{colour}">{_xml(shown)}</text>',
        "</g>",
    ]


def _fanned(flows: Rows) -> Iterable[tuple[Mapping[str, Any], int]]:
    """Each flow with how many there were before it between the same two cages, in either direction."""
    seen: dict[frozenset[str], int] = {}
    for flow in flows:
        pair = frozenset((flow["source"], flow["target"]))
        yield flow, seen.setdefault(pair, 0)
        seen[pair] += 1


def _edge(fanned: tuple[Mapping[str, Any], int], places: Mapping[str, tuple[float, float]]) -> list[str]:
    """A curve from box to box, bent by how many there are between the two already, and what may go along it."""
    flow, number = fanned
    if flow["source"] not in places or flow["target"] not in places:
        return []
    (x1, y1), (x2, y2) = places[flow["source"]], places[flow["target"]]
    side = 1 if number % 2 == 0 else -1
    bend = side * (14 + 26 * (number // 2))
    if y1 == y2:
        # Within a layer the curve goes over the boxes, or below them.
        y1 = y2 = y1 - side * _HEIGHT / 2
        bent = ((x1 + x2) / 2, y1 - side * (18 + 22 * (number // 2)))
    else:
        up = y2 < y1
        y1, y2 = (y1 - _HEIGHT / 2, y2 + _HEIGHT / 2) if up else (y1 + _HEIGHT / 2, y2 - _HEIGHT / 2)
        bent = ((x1 + x2) / 2 + bend, (y1 + y2) / 2)
    ink, head = (_RED, "down") if flow.get("declassify") else (_INK, "arrow")
    dashes = ' stroke-dasharray="6 4"' if flow.get("action") == "ask" else ""
    tail = f' marker-start="url(#{head})"' if flow.get("two-way") else ""
    services = ", ".join(map(str, flow["services"]))
    shown = services if len(services) <= 40 else services[:39] + "…"
    # Where between the two ends: not all in the middle.
    part = (0.5, 0.35, 0.65, 0.2, 0.8)[number % 5]
    across, along = (
        (1 - part) ** 2 * begin + 2 * part * (1 - part) * middle + part**2 * end
        for begin, middle, end in ((x1, bent[0], x2), (y1, bent[1], y2))
    )
    says = f"{flow['source']} to {flow['target']}: {flow['action']} {services}"
    return [
        f"<g><title>{_xml(says)}</title>",
        f'<path d="M {x1:.1f} {y1:.1f} Q {bent[0]:.1f} {bent[1]:.1f} {x2:.1f} {y2:.1f}" fill="none" stroke="{ink}" '
        f'stroke-width="1.5"{dashes} marker-end="url(#{head})"{tail}/>',
        f'<rect x="{across - len(shown) * _LETTER / 2:.1f}" y="{along - 9:.1f}" width="{len(shown) * _LETTER:.1f}" '
        'height="12" fill="#ffffff" fill-opacity="0.8"/>',
        f'<text x="{across:.1f}" y="{along:.1f}" font-size="10" text-anchor="middle" fill="{ink}">{_xml(shown)}</text>',
        "</g>",
    ]


def _xml(text: str) -> str:
    """`text` as character data; `visible` has left nothing that XML 1.0 does not have."""
    return visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
