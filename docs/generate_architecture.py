"""Writes docs/architecture.svg and the table of docs/architecture.md from the imports: `python docs/generate_architecture.py`.

A room is a folder of `harness/flowers_bench/`; the modules beside them are the public API, or loose. Built-in plugins and
the kernel are a room each. An arrow says that a file of one room imports one of another. Rooms stand above what they
import; an arrow that other arrows imply is left out, and one that closes a circle is drawn dashed.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
HARNESS = ROOT / "harness" / "flowers_bench"
PLUGINS = ROOT / "plugins" / "flowers_bench_plugins"
PICTURE, PAGE = HERE / "architecture.svg", HERE / "architecture.md"
TABLE = re.compile(r"(<!-- rooms -->\n).*?(<!-- end rooms -->)", re.S)

#: Rooms that are no folder, by what stands in their box.
API, LOOSE, BUILT_IN, KERNEL = "public API", "loose modules", "built-in plugins", "kernel"
#: Modules of the top level that plugin authors import.
PUBLIC = {"__init__", "nn", "backbones", "hookspecs"}
WORDS = {
    API: "What plugin authors and notebooks import, beside `ops` and `testing`.",
    LOOSE: "Modules that have no room.",
    BUILT_IN: "One file or folder per technique.",
    KERNEL: "The deformable convolution in C++ and CUDA.",
}

Arrows = dict[str, Counter[str]]


@dataclass(frozen=True)
class Room:
    """A box of the picture."""

    name: str
    place: str
    summary: str
    modules: int


def room_of(module: str) -> str | None:
    """Find the room of a dotted module name; None for other packages."""
    head, *rest = module.split(".")
    if head == "flowers_bench_plugins":
        return BUILT_IN
    if head != "flowers_bench":
        return None
    first = rest[0] if rest else "__init__"
    if first == "__main__":
        return "cli"
    if (HARNESS / first / "__init__.py").is_file():
        return first
    return API if first in PUBLIC or not (HARNESS / f"{first}.py").is_file() else LOOSE


def modules() -> Iterator[tuple[str, Path]]:
    """Walk (dotted name, file) of everything in both source roots but the template, which is another package."""
    for base in (HARNESS, PLUGINS):
        for path in sorted(base.rglob("*.py")):
            name = path.relative_to(base.parent).with_suffix("").as_posix().replace("/", ".")
            if ".template." not in name:
                yield name.removesuffix(".__init__"), path


def imports(module: str, path: Path) -> Iterator[str]:
    """Walk the dotted names that a file imports, those within functions included."""
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            if source == "flowers_bench":  # of the names, some are rooms and some are values of the public API
                yield from (f"{source}.{alias.name}" for alias in node.names)
            else:
                yield source


def arrows() -> Arrows:
    """Count, for each room, the imports that it has of each other."""
    found: Arrows = {}
    for module, path in modules():
        here = room_of(module) or ""
        counts = found.setdefault(here, Counter())
        counts.update(there for name in imports(module, path) if (there := room_of(name)) and there != here)
    found["ops"][KERNEL] = 1  # compiled and loaded, not imported
    found[KERNEL] = Counter()
    return found


def rooms() -> dict[str, Room]:
    """Describe each room by the first sentence of its package's docstring."""
    sizes = Counter(room_of(name) or "" for name, _ in modules())
    sizes[KERNEL] = len([path for path in (ROOT / "csrc" / "deform_conv").rglob("*.*") if path.is_file()])
    places = {API: "", LOOSE: "", BUILT_IN: "plugins/flowers_bench_plugins/", KERNEL: "csrc/deform_conv/"}
    found = {}
    for name, size in sizes.items():
        summary = WORDS.get(name) or _first_sentence(HARNESS / name / "__init__.py")
        found[name] = Room(name, places.get(name, f"harness/flowers_bench/{name}/"), summary, size)
    return found


def _first_sentence(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=[.])\s", " ".join(text.split()), maxsplit=1)[0]


