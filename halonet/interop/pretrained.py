"""Trained weights by name: their sources, and the images that they expect."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from halonet.errors import UsageError, unknown
from halonet.fields import MOST_SIDE, Field
from halonet.interop import timm
from halonet.models.registry import create_model
from halonet.models.timm_models import TIMM_NAMES

_HUB = "hf-hub:"
_IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


# Names of running variances: timm's and ours.
_VARIANCE = r"\.running_var$|^batch_stats/(.*/)?var$"

# timm's names of the classifier's bias.
_CLASSIFIERS = ("head.fc.bias", "head.bias", "fc.bias")

# Fields that decide how many rows relative tables have.
_TABLE_FIELDS = (
  "block_size",
  "halo_size",
  "global_size",
  "lambda_window",
  "window_size",
  "stage_windows",
)

# What a `config.json` of timm's says of images.
_SIDE = Field(224, "", least=1, most=MOST_SIDE)
_EXPECTED = {
  "crop_pct": Field(0.95, "", above=0, most=1),
  "mean": Field((0.5, 0.5, 0.5), "", length=3),
  "std": Field((0.5, 0.5, 0.5), "", length=3, above=0),
  "interpolation": Field("bicubic", "", choices=("bicubic", "bilinear")),
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """Images that weights were evaluated on, and so expect.

  Attributes:
    image_size: side of the model's input in pixels.
    crop: share of the resized image's shorter side that the central crop keeps.
    mean: mean of every channel, after scaling to 0 … 1.
    std: standard deviation of every channel.
    interpolation: method of resizing, "bicubic" or "bilinear".
  """

  image_size: int
  crop: float
  mean: tuple[float, ...]
  std: tuple[float, ...]
  interpolation: str = "bicubic"


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Published weights: a hub id, and the images that they expect."""

  source: str
  preprocessing: Preprocessing


# timm's own default weights for its models; ImageNet, 1000 classes.
PRETRAINED = {
  name: Pretrained(
    f"{_HUB}timm/{name}.{tag}", Preprocessing(image_size, crop, **statistics)
  )
  for name, tag, image_size, crop, statistics in (
    ("halonet26t", "a1h_in1k", 256, 0.95, _IMAGENET),
    ("sehalonet33ts", "ra2_in1k", 256, 0.94, _IMAGENET),
    ("halonet50ts", "a1h_in1k", 256, 0.94, _IMAGENET),
    ("eca_halonext26ts", "c1_in1k", 256, 0.94, _IMAGENET),
    ("lamhalobotnet50ts_256", "a1h_in1k", 256, 0.95, _IMAGENET),
    ("halo2botnet50ts_256", "a1h_in1k", 256, 0.95, _IMAGENET),
    ("haloregnetz_b", "ra3_in1k", 224, 0.94, _HALF),
    *(
      (f"swin_{size}_patch4_window7_224", tag, 224, 0.9, _IMAGENET)
      for size, tag in (
        ("tiny", "ms_in1k"),
        ("small", "ms_in22k_ft_in1k"),
        ("base", "ms_in22k_ft_in1k"),
      )
    ),
    *((f"pvt_v2_b{i}", "in1k", 224, 0.9, _IMAGENET) for i in range(6)),
    ("resnet50", "a1_in1k", 224, 0.95, _IMAGENET),
    ("resnet101", "a1h_in1k", 224, 0.95, _IMAGENET),
    ("resnet152", "a1h_in1k", 224, 0.95, _IMAGENET),
  )
}


def load_pretrained(
  name: str, source: str | None = None, **overrides: Any
) -> tuple[nn.Module, Any]:
  """Makes a model and reads its weights.

  Args:
    name: a model of timm's, such as `halonet50ts`.
    source: a safetensors file; a PyTorch file, read by PyTorch's loader for
      weights alone, if PyTorch is installed; or `hf-hub:OWNER/NAME`, fetched
      into the hub's ordinary cache. timm's own weights by default.
    **overrides: fields of the model, as for `create_model`.

  Returns:
    The model and its variables, `model.apply(variables, images)`.

  Raises:
    UsageError: if the weights cannot be found or read, or hold NaN, infinity or
      a negative running variance.
    ValueError: if there is no such model, or the weights are not its own; it
      lists all that is missing, unexpected or of the wrong shape.
  """
  model = create_model(name, **overrides)
  if name not in TIMM_NAMES:
    raise UsageError(
      unknown("model with weights", name, PRETRAINED)
      + "; the paper's own weights were never published"
    )
  if source is None:
    if name not in PRETRAINED:
      raise UsageError(f"no weights of {name} are published; name a source")
    source = PRETRAINED[name].source
  return model, timm.from_timm(read_state_dict(source), model)


