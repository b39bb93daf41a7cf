"""The memory that a run needs at least, and the most it has needed."""

import math
import os
import resource
import sys
from typing import Any

import jax

from halonet.errors import UsageError

_GIB = 2**30


def check_memory(state: Any, batch: Any) -> None:
  """Raises UsageError if a device cannot hold the state and its batch.

  The activations, which need most, are known only when the step is compiled;
  see `check_step`.

  Args:
    state: shapes and places of what every training step changes.
    batch: shapes and places of a batch.
  """
  state, batch = (
    sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(tree)
    )
    for tree in (state, batch)
  )
  _check(
    state + batch,
    f"parameters and their training state take {state / _GIB:.3g} GiB of a"
    f" device and its share of a batch {batch / _GIB:.3g} GiB",
    "make config.model, config.batch_size or config.data.image_size smaller, or"
    " take more devices",
  )


def check_step(step: jax.stages.Compiled) -> None:
  """Raises UsageError if a device has less memory than a compiled step needs.

  A TPU's compiler refuses such a step itself.
  """
  analysis = step.memory_analysis()
  if analysis is None:  # JAX: not every platform has one.
    return
  needed = (
    analysis.argument_size_in_bytes
    + analysis.temp_size_in_bytes
    + analysis.output_size_in_bytes
    - analysis.alias_size_in_bytes
  )
  _check(
    needed,
    f"a training step needs {needed / _GIB:.3g} GiB of a device",
    "make config.batch_size smaller, raise config.accumulation_steps, or set"
    " config.model.remat to 'block'",
  )


def _check(needed, words, remedy):
  devices = jax.local_devices()
  limit = (devices[0].memory_stats() or {}).get("bytes_limit")
  if limit is None:  # The devices are this machine, together.
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit /= len(devices)
  if needed > limit:
    raise UsageError(f"{words}, of the {limit / _GIB:.3g} GiB it has; {remedy}")


def peak_memory() -> tuple[int, str]:
  """Returns the peak so far, in bytes, and whose it is.

  Returns:
    The greatest peak of this process's devices and "device", where they count
    it (TPUs and GPUs do); else that of the process, which on a CPU holds the
    arrays, too, and "process".
  """
  statistics = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [stats.get("peak_bytes_in_use", 0) for stats in statistics]
  if max(peaks):
    return max(peaks), "device"
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  # In kilobytes, but on macOS.
  return peak if sys.platform == "darwin" else peak * 1024, "process"
