"""What a training or evaluation step costs on a TPU slice, without a TPU.

The step is the training loop's own, sharded over the whole slice, and compiled
by the TPU compiler, which the package libtpu contains and which needs no TPU.
Reported is what the compiler knows of the program: memory, operations, its own
estimate of cycles, communication. Nothing is run; all times are estimates.
"""

import collections
import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
from typing import Any

import ml_collections

from halonet.chips import GENERATIONS, find_kind
from halonet.data import sources
from halonet.errors import RunError, UsageError
from halonet.fields import MOST_BATCH, MOST_CLASSES, check_option
from halonet.tasks.task import make_task
from halonet.tpu.hlo import Collective, KernelCall, LayerCycles
from halonet.training import config as config_lib

STEPS = ("train", "eval")


@dataclasses.dataclass(frozen=True)
class StepCost:
  """The cost of one step on one slice.

  A "core" is a device of JAX's: on v3, one of a chip's two. None means unknown,
  which most fields are where the step does not fit.

  Attributes:
    topology: the slice, such as "v5e:4x4".
    step: "train" or "eval".
    per_core_batch: images that a core computes at once.
    device_kind: JAX's name for the core.
    devices: cores of the slice.
    hbm_bytes: memory that the step needs on a core.
    hbm_capacity: memory that the compiler lets a program have.
    fits: whether the first is within the second.
    compile_seconds: time that the compiler took.
    cycles: a core's, by the compiler's estimate and the kernels' schedules.
    seconds: time of these cycles, without collectives and without waiting for
      memory beyond the compiler's estimates.
    waiting_seconds: time by which Pallas kernels take longer than their cycles,
      because their bytes take that long at the chip's bandwidth.
    flops: FLOPs of a core in a step, without those in Pallas kernels.
    images: images that a core works through in a step.
    bytes_accessed: bytes that pass through the core's HBM in a step.
    roofline_seconds: the larger of `flops` over the chip's peak and
      `bytes_accessed` over its bandwidth: no step is faster.
    collectives: by kind, with counts and bytes of a step.
    layers: modules by cycles, forward and backward together, largest first.
    kernels: Pallas kernels; their cycles are in `layers` as well.
    unknown_loops: loops of unknown length, counted once.
  """

  topology: str
  step: str
  per_core_batch: int
  device_kind: str
  devices: int
  hbm_bytes: int
  hbm_capacity: int
  fits: bool
  compile_seconds: float
  cycles: int | None = None
  seconds: float | None = None
  waiting_seconds: float | None = None
  flops: float | None = None
  images: int | None = None
  bytes_accessed: int | None = None
  roofline_seconds: float | None = None
  collectives: tuple[Collective, ...] | None = None
  layers: tuple[LayerCycles, ...] | None = None
  kernels: tuple[KernelCall, ...] | None = None
  unknown_loops: int = 0


def available() -> bool:
  """Says whether the TPU compiler is installed."""
  return importlib.util.find_spec("libtpu") is not None


def required_package() -> str:
  """Returns the requirement for the compiler that fits this JAX."""
  texts = importlib.metadata.requires("jax") or ()
  found = [re.match(r"(libtpu\s*[^;\s]+)", text) for text in texts]
  return next((match[1] for match in found if match), "libtpu")


def check_available() -> None:
  """Raises UsageError, with the package to install, without the compiler."""
  if not available():
    raise UsageError(
      "the TPU compiler is not installed; it needs no TPU: pip install"
      f" '{required_package()}'"
    )


def topology_devices(topology: str) -> int:
  """Counts the devices of a slice; raises UsageError if there is no such."""
  generation, _, shape = topology.partition(":")
  chip = GENERATIONS.get(generation)
  # The compiler takes other numbers of sides, too; no slice has them.
  sides = chip.topology.count("x") if chip else 0
  if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", shape) or (
    shape.count("x") != sides
  ):
    examples = ", ".join(chip.topology for chip in GENERATIONS.values())
    raise UsageError(
      f"topology is {topology!r}; it must be a generation and a shape in chips,"
      f" such as {examples}"
    )
  return chip.devices * math.prod(map(int, shape.split("x")))


def compile_step(
  config: ml_collections.ConfigDict,
  topology: str,
  *,
  step: str = "train",
  per_core_batch: int,
  num_classes: int | None = None,
) -> StepCost:
  """Compiles a step for a slice and returns what it would cost there.

  It takes minutes for large models, in a process of its own.

  Args:
    config: complete and checked; its batch size is replaced by
      `per_core_batch` × devices × accumulation steps.
    topology: generation and shape in chips, such as "v5e:4x4".
    step: "train" or "eval".
    per_core_batch: images that a core computes at once.
    num_classes: classes of the model; by default, those of the data set.

  Raises:
    UsageError: if the compiler is not installed, there is no such slice, the
      config does not split over it, or it describes no model.
    RunError: if the compiler fails for another reason than memory.
  """
  check_available()
  if step not in STEPS:
    raise UsageError(f"step is {step!r}; it must be train or eval")
  config = sized(config, topology, per_core_batch)
  generation, _, shape = topology.partition(":")
  options = dict(GENERATIONS[generation].compiler_options)
  if set(shape.split("x")) == {"1"}:  # By default a host has four chips.
    options["chips_per_host_bounds"] = [1, 1, 1]
  request = {
    "config": config_lib.to_json(config),
    "topology": {"topology_name": topology, **options},
    "step": step,
    "metadata": metadata(config, num_classes),
  }
  result = _in_child(request)
  if "refused" in result:
    raise UsageError(result["refused"])
  if "no_topology" in result:
    raise UsageError(
      f"topology is {topology!r}, which the compiler refuses:"
      f" {' '.join(result['no_topology'].split())}"
    )
  program = result.pop("program", None)
  cost = StepCost(
    topology=topology, step=step, per_core_batch=per_core_batch, **result
  )
  if program is None:
    return cost
  images = per_core_batch
  if step == "train":
    images *= config.accumulation_steps
  cycles = _in_child(request | {"kernels": True}) if program["kernels"] else {}
  return complete(cost, program, images, cycles)


