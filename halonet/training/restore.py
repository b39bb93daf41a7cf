"""The model of a run, from its workdir."""

import dataclasses
from typing import Any

import jax
import ml_collections
import optax
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh

from halonet.errors import UsageError, unknown
from halonet.interop.pretrained import check_values
from halonet.tasks.task import Task, make_task
from halonet.training import config as config_lib
from halonet.training.checkpoint import Checkpoints
from halonet.training.state import TrainState, abstract_state, make_init
from halonet.training.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """A model and its weights, as a run left them after `step` steps."""

  config: ml_collections.ConfigDict
  task: Task
  model: nn.Module
  state: TrainState
  step: int

  @property
  def variables(self) -> dict[str, Any]:
    """Variables for `model.apply`: moving averages, if the run kept them."""
    if self.state.ema is not None:
      return self.state.ema
    return self.state.variables


def restore_model(
  workdir_path: str, mesh: Mesh, step: int | None = None
) -> TrainedModel:
  """Reads a run's model onto every device of a mesh.

  It is that of the latest checkpoint, unless `step` is given.

  Raises:
    UsageError: if the workdir is no run's, or has no such checkpoint.
    RunError: if the checkpoint cannot be read, is damaged, or holds weights
      that are not finite.
  """
  workdir = Workdir(workdir_path)
  config = workdir.config()
  if not workdir.checkpoints.is_dir():
    raise UsageError(f"--workdir {workdir.path} has no checkpoints yet")
  task = make_task(config, workdir.metadata())
  checkpoints = Checkpoints(workdir.checkpoints, task.best)
  steps = checkpoints.steps()
  if not steps:
    raise UsageError(f"--workdir {workdir.path} has no checkpoints yet")
  if step is None:
    step = steps[-1]
  if step not in steps:
    message = unknown("checkpoint of step", str(step), map(str, steps))
    raise UsageError(f"--step: {message}")

  model = config_lib.create_model(config, task)
  # The optimizer's state is not read.
  init = make_init(model, optax.identity(), config, mesh)
  state = checkpoints.restore_model(step, abstract_state(init, mesh))
  for variables in (state.variables, state.ema or {}):
    named = traverse_util.flatten_dict(jax.device_get(variables), sep="/")
    check_values(named, f"{workdir.path}, step {step}")
  return TrainedModel(config, task, model, state, step)
