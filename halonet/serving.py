"""Trained models as programs of their own, by `jax.export`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from halonet.data.images import normalisation
from halonet.inference import load_published
from halonet.interop.pretrained import imagenet_classes
from halonet.ops import dispatch
from halonet.parallel import make_mesh
from halonet.training.restore import restore_model

_UPRIGHT = "Turned upright by its EXIF orientation."


@dataclasses.dataclass(frozen=True)
class Network:
  """A model with its weights, from pixels to outputs.

  Attributes:
    apply: function from uint8 `[n, size, size, 3]` to outputs.
    description: what its user has to know, for JSON; `image_size` among it.
    anchors: of a detector, boxes that its outputs refer to, float32 `[n, 4]`.
  """

  apply: Callable[[jax.Array], Any]
  description: dict[str, Any]
  anchors: np.ndarray | None = None


def of_run(workdir: str, step: int | None = None) -> Network:
  """Returns the model of a training run; errors as for `restore_model`."""
  run = restore_model(workdir, make_mesh(jax.local_devices()[:1]), step)
  data = run.config.data
  description = {
    **run.task.metadata,
    "model": run.config.model.name,
    "step": int(run.step),
    "image_size": data.image_size,
    "crop": f"{_UPRIGHT} {run.task.input_words()}.",
  }
  apply = _from_pixels(
    run.model, run.variables, data.mean, data.std, data.image_dtype
  )
  anchors = None
  if hasattr(run.model, "anchors"):
    anchors = np.asarray(run.model.anchors(data.image_size, data.image_size))
  return Network(apply, description, anchors)


def of_published(name: str, source: str | None = None) -> Network:
  """Returns one of timm's models; errors as for `load_published`."""
  model, variables, expected = load_published(name, source)
  size = expected.image_size
  description = {
    "labels": imagenet_classes(),
    "model": name,
    "image_size": size,
    "crop": f"{_UPRIGHT} The shorter side resized to"
    f" {int(size / expected.crop)} pixels,"
    f" {expected.interpolation}; then the central square of {size}.",
  }
  apply = _from_pixels(model, variables, expected.mean, expected.std, "float32")
  return Network(apply, description)


def export(network: Network, platforms: Sequence[str]) -> bytes:
  """Lowers a network for any number of images.

  The attention takes a form without kernels, which every platform can run.

  Args:
    network: what to lower.
    platforms: names of JAX's platforms.

  Returns:
    What `jax.export.deserialize` reads.
  """
  size = network.description["image_size"]
  (number,) = jax_export.symbolic_shape("n")
  images = jax.ShapeDtypeStruct((number, size, size, 3), jnp.uint8)
  with dispatch.implementation("xla_chunked"):
    lower = jax_export.export(jax.jit(network.apply), platforms=platforms)
    return bytes(lower(images).serialize())


def _from_pixels(model, variables, mean, std, dtype):
  variables = jax.tree.map(np.asarray, variables)
  mean, scale = normalisation(mean, std)

  def apply(images):
    inputs = ((images.astype(jnp.float32) - mean) * scale).astype(dtype)
    return model.apply(variables, inputs.astype(jnp.float32))

  return apply
