"""What the fields of a training config may hold."""

import ml_collections

from halonet.errors import UsageError, unknown
from halonet.training import durations

# Field → least and greatest value, both allowed.
_RANGES = {
  "seed": (0, 2**31 - 1),
  "batch_size": (1, None),
  "accumulation_steps": (1, None),
  "keep_checkpoints": (1, None),
  "data.image_size": (1, None),
  "data.shuffle_buffer": (1, None),
  "data.randaugment_layers": (0, None),
  "data.randaugment_magnitude": (0, 10),
  "data.randaugment_std": (0, None),
  "data.random_erasing": (0, 1),
  "data.mixup": (0, None),
  "data.cutmix": (0, None),
  "optimizer.learning_rate": (0, None),
  "optimizer.weight_decay": (0, None),
  "optimizer.clip_norm": (0, None),
}
_CHOICES = {
  "optimizer.name": ("sgd", "adamw"),
  "data.interpolation": ("bilinear", "bicubic"),
  "data.image_dtype": ("float32", "bfloat16"),
}


def check(config: ml_collections.ConfigDict) -> None:
  """Raises UsageError, with the field, if a value is out of range."""
  for field, (least, greatest) in _RANGES.items():
    value = _get(config, field)
    if not value >= least:
      raise UsageError(
        f"config.{field} is {value}; it must be at least {least}"
      )
    if greatest is not None and value > greatest:
      raise UsageError(
        f"config.{field} is {value}; it must be at most {greatest}"
      )
  for field, choices in _CHOICES.items():
    value = _get(config, field)
    if value not in choices:
      kind = field.rpartition(".")[2].replace("name", "optimizer")
      raise UsageError(f"config.{field}: {unknown(kind, value, choices)}")
  for field in ("data.crop_area", "data.crop_fraction"):
    value = _get(config, field)
    if not 0 < value <= 1:
      raise UsageError(
        f"config.{field} is {value}; it must be above 0 and at most 1"
      )
  for field in ("label_smoothing", "ema_decay", "optimizer.momentum"):
    value = _get(config, field)
    if not 0 <= value < 1:
      raise UsageError(
        f"config.{field} is {value}; it must be at least 0 and below 1"
      )
  for field in ("mean", "std"):
    value = config.data[field]
    if len(value) != 3 or (field == "std" and min(value) <= 0):
      raise UsageError(
        f"config.data.{field} is {value}; it must be three numbers"
        + (" above 0" if field == "std" else "")
      )
  trace = config.profile_steps
  if trace and (
    len(trace) != 2
    or not all(isinstance(step, int) for step in trace)
    or not 1 <= trace[0] <= trace[1]
  ):
    raise UsageError(
      f"config.profile_steps is {trace}; it must be the first and the last step"
      " of the trace, such as (100, 104)"
    )
  if config.model.dtype == "float64":
    raise UsageError(
      "config.model.dtype is 'float64'; training takes float32 or bfloat16"
    )
  _check_durations(config)


def _check_durations(config):
  for field in durations.FIELDS:
    value = _get(config, field)
    least = 0 if field == "optimizer.warmup_steps" else 1
    number, unit = durations.parse(value)
    if number < least and not (unit == "epochs" and number > 0):
      raise UsageError(
        f"config.{field} is {value}; it must be at least {least}"
      )
  steps, unit = durations.parse(config.steps)
  warmup, warmup_unit = durations.parse(config.optimizer.warmup_steps)
  trace = config.profile_steps
  if trace and unit == "steps" and trace[0] > steps:
    raise UsageError(
      f"config.profile_steps is {trace}; it must begin at most at config.steps,"
      f" {config.steps}"
    )
  if unit == warmup_unit and warmup >= steps:
    raise UsageError(
      f"config.optimizer.warmup_steps is {config.optimizer.warmup_steps}; it"
      f" must be below config.steps, {config.steps}"
    )


def check_devices(config: ml_collections.ConfigDict, devices: int) -> None:
  """Raises UsageError unless a batch splits as the config asks.

  Evenly over the devices and the parts of a device's share, into whole groups
  of batch norm and whole pairs to mix.
  """
  parts = devices * config.accumulation_steps
  if config.batch_size % parts:
    below = config.batch_size // parts * parts
    near = " or ".join(str(n) for n in (below, below + parts) if n)
    by = f"{devices} devices"
    if config.accumulation_steps > 1:
      by += f" × {config.accumulation_steps} accumulation_steps"
    raise UsageError(
      f"config.batch_size is {config.batch_size}, which {by} do not divide"
      f" evenly; take {near}"
    )
  part = config.batch_size // parts
  group = config.model.batch_norm_group
  if config.accumulation_steps > 1 and (not group or part % group):
    raise UsageError(
      f"config.model.batch_norm_group is {group}; with"
      f" config.accumulation_steps {config.accumulation_steps} it must divide"
      f" the {part} images that are computed at once (0 asks for statistics of"
      " the whole batch, which its parts do not have)"
    )
  if group and config.batch_size % group:
    raise UsageError(
      f"config.model.batch_norm_group is {group}, which does not divide"
      f" config.batch_size, {config.batch_size}"
    )
  if (config.data.mixup or config.data.cutmix) and part % 2:
    raise UsageError(
      f"config.batch_size is {config.batch_size}: {part} images are computed at"
      " once, and config.data.mixup and cutmix ask for an even number"
    )


def _get(config, field):
  for key in field.split("."):
    config = config[key]
  return config
