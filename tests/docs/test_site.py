"""The site builds strictly, and what stands beside the code for people is valid."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; skips where the docs extra is not installed."""
    pytest.importorskip("mkdocstrings", reason='pip install ".[docs]"')
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place


def test_every_link_holds(site: Path) -> None:
    """The strict build has checked pages and anchors; these are the files that pages show."""
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]  # whose links begin at the root
    assert len(pages) > 50
    for page in pages:
        for link in re.findall(r'<(?:img|a)[^>]* (?:src|href)="([^"#:]+)[#"]', page.read_text()):
            assert (page.parent / link).exists(), f"{page.relative_to(site)}: {link}"


def test_the_reference_is_from_the_docstrings(site: Path) -> None:
    for name, member in (("flowers_bench", "Recipe"), ("nn", "Output"), ("ops", "deform_conv2d"),
                         ("testing", "conformance_tests"), ("hookspecs", "register_models")):  # fmt: skip
        assert f'.{member}"' in (site / "api" / name / "index.html").read_text(), member


def test_files_of_the_repository_have_pages(site: Path) -> None:
    assert "How a change lands" in (site / "repository/CONTRIBUTING/index.html").read_text()
    assert "book_loop" in (site / "repository/benchmarks/book_loop.py.page/index.html").read_text()


def test_a_broken_link_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason='pip install ".[docs]"')
    for name in ("docs", "mkdocs.yml", "harness", "README.md"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    (tmp_path / "docs/glossary.md").write_text("# Glossary\n\n[gone](../harness/no_such_file.py)\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no_such_file.py" in done.stderr


def test_every_page_is_in_the_index_or_below_a_page_that_is() -> None:
    index = (ROOT / "docs/index.md").read_text()
    for path in (ROOT / "docs").rglob("*.md"):
        place = path.relative_to(ROOT / "docs")
        above = {"results": "results.md", "performance": "performance.md", "api": "api/flowers_bench.md"}
        assert f"({above.get(place.parts[0], place.as_posix())})" in index or place.name == "index.md", place


def test_the_citation_has_what_the_format_requires_and_this_version() -> None:
    lines = dict(re.findall(r"^([\w-]+):[ ]*(.*)$", (ROOT / "CITATION.cff").read_text(), re.M))
    assert {"cff-version", "message", "title", "authors"} <= set(lines)
    assert lines["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_links_of_the_pages_beside_the_code_hold() -> None:
    """README and its neighbours, which are read in the repository; the site's build checks docs/."""
    for page in ROOT.glob("*.md"):
        for link in re.findall(r"\]\(([^)#\s:]+)(?:#[^)\s]*)?\)", page.read_text()):
            assert (ROOT / link).exists(), f"{page.name}: {link}"