def metadata(
  config: ml_collections.ConfigDict, num_classes: int | None = None
) -> dict[str, Any]:
  """Returns the metadata of a config's task, whose data need not be prepared.

  Args:
    config: complete training config.
    num_classes: number of classes to assume, instead of asking the data set.

  Raises:
    UsageError: if only the data would tell, and they are not there; or if the
      number is impossible.
  """
  if num_classes is not None:
    check_option("num_classes", num_classes, MOST_CLASSES)
    return {"labels": [str(number) for number in range(num_classes)]}
  task = make_task(config)
  try:
    return task.describe(sources.describe(config.data, task.needs))
  except UsageError as error:
    raise UsageError(f"{error}; without the data, give --num_classes") from None


def sized(
  config: ml_collections.ConfigDict, topology: str, per_core_batch: int
) -> ml_collections.ConfigDict:
  """Copies a config with the batch size for a slice, checked as a run's.

  Raises:
    UsageError: as a run on the slice would.
  """
  devices = topology_devices(topology)
  check_option("per_core_batch", per_core_batch, MOST_BATCH)
  config = config.copy_and_resolve_references()
  config.batch_size = per_core_batch * devices * config.accumulation_steps
  config_lib.check_devices(config, devices)
  return config


def complete(
  cost: StepCost,
  program: dict[str, Any],
  images: int,
  kernel_counts: dict[str, dict[str, int | None]],
) -> StepCost:
  """Returns a cost with what follows from the program.

  Args:
    cost: what `halonet.tpu.compiler.analyse` returns.
    program: fields of a `halonet.tpu.hlo.Program`, as JSON has them.
    images: images that a core works through.
    kernel_counts: from `halonet.tpu.schedules.measure`.
  """
  layers = collections.Counter(
    {layer["name"]: layer["cycles"] for layer in program["layers"]}
  )
  moved = {layer["name"]: layer["hbm_bytes"] for layer in program["layers"]}
  chip = find_kind(cost.device_kind)
  kernels, waiting = [], 0
  for fields in program["kernels"]:
    call = KernelCall(**fields)
    once = kernel_counts.get(f"{call.name} {call.shapes}", {})
    counts = {
      name: count and count * call.executions for name, count in once.items()
    }
    call = dataclasses.replace(call, **counts)
    kernels.append(call)
    layers[call.layer] += call.cycles or 0
    if call.cycles is not None:
      transfer = call.hbm_bytes / chip.hbm_bandwidth
      waiting += max(0, transfer - call.cycles / chip.clock_hz)
  cycles = sum(layers.values())
  return dataclasses.replace(
    cost,
    cycles=cycles,
    seconds=cycles / chip.clock_hz,
    waiting_seconds=waiting,
    images=images,
    bytes_accessed=program["hbm_bytes"],
    roofline_seconds=max(
      program["hbm_bytes"] / chip.hbm_bandwidth,
      (cost.flops or 0) / chip.peak_flops,
    ),
    collectives=tuple(Collective(**item) for item in program["collectives"]),
    layers=tuple(
      LayerCycles(name, count, moved.get(name, 0))
      for name, count in layers.most_common()
    ),
    kernels=tuple(kernels),
    unknown_loops=program["unknown_loops"],
  )


# ------------------------------------------------------------------ the child


def _in_child(request):
  """Runs the compiler in its own process; raises RunError if it fails."""
  with tempfile.TemporaryDirectory(prefix="tpu_compiler") as folder:
    folder = pathlib.Path(folder)
    # It holds the dump of one kernel at a time.
    request = request | {"dump": str(folder / "dump")}
    (folder / "request").write_text(json.dumps(request))
    files = str(folder / "request"), str(folder / "result")
    with open(folder / "log", "w+b") as log:
      code = subprocess.run(
        [sys.executable, "-m", "halonet.tpu.compiler", *files],
        env=environment(request["dump"] if "kernels" in request else None),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
      ).returncode
    if code == -signal.SIGKILL:
      raise RunError(
        "the TPU compiler was killed, as the system does when memory runs out;"
        " wide models take more than 15 GB: close other programs, or compile"
        " on a machine with more"
      )
    if code:
      lines = (folder / "log").read_text(errors="replace").strip().splitlines()
      reason = " ".join(lines[-1].split())[:500] if lines else "no message"
      kept = pathlib.Path(tempfile.gettempdir()) / f"tpu_compiler_{os.getpid()}"
      kept.write_text("\n".join(lines) + "\n")
      raise RunError(
        f"the TPU compiler failed with exit code {code}: {reason} (all of its"
        f" messages: {kept})"
      )
    return json.loads((folder / "result").read_text())


def environment(dump: str | None = None) -> dict[str, str]:
  """Returns the environment to load JAX and the compiler in.

  With `dump`, the compiler writes all that it does into this folder.
  """
  root = str(pathlib.Path(__file__).parents[2])
  path = [root, os.environ.get("PYTHONPATH", "")]
  flags = os.environ.get("LIBTPU_INIT_ARGS", "")
  if dump:
    flags += (
      f" --xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
      f" --xla_mosaic_dump_to={dump}"
    )
  return os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, path)),
    # Leaves the TPUs of this machine alone.
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    # Lets several processes load the compiler.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "LIBTPU_INIT_ARGS": flags.strip(),
    "TF_CPP_MIN_LOG_LEVEL": "3",
  }
