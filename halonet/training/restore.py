"""The model of a run, from its workdir."""

import dataclasses

import ml_collections
import optax
from flax import linen as nn
from jax.sharding import Mesh

from halonet.errors import UsageError, unknown
from halonet.training import config as config_lib
from halonet.training.checkpoint import Checkpoints
from halonet.training.state import TrainState, abstract_state, make_init
from halonet.training.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """A model and its weights, as a run left them after `step` steps."""

  config: ml_collections.ConfigDict
  labels: list[str]
  model: nn.Module
  state: TrainState
  step: int

  @property
  def variables(self) -> dict:
    """What `model.apply` takes: the moving averages, if the run kept them."""
    if self.state.ema is not None:
      return self.state.ema
    return {
      "params": self.state.params,
      "batch_stats": self.state.batch_stats,
    }


def restore_model(
  workdir_path: str, mesh: Mesh, step: int | None = None
) -> TrainedModel:
  """Reads a run's model onto every device of a mesh.

  It is that of the latest checkpoint, unless `step` is given.

  Raises:
    UsageError: if the workdir is no run's, or has no such checkpoint.
    RunError: if the checkpoint cannot be read.
  """
  workdir = Workdir(workdir_path)
  config = workdir.config()
  if not workdir.checkpoints.is_dir():
    raise UsageError(f"--workdir {workdir.path} has no checkpoints yet")
  checkpoints = Checkpoints(workdir.checkpoints)
  steps = sorted(checkpoints.accuracies())
  if not steps:
    raise UsageError(f"--workdir {workdir.path} has no checkpoints yet")
  if step is None:
    step = steps[-1]
  if step not in steps:
    message = unknown("checkpoint of step", str(step), map(str, steps))
    raise UsageError(f"--step: {message}")

  labels = workdir.labels()
  model = config_lib.create_model(config, num_classes=len(labels))
  init = make_init(
    model,
    optax.identity(),  # Its state is not read.
    config.data.image_size,
    mesh,
    ema=config.ema_decay > 0,
  )
  state = checkpoints.restore_model(step, abstract_state(init, mesh))
  checkpoints.close()
  return TrainedModel(config, labels, model, state, step)