def circles(graph: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Number the rooms so that those which import each other in a circle have one number (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    number: dict[str, int] = {}

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
            if other not in number:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            members = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            number.update(dict.fromkeys(members, len(set(number.values()))))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return number


def reachable(graph: Mapping[str, Mapping[str, int]], start: str, without: tuple[str, str]) -> set[str]:
    """Find what can be reached from a room when one arrow is taken away."""
    seen, waiting = set(), [start]
    while waiting:
        node = waiting.pop()
        for other in graph[node]:
            if (node, other) != without and other not in seen:
                seen.add(other)
                waiting.append(other)
    return seen


def upward(graph: Arrows) -> list[tuple[str, str]]:
    """Pick the arrows that close circles: in each circle the thinnest, until there is none."""
    rest = {node: Counter(others) for node, others in graph.items()}
    removed = []
    while True:
        number = circles(rest)
        inside = [(count, a, b) for a, others in rest.items() for b, count in others.items() if number[a] == number[b]]
        if not inside:
            return removed
        _, a, b = min(inside)
        del rest[a][b]
        removed.append((a, b))


@dataclass
class Layout:
    """Where everything stands: rows from the top, and each arrow's way through them.

    Attributes:
        rows: names from left to right; a name that is no room is a gap that an arrow passes through.
        ways: by arrow, the names that it passes, its ends included.
    """

    rows: list[list[str]]
    ways: dict[tuple[str, str], list[str]]

    @classmethod
    def of(cls, graph: Arrows) -> Layout:
        """Rank the rooms by the longest way down, then order each row by where its neighbours stand."""
        against = set(upward(graph))
        down = {a: {b: n for b, n in others.items() if (a, b) not in against} for a, others in graph.items()}
        kept = [(a, b) for a in sorted(down) for b in sorted(down[a]) if b not in reachable(down, a, (a, b))]
        depth: dict[str, int] = {}

        def rank(node: str) -> int:
            if node not in depth:
                depth[node] = 1 + max((rank(other) for other in down[node]), default=-1)
            return depth[node]

        top = max(map(rank, sorted(down)))
        for node in (KERNEL,):  # beside what loads it, rather than at the bottom of everything
            depth[node] = max(0, min(depth[a] for a in down if node in down[a]) - 1)
        rows: list[list[str]] = [[] for _ in range(top + 1)]
        for node in sorted(down):
            rows[top - depth[node]].append(node)
        ways = {}
        for a, b in kept:
            between = [f"{a}>{b}@{level}" for level in range(depth[a] - 1, depth[b], -1)]
            ways[a, b] = [a, *between, b]
            for level, gap in zip(range(depth[a] - 1, depth[b], -1), between, strict=True):
                rows[top - level].append(gap)
        layout = cls(rows, ways)
        layout._order()
        return layout

    def _order(self) -> None:
        """Sweep down and up, sorting each row by the mean place of what its members are joined to."""
        pairs = [pair for way in self.ways.values() for pair in itertools.pairwise(way)]
        for turn in range(12):
            places = {name: (k + 0.5) / len(row) for row in self.rows for k, name in enumerate(row)}
            for row in self.rows if turn % 2 == 0 else self.rows[::-1]:
                joined = {
                    name: [places[b if a == name else a] for a, b in pairs if name in (a, b)] or [places[name]]
                    for name in row
                }
                row.sort(key=lambda name: (sum(joined[name]) / len(joined[name]), name))
                places.update({name: (k + 0.5) / len(row) for k, name in enumerate(row)})


BOX, GAP, SPACE, RISE = (148, 50), 26, 22, 104
STYLE = """
  .box { fill: #e3eef7; stroke: #4878a0; } .outside .box { fill: #f7ead9; stroke: #a07434; }
  text { font-family: sans-serif; font-size: 14px; text-anchor: middle; fill: #1b2733; }
  .small { font-size: 11px; } .arrow { fill: none; stroke: #5c6b78; stroke-width: 1.4; } .up { stroke: #c2410c; stroke-dasharray: 5 4; }
  .head { fill: #5c6b78; }
  @media (prefers-color-scheme: dark) {
    .box { fill: #1d3348; stroke: #6ea3cc; } .outside .box { fill: #43321b; stroke: #cfa162; }
    text { fill: #e6edf3; } .arrow { stroke: #9fb0bf; } .up { stroke: #fb923c; } .head { fill: #9fb0bf; }
  }
"""


def picture(graph: Arrows, known: Mapping[str, Room]) -> str:
    """Draw boxes and arrows, with colours for light and for dark pages."""
    layout = Layout.of(graph)
    widths = {name: BOX[0] if name in known else GAP for row in layout.rows for name in row}
    spans = [sum(widths[name] for name in row) + SPACE * (len(row) - 1) for row in layout.rows]
    width, height = max(spans) + 2 * SPACE, RISE * (len(layout.rows) - 1) + BOX[1] + 2 * SPACE
    middle: dict[str, tuple[float, float]] = {}
    for level, (row, span) in enumerate(zip(layout.rows, spans, strict=True)):
        x = (width - span) / 2
        for name in row:
            middle[name] = (x + widths[name] / 2, SPACE + level * RISE + BOX[1] / 2)
            x += widths[name] + SPACE
    lines = [_arrow([middle[name] for name in way]) for way in layout.ways.values()]
    lines += [_back(middle[a], middle[b]) for a, b in upward(graph)]
    lines += [_box(known[name], middle[name]) for row in layout.rows for name in row if name in known]
    label = "Rooms of flowers-bench and what each imports"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" aria-label="{label}">\n'
        f"<style>{STYLE}</style>\n"
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path class="head" d="M0 0 8 4 0 8Z"/></marker></defs>\n' + "\n".join(lines) + "\n</svg>\n"
    )


def _box(room: Room, middle: tuple[float, float]) -> str:
    x, y = middle
    kind = "outside" if room.name in (API, BUILT_IN, KERNEL) else "room"
    unit = "file" if room.modules == 1 else "files"
    return (
        f'<g class="{kind}"><title>{escape(room.summary)}</title>'
        f'<rect class="box" x="{x - BOX[0] / 2:g}" y="{y - BOX[1] / 2:g}" width="{BOX[0]}" height="{BOX[1]}" rx="7"/>'
        f'<text x="{x:g}" y="{y - 2:g}">{escape(room.name)}</text>'
        f'<text class="small" x="{x:g}" y="{y + 15:g}">{room.modules} {unit}</text></g>'
    )


def _arrow(points: list[tuple[float, float]]) -> str:
    """A line from the bottom of a box, straight down through gaps, to the top of another."""
    half = BOX[1] / 2
    x, y = points[0][0], points[0][1] + half
    path = f"M{x:g} {y:g}"
    for number, (to_x, to_y) in enumerate(points[1:], 2):
        last = number == len(points)
        end = to_y - half - (1 if last else 0)
        bend = (end - y) / 2
        path += f" C{x:g} {y + bend:g} {to_x:g} {end - bend:g} {to_x:g} {end:g}"
        x, y = to_x, end
        if not last:
            y = to_y + half
            path += f" V{y:g}"
    return f'<path class="arrow" d="{path}" marker-end="url(#head)"/>'


def _back(a: tuple[float, float], b: tuple[float, float]) -> str:
    """A dashed curve from side to side, for an arrow that closes a circle."""
    side = 1 if b[0] >= a[0] else -1
    start, end = (a[0] + side * BOX[0] / 2, a[1] + 8), (b[0] - side * BOX[0] / 2, b[1] + 8)
    if a[0] == b[0]:
        end = (b[0] + side * BOX[0] / 2, b[1] + 8)
    return (
        f'<path class="arrow up" d="M{start[0]:g} {start[1]:g} C{start[0] + side * 40:g} {start[1]:g} '
        f'{end[0] - side * 40:g} {end[1]:g} {end[0]:g} {end[1]:g}" marker-end="url(#head)"/>'
    )


def table(graph: Arrows, known: Mapping[str, Room]) -> str:
    """Describe the rooms in Markdown, from the top of the picture to its bottom."""
    order = [name for row in Layout.of(graph).rows for name in row if name in known]
    lines = ["| room | where | files | what it is for | imports |", "|---|---|---:|---|---|"]
    for name in order:
        room = known[name]
        others = ", ".join(sorted(graph[name])) or "none of these"
        place = (
            f"[`{room.place}`](../{room.place})"
            if room.place
            else "`flowers_bench`, `flowers_bench.nn`, `.backbones`, `.hookspecs`"
        )
        if name == LOOSE:
            place = "`harness/flowers_bench/*.py`"
        lines.append(f"| {name} | {place} | {room.modules} | {room.summary} | {others} |")
    return "\n".join(lines)


def documents() -> dict[Path, str]:
    """Draw the picture and write the page's table anew."""
    graph, known = arrows(), rooms()
    page = PAGE.read_text(encoding="utf-8")
    return {
        PICTURE: picture(graph, known),
        PAGE: TABLE.sub(lambda found: f"{found[1]}\n{table(graph, known)}\n\n{found[2]}", page),
    }


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
