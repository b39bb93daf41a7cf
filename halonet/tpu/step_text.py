"""Words the cost of a TPU step for people."""

from halonet.chips import find_kind
from halonet.tpu.step_cost import StepCost


def describe(
  first: StepCost, largest: StepCost | None, *, searched: bool
) -> str:
  """Describes a step in lines.

  Args:
    first: cost of the batch that was asked for.
    largest: cost of the largest batch that fits, shown if the first does not
      fit; None if there is none or it was not searched for.
    searched: whether it was searched for.
  """
  lines = [("HBM a core", memory(first))]
  if searched:
    text = "not even the smallest batch fits"
    if largest:
      needs = largest.hbm_bytes / 2**30
      text = f"{largest.per_core_batch} images a core, {needs:.2f} GiB"
    lines.append(("largest that fits", text))
  shown = first if first.fits else largest
  if shown is not None and shown is not first:
    lines.append(("from here on", f"of {shown.per_core_batch} images a core"))
  if shown is not None:
    lines += _details(shown)
  lines.append(("compile time", f"{first.compile_seconds:.0f} s"))
  return "\n".join(f"{name:18} {text}" for name, text in lines)


def _details(cost):
  """Yields a label and a text for each figure of a step that fits."""
  chip = find_kind(cost.device_kind)
  compute = (cost.flops or 0) / chip.peak_flops
  transfer = cost.bytes_accessed / chip.hbm_bandwidth
  bound = "HBM" if cost.roofline_seconds > compute else "FLOPs"
  flops = "unknown"
  if cost.flops is not None:
    flops = (
      f"{_si(cost.flops)} a core and step, {_si(cost.flops / cost.images)} an"
      f" image; {_milliseconds(compute)} at the chip's peak"
    )
  yield (
    "estimated time",
    f"{_milliseconds(cost.seconds)} a step, {cost.images / cost.seconds:.0f}"
    f" images/s a core ({cost.cycles:,} cycles at {chip.clock_hz / 1e9:.2f}"
    " GHz), without collectives",
  )
  if cost.kernels:
    yield (
      "kernels' memory",
      f"{_milliseconds(cost.seconds + cost.waiting_seconds)} a step, if each"
      " kernel takes no less time than its bytes",
    )
  yield "FLOPs", flops
  yield (
    "bytes through HBM",
    f"{_si(cost.bytes_accessed)}B a core and step; {_milliseconds(transfer)} at"
    " the chip's bandwidth",
  )
  fastest = _milliseconds(cost.roofline_seconds)
  yield "roofline", f"no step is faster than {fastest}, for its {bound}"
  for each in cost.collectives:
    moved = f"{each.count} × {each.kind}, {_si(each.bytes)}B a step"
    yield "collectives", moved
  if not cost.collectives:
    yield "collectives", "none"
  for kernel in cost.kernels:
    text = f"{kernel.name} in {kernel.layer}: {kernel.executions} calls"
    if kernel.cycles is None:
      yield "Pallas kernel", f"{text}, no schedule"
      continue
    scheduled = _milliseconds(kernel.cycles / chip.clock_hz)
    transfer = _milliseconds(kernel.hbm_bytes / chip.hbm_bandwidth)
    yield (
      "Pallas kernel",
      f"{text}, {kernel.cycles:,} cycles by static schedule: {scheduled};"
      f" {_si(kernel.hbm_bytes)}B: {transfer}",
    )
  if cost.unknown_loops:
    yield "not counted", f"{cost.unknown_loops} loops of unknown length: once"
  for number, layer in enumerate(cost.layers[:10]):
    time = _milliseconds(layer.cycles / chip.clock_hz)
    transfer = _milliseconds(layer.hbm_bytes / chip.hbm_bandwidth)
    text = (
      f"{layer.cycles / cost.cycles:5.1%} {time:>9}  {layer.name};"
      f" {_si(layer.hbm_bytes)}B: {transfer}"
    )
    yield "" if number else "expensive layers", text


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
