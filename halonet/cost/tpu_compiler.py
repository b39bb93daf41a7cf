"""Compiles a training or evaluation step for a TPU slice that is not there.

A process of its own, which `halonet.cost.tpu` starts: the compiler is told
through its environment what to do before it is loaded, it may abort, it prints
much that nobody needs, and the process that asks keeps its own devices.

  python -m halonet.cost.tpu_compiler REQUEST RESULT

REQUEST and RESULT are JSON files. A request has `config`, as JSON text;
`topology`, arguments of `get_topology_desc`; `step`, "train" or "eval"; and
`num_classes`. Its result is that of `analyse`; or, if the request has `kernels`
and a folder `dump`, that of `halonet.cost.kernels.measure`. If the compiler
knows no such topology, there is only `no_topology`, its reason; and if the
config describes no model, only `refused`.
"""

import dataclasses
import json
import os
import pathlib
import re
import sys
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.experimental import topologies
from jax.sharding import Mesh

from halonet.chips import find_chip
from halonet.cost import hlo
from halonet.errors import UsageError
from halonet.parallel import batch_sharding, make_mesh, replicated
from halonet.training import config as config_lib
from halonet.training import durations
from halonet.training import optimizer as optimizer_lib
from halonet.training.state import abstract_batch, abstract_state, make_init
from halonet.training.step import make_eval_step, make_train_step

# Examples of an epoch, for durations in epochs: it changes constants alone.
_EPOCH = 1_281_167
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = r"([\d.]+)([KMGT]?)"


def main() -> None:
  threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
  request = json.loads(pathlib.Path(sys.argv[1]).read_text())
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    topologies.get_topology_desc(platform="tpu", **request["topology"])
  except jax.errors.JaxRuntimeError as error:
    result = {"no_topology": str(error)}
    pathlib.Path(sys.argv[2]).write_text(json.dumps(result))
    return
  try:
    step = _step(request)
  except UsageError as error:
    pathlib.Path(sys.argv[2]).write_text(json.dumps({"refused": str(error)}))
    return
  if "kernels" in request:
    from halonet.cost import kernels

    result = kernels.measure(*step, request["dump"])
  else:
    result = analyse(*step)
    # The compiler counts what is in a loop once, and so the parts of a batch.
    if request["step"] == "train" and result.get("flops"):
      config = config_lib.from_json(request["config"])
      result["flops"] *= config.accumulation_steps
  pathlib.Path(sys.argv[2]).write_text(json.dumps(result))


def _end_with(parent: int) -> None:
  """Ends this process when its parent has ended: nobody waits for it."""
  while os.getppid() == parent:
    time.sleep(1)
  os._exit(1)


def analyse(
  step: Any, arguments: tuple[Any, ...], mesh: Mesh
) -> dict[str, Any]:
  """Compiles a step for the devices of a topology.

  Args:
    step: a jitted function.
    arguments: the shapes of its arguments; dicts with names of modules.
    mesh: of the topology's devices.

  Returns:
    Fields of `halonet.cost.tpu.Report`, and `program`, what
    `halonet.cost.hlo.Program` has. If the step does not fit, only its memory.
  """
  chip = find_chip(mesh.devices.flat[0])
  result = {
    "device_kind": mesh.devices.flat[0].device_kind,
    "devices": mesh.size,
    "hbm_capacity": _capacity(mesh) or chip.hbm_bytes,
    "fits": True,
  }
  lowered = step.lower(*arguments)
  started = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    needed = parse_out_of_memory(str(error))
    if needed is None:
      raise
    seconds = time.perf_counter() - started
    return result | {
      "fits": False,
      "hbm_bytes": needed,
      "compile_seconds": seconds,
    }
  result["compile_seconds"] = time.perf_counter() - started
  memory = compiled.memory_analysis()
  cost = compiled.cost_analysis() or {}
  program = hlo.read_program(compiled.as_text(), _modules(arguments))
  return result | {
    "hbm_bytes": (
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
      + memory.temp_size_in_bytes
      + memory.generated_code_size_in_bytes
    ),
    "flops": cost.get("flops"),
    "program": dataclasses.asdict(program),
  }


def parse_out_of_memory(message: str) -> int | None:
  """Bytes that a program needs, from the compiler's error if it is that.

  The compiler has two ways to say it: "Used 20.50G of 15.75G hbm", and "the
  total memory required for HLO temporaries (1.00T) exceeds available HBM".
  """
  used = re.search(rf"Used {_SIZE} of {_SIZE} hbm", message)
  used = used or re.search(rf"required for [^(]*\({_SIZE}\) exceeds", message)
  return _bytes(used) if used else None


def _bytes(match):
  return round(float(match[1]) * _UNITS[match[2]])


def _capacity(mesh):
  """What the compiler lets a program have: it says so of one too large."""
  huge = jax.ShapeDtypeStruct(
    (1 << 20, 1 << 20), jnp.float32, sharding=replicated(mesh)
  )
  try:
    jax.jit(lambda x: x + 1).lower(huge).compile()
  except jax.errors.JaxRuntimeError as error:
    found = re.search(rf"available HBM \({_SIZE}\)", str(error))
    found = found or re.search(rf"of {_SIZE} hbm", str(error))
    return _bytes(found) if found else None
  return None


def _step(request):
  """The step of the training loop, its arguments' shapes, and the mesh."""
  config = config_lib.from_json(request["config"])
  config = durations.in_steps(config, _EPOCH)
  topology = topologies.get_topology_desc(platform="tpu", **request["topology"])
  mesh = make_mesh(topology.devices)
  model = config_lib.create_model(config, request["num_classes"])
  optimizer = optimizer_lib.make_optimizer(config)
  init = make_init(
    model, optimizer, config.data.image_size, mesh, ema=config.ema_decay > 0
  )
  state = abstract_state(init, mesh)
  if request["step"] == "train":
    step = make_train_step(model, optimizer, config, mesh)
    return step, (state, abstract_batch(config, mesh)), mesh
  batch = _abstract_test_batch(config, mesh)
  return (
    make_eval_step(model, mesh),
    (state.params, state.batch_stats, batch),
    mesh,
  )


def _abstract_test_batch(config: ml_collections.ConfigDict, mesh):
  """The shape of what `halonet.data.pipeline.test_batches` gives."""
  size = config.data.image_size
  shapes = {
    "image": ((size, size, 3), config.data.image_dtype),
    "label": ((), "int32"),
    "weight": ((), "float32"),
  }
  if config.data.skip_corrupt:
    shapes["skipped"] = ((), "float32")
  rows = config.batch_size // config.accumulation_steps
  return {
    name: jax.ShapeDtypeStruct(
      (rows, *shape), dtype, sharding=batch_sharding(mesh)
    )
    for name, (shape, dtype) in shapes.items()
  }


def _modules(arguments):
  """Names of the modules that have parameters or statistics."""
  names = set()
  for path, _ in jax.tree.leaves_with_path(arguments):
    keys = [getattr(part, "key", None) for part in path]
    names |= {key for key in keys[:-1] if isinstance(key, str)}
  return sorted(names - {"params", "batch_stats", "ema"})


if __name__ == "__main__":
  main()
