"""What a step costs on a TPU: the real compiler where it is installed."""

import dataclasses
import os

import pytest

from halonet.cost.model import forward_flops
from halonet.errors import RunError, UsageError
from halonet.tasks.task import make_task
from halonet.tpu import step_cost
from halonet.tpu.compiler import parse_out_of_memory
from halonet.tpu.largest import largest_batch
from halonet.training.config import create_model

needs_compiler = pytest.mark.skipif(
  not step_cost.available(), reason=f"needs {step_cost.required_package()}"
)
GIB = 1 << 30


def digits_model(config):
  return create_model(config, make_task(config, step_cost.metadata(config, 10)))


@needs_compiler
def test_a_training_step_is_compiled_for_a_slice(small_config, monkeypatch):
  # A machine with another accelerator may say so; that is not for here.
  monkeypatch.setenv("JAX_PLATFORMS", "tpu")
  config = small_config(
    "model.depths=(1,)", "model.heads=(2,)", "accumulation_steps=2",
    "model.batch_norm_group=4",
  )  # fmt: skip
  report = step_cost.compile_step(config, "v5e:2x2", per_core_batch=4)
  assert os.environ["JAX_PLATFORMS"] == "tpu"
  assert report.fits and report.devices == 4 and report.images == 8
  assert report.device_kind == "TPU v5 lite"
  # 16 GiB, of which the system keeps some.
  assert 15 * GIB < report.hbm_capacity < 16 * GIB
  assert 0 < report.hbm_bytes < GIB
  assert report.cycles == sum(layer.cycles for layer in report.layers)
  assert report.seconds == report.cycles / 1.5e9
  assert report.layers[0].name == "stage1_block1/attention"
  assert {"stem", "(outside the model)"} <= {x.name for x in report.layers}
  assert report.roofline_seconds == max(
    report.flops / 197e12, report.bytes_accessed / 819e9
  )
  # Both parts are counted, each once. On a TPU, attention's products fill with
  # operations what would be padding: on maps this small, most of the step.
  counted = 3 * forward_flops(digits_model(config), 16)
  assert 2.5 < report.flops / report.images / counted < 5
  # The loop over the two parts is not of unknown length.
  assert report.unknown_loops == 0 and report.kernels == ()
  # All gradients are added up over the slice, in float32, and little else.
  (collective,) = report.collectives
  parameters = _parameters(config)
  assert collective.kind == "all-reduce"
  assert 4 * parameters < collective.bytes < 5 * parameters


def test_a_compiler_that_runs_out_of_memory_says_so(
  small_config, monkeypatch, tmp_path
):
  killed = tmp_path / "python"
  killed.write_text("#!/bin/sh\nkill -KILL $$\n")
  killed.chmod(0o755)
  monkeypatch.setattr("sys.executable", str(killed))
  monkeypatch.setattr(step_cost, "available", lambda: True)
  with pytest.raises(RunError, match="was killed.*memory"):
    step_cost.compile_step(small_config(), "v5e:2x2", per_core_batch=4)


def _parameters(config):
  import jax
  import jax.numpy as jnp

  model = digits_model(config)
  variables = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3))
  )
  return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@needs_compiler
def test_an_evaluation_step_is_compiled_for_one_chip(small_config):
  # With the form whose operations are those of the formula.
  config = small_config(
    "model.depths=(1,)", "model.heads=(2,)",
    "model.attention_implementation=xla",
  )  # fmt: skip
  report = step_cost.compile_step(
    config, "v5e:1x1", step="eval", per_core_batch=8, num_classes=10
  )
  assert report.fits and report.devices == 1 and report.images == 8
  # No gradients: a third of a training's FLOPs, and nothing to add up.
  counted = forward_flops(digits_model(config), 16)
  assert 0.7 < report.flops / report.images / counted < 1.4
  assert report.collectives == ()


@needs_compiler
def test_what_does_not_fit_is_no_error(small_config):
  config = small_config("data.image_size=1024", "model.depths=(1,)",
                        "model.heads=(2,)")  # fmt: skip
  report = step_cost.compile_step(
    config, "v5e:2x2", step="eval", per_core_batch=2048, num_classes=10
  )
  assert not report.fits
  assert report.hbm_bytes > 16 * GIB > report.hbm_capacity > 15 * GIB
  assert report.seconds is None and report.layers is None


@needs_compiler
def test_a_slice_that_the_compiler_refuses_is_said(small_config):
  with pytest.raises(UsageError, match="v5e:3x5.*not divisible"):
    step_cost.compile_step(
      small_config(), "v5e:3x5", per_core_batch=8, num_classes=10
    )


@needs_compiler
def test_a_config_without_a_model_is_said_as_in_training(small_config):
  with pytest.raises(UsageError, match="^config.model: num_classes is 0"):
    step_cost.compile_step(
      small_config(), "v5e:2x2", per_core_batch=8, num_classes=0
    )


@pytest.mark.parametrize(
  "message, needed",
  [
    (
      "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory"
      " in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity"
      " by 4.75G.",
      20.5 * GIB,
    ),
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required"
      " for HLO temporaries (1.00T) exceeds available HBM (15.75G).",
      1024 * GIB,
    ),
    ("INTERNAL: Mosaic failed to compile TPU kernel", None),
  ],
)
def test_out_of_memory_is_told_from_other_errors(message, needed):
  assert parse_out_of_memory(message) == needed


