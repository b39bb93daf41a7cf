"""Weights to begin a training with: `config.init_from`.

Fine-tuning takes trained weights to another data set, another size of the
images, another block or halo. What then has to change is little, and is said;
all else must fit, so that no part is silently left as it was drawn.
"""

import collections
import dataclasses
import re
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from halonet.errors import RunError, UsageError
from halonet.interop import pretrained, timm
from halonet.models.network import Network
from halonet.models.registry import model_fields
from halonet.models.spec import NetworkSpec
from halonet.parallel import replicated
from halonet.training.restore import restore_model
from halonet.training.state import TrainState

_MOST_NAMED = 5


def initial_state(
  config: ml_collections.ConfigDict,
  model: Network,
  state: TrainState,
  mesh: Mesh,
) -> tuple[TrainState, list[str]]:
  """Puts the weights that `config.init_from` names into a fresh state.

  Of a run, they are those of its latest checkpoint: the moving averages, if it
  kept them. Of timm, tables are taken to be for the block and the halo of the
  model's name; or where they do not fit those, for the config's own.

  Args:
    config: complete; `init_from` is the workdir of a run, a `.safetensors` file
      of timm's weights of the model, `hf-hub:OWNER/NAME`, or `timm` for those
      that timm publishes.
    model: of the config.
    state: as drawn.
    mesh: on all of whose devices the state is.

  Returns:
    The state, whose moving averages begin at the weights, too; and lines that
    say what was done.

  Raises:
    UsageError: if there are no such weights, or they do not fit the model.
  """
  init_from = config.init_from
  fresh = {"params": state.params, "batch_stats": state.batch_stats}
  try:
    if init_from == "timm" or re.match(r"hf-hub:|.*\.safetensors$", init_from):
      source, spec = _from_timm(init_from, config.model.name, model.spec)
    else:
      source, spec = _from_run(init_from, mesh)
    variables, notes = transfer(source, fresh, spec, model.spec)
  except RunError as error:
    reason = str(error).removeprefix("--workdir ")
    raise UsageError(f"config.init_from is {init_from}: {reason}") from error

  def place(x):
    return jax.make_array_from_process_local_data(replicated(mesh), x, x.shape)

  state = state.replace(**jax.tree.map(place, variables))
  if state.ema is not None:  # In memory of its own: a step consumes both.
    state = state.replace(ema=jax.tree.map(place, variables))
  return state, [f"Weights from {init_from}", *notes]


def transfer(
  source: Any, target: Any, source_spec: NetworkSpec, target_spec: NetworkSpec
) -> tuple[Any, list[str]]:
  """Makes variables of one model those of another.

  - A classifier for another number of classes is left as `target` has it.
  - Relative tables for another number of offsets are resized linearly: the
    farthest offsets of the one become the farthest of the other, offset 0
    stays, and those between are interpolated.
  - Everything else must have the same name and shape in both.

  Args:
    source: `{"params": …, "batch_stats": …}`, arrays.
    target: the same of the model to be, such as freshly drawn ones.
    source_spec: of the model that `source` is for.
    target_spec: of the model that `target` is for.

  Returns:
    Variables with the shapes and dtypes of `target`, numpy arrays; and a line
    for each kind of change.

  Raises:
    UsageError: that names the first variables that do not fit, and how.
  """
  source = traverse_util.flatten_dict(jax.device_get(source), sep="/")
  target = traverse_util.flatten_dict(jax.device_get(target), sep="/")
  transferred, notes = {}, []
  # By path: how it does not fit.
  problems = {
    path: f"{path} {source[path].shape} is unexpected"
    for path in source
    if path not in target
  }
  resized = collections.Counter()
  fresh_head = _is_other_head(source, target)
  for path, wanted in target.items():
    if path not in source:
      problems[path] = f"{path} {wanted.shape} is missing"
      continue
    given = source[path]
    if path in _HEAD and fresh_head:
      given = wanted
    elif path.endswith(("/relative_height", "/relative_width")):
      cuts = [_dead_rows(spec, path) for spec in (source_spec, target_spec)]
      # Dead rows of another number may hide that the offsets differ.
      if given.shape[1:] == wanted.shape[1:] and (
        given.shape != wanted.shape or cuts[0] != cuts[1]
      ):
        offsets = len(given) - cuts[0], len(wanted) - cuts[1]
        # Even windows, of per-pixel attention, have no middle to keep.
        if all(number % 2 for number in offsets):
          table = resize_table(given[cuts[0] :], offsets[1])
          given = np.pad(table, ((cuts[1], 0), (0, 0)))
          resized[offsets] += 1
    if given.shape != wanted.shape:
      problems[path] = f"{path} is {given.shape}, not {wanted.shape}"
      if "/relative_" in path and given.shape[1:] == wanted.shape[1:]:
        problems[path] += ", and tables of even windows are not resized"
    transferred[path] = np.asarray(given, wanted.dtype)
  if problems:
    # Parameters say more than the statistics that go with them.
    worst = sorted(
      problems, key=lambda path: (not path.startswith("params"), path)
    )
    named = [problems[path] for path in worst[:_MOST_NAMED]]
    more = len(problems) - len(named)
    raise UsageError(
      "the weights do not fit config.model: "
      + "; ".join(named)
      + (f"; and {more} more" if more > 0 else "")
    )
  if fresh_head:
    old, new = (
      len(tree["params/classifier/bias"]) for tree in (source, target)
    )
    notes.append(
      f"The classifier is drawn afresh: {new} classes in place of {old}"
    )
  notes += [
    f"{number} relative tables are resized from {old} to {new} offsets"
    for (old, new), number in resized.items()
  ]
  return traverse_util.unflatten_dict(transferred, sep="/"), notes


