"""Costs of models, against XLA, real parameters and counts by hand."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import pytest

import halonet
from halonet.cost import model as model_cost
from halonet.models.network import Network
from halonet.models.registry import get_entry

# One or two small blocks of every kind that a registered model has.
SMALL = dict(depths=(1, 2), heads=(2, 2), num_classes=10, base_width=16)
SPECS = {
  "halonet_h4": dict(size=33, df=24, base_width=8),
  "halonet_h1_timm": dict(size=28, base_width=8),
  "halo2botnet50ts_256": dict(size=64, operators=("h", "cg"), base_width=8),
  "eca_halonext26ts": dict(size=32, operators=("c", "ch")),
  "haloregnetz_b": dict(size=32, operators=("c", "h"), out_widths=(16, 32)),
  "resnet50_se_silu": dict(size=33, dtype="bfloat16"),
  "sasa_resnet26_full": dict(size=33, window_size=3),
  "sasa_resnet50_no_content": dict(size=33, operators=("p", "c")),
}


def small(name):
  fields = SMALL | SPECS[name]
  size = fields.pop("size")
  return halonet.create_model(name, **fields), size


def lower(model, size):
  if "p" in "".join(model.spec.operators):
    # As it is counted. XLA counts what a loop does once: here there is none.
    spec = dataclasses.replace(model.spec, attention_implementation="direct")
    with pytest.MonkeyPatch.context() as patch:
      scan = functools.partial(jax.lax.scan, unroll=True)
      patch.setattr("halonet.ops.forms.direct.lax.scan", scan)
      return lowered_as_it_is(Network(spec), size)
  return lowered_as_it_is(model, size)


def lowered_as_it_is(model, size):
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  return variables, jax.jit(model.apply).lower(variables, images)


@pytest.mark.parametrize("name", SPECS)
def test_parts_sum_to_the_program_and_to_the_parameters(name):
  model, size = small(name)
  counts = model_cost.count(model.spec, size)
  variables, lowered = lower(model, size)
  analysis = lowered.cost_analysis()
  assert counts.flops == analysis["flops"] < 2**24
  assert counts.total.transcendentals == analysis["transcendentals"]
  leaves = jax.tree.leaves(variables["params"])
  assert counts.parameters == sum(math.prod(leaf.shape) for leaf in leaves)
  for attribute in ("stage", "kind", "layer"):
    sums = counts.by(attribute).values()
    assert sum(sums, model_cost.Cost()) == counts.total
  assert list(counts.by("stage")) == ["stem", "stage1", "stage2", "head"]


def test_a_block_by_hand():
  # Stage 1: maps of 16×16, 2×2 blocks; 16 channels in 2 heads.
  spec = halonet.create_model("halonet_h1", **SMALL | {"depths": (1, 1)}).spec
  counts = model_cost.count(spec, 64)
  kinds = {}
  for part in counts.parts:
    if part.stage == "stage1":
      kinds[part.kind] = kinds.get(part.kind, model_cost.Cost()) + part.cost
  pixels, neighbourhoods = 16 * 16, 2 * 2 * 14**2
  assert kinds["projections to q, k, v"].flops == 2 * pixels * 3 * 16 * 16
  assert kinds["projections to q, k, v"].parameters == 3 * 16 * 16
  assert kinds["projections to q, k, v"].activations == 3 * pixels * 16
  assert kinds["attention logits"].flops == 2 * pixels * 14**2 * 16
  assert kinds["attention values"].flops == 2 * pixels * 14**2 * 16
  assert kinds["relative positions"].parameters == 2 * 21 * 4
  assert kinds["relative positions"].flops == pixels * 2 * (
    2 * 28 * 4 + 2 * 14**2 * 28
  )
  assert kinds["attention values"].attention_bytes == 4 * neighbourhoods * 16
  assert kinds["attention logits"].attention_bytes == 4 * (
    neighbourhoods * 16 + pixels * 2 * 14**2
  )
  assert kinds["relative positions"].attention_bytes == (
    4 * neighbourhoods * 2 * 28
  )
  # Reduce, expand and shortcut; a scale and a bias for each of four norms.
  assert kinds["1×1 convolutions"].flops == 2 * pixels * 3 * 16 * 16
  assert kinds["norms"].parameters == 4 * 2 * 16
  assert (
    counts.attention_bytes
    > counts.largest_attention_bytes
    == sum(cost.attention_bytes for cost in kinds.values())
  )


def test_published_operations_of_resnet50():
  model = halonet.create_model("resnet50")
  counts = model_cost.count(model.spec, 224)
  assert counts.parameters == 25_557_032
  kinds = counts.by("kind")
  # 4.09 G multiply-adds in convolutions and the classifier, as is well known;
  # that includes taps on the padding, which do nothing.
  products = sum(
    kinds[kind].flops
    for kind in (
      "7×7 convolutions",
      "3×3 convolutions",
      "1×1 convolutions",
      "classifier",
    )
  )
  assert 0.95 * 2 * 4.09e9 < products < 2 * 4.09e9
  assert counts.attention_bytes == 0


def test_dtype_size_and_rematerialisation():
  model, _ = small("halonet_h4")
  counts = model_cost.count(model.spec, 32)
  narrow = model_cost.count(
    dataclasses.replace(model.spec, dtype="bfloat16"), 32
  )
  # All but the logits of the classifier, which stay float32.
  assert narrow.activations == counts.activations
  assert counts.activation_bytes == 4 * counts.activations
  assert narrow.activation_bytes == 2 * counts.activations + 2 * 10
  again = dataclasses.replace(model.spec, remat="block")
  assert model_cost.count(again, 32).total == counts.total
  wide = model_cost.count(model.spec, (32, 64))
  assert wide.image_size == (32, 64) and wide.parameters == counts.parameters
  assert wide.by("kind")["classifier"] == counts.by("kind")["classifier"]


def test_nothing_is_allocated():
  model, size = small("halonet_h4")
  before = len(jax.live_arrays())
  model_cost.count(model.spec, 4 * size)
  assert len(jax.live_arrays()) == before


# Multiply-adds in 10⁹ that timm publishes with its weights; how it counts, it
# does not say.
PUBLISHED = {
  "halonet50ts": 5.30,
  "halo2botnet50ts_256": 5.02,
  "sehalonet33ts": 3.55,
  "eca_halonext26ts": 2.44,
  "halonet26t": 3.19,
  "haloregnetz_b": 1.97,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", halonet.list_models())
def test_every_model_is_counted(name):
  model, size = halonet.create_model(name), get_entry(name).image_size
  counts = model_cost.count(model.spec, size)
  variables, lowered = lower(model, size)
  # XLA sums in float32.
  assert counts.flops == pytest.approx(lowered.cost_analysis()["flops"], 1e-5)
  leaves = jax.tree.leaves(variables["params"])
  assert counts.parameters == sum(math.prod(leaf.shape) for leaf in leaves)
  if name in PUBLISHED:
    assert counts.flops / 2e9 == pytest.approx(PUBLISHED[name], rel=0.03)
