"""KiT as an architecture of spandrel, the loader of chaiNNer and others (https://github.com/chaiNNer-org/spandrel).

spandrel hands an architecture the tensors of a file alone. What they can't tell by their shapes, such as k or the
number of hash rounds, stands in a tensor that ``kithkin.checkpoint.save_model`` writes.
"""

from typing import Any

import torch

from kithkin.checkpoint import CONFIG_TENSOR, config_of, outline, read_tensors, weights_of
from kithkin.errors import CheckpointError, InputError, KithkinError
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.zoo import list_models, load_model

ID = "KiT"
_SIGNS = ("stem.conv1.weight", "up.0.expand.weight", "head.conv3.weight")  # beside a block's, of any kind
_BLOCKS = ("bottleneck.0.attention.query_proj.weight", "bottleneck.0.conv1.weight")


def install(registry: Any = None) -> None:
    """Teach spandrel's loaders to open kithkin's checkpoints; a second call changes nothing.

    Args:
        registry: a ``spandrel.ArchRegistry``; None takes the main one, which every ``ModelLoader`` uses unless it is
            given another.

    Raises:
        KithkinError: spandrel can't be imported.
    """
    try:
        import spandrel
    except ImportError as error:
        raise KithkinError(f"install needs the package spandrel ({error}); pip install spandrel") from error

    class KiTArchitecture(spandrel.Architecture[KiT]):
        def __init__(self) -> None:
            super().__init__(id=ID, detect=detect)

        def load(self, state_dict: dict[str, Any]) -> Any:
            config, weights = read_state(state_dict)
            with torch.random.fork_rng(devices=[]):
                model = KiT(config).eval()
            return spandrel.ImageModelDescriptor(
                model,
                weights,
                architecture=self,
                purpose="Restoration",
                tags=[f"{config.width} channels", f"k = {config.k}", f"h = {config.n_hashes}"],
                supports_half=False,  # the hash rotations would be rounded too
                supports_bfloat16=False,
                scale=1,
                input_channels=3,
                output_channels=3,
            )

    chosen = spandrel.MAIN_REGISTRY if registry is None else registry
    chosen.add(spandrel.ArchSupport.from_architecture(KiTArchitecture()), ignore_duplicates=True)


def detect(state_dict: dict[str, Any]) -> bool:
    """Whether these are the tensors of a KiT."""
    return all(name in state_dict for name in _SIGNS) and any(name in state_dict for name in _BLOCKS)


def read_state(state_dict: dict[str, Any]) -> tuple[KiTConfig, dict[str, Any]]:
    """The configuration and the weights among a checkpoint's tensors.

    Raises:
        CheckpointError: the configuration is not among them, and they are not those of a model that ships; or it is of
            another network than they are.
    """
    weights = weights_of(state_dict)
    config = config_of(state_dict) or _config_of_shipped(weights)
    if config is None:
        raise CheckpointError(
            f"these weights come without the tensor {CONFIG_TENSOR}, and their shapes don't tell k or the hash rounds; "
            "write the file again: kithkin.save_model(kithkin.load_model(OLD), NEW)"
        )
    try:
        outline(config, {name: x.shape for name, x in weights.items()})
    except InputError as error:
        raise CheckpointError(f"the weights don't fit the configuration in {CONFIG_TENSOR}: {error}") from error
    return config, weights


def _config_of_shipped(weights: dict[str, Any]) -> KiTConfig | None:
    """The configuration of a model that ships, whose file may be older than the tensor."""
    for name, card in list_models().items():
        ours = weights_of(read_tensors(card.path)[0])
        if ours.keys() == weights.keys() and all(torch.equal(weights[key], values) for key, values in ours.items()):
            return load_model(name).config
    return None
