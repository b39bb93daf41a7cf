"""The training step under each implementation: one result, on eight devices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from halonet.models.layers import HaloAttention
from halonet.ops.choice import IMPLEMENTATIONS
from halonet.parallel import make_mesh
from halonet.training import config as config_lib
from halonet.training import optimizer as optimizer_lib
from halonet.training.state import TrainState
from halonet.training.step import make_train_step


class Tiny(nn.Module):
  """One attention layer and a classifier."""

  implementation: str
  spec = types.SimpleNamespace(num_classes=10)

  @nn.compact
  def __call__(self, x, train=False):
    self.variable("batch_stats", "none", jnp.zeros, (1,))
    x = nn.Dense(4, name="stem")(x)
    x = HaloAttention(
      heads=1,
      block_size=2,
      halo_size=1,
      implementation=self.implementation,
      name="attention",
    )(x)
    return nn.Dense(10, name="classifier")(x.mean((1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
def test_implementations_train_alike(parts):
  config = config_lib.load_config(
    "configs/digits.py",
    [
      "batch_size=16",
      "data.image_size=4",
      "optimizer.warmup_steps=0",
      "optimizer.learning_rate=1.0",
      f"accumulation_steps={parts}",
      "ema_decay=0",
    ],
  )
  rng = np.random.default_rng(0)
  batch = {
    "image": np.float32(rng.normal(size=(16, 4, 4, 3))),
    "label": np.int32(rng.integers(10, size=16)),
  }
  optimizer = optimizer_lib.make_optimizer(config)
  mesh = make_mesh()
  assert mesh.size == 8
  results = {}
  for implementation in IMPLEMENTATIONS[1:]:
    model = Tiny(implementation)
    variables = jax.jit(Tiny("xla").init)(jax.random.key(0), batch["image"][:1])
    state = TrainState(
      np.int32(0),
      **variables,
      opt_state=optimizer.init(variables["params"]),
      ema=None,
    )
    step = make_train_step(model, optimizer, config, mesh)
    state, metrics = step(state, batch)
    results[implementation] = state.params, metrics["gradient_norm"]
  assert results["xla"][1] > 0
  for result in results.values():
    jax.tree.map(
      lambda ours, theirs: np.testing.assert_allclose(
        ours, theirs, rtol=1e-4, atol=1e-6
      ),
      result,
      results["xla"],
    )
