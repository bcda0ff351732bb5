"""KiT on the Hugging Face Hub: ``HubKiT`` is a ``kithkin.model.KiT`` with the methods of ``PyTorchModelHubMixin``.

``HubKiT.of(model).save_pretrained(folder)`` writes ``model.safetensors``, a checkpoint that
``kithkin.zoo.load_model`` reads as well, ``config.json`` and a model card; ``push_to_hub(name)`` uploads them, and
``HubKiT.from_pretrained(folder_or_name)`` builds the network again.
"""

from functools import cache
from pathlib import Path
from typing import Any

from kithkin.checkpoint import read_model, save_model
from kithkin.errors import KithkinError
from kithkin.messages import missing_extra
from kithkin.model import KiT
from kithkin.model_config import KiTConfig

WEIGHTS = "model.safetensors"


def __getattr__(name: str) -> Any:
    if name != "HubKiT":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _hub_class()


@cache
def _hub_class() -> Any:
    """The class; made at its first use, because its base is of a package that need not be installed."""
    try:
        from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
    except ImportError as error:
        raise KithkinError(missing_extra("HubKiT", f"huggingface_hub ({error})", "hub")) from error

    class HubKiT(
        KiT, PyTorchModelHubMixin, library_name="kithkin", tags=["image-restoration"], pipeline_tag="image-to-image"
    ):
        """A KiT that is saved to a folder or to the Hub, and read from there; the arguments are those of KiTConfig."""

        def __init__(self, **config: Any) -> None:
            super().__init__(KiTConfig.from_dict(config))

        @classmethod
        def of(cls, model: KiT) -> "HubKiT":
            """A copy of a network."""
            copy = cls(**model.config.to_dict())
            copy.load_state_dict(model.state_dict())
            return copy.train(model.training)

        def _save_pretrained(self, save_directory: Path) -> None:
            save_model(self, save_directory / WEIGHTS)

        @classmethod
        def _from_pretrained(cls, *, model_id: str, **options: Any) -> "HubKiT":
            kept = ("revision", "cache_dir", "force_download", "token", "local_files_only")
            path = Path(model_id) / WEIGHTS
            if not Path(model_id).is_dir():
                path = Path(hf_hub_download(model_id, WEIGHTS, **{key: options[key] for key in kept if key in options}))
            return cls.of(read_model(path))

    return HubKiT
