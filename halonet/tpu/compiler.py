"""Compiles a training or evaluation step for a TPU slice that is not there.

  python -m halonet.tpu.compiler REQUEST RESULT

`halonet.tpu.step_cost` starts it as a process of its own: the compiler reads
its environment when it is loaded, may abort and prints a lot.

REQUEST and RESULT are JSON files. A request has `config`, as JSON text;
`metadata` of the config's task; `topology`, arguments of `get_topology_desc`;
and `step`, "train" or "eval". The result is that of `analyse`; or, if the
request has `kernels` and a folder `dump`, that of
`halonet.tpu.schedules.measure`. If the compiler knows no such topology, there
is only `no_topology`, its reason; if the config describes no model, `refused`.
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
from jax.experimental import topologies
from jax.sharding import Mesh

from halonet.chips import find_chip
from halonet.errors import UsageError
from halonet.parallel import make_mesh, replicated
from halonet.tasks.task import make_task
from halonet.tpu import hlo, schedules
from halonet.training import config as config_lib
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
  pathlib.Path(sys.argv[2]).write_text(json.dumps(_answer(request)))


def _answer(request):
  try:
    topology = topologies.get_topology_desc(
      platform="tpu", **request["topology"]
    )
  except jax.errors.JaxRuntimeError as error:
    return {"no_topology": str(error)}
  config = config_lib.from_json(request["config"])
  mesh = make_mesh(topology.devices)
  train = request["step"] == "train"
  try:
    step, arguments, model = training_step(
      config, request["metadata"], mesh, train
    )
  except UsageError as error:
    return {"refused": str(error)}
  if "kernels" in request:
    return schedules.measure(step, arguments, mesh, request["dump"])
  result = analyse(step, arguments, model, mesh)
  # The compiler counts what is in a loop once, and so the parts of a batch.
  if train and result.get("flops"):
    result["flops"] *= config.accumulation_steps
  return result


def training_step(
  config: Any, metadata: dict[str, Any], mesh: Mesh, train: bool
) -> tuple[Any, tuple[Any, ...], str]:
  """Returns the training loop's step, the shapes of its arguments, and the
  name of the model's class."""
  config = config_lib.in_steps(config, _EPOCH)
  task = make_task(config, metadata)
  model = config_lib.create_model(config, task)
  optimizer = optimizer_lib.make_optimizer(config)
  state = abstract_state(make_init(model, optimizer, config, mesh), mesh)
  batch = abstract_batch(task, mesh, train=train)
  name = type(model).__name__
  if train:
    step = make_train_step(model, task, optimizer, config, mesh)
    return step, (state, batch), name
  return make_eval_step(model, task, mesh), (state.variables, batch), name


def _end_with(parent: int) -> None:
  """Ends this process when its parent has ended."""
  while os.getppid() == parent:
    time.sleep(1)
  os._exit(1)


def analyse(
  step: Any, arguments: tuple[Any, ...], model: str, mesh: Mesh
) -> dict[str, Any]:
  """Compiles a step for the devices of a topology.

  Args:
    step: a jitted function.
    arguments: the shapes of its arguments; dicts with names of modules.
    model: name of the model's class.
    mesh: of the topology's devices.

  Returns:
    Fields of `halonet.tpu.step_cost.StepCost`, and `program`, the fields of a
    `halonet.tpu.hlo.Program`. If the step does not fit, only its memory.
  """
  device = mesh.devices.flat[0]
  result = {
    "device_kind": device.device_kind,
    "devices": mesh.size,
    "hbm_capacity": _capacity(mesh) or find_chip(device).hbm_bytes,
  }
  lowered = step.lower(*arguments)
  started = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    needed = parse_out_of_memory(str(error))
    if needed is None:
      raise
    result |= {"fits": False, "hbm_bytes": needed}
    return result | {"compile_seconds": time.perf_counter() - started}
  result["compile_seconds"] = time.perf_counter() - started
  memory = compiled.memory_analysis()
  program = hlo.read_program(compiled.as_text(), model, _modules(arguments))
  return result | {
    "fits": True,
    "hbm_bytes": (
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
      + memory.temp_size_in_bytes
      + memory.generated_code_size_in_bytes
    ),
    "flops": (compiled.cost_analysis() or {}).get("flops"),
    "program": dataclasses.asdict(program),
  }


def parse_out_of_memory(message: str) -> int | None:
  """Reads the bytes that a program needs from the compiler's error.

  It says "Used 20.50G of 15.75G hbm" or "the total memory required for HLO
  temporaries (1.00T) exceeds available HBM". Returns None for another error.
  """
  used = re.search(rf"Used {_SIZE} of {_SIZE} hbm", message)
  used = used or re.search(rf"required for [^(]*\({_SIZE}\) exceeds", message)
  return _bytes(used) if used else None


def _bytes(match):
  return round(float(match[1]) * _UNITS[match[2]])


def _capacity(mesh):
  """Returns a device's memory, from the error about too large a program."""
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


def _modules(arguments):
  """Returns names of modules that have parameters or other variables."""
  names = set()
  for path, _ in jax.tree.leaves_with_path(arguments):
    keys = [getattr(part, "key", None) for part in path]
    names |= {key for key in keys[:-1] if isinstance(key, str)}
  return sorted(names - {"params", "batch_stats", "ema"})


if __name__ == "__main__":
  main()
