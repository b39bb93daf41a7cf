"""Slide-Swins with drawn weights, and their place in the authors' model.

`scripts/parity_slide.py` gives them to the authors' model, and the tests
compare ours with its stored answers.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import halonet
from halonet.models.transformer import Transformer
from tests.layers import slide_drawn

GOLDEN = pathlib.Path(__file__).parent / "golden/slide_swin.npz"
NARROW = dict(
  depths=(1, 2, 1),
  widths=(8, 16, 32),
  heads=(1, 2, 4),
  operators=("slide", "window"),
  num_classes=5,
)
# Name, side of the images, fields of ours, and the authors' window, which they
# cut to the map.
CASES = {
  "narrow, windows of 3": (
    "slide_swin_tiny",
    48,
    NARROW | dict(window_size=3),
    3,
  ),
  "narrow, whole maps": (
    "slide_swin_tiny",
    48,
    NARROW | dict(stage_windows=(12, 6, 3)),
    56,
  ),
}
WHOLE = dict(stage_windows=(7, 7, 14, 7))


def create(name, fields):
  return halonet.create_model(name, dtype="float64", **fields)


def draw(model, side, images=2):
  """Returns variables, images and a weight of the logits, in float64."""
  shape = images, side, side, 3
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
  rng = np.random.default_rng(0)

  def value(path, leaf):
    drawn = rng.normal(size=leaf.shape)
    if path[-1].key == "scale":
      return 1 + drawn / 10
    if path[-1].key == "kernel":
      return drawn / leaf.shape[0] ** 0.5
    return drawn / 10

  variables = jax.tree_util.tree_map_with_path(value, dict(shapes))
  weight = rng.normal(size=(images, model.spec.num_classes))
  return variables, rng.normal(size=shape), weight


def entries(model, variables):
  """Relates variables to the authors' names: Swin's of timm, but for slide
  attention, the classifier, and mergings at the end of stages."""
  spec = model.spec
  swin = dataclasses.replace(spec, operators=("window",))
  shapes = jax.eval_shape(
    Transformer(swin).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
  )
  relations = Transformer(swin).timm_entries(slide_drawn.shapes_of(shapes))
  shapes = slide_drawn.shapes_of(variables)
  for block in spec.blocks:
    if block.operator != "slide":
      continue
    theirs = f"layers.{block.stage}.blocks.{block.index}.attn"
    del relations[f"{theirs}.relative_position_bias_table"]
    relations |= slide_drawn.entries(f"{block.name}/attention", theirs, shapes)

  def name(theirs):
    theirs = theirs.replace("head.fc.", "head.")
    for stage in range(1, len(spec.depths)):
      theirs = theirs.replace(
        f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample"
      )
    return theirs

  return {name(theirs): each for theirs, each in relations.items()}
