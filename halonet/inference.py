"""Applies a trained model to single images: its answers, where it looks."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util
from PIL import Image

from halonet.compilation import keep_programs
from halonet.data.images import published_input
from halonet.errors import UsageError, unknown
from halonet.interop.pretrained import (
  PRETRAINED,
  Preprocessing,
  imagenet_classes,
  load_preprocessing,
  load_pretrained,
)
from halonet.parallel import make_mesh
from halonet.tasks.task import Task, get_task
from halonet.training.restore import restore_model


@dataclasses.dataclass(frozen=True)
class Predictor:
  """A model with its weights, and how images go in and answers come out.

  Attributes:
    model: the module.
    variables: its weights.
    prepare: function from an RGB image to the model's input, `[size, size, 3]`.
    task: words the answers, or finds them in the image.
    crop: share of the shorter side that the model sees, around the centre,
      unless the task finds its answers in the whole image.
  """

  model: nn.Module
  variables: Any
  prepare: Callable[[Image.Image], np.ndarray]
  task: Task
  crop: float = 1.0

  def predict(
    self, image: Image.Image, top: int, score: float = 0.0
  ) -> tuple[list[str], list[dict[str, Any]]]:
    """Returns the model's best `top` answers for an image, in words; and what
    it found in the image, as `Task.find` describes it, from `score` on."""
    outputs = self._apply(self.variables, self.prepare(image)[None])
    output = jax.tree.map(lambda x: np.asarray(x[0]), outputs)
    if not self.task.finds:
      return self.task.explain(output, top), []
    found = self.task.find(output, top, (image.height, image.width))
    found = [each for each in found if each["score"] >= score]
    answers = [
      f"{each['score']:7.2%}  {each['label']} at"
      f" {', '.join(f'{number:.0f}' for number in each['box'])}"
      for each in found
    ]
    return answers or [
      f"nothing found with a score of {score:g} or more"
    ], found

  @functools.cached_property
  def _apply(self):
    return _on_one_device(self.model.apply)

  def seen(self, image: Image.Image) -> tuple[int, int, int]:
    """Returns left, top and side of the square that the model sees."""
    side = max(1, round(min(image.size) * self.crop))
    left, top = ((length - side) // 2 for length in image.size)
    return left, top, side

  def last_attention(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Runs an image and returns what the last blocked attention layer does.

    Returns:
      The layer's weights, `[rows, columns, heads, side, side, window, window]`
      as `blocked_local_attention_weights` documents them; and its geometry:
      height and width of its map, block size, halo size, and the distance
      between its queries, in pixels of the map.

    Raises:
      UsageError: if the model has no attention in blocks.
    """
    _, reported = _on_one_device(
      functools.partial(self.model.apply, mutable=["attention"])
    )(self.variables, self.prepare(image)[None])
    layers = dict(reported.get("attention", {}))
    layers = traverse_util.flatten_dict(
      layers, is_leaf=lambda _, each: "weights" in each
    )
    if not layers:
      raise UsageError(
        "--attention: the model has no attention in blocks, whose picture it is"
      )
    last = layers[max(layers, key=_natural)]
    return np.asarray(last["weights"][0][0]), np.asarray(last["geometry"][0])


def of_run(workdir: str, step: int | None = None) -> Predictor:
  """Returns the model of a training run; errors as for `restore_model`."""
  mesh = make_mesh(jax.local_devices()[:1])  # One image at a time.
  run = restore_model(workdir, mesh, step)
  keep_programs(workdir, run.config.compilation_cache)
  return Predictor(
    run.model,
    run.variables,
    run.task.input,
    run.task,
    run.config.data.crop_fraction,
  )


def of_published(name: str, source: str | None = None) -> Predictor:
  """Returns a published model of ImageNet's classes.

  Raises:
    UsageError: if there is none of that name, or the weights do not fit.
  """
  keep_programs()
  model, variables, expected = load_published(name, source)
  task = get_task("classification")(None, {"labels": imagenet_classes()})
  return Predictor(
    model,
    variables,
    functools.partial(published_input, **dataclasses.asdict(expected)),
    task,
    expected.image_size / int(expected.image_size / expected.crop),
  )


def load_published(
  name: str, source: str | None = None
) -> tuple[nn.Module, dict[str, Any], Preprocessing]:
  """Loads what the options --model and --weights of a command name.

  Returns:
    The model, its variables, and how it expects images to be prepared.

  Raises:
    UsageError: if there is none of that name, or the weights do not fit.
  """
  if name not in PRETRAINED:
    raise UsageError(f"--model: {unknown('published model', name, PRETRAINED)}")
  try:
    model, variables = load_pretrained(name, source)
  except ValueError as error:
    raise UsageError(f"--weights: {error}") from None
  return model, variables, load_preprocessing(name, source)


def _natural(path):
  """Orders block2 before block10."""
  return [
    int(part) if part.isdigit() else part
    for part in re.split(r"(\d+)", "/".join(path))
  ]


def _on_one_device(function):
  """Compiles a function; its attention knows that no device shares it."""
  mesh = make_mesh(jax.local_devices()[:1])

  def call(*arguments):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*arguments)

  return jax.jit(call)
