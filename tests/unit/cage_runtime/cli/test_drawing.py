# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pictures of `cagectl graph`: what is in them, that parsers take them, and that no text gets out of its place."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from cage_runtime.cli.drawing import dot, svg

SVG = "{http://www.w3.org/2000/svg}"
LEVELS = [{"name": "public", "colour": "#2e7d32"}, {"name": "internal", "colour": "#ef6c00"},
          {"name": "secret", "colour": ""}]  # fmt: skip
CAGES = [{"name": "web", "level": "public", "compartments": []},
         {"name": "work", "level": "internal", "compartments": ["finance"]},
         {"name": "mail", "level": "internal", "compartments": []},
         {"name": "vault", "level": "secret", "compartments": []}]  # fmt: skip


def flow(source: str, target: str, *services: str, action: str = "allow", **more: bool) -> dict[str, Any]:
    return {"source": source, "target": target, "action": action, "services": list(services), "rules": ["p:1"],
            "two-way": more.get("two_way", False), "declassify": more.get("declassify", False)}  # fmt: skip


FLOWS = [
    flow("work", "vault", "files.Send", "clipboard.Paste"),
    flow("vault", "web", "files.Send", action="ask", declassify=True),
    flow("work", "mail", "call.X+a", two_way=True),
    flow("mail", "@core", "notify.Show"),
]


def drawn(levels: Any = LEVELS, cages: Any = CAGES, flows: Any = FLOWS) -> ET.Element:
    return ET.fromstring(svg(levels, cages, flows))


def titles(root: ET.Element) -> list[str]:
    return [str(found.text) for found in root.iter(f"{SVG}title")]


def test_a_drawing_has_every_cage_and_every_flow() -> None:
    assert titles(drawn()) == [
        "work to vault: allow files.Send, clipboard.Paste", "vault to web: ask files.Send",
        "work to mail: allow call.X+a", "mail to @core: allow notify.Show",
        "vault (secret)", "work (internal+finance)", "mail (internal)", "web (public)", "@core (the core)",
    ]  # fmt: skip


def test_levels_are_layers_the_highest_on_top() -> None:
    heights = {str(text.text): float(text.attrib["y"]) for text in drawn().iter(f"{SVG}text")}
    assert heights["secret"] < heights["internal"] < heights["public"]
    assert heights["vault"] < heights["work"] == heights["mail"] < heights["web"]
    assert heights["@core"] < heights["vault"]


def test_what_is_asked_about_is_dashed_and_what_declassify_lets_is_red() -> None:
    paths = [path.attrib for path in drawn().iter(f"{SVG}path") if "marker-end" in path.attrib]
    assert [("stroke-dasharray" in path, path["stroke"], "marker-start" in path) for path in paths] == [
        (False, "#212121", False), (True, "#b71c1c", False), (False, "#212121", True), (False, "#212121", False)]


def test_no_box_lies_over_another_and_all_is_inside() -> None:
    root = drawn(cages=[{"name": f"cage-{n}", "level": level["name"], "compartments": []}
                        for level in LEVELS for n in range(9)], flows=[])
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    boxes = [tuple(float(box.attrib[key]) for key in ("x", "y", "width", "height"))
             for group in root.iter(f"{SVG}g") for box in group.findall(f"{SVG}rect")]
    assert len(boxes) == 27
    for number, (x, y, wide, high) in enumerate(boxes):
        assert 0 <= x <= width - wide
        assert 0 <= y <= height - high
        for other_x, other_y, _, _ in boxes[:number]:
            assert abs(x - other_x) >= wide or abs(y - other_y) >= high


def test_no_words_lie_over_a_name_or_over_others() -> None:
    """Two cages with nothing beside them, one above the other, and another level between."""
    root = drawn(flows=[flow("web", "vault", "files.Send"), flow("vault", "web", "call.Echo", declassify=True),
                        flow("web", "vault", "open.Uri", action="ask"), flow("vault", "@core", "log.Write"),
                        flow("web", "@core", "log.Write")])
    words = [tuple(float(area.attrib[key]) for key in ("x", "y", "width", "height"))
             for area in root.findall(f"{SVG}rect") if area.attrib.get("fill-opacity") == "0.8"]
    boxes = [tuple(float(box.attrib[key]) for key in ("x", "y", "width", "height"))
             for group in root.iter(f"{SVG}g") for box in group.findall(f"{SVG}rect")]
    assert (len(words), len(boxes)) == (5, 5)
    for number, (x, y, wide, high) in enumerate(words):
        for other_x, other_y, other_wide, other_high in (*boxes, *words[:number]):
            assert x >= other_x + other_wide or other_x >= x + wide or y >= other_y + other_high or other_y >= y + high


def test_a_host_without_cages_has_its_levels_drawn() -> None:
    assert [text.text for text in drawn(cages=[], flows=[]).iter(f"{SVG}text")] == ["secret", "internal", "public"]
    assert 'label="public"' in dot(LEVELS, [], [])


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_no_text_gets_out_of_its_place(level: str, name: str, service: str) -> None:
    """Whatever it is: of a core that is not honest, too."""
    levels, cages = [{"name": level, "colour": name}], [{"name": name, "level": level, "compartments": [service]}]
    root = drawn(levels, cages, [flow(name, name, service)])
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        "svg", "defs", "marker", "path", "rect", "g", "title", "text"}
    assert all(not key.startswith("on") and "href" not in key for element in root.iter() for key in element.attrib)
    for line in dot(levels, cages, [flow(name, name, service)]).splitlines():
        assert re.fullmatch(r'(?:[^"\\]|"(?:[^"\\]|\\.)*")*', line), line


def test_the_dot_is_what_it_was() -> None:
    assert dot(LEVELS, CAGES[1:3], FLOWS[1:3] + FLOWS[3:]) == """\
digraph cages {
  rankdir=BT;
  node [shape=box, style=filled, fontname="sans-serif"];
  edge [fontname="sans-serif", fontsize=9];
  subgraph cluster_0 {
    label="public";
    color="#2e7d32";
  }
  subgraph cluster_1 {
    label="internal";
    color="#ef6c00";
    "work" [label="work\\ninternal+finance", color="#ef6c00", fillcolor="white", penwidth=2];
    "mail" [label="mail\\ninternal", color="#ef6c00", fillcolor="white", penwidth=2];
  }
  subgraph cluster_2 {
    label="secret";
    color="#9e9e9e";
  }
  "@core" [shape=ellipse];
  "vault" -> "web" [label="files.Send", style=dashed, color="#b71c1c", fontcolor="#b71c1c"];
  "work" -> "mail" [label="call.X+a", dir=both];
  "mail" -> "@core" [label="notify.Show"];
}
"""
