"""Image classification: labels, smoothing, mixing, accuracy, class names."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from halonet.errors import RunError, UsageError
from halonet.fields import Field
from halonet.tasks.mixing import draw_mix, mix
from halonet.tasks.task import Evaluator, Task

_MIX = 1  # The branch of an example's seed for what its pair draws.


class Classification(Task):
  """Assigns each image one of several classes.

  Targets of a batch are
    label: int32;
  and in training, if pairs of images are mixed (see `halonet.tasks.mixing`),
    mix_share: float32;
    mix_box: int32 `[4]`.
  The metadata is `labels`, the names of the classes.
  """

  best = "accuracy"
  needs = {"label": "ClassLabel"}  # noqa: RUF012
  decides = ("num_classes",)
  FIELDS = {  # noqa: RUF012
    "label_smoothing": Field(
      0.1,
      "Probability mass that the targets spread evenly over all classes.",
      least=0,
      below=1,
    ),
    "data.mixup": Field(
      0.0,
      "Alpha of the beta distribution by which pairs of images are blended; 0:"
      " off. With CutMix as well, each pair gets one or the other.",
      least=0,
      most=1000,  # The share is then within 0.06 of a half.
    ),
    "data.cutmix": Field(
      0.0,
      "Alpha of the beta distribution of the share that a rectangle of the"
      " partner does not cover; 0: off.",
      least=0,
      most=1000,  # The share is then within 0.06 of a half.
    ),
  }

  @property
  def _mixes(self):
    return self.config.data.mixup > 0 or self.config.data.cutmix > 0

  def check(self):
    data = self.config.data
    if data.crop_padding and data.crop_area < 1:
      raise UsageError(
        f"config.data.crop_padding is {data.crop_padding}, and crop_area is"
        f" {data.crop_area}; they are two kinds of random crops: set one of"
        " crop_padding=0 and crop_area=1"
      )

  def check_model(self, model):
    if hasattr(model, "anchors"):
      raise UsageError(
        f"config.model.name is {self.config.model.name!r}, which is a detector;"
        " set config.task=detection, or name a classifier"
      )

  def check_rows(self, rows):
    if self._mixes and rows % 2:
      raise UsageError(
        f"config.batch_size is {self.config.batch_size}: {rows} images are"
        " computed at once, and config.data.mixup and cutmix ask for an even"
        " number"
      )

  def describe(self, source):
    if "label" not in source.classes:
      raise UsageError(
        f"config.data.name: {source.name} does not say what its classes are;"
        " prepare it first"
      )
    return {"labels": source.classes["label"]}

  def model_fields(self):
    return {"num_classes": len(self.metadata["labels"])}

  # --------------------------------------------------------------------- data

  def targets(self, train):
    spec = {"label": ((), "int32")}
    if train and self._mixes:
      spec |= {"mix_share": ((), "float32"), "mix_box": ((4,), "int32")}
    return spec

  def example(self, record, seed, train):
    import tensorflow as tf  # It takes seconds to import.

    from halonet.data import order, preprocessing

    data = self.config.data
    example = {"label": tf.cast(record["label"], tf.int32)}
    if not train:
      example["image"], _ = preprocessing.test_image(record["image"], data)
      return example
    example["image"], _ = preprocessing.train_image(record["image"], data, seed)
    if self._mixes:
      example["seed"] = order.fold_in(seed, _MIX)
    return example

  def finish(self, batch, train):
    if train and self._mixes:
      data, seeds = self.config.data, batch["seed"]
      batch |= draw_mix(seeds[::2], data.image_size, data.mixup, data.cutmix)
    return batch

  def problem(self, batch):
    least = batch["label"].min()
    if least < 0:
      return f"no labels (the label is {least}); name another split"
    return None

  # ------------------------------------------------------------------- device

  def prepare(self, batch):
    """Returns `image`, `label`, `target` and `weight`, which sums to 1.

    No row is mixed with one of weight 0.
    """
    image, label = batch["image"], batch["label"]
    target = jax.nn.one_hot(label, len(self.metadata["labels"]))
    weight = batch.get("weight", jnp.ones(label.shape))
    if "mix_share" in batch:
      mixed = mix(image, target, batch["mix_share"], batch["mix_box"])
      whole = (weight > 0).reshape(-1, 2).all(1, keepdims=True)
      whole = jnp.broadcast_to(whole, (len(whole), 2)).reshape(-1)
      image = jnp.where(whole[:, None, None, None], mixed[0], image)
      target = jnp.where(whole[:, None], mixed[1], target)
    total = weight.sum()
    weight = weight / jnp.where(total > 0, total, 1.0)
    return {"image": image, "label": label, "target": target, "weight": weight}

  def loss(self, outputs, rows):
    """Returns the cross-entropy, and the accuracy in the image's own label."""
    targets = optax.smooth_labels(rows["target"], self.config.label_smoothing)
    losses = optax.softmax_cross_entropy(outputs, targets)
    correct = outputs.argmax(-1) == rows["label"]
    weight = rows["weight"]
    return (weight * losses).sum(), {"accuracy": (weight * correct).sum()}

  def measure(self, outputs, batch):
    """Returns sums: `correct`, and the cross-entropy in nats, unsmoothed."""
    losses = optax.softmax_cross_entropy_with_integer_labels(
      outputs, batch["label"]
    )
    correct = outputs.argmax(-1) == batch["label"]
    weight = batch["weight"]
    return {
      "correct": (weight * correct).sum(),
      # A filler may have any loss, an infinite one among them.
      "loss": jnp.where(weight > 0, losses, 0.0).sum(),
    }

  # --------------------------------------------------------------------- host

  def evaluator(self):
    return _Sums()

  def words(self, figures):
    return (
      f"accuracy: {figures['accuracy']:.4f} ({figures['correct']} of"
      f" {figures['images']} images), loss {figures['loss']:.4f}"
    )

  def explain(self, output, top):
    """Words the most probable classes, with their probabilities."""
    # In NumPy: compiling jax.nn.softmax takes longer than the model's answer.
    output = np.asarray(output, np.float32)
    if not np.isfinite(output).all():
      raise RunError(
        "the model's logits are not finite: its weights are damaged, or of a"
        " training that diverged"
      )
    powers = np.exp(output - output.max())
    probabilities = powers / powers.sum()
    return [
      f"{probabilities[index]:7.2%}  {self.metadata['labels'][index]}"
      for index in probabilities.argsort()[::-1][:top]
    ]


class _Sums(Evaluator):
  def __init__(self):
    self.correct, self.loss = 0, 0.0

  def add(self, measured):
    # A batch's counts are exact in float32; their sum is taken in Python.
    self.correct += int(measured["correct"])
    self.loss += float(measured["loss"])

  def figures(self, images):
    return {
      "accuracy": self.correct / images,
      "loss": self.loss / images,
      "correct": self.correct,
    }
