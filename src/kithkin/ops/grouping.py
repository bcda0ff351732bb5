"""Which patches meet: hashing, sorting and chunks (Eqs. 5-7). Integers only, no gradient.

The result, ``PatchGroups``, is the one value that every backend, the export and the
visualiser read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kithkin.errors import InputError
from kithkin.ops.library import exporting, statically_true
from kithkin.ops.precision import in_float32

MAX_BUCKETS = 128
MAX_K = 2**20
FEATURES = ("patch", "pooled", "centered")


@dataclass(frozen=True)
class PatchGroups:
    """Which patches attend to which, in chunk form.

    Attributes:
        order: (B, h, N) int64; ``order[b, j, i]`` is the index of the patch at sorted place i of round j.
        k: patches in a chunk. The last chunk is partly empty where k does not divide N.
        look_back: a chunk also sees the chunk before it, circular within its own round and image.
        neighbors: (B, N, K) int64 or None. Where given, it replaces the chunks: each patch alone attends
            to its own list of K patches (exact k-NN, for comparison); ``order`` then has one round.

    Raises:
        InputError: shapes or types don't fit, k is out of range, or on the CPU: a row of ``order`` does not name each
            patch once, or ``neighbors`` names others than patches and -1 (no patch). On other devices the values are
            not looked at, since that would wait for the device: there, wrong ones read foreign memory.
    """

    order: Tensor
    k: int
    look_back: bool = True
    neighbors: Tensor | None = None

    def __post_init__(self) -> None:
        if self.order.ndim != 3 or self.order.dtype != torch.int64 or not self.order.shape[1]:
            raise InputError(
                "PatchGroups: expected order (B, h, N) of int64 with h ≥ 1, "
                f"got {tuple(self.order.shape)} of {self.order.dtype}"
            )
        if not 1 <= self.k <= MAX_K:
            raise InputError(f"PatchGroups: k must be from 1 to {MAX_K}, got {self.k}")
        if self.neighbors is None and self.look_back and statically_true(self.n_chunks < 3):
            raise InputError(
                f"PatchGroups: looking back needs at least 3 chunks, else a patch is counted twice; {self.n_patches} "
                f"patches make {self.n_chunks} of k = {self.k}. Use k = {self.n_patches} with look_back=False"
            )
        self._check_neighbors()
        # A value is looked at where it costs no wait: not in a compiler's tensors, which hold none, nor on a GPU.
        if type(self.order) is Tensor and self.order.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_values()

    def _check_neighbors(self) -> None:
        neighbors = self.neighbors
        if neighbors is None:
            return
        batch, rounds, count = self.order.shape
        fits = (
            neighbors.ndim == 3
            and neighbors.shape[0] == batch
            and neighbors.shape[1] == count
            and neighbors.shape[2] > 0
        )
        if not fits or neighbors.dtype != torch.int64 or rounds != 1:
            raise InputError(
                "PatchGroups: expected order (B, 1, N) and neighbors (B, N, K) of int64 with K ≥ 1, got "
                f"{tuple(self.order.shape)} and {tuple(neighbors.shape)} of {neighbors.dtype}"
            )
        if neighbors.device != self.order.device:
            raise InputError(f"PatchGroups: order is on {self.order.device}, neighbors on {neighbors.device}")

    def _check_values(self) -> None:
        """Kernels read and write at these places, so a wrong one is refused before."""
        seen = self.order.new_zeros(self.order.shape, dtype=torch.bool)
        try:
            named = bool(seen.scatter_(2, self.order, True).all())
        except RuntimeError:  # a place that is none
            named = False
        if not named:
            raise InputError(
                f"PatchGroups: each row of order must name the patches 0 to {self.n_patches - 1} once; got another"
            )
        if self.neighbors is not None and self.neighbors.numel():
            least, most = int(self.neighbors.amin()), self.neighbors.amax(dim=-1)
            if least < -1 or most.max() >= self.n_patches or most.min() < 0:
                raise InputError(
                    f"PatchGroups: neighbors must be patches from 0 to {self.n_patches - 1}, or -1 for none, and one "
                    f"of each patch at least; got values from {least} to {int(most.max())}"
                )

    @property
    def n_patches(self) -> int:
        """N, the number of patches in an image."""
        return self.order.shape[2]

    @property
    def n_hashes(self) -> int:
        """h, the number of hash rounds."""
        return self.order.shape[1]

    @property
    def n_chunks(self) -> int:
        """Chunks in a round: ceil(N / k)."""
        return -(-self.n_patches // self.k)

    @property
    def candidates_per_patch(self) -> int:
        """Places of N_p in a round, empty ones counted: k, 2k with ``look_back``, or K."""
        return self.k * (1 + self.look_back) if self.neighbors is None else self.neighbors.shape[-1]

    def chunks(self) -> Tensor:
        """Eq. (7): the patches of each chunk, P_i = {x̃_ki, …, x̃_ki+k-1}.

        Returns:
            (B, h, ceil(N/k), k) int64 patch indices; -1 where the last chunk is empty. For exact neighbours
            (B, 1, N, 1): each patch is a chunk of its own.
        """
        if self.neighbors is not None:
            return self.order.unsqueeze(-1)
        batch, rounds, count = self.order.shape
        empty = self.n_chunks * self.k - count
        padded = torch.nn.functional.pad(self.order, (0, empty), value=-1)
        return padded.view(batch, rounds, self.n_chunks, self.k)

    def candidates(self) -> Tensor:
        """N_p: the patches that each patch of a chunk attends to.

        Returns:
            (B, h, ceil(N/k), k or 2k) int64: the chunk itself, then (``look_back``) the chunk before it;
            -1 where a place is empty. For exact neighbours (B, 1, N, K).
        """
        if self.neighbors is not None:
            return self.neighbors.unsqueeze(1)
        chunks = self.chunks()
        return torch.cat([chunks, chunks.roll(1, dims=2)], dim=-1) if self.look_back else chunks


def default_n_buckets(n_patches: int, k: int) -> int:
    """Hash buckets m for N patches: about one chunk a bucket, even, from 2 to 128 (decision D2)."""
    return max(2, min(MAX_BUCKETS, n_patches // k // 2 * 2))


def draw_rotations(
    n_features: int, n_hashes: int, n_buckets: int = MAX_BUCKETS, *, generator: torch.Generator | None = None
) -> Tensor:
    """Random rotations R of Eq. 5 from a private generator; the global random state is not touched.

    Args:
        n_features: F, the length of a hashed feature.
        n_hashes: h, the number of rounds.
        n_buckets: m; m/2 columns are drawn.
        generator: source of randomness; None takes a new one with a fixed seed.

    Returns:
        (h, F, m/2) float32, normally distributed, on the generator's device.
    """
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    shape = (n_hashes, n_features, n_buckets // 2)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device=generator.device)


@torch.no_grad()
def lsh_hash(features: Tensor, rotations: Tensor, *, centered: bool = False) -> Tensor:
    """Eq. (5): L(x) = argmax([xR; -xR]), once per round.

    x need not be projected onto the unit sphere first: a positive factor does not move the argmax.
    Computed in float32 whatever the dtype or autocast, for in bfloat16 the groups themselves move.

    Args:
        features: (B, N, F) floats.
        rotations: (h, F, m/2) floats.
        centered: hash x less the mean of the image's patches. Directions are compared, and features whose mean is
            much longer than their differences all point the same way (decision D17).

    Returns:
        (B, h, N) int64 in [0, m); the first maximum wins a tie.

    Raises:
        InputError: the shapes don't fit.
    """
    if features.ndim != 3 or rotations.ndim != 3 or features.shape[-1] != rotations.shape[1]:
        raise InputError(
            "lsh_hash: expected features (B, N, F) and rotations (h, F, m/2), "
            f"got {tuple(features.shape)} and {tuple(rotations.shape)}"
        )
    rounds, n_features, half = rotations.shape

    def hashes(features: Tensor, rotations: Tensor) -> Tensor:
        matrix = rotations.float().permute(1, 0, 2).reshape(n_features, rounds * half)
        projected = (features.float() @ matrix).unflatten(-1, (rounds, half))  # xR
        if centered:  # the product is linear, so its mean is the mean's product
            projected = projected - projected.mean(dim=1, keepdim=True)
        return torch.cat([projected, -projected], dim=-1).argmax(dim=-1)

    return in_float32(hashes, features, rotations).transpose(1, 2)


@torch.no_grad()
def sort_by_hash(hashes: Tensor) -> Tensor:
    """Eq. (6): the permutation π that sorts patches by hash value, ties by index.

    The keys bucket·N + index are unique, so every device's sort gives the same permutation.

    Args:
        hashes: (B, h, N) int64.

    Returns:
        (B, h, N) int64; place i of the sorted row holds patch ``order[..., i]``.
    """
    count = hashes.shape[-1]
    keys = hashes * count + torch.arange(count, device=hashes.device)
    if keys.device.type == "mps":  # large 64-bit sorts have been silently wrong there
        return keys.cpu().sort(dim=-1).indices.to(keys.device)
    return keys.sort(dim=-1).indices


@torch.no_grad()
def group_patches(
    patches: Tensor,
    *,
    k: int = 4,
    n_hashes: int = 4,
    n_buckets: int | None = None,
    rotations: Tensor | None = None,
    generator: torch.Generator | None = None,
    features: str = "patch",
) -> PatchGroups:
    """Group similar patches by locality-sensitive hashing (Sec. 3.3).

    With k = 1 a patch sees only itself and nothing is hashed (decision D8). With N ≤ 2k every patch sees
    every patch once, again without hashing.

    Args:
        patches: (B, N, P, C) floats: what is hashed (the paper's x, before any projection).
        k: patches in a chunk.
        n_hashes: hash rounds h.
        n_buckets: m, even and ≥ 2; None takes ``default_n_buckets``.
        rotations: (h, F, ≥ m/2); the first m/2 columns are used. None draws them from ``generator``.
        generator: private source of randomness; None takes one with a fixed seed.
        features: ``"patch"`` hashes the flattened patch (F = P·C), ``"pooled"`` its mean pixel (F = C), ``"centered"``
            the flattened patch less the mean of the image's patches (decision D17).

    Returns:
        The groups, on the device of ``patches``.

    Raises:
        InputError: a value is out of range or the shapes don't fit.
    """
    if patches.ndim != 4:
        raise InputError(f"group_patches: expected patches (B, N, P, C), got shape {tuple(patches.shape)}")
    if k < 1 or n_hashes < 1:
        raise InputError(f"group_patches: k and n_hashes must be at least 1, got k={k}, n_hashes={n_hashes}")
    if features not in FEATURES:
        raise InputError(f"group_patches: features must be one of {', '.join(FEATURES)}, got {features!r}")
    batch, count = patches.shape[:2]
    if k == 1 or statically_true(count <= 2 * k):
        identity = torch.arange(count, device=patches.device).expand(batch, 1, count)
        return PatchGroups(identity, k=1 if k == 1 else count, look_back=False)
    hashes = hash_patches(
        patches,
        k=k,
        n_hashes=n_hashes,
        n_buckets=n_buckets,
        rotations=rotations,
        generator=generator,
        features=features,
    )
    return PatchGroups(sort_by_hash(hashes), k=k)  # cut into chunks, Eq. (7), where they are read


@torch.no_grad()
def hash_patches(
    patches: Tensor,
    *,
    k: int = 4,
    n_hashes: int = 4,
    n_buckets: int | None = None,
    rotations: Tensor | None = None,
    generator: torch.Generator | None = None,
    features: str = "patch",
) -> Tensor:
    """The buckets that ``group_patches`` sorts by; the arguments are the same.

    Returns:
        (B, h, N) int64 in [0, m).

    Raises:
        InputError: a value is out of range or the shapes don't fit.
    """
    is_open = n_buckets is None and exporting()  # their number follows that of the patches, which a trace leaves open
    buckets = MAX_BUCKETS if is_open else default_n_buckets(patches.shape[1], k) if n_buckets is None else n_buckets
    if buckets < 2 or buckets % 2:
        raise InputError(f"group_patches: n_buckets must be even and at least 2, got {buckets}")
    hashed = patches.float().mean(dim=2) if features == "pooled" else patches.flatten(2)
    if rotations is None:
        rotations = draw_rotations(hashed.shape[-1], n_hashes, buckets, generator=generator).to(patches.device)
    elif rotations.ndim != 3 or rotations.shape[0] < n_hashes or rotations.shape[2] < buckets // 2:
        raise InputError(
            f"group_patches: expected rotations of at least {n_hashes} rounds and {buckets // 2} columns, "
            f"got shape {tuple(rotations.shape)}"
        )
    rotations = rotations[:n_hashes, :, : buckets // 2]
    if is_open:  # columns of 0 for those left out, which never win
        rotations = rotations * (patches.shape[1] >= 2 * k * torch.arange(1, buckets // 2 + 1, device=patches.device))
    return lsh_hash(hashed, rotations, centered=features == "centered")


@torch.no_grad()
def exact_groups(patches: Tensor, *, k: int = 4) -> PatchGroups:
    """Group each patch with its k nearest by brute force: the truth that hashing approximates. O(N²).

    Args:
        patches: (B, N, P, C) floats.
        k: neighbours of a patch, itself the first; all N where N < k.

    Returns:
        Groups with ``neighbors`` (B, N, min(k, N)), nearest first by Euclidean distance between flattened
        patches, ties by index but for the patch itself.

    Raises:
        InputError: not (B, N, P, C), or k < 1.
    """
    if patches.ndim != 4 or k < 1:
        raise InputError(f"exact_groups: expected patches (B, N, P, C) and k ≥ 1, got {tuple(patches.shape)}, k={k}")
    batch, count = patches.shape[:2]
    flat = patches.detach().flatten(2).double()
    # The subtraction form keeps a patch's distance to its copies at exactly 0; it comes before all of them itself.
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    distances.diagonal(dim1=1, dim2=2).fill_(-1)
    nearest = distances.sort(dim=-1, stable=True).indices[..., :k]
    identity = torch.arange(count, device=patches.device).expand(batch, 1, count)
    return PatchGroups(identity, k=1, look_back=False, neighbors=nearest)
