"""What a network does beside its values: groups in training, memory."""

import functools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

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
  # A stage keeps what lies between its two blocks: four examples of 6×8
  # pixels with 4 channels, and of 3×4 pixels with 8.
  assert kept["block"] - kept["stage"] == 4 * (6 * 8 * 4 + 3 * 4 * 8)
  assert kept["block"] < kept["none"] / 3


@pytest.mark.parametrize("form", ["pallas_tpu", "pallas_gpu"])
def test_rematerialisation_runs_no_kernel_again(form):
  model = create(remat="block", attention_implementation=form)
  variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES[:1])

  def gradients(variables):
    _, back, _ = differentiate(variables["params"], model, variables)
    return back(jnp.ones(()))

  names = list(kernels_in_use(jax.make_jaxpr(gradients)(variables).jaxpr))
  assert names.count("halo_attention_forward") == 1
  assert len(names) > 1


def kernels_in_use(jaxpr):
  """Names of the kernels of which something is used, within calls too."""
  used = [*jaxpr.outvars, *(x for eq in jaxpr.eqns for x in eq.invars)]
  for equation in jaxpr.eqns:
    if equation.primitive.name != "pallas_call":
      for inner in core.jaxprs_in_params(equation.params):
        yield from kernels_in_use(inner)
    elif any(x is y for x in used for y in equation.outvars):
      yield equation.params["name"]


@pytest.mark.parametrize("method", [None, "features"])
@pytest.mark.parametrize(
  "images, words",
  [
    (
      jnp.ones((64, 64, 3)),
      "images must be [batch, height, width, channels], not [64, 64, 3]; add a"
      " batch axis with images[None]",
    ),
    (jnp.ones((64, 64)), "channels], not [64, 64]"),
    (jnp.ones((1, 64, 64, 3), jnp.uint8), "images has dtype uint8; it must be"),
  ],
)
def test_impossible_images_are_named(images, words, method):
  model = create()
  with pytest.raises(ValueError, match=re.escape(words)):
    model.init(jax.random.key(0), images, method=method)


def test_images_are_checked_without_checks_of_types():
  """As in a program that is no test."""
  script = """
import jax, jax.numpy as jnp, halonet
from halonet.layers.global_attention import GlobalAttention
from halonet.layers.halo import HaloAttention
from halonet.layers.per_pixel import PerPixelAttention
from halonet.layers.timm_halo import TimmHaloAttention
model = halonet.create_model("halonet_h0", depths=(1,), heads=(2,))
for layer, shape in (
  (model, (64, 64, 3)),
  (HaloAttention(2, 4, 1), (4, 4, 8)),
  (HaloAttention(2, 8.0, 1), (1, 4, 4, 8)),
  (TimmHaloAttention(2, 8, 1.0), (1, 4, 4, 8)),
  (PerPixelAttention(2, 3.0), (1, 4, 4, 8)),
  (GlobalAttention(2.0, 4), (1, 4, 4, 8)),
):
  try:
    layer.init(jax.random.key(0), jnp.ones(shape))
  except ValueError as error:
    print(error)
"""
  output = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, check=True
  ).stdout
  assert output.splitlines() == [
    "images must be [batch, height, width, channels], not [64, 64, 3]; add a"
    " batch axis with images[None]",
    "x must be [batch, height, width, channels], not [4, 4, 8]; add a batch"
    " axis with x[None]",
    "block_size is 8.0; it must be a whole number of at least 1",
    "halo_size is 1.0; it must be a whole number of at least 0",
    "window_size is 3.0; it must be a whole number of at least 1",
    "heads is 2.0; it must be a whole number of at least 1",
  ]
