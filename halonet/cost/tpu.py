"""What a training or evaluation step costs on a TPU slice, without a TPU.

The step is the training loop's own, sharded over the whole slice, and compiled
by the TPU compiler, which is in the package libtpu and needs no TPU. What it
then knows of the program is reported: memory, operations, its own estimate of
cycles, communication. Nothing is run; all times are estimates.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
from typing import Any

import ml_collections

from halonet.chips import find_kind
from halonet.cost.hlo import Collective, Layer
from halonet.errors import RunError, UsageError
from halonet.training import checks
from halonet.training import config as config_lib

# Per generation: an example of a slice, the devices of a chip, and what the
# compiler must be told beside the topology.
_GENERATIONS = {
  "v3": ("v3:4x4", 2, {}),
  "v4": (
    "v4:2x2x4",
    1,
    {"chip_config_name": "megacore", "chips_per_host_bounds": [2, 2, 1]},
  ),
  "v5e": ("v5e:4x4", 1, {}),
  "v5p": ("v5p:2x2x2", 1, {}),
  "v6e": ("v6e:4x4", 1, {}),
}
STEPS = ("train", "eval")


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A Pallas kernel's part in a step, from its static schedule.

  Attributes:
    name: of the kernel.
    layer: the module that calls it.
    calls: in one step.
    cycles: of all these calls together; None if it is not known.
  """

  name: str
  layer: str
  calls: int
  cycles: int | None


