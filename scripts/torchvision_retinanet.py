"""torchvision's RetinaNet of the shape of a detector of ours, and its weights.

For scripts/train_torchvision.py; it needs PyTorch and torchvision.
"""

import collections
import functools
import itertools
import math
import re

import jax
import numpy as np
import torch
from flax import traverse_util
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead
from torchvision.models.resnet import Bottleneck
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import Conv2dNormActivation

from halonet.errors import RunError, UsageError
from halonet.layers import layouts

ALLOWED = 1e-5
COLUMNS_FIRST = [1, 0, 3, 2]


class LevelNorms(nn.ModuleList):
  """A batch norm for each level; they come in turn, as the levels do."""

  def __init__(self, levels, channels):
    super().__init__(nn.BatchNorm2d(channels) for _ in levels)
    self.turn = itertools.cycle(range(len(levels)))

  def forward(self, x):
    return self[next(self.turn)](x)


class LastLevels(LastLevelP6P7):
  """Adds the last two levels, and a norm after each of all."""

  def __init__(self, channels, norm):
    super().__init__(channels, channels)
    self.norm = norm

  def forward(self, *given):
    found, names = super().forward(*given)
    return [self.norm(x) for x in found], names


class Prepared(nn.Module):
  """Takes images as they are: normalised, of one size.

  Attributes:
    content: rows and columns of each that are no padding, at whose border the
      boxes are cut off.
  """

  content: list[tuple[int, int]]

  def forward(self, images, targets=None):
    return ImageList(torch.stack(images), self.content), targets

  def postprocess(self, detections, *_):
    return detections


def make_network(model, norms: str) -> RetinaNet:
  """Makes the network of one of our detectors.

  Args:
    model: a RetinaNet over a plain ResNet, of convolutions.
    norms: "level", "group" or "none"; see scripts/train_torchvision.py.
  """
  spec, levels = model.spec, _levels(model)
  level_norms = functools.partial(LevelNorms, levels)
  norm_layer = {
    "level": level_norms,
    "group": functools.partial(nn.GroupNorm, math.gcd(32, spec.fpn_width)),
    "none": None,
  }[norms]
  own = level_norms(spec.fpn_width) if norms == "level" else nn.Identity()
  stages = {
    level: each
    for each in model.backbone.spec.feature_info
    if (level := each.stride.bit_length() - 1) in levels
  }
  backbone = BackboneWithFPN(
    make_resnet(model.backbone.spec),
    {each.name.replace("stage", "layer"): str(x) for x, each in stages.items()},
    [each.channels for each in stages.values()],
    spec.fpn_width,
    LastLevels(spec.fpn_width, own),
  )
  octave = 2 ** (np.arange(spec.anchor_scales) / spec.anchor_scales)
  generator = AnchorGenerator(
    tuple(tuple(spec.anchor_size * 2**level * octave) for level in levels),
    # Its ratios are heights over widths.
    (tuple(1 / ratio for ratio in spec.anchor_ratios),) * len(levels),
  )
  head = RetinaNetHead(spec.fpn_width, spec.places, spec.num_classes)
  for each in (head.classification_head, head.regression_head):
    each.conv = nn.Sequential(
      *(
        Conv2dNormActivation(
          spec.fpn_width, spec.fpn_width, norm_layer=norm_layer, bias=True
        )
        for _ in range(spec.head_depth)
      )
    )
  # It takes any class from 0 on for an object, so none is for background.
  network = RetinaNet(
    backbone,
    spec.num_classes,
    anchor_generator=generator,
    head=head,
    detections_per_img=100,
  )
  network.transform = Prepared()
  return network


def make_resnet(spec) -> nn.Module:
  """Makes a ResNet without classifier, with torchvision's names."""
  channels = spec.stem_features
  body = {
    "conv1": nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
    "bn1": nn.BatchNorm2d(channels),
    "relu": nn.ReLU(),
    "maxpool": nn.MaxPool2d(3, stride=2, padding=1),
  }
  for number, stage in enumerate(spec.stages, start=1):
    blocks = []
    for block in stage:
      shortcut = None
      if block.shortcut == "project":
        shortcut = nn.Sequential(
          nn.Conv2d(channels, block.features, 1, block.stride, bias=False),
          nn.BatchNorm2d(block.features),
        )
      blocks.append(Bottleneck(channels, block.width, block.stride, shortcut))
      channels = block.features
    body[f"layer{number}"] = nn.Sequential(*blocks)
  return nn.Sequential(collections.OrderedDict(body))


