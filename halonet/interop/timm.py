"""Conversion between timm's state dicts and our variables.

A state dict is a dict of numpy arrays by timm's names, in PyTorch's layouts.
Both directions are strict: every array is used once, every variable is filled,
every shape is checked. A model's `timm_entries` relates the two.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

Arrays = dict[str, np.ndarray]


def from_timm(state_dict: Mapping[str, np.ndarray], model: nn.Module) -> Any:
  """Turns a state dict of timm's into variables of the same model.

  Args:
    state_dict: arrays by timm's names.
    model: model of `create_model`, with the same name and fields.

  Returns:
    `{"params": …, "batch_stats": …}`, numpy arrays of the given dtypes; models
    without batch norms have no `batch_stats`.

  Raises:
    ValueError: lists the arrays that are missing, unexpected, or of the wrong
      shape; or says what timm has no place for.
  """
  shapes = _flat_shapes(model)
  entries = _entries(model, shapes)
  counters = {_counter(name) for name in entries}
  given = {k: v for k, v in state_dict.items() if k not in counters}
  problems = [f"missing: {name}" for name in entries if name not in given]
  problems += [f"unexpected: {name}" for name in given if name not in entries]
  flat = {}
  for name, entry in entries.items():
    if name not in given:
      continue
    zeros = [np.zeros(shapes[path], np.float32) for path in entry.paths]
    wanted = entry.export(*zeros).shape
    array = np.asarray(given[name])
    if array.shape != wanted:
      problems.append(f"shape of {name}: {array.shape}, not {wanted}")
      continue
    flat |= dict(zip(entry.paths, entry.read(array), strict=True))
  _raise_if("the weights do not fit the model", problems)
  return traverse_util.unflatten_dict(flat, sep="/")


def to_timm(variables: Any, model: nn.Module) -> Arrays:
  """Turns variables of a model into timm's state dict; inverse of `from_timm`.

  Args:
    variables: `{"params": …, "batch_stats": …}`; or gradients in their place.
    model: model of the variables.

  Returns:
    Arrays by timm's names, with its counters of batches, zero.

  Raises:
    ValueError: lists the variables that are missing, unexpected, or of the
      wrong shape; or says what timm has no place for.
  """
  shapes = _flat_shapes(model)
  entries = _entries(model, shapes)
  flat = traverse_util.flatten_dict(dict(variables), sep="/")
  problems = [f"missing: {path}" for path in shapes if path not in flat]
  problems += [f"unexpected: {path}" for path in flat if path not in shapes]
  problems += [
    f"shape of {path}: {np.shape(flat[path])}, not {shape}"
    for path, shape in shapes.items()
    if path in flat and np.shape(flat[path]) != shape
  ]
  _raise_if("the variables do not fit the model", problems)
  state_dict = {}
  for name, entry in entries.items():
    arrays = (np.asarray(flat[path]) for path in entry.paths)
    # Contiguous, as files of tensors ask for.
    state_dict[name] = np.ascontiguousarray(entry.export(*arrays))
    if _counter(name):
      state_dict[_counter(name)] = np.zeros((), np.int64)
  return state_dict


def _counter(name):
  """Names PyTorch's counter of batches, which no inference needs."""
  if name.endswith("running_var"):
    return name.replace("running_var", "num_batches_tracked")
  return None


def _raise_if(what, problems):
  if problems:
    raise ValueError(
      f"{what} ({len(problems)} problems): "
      + "; ".join(problems[:20])
      + ("; …" if len(problems) > 20 else "")
    )


def _flat_shapes(model):
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  with jax.enable_x64(True):  # The computation may be in float64.
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
  flat = traverse_util.flatten_dict(dict(variables), sep="/")
  return {path: leaf.shape for path, leaf in flat.items()}


def _entries(model, shapes):
  """Returns how each of timm's arrays relates to ours, by timm's names."""
  if not hasattr(model, "timm_entries"):
    raise ValueError(f"timm has no such model: {type(model).__name__}")
  entries = model.timm_entries(shapes)
  used = {path for entry in entries.values() for path in entry.paths}
  _raise_if(
    "timm has no such model",
    [f"no place for {x}" for x in shapes.keys() - used],
  )
  return entries
