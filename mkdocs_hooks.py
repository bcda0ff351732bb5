"""What makes docs/*.md read as well on the site as on a code host: formulas, docstrings, links out of docs/.

A code host shows a ``math`` block as a formula and hides a comment. On the site the first becomes MathML, which
browsers draw by themselves, and ``<!-- docstring: a.b -->`` the signature and docstring of ``a.b``. Files of the
repository that pages link to are copied to the site, so that it is whole without a repository beside it.
"""

import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent
COPIES = "repository"
OUTWARD = re.compile(r"(?<!!)\[([^\]\n]+)\]\(((?:\.\./)+[^)\s#]+)\)")
FORMULA = re.compile(r"^```math\n(.*?)^```$", re.M | re.S)
DOCSTRING = re.compile(r"^<!-- docstring: ([\w.]+) -->$", re.M)
CODE_NAME = re.compile(r"`(kithkin[\w.]*):([\w.]+)`")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages link to."""
    for file in list(files.documentation_pages()):
        for _, target in OUTWARD.findall(file.content_string):
            path = _outside(file.src_uri, target)
            if path and files.get_file_from_path(f"{COPIES}/{path}") is None:
                files.append(File.generated(config, f"{COPIES}/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn what a code host reads into what the site needs."""
    here = page.file.src_uri

    def inward(link: re.Match[str]) -> str:
        text, target = link.groups()
        path = _outside(here, target)
        if path is None:
            return text if _beyond_docs(here, target) else link[0]
        return f"[{text}]({posixpath.relpath(f'{COPIES}/{path}', posixpath.dirname(here) or '.')})"

    shown = set(DOCSTRING.findall(markdown))

    def to_docstring(name: re.Match[str]) -> str:
        whole = f"{name[1]}.{name[2]}"
        return f"[{name[0]}][{whole}]" if whole in shown else name[0]

    markdown = FORMULA.sub(lambda formula: f"<div>{convert(formula[1].strip(), display='block')}</div>", markdown)
    markdown = CODE_NAME.sub(to_docstring, OUTWARD.sub(inward, markdown))
    return DOCSTRING.sub(r"::: \1", markdown)


def _beyond_docs(page: str, target: str) -> str | None:
    """The path in the repository that a link from a page of docs/ leads to, or None where it stays within docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return None if path.startswith("docs/") else path


def _outside(page: str, target: str) -> str | None:
    """That path where it is a file to copy: no folder, and no Markdown, whose own links would lead nowhere."""
    path = _beyond_docs(page, target)
    return path if path and not path.endswith(".md") and (ROOT / path).is_file() else None
