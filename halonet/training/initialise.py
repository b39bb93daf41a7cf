"""Weights to begin a training with: `config.init_from`.

Fine-tuning takes trained weights to another data set, another size of the
images, another block or halo. What then has to change is little, and is said;
all else must fit, so that no part is silently left as it was drawn.
"""

import collections
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh

from halonet.errors import RunError, UsageError
from halonet.interop import pretrained
from halonet.models.inner import Inner
from halonet.models.registry import create_model
from halonet.parallel import replicated
from halonet.training.checkpoint import DamagedCheckpoint
from halonet.training.origin import is_timm
from halonet.training.restore import restore_model
from halonet.training.state import TrainState
from halonet.training.workdir import Workdir

_MOST_NAMED = 5


def check_source(config: ml_collections.ConfigDict, workdir: Workdir) -> None:
  """Raises UsageError if a run is to begin with weights that are not there.

  A run that has a checkpoint goes on without them. Whether the weights can be
  read and fit, `initial_state` finds out.

  Args:
    config: complete.
    workdir: of the run.
  """
  init_from, saved = config.init_from, workdir.checkpoints
  if init_from is None or (
    saved.is_dir() and any(path.name.isdigit() for path in saved.iterdir())
  ):
    return
  try:
    if is_timm(init_from):
      fields = config.model.to_dict()
      model = create_model(fields.pop("name"), **fields)
      inner = getattr(model, "inner", None)
      name = inner.name if inner else config.model.name
      pretrained.find_source(name, None if init_from == "timm" else init_from)
    else:
      origin = Workdir(init_from)
      origin.config()
      if not origin.checkpoints.is_dir():
        raise UsageError("it has no checkpoints yet")
  except UsageError as error:
    raise _explained(init_from, error) from None


def initial_state(
  config: ml_collections.ConfigDict,
  model: nn.Module,
  draw: Callable[[], TrainState],
  mesh: Mesh,
) -> tuple[TrainState, list[str]]:
  """Puts the weights that `config.init_from` names into a fresh state.

  A run gives those of its latest checkpoint: the moving averages, if it kept
  them. A model with another one within, such as a detector with a backbone,
  takes the weights of its own kind whole, and others as those of `inner`.

  Args:
    config: complete; `init_from` is the workdir of a run, a `.safetensors` file
      of timm's weights of the model, `hf-hub:OWNER/NAME`, or `timm` for those
      that timm publishes.
    model: of the config.
    draw: draws a fresh state, once the weights have been read.
    mesh: on all of whose devices the state is.

  Returns:
    The state, whose moving averages begin at the weights, too; and lines that
    say what was done.

  Raises:
    UsageError: if there are no such weights, if they are damaged, or if they do
      not fit the model.
  """
  init_from = config.init_from
  try:
    inner = getattr(model, "inner", None)
    if is_timm(init_from):
      source, given = _load_timm(config, inner)
    else:
      trained = restore_model(init_from, mesh)
      given, source = jax.device_get(trained.variables), trained.model
      if getattr(source, "inner", None):
        inner = None  # All of it is of this kind.
      elif inner and trained.config.model.name != inner.name:
        raise UsageError(
          f"config.model.{inner.module} is {inner.name}, and the weights are of"
          f" {trained.config.model.name}; choose that, or other weights"
        )
    state = draw()
    if inner is None:
      variables, notes = transfer(given, state.variables, source, model)
    else:
      variables, notes = transfer_inner(given, state.variables, source, inner)
  except DamagedCheckpoint as error:
    advice = "no older one is good"
    if error.older is not None:
      advice = f"move it away to begin with step {error.older}"
    raise UsageError(
      f"config.init_from is {init_from}: {error.damage}; {advice}"
    ) from error
  except (RunError, ValueError) as error:
    raise _explained(init_from, error) from error

  def place(x):
    return jax.make_array_from_process_local_data(replicated(mesh), x, x.shape)

  # In memory of their own: a step consumes weights and moving averages.
  averages = None if state.ema is None else jax.tree.map(place, variables)
  placed = jax.tree.map(place, variables)
  state = state.replace(
    params=placed.pop("params"), collections=placed, ema=averages
  )
  return state, [f"Weights from {init_from}", *notes]


def transfer_inner(
  given: Any, target: Any, source_model: nn.Module, inner: Inner
) -> tuple[Any, list[str]]:
  """Makes variables of one model those of the same model within another.

  Modules of the source after its last stage are left out where the model within
  has none of that name. Everything else is as in `transfer`.

  Args:
    given: variables of `source_model`, arrays.
    target: variables of the model around it, such as freshly drawn ones.
    source_model: model that the weights are for.
    inner: the model within.

  Returns:
    Variables with the shapes and dtypes of `target`; and lines that say what
    begins with the weights, what is new, and what is left out.

  Raises:
    UsageError: that names the first variables that do not fit, and how.
  """
  given, target = (
    traverse_util.flatten_dict(jax.device_get(tree), sep="/")
    for tree in (given, target)
  )
  within, around = {}, {}
  for path, array in target.items():
    collection, module, *rest = path.split("/")
    if module == inner.module:
      within["/".join((collection, *rest))] = array
    else:
      around[path] = np.asarray(array)
  last = getattr(source_model, "last_modules", _heads(source_model))
  unused = {_module(path) for path in given}.intersection(last)
  unused -= {_module(path) for path in within}
  given = {k: v for k, v in given.items() if _module(k) not in unused}
  variables, notes = transfer(
    *(traverse_util.unflatten_dict(x, sep="/") for x in (given, within)),
    source_model,
    create_model(inner.name, **inner.fields),
    f"config.model.{inner.module}, which is {inner.name}",
  )
  for path, array in traverse_util.flatten_dict(variables, sep="/").items():
    collection, rest = path.split("/", 1)
    around[f"{collection}/{inner.module}/{rest}"] = array
  new = ", ".join(sorted({_module(path) for path in target} - {inner.module}))
  lines = [f"They are those of {inner.module}; new: {new}"]
  if unused:
    lines.append(f"Left out of the weights: {', '.join(sorted(unused))}")
  return traverse_util.unflatten_dict(around, sep="/"), lines + notes


