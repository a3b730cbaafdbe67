"""Links of the documentation that lead out of `docs/`: right in a checkout, and right on the site.

A page links to what was measured as `../benchmarks/results/...`; the site has those pages under `measured/`. A link to
a file of the code becomes the file's name.
"""

import re
from typing import Any

LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>(?:\.\./)+(?P<path>[A-Za-z][^)#\s]*)(?P<anchor>#[^)\s]*)?)\)")
MEASURED = "benchmarks/results/"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by mkdocs with the text of every page."""
    if page.file.src_uri.startswith("measured/"):
        return LINK.sub(lambda found: _inside_measured(found), markdown)
    up = "../" * page.file.src_uri.count("/")
    return LINK.sub(lambda found: _from_docs(found, up), markdown)


def _from_docs(found: re.Match[str], up: str) -> str:
    path = found["path"].rstrip("/")
    if path == MEASURED.rstrip("/"):
        return f"[{found['text']}]({up}measured/index.md)"
    if not path.startswith(MEASURED):
        return found["text"] if found["text"].startswith("`") else f"{found['text']} (`{path}`)"
    name = path.removeprefix(MEASURED)
    name = "index.md" if name == "README.md" else name
    return f"{found['picture']}[{found['text']}]({up}measured/{name}{found['anchor'] or ''})"


def _inside_measured(found: re.Match[str]) -> str:
    """Pages there link to code of the checkout."""
    return found["text"] if found["text"].startswith("`") else f"{found['text']} (`{found['path']}`)"
