"""Restoring many pictures with many workers: Ray Data spreads the files over a pool of actors that hold the model.

Nothing here schedules or moves data itself. What a worker does to a file is what `kithkin.restore_files` does to it,
so the results have the same bytes. Ray, pyarrow and fsspec come with the extra ``cluster``.
"""

from kithkin.cluster._manifest import Manifest
from kithkin.cluster._plan import Errand, ErrandPlan, plan_errands
from kithkin.cluster._pool import Pool, connected, import_ray, restore_errands

__all__ = ["Errand", "ErrandPlan", "Manifest", "Pool", "connected", "import_ray", "plan_errands", "restore_errands"]
