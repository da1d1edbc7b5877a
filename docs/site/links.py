"""The site also has what the documents link to outside of docs/: results, figures, and the files of the root."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[([^\]\n]*)\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)")
"""A link from docs/ to somewhere above it: its text, the path below the root, the place in there."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file that is linked, at its path below the root."""
    for page in list(files.documentation_pages()):
        for _, path, _ in LINK.findall(page.content_string):
            if (ROOT / path).is_file() and path not in files.src_uris:
                files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have links lead there, and name a table by its path; of a link to a folder, no page, the text remains."""

    def within(link: re.Match[str]) -> str:
        text, path, place = link.groups(default="")
        return f"[{text}]({path}{place})" if path in files.src_uris else text

    if page.file.src_dir == config.docs_dir:
        return LINK.sub(within, markdown)
    title = "" if markdown.startswith("#") else f"# {page.file.src_uri}\n\n"
    return title + markdown.replace("](docs/", "](")
