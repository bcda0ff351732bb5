"""The layers of the package: a module imports only from the layers below its own, and what is not installed by
default is imported only where it is needed."""

import ast
import sys
from pathlib import Path

import pytest

import kithkin

pytest.importorskip("importlinter")

SOURCE = Path(kithkin.__file__).parent

# From the top. Modules of one row may import each other; a name in parentheses need not exist yet.
LAYERS = (
    "cli : web : __main__",
    "ablation : sheets : report",
    "training : evaluation",
    "methods",
    "restoration : containers : restore_files : restore_plan : restore_options : cluster : tasks : neighbors : "
    "export : integrations : ensemble : deconvolution",
    "checkpoint : zoo : config : degradation_config : data : growth",
    "model",
    "layers",
    "ops : losses : metrics : images",
    "errors : estimate : files",
)

# What a plain installation brings. Everything else is an extra, imported in the function that needs it.
CORE = {"torch", "numpy", "PIL", "tifffile", "safetensors", "typer", "rich", "pydantic"}


def contract(package, layers):
    return f"""
[tool.importlinter]
root_package = "{package}"

[[tool.importlinter.contracts]]
name = "Layers"
type = "layers"
containers = ["{package}"]
layers = [{", ".join(f'"{layer}"' for layer in layers)}]
exhaustive = true

[[tool.importlinter.contracts]]
name = "The operator knows tensors alone"
type = "independence"
modules = ["{package}.ops", "{package}.losses", "{package}.metrics", "{package}.images"]
"""


def lint(folder, package, layers):
    """(whether the contracts are kept, what the linter says)."""
    from click.testing import CliRunner
    from importlinter.cli import lint_imports_command

    path = folder / "contracts.toml"
    path.write_text(contract(package, layers), encoding="utf-8")
    result = CliRunner().invoke(lint_imports_command, ["--config", str(path), "--no-cache"])
    return result.exit_code == 0, result.output


@pytest.fixture(autouse=True)
def same_path(monkeypatch):
    """The linter puts the current folder on the path."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_a_module_imports_only_from_the_layers_below(tmp_path):
    kept, said = lint(tmp_path, "kithkin", LAYERS)
    assert kept, said


@pytest.mark.parametrize(
    ("module", "line", "said"),
    [
        (None, "", "2 kept, 0 broken"),
        ("errors", "import {package}.model", "{package}.errors is not allowed to import {package}.model"),
        ("ops", "from {package} import config", "{package}.ops is not allowed to import {package}.config"),
        ("layers", "def f():\n    from {package}.training import x", "not allowed to import {package}.training"),
        ("losses", "import {package}.metrics", "{package}.losses is not allowed to import {package}.metrics"),
        ("helpers", "", "helpers"),
    ],
    ids=["sound", "errors", "ops", "in a function", "siblings", "a module without a layer"],
)
def test_the_contracts_can_be_broken(tmp_path, monkeypatch, module, line, said):
    package = f"toy_{module}"
    names = [name for layer in LAYERS for name in layer.split(" : ") if not name.startswith("(")]
    (tmp_path / package).mkdir()
    for name in ["__init__", *names, *([module] if module else [])]:
        text = line.format(package=package) if name == module else ""
        (tmp_path / package / f"{name}.py").write_text(text + "\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    kept, output = lint(tmp_path, package, LAYERS)
    assert kept == (module is None)
    assert said.format(package=package) in " ".join(output.split())


def imports_at_the_top(path):
    """The names of the packages that a file imports when it is imported itself."""
    waiting = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse  # The rest is for the type checker, and never run.
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += [
                child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.ExceptHandler)
            ]


# Files that are themselves imported only when what they are about is chosen.
OF_CHOICE = {"triton.py": {"triton"}, "_server.py": {"uvicorn", "h11"}}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_core_dependencies_are_imported_at_the_top(path):
    names = set(imports_at_the_top(path)) - set(sys.stdlib_module_names) - {"kithkin"}
    assert names <= CORE | OF_CHOICE.get(path.name, set())


@pytest.mark.parametrize("path", sorted((SOURCE / "ops").rglob("*.py")), ids=lambda path: path.name)
def test_the_operator_is_functions_of_tensors(path):
    """No module, no configuration, no file: torch and the standard library are all that it imports."""
    names = set(imports_at_the_top(path)) - set(sys.stdlib_module_names)
    assert names <= {"torch", "kithkin", "triton"}
    assert "nn.Module" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("word", ["utils", "common", "core", "base", "helpers"])
def test_no_module_is_called_after_nothing(word):
    assert [p for p in SOURCE.rglob("*") if p.stem.strip("_") == word and "__pycache__" not in p.parts] == []
