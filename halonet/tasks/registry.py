"""Tasks by name: `config.task`."""

import importlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from halonet.errors import UsageError, unknown
from halonet.tasks.task import Task

# Name → the class, or where it is: its module may be slow to import.
_TASKS: dict[str, type[Task] | str] = {
  "classification": "halonet.tasks.classification:Classification",
}


def register(name: str, task: type[Task]) -> None:
  """Makes a task known by name.

  Raises:
    ValueError: if the name is taken by another task.
  """
  if _TASKS.get(name, task) is not task:
    raise ValueError(f"there is a task {name!r} already")
  _TASKS[name] = task


def get_task(name: str) -> type[Task]:
  """Looks a task up; raises UsageError with the known names."""
  if name not in _TASKS:
    raise UsageError(f"config.task: {unknown('task', str(name), _TASKS)}")
  task = _TASKS[name]
  if isinstance(task, str):
    module, _, attribute = task.partition(":")
    task = _TASKS[name] = getattr(importlib.import_module(module), attribute)
  return task


def make_task(
  config: ml_collections.ConfigDict, metadata: Mapping[str, Any] | None = None
) -> Task:
  """Makes the task of a config."""
  return get_task(config.task)(config, metadata)
