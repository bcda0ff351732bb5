"""What is said about the package where it is built: tags, readme, versions. `.ci/release` builds and uses it."""

import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

import kithkin
from kithkin.ops.kernels import build

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture
def hook(monkeypatch):
    pytest.importorskip("hatchling", reason="the build's hook is hatchling's")
    monkeypatch.syspath_prepend(ROOT)
    import hatch_build

    return hatch_build


def initialized(hook, tmp_path, builder):
    """What the hook tells the builder of a wheel, and what it says to the user, with these words for a build.py."""
    kernels = tmp_path / hook.KERNELS
    kernels.mkdir(parents=True)
    (kernels / "build.py").write_text(builder)
    said = []
    app = SimpleNamespace(display_warning=said.append)
    made = {"force_include": {}, "pure_python": True}
    hook.NativeKernel(str(tmp_path), {}, None, None, None, "wheel", app=app).initialize("standard", made)
    return made, said


def test_a_wheel_with_compiled_kernels_names_its_platform(hook, tmp_path):
    made, said = initialized(
        hook,
        tmp_path,
        "from pathlib import Path\ndef build(): return [Path('/x/k.so')]\ndef platform_tag(): return 'x'",
    )
    assert made["force_include"] == {"/x/k.so": "kithkin/ops/kernels/k.so"}
    assert made["pure_python"] is False
    assert made["tag"] == "py3-none-x"
    assert not said


def test_a_wheel_without_a_compiler_is_pure_and_says_why(hook, tmp_path):
    made, said = initialized(hook, tmp_path, "def build(): raise RuntimeError('there is no C++ compiler')")
    assert made == {"force_include": {}, "pure_python": True}
    assert "there is no C++ compiler" in said[0]


def test_a_wheel_for_another_platform_is_never_pure_and_leaves_nothing_in_the_tree(hook, tmp_path, monkeypatch):
    monkeypatch.setenv("KITHKIN_TARGET", "win_amd64")
    with pytest.raises(RuntimeError, match="no compiler"):
        initialized(hook, tmp_path, "def build(folder): raise RuntimeError('no compiler')")
    assert hook.NativeKernel(str(tmp_path), {}, None, None, None, "wheel").dependencies()[0].startswith("ziglang==")


@pytest.mark.parametrize(
    ("name", "machine", "tag"),
    [
        ("linux-x86_64", "x86_64", "linux_x86_64"),
        ("macosx-10.9-universal2", "arm64", "macosx_10_9_arm64"),
        ("macosx-11.0-arm64", "arm64", "macosx_11_0_arm64"),
    ],
)
def test_the_tag_claims_no_other_machine(monkeypatch, name, machine, tag):
    monkeypatch.setattr(build.sysconfig, "get_platform", lambda: name)
    monkeypatch.setattr(build.platform, "machine", lambda: machine)
    assert build.platform_tag() == tag


def test_the_readme_of_the_package_index_has_no_link_into_the_repository():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = len(re.findall(r"\]\(https://", text))
    for change in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    assert re.findall(r"\]\((?!https://)[^)]*\)", text) == []
    assert len(re.findall(r"\]\(https://", text)) == links
    assert "From the paper to the code" in text


def test_one_version_stands_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert PROJECT["project"]["version"] == kithkin.__version__
    assert f"\nversion: {kithkin.__version__}\n" in citation
    assert re.search(
        rf"^## {re.escape(kithkin.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M
    )


def test_the_conda_recipe_asks_for_what_the_package_needs():
    yaml = pytest.importorskip("yaml", reason="the recipe is YAML")
    recipe = yaml.safe_load((ROOT / "conda/recipe.yaml").read_text(encoding="utf-8"))
    project = PROJECT["project"]
    assert recipe["context"]["version"] == project["version"]
    wanted = [f"python{project['requires-python']}", *project["dependencies"]]
    found = [each.replace(" ", "").replace("pytorch", "torch") for each in recipe["requirements"]["run"]]
    assert found == wanted
    built = [each.replace(" ", "") for each in recipe["requirements"]["host"][2:]]
    assert built == PROJECT["build-system"]["requires"]


def test_what_the_dockerfile_copies_is_there_and_sent():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [name for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.M) for name in line.split()]
    assert {"src", "hatch_build.py"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in sent


def test_workflows_pin_every_action_to_a_commit_and_keep_no_secret():
    yaml = pytest.importorskip("yaml", reason="workflows are YAML")
    workflows = sorted((ROOT / ".github/workflows").glob("*.yml"))
    assert len(workflows) >= 2
    for path in workflows:
        text = path.read_text(encoding="utf-8")
        assert "secrets." not in text
        for job in yaml.safe_load(text)["jobs"].values():
            for step in job["steps"]:
                assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", step.get("uses", f"a/b@{'0' * 40}")), step
