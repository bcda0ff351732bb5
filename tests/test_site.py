"""The documentation site: it builds without a warning, every link leads somewhere, and it asks no other host."""

import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parent.parent
pytest.importorskip("zensical", reason='the site needs pip install "kithkin[docs]"')


class Page(HTMLParser):
    """What a built page links to, what it loads, and its anchors."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.anchors, self.math = [], [], set(), 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self.math += tag == "math"
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag in ("img", "script", "source", "iframe", "video", "audio") and found.get("src"):
            self.loads.append(found["src"])
        elif tag == "link" and found.get("rel") != "canonical" and found.get("href"):
            self.loads.append(found["href"])


@pytest.fixture(scope="module")
def site():
    out = ROOT / "site"
    built = subprocess.run([sys.executable, "docs/build.py"], cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return {path.relative_to(out): Page(path.read_text(encoding="utf-8")) for path in out.rglob("*.html")}, out


def broken(target, path, pages, out):
    """Why a link or picture of the page at ``path`` leads nowhere, or None."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return None
    aim = (out / path).parent / unquote(parts.path) if parts.path else out / path
    aim = aim / "index.html" if aim.is_dir() else aim
    if not aim.is_file() or not aim.resolve().is_relative_to(out.resolve()):
        return f"{path}: {target} is no file"
    page = pages.get(aim.resolve().relative_to(out.resolve()))
    if parts.fragment and page is not None and unquote(parts.fragment) not in page.anchors:
        return f"{path}: {target} has no such anchor"
    return None


def test_every_page_of_docs_is_on_the_site(site):
    pages, _ = site
    for source in (ROOT / "docs").rglob("*.md"):
        path = source.relative_to(ROOT / "docs").with_suffix(".html")
        assert (path.with_name("index.html") if path.name == "README.html" else path) in pages


def pages_of(nav):
    """The pages that a part of the navigation names, in order."""
    for entry in nav:
        for target in entry.values() if isinstance(entry, dict) else [entry]:
            if isinstance(target, list):
                yield from pages_of(target)
            else:
                yield target


def test_the_navigation_names_every_page_once():  # Zensical checks links, and not the navigation
    settings = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))
    docs = ROOT / "docs"
    assert sorted(pages_of(settings["project"]["nav"])) == sorted(str(p.relative_to(docs)) for p in docs.rglob("*.md"))


def test_every_link_and_picture_leads_somewhere(site):
    pages, out = site
    checked = [
        broken(target, path, pages, out)
        for path, page in pages.items()
        if path.name != "404.html"  # it is served from any folder, so its links begin at the root
        for target in page.links + page.loads
    ]
    assert len(checked) > 500
    assert [reason for reason in checked if reason] == []


def test_a_broken_link_is_noticed(site):
    pages, out = site
    home = Path("index.html")
    assert broken("nothing.html", home, pages, out)
    assert broken("explanation/decisions.html#d99", home, pages, out)
    assert broken("../elsewhere.html", home, pages, out)
    assert broken("explanation/decisions.html#d1-what-is-hashed", home, pages, out) is None


def test_no_page_loads_anything_from_another_host(site):
    pages, out = site
    for path, page in pages.items():
        for target in page.loads:
            assert not urlsplit(target).netloc, f"{path} loads {target}"
    for style in out.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_every_equation_is_drawn_and_stands_beside_its_function(site):
    pages, out = site
    assert pages[Path("explanation/paper-to-code.html")].math == 11
    text = (out / "explanation/paper-to-code.html").read_text(encoding="utf-8")
    formulas = re.findall(r"<math.*?</math>", text, re.S)
    assert [formula for formula in formulas if "\\" in formula or ">&<" in formula] == []  # TeX that was not understood
    assert "docstring:" not in text
    assert ":::" not in text
    assert "kithkin.ops.grouping.lsh_hash" in pages[Path("explanation/paper-to-code.html")].anchors


def test_files_outside_docs_come_along(site):
    _, out = site
    assert (out / "repository/benchmarks/results/operator_cpu.json").read_bytes() == (
        ROOT / "benchmarks/results/operator_cpu.json"
    ).read_bytes()
