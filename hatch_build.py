"""Compile the CPU kernels while the wheel is built; without a compiler the wheel is pure Python and still works.

``kernels/build.py`` says which environment variables change what is compiled.
"""

import importlib.util
import platform
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = "src/kithkin/ops/kernels"


class NativeKernel(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        # By its path: importing the package needs PyTorch, which building does not.
        path = Path(self.root) / KERNELS / "build.py"
        spec = importlib.util.spec_from_file_location("kernel_build", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        try:
            made = module.build()
        except RuntimeError as error:
            self.app.display_warning(f"kithkin is built without its native kernel: {error}")
            return
        build_data["force_include"].update({str(path): f"kithkin/ops/kernels/{path.name}" for path in made})
        build_data["pure_python"] = False
        # Called through ctypes, the library depends on the platform but not on the version of Python.
        tag = platform_tag(sysconfig.get_platform(), platform.machine())
        build_data["tag"] = f"py3-none-{tag}"


def platform_tag(name: str, machine: str) -> str:
    """The wheel tag of a platform's name; the compiler makes code for this machine alone, never a universal binary."""
    return name.replace("universal2", machine).replace("-", "_").replace(".", "_")
