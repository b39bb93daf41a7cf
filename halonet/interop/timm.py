"""Weights from and to timm: its state dicts, and our variables.

A state dict is a dict of numpy arrays by timm's names, in PyTorch's layouts.
Both directions are strict: every array is used once, every variable is filled,
every shape is checked.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from halonet.models.network import Network
from halonet.models.spec import NetworkSpec

Arrays = dict[str, np.ndarray]


class _Entry(NamedTuple):
  """How some of our variables make one array of timm's, and back."""

  paths: tuple[str, ...]
  to_timm: Callable[..., np.ndarray]
  from_timm: Callable[[np.ndarray], tuple[np.ndarray, ...]]


def from_timm(state_dict: Mapping[str, np.ndarray], model: Network) -> Any:
  """Turns a state dict of timm's into variables of the same model.

  Args:
    state_dict: arrays by timm's names.
    model: of `halonet.create_model`, with the same name and fields.

  Returns:
    `{"params": …, "batch_stats": …}`, numpy arrays of the given dtypes.

  Raises:
    ValueError: that lists the arrays that are missing, unexpected, or of the
      wrong shape; or says what of the model timm has no place for.
  """
  shapes = _flat_shapes(model)
  entries = _entries(model.spec, shapes)
  counters = {_counter(name) for name in entries}
  given = {k: v for k, v in state_dict.items() if k not in counters}
  problems = [f"missing: {name}" for name in entries if name not in given]
  problems += [f"unexpected: {name}" for name in given if name not in entries]
  flat = {}
  for name, entry in entries.items():
    if name not in given:
      continue
    zeros = [np.zeros(shapes[path], np.float32) for path in entry.paths]
    wanted = entry.to_timm(*zeros).shape
    array = np.asarray(given[name])
    if array.shape != wanted:
      problems.append(f"shape of {name}: {array.shape}, not {wanted}")
      continue
    flat |= dict(zip(entry.paths, entry.from_timm(array), strict=True))
  _raise_if("the weights do not fit the model", problems)
  return traverse_util.unflatten_dict(flat, sep="/")


def to_timm(variables: Any, model: Network) -> Arrays:
  """Turns variables of a model into timm's state dict: `from_timm`'s inverse.

  Args:
    variables: `{"params": …, "batch_stats": …}`; or gradients in their place.
    model: whose variables they are.

  Returns:
    Arrays by timm's names, with its counters of batches, zero.

  Raises:
    ValueError: that lists the variables that are missing, unexpected, or of
      the wrong shape; or says what of the model timm has no place for.
  """
  shapes = _flat_shapes(model)
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
  for name, entry in _entries(model.spec, shapes).items():
    arrays = (np.asarray(flat[path]) for path in entry.paths)
    # Contiguous, as files of tensors ask for.
    state_dict[name] = np.ascontiguousarray(entry.to_timm(*arrays))
    if _counter(name):
      state_dict[_counter(name)] = np.zeros((), np.int64)
  return state_dict


def _counter(name):
  """The counter beside a batch norm's variance; it counts PyTorch's batches.

  Nothing here needs it, nor anything at inference.
  """
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
  spec = dataclasses.replace(model.spec, dtype="float32")
  variables = jax.eval_shape(
    Network(spec).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
  )
  flat = traverse_util.flatten_dict(dict(variables), sep="/")
  return {path: leaf.shape for path, leaf in flat.items()}


