"""Compares what detectors are made of with torchvision.

  pip install torch torchvision
  python scripts/parity_torchvision.py

On random boxes: overlaps, box coder, anchors, matcher, suppression and optax's
focal loss; both heads of a RetinaNet from the same weights; and the detections
that their outputs give. torchvision's conventions are chosen where Google's,
which are the defaults here, differ. Figures are largest differences over the
largest value (allowed: 1e-5), or numbers of differing integers (allowed: none).

torchvision puts columns before rows, and the ratios of anchors before their
sizes. Its heads have no norms between layers; ours get such as change nothing.
"""

import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax

import halonet
from halonet import command
from halonet.layers.normalization import BatchNorm
from halonet.models.retinanet import Head, HeadLayer, Output
from halonet.ops import anchors as anchor_ops
from halonet.ops import boxes as box_ops
from halonet.ops import matching, suppression

ALLOWED = 1e-5
IMAGE = 320, 256  # Height and width.
LEVELS = range(3, 8)
CLASSES = 90
# Halves of the sides are whole numbers, as torchvision rounds them.
RATIOS = (0.25, 1.0, 4.0)


def main() -> None:
  command.parser(__doc__).parse_args()
  try:
    import torch
    import torchvision
  except ImportError as error:
    sys.exit(f"error: {error}; pip install torch torchvision")
  torch.manual_seed(0)
  print(f"torchvision {torchvision.__version__}, PyTorch {torch.__version__}")
  print(f"{'what':44}{'compared':>10}{'difference':>12}")
  failed = False
  for part in (
    overlaps,
    box_coder,
    anchors,
    matcher,
    suppressed,
    focal_loss,
    heads,
    detections,
  ):
    for what, ours, theirs in part(torch):
      ours, theirs = np.asarray(ours), np.asarray(theirs)
      if ours.shape != theirs.shape:
        failed = True
        print(f"{what:44}{ours.shape} and {theirs.shape}")
        continue
      if np.issubdtype(ours.dtype, np.integer):
        difference = int((ours != theirs).sum())
        failed |= difference > 0
      else:
        difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
        failed |= not difference <= ALLOWED
      print(f"{what:44}{ours.size:10}{difference:12.3g}", flush=True)
  if failed:
    sys.exit("error: beyond what is allowed")


def draw(rng, number):
  """Returns boxes in the image, of 4 to 200 pixels."""
  centres = rng.uniform(0, IMAGE, (number, 2))
  halves = rng.uniform(2, 100, (number, 2))
  boxes = np.concatenate([centres - halves, centres + halves], axis=-1)
  return np.clip(boxes, 0, np.array(IMAGE * 2)).astype(np.float32)


def swap(boxes, torch):
  """Puts columns before rows, and back."""
  swapped = np.asarray(boxes)[..., [1, 0, 3, 2]]
  return swapped if torch is None else torch.tensor(swapped)


def overlaps(torch):
  import torchvision

  rng = np.random.default_rng(0)
  a, b = draw(rng, 300), draw(rng, 400)
  ours = box_ops.iou(jnp.asarray(a), jnp.asarray(b))
  theirs = torchvision.ops.box_iou(swap(a, torch), swap(b, torch))
  yield "IoU", ours, theirs


def box_coder(torch):
  from torchvision.models.detection import _utils

  rng = np.random.default_rng(1)
  boxes, origins = draw(rng, 500), draw(rng, 500)
  for weights in (box_ops.PLAIN, (10.0, 10.0, 5.0, 5.0)):
    coder = _utils.BoxCoder(weights)
    ours = box_ops.encode(jnp.asarray(boxes), jnp.asarray(origins), weights)
    theirs = coder.encode_single(swap(boxes, torch), swap(origins, torch))
    yield f"encode, weights {weights}", ours, swap(theirs, None)
    deltas = rng.normal(0, 3, (500, 4)).astype(np.float32)
    ours = box_ops.decode(jnp.asarray(deltas), jnp.asarray(origins), weights)
    theirs = coder.decode_single(swap(deltas, torch), swap(origins, torch))
    yield f"decode, weights {weights}", ours, swap(theirs, None)


