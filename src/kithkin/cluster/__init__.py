"""Restoring many pictures with many workers: Ray actors that hold the model and take one group of
files at a time.

What a worker does to a file is what `kithkin.restore_files` does to it, so on one kind of machine
the results have the same bytes. All workers compute in the precision that was settled where the
work was given out. Ray, pyarrow and fsspec come with the extra ``cluster``.
"""

from kithkin.cluster._manifest import Manifest
from kithkin.cluster._plan import Task, TaskPlan, plan_tasks
from kithkin.cluster._pool import Pool, connected, import_ray, restore_tasks

__all__ = ["Manifest", "Pool", "Task", "TaskPlan", "connected", "import_ray", "plan_tasks", "restore_tasks"]
