"""SASA's models against the paper's tables."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import halonet
from halonet.cost import model as model_cost
from halonet.layers.attention_stem import AttentionStem
from halonet.training.optimizer import is_decayed
from tests.models.test_parameter_counts import OTHERS, abstract_variables

# Parameters in millions, and operations of one image of 224 pixels in billions.
TABLE_1 = {
  "resnet26": (13.7, 4.7),
  "resnet38": (19.6, 6.5),
  "resnet50": (25.6, 8.2),
  "sasa_resnet26": (10.3, 4.5),
  "sasa_resnet38": (14.1, 5.7),
  "sasa_resnet50": (18.0, 7.0),
  "sasa_resnet26_full": (10.3, 4.7),
  "sasa_resnet38_full": (14.1, 6.0),
  "sasa_resnet50_full": (18.0, 7.2),
}
# Tables 3 and 6.
MILLIONS = {
  "sasa_resnet50_stages234": 18.1,
  "sasa_resnet50_stages34": 18.5,
  "sasa_resnet50_stages4": 20.8,
  "sasa_resnet50_stages1": 25.5,
  "sasa_resnet50_stages12": 25.0,
  "sasa_resnet50_stages123": 22.7,
  "sasa_resnet50_no_content": 16.7,
} | {name: figures[0] for name, figures in TABLE_1.items()}
# Theirs are 14.17, 25.09 and 16.76, as if the paper had cut them off; exact
# counts are in tests/models/test_parameter_counts.py.
CUT = {
  "sasa_resnet38",
  "sasa_resnet38_full",
  "sasa_resnet50_stages12",
  "sasa_resnet50_no_content",
}


@pytest.mark.parametrize("name", MILLIONS)
def test_parameters_are_those_of_the_tables(name):
  tenths = OTHERS[name] / 1e5
  shown = math.floor(tenths) if name in CUT else round(tenths)
  assert shown / 10 == MILLIONS[name]


@pytest.mark.parametrize("name", TABLE_1)
def test_operations_are_those_of_table_1(name):
  """Within 3 per cent, by the paper's way to count, as far as we can tell it;
  by ours, of what is really computed, within 4."""
  model = halonet.create_model(name)
  spec, counts = model.spec, model_cost.count(model, 224)
  flops = counts.total.flops
  assert flops / 1e9 == pytest.approx(TABLE_1[name][1], rel=0.04)
  # The paper's seem to include what lies on the padding of convolutions.
  kinds = counts.by("kind")
  if spec.stem == "conv7":
    flops += 2 * 49 * 3 * spec.base_width * 112**2
    flops -= kinds["7×7 convolutions"].flops
  if "conv" in spec.operators:
    side = 224 // 4
    for stage in spec.stages:
      side //= stage[0].stride
      flops += sum(2 * 9 * (block.width * side) ** 2 for block in stage)
    flops -= kinds["3×3 convolutions"].flops
  if spec.stem == "attention":
    # The paper's seem to be of four products with the image, mixed afterwards;
    # ours mixes the matrices.
    flops += (AttentionStem.MIXTURES - 1) * 2 * 3 * spec.base_width * 224**2
    flops += AttentionStem.MIXTURES * 2 * spec.base_width * 224**2
  assert flops / 1e9 == pytest.approx(TABLE_1[name][1], rel=0.03)


def test_the_attention_costs_what_the_window_holds():
  """4 k² c a pixel, as table 1 of HaloNet's paper says."""
  least, most = (
    model_cost.count(
      halonet.create_model(
        "sasa_resnet26", window_size=size, depths=(1,), heads=(8,)
      ),
      64,
    ).by("kind")
    for size in (7, 11)
  )
  pixels, channels = 16 * 16, 64
  for size, kinds in ((7, least), (11, most)):
    keys = size**2
    # A sum over one head has a term less to add than to multiply.
    assert kinds["attention logits"].flops == pytest.approx(
      pixels * keys * (2 * channels - 8), abs=100
    )
    # With every row of the window all that there was is scaled once more.
    assert kinds["attention values"].flops == pytest.approx(
      pixels * (keys * 2 * channels + size * channels), abs=100
    )


def narrow(**fields):
  return halonet.create_model(
    "sasa_resnet26",
    **dict(
      base_width=16,
      depths=(1, 1),
      heads=(2, 2),
      window_size=3,
      num_classes=5,
      zero_init_residual=False,
    )
    | fields,
  )


@pytest.mark.parametrize(
  "fields",
  [
    dict(content=False),
    dict(operators=("per_pixel", "halo"), block_size=4, halo_size=1),
    dict(stem="attention"),
  ],
  ids=str,
)
def test_the_implementation_changes_nothing(fields):
  images = jax.random.normal(jax.random.key(0), (2, 37, 50, 3))
  model = narrow(**fields)
  variables = jax.jit(model.init)(jax.random.key(1), images[:1])

  def loss(implementation, params):
    logits = narrow(**fields, attention_implementation=implementation).apply(
      variables | {"params": params}, images
    )
    return (logits**2).sum(), logits

  results = [
    jax.jit(jax.value_and_grad(functools.partial(loss, name), has_aux=True))(
      variables["params"]
    )
    for name in ("direct", "auto")
  ]
  (_, direct), gradients = results[0]
  assert direct.shape == (2, 5)
  np.testing.assert_allclose(direct, results[1][0][1], rtol=1e-4, atol=1e-5)
  scale = max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
  for one, other in zip(
    *map(jax.tree.leaves, (gradients, results[1][1])), strict=True
  ):
    np.testing.assert_allclose(one, other, atol=1e-5 * scale)
    assert (one != 0).any()


@pytest.mark.parametrize("stem", ["attention", "attention_linear"])
def test_the_matrices_of_the_stem_decay(stem):
  params = abstract_variables(narrow(stem=stem))["params"]["stem"]
  decayed = is_decayed(params)
  assert all(decayed[name]["kernel"] for name in ("query", "key", "value"))


def test_a_map_that_moves_by_the_stride_moves_the_features():
  """The whole network's: away from the border nothing else changes."""
  model = narrow(stem="attention")
  images = jax.random.normal(jax.random.key(0), (1, 96, 96, 3))
  variables = jax.jit(model.init)(jax.random.key(1), images)
  features = jax.jit(functools.partial(model.apply, method="features"))
  before = features(variables, images)["stage2"]
  moved = features(variables, jnp.roll(images, (8, 16), (1, 2)))["stage2"]
  np.testing.assert_allclose(
    moved[:, 4:-4, 4:-4],
    jnp.roll(before, (1, 2), (1, 2))[:, 4:-4, 4:-4],
    atol=1e-4,
  )


@pytest.mark.parametrize(
  "fields, words",
  [
    (dict(window_size=0), "window_size is 0; it must be at least 1"),
    (dict(position="polar"), "position: there is no position polar"),
    (dict(content=False, position="none"), "nothing is left to attend by"),
    (dict(stem="attention", base_width=18), "ask for a multiple of 4"),
    (
      dict(operators=("halo",), attention_implementation="direct"),
      "window_size.*belongs to operator per_pixel",
    ),
    (dict(heads=(16, 2)), "stage1_block1: heads is 16, which does not divide"),
  ],
)
def test_impossible_fields_are_named(fields, words):
  with pytest.raises(ValueError, match=words):
    narrow(**fields)