def torchvision_anchors(torch):
  """Returns a generator whose anchors are ours with `centre=0.0`."""
  from torchvision.models.detection.anchor_utils import AnchorGenerator

  # Its ratio is height over width.
  return AnchorGenerator(
    tuple((4 * 2**level,) for level in LEVELS), (RATIOS,) * len(LEVELS)
  )


def anchors(torch):
  from torchvision.models.detection.image_list import ImageList

  size = 384, 256  # Multiples of all strides, which torchvision rounds.
  maps = [torch.zeros(1, 1, *(x // 2**level for x in size)) for level in LEVELS]
  images = ImageList(torch.zeros(1, 3, *size), [size])
  theirs = torchvision_anchors(torch)(images, maps)[0]
  ours = anchor_ops.anchors(
    *size, LEVELS, scales=1, ratios=RATIOS[::-1], centre=0.0
  )
  yield "anchors", anchor_ops.flatten(ours), swap(theirs, None)


def matcher(torch):
  import torchvision
  from torchvision.models.detection import _utils

  rng = np.random.default_rng(2)
  origins = anchor_ops.flatten(anchor_ops.anchors(*IMAGE, LEVELS, centre=0.0))
  differing, forced = [], []
  for _ in range(10):
    boxes = draw(rng, 12)
    quality = torchvision.ops.box_iou(swap(boxes, torch), swap(origins, torch))
    padded = np.concatenate([boxes, np.zeros((8, 4), np.float32)])
    labels = np.where(np.arange(20) < 12, 1, -1)
    for low_quality, kind, found in (
      (True, "ties", forced),
      (False, "none", differing),
    ):
      theirs = _utils.Matcher(0.5, 0.4, low_quality)(quality)
      ours = matching.targets(
        origins,
        jnp.asarray(padded),
        jnp.asarray(labels),
        unmatched=0.4,
        forced=kind,
      )
      found.append((np.asarray(ours.objects), theirs.numpy()))
  for what, found in (
    ("matches 0.4/0.5, low quality", forced),
    ("matches 0.4/0.5", differing),
  ):
    yield what, *(np.stack(each) for each in zip(*found, strict=True))


def suppressed(torch):
  import torchvision

  rng = np.random.default_rng(3)
  for threshold in (0.3, 0.5, 0.7):
    boxes = draw(rng, 3000)
    scores = rng.uniform(size=3000).astype(np.float32)
    labels = rng.integers(0, 5, 3000)
    kept, found = suppression.suppress(
      *(jnp.asarray(x)[None] for x in (boxes, scores, labels)), threshold, 300
    )
    # Class by class: `batched_nms` may move boxes, which rounds them.
    theirs = torchvision.ops.boxes._batched_nms_vanilla(
      swap(boxes, torch),
      torch.tensor(scores),
      torch.tensor(labels),
      threshold,
    )[:300]
    yield f"suppression at {threshold}", kept[0][found[0]], theirs


def focal_loss(torch):
  import torchvision

  rng = np.random.default_rng(4)
  logits = rng.normal(0, 4, (1000, CLASSES)).astype(np.float32)
  targets = (rng.uniform(size=logits.shape) < 0.1).astype(np.float32)
  for gamma in (1.5, 2.0):
    ours = optax.sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=gamma)
    theirs = torchvision.ops.sigmoid_focal_loss(
      torch.tensor(logits), torch.tensor(targets), 0.25, gamma
    )
    yield f"optax's focal loss, γ = {gamma}", ours, theirs


def draw_heads(torch):
  """Returns our detector, its heads' outputs, and theirs for the same maps."""
  from torchvision.models.detection.retinanet import RetinaNetHead

  rng = np.random.default_rng(5)
  width, places = 32, len(RATIOS)
  model = halonet.create_model(
    "retinanet_resnet50",
    fpn_width=width,
    num_classes=CLASSES,
    anchor_scales=1,
    anchor_ratios=RATIOS,
  )
  norm = functools.partial(BatchNorm, use_running_average=True)
  maps = {
    level: rng.normal(size=(2, *(-(-x // 2**level) for x in IMAGE), width))
    for level in LEVELS
  }
  maps = {level: jnp.asarray(x, jnp.float32) for level, x in maps.items()}
  theirs = RetinaNetHead(width, places, CLASSES).eval()
  ours = {}
  for name, head, last, outputs in (
    ("class_logits", theirs.classification_head, "cls_logits", CLASSES),
    ("box_deltas", theirs.regression_head, "bbox_reg", 4),
  ):
    tower, output = (
      Head(model.spec, HeadLayer, norm),
      Output(model.spec, outputs, 0.0),
    )
    # Their columns come before their rows.
    order = [1, 0, 3, 2] if outputs == 4 else range(outputs)
    order = np.arange(places * outputs).reshape(places, -1)[:, order].ravel()
    params, stats = {}, {}
    for number, layer in enumerate(head.conv, start=1):
      norms = {f"norm{level}": np.ones(width, np.float32) for level in LEVELS}
      params[f"layer{number}"] = {"conv": draw_conv(layer[0], rng, torch)} | {
        key: {"scale": one, "bias": 0 * one} for key, one in norms.items()
      }
      stats[f"layer{number}"] = {  # The variance and its epsilon add up to 1.
        key: {"mean": 0 * one, "var": (1 - 1e-5) * one}
        for key, one in norms.items()
      }
    conv = draw_conv(getattr(head, last), rng, torch)
    conv = {key: x[..., order] for key, x in conv.items()}
    y = jax.jit(tower.apply)({"params": params, "batch_stats": stats}, maps)
    ours[name] = jax.jit(output.apply)({"params": {"conv": conv}}, y)
  with torch.no_grad():
    given = [torch.tensor(np.asarray(x)) for x in maps.values()]
    theirs = theirs([x.permute(0, 3, 1, 2) for x in given])
  return model, ours, theirs


def draw_conv(conv, rng, torch):
  """Draws weights of torchvision's convolution, and returns them for ours."""
  fan_in = conv.weight[0].numel()
  kernel = rng.normal(0, (2 / fan_in) ** 0.5, conv.weight.shape)
  bias = rng.normal(0, 0.1, conv.bias.shape)
  with torch.no_grad():
    conv.weight.copy_(torch.tensor(kernel))
    conv.bias.copy_(torch.tensor(bias))
  kernel = kernel.transpose(2, 3, 1, 0).astype(np.float32)
  return {"kernel": kernel, "bias": bias.astype(np.float32)}


def heads(torch):
  _, ours, theirs = draw_heads(torch)
  yield "heads: logits", ours["class_logits"], theirs["cls_logits"]
  yield (
    "heads: boxes",
    ours["box_deltas"],
    swap(theirs["bbox_regression"], None),
  )


def detections(torch):
  """Compares what is made of the same outputs, with our anchors."""
  from torchvision.models.detection import _utils
  from torchvision.models.detection.retinanet import RetinaNet

  model, ours, _ = draw_heads(torch)
  sizes = [(300, 256), (320, 200)]
  levels = anchor_ops.anchors(*IMAGE, LEVELS, 1, RATIOS)
  numbers = [each[..., 0].size for each in levels.values()]

  def split(x):
    return torch.tensor(np.array(x)).split(numbers, dim=-2)

  for threshold, overlap in ((0.5, 0.5), (0.98, 0.3)):
    found = model.detect(
      ours,
      IMAGE,
      jnp.asarray(sizes, jnp.float32),
      score_threshold=threshold,
      overlap=overlap,
      most=300,
    )
    options = types.SimpleNamespace(
      score_thresh=threshold,
      topk_candidates=1000,
      nms_thresh=overlap,
      detections_per_img=300,
      box_coder=_utils.BoxCoder((1.0, 1.0, 1.0, 1.0)),
    )
    theirs = RetinaNet.postprocess_detections(
      options,
      {
        "cls_logits": split(ours["class_logits"]),
        "bbox_regression": split(swap(ours["box_deltas"], None)),
      },
      [split(swap(model.anchors(*IMAGE), None))] * 2,
      sizes,
    )
    what = f"detections at {threshold}, {overlap}: "
    for image, each in enumerate(theirs):
      count = int(found.count[image])
      boxes = found.boxes[image, :count]
      yield what + "boxes", boxes, swap(each["boxes"], None)
      yield what + "scores", found.scores[image, :count], each["scores"]
      yield what + "classes", found.labels[image, :count], each["labels"]


if __name__ == "__main__":
  main()
