"""The documents against the code: every row and every snippet is resolved or run."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest

import kithkin

ROOT = Path(__file__).parent.parent
SOURCE = Path(kithkin.__file__).parent
ROWS = re.findall(
    r"^\| (.+?) \| .+? \| `(kithkin[\w.]*):([\w.]+)` \|$", (ROOT / "docs/paper-to-code.md").read_text(), re.M
)
EQUATIONS = [row for row in ROWS if row[0].startswith("Eq.")]


def resolve(module, name):
    found = importlib.import_module(module)
    parts = name.split(".")
    try:
        return reduce(getattr, parts, found)
    except AttributeError:
        # A field of a dataclass without a default is no attribute of the class.
        owner = reduce(getattr, parts[:-1], found)
        assert parts[-1] in owner.__dataclass_fields__
        return owner


def docstrings():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield path, getattr(node, "name", "module"), ast.get_docstring(node) or ""


@pytest.mark.parametrize(("paper", "module", "name"), ROWS)
def test_every_row_of_paper_to_code_names_something_with_a_docstring(paper, module, name):
    assert inspect.getdoc(resolve(module, name))


def test_every_equation_has_a_row_and_opens_exactly_one_docstring():
    assert [row[0] for row in EQUATIONS] == [f"Eq. ({n})" for n in range(1, 12)]
    for paper, module, name in EQUATIONS:
        opening = [where for where in docstrings() if where[2].startswith(f"{paper}:")]
        assert len(opening) == 1, paper
        assert inspect.getdoc(resolve(module, name)).startswith(f"{paper}:")


def test_every_decision_has_an_entry_with_its_parts():
    entries = re.split(r"^## ", (ROOT / "docs/decisions.md").read_text(encoding="utf-8"), flags=re.M)[1:]
    assert [entry.split(".")[0] for entry in entries] == [f"D{n}" for n in range(1, 18)]
    for entry in entries:
        assert "**Paper:**" in entry
        assert "**We:**" in entry
        assert "**Field:**" in entry


def test_every_backend_has_a_row():
    text = (ROOT / "docs/backends.md").read_text(encoding="utf-8")
    for name in kithkin.available_backends():
        assert f"| `{name}` |" in text


def test_public_names_exist_and_have_docstrings():
    for name in kithkin.__all__:
        found = getattr(kithkin, name)
        assert isinstance(found, str) or inspect.getdoc(found), name


def test_public_names_are_functions_even_after_their_modules_were_imported():
    code = "import kithkin.restoration, kithkin.evaluation, kithkin.training, kithkin as k\n"
    code += "print(all(callable(getattr(k, n)) for n in k.__all__ if n != '__version__'))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "True"


def test_importing_the_package_does_not_import_torch():
    code = "import sys, kithkin, kithkin.cli\nprint('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = [
    pytest.param(code, id=f"{page.name}-{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S))
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_python_snippets_run(code, tmp_path):
    for example in (ROOT / "examples").glob("*.png"):
        (tmp_path / "examples").mkdir(exist_ok=True)
        os.symlink(example, tmp_path / "examples" / example.name)
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_every_link_within_the_repository_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_source_file_is_longer_than_four_hundred_lines():
    for path in SOURCE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
