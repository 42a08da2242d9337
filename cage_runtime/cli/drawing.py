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
    Point = tuple[float, float]
    Curve = tuple[Point, Point, Point]
    """Its ends, and in the middle what it bends towards."""
    Area = tuple[float, float, float, float]
    """Left, top, width and height."""

CORE = "@core"
_GREY, _RED, _INK = "#9e9e9e", "#b71c1c", "#212121"
_WIDTH, _HEIGHT, _GAP = 150, 44, 50
"""A cage's box, and what is between two of them."""
_LAYER, _MARGIN, _NAMES = 150, 24, 190
"""The height of a layer; the picture's edge; what the names of the layers, and lines beside the boxes, take."""
_LETTER = 6.2
"""How wide a letter of the small text is, about."""
_CLIP, _SHOWN = 21, 40
"""Letters that a box has room for, and a line."""
_PARTS = (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8)
"""Of a line, where its words can stand."""


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
    grounds: list[str] = []
    boxes: list[str] = []
    for depth, (level, layer) in enumerate(reversed(list(zip(levels, layers, strict=True)))):
        middle = top + depth * _LAYER + _LAYER / 2
        grounds += _layer(str(level["name"]), _colour(level), middle, width)
        for number, cage in enumerate(layer):
            at = (_MARGIN + _NAMES + (number + 0.5) * (width - 2 * _MARGIN - _NAMES) / len(layer), middle)
            places[str(cage["name"])] = at
            boxes += _box(str(cage["name"]), label_of(cage), _colour(level), at)
    if with_core:
        places[CORE] = (_MARGIN + _NAMES + (width - 2 * _MARGIN - _NAMES) / 2, _MARGIN + _LAYER / 2)
        boxes += _box(CORE, "the core", _INK, places[CORE])
    curves = [(flow, curve) for flow, number in _fanned(flows) if (curve := _curve(flow, number, places))]
    lines = [line for flow, curve in curves for line in _edge(flow, curve)]
    lines += boxes  # over the lines, and the words over both
    taken: list[Area] = [(x - _WIDTH / 2, y - _HEIGHT / 2, _WIDTH, _HEIGHT) for x, y in places.values()]
    lines += [line for flow, curve in curves for line in _words(flow, curve, taken)]
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif">')
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', head, *_ARROWS,
                      f'<rect width="{width}" height="{height}" fill="#ffffff"/>', *grounds, *lines, "</svg>"]) + "\n"


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


def _curve(flow: Mapping[str, Any], number: int, places: Mapping[str, Point]) -> Curve | None:
    """From box to box, bent by how many there are between the two already, and beside what stands between them."""
    if flow["source"] not in places or flow["target"] not in places:
        return None
    (x1, y1), (x2, y2) = places[flow["source"]], places[flow["target"]]
    side = 1 if number % 2 == 0 else -1
    if y1 == y2:
        # Within a layer the curve goes over the boxes, or below them.
        y1 = y2 = y1 - side * _HEIGHT / 2
        return (x1, y1), ((x1 + x2) / 2, y1 - side * (18 + 22 * (number // 2))), (x2, y2)
    bend = side * (14 + 26 * (number // 2))
    if abs(y1 - y2) > _LAYER:
        bend += side * _WIDTH  # the curve itself goes half as far
    down = _HEIGHT / 2 if y2 > y1 else -_HEIGHT / 2
    return (x1, y1 + down), ((x1 + x2) / 2 + bend, (y1 + y2) / 2), (x2, y2 - down)


def _along(curve: Curve, part: float) -> Point:
    """Where one is after that part of the way."""
    x, y = ((1 - part) ** 2 * begin + 2 * part * (1 - part) * middle + part**2 * end
            for begin, middle, end in zip(*curve, strict=True))
    return x, y


def _edge(flow: Mapping[str, Any], curve: Curve) -> list[str]:
    (x1, y1), bent, (x2, y2) = curve
    ink, head = _ink(flow), "down" if flow.get("declassify") else "arrow"
    dashes = ' stroke-dasharray="6 4"' if flow.get("action") == "ask" else ""
    tail = f' marker-start="url(#{head})"' if flow.get("two-way") else ""
    says = f"{flow['source']} to {flow['target']}: {flow['action']} {_services(flow)}"
    return [
        f"<g><title>{_xml(says)}</title>",
        f'<path d="M {x1:.1f} {y1:.1f} Q {bent[0]:.1f} {bent[1]:.1f} {x2:.1f} {y2:.1f}" fill="none" stroke="{ink}" '
        f'stroke-width="1.5"{dashes} marker-end="url(#{head})"{tail}/>',
        "</g>",
    ]


def _words(flow: Mapping[str, Any], curve: Curve, taken: list[Area]) -> list[str]:
    """What may go along the curve, where on it the least is `taken` already."""
    services = _services(flow)
    shown = services if len(services) <= _SHOWN else services[: _SHOWN - 1] + "…"
    width = len(shown) * _LETTER
    areas = [(x - width / 2, y - 9, width, 12.0) for x, y in (_along(curve, part) for part in _PARTS)]
    area = min(areas, key=lambda area: sum(_shared(area, other) for other in taken))
    taken.append(area)
    left, top, _, _ = area
    return [
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="12" fill="#ffffff" fill-opacity="0.8"/>',
        f'<text x="{left + width / 2:.1f}" y="{top + 9:.1f}" font-size="10" text-anchor="middle" '
        f'fill="{_ink(flow)}">{_xml(shown)}</text>',
    ]


def _shared(one: Area, other: Area) -> float:
    """How much two areas have in common."""
    across = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    along = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(across, 0.0) * max(along, 0.0)


def _services(flow: Mapping[str, Any]) -> str:
    return ", ".join(map(str, flow["services"]))


def _ink(flow: Mapping[str, Any]) -> str:
    return _RED if flow.get("declassify") else _INK


def _xml(text: str) -> str:
    """`text` as character data; `visible` has left nothing that XML 1.0 does not have."""
    return visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
