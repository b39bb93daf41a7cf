"""What a config's model costs, counted without any device."""

import functools
import json

import jax
import ml_collections

from halonet.cost import model as model_cost
from halonet.training import config as config_lib

# A worker must not take the accelerator, which its trainings need.
jax.config.update("jax_platforms", "cpu")


def count(
  config: ml_collections.ConfigDict, num_classes: int
) -> model_cost.Cost:
  """Counts a model, at the size of the config's images.

  Args:
    config: complete, of a training.
    num_classes: of its data set.
  """
  fields = json.dumps(config.model.to_dict())
  return _count(fields, num_classes, config.data.image_size)


@functools.cache  # The seeds of a point share it.
def _count(fields, num_classes, image_size):
  config = ml_collections.ConfigDict({"model": json.loads(fields)})
  model = config_lib.create_model(config, num_classes)
  return model_cost.count(model, image_size).total
