"""Weights of the authors' slide attention, drawn, and their place in ours.

`scripts/parity_slide.py` gives them to the authors' layer, and the tests
compare ours with its stored answers.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

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
  # Theirs, frozen: output channel d·shifts + i reads place i of channel d.
  state["dep_conv.weight"] = fixed_shifts(window, dim)
  state["dep_conv.weight"] = their_kernel(state["dep_conv.weight"])
  x, weight = rng.normal(size=(2, 2, height, width, channels))
  return shapes, state, x, weight


def their_kernel(kernel):
  """`[y, x, d, shifts]` → `[d · shifts, 1, y, x]`."""
  size = kernel.shape[0]
  kernel = kernel.reshape(size, size, -1).transpose(2, 0, 1)[:, None]
  return kernel.astype(np.float64)


def from_authors(state, case):
  """Returns our parameters, with deformed shifts, of the authors'.

  Their projection has, for each head, the channels of the query, then those of
  the key and of the value.
  """
  _, _, channels, heads, window = case
  dim, shifts = channels // heads, window**2
  weight = state["qkv.weight"].T.reshape(channels, heads, 3, dim)
  bias = state["qkv.bias"].reshape(heads, 3, dim)
  params = {
    name: {"kernel": weight[:, :, part], "bias": bias[:, part]}
    for part, name in enumerate(("query", "key", "value"))
  }
  learned = state["dep_conv1.weight"][:, 0].transpose(1, 2, 0)
  return params | {
    "offset_table": state["relative_position_bias_table"].reshape(
      heads, shifts
    ),
    "fixed_bias": state["dep_conv.bias"].reshape(dim, shifts),
    "deformed_shift": {
      "kernel": learned.reshape(window, window, dim, shifts),
      "bias": state["dep_conv1.bias"].reshape(dim, shifts),
    },
  }


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