def copy(model, variables, network: RetinaNet) -> list[str]:
  """Gives our variables to the network.

  Returns:
    Paths of our variables that have no place there, and names of its arrays
    that have none here.

  Raises:
    UsageError: if torchvision has no such network, but for the norms.
  """
  flat = traverse_util.flatten_dict(jax.device_get(variables), sep="/")
  try:
    entries = _layouts(model, {path: x.shape for path, x in flat.items()})
  except ValueError as error:
    raise UsageError(f"config.model: {error}") from None
  wanted = {
    name: x
    for name, x in network.state_dict().items()
    if not name.endswith("num_batches_tracked")
  }
  found = {}
  for name in wanted.keys() & entries.keys():
    array = entries[name].export(*(flat.pop(x) for x in entries[name].paths))
    if array.shape != wanted[name].shape:
      raise UsageError(
        f"config.model: torchvision has no such model: {name} is"
        f" {tuple(wanted[name].shape)}, not {array.shape}"
      )
    found[name] = torch.tensor(np.ascontiguousarray(array))
  if kernels := [path for path in flat if path.endswith("/kernel")]:
    raise UsageError(f"config.model: torchvision has no {', '.join(kernels)}")
  network.load_state_dict(found, strict=False)
  return sorted(flat) + sorted(wanted.keys() - entries.keys())


def compare(model, variables, network: RetinaNet, images, heads=True) -> None:
  """Prints how far the two are apart, and gives our variables to the network.

  Args:
    model: our detector.
    variables: of our detector.
    network: torchvision's.
    images: `[batch, height, width, 3]`.
    heads: whether the outputs are to be equal, too, or the pyramid alone.

  Raises:
    RunError: if they are further apart than ALLOWED.
  """

  @jax.jit
  def run(variables):
    levels = model.apply(variables, images, method="features")
    return levels | (model.apply(variables, images) if heads else {})

  figures = collections.defaultdict(list)
  for given in (_draw(variables), variables):
    left = copy(model, given, network)
    ours = run(_without(given, left))
    for name, x in _outputs(model, network, images).items():
      if name in ours:
        difference = np.abs(x - np.asarray(ours[name])).max()
        figures[name].append(difference / np.abs(x).max())
  print(f"{'difference':14}{'random':>10}{'first weights':>15}")
  for name, (random, first) in figures.items():
    print(f"{name:14}{random:10.1e}{first:15.1e}")
  # Without the kind of the variable, and the level of its norm.
  modules = sorted(
    {re.sub(r"^(params|batch_stats)/|\d*/[a-z]+$", "", x) for x in left}
  )
  print(f"Without a counterpart: {', '.join(modules) or 'nothing'}", flush=True)
  if not max(max(x) for x in figures.values()) <= ALLOWED:
    raise RunError("the networks are not the same")


def losses_of(network: RetinaNet, batch) -> dict[str, torch.Tensor]:
  """Returns the losses of a batch of our training stream."""
  targets = []
  for boxes, labels in zip(batch["boxes"], batch["labels"], strict=True):
    real = labels >= 0
    targets.append(
      {
        "boxes": torch.tensor(boxes[real][:, COLUMNS_FIRST]),
        "labels": torch.tensor(labels[real].astype(np.int64)),
      }
    )
  images = _images(batch["image"])
  network.train().transform.content = [images.shape[2:]] * len(images)
  return network(list(images), targets)


def detect(network: RetinaNet, batch) -> dict[str, np.ndarray]:
  """Returns boxes, scores and labels of an evaluation batch, as ours does.

  Boxes are in pixels of the model's image; labels of padding rows are −1.
  """
  content = np.round(batch["content"]).astype(int).tolist()
  network.eval().transform.content = [tuple(sides) for sides in content]
  with torch.no_grad():
    detections = network(list(_images(batch["image"])))
  shape = len(detections), network.detections_per_img
  found = {
    "boxes": np.zeros((*shape, 4)),
    "scores": np.zeros(shape),
    "labels": np.full(shape, -1),
  }
  for row, each in enumerate(detections):
    each["boxes"] = each["boxes"][:, COLUMNS_FIRST]
    for name, x in each.items():
      found[name][row, : len(x)] = x
  return found


