"""What holds for every test."""

import gc
import os
import shutil

import pytest
import torch

# Without a GPU, Triton's kernels run on the CPU, one operation after the other. It must stand here before anything
# imports Triton. Where there is a GPU they are compiled for it.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# The tensors of the tests are small: a second thread costs more than it brings, and a machine that is busy with
# something else makes the threads wait for each other. A test that is about threads sets their number itself.
torch.set_num_threads(1)

MOST_PROCESSES = 4  # each holds PyTorch and starts processes of its own

# The files that take longest. "cluster" and "distributed" each keep two cores busy: they stand apart.
LONGEST = (
    *("cluster", "training", "export", "docs", "distributed", "web_browser", "gpu_command", "web", "native_emulated"),
    *("compile_gpu", "deconvolution", "triton", "darktable", "ops_attention", "cli", "ops_attention_operator"),
    "shards",
)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Run the whole suite in a process for each core and one more, a file at a time, and a part of it in this process.

    The tests wait for other processes, browsers and clocks a fifth of the time: the one more uses it.
    The option ``-n`` of pytest-xdist takes precedence. Tests that share a GPU run one after the other.
    """
    option = config.option
    part = option.keyword or option.markexpr or option.usepdb or not all(map(os.path.isdir, config.args))
    chosen = getattr(option, "numprocesses", 0) is not None  # 0: xdist is not installed
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if part or chosen or cores == 1 or torch.cuda.is_available() or hasattr(config, "workerinput"):
        return
    option.numprocesses, option.dist, option.loadscopereorder = min(cores + 1, MOST_PROCESSES), "loadfile", False


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What the tests import stays: to look through it for garbage takes a quarter of the time that importing does."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that no process ends long after the others."""
    ranks = {f"test_{name}.py": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.fixture(scope="module")
def browser():
    """A Chromium for pages, driven by Playwright."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no chromium on the path")
    with driver.sync_playwright() as play:
        opened = play.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--force-color-profile=srgb", "--disable-gpu"]
        )
        yield opened
        opened.close()
