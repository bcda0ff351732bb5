"""Processes forked from one that has PyTorch and kithkin in memory: they start in a moment, where a new one takes
seconds to import them."""

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

PRELOADED = ["torch.distributed.fsdp", "torch._dynamo", "kithkin.training.loop", "kithkin.cli", "kithkin.methods"]
PATIENCE = 900  # seconds; a machine may be busy with other things


def context():
    """Of multiprocessing; its processes see none of the caller's state."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found


def run_code(code, *arguments, folder="."):
    """Run Python code in a process of its own and in this folder, as ``python -c`` does with these arguments."""
    with tempfile.TemporaryDirectory() as kept:
        out, err = Path(kept, "out"), Path(kept, "err")
        given = (code, [str(x) for x in arguments], os.path.abspath(folder), dict(os.environ), str(out), str(err))
        process = context().Process(target=_run, args=given)
        process.start()
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
        said = (path.read_text(encoding="utf-8") if path.exists() else "" for path in (out, err))
        return CompletedProcess(code, process.exitcode, *said)


def run_command(*arguments):
    """``kithkin`` with these arguments, as a user starts it."""
    return run_code("import kithkin.cli\nkithkin.cli.main()", *arguments)


def _run(code, arguments, folder, environment, out, err):
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["kithkin", *arguments]
    exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