def _outputs(model, network, images):
  """Returns levels and outputs of the network, by our names, in our order."""
  with torch.no_grad():
    levels = network.eval().backbone(_images(images))
    found = network.head(list(levels.values()))
  arrays = {
    f"p{level}": x.permute(0, 2, 3, 1).numpy()
    for level, x in zip(_levels(model), levels.values(), strict=True)
  }
  order = np.argsort(_places(model))
  for name, x in (
    ("class_logits", found["cls_logits"]),
    ("box_deltas", found["bbox_regression"][..., COLUMNS_FIRST]),
  ):
    places = x.unflatten(1, (-1, len(order)))
    arrays[name] = places[:, :, order].flatten(1, 2).numpy()
  return arrays


def _draw(variables):
  """Draws variables at random."""
  rng = np.random.default_rng(0)

  def one(path, x):
    if path[-1] == "kernel":
      x = rng.normal(0, (2 / x[..., 0].size) ** 0.5, x.shape)
    elif path[-1] in ("scale", "var"):
      x = rng.uniform(0.5, 1.5, x.shape)
    else:
      x = rng.normal(0, 0.1, x.shape)
    return x.astype(np.float32)

  return traverse_util.path_aware_map(one, variables)


def _without(variables, left):
  """Makes norms that have no counterpart change nothing."""
  # The variance and its epsilon add up to 1.
  neutral = {"scale": 1, "bias": 0, "mean": 0, "var": 1 - 1e-5}

  def one(path, x):
    return neutral[path[-1]] + 0 * x if "/".join(path) in left else x

  return traverse_util.path_aware_map(one, variables)


def _images(images):
  return torch.tensor(np.asarray(images, np.float32)).permute(0, 3, 1, 2)


def _levels(model):
  first, last = model.spec.levels
  return range(first, last + 1)


def _places(model):
  """Returns the numbers of our anchors around a pixel in its order."""
  # It has all sizes of the first ratio, then those of the next.
  spec = model.spec
  return np.arange(spec.places).reshape(spec.anchor_scales, -1).T.ravel()


def _layouts(model, shapes):
  """Relates our variables to its arrays, by their names; see `Layout`."""
  spec, entries = model.spec, {}

  def add_conv(ours, theirs):
    entries.update(layouts.conv(ours, theirs, shapes))
    entries.update(layouts.bias(ours, theirs))

  inner = {
    path.replace("/backbone/", "/", 1): shape
    for path, shape in shapes.items()
    if path.split("/")[1] == "backbone"
  }
  for name, each in model.backbone.timm_entries(inner).items():
    paths = tuple(path.replace("/", "/backbone/", 1) for path in each.paths)
    entries[f"backbone.body.{name}"] = each._replace(paths=paths)
  for at, level in enumerate(_levels(model)):
    pyramid = "backbone.fpn."
    if f"params/fpn/lateral{level}/kernel" in shapes:
      add_conv(f"fpn/lateral{level}", f"{pyramid}inner_blocks.{at}.0")
      add_conv(f"fpn/output{level}", f"{pyramid}layer_blocks.{at}.0")
    else:
      add_conv(f"fpn/output{level}", f"{pyramid}extra_blocks.p{level}")
    entries |= layouts.norm(
      f"fpn/norm{level}", f"{pyramid}extra_blocks.norm.{at}"
    )
  places, box = _places(model), COLUMNS_FIRST
  for ours, theirs, last, order in (
    ("class", "classification", "cls_logits", range(spec.num_classes)),
    ("box", "regression", "bbox_reg", box),
  ):
    theirs = f"head.{theirs}_head"
    order = (places[:, None] * len(order) + np.array(order)).ravel()
    add_conv(f"{ours}_output/conv", f"{theirs}.{last}")
    for kind in ("weight", "bias"):
      name = f"{theirs}.{last}.{kind}"
      export = entries[name].export
      entries[name] = entries[name]._replace(
        export=lambda x, export=export, order=order: export(x[..., order])
      )
    for number in range(spec.head_depth):
      layer, conv = f"{ours}_head/layer{number + 1}", f"{theirs}.conv.{number}"
      add_conv(f"{layer}/conv", f"{conv}.0")
      for at, level in enumerate(_levels(model)):
        entries |= layouts.norm(f"{layer}/norm{level}", f"{conv}.1.{at}")
  return entries