def load_as_saved(
  name: str, source: str | None = None, **overrides: Any
) -> tuple[nn.Module, Any]:
  """Reads weights to begin a training with, whatever their classes and tables.

  Args:
    name: as for `load_pretrained`.
    source: as for `load_pretrained`.
    **overrides: fields of the model to be trained.

  Returns:
    The model that the weights fit, and its variables. It has the classes of
    the weights, and relative tables for the block, halo and map of its name, or
    where the weights do not fit those, for the ones of `overrides`.

  Raises:
    UsageError: if the weights cannot be found or read, or fit neither.
  """
  state_dict = read_state_dict(find_source(name, source))
  bias = next((state_dict[k] for k in _CLASSIFIERS if k in state_dict), None)
  if bias is not None and bias.ndim:
    overrides["num_classes"] = len(bias)
  own = {
    field: value
    for field, value in overrides.items()
    if field not in _TABLE_FIELDS
  }
  problem = None
  for fields in (own, overrides):
    model = create_model(name, **fields)
    try:
      return model, timm.from_timm(state_dict, model)
    except ValueError as error:
      problem = error
  raise UsageError(str(problem))


def find_source(name: str, source: str | None = None) -> str:
  """Returns a source to begin a training with; timm's own by default.

  Args:
    name: as for `load_pretrained`.
    source: as for `load_pretrained`.

  Raises:
    UsageError: if the model has no weights, or there is no such file. Whether
      the hub has them, only fetching them tells.
  """
  if name not in TIMM_NAMES:
    raise UsageError(
      f"timm has no weights of {name}; name the workdir of a run, or train a"
      " model of timm's"
    )
  if source is None:
    if name not in PRETRAINED:
      raise UsageError(
        f"timm publishes no weights of {name}; name a file or the workdir of a"
        " run"
      )
    return PRETRAINED[name].source
  if not source.startswith(_HUB):
    _check_file(source)
  return source


def imagenet_classes() -> list[str]:
  """Names of ImageNet's 1000 classes, in the order of the logits."""
  path = pathlib.Path(__file__).with_name("imagenet_classes.txt")
  return path.read_text().splitlines()


def read_state_dict(source: str) -> dict[str, np.ndarray]:
  """Reads a state dict from a file or the hub; see `load_pretrained`.

  Raises:
    UsageError: if it cannot be found or read, or holds impossible values.
  """
  if source.startswith(_HUB):
    path = _fetch(source.removeprefix(_HUB), "model.safetensors")
  else:
    path = _check_file(source)
  if path.suffix == ".safetensors":
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
      return _as_float32(path, load_file(path))
    except (SafetensorError, OSError) as error:
      raise UsageError(f"weights: {path} cannot be read: {error}") from None
  try:
    import torch
  except ImportError:
    raise UsageError(
      f"weights: {path} is no .safetensors file; to read PyTorch's, install"
      " torch"
    ) from None
  try:
    # Never runs code that a file brings along.
    state_dict = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "state_dict_ema", "model"):
      state_dict = state_dict.get(key, state_dict)
    arrays = {
      name: array.float().numpy()
      if array.is_floating_point()
      else array.numpy()
      for name, array in state_dict.items()
    }
  except Exception as error:  # Its unpickler raises many kinds.
    reason = str(error).split(".")[0]  # More would advise to run its code.
    raise UsageError(f"weights: {path} cannot be read: {reason}") from None
  return _as_float32(path, arrays)


