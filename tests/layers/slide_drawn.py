"""Weights of the authors' slide attention, drawn, and their place in ours.

`scripts/parity_slide.py` gives them to the authors' layer, and the tests
compare ours with its stored answers.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from halonet.layers.layouts import Layout
from halonet.layers.slide import SlideAttention
from halonet.ops.shifted import fixed_shifts

GOLDEN = pathlib.Path(__file__).parent / "golden/slide.npz"
# Height, width, channels, heads, window.
CASES = ((5, 4, 8, 2, 3), (3, 6, 12, 3, 5))


def key(case, what):
  return f"{'_'.join(map(str, case))}/{what}"


def draw(case):
  """Returns the shapes of the authors' parameters, values for them, an input
  map and a weight of its output, in float64."""
  height, width, channels, heads, window = case
  dim, shifts = channels // heads, window**2
  convolution = {
    "weight": (shifts * dim, 1, window, window),
    "bias": (shifts * dim,),
  }
  shapes = {
    "relative_position_bias_table": (1, heads, 1, shifts, 1, 1),
    "qkv.weight": (3 * channels, channels),
    "qkv.bias": (3 * channels,),
  }
  for name in ("dep_conv", "dep_conv1"):
    shapes |= {f"{name}.{k}": v for k, v in convolution.items()}
  rng = np.random.default_rng(0)
  state = {name: 0.5 * rng.normal(size=s) for name, s in shapes.items()}
  state["dep_conv.weight"] = frozen(window, dim)
  x, weight = rng.normal(size=(2, 2, height, width, channels))
  return shapes, state, x, weight


def frozen(window, dim):
  """Returns the authors' one-hot kernel."""
  return their_kernel(fixed_shifts(window, dim)).astype(np.float64)


def their_kernel(kernel):
  """`[y, x, d, shifts]` → `[d · shifts, 1, y, x]`: output channel d·shifts + i
  makes shift i of channel d."""
  size = kernel.shape[0]
  return kernel.reshape(size, size, -1).transpose(2, 0, 1)[:, None]


def entries(ours, theirs, shapes):
  """Relates our parameters, with deformed shifts, to the authors' names.

  Their projection has, for each head, the channels of the query, then those of
  the key and of the value.
  """
  ours = f"params/{ours}"
  window, _, dim, shifts = shapes[f"{ours}/deformed_shift/kernel"]
  channels, heads, _ = shapes[f"{ours}/query/kernel"]
  both = {
    "qkv.weight": Layout(
      tuple(f"{ours}/{name}/kernel" for name in ("query", "key", "value")),
      lambda *x: np.stack(x, axis=2).reshape(channels, -1).T,
      lambda x: tuple(np.moveaxis(x.T.reshape(channels, heads, 3, dim), 2, 0)),
    ),
    "qkv.bias": Layout(
      tuple(f"{ours}/{name}/bias" for name in ("query", "key", "value")),
      lambda *x: np.stack(x, axis=1).ravel(),
      lambda x: tuple(np.moveaxis(x.reshape(heads, 3, dim), 1, 0)),
    ),
    "relative_position_bias_table": Layout(
      (f"{ours}/offset_table",),
      lambda x: x.reshape(1, heads, 1, shifts, 1, 1),
      lambda x: (x.reshape(heads, shifts),),
    ),
    "dep_conv1.weight": Layout(
      (f"{ours}/deformed_shift/kernel",),
      their_kernel,
      lambda x: (
        x[:, 0].transpose(1, 2, 0).reshape(window, window, dim, shifts),
      ),
    ),
  }
  for name, path in (
    ("dep_conv.bias", "fixed_bias"),
    ("dep_conv1.bias", "deformed_shift/bias"),
  ):
    both[name] = Layout(
      (f"{ours}/{path}",),
      np.ravel,
      lambda x: (x.reshape(dim, shifts),),
    )
  return {f"{theirs}.{name}": each for name, each in both.items()}


def shapes_of(tree):
  flat = traverse_util.flatten_dict(dict(tree), sep="/")
  return {path: each.shape for path, each in flat.items()}


def read(relations, state):
  """Returns our variables, or gradients, of the authors' arrays by name."""
  flat = {}
  for name, each in relations.items():
    flat |= dict(zip(each.paths, each.read(state[name]), strict=True))
  return traverse_util.unflatten_dict(flat, sep="/")


def export(relations, variables):
  """Returns the authors' arrays by name; inverse of `read`."""
  flat = traverse_util.flatten_dict(variables, sep="/")
  return {
    name: each.export(*(flat[path] for path in each.paths))
    for name, each in relations.items()
  }


def from_authors(state, case):
  """Returns our parameters of a layer of the authors'."""
  *size, channels, heads, window = case
  shapes = jax.eval_shape(
    SlideAttention(heads, window).init,
    jax.random.key(0),
    jnp.zeros((1, *size, channels)),
  )
  shapes = shapes_of({"params": {"layer": shapes["params"]}})
  state = {f"layer.{name}": each for name, each in state.items()}
  return read(entries("layer", "layer", shapes), state)["params"]["layer"]


def run(layer, params, x, weight):
  """Returns the output, and the gradients of its weighted sum with respect to
  the parameters and the input."""

  def total(params, x):
    output = layer.apply({"params": params}, x)
    return (output * weight).sum(), output

  params = jax.tree.map(jnp.asarray, params)
  (_, output), gradients = jax.jit(
    jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
  )(params, jnp.asarray(x))
  return output, *gradients


def projected(*gradients):
  """Returns products of gradients with drawn directions, one for each array."""
  rng = np.random.default_rng(1)
  arrays = jax.tree.leaves(gradients)
  return np.array([(rng.normal(size=x.shape) * x).sum() for x in arrays])
