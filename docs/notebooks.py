"""Give the site a page for each notebook below docs/, as it was executed (mkdocs hook).

`learn/notebook.ipynb` becomes the page `learn/notebook.md`: text as it is, code in fences, what it printed below, pictures in the page. Links
to the notebook become links to that page. A notebook is JSON, so that nothing needs to be installed for this.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for file in [one for one in files if one.src_uri.endswith(".ipynb")]:
        notebook = json.loads(file.content_string)
        files.append(File.generated(config, _page_of(file.src_uri), content=markdown(notebook)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to notebooks to their pages."""
    return markdown.replace(".ipynb)", ".md)")


def _page_of(notebook: str) -> str:
    return str(PurePosixPath(notebook).with_suffix(".md"))


def markdown(notebook: dict[str, Any]) -> str:
    """Write a notebook as Markdown."""
    return "\n\n".join(part for cell in notebook["cells"] for part in _parts(cell))


def _parts(cell: dict[str, Any]) -> list[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    return [f"```python\n{source}\n```", *(_output(output) for output in cell["outputs"])]


def _output(output: dict[str, Any]) -> str:
    """Write what a cell gave: a picture, a table, or text."""
    if output["output_type"] == "stream":
        return f"```text\n{''.join(output['text']).rstrip()}\n```"
    data = output["data"]
    if "image/png" in data:
        return f"![what the code above draws](data:image/png;base64,{''.join(data['image/png']).strip()})"
    if "text/html" in data:
        return re.sub(r"<style.*?</style>\s*", "", "".join(data["text/html"]), flags=re.S)
    return f"```text\n{''.join(data['text/plain'])}\n```"