def transfer(
  given: Any,
  target: Any,
  source_model: nn.Module,
  model: nn.Module,
  field: str = "config.model",
) -> tuple[Any, list[str]]:
  """Makes variables of one model those of another.

  - A head that is missing, that is for another number of classes, or that the
    target does not have, is left as `target` has it.
  - What `model.adapt` can resize, such as relative tables for another window,
    is resized.
  - Everything else must have the same name and shape in both.

  Args:
    given: variables of `source_model`, arrays.
    target: variables of `model`, such as freshly drawn ones.
    source_model: model that the weights are for.
    model: model that they are to be for.
    field: what chooses the model, for errors.

  Returns:
    Variables with the shapes and dtypes of `target`, NumPy arrays; and a line
    for each kind of change.

  Raises:
    UsageError: that names the first variables that do not fit, and how.
  """
  given, target = (
    traverse_util.flatten_dict(jax.device_get(tree), sep="/")
    for tree in (given, target)
  )
  adapt = getattr(model, "adapt", lambda *_: None)
  both = source_model, model
  fresh = _other_head(
    *(
      {path: x for path, x in tree.items() if _is_head(path, both)}
      for tree in (given, target)
    )
  )
  problems = {
    path: f"{path} {given[path].shape} is unexpected"
    for path in given
    if path not in target and not (fresh and _is_head(path, both))
  }
  transferred, resized = {}, collections.Counter()
  for path, wanted in target.items():
    if fresh and _is_head(path, both):
      transferred[path] = wanted
      continue
    if path not in given:
      problems[path] = f"{path} {wanted.shape} is missing"
      continue
    array = given[path]
    # Equal shapes may hide that the offsets differ: the model knows.
    adapted = adapt(path, array, wanted.shape, source_model)
    if adapted is not None and adapted is not array:
      resized[len(array), len(adapted)] += 1
      array = adapted
    if array.shape != wanted.shape:
      problems[path] = f"{path} is {array.shape}, not {wanted.shape}"
      if "/relative_" in path and array.shape[1:] == wanted.shape[1:]:
        problems[path] += ", and tables of even windows are not resized"
    transferred[path] = np.asarray(array, wanted.dtype)
  if problems:
    # Parameters say more than the statistics that go with them.
    worst = sorted(
      problems, key=lambda path: (not path.startswith("params"), path)
    )
    named = [problems[path] for path in worst[:_MOST_NAMED]]
    more = len(problems) - len(named)
    raise UsageError(
      f"the weights do not fit {field}: "
      + "; ".join(named)
      + (f"; and {more} more" if more > 0 else "")
    )
  notes = [fresh] if fresh else []
  notes += [
    f"{number} relative tables are resized from {old} to {new} rows"
    for (old, new), number in resized.items()
  ]
  return traverse_util.unflatten_dict(transferred, sep="/"), notes


def _explained(init_from, error):
  reason = str(error).removeprefix("--workdir ")
  return UsageError(f"config.init_from is {init_from}: {reason}")


def _load_timm(config, inner):
  """Returns the model that weights of timm's fit, and its variables."""
  source = None if config.init_from == "timm" else config.init_from
  if inner is None:
    fields = config.model.to_dict()
    return pretrained.load_as_saved(fields.pop("name"), source, **fields)
  try:
    return pretrained.load_as_saved(inner.name, source, **inner.fields)
  except (RunError, ValueError) as error:
    raise UsageError(
      f"config.model.{inner.module} is {inner.name}: {error}"
    ) from error


def _is_head(path, models):
  """Says whether a variable is of a module that ends one of the models."""
  return any(_module(path) in _heads(model) for model in models)


def _heads(model):
  """Names the modules that end a model, by its attribute `head_modules`."""
  return getattr(model, "head_modules", ("classifier",))


def _module(path):
  """`params/stem/kernel` → `stem`."""
  return path.split("/")[1]


def _other_head(given, target):
  """Words how two heads differ, if nothing but their outputs does; else ""."""
  if given.keys() == target.keys():
    pairs = [(given[path].shape, target[path].shape) for path in target]
    if all(old == new for old, new in pairs) or any(
      old[:-1] != new[:-1] for old, new in pairs
    ):
      return ""
    path = next(
      path for path in target if given[path].shape != target[path].shape
    )
    old, new, module = (
      given[path].shape[-1],
      target[path].shape[-1],
      _module(path),
    )
    if module == "classifier":
      return f"The classifier is new: {new} classes in place of {old}"
    return f"{module} is new: {new} outputs in place of {old}"
  if not target:
    return "The weights' head is left out"
  return "The head is new: the weights have another, or none"