def resize_table(table: np.ndarray, offsets: int) -> np.ndarray:
  """Resizes a relative table linearly, about offset 0.

  Args:
    table: `[2·r + 1, d]`, an embedding for each offset −r … r.
    offsets: 2·s + 1, the number of offsets −s … s to be.

  Returns:
    `[2·s + 1, d]` in the table's dtype; row s + o is the embedding of offset
    o·r/s, interpolated between the two nearest.
  """
  old, new = len(table) // 2, offsets // 2
  place = np.arange(-new, new + 1) * old / max(new, 1)
  distance = np.abs(place[:, None] - np.arange(-old, old + 1))
  weights = np.maximum(1 - distance, 0)
  return (weights @ table).astype(table.dtype)


_HEAD = ("params/classifier/kernel", "params/classifier/bias")


def _is_other_head(source, target):
  """Whether the classifiers differ in the number of classes, and only there."""
  if not all(path in tree for tree in (source, target) for path in _HEAD):
    return False
  (features, classes), (old_features, old_classes) = (
    tree[_HEAD[0]].shape for tree in (target, source)
  )
  return features == old_features and classes != old_classes


def _dead_rows(spec, path):
  """First rows of a table that meet no key; see `HaloAttention.timm`."""
  operators = {
    block.name: block.operator for stage in spec.stages for block in stage
  }
  block = path.split("/")[1]
  local = operators.get(block) == "h"
  return 2 * spec.halo_size if spec.timm and local else 0


def _from_run(workdir, mesh):
  """Variables of a run's latest checkpoint, and its model's spec."""
  trained = restore_model(workdir, mesh)
  return trained.variables, trained.model.spec


def _from_timm(init_from, name, spec):
  """Variables of timm's weights, and the spec that they fit."""
  if not spec.timm:
    raise UsageError(
      f"timm has no weights of {name}; name the workdir of a run, or train a"
      " model of timm's"
    )
  if init_from == "timm":
    if name not in pretrained.PRETRAINED:
      raise UsageError(
        f"timm publishes no weights of {name}; name a file or the workdir of a"
        " run"
      )
    init_from = pretrained.PRETRAINED[name].source
  state_dict = pretrained.read_state_dict(init_from)
  bias = state_dict.get("head.fc.bias")
  if bias is not None and bias.ndim:
    spec = dataclasses.replace(spec, num_classes=len(bias))
  published = {
    field: value
    for field, value in model_fields(name).items()
    if field in ("block_size", "halo_size", "global_size")
  }
  problem = None
  for candidate in (dataclasses.replace(spec, **published), spec):
    try:
      return timm.from_timm(state_dict, Network(candidate)), candidate
    except ValueError as error:
      problem = error
  raise UsageError(str(problem))
