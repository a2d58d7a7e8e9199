"""MkDocs hooks: pages link to files of the repository by relative paths; the site gets copies in source/.

So one link works on the repository's page, in an editor, and in the site, which then needs no other host.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = re.compile(r"\]\(\.\./(?P<path>[^)#]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file outside docs/ that a page links to; a browser shows it as text."""
    pages = [file.content_string for file in files.documentation_pages()]
    for path in sorted({found["path"] for page in pages for found in OUTSIDE.finditer(page)}):
        if (ROOT / path).is_file():  # else the link stays broken, which the strict build reports
            files.append(File.generated(config, f"source/{path}.txt", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point the links of a page to those copies."""
    return OUTSIDE.sub(lambda found: f"](source/{found['path']}.txt)", markdown)
