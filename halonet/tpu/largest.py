"""Finds the largest batch that fits into a core's memory."""

from collections.abc import Callable

from halonet.tpu.step_cost import StepCost


def largest_batch(
  measure: Callable[[int], StepCost],
  first: StepCost,
  allowed: Callable[[int], bool],
) -> StepCost | None:
  """Finds the largest batch per core that fits, in few compilations.

  Memory is nearly linear in the batch until the compiler recomputes values to
  make them fit. The line through what has been measured (initially, the first
  batch and nothing at zero) therefore gives the next batch to try, between the
  largest known to fit and the smallest known not to; until one is known not to
  fit, at least twice the largest is tried. Batches have three significant
  binary digits: 28, 32, 40, 48, …; finer steps are not worth a compilation.

  Args:
    measure: compiles a step for a batch.
    first: a cost to begin with.
    allowed: says whether the config allows a batch.

  Returns:
    The cost of the largest that fits; None if not even the smallest does.
  """
  sizes = [1, 2, 3]
  sizes += [digits << shift for shift in range(12) for digits in (4, 5, 6, 7)]
  sizes = [size for size in sizes if allowed(size)]
  costs = {first.per_core_batch: first}
  while True:
    fitting = [size for size, cost in costs.items() if cost.fits]
    failing = [size for size, cost in costs.items() if not cost.fits]
    low, high = max(fitting, default=0), min(failing, default=1 << 62)
    between = [size for size in sizes if low < size < high]
    if not between:
      return costs[low] if low else None
    capacity = first.hbm_capacity
    near = [size for size in between if _predict(costs, size) <= capacity]
    if not failing:
      near += [size for size in between if size <= 2 * low]
    size = max(near, default=between[0])
    costs[size] = measure(size)


def _predict(costs, size):
  """Memory of a batch, on the line through the two nearest measurements."""
  known = sorted(costs, key=lambda batch: abs(batch - size))[:2]
  points = [(batch, costs[batch].hbm_bytes) for batch in known] + [(0, 0)]
  (x, y), (x2, y2) = points[:2]
  return y + (size - x) * (y2 - y) / (x2 - x)
