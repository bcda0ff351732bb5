"""The layers of the package: a module imports only from the layers below its own, and what is not installed by
default is imported only where it is needed."""

import ast
import importlib
import inspect
import re
import sys
import traceback
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import kithkin
from kithkin.cli import app
from kithkin.ops import knn_local_attention
from kithkin.restore_options import Options, RestoreOptions

pytest.importorskip("importlinter")

SOURCE = Path(kithkin.__file__).parent

# From the top. Modules of one row may import each other; a name in parentheses need not exist yet.
LAYERS = (
    "cli : web : __main__",
    "ablation : sheets : report",
    "training : evaluation",
    "methods",
    "cluster : tasks : neighbors : export : integrations",
    "restoration",
    "restore_files",
    "restore_options : restore_plan : restore_inputs",
    "deconvolution",
    "restorers",
    "blending : containers : precision",
    "checkpoint : zoo : config : degradation_config : data : growth",
    "model",
    "model_config",
    "layers",
    "ops : losses : metrics : images",
    "errors : estimate : files : messages : names : packaged : storage : tiles",
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
OF_CHOICE = {"triton.py": {"triton"}, "server.py": {"uvicorn", "h11"}, "_onnx.py": {"onnx_ir", "onnxscript"}}


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


MODULES = {
    ".".join(("kithkin", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}


@cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported(path):
    """(module, name or None) of every import of a file that runs, at the top or in a function."""
    waiting, found = [parsed(path)], []
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found += ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found += ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)
    return found


def test_modules_do_not_import_each_other_in_a_circle():
    graph = {name: set() for name in MODULES}
    for name, path in MODULES.items():
        for module, what in imported(path):
            whole = f"{module}.{what}"
            graph[name] |= {found for found in (whole if whole in MODULES else module,) if found in MODULES}
        graph[name].discard(name)
    while leaves := [name for name, below in graph.items() if not below]:
        graph = {name: below.difference(leaves) for name, below in graph.items() if below}
    assert not graph  # what is left is a circle, or leads to one


def test_what_is_private_to_a_package_is_imported_by_no_other():
    for name, path in MODULES.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for module, what in imported(path):
            owner, private, _ = f"{module}.{what}".partition("._")
            if private and module.startswith("kithkin") and what != "__version__":
                assert package == owner or package.startswith(f"{owner}."), f"{name} imports {module}.{what}"


def test_no_name_of_a_package_is_a_module_and_something_else():
    for name in MODULES:
        parent, _, own = name.rpartition(".")
        if parent and name not in ("kithkin.__main__", "kithkin.web.server", "kithkin.ops.triton"):
            importlib.import_module(name)
            assert inspect.ismodule(getattr(sys.modules[parent], own)), name


def strings(tree):
    """The texts of a module, f-strings whole, without its docstrings."""
    nodes = list(ast.walk(tree))
    left_out = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    left_out |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
            yield node.value


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES.values() if "cli" not in path.parts],
    ids=lambda path: str(path.relative_to(SOURCE)),
)
def test_messages_of_the_library_name_arguments_and_no_options(path):
    """Whole commands in backticks, and torchrun's options, are what they are."""
    for text in strings(parsed(path)):
        assert not re.search("--(?!nproc)[a-z]", re.sub("`[^`]*`", "", text)), text


@pytest.mark.parametrize("option", ["ensemble", "uniform_blur"])
def test_an_option_of_restoring_is_named_in_one_place_and_by_the_command(option):
    def names(path):
        nodes = ast.walk(parsed(path))
        return {getattr(node, field, None) for node in nodes for field in ("id", "attr", "arg", "name")}

    found = {str(path.relative_to(SOURCE)) for path in MODULES.values() if option in names(path)}
    assert found == {"restore_options.py", "cli/restore.py"}


def test_the_keyword_arguments_of_restore_are_the_options():
    assert list(Options.__annotations__) == [field.name for field in fields(RestoreOptions)]


DEEPEST = 12


def test_a_picture_takes_few_calls_from_the_command_to_the_operator(tmp_path):
    """Calls within the package, with everything as it is by default; none leads to a layer above."""
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    stacks = []

    def operator(*arguments, **options):
        frames = [frame.f_code for frame, _ in traceback.walk_stack(sys._getframe(1))]
        stacks.append([code for code in reversed(frames) if Path(code.co_filename).is_relative_to(SOURCE)])
        return knn_local_attention(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kithkin.layers.knn_local_attention", operator)
        found = CliRunner().invoke(
            app, ["restore", str(tmp_path / "a.png"), "-m", "denoise-gaussian-tiny", "--device", "cpu"]
        )
    assert found.exit_code == 0, found.output
    names = [code.co_qualname for code in stacks[0]]
    files = [Path(code.co_filename).relative_to(SOURCE).parts[0].removesuffix(".py") for code in stacks[0]]
    layer = [next(i for i, row in enumerate(LAYERS) if name in row.split(" : ")) for name in files]
    start = names.index("restore")
    assert len(names[start:]) < DEEPEST, names  # and the operator itself
    assert layer[start:] == sorted(layer[start:]), files
