"""Whole Slide-Swins against the authors' model; scripts/parity_slide.py."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import halonet
from halonet.layers.slide import merge
from tests.layers.slide_drawn import projected, run
from tests.models.slide_swin_drawn import CASES, GOLDEN, WHOLE, create, draw
from tests.ops.test_shifted import error


@pytest.mark.parametrize("case", CASES)
def test_answers_as_the_authors_model(case):
  golden = np.load(GOLDEN)
  name, side, fields, _ = CASES[case]
  with jax.enable_x64():
    model = create(name, fields)
    variables, images, weight = draw(model, side)
    params = variables["params"]
    logits, *gradients = run(model, params, images, weight)
    merged = create(name, fields | {"slide_shifts": "merged"})
    other = jax.jit(merged.apply)({"params": merge(params)}, images)
    for actual in (logits, other):
      assert error(actual, golden[f"{case}/output"]) <= 1e-12
    assert error(projected(*gradients), golden[f"{case}/gradient"]) <= 1e-12


def test_the_authors_count():
  """Their Slide-Swin-T, whose window of 56 is cut to the maps, and which counts
  the one-hot kernels, has 28,348,834 parameters."""
  model = halonet.create_model("slide_swin_tiny", **WHOLE)
  images = jnp.zeros((1, 224, 224, 3))
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  ours = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
  one_hot = 4 * 81 * 32  # Blocks, numbers for each channel, channels of a head.
  assert ours + one_hot == 28_348_834
