"""The classifier: a product whose rounding is smaller than XLA's own."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from halonet.layers.classifier import classifier


@pytest.mark.parametrize("batch", [(1,), (2,), (33,), (2, 3)])
@pytest.mark.parametrize("channels", [24, 128, 200, 1280, 2048])
def test_logits_and_gradients_are_those_of_float64(batch, channels):
  rng = np.random.default_rng(channels)
  # Features behind a ReLU have no sign, and so large sums.
  x = abs(rng.normal(size=(*batch, channels))).astype(np.float32)
  weights = rng.normal(size=(*batch, 50)).astype(np.float32)
  layer = classifier(50, nn.initializers.normal(0.01))
  params = layer.init(jax.random.key(0), x)
  kernel = np.float64(params["params"]["kernel"])

  def loss(params, x):
    return (layer.apply(params, x) * weights).sum()

  logits = jax.jit(layer.apply)(params, x)
  gradients, to_x = jax.jit(jax.grad(loss, (0, 1)))(params, x)
  flat, weights = x.reshape(-1, channels), weights.reshape(-1, 50)
  for actual, expected in (
    (logits, x.astype(float) @ kernel),
    (gradients["params"]["kernel"], flat.T.astype(float) @ weights),
    (gradients["params"]["bias"], weights.sum(0, dtype=float)),
    (to_x, (weights @ kernel.T).reshape(x.shape)),
  ):
    distance = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    # One sum of 2,048 terms in a row would be at 4e-7, of one image at 8e-7.
    assert distance < 3e-7
