"""Trains the task of the package beside this file."""

import ml_collections


def get_config(model: str = "mixer_tiny") -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict(
    dict(
      packages=("tests.extension.spinning",),
      task="angle",
      steps=40,
      batch_size=64,
      model=dict(name=model),
      data=dict(name="bars", image_size=16, crop_area=1.0),
      optimizer=dict(
        name="adamw", learning_rate=0.02, warmup_steps=5, weight_decay=1e-4
      ),
      ema_decay=0.9,
      log_every=10,
      eval_every=20,
      checkpoint_every=10,
    )
  )
  if model != "mixer_tiny":  # The operator in the house's own host.
    config.model.update(operators=("depthwise",), depths=(1, 1), base_width=8)
  return config
