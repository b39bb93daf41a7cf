"""Object detection: boxes and classes, RetinaNet's losses, COCO's figures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from halonet.data.images import padded_input, padded_sides, padding
from halonet.errors import RunError, UsageError
from halonet.fields import Field
from halonet.models.registry import create_model
from halonet.ops import matching
from halonet.tasks.coco_evaluation import CocoEvaluator, corner_and_sides
from halonet.tasks.task import Task

# An image of COCO has at most 93 objects; other data sets have several hundred.
_MOST_OBJECTS = 10_000
# Fields for classifiers, and their defaults.
_CROPS = {"crop_area": 0.08, "crop_fraction": 1.0, "crop_padding": 0}

_ITEMS = {
  "objects/bbox": "BBoxFeature",
  "objects/label": "ClassLabel",
  "objects/is_crowd": "Tensor",
  "objects/area": "Tensor",
}


class Detection(Task):
  """Finds objects of several classes, each with a box.

  Targets of a training batch are
    boxes: top, left, bottom and right in pixels of the model's image, float32
      `[max_objects, 4]`, and zeros in padding rows;
    labels: int32 `[max_objects]`, −1 in padding rows;
    objects: how many there are without the limit, int32.
  An evaluation batch has boxes in pixels of the source image, and
    crowd: whether a box is around a group of objects, bool `[max_objects]`;
    area: pixels of the source image, float32 `[max_objects]`;
    to_source: factors from the model's pixels to the source's, float32 `[4]`;
    content: height and width of the image within the model's, float32 `[2]`;
    image_id: the data set's number of the image, as int32 `[2]`: its upper and
      its lower 31 bits.
  The metadata are `labels`, the names of the classes, and `class_ids`, the data
  set's numbers of them.
  """

  best = "box_ap"
  finds = True
  needs = {"image/id": "Tensor", **_ITEMS}  # noqa: RUF012
  decides = ("num_classes",)
  FIELDS = {  # noqa: RUF012
    "data.scale_jitter": Field(
      (1.0, 1.0),
      "Least and most of the factor by which a training image is larger than"
      " the model's; what is beyond is cut off at random.",
      length=2,
      above=0,
      most=8,
    ),
    "data.max_objects": Field(
      100,
      "Most objects of an image. Training counts and leaves out the others;"
      " evaluation ends with an error.",
      least=1,
      most=_MOST_OBJECTS,
      changeable=True,
    ),
    "score_threshold": Field(
      0.05,
      "Score that a detection of the evaluation must exceed.",
      least=0,
      below=1,
      changeable=True,
    ),
    # Defaults are Google's, the code of SASA's authors; docs/departures.md.
    "focal_alpha": Field(
      0.25, "Weight of objects in the focal loss.", above=0, below=1
    ),
    "focal_gamma": Field(1.5, "Exponent of the focal loss.", least=0, most=100),
    "huber_delta": Field(
      0.1, "Where the loss of boxes turns linear.", above=0, most=100
    ),
    "box_weight": Field(
      50.0, "Weight of the loss of boxes.", least=0, most=10_000
    ),
  }

  def check(self):
    least, most = self.config.data.scale_jitter
    if least > most:
      raise UsageError(
        f"config.data.scale_jitter is {(least, most)}; the first must not be"
        " above the second"
      )
    for name, default in _CROPS.items():
      value = self.config.data[name]
      if value != default:
        raise UsageError(
          f"config.data.{name} is {value}, which is for classifiers; leave it"
          " out: config.data.scale_jitter decides what of an image is shown"
        )
    policy = self.config.data.randaugment_policy
    if self.config.data.randaugment_layers and policy != "color":
      raise UsageError(
        f"config.data.randaugment_policy is {policy!r}, which moves pixels, and"
        " boxes would not follow; set it to color, or"
        " config.data.randaugment_layers=0"
      )

  def check_model(self, model):
    if not hasattr(model, "anchors"):
      raise UsageError(
        f"config.model.name is {self.config.model.name!r}, which is no"
        " detector; config.task=detection asks for one, such as"
        " retinanet_resnet50"
      )

  def describe(self, source):
    name = "objects/label"
    if name not in source.classes:
      raise UsageError(
        f"config.data.name: {source.name} does not say what its classes are;"
        " prepare it first"
      )
    labels = source.classes[name]
    ids = source.class_ids.get(name, range(1, len(labels) + 1))
    return {"labels": labels, "class_ids": list(ids)}

  def model_fields(self):
    return {"num_classes": len(self.metadata["labels"])}

  @functools.cached_property
  def _model(self):
    """The detector, for its anchors."""
    fields = self.config.model.to_dict() | self.model_fields()
    return create_model(fields.pop("name"), **fields)

  # --------------------------------------------------------------------- data

  def targets(self, train):
    most = self.config.data.max_objects
    spec = {
      "boxes": ((most, 4), "float32"),
      "labels": ((most,), "int32"),
      "objects": ((), "int32"),
    }
    if not train:
      spec |= {
        "crowd": ((most,), "bool"),
        "area": ((most,), "float32"),
        "to_source": ((4,), "float32"),
        "content": ((2,), "float32"),
        "image_id": ((2,), "int32"),
      }
    return spec

  def example(self, record, seed, train):
    import tensorflow as tf  # It takes seconds to import.

    from halonet.data import detection_images

    data = self.config.data
    arguments = data.image_size, data.max_objects
    if train:
      image, geometry = detection_images.train_image(
        record["image"], data, seed
      )
      found = detection_images.train_objects(
        record["objects"], geometry, *arguments
      )
      return {"image": image, **found}
    image, geometry = detection_images.test_image(record["image"], data)
    found = detection_images.test_objects(
      record["objects"], geometry, *arguments
    )
    size = tf.cast(geometry.size, tf.float32)
    number = tf.cast(record["image/id"], tf.int64)
    parts = tf.stack([number // 2**31, number % 2**31])
    return {
      "image": image,
      "content": size / found["to_source"][:2],
      "image_id": tf.cast(parts, tf.int32),
      **found,
    }

  def problem(self, batch):
    most = self.config.data.max_objects
    # In training, they are counted.
    if "crowd" in batch and batch["objects"].max() > most:
      return (
        f"{batch['objects'].max()} objects in one of them, and"
        f" config.data.max_objects is {most}; raise it"
      )
    return None

  # ------------------------------------------------------------------- device

  def prepare(self, batch):
    """Returns `image`, what is to be found at each anchor, and weights.

    `class_targets` are the objects' classes, −1 and −2 as in
    `halonet.ops.matching`. The losses of all rows are divided by the number of
    anchors with an object in the whole batch, plus one, so that a batch without
    objects has a loss.
    """
    size = self.config.data.image_size
    anchors = self._model.anchors(size, size)
    found = jax.vmap(matching.targets, (None, 0, 0))(
      anchors, batch["boxes"], batch["labels"]
    )
    rows = jnp.ones(len(batch["labels"]))
    rows = (batch.get("weight", rows) > 0).astype(jnp.float32)
    matched = (found.labels >= 0).sum(axis=1)
    over = jnp.maximum(batch["objects"] - batch["labels"].shape[1], 0)
    return {
      "image": batch["image"],
      "class_targets": found.labels,
      "box_targets": found.deltas,
      "weight": rows / (1 + (rows * matched).sum()),
      "share": rows / jnp.maximum(rows.sum(), 1),
      "left_out": rows * over,
    }

  def loss(self, outputs, rows):
    """Returns the focal loss of classes plus the weighted Huber loss of boxes.

    Lin et al. 2017, as in Google's code. The metrics are the two, `matched`,
    the anchors with an object in an image, and `objects_left_out`, those beyond
    `data.max_objects` in the batch.
    """
    labels = rows["class_targets"]
    logits = outputs["class_logits"]
    classes = jax.nn.one_hot(labels, logits.shape[-1])
    focal = optax.sigmoid_focal_loss(
      logits,
      classes,
      alpha=self.config.focal_alpha,
      gamma=self.config.focal_gamma,
    )
    counts = (labels != matching.IGNORED)[..., None]
    class_loss = (focal * counts).sum(axis=(1, 2))
    matched = labels >= 0
    # Padding's deltas mean nothing.
    wanted = jnp.where(matched[..., None], rows["box_targets"], 0)
    given = jnp.where(matched[..., None], outputs["box_deltas"], 0)
    box_loss = optax.huber_loss(
      given, wanted, delta=self.config.huber_delta
    ).mean(axis=-1)
    class_loss = (rows["weight"] * class_loss).sum()
    box_loss = (rows["weight"] * box_loss.sum(axis=1)).sum()
    return class_loss + self.config.box_weight * box_loss, {
      "class_loss": class_loss,
      "box_loss": box_loss,
      "matched": (rows["share"] * matched.sum(axis=1)).sum(),
      "objects_left_out": rows["left_out"].sum(),
    }

  def measure(self, outputs, batch):
    """Returns detections in pixels of the source images, beside the objects."""
    size = self.config.data.image_size
    found = self._model.detect(
      outputs,
      (size, size),
      batch["content"],
      score_threshold=self.config.score_threshold,
    )
    kept = {k: v for k, v in batch.items() if k not in ("image", "skipped")}
    finite = [jnp.isfinite(x).all(axis=(1, 2)) for x in outputs.values()]
    return {
      "objects": kept,
      "finite": jnp.stack(finite).all(axis=0),
      "detections": {
        "boxes": found.boxes * batch["to_source"][:, None],
        "scores": found.scores,
        "labels": found.labels,
      },
    }

  # --------------------------------------------------------------------- host

  def evaluator(self):
    return CocoEvaluator(self.metadata["labels"], self.metadata["class_ids"])

  def words(self, figures):
    names = "box_ap", "box_ap50", "box_ap75"
    shown = ", ".join(f"{name} {figures[name]:.4f}" for name in names)
    return f"{shown} ({figures['images']} images)"

  def input(self, image):
    return padded_input(image, self.config.data)

  def input_words(self):
    data = self.config.data
    color = ", ".join(f"{level:g}" for level in padding(data.mean))
    return (
      f"The longer side resized to {data.image_size} pixels,"
      f" {data.interpolation}; the square completed with the colour {color} at"
      " the bottom and on the right"
    )

  def find(self, output, top, size):
    if not all(np.isfinite(x).all() for x in output.values()):
      raise RunError(
        "the model's outputs are not finite: its weights are damaged, or of a"
        " training that diverged"
      )
    content = np.array(padded_sides(*size, self.config.data.image_size))
    found = self._detect(output, content.astype(np.float32), top)
    found = jax.device_get(found)
    boxes = found.boxes[0] * np.tile(np.array(size) / content, 2)
    return [
      {
        "label": self.metadata["labels"][label],
        "score": float(score),
        "box": corner_and_sides(box),
      }
      for box, score, label in zip(
        boxes, found.scores[0], found.labels[0], strict=True
      )
      if label >= 0
    ]

  @functools.cached_property
  def _detect(self):
    size = self.config.data.image_size

    def detect(output, content, top):
      output = {name: x[None] for name, x in output.items()}
      return self._model.detect(
        output, (size, size), content[None], score_threshold=0.0, most=top
      )

    return jax.jit(detect, static_argnums=2)