def save_timm(
  path: str | pathlib.Path, variables: Any, model: nn.Module
) -> None:
  """Writes variables as a safetensors file that timm loads strictly.

  Raises:
    UsageError: if the file exists or cannot be written.
    ValueError: if timm has no such model, or the variables are another's.
  """
  from safetensors import SafetensorError
  from safetensors.numpy import save_file

  path = pathlib.Path(path)
  if path.exists():
    raise UsageError(f"weights: {path} exists; name another file")
  arrays = timm.to_timm(variables, model)
  try:
    save_file(arrays, path)
  except (SafetensorError, OSError) as error:
    raise UsageError(f"weights: {path} cannot be written: {error}") from None


def load_preprocessing(name: str, source: str | None = None) -> Preprocessing:
  """Returns the images that the weights of a source expect.

  timm describes them in a `config.json` beside the weights, on the hub or in
  their folder. Where there is none, those of the model's own weights serve.

  Raises:
    UsageError: if the config cannot be fetched or read.
  """
  own = PRETRAINED[name]
  if source is None or source == own.source:
    return own.preprocessing
  if source.startswith(_HUB):
    path = _fetch(source.removeprefix(_HUB), "config.json")
  else:
    path = pathlib.Path(source).with_name("config.json")
    if not path.is_file():
      return own.preprocessing
  try:
    config = json.loads(path.read_text())
    config = config.get("pretrained_cfg", config)
    channels, height, width = config["input_size"]
    crop_mode = config.get("crop_mode") or "center"
    expected = {name: config[name] for name in _EXPECTED}
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UsageError(
      f"weights: {path} does not say what images they expect: {error!r}"
    ) from None
  if channels != 3 or height != width:
    raise UsageError(
      f"weights: {path}: input_size is {config['input_size']}; images must be"
      " square and of 3 channels, such as [3, 256, 256]"
    )
  if crop_mode != "center":
    raise UsageError(
      f"weights: {path}: crop_mode is {crop_mode!r}; only 'center' is supported"
    )
  try:
    side = _SIDE.check("input_size", width)
    for name, field in _EXPECTED.items():
      expected[name] = field.check(name, expected[name])
  except ValueError as error:
    raise UsageError(f"weights: {path}: {error}") from None
  return Preprocessing(side, expected.pop("crop_pct"), **expected)


def check_values(
  arrays: Mapping[str, np.ndarray], source: str | pathlib.Path
) -> None:
  """Refuses weights that no training can have left on purpose.

  Args:
    arrays: by name, in the words of timm or of our own variables.
    source: where they are from, for the message.

  Raises:
    UsageError: that names the first array with NaN or infinity, or with a
      running variance below 0.
  """
  for name, array in arrays.items():
    problem = None
    if np.isnan(array).any():
      problem = "holds NaN"
    elif np.isinf(array).any():
      problem = "holds infinity"
    elif re.search(_VARIANCE, name) and (array < 0).any():
      problem = "is a running variance, and holds values below 0"
    if problem:
      raise UsageError(
        f"weights: {source}: {name} {problem}; they are damaged, or of a"
        " training that diverged"
      )


def _check_file(source):
  path = pathlib.Path(source)
  if not path.is_file():
    raise UsageError(
      f"weights: there is no file {source} (a hub id begins with {_HUB})"
    )
  return path


def _as_float32(path, state_dict):
  """Widens narrower weights; only counters may be whole numbers."""
  arrays = {}
  for name, array in state_dict.items():
    if np.issubdtype(array.dtype, np.integer):
      if not name.endswith("num_batches_tracked"):
        raise UsageError(
          f"weights: {path}: {name} holds {array.dtype}; quantised weights are"
          " not supported"
        )
      arrays[name] = array
    else:
      arrays[name] = array.astype(np.float32)
  check_values(arrays, path)
  return arrays


def _fetch(repository, file):
  from huggingface_hub import hf_hub_download
  from huggingface_hub.utils import logging

  # Its warnings of every retry; the error says it once.
  logging.set_verbosity_error()
  try:
    return pathlib.Path(hf_hub_download(repository, file))
  except (OSError, ValueError) as error:  # The hub's own errors are of these.
    reason = str(error).strip().splitlines()[0]
    raise UsageError(
      f"weights: {_HUB}{repository} cannot be fetched ({reason}); go online"
      " once, or name a file"
    ) from None