@dataclasses.dataclass(frozen=True)
class Report:
  """One step on one slice. "Core" is a device of JAX's: on v3 one core of two.

  What is None is not known, as most is where the step does not fit.

  Attributes:
    topology: the slice, such as "v5e:4x4".
    step: "train" or "eval".
    per_core_batch: images that a core computes at once.
    device_kind: JAX's name for the core.
    devices: cores of the slice.
    hbm_bytes: memory that the step needs on a core.
    hbm_capacity: memory that the compiler lets a program have.
    fits: whether it has it.
    compile_seconds: that the compiler took, here.
    cycles: of a core, by the compiler's estimate and kernels' schedules.
    seconds: these cycles at the chip's clock. Time that cores wait for
      memory or for one another is in it only as far as the compiler has it in
      its estimates; collectives are not.
    flops: of a core in a step, without those in Pallas kernels.
    images: that a core works through in a step.
    bytes_accessed: that pass through the core's HBM in a step.
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
  flops: float | None = None
  images: int | None = None
  bytes_accessed: int | None = None
  roofline_seconds: float | None = None
  collectives: tuple[Collective, ...] | None = None
  layers: tuple[Layer, ...] | None = None
  kernels: tuple[Kernel, ...] | None = None
  unknown_loops: int = 0


def available() -> bool:
  """Whether the TPU compiler is installed."""
  return importlib.util.find_spec("libtpu") is not None


def required_package() -> str:
  """The requirement that installs the compiler which fits this JAX."""
  for text in importlib.metadata.requires("jax") or ():
    match = re.match(r"(libtpu\s*[^;\s]+)", text)
    if match:
      return match[1]
  return "libtpu"


def check_available() -> None:
  """Raises UsageError, with the package to install, without the compiler."""
  if not available():
    raise UsageError(
      "the TPU compiler is not installed; it needs no TPU: pip install"
      f" '{required_package()}'"
    )


def topology_devices(topology: str) -> int:
  """Counts the devices of a slice; raises UsageError if it is none."""
  generation, _, shape = topology.partition(":")
  examples = ", ".join(example for example, _, _ in _GENERATIONS.values())
  example = _GENERATIONS.get(generation, ("", 0, {}))[0]
  # The compiler takes other numbers of sides, too; no slice has them.
  if shape.count("x") != example.count("x") or not re.fullmatch(
    r"[1-9]\d*(x[1-9]\d*)+", shape
  ):
    raise UsageError(
      f"topology is {topology!r}; it must be a generation and a shape in chips,"
      f" such as {examples}"
    )
  devices = _GENERATIONS[generation][1]
  for side in shape.split("x"):
    devices *= int(side)
  return devices


def report(
  config: ml_collections.ConfigDict,
  topology: str,
  *,
  step: str = "train",
  per_core_batch: int,
  num_classes: int | None = None,
) -> Report:
  """Compiles a step for a slice and says what it would cost there.

  It takes minutes for large models, in a process of its own.

  Args:
    config: complete and checked; its batch size is replaced, by
      `per_core_batch` × devices × accumulation steps.
    topology: generation and shape in chips, such as "v5e:4x4".
    step: "train" or "eval".
    per_core_batch: images that a core computes at once.
    num_classes: of the model; if None, of the config's data set.

  Raises:
    UsageError: if the compiler is not installed, there is no such slice, the
      config does not split over it, or it describes no model.
    RunError: if the compiler fails for another reason than memory.
  """
  check_available()
  if step not in STEPS:
    raise UsageError(f"step is {step!r}; it must be train or eval")
  config = sized(config, topology, per_core_batch)
  if num_classes is None:
    from halonet.data import sources  # TensorFlow takes seconds to load.

    num_classes = sources.count_classes(config.data)
  generation, _, shape = topology.partition(":")
  options = dict(_GENERATIONS[generation][2])
  if set(shape.split("x")) == {"1"}:  # By default a host has four chips.
    options["chips_per_host_bounds"] = [1, 1, 1]
  request = {
    "config": config_lib.to_json(config),
    "topology": {"topology_name": topology, **options},
    "step": step,
    "num_classes": num_classes,
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
  found = Report(
    topology=topology, step=step, per_core_batch=per_core_batch, **result
  )
  if program is None:
    return found
  images = per_core_batch
  if step == "train":
    images *= config.accumulation_steps
  cycles = _in_child(request | {"kernels": True}) if program["kernels"] else {}
  return complete(found, program, images, cycles)


def sized(
  config: ml_collections.ConfigDict, topology: str, per_core_batch: int
) -> ml_collections.ConfigDict:
  """A copy of a config with the batch size of a slice, checked as a run's.

  Raises:
    UsageError: as a run on the slice would.
  """
  devices = topology_devices(topology)
  if per_core_batch < 1:
    raise UsageError(
      f"per_core_batch is {per_core_batch}; it must be at least 1"
    )
  config = config.copy_and_resolve_references()
  config.batch_size = per_core_batch * devices * config.accumulation_steps
  checks.check_devices(config, devices)
  return config


def complete(
  found: Report, program: dict[str, Any], images: int, kernels: dict[str, int]
) -> Report:
  """Adds to a report what follows from the program.

  Args:
    found: with the fields of `halonet.cost.tpu_compiler.analyse`.
    program: as `halonet.cost.hlo.Program` has it.
    images: that a core works through.
    kernels: cycles, from `halonet.cost.kernels.measure`.
  """
  layers = {layer["name"]: layer["cycles"] for layer in program["layers"]}
  calls = []
  for call in program["kernels"]:
    once = kernels.get(f"{call['name']} {call['shapes']}")
    runs = call["executions"]
    cycles = None if once is None else once * runs
    calls.append(Kernel(call["name"], call["layer"], runs, cycles))
    layers[call["layer"]] = layers.get(call["layer"], 0) + (cycles or 0)
  cycles = sum(layers.values())
  chip = find_kind(found.device_kind)
  bounds = [program["hbm_bytes"] / chip.hbm_bandwidth]
  if found.flops is not None:
    bounds.append(found.flops / chip.peak_flops)
  return dataclasses.replace(
    found,
    cycles=cycles,
    seconds=cycles / chip.clock_hz,
    images=images,
    bytes_accessed=program["hbm_bytes"],
    roofline_seconds=max(bounds),
    collectives=tuple(Collective(**item) for item in program["collectives"]),
    layers=tuple(
      Layer(*item) for item in sorted(layers.items(), key=lambda x: -x[1])
    ),
    kernels=tuple(calls),
    unknown_loops=program["unknown_loops"],
  )


# ------------------------------------------------------------------ the child


def _in_child(request):
  """Runs the compiler in a process of its own; RunError if it fails."""
  with tempfile.TemporaryDirectory(prefix="tpu_compiler") as folder:
    folder = pathlib.Path(folder)
    # One kernel's dump at a time is read and removed in there.
    request = request | {"dump": str(folder / "dump")}
    (folder / "request").write_text(json.dumps(request))
    with open(folder / "log", "w+b") as log:
      code = subprocess.run(
        [
          sys.executable,
          "-m",
          "halonet.cost.tpu_compiler",
          str(folder / "request"),
          str(folder / "result"),
        ],
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
  """What must be set before JAX and the compiler are loaded.

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
    # No TPU of this machine is to be looked for or touched.
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    # Or a second process that loads the compiler would find it locked.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "LIBTPU_INIT_ARGS": flags.strip(),
    "TF_CPP_MIN_LOG_LEVEL": "3",
  }
