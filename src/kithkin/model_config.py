"""The configuration of the network, and its named sizes."""

import reprlib
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any

from kithkin.errors import InputError
from kithkin.layers import HASH_INPUTS
from kithkin.ops import WEIGHTINGS
from kithkin.ops.grouping import FEATURES, MAX_BUCKETS

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 48, "n_stages": 2, "blocks": "gg gg gg gg gg", "full_width": 16, "n_hashes": 1},
    "small": {"width": 64, "n_stages": 2, "blocks": "ggg ggg gggg ggg ggg", "full_width": 24, "n_hashes": 1},
    "base": {"width": 96, "n_stages": 2, "blocks": "gggg gggg gggggg gggg gggg", "full_width": 32, "n_hashes": 1},
    # Fig. 2 and Sec. 4.1; the widths are ours (decision D9).
    "paper": {"width": 96, "ffn_ratio": 3.0},
}


# What no network that is meant needs more of. A checkpoint's header is read before its tensors, and a recipe before any
# picture: neither may ask for gigabytes with a few bytes.
LARGEST: dict[str, int] = {
    "width": 8192,
    "full_width": 8192,
    "n_stages": 8,
    "depth": 256,
    "ffn_ratio": 64,
    "patch_size": 128,
    "k": 2**20,
    "n_hashes": 256,
    "n_buckets": 2**14,
    "n_heads": 8192,
    "rotation_seed": 2**63,
}
MOST_WEIGHTS = 2**32
MOST_ROTATIONS = 2**26

RETIRED = ("n_pairs",)  # of older checkpoints; only None may stand there
LETTERS = "cgat"  # of the blocks, see KiTConfig.blocks


