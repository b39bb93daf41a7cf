"""Words the cost of a TPU step for people."""

from halonet.chips import find_kind
from halonet.tpu.step_cost import StepCost


def describe(
  first: StepCost, largest: StepCost | None, *, searched: bool
) -> str:
  """Describes a step in lines.

  Args:
    first: cost of the batch that was asked for.
    largest: cost of the largest batch that fits, shown where the first does
      not; None if there is none, or it was not searched for.
    searched: whether it was.
  """
  lines = [("HBM a core", memory(first))]
  if searched:
    text = "not even the smallest batch fits"
    if largest:
      needs = largest.hbm_bytes / 2**30
      text = f"{largest.per_core_batch} images a core, {needs:.2f} GiB"
    lines.append(("largest that fits", text))
  shown = first if first.fits else largest
  if shown is not None:
    if shown is not first:
      lines.append(("from here on", f"of {shown.per_core_batch} images a core"))
    chip = find_kind(shown.device_kind)
    compute = (shown.flops or 0) / chip.peak_flops
    bound = "HBM" if shown.roofline_seconds > compute else "FLOPs"
    lines += [
      (
        "estimated time",
        f"{_milliseconds(shown.seconds)} a step,"
        f" {shown.images / shown.seconds:.0f}"
        f" images/s a core ({shown.cycles:,} cycles at"
        f" {chip.clock_hz / 1e9:.2f} GHz), without collectives",
      ),
      (
        "FLOPs",
        "unknown"
        if shown.flops is None
        else f"{_si(shown.flops)} a core and step,"
        f" {_si(shown.flops / shown.images)} an image;"
        f" {_milliseconds(compute)} at the chip's peak",
      ),
      (
        "bytes through HBM",
        f"{_si(shown.bytes_accessed)}B a core and step;"
        f" {_milliseconds(shown.bytes_accessed / chip.hbm_bandwidth)} at the"
        " chip's bandwidth",
      ),
      (
        "roofline",
        "no step is faster than"
        f" {_milliseconds(shown.roofline_seconds)}, for its {bound}",
      ),
    ]
    lines += [
      (
        "collectives",
        f"{item.count} × {item.kind}, {_si(item.bytes)}B a step",
      )
      for item in shown.collectives
    ] or [("collectives", "none")]
    for kernel in shown.kernels:
      cycles = "no schedule" if kernel.cycles is None else f"{kernel.cycles:,}"
      lines.append(
        (
          "Pallas kernel",
          f"{kernel.name} in {kernel.layer}: {kernel.executions} calls,"
          f" {cycles} cycles by static schedule",
        )
      )
    if shown.unknown_loops:
      lines.append(
        ("not counted", f"{shown.unknown_loops} loops of unknown length: once")
      )
    lines += [
      (
        "expensive layers" if not number else "",
        f"{layer.cycles / shown.cycles:5.1%}"
        f" {_milliseconds(layer.cycles / chip.clock_hz):>9}  {layer.name}",
      )
      for number, layer in enumerate(shown.layers[:10])
    ]
  lines.append(("compile time", f"{first.compile_seconds:.0f} s"))
  return "\n".join(f"{name:18} {text}" for name, text in lines)


def memory(cost: StepCost) -> str:
  """Says whether a step fits, what it needs, and what there is."""
  needs, has = (size / 2**30 for size in (cost.hbm_bytes, cost.hbm_capacity))
  verdict = "fits" if cost.fits else "does not fit"
  return f"{verdict}, needs {needs:.2f} of {has:.2f} GiB"


def _si(value):
  """Formats three digits and a prefix: 58600000000 is "58.6 G"."""
  for prefix in ("", "k", "M", "G"):
    if value < 999.5:
      return f"{value:.3g} {prefix}"
    value /= 1000
  return f"{value:.3g} T"


def _milliseconds(seconds):
  return f"{seconds * 1e3:#.3g}".rstrip(".") + " ms"
