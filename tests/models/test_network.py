"""What a network does beside its values: groups in training, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import halonet

IMAGES = jax.random.normal(jax.random.key(1), (4, 24, 32, 3))


def create(**fields):
  return halonet.create_model(
    "halonet_h0",
    **dict(
      base_width=8,
      depths=(2,),
      heads=(2,),
      operators=("conv,halo",),
      num_classes=5,
      df=16,
      zero_init_residual=False,
    )
    | fields,
  )


def train(model, variables, images=IMAGES):
  """Logits and updated statistics."""
  logits, updates = model.apply(
    variables,
    images,
    train=True,
    mutable=["batch_stats"],
    rngs={"dropout": jax.random.key(3)},
  )
  return logits, updates["batch_stats"]


def differentiate(params, model, variables):
  """The backward pass, whose leaves are what the forward pass keeps for it."""

  def loss(params):
    logits, stats = train(model, variables | {"params": params})
    return (logits**2).sum(), (logits, stats)

  return jax.vjp(loss, params, has_aux=True)


def test_groups_are_batches_of_their_own():
  grouped = create(batch_norm_group=2, batch_norm_momentum=0.75)
  variables = jax.jit(grouped.init)(jax.random.key(0), IMAGES[:1])
  logits, stats = jax.jit(functools.partial(train, grouped))(variables)
  alone = jax.jit(functools.partial(train, create(batch_norm_momentum=0.0)))
  halves = [alone(variables, half) for half in (IMAGES[:2], IMAGES[2:])]
  expected = np.concatenate([half[0] for half in halves])
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
  jax.tree.map(
    lambda new, old, one, other: np.testing.assert_allclose(
      new, 0.75 * old + 0.25 * (one + other) / 2, rtol=1e-4, atol=1e-5
    ),
    stats,
    variables["batch_stats"],
    *(half[1] for half in halves),
  )


@pytest.fixture(scope="module")
def plain():
  """Variables, gradients and training outputs without rematerialisation."""
  model = create(batch_norm_group=2, drop_path=0.3, dropout=0.2)
  variables = jax.jit(model.init)(jax.random.key(0), IMAGES[:1])
  return variables, compute(model, variables)


def compute(model, variables):
  """Gradients, training outputs, and features with attention weights."""

  @jax.jit
  def everything(variables):
    loss, back, outputs = differentiate(variables["params"], model, variables)
    features = model.apply(
      variables, IMAGES, method="features", mutable=["attention"]
    )
    return back(jnp.ones_like(loss)), outputs, features

  return everything(variables)


@pytest.mark.parametrize("remat", ["stage", "block"])
def test_rematerialisation_changes_no_value(plain, remat):
  variables, expected = plain
  model = create(batch_norm_group=2, drop_path=0.3, dropout=0.2, remat=remat)
  drawn = jax.eval_shape(model.init, jax.random.key(0), IMAGES[:1])
  assert jax.tree.structure(drawn) == jax.tree.structure(variables)
  actual = compute(model, variables)
  assert actual[2][1]["attention"]["stage1_block2"]
  jax.tree.map(
    # Relative to the largest: some gradients are zero but for rounding.
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-4, atol=1e-4 * max(1, np.abs(b).max())
    ),
    actual,
    expected,
  )


def test_rematerialisation_keeps_what_it_says():
  kept = {}
  for remat in ("none", "stage", "block"):
    model = create(remat=remat, depths=(2, 2), heads=(2, 2))
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES[:1])
    _, back, _ = jax.eval_shape(
      lambda variables, model=model: differentiate(
        variables["params"], model, variables
      ),
      variables,
    )
    kept[remat] = sum(leaf.size for leaf in jax.tree.leaves(back))
  # Of each stage, what lies between its two blocks: four examples of 6×8
  # pixels with 4 channels, and of 3×4 pixels with 8.
  assert kept["block"] - kept["stage"] == 4 * (6 * 8 * 4 + 3 * 4 * 8)
  assert kept["block"] < kept["none"] / 3
