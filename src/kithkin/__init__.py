"""kithkin restores photographs with KiT, the k-NN Image Transformer (Lee, Choi, Sohn, Min, CVPR 2022).

The public names below are imported when they are first used, so ``import kithkin`` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULE_OF = {
    "KNNLocalAttention": "layers",
    "KNNTransformerBlock": "layers",
    "KiT": "model",
    "KiTConfig": "model_config",
    "KithkinError": "errors",
    "PatchGroups": "ops",
    "RestoreOptions": "restore_options",
    "available_backends": "ops",
    "deblur": "tasks",
    "denoise": "tasks",
    "derain": "tasks",
    "draw_neighbors": "neighbors",
    "evaluate": "evaluation",
    "exact_groups": "ops",
    "export_onnx": "export",
    "export_torch": "export",
    "find_neighbors": "neighbors",
    "group_patches": "ops",
    "knn_local_attention": "ops",
    "list_models": "zoo",
    "load_config": "config",
    "load_model": "zoo",
    "partition": "ops",
    "psnr": "metrics",
    "restore": "restoration",
    "save_model": "checkpoint",
    "ssim": "metrics",
    "train": "training",
    "unpartition": "ops",
}

__all__ = ["__version__", *_MODULE_OF]

if TYPE_CHECKING:
    from kithkin.checkpoint import save_model as save_model
    from kithkin.config import load_config as load_config
    from kithkin.errors import KithkinError as KithkinError
    from kithkin.evaluation import evaluate as evaluate
    from kithkin.export import export_onnx as export_onnx, export_torch as export_torch
    from kithkin.layers import KNNLocalAttention as KNNLocalAttention, KNNTransformerBlock as KNNTransformerBlock
    from kithkin.metrics import psnr as psnr, ssim as ssim
    from kithkin.model import KiT as KiT
    from kithkin.model_config import KiTConfig as KiTConfig
    from kithkin.neighbors import draw_neighbors as draw_neighbors, find_neighbors as find_neighbors
    from kithkin.ops import (
        PatchGroups as PatchGroups,
        available_backends as available_backends,
        exact_groups as exact_groups,
        group_patches as group_patches,
        knn_local_attention as knn_local_attention,
        partition as partition,
        unpartition as unpartition,
    )
    from kithkin.restoration import restore as restore
    from kithkin.restore_options import RestoreOptions as RestoreOptions
    from kithkin.tasks import deblur as deblur, denoise as denoise, derain as derain
    from kithkin.training import train as train
    from kithkin.zoo import list_models as list_models, load_model as load_model


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
