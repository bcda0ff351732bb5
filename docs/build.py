"""Build the documentation site into site/: python3 docs/build.py

docs/*.md also read well on a code host, which shows a ``math`` block as a formula and hides a comment. This script
prepares the pages for the site, in build/docs/, and lets Zensical build them. A formula becomes MathML, which browsers
draw by themselves. ``<!-- docstring: a.b -->`` becomes the signature and docstring of ``a.b``. Files of the repository
that pages link to are copied along, so that the site is whole without a repository beside it.
"""

import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path

from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parent.parent
DOCS, PREPARED, SITE = ROOT / "docs", ROOT / "build/docs", ROOT / "site"
COPIES = "repository"
OUTWARD = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)\s#]+)\)")
FORMULA = re.compile(r"^```math\n(.*?)^```$", re.M | re.S)
DOCSTRING = re.compile(r"^<!-- docstring: ([\w.]+) -->$", re.M)
CODE_NAME = re.compile(r"`(kithkin[\w.]*):([\w.]+)`")
ESCAPED_PIPE = re.compile(r"^\|.*\\\|.*$", re.M)


def prepare() -> None:
    """Write what Zensical builds from."""
    shutil.rmtree(PREPARED, ignore_errors=True)
    shutil.copytree(DOCS, PREPARED, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for page in PREPARED.rglob("*.md"):
        page.write_text(for_the_site(page), encoding="utf-8")


def for_the_site(page: Path) -> str:
    """The text of a page of docs/, with what only a code host understands replaced."""
    text = page.read_text(encoding="utf-8")
    folder = posixpath.dirname(page.relative_to(PREPARED).as_posix())
    with_docstring = set(DOCSTRING.findall(text))

    def inward(link: re.Match[str]) -> str:
        label, target = link.groups()
        path = posixpath.normpath(posixpath.join("docs", folder, target))
        if path.startswith("docs/"):
            return link[0]
        source, copy = ROOT / path, PREPARED / COPIES / path
        if path.endswith(".md") or not source.is_file():  # a copied page's own links would lead nowhere
            return label
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
        return f"[{label}]({posixpath.relpath(f'{COPIES}/{path}', folder or '.')})"

    def to_docstring(name: re.Match[str]) -> str:
        whole = f"{name[1]}.{name[2]}"
        return f"[{name[0]}][{whole}]" if whole in with_docstring else name[0]

    text = FORMULA.sub(lambda formula: f"<div>{convert(formula[1].strip(), display='block')}</div>", text)
    text = CODE_NAME.sub(to_docstring, OUTWARD.sub(inward, text))
    # A code host wants the bars within code of a table escaped, Python-Markdown shows the backslash.
    text = ESCAPED_PIPE.sub(lambda row: re.sub("`[^`]*`", lambda code: code[0].replace("\\|", "|"), row[0]), text)
    return DOCSTRING.sub(r"::: \1", text)


if __name__ == "__main__":
    prepare()
    shutil.rmtree(SITE, ignore_errors=True)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    sys.exit(subprocess.run(command, cwd=ROOT).returncode)
