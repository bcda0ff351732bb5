"""The documents against the code: every row and every snippet is resolved or run."""

import ast
import importlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import kithkin
from kithkin.cli import app
from kithkin.images import Picture, write_picture

from forked import run_code

ROOT = Path(__file__).parent.parent
SOURCE = Path(kithkin.__file__).parent
PAPER_TO_CODE = ROOT / "docs/explanation/paper-to-code.md"
ROWS = re.findall(r"^\| (.+?) \| .+? \| `(kithkin[\w.]*):([\w.]+)` \|$", PAPER_TO_CODE.read_text(), re.M)
CLASSES = ("kithkin.layers.KNNTransformerBlock", "kithkin.ops.grouping.PatchGroups")
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
    everywhere = [*docstrings()]
    for paper, module, name in EQUATIONS:
        opening = [where for where in everywhere if where[2].startswith(f"{paper}:")]
        assert len(opening) == 1, paper
        assert inspect.getdoc(resolve(module, name)).startswith(f"{paper}:")


def test_every_decision_has_an_entry_with_its_parts():
    entries = re.split(r"^## ", (ROOT / "docs/explanation/decisions.md").read_text(encoding="utf-8"), flags=re.M)[1:]
    numbers = [int(entry.split(".")[0].removeprefix("D")) for entry in entries]
    assert numbers == sorted(set(numbers))
    assert len(numbers) >= 24
    for entry in entries:
        assert "**Paper:**" in entry
        assert "**We:**" in entry
        assert "**Field:**" in entry


def test_every_backend_has_a_row():
    text = (ROOT / "docs/reference/backends.md").read_text(encoding="utf-8")
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


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
SNIPPETS = [
    pytest.param(code, id=f"{page.name}-{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S))
]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A corner of the example, which takes a fifth of the time."""
    path = tmp_path_factory.mktemp("examples") / "dog-noisy.png"
    with Image.open(ROOT / "examples" / path.name) as whole:
        whole.crop((0, 0, 256, 256)).save(path)
    return path


@pytest.mark.parametrize("code", SNIPPETS)
def test_python_snippets_run(code, example, tmp_path):
    (tmp_path / "examples").mkdir()
    os.symlink(example, tmp_path / "examples" / example.name)
    run = run_code(code, folder=tmp_path)
    assert run.returncode == 0, run.stderr


def shell_commands(page):
    """The words of every `kithkin` command of a page's shell blocks, joined over continued lines."""
    text = "\n".join(re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S))
    for line in text.replace("\\\n", " ").splitlines():
        _, found, command = line.partition("kithkin ")
        if found and not line.startswith("python3 -m pip install -"):
            yield shlex.split(command, comments=True)


def named_commands(page):
    """The words of every `kithkin` command that a page's running text names."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for command in re.findall(r"`(?:python3? -m )?kithkin ([a-z][^`\n]*)`", prose):
        yield shlex.split(command)


def refusal(words):
    """Why the verb that a command line names does not take it, as the name of the error; "" where it does."""
    command = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        if words[0].startswith("-"):
            return ""
        if words[0] not in command.commands:
            return f"no verb {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    try:
        command.make_context("kithkin", list(words))
    except Exception as error:
        return type(error).__name__
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_name_verbs_and_options_that_exist(page):
    for words in shell_commands(page):
        assert not refusal(words), words
    for words in named_commands(page):  # running text leaves arguments and values out
        assert refusal(words) in ("", "MissingParameter", "NoArgsIsHelpError", "BadOptionUsage"), words


def test_a_command_that_does_not_exist_is_noticed():
    assert refusal(["restore", "a.png", "--colour"]) == "NoSuchOption"
    assert refusal(["data", "download"]) == "no verb download"


@pytest.fixture
def folders(example, tmp_path, monkeypatch):
    """A folder to work in with what the pages speak of: the example, photographs, pairs, a list."""
    for number, name in enumerate(("photos", "held-out", "pairs/input", "pairs/target", "crops", "bsds")):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for index in range(2):
            pixels = np.random.default_rng((number, index)).random((192, 192, 3), np.float32)
            write_picture(Picture(pixels), folder / f"{index}.png")
    (tmp_path / "held-out.txt").write_text("photos/0.png\n")
    (tmp_path / "examples").mkdir()
    shutil.copy(example, tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # `kithkin doctor` tries it, and it takes its time


SHORT = ["schedule.epochs=0", "schedule.steps=1", "schedule.warmup=0", "schedule.batch_size=1", "data.crop=64"]


@pytest.mark.parametrize("page", ["tutorials/quick-start.md", "tutorials/first-network.md", "how-to/training.md"])
def test_shell_snippets_run(page, folders):
    for words in shell_commands(ROOT / "docs" / page):
        if words[0] == "train":
            words += [word for change in SHORT for word in ("--set", change)]
        found = CliRunner().invoke(app, words)
        assert found.exit_code == 0, (words, found.output, found.exception)


def test_every_script_that_a_page_names_exists():
    for page in PAGES:
        for script in re.findall(
            r"\b(?:benchmarks|tests|examples)/[\w/]+\.(?:py|sh)\b", page.read_text(encoding="utf-8")
        ):
            assert (ROOT / script).exists(), f"{page.name}: {script}"


def test_every_public_name_has_its_docstring_on_the_site():
    pages = [*(ROOT / "docs/reference/api").glob("*.md"), PAPER_TO_CODE]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    shown = set(re.findall(r"^<!-- docstring: ([\w.]+) -->$", text, re.M))
    objects = [resolve(*name.rsplit(".", 1)) for name in shown if name.rsplit(".", 1)[0] not in CLASSES]
    for module in (kithkin, kithkin.ops):
        for name in module.__all__:
            found = getattr(module, name)
            assert not callable(found) or any(found is other for other in objects), name


def test_every_link_within_the_repository_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_source_file_is_longer_than_four_hundred_lines():
    for path in SOURCE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
