"""python benchmarks/tables.py: write the tables of docs/ from the CSV files in benchmarks/results/.

The benchmark commands write such a file with `--csv FILE`. A page marks the place of its table:

    <!-- table: performance/kernel-avx2-means.csv -->
    <!-- end -->

After the file, a page may choose rows and columns: `; where: batch=8|32; show: stage | ours ms`. Columns `X low` and
`X high` are shown as one interval, `[low, high]`, behind the value of `X`. `<!-- provenance: FILE FILE -->` is the table
that says where files come from (results/provenance.csv), and `<!-- ratios -->` is the summary table of
docs/performance.md. A test compares pages and files.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
#: The place of a table: opening comment with its kind and description, old content, closing comment.
BLOCK = re.compile(r"(<!-- (table|provenance|ratios)(?:: ([^>]*?))? -->\n).*?(<!-- end -->)", re.S)
#: A cell that is aligned to the right: empty, or a number, which may have an interval, a unit or a range.
NUMBER = re.compile(r"(\[?[-+]?\d[\d.,]*( [-+]?[\d.]+)?\]?( \[.*\]| (s|min|M|MiB)( \+ .*)?| (to|\.\.) .*)?)?")


@dataclass
class Table:
    """Named columns and rows of text, as a CSV file holds them and as Markdown shows them."""

    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)

    @classmethod
    def read(cls, name: str | Path) -> Table:
        """Read a file, named from benchmarks/results/ on; ValueError where a row is not as long as the header."""
        with (RESULTS / name).open(encoding="utf-8", newline="") as file:
            columns, *rows = csv.reader(file)
        for number, row in enumerate(rows, 2):
            if len(row) != len(columns):
                raise ValueError(f"{name}, line {number}: {len(row)} cells under {len(columns)} columns")
        return cls(columns, rows)

    def add(self, *cells: object) -> None:
        """Append a row, and print it at once: some take minutes."""
        if not self.rows:
            print(f"{_line(self.columns)}\n{_line(['---'] * len(self.columns))}")
        self.rows.append([str(cell) for cell in cells])
        print(_line(self.rows[-1]), flush=True)

    def write(self, path: Path) -> None:
        """Write a CSV file with Unix line ends."""
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([self.columns, *self.rows])

    def column(self, name: str) -> list[str]:
        """Take every row's cell under `name`; ValueError where there is no such column."""
        if name not in self.columns:
            raise ValueError(f"no column {name!r}; there are: {', '.join(self.columns)}")
        return [row[self.columns.index(name)] for row in self.rows]

    def where(self, conditions: Mapping[str, Sequence[str]]) -> Table:
        """Keep the rows that have one of the values of each condition."""
        kept = self.rows
        for name, values in conditions.items():
            cells = Table(self.columns, kept).column(name)
            kept = [row for row, cell in zip(kept, cells, strict=True) if cell in values]
        return Table(self.columns, kept)

    def show(self, names: Sequence[str]) -> Table:
        """Keep these columns alone, in this order."""
        cells = zip(*(self.column(name) for name in names), strict=True)
        return Table(list(names), [list(row) for row in cells])

    def with_intervals(self) -> Table:
        """Join `X low` and `X high` in one column X, behind the value under X where there is one."""
        names = [name for name in self.columns if not re.search(r" (low|high)$", name)]
        for position, name in enumerate(self.columns):
            base = name.removesuffix(" low")
            if base != name and base not in names:
                names.insert(sum(other in names for other in self.columns[:position]), base)
        columns = [self._with_interval(name) for name in names]
        return Table(names, [list(row) for row in zip(*columns, strict=True)])

    def _with_interval(self, name: str) -> list[str]:
        values = self.column(name) if name in self.columns else [""] * len(self.rows)
        if f"{name} low" not in self.columns:
            return values
        ends = zip(self.column(f"{name} low"), self.column(f"{name} high"), strict=True)
        shown = (f"[{low}, {high}]" if low else "" for low, high in ends)
        return [" ".join(filter(None, pair)) for pair in zip(values, shown, strict=True)]

    def markdown(self) -> str:
        """Write it in Markdown; columns of numbers are aligned to the right."""
        numbers = [all(NUMBER.fullmatch(row[i]) for row in self.rows) for i in range(len(self.columns))]
        rule = f"|{'|'.join('---:' if right else '---' for right in numbers)}|"
        return "\n".join([_line(self.columns), rule, *map(_line, self.rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class Ratio:
    """A line of the summary: the range of one column over the rows of some files."""

    what: str
    ratio: str
    files: tuple[str, ...]
    column: str
    where: Mapping[str, Sequence[str]]

    def range(self) -> str:
        """Find the smallest and the largest value, as the files write them."""
        cells = [cell for file in self.files for cell in Table.read(file).where(self.where).column(self.column) if cell]
        return f"{min(cells, key=float)} to {max(cells, key=float)}"


_KERNEL = ("performance/kernel-avx512-2-threads.csv",)
_LIBRARIES = (
    "torchvision v2, image by image", "kornia, batches", "albumentations, image by image, no antialiasing", "DALI on a CPU, batches",
)  # fmt: skip
_FROZEN = "frozen: three frozen stages, 20 epochs"
RATIOS = (
    Ratio("[Deformable convolution on a processor](performance/cpu.md), forward, batches of 8 and 32",
          "our time / a plain convolution's", _KERNEL, "ours / conv2d",
          {"direction": ("forward",), "batch": ("8", "32")}),
    Ratio("The same, forward and backward", "torchvision's time / ours", _KERNEL, "torchvision / ours",
          {"direction": ("forward_backward",), "batch": ("8", "32")}),
    Ratio("[Deformable convolution on a GPU](performance/gpu.md), forward and backward", "torchvision's time / ours",
          ("performance/kernel-h200.csv",), "torchvision / ours", {"direction": ("forward_backward",)}),
    Ratio("[Memory of a call](performance/memory.md) on a processor", "ours / a plain convolution's",
          ("performance/memory-avx512.csv",), "ours / conv2d", {}),
    Ratio("[Training](performance/training.md) with three frozen stages, from empty caches",
          "a plain PyTorch loop's time / ours",
          ("performance/training-avx2.csv", "performance/training-avx512-bfloat16.csv"), "book / cold",
          {"row": (_FROZEN,)}),
    Ratio("[Augmenting images](performance/drawing.md) by random crop, mirror image and colours", "our images per second of a core / a library's",
          ("performance/drawing.csv",), "ours / it", {"by": _LIBRARIES}),
)  # fmt: skip


def ratios() -> Table:
    """Compute the summary of docs/performance.md."""
    return Table(["what", "ratio", "smallest to largest"], [[r.what, r.ratio, r.range()] for r in RATIOS])


def provenance(names: Sequence[str]) -> Table:
    """Say where each file comes from; ValueError where results/provenance.csv has no line for one."""
    table = Table.read("provenance.csv")
    rows = dict(zip(table.column("file"), table.rows, strict=True))
    if missing := [name for name in names if name not in rows]:
        raise ValueError(f"results/provenance.csv has no line for: {', '.join(missing)}")
    return Table(table.columns, [[f"`{Path(name).name}`", *rows[name][1:]] for name in names])


def table(description: str) -> Table:
    """Read the table that a page asks for: `FILE; show: COLUMN | COLUMN; where: COLUMN=VALUE|VALUE`."""
    name, *options = (part.strip() for part in description.split(";"))
    found = Table.read(name)
    for option in options:
        word, _, value = option.partition(":")
        if word == "where":
            column, _, values = value.strip().partition("=")
            found = found.where({column: values.split("|")})
        elif word == "show":
            found = found.with_intervals().show([column.strip() for column in value.split("|")])
        else:
            raise ValueError(f"{word!r} in a page's table comment; valid are `show` and `where`")
    return found.with_intervals()


def page(text: str) -> str:
    """Write a page's tables anew."""

    def block(found: re.Match[str]) -> str:
        opening, kind, description, end = found.groups()
        if kind == "table":
            shown = table(description)
        else:
            shown = provenance(description.split()) if kind == "provenance" else ratios()
        return f"{opening}\n{shown.markdown()}\n\n{end}"

    return BLOCK.sub(block, text)


def main() -> None:
    """Write the tables of all pages in docs/, and print the pages that have changed."""
    for path in sorted(DOCS.rglob("*.md")):
        before = path.read_text(encoding="utf-8")
        try:
            after = page(before)
        except (OSError, ValueError) as error:
            raise SystemExit(f"{path.relative_to(ROOT)}: {error}") from error
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
