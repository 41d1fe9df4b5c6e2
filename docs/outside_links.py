"""Give the site a page for each file of the repository that a page links to (mkdocs hook).

In the repository `../harness/flowers_bench/store/folder.py` is a link that works; on the site there is no such page. Markdown
files become pages as they are, other files pages that show them, folders pages that show their README or list what they
hold. A link to nothing is left alone, so that `mkdocs build --strict` reports it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
#: Where pages of files outside docs/ lie, and how those end that show something else than Markdown.
PREFIX, SHOWN = "repository/", ".page.md"
FENCE = re.compile(r"^```.*?^```", re.M | re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, found through the links of all pages, those of added Markdown files included."""
    waiting = [ROOT / "docs" / file.src_uri for file in files.documentation_pages()]
    while waiting:
        source = waiting.pop()
        for _, link, _ in LINK.findall(FENCE.sub("", source.read_text(encoding="utf-8"))):
            target = _target(source, link)
            place = _place(target)
            if place and place not in files.src_uris and not target.is_relative_to(ROOT / "docs"):
                added = File.generated(config, place, content=_content(target), inclusion=InclusionLevel.NOT_IN_NAV)
                files.append(added)
                if target.suffix == ".md":
                    waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between docs/ and the rest of the repository to the pages of their targets."""
    here = page.file.src_uri
    if here.endswith(SHOWN):  # source text, not Markdown
        return markdown
    source = ROOT / (here.removeprefix(PREFIX) if here.startswith(PREFIX) else f"docs/{here}")

    def turned(found: re.Match[str]) -> str:
        opening, link, rest = found.groups()
        place = _place(_target(source, link))
        if place is None or place not in files.src_uris:
            return found[0]
        return f"{opening}{posixpath.relpath(place, posixpath.dirname(here))}{rest}"

    parts = re.split(f"({FENCE.pattern})", markdown, flags=re.M | re.S)
    return "".join(part if part.startswith("```") else LINK.sub(turned, part) for part in parts)


def _target(source: Path, link: str) -> Path:
    """Find what a link means; of a folder, its README where it has one."""
    target = (source.parent / link).resolve()
    readme = target / "README.md"
    return readme if readme.is_file() else target


def _place(target: Path) -> str | None:
    """Say where on the site the page of a file or folder lies; None for what is not there."""
    if not target.is_relative_to(ROOT) or not target.exists():
        return None
    if target.is_relative_to(ROOT / "docs"):
        return target.relative_to(ROOT / "docs").as_posix()
    return PREFIX + target.relative_to(ROOT).as_posix() + ("" if target.suffix == ".md" else SHOWN)


def _content(target: Path) -> str:
    """Write the page of a file or folder."""
    if target.suffix == ".md":
        return target.read_text(encoding="utf-8")
    title = f"# `{target.relative_to(ROOT).as_posix()}`\n\n"
    if target.is_dir():
        names = sorted(path.name for path in target.iterdir() if not re.match(r"[._]", path.name))
        return title + "\n".join(f"- `{name}`" for name in names) + "\n"
    return f"{title}``````{target.suffix[1:]}\n{target.read_text(encoding='utf-8')}\n``````\n"