@pytest.mark.parametrize(
  "topology, devices",
  [("v3:4x4", 32), ("v4:2x2x4", 16), ("v5p:2x2x2", 8), ("v6e:4x4", 16)],
)
def test_a_core_is_a_device(topology, devices):
  assert step_cost.topology_devices(topology) == devices


@pytest.mark.parametrize(
  "topology",
  ["v5e", "v7:2x2", "v5e:4", "v5e:4x", "4x4", "v5e:2x2x2", "v4:4x4"],
)
def test_a_slice_that_is_none_is_said_in_one_line(topology):
  with pytest.raises(UsageError, match="such as v3:4x4, v4:2x2x4"):
    step_cost.topology_devices(topology)


def test_the_batch_must_split_as_in_training(small_config):
  config = small_config("model.batch_norm_group=32")
  assert step_cost.sized(config, "v5e:4x4", 8).batch_size == 128
  with pytest.raises(UsageError, match="batch_norm_group is 32"):
    step_cost.sized(config, "v5e:4x4", 1)


def test_without_the_compiler_it_says_what_to_install(
  small_config, monkeypatch
):
  monkeypatch.setattr(step_cost, "available", lambda: False)
  with pytest.raises(UsageError, match="pip install 'libtpu==0.0"):
    step_cost.compile_step(small_config(), "v5e:4x4", per_core_batch=8)


def test_flags_of_the_user_stay(monkeypatch):
  monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_some_flag=true")
  assert step_cost.environment()["LIBTPU_INIT_ARGS"] == "--xla_some_flag=true"
  flags = step_cost.environment("/dump")["LIBTPU_INIT_ARGS"]
  assert flags.startswith("--xla_some_flag=true --xla_jf_dump_to=/dump ")


# ------------------------------------------------------------------ the search


class Compiler:
  """Needs memory by a function of the batch; notes what it is asked."""

  def __init__(self, needs):
    self.needs = needs
    self.asked = []

  def __call__(self, batch):
    self.asked.append(batch)
    needs = self.needs(batch)
    return step_cost.StepCost(
      topology="v5e:4x4",
      step="train",
      per_core_batch=batch,
      device_kind="TPU v5 lite",
      devices=16,
      hbm_bytes=needs,
      hbm_capacity=1000,
      fits=needs <= 1000,
      compile_seconds=1.0,
    )

  def largest(self, first, allowed=lambda batch: True):
    return largest_batch(self, self(first), allowed)


@pytest.mark.parametrize(
  "needs, first, expected, compilations",
  [
    (lambda b: 100 + 12 * b, 32, 64, 4),
    (lambda b: 100 + 60 * b, 32, 14, 4),
    (lambda b: 10 * b, 32, 96, 4),
    # Crooked, as memory is: a little more from 20 on.
    (lambda b: 50 + 40 * b + 100 * (b >= 20), 32, 20, 4),
    # The compiler computes again what does not fit.
    (lambda b: min(28 * b, 900 + b), 32, 96, 5),
    (lambda b: 600 + 500 * b, 4, None, 4),
    (lambda b: 990 + b, 8, 10, 4),
  ],
)
def test_the_largest_batch_is_found_in_few_compilations(
  needs, first, expected, compilations
):
  compiler = Compiler(needs)
  found = compiler.largest(first)
  assert (found.per_core_batch if found else None) == expected
  assert len(compiler.asked) <= compilations
  assert len(set(compiler.asked)) == len(compiler.asked)


def test_the_search_keeps_to_batches_that_the_config_allows():
  compiler = Compiler(lambda b: 100 + 12 * b)
  found = compiler.largest(32, allowed=lambda batch: batch % 32 == 0)
  assert found.per_core_batch == 64
  assert all(batch % 32 == 0 for batch in compiler.asked)


def test_kernels_add_to_their_layers():
  compiler = Compiler(lambda batch: 1)
  program = dict(
    layers=[{"name": "a/b", "cycles": 100, "hbm_bytes": 819}],
    hbm_bytes=819,
    collectives=[],
    kernels=[
      dict(name="k", layer="a/b", executions=3, shapes="f32[8]>f32[8]"),
      dict(name="k", layer="c", executions=1, shapes="f32[9]>f32[9]"),
    ],
    unknown_loops=0,
  )
  found = step_cost.complete(
    dataclasses.replace(compiler(1), flops=None), program, 1,
    {"k f32[8]>f32[8]": {"cycles": 7, "hbm_bytes": 81_900}},
  )  # fmt: skip
  layers = [(layer.cycles, layer.hbm_bytes) for layer in found.layers]
  assert layers == [(121, 819), (0, 0)]
  assert [kernel.cycles for kernel in found.kernels] == [21, None]
  # Three loads take 300 ns on a v5e, and 21 cycles 14.
  assert found.waiting_seconds == pytest.approx(286e-9)
  assert found.roofline_seconds == pytest.approx(1e-9)
