"""The largest batch that fits into a core's memory, in few compilations."""

from collections.abc import Callable

from halonet.cost.tpu import Report


def largest_batch(
  measure: Callable[[int], Report],
  first: Report,
  allowed: Callable[[int], bool],
) -> Report | None:
  """Finds the largest batch per core that fits, in few compilations.

  Memory is nearly linear in the batch, until the compiler computes things
  again to make them fit. So the line through what has been measured (at first:
  through the first report and nothing at zero) names the next batch to try,
  between the largest that is known to fit and the smallest that is known not
  to; as long as none is known not to fit, at least twice the largest is tried.
  Batches have three significant binary digits: 28, 32, 40, 48, …; finer steps
  are not worth a compilation each.

  Args:
    measure: reports of a batch.
    first: a report to begin with.
    allowed: whether the config allows a batch.

  Returns:
    The report of the largest that fits; None if not even the smallest does.
  """
  sizes = [1, 2, 3]
  sizes += [digits << shift for shift in range(12) for digits in (4, 5, 6, 7)]
  sizes = [size for size in sizes if allowed(size)]
  reports = {first.per_core_batch: first}
  while True:
    fitting = [size for size, report in reports.items() if report.fits]
    failing = [size for size, report in reports.items() if not report.fits]
    low, high = max(fitting, default=0), min(failing, default=1 << 62)
    between = [size for size in sizes if low < size < high]
    if not between:
      return reports[low] if low else None
    capacity = first.hbm_capacity
    near = [size for size in between if _predict(reports, size) <= capacity]
    if not failing:
      near += [size for size in between if size <= 2 * low]
    size = max(near, default=between[0])
    reports[size] = measure(size)


def _predict(reports, size):
  """Memory of a batch, on the line through the two nearest measurements."""
  points = sorted(
    ((known, report.hbm_bytes) for known, report in reports.items()),
    key=lambda point: abs(point[0] - size),
  )[:2]
  if len(points) == 1:
    points.append((0, 0))
  (x, y), (x2, y2) = points
  return y + (size - x) * (y2 - y) / (x2 - x)