def _entries(spec: NetworkSpec, shapes) -> dict[str, _Entry]:
  """timm's name → how it comes from ours, for a model of timm's family."""
  entries = {}

  def conv(ours, theirs):
    kernel = f"params/{ours}/kernel"
    if len(shapes[kernel]) == 2:  # A 1×1 convolution is a matrix here.
      entries[f"{theirs}.weight"] = _Entry(
        (kernel,), lambda x: x.T[..., None, None], lambda x: (x[..., 0, 0].T,)
      )
    else:
      entries[f"{theirs}.weight"] = _Entry(
        (kernel,),
        lambda x: x.transpose(3, 2, 0, 1),
        lambda x: (x.transpose(2, 3, 1, 0),),
      )

  def same(ours, theirs):
    entries[theirs] = _Entry((ours,), lambda x: x, lambda x: (x,))

  def norm(ours, theirs):
    same(f"params/{ours}/scale", f"{theirs}.weight")
    same(f"params/{ours}/bias", f"{theirs}.bias")
    same(f"batch_stats/{ours}/mean", f"{theirs}.running_mean")
    same(f"batch_stats/{ours}/var", f"{theirs}.running_var")

  def conv_norm(ours, theirs):
    conv(ours, f"{theirs}.conv")
    norm(f"{ours}_norm", f"{theirs}.bn")

  if spec.stem == "tiered":
    for number in (1, 2, 3):
      conv_norm(f"stem{number}", f"stem.conv{number}")
  else:
    conv_norm("stem", "stem.conv1" if spec.stem_pool else "stem")

  for number, stage in enumerate(spec.stages):
    for index, block in enumerate(stage):
      ours, theirs = block.name, f"stages.{number}.{index}"
      conv_norm(f"{ours}/reduce", f"{theirs}.conv1_1x1")
      conv_norm(f"{ours}/expand", f"{theirs}.conv3_1x1")
      if block.shortcut == "project":
        conv_norm(f"{ours}/shortcut", f"{theirs}.shortcut")
      if block.operator == "c":
        conv_norm(f"{ours}/conv", f"{theirs}.conv2_kxk")
        if spec.channel_attention == "se":
          for inner, outer in (("reduce", "fc1"), ("expand", "fc2")):
            conv(f"{ours}/se/{inner}", f"{theirs}.attn.{outer}")
            same(
              f"params/{ours}/se/{inner}/bias", f"{theirs}.attn.{outer}.bias"
            )
        elif spec.channel_attention == "eca":
          entries[f"{theirs}.attn.conv.weight"] = _Entry(
            (f"params/{ours}/eca/conv/kernel",),
            lambda x: x.transpose(2, 1, 0),
            lambda x: (x.transpose(2, 1, 0),),
          )
        continue
      attention = f"params/{ours}/attention"
      entries |= _attention_entries(
        block, attention, f"{theirs}.self_attn", shapes
      )
      for axis in ("height", "width"):
        same(
          f"{attention}/relative_{axis}",
          f"{theirs}.self_attn.pos_embed.{axis}_rel",
        )
      norm(f"{ours}/attention_norm", f"{theirs}.post_attn")

  if spec.df:
    conv_norm("final", "final_conv")
  entries["head.fc.weight"] = _Entry(
    ("params/classifier/kernel",), lambda x: x.T, lambda x: (x.T,)
  )
  same("params/classifier/bias", "head.fc.bias")
  used = {path for entry in entries.values() for path in entry.paths}
  _raise_if(
    "timm has no such model",
    [f"no place for {x}" for x in shapes.keys() - used],
  )
  return entries


def _attention_entries(block, ours, theirs, shapes):
  """The projections: timm joins them, in one order or another."""
  query, key, value = (f"{ours}/{x}/kernel" for x in ("query", "key", "value"))
  heads = block.heads

  def to_rows(x):  # [in, heads, d] → [heads, d, in]
    return x.transpose(1, 2, 0)

  def from_rows(x):
    return x.reshape(heads, -1, x.shape[-1]).transpose(2, 0, 1)

  def as_conv(rows):  # [heads, d, in] → [heads · d, in, 1, 1]
    return rows.reshape(-1, rows.shape[-1])[..., None, None]

  if block.operator == "g":  # All of q, all of k, all of v.
    sizes = [int(np.prod(shapes[path][1:])) for path in (query, key, value)]
    cuts = [sizes[0], sizes[0] + sizes[1]]
    return {
      f"{theirs}.qkv.weight": _Entry(
        (query, key, value),
        lambda *xs: np.concatenate([as_conv(to_rows(x)) for x in xs]),
        lambda x: tuple(from_rows(y) for y in np.split(x[..., 0, 0], cuts)),
      )
    }
  key_dim = shapes[key][2]

  def split_heads(x):  # Each head holds its k, then its v.
    rows = x[..., 0, 0].reshape(heads, -1, x.shape[1])
    return from_rows(rows[:, :key_dim]), from_rows(rows[:, key_dim:])

  return {
    f"{theirs}.q.weight": _Entry(
      (query,),
      lambda x: as_conv(to_rows(x)),
      lambda x: (from_rows(x[..., 0, 0]),),
    ),
    f"{theirs}.kv.weight": _Entry(
      (key, value),
      lambda k, v: as_conv(np.concatenate([to_rows(k), to_rows(v)], axis=1)),
      split_heads,
    ),
  }