@dataclass(frozen=True)
class KiTConfig:
    """Every choice of the network. It travels in the checkpoint's header.

    Attributes:
        width: channels of the first stage; stage i has width·2^i.
        n_stages: encoder stages, and as many decoder stages.
        depth: k-NN transformer blocks in a stage, the paper's b.
        blocks: the blocks of every stage in place of ``depth``, a word a stage in the order in which they run and a
            letter a block: ``c`` two dense convolutions, ``g`` a gated block, ``a`` k-NN local attention (Eq. 3),
            ``t`` a whole k-NN transformer block (Eqs. 3 and 4). Such a network has a stem and a head of its own, of
            ``full_width`` channels, and its decoder adds the encoder's features (decision D20). Empty: the paper's
            network.
        full_width: channels of the convolutions at the picture's own resolution, two before the first stage and two
            after the last; goes with ``blocks``.
        ffn_ratio: hidden channels of a feed-forward network over its channels.
        stem_stride: 2 halves the map once more before the first stage, 1 does not (decision D7).
        patch_size: side r of a patch, in pixels of the stage's map.
        k: patches in a chunk; the bottleneck has k = 1.
        n_hashes: hash rounds h.
        n_buckets: hash buckets m, even; None follows the number of patches (decision D2).
        n_heads: attention heads (decision D14).
        weighting: ``"softmax"`` or ``"paper"`` (decision D4).
        share_query_key: φ = θ, the paper's KiT_S.
        hash_input: ``"feature"`` or ``"query"`` (decision D15).
        hash_features: ``"patch"``, ``"pooled"`` (decision D1) or ``"centered"`` (decision D17).
        rotation_seed: of the fixed hash rotations (decision D12).

    Raises:
        InputError: a value is out of range (``LARGEST``), or the network would hold more than ``MOST_WEIGHTS`` weights
            or ``MOST_ROTATIONS`` numbers of hash rotations.
    """

    width: int = 32
    n_stages: int = 3
    depth: int = 2
    blocks: str = ""
    full_width: int = 0
    ffn_ratio: float = 2.0
    stem_stride: int = 2
    patch_size: int = 4
    k: int = 4
    n_hashes: int = 4
    n_buckets: int | None = None
    n_heads: int = 1
    weighting: str = "softmax"
    share_query_key: bool = False
    hash_input: str = "feature"
    hash_features: str = "patch"
    rotation_seed: int = 0

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("width", "n_stages", "depth", "patch_size", "k", "n_hashes", "n_heads"):
            if getattr(self, name) < 1:
                raise InputError(f"KiTConfig: {name} must be at least 1, got {getattr(self, name)}")
        if self.stem_stride not in (1, 2):
            raise InputError(f"KiTConfig: stem_stride must be 1 or 2, got {self.stem_stride}")
        if self.n_buckets is not None and (self.n_buckets < 2 or self.n_buckets % 2):
            raise InputError(f"KiTConfig: n_buckets must be even and at least 2, got {self.n_buckets}")
        if not self.ffn_ratio > 0:
            raise InputError(f"KiTConfig: ffn_ratio must be positive, got {self.ffn_ratio}")
        if round(self.width * self.ffn_ratio) < 1:
            raise InputError(f"KiTConfig: ffn_ratio {self.ffn_ratio} leaves no hidden channel of {self.width}")
        self._check_blocks()
        if self.width % self.n_heads:
            raise InputError(f"KiTConfig: n_heads must divide width, got {self.n_heads} and {self.width}")
        for name, allowed in (("weighting", WEIGHTINGS), ("hash_input", HASH_INPUTS), ("hash_features", FEATURES)):
            if getattr(self, name) not in allowed:
                raise InputError(f"KiTConfig: {name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        self._check_size()

    def _check_blocks(self) -> None:
        words = self.blocks.split()
        if bool(words) != (self.full_width > 0):
            raise InputError(
                f"KiTConfig: blocks and full_width go together, got {reprlib.repr(self.blocks)} and {self.full_width}"
            )
        if not words:
            return
        if len(words) != 2 * self.n_stages + 1 or not set("".join(words)) <= set(LETTERS):
            raise InputError(
                f"KiTConfig: blocks must be {2 * self.n_stages + 1} words, one a stage, of the letters "
                f"{', '.join(LETTERS)}, got {reprlib.repr(self.blocks)}"
            )
        if self.stem_stride != 2:
            raise InputError(f"KiTConfig: with blocks, stem_stride must be 2, got {self.stem_stride}")
        if max(map(len, words)) > LARGEST["depth"]:
            raise InputError(f"KiTConfig: a stage must have at most {LARGEST['depth']} blocks")

    @property
    def words(self) -> list[str]:
        """A letter a block and a word a stage, in the order in which they run."""
        return self.blocks.split() or ["t" * self.depth] * (2 * self.n_stages + 1)

    def _check_size(self) -> None:
        """Refuse what would need more memory than any network that is meant; the weights are those of the blocks."""
        weights = rotations = 0
        costs = {"c": 18.0, "g": 6.0, "a": 3.0, "t": 3 + 2 * self.ffn_ratio}
        for i, word in enumerate(self.words):
            stage = self.n_stages - abs(self.n_stages - i)
            channels = self.width * 2**stage
            weights += sum(costs[letter] for letter in word) * channels**2
            features = channels * (1 if self.hash_features == "pooled" else self.patch_size**2)
            if self.k > 1 and (stage < self.n_stages or self.blocks):
                blocks = word.count("a") + word.count("t")
                rotations += blocks * self.n_hashes * features * ((self.n_buckets or MAX_BUCKETS) // 2)
        if weights > MOST_WEIGHTS:
            raise InputError(
                f"KiTConfig: the network would have {weights:.2g} weights, at most {MOST_WEIGHTS:.2g} are taken; lower "
                "width, n_stages, depth or ffn_ratio"
            )
        if rotations > MOST_ROTATIONS:
            raise InputError(
                f"KiTConfig: the hash rotations would be {rotations:.2g} numbers, at most {MOST_ROTATIONS:.2g} are "
                "taken; lower n_hashes, n_buckets or patch_size"
            )

    def _check_types(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if field.name == "n_buckets":
                kind = type(None) if value is None else int
            right = isinstance(value, int | float if kind is float else kind)
            if not right or (isinstance(value, bool) and kind is not bool):
                raise InputError(f"KiTConfig: {field.name} must be {kind.__name__}, got {reprlib.repr(value)}")
            if field.name in LARGEST and value is not None and value > LARGEST[field.name]:
                raise InputError(f"KiTConfig: {field.name} must be at most {LARGEST[field.name]}, got {value!r}")

    @classmethod
    def named(cls, size: str, **changes: Any) -> "KiTConfig":
        """The configuration of a named size (tiny, small, base, paper), with changes on top."""
        if size not in SIZES:
            raise InputError(f"KiTConfig: no size is called {size!r}; there are {', '.join(SIZES)}")
        return cls.from_dict({**SIZES[size], **changes})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "KiTConfig":
        """Build from plain values; an unknown key is refused with the nearest name."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name in RETIRED and values[name] is None:
                continue
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
                raise InputError(f"KiTConfig: unknown key {name!r}{hint}")
        return cls(**{name: value for name, value in values.items() if name in known})

    def to_dict(self) -> dict[str, Any]:
        """Plain values that ``from_dict`` takes back."""
        return asdict(self)

    @property
    def stride(self) -> int:
        """Input pixels a pixel of the bottleneck stands for; the input is extended to a multiple of it."""
        return self.stem_stride * 2**self.n_stages
