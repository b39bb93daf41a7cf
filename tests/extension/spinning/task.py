"""A task that is no classification: regression of an angle."""

import jax.numpy as jnp
import numpy as np
import tensorflow as tf

from halonet.data import preprocessing
from halonet.fields import Field
from halonet.tasks.task import Evaluator, Task


class Angle(Task):
  """Predicts sine and cosine of the angle at which a bar lies."""

  best = "share_within_10_degrees"
  needs = {"angle": "Scalar"}  # noqa: RUF012
  decides = ("num_classes",)
  FIELDS = {  # noqa: RUF012
    "huber": Field(1.0, "Where the loss becomes linear.", above=0),
  }

  def describe(self, source):
    return {"unit": "degrees"}

  def model_fields(self):
    return {"num_classes": 2}

  def targets(self, train):
    return {"direction": ((2,), "float32")}

  def example(self, record, seed, train):
    data = self.config.data
    # Twice the angle: a bar looks the same after half a turn.
    angle = 2 * tf.cast(record["angle"], tf.float32)
    if train:
      image, geometry = preprocessing.train_image(record["image"], data, seed)
      angle = tf.where(geometry.flip, -angle, angle)
    else:
      image, _ = preprocessing.test_image(record["image"], data)
    direction = tf.stack([tf.sin(angle), tf.cos(angle)])
    return {"image": image, "direction": direction}

  def prepare(self, batch):
    weight = batch.get("weight", jnp.ones(len(batch["image"])))
    return batch | {"weight": weight / jnp.maximum(weight.sum(), 1)}

  def loss(self, outputs, rows):
    error = jnp.linalg.norm(outputs - rows["direction"], axis=-1)
    bound = self.config.huber
    losses = jnp.where(error < bound, error**2 / 2, bound * (error - bound / 2))
    metrics = {"error": (rows["weight"] * error).sum()}
    return (rows["weight"] * losses).sum(), metrics

  def measure(self, outputs, batch):
    """Returns an entry per image: all of them reach the host."""
    angles = [
      jnp.arctan2(x[:, 0], x[:, 1]) for x in (outputs, batch["direction"])
    ]
    turn = jnp.angle(jnp.exp(1j * (angles[0] - angles[1]))) / 2
    return {"degrees": jnp.abs(jnp.degrees(turn)), "weight": batch["weight"]}

  def evaluator(self):
    return _Errors()

  def explain(self, output, top):
    degrees = np.degrees(np.arctan2(output[0], output[1])) / 2 % 180
    return [f"{degrees:.0f} {self.metadata['unit']}"]


class _Errors(Evaluator):
  def __init__(self):
    self.degrees = []

  def add(self, measured):
    self.degrees += measured["degrees"][measured["weight"] > 0].tolist()

  def figures(self, images):
    assert len(self.degrees) == images
    errors = np.array(self.degrees)
    return {
      "share_within_10_degrees": float((errors < 10).mean()),
      "median_degrees": float(np.median(errors)),
    }
