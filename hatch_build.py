"""Compile the CPU kernels while the wheel is built; without a compiler the wheel is pure Python and still works.

``kernels/build.py`` says which environment variables change what is compiled.
"""

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = "src/kithkin/ops/kernels"


class NativeKernel(BuildHookInterface):
    def dependencies(self) -> list[str]:
        return ["ziglang==0.17.1"] if os.environ.get("KITHKIN_TARGET") else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        # By its path: importing the package needs PyTorch, which building does not.
        path = Path(self.root) / KERNELS / "build.py"
        spec = importlib.util.spec_from_file_location("kernel_build", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        target = os.environ.get("KITHKIN_TARGET")
        self.scratch = tempfile.TemporaryDirectory()  # until the process ends: the wheel is written later
        try:  # another platform's libraries must not lie in the tree, which an installation may use
            made = module.build(Path(self.scratch.name)) if target else module.build()
        except RuntimeError as error:
            if target:
                raise
            self.app.display_warning(f"kithkin is built without its native kernel: {error}")
            return
        build_data["force_include"].update({str(path): f"kithkin/ops/kernels/{path.name}" for path in made})
        build_data["pure_python"] = False
        # Called through ctypes, the library depends on the platform but not on the version of Python.
        build_data["tag"] = f"py3-none-{module.platform_tag()}"
