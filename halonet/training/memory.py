"""Measures the most memory that a run has needed."""

import resource
import sys

import jax


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
