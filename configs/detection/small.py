"""A narrow RetinaNet on images with boxes in a COCO JSON, on a CPU.

  scripts/train.sh --config=configs/detection/small.py --workdir=runs/detect \\
    --config.data.data_dir=FOLDER

FOLDER holds `images/`, `instances_train.json` and `instances_val.json`. On 292
photographs of blood cells: box AP 0.461, AP50 0.689 (means of three seeds), in
eight minutes on two cores; see docs/detection.md.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    dict(
      task="detection",
      seed=0,
      steps=600,
      batch_size=8,
      model=dict(
        name="retinanet_resnet50",
        # ResNet-14 of a quarter of the width.
        depths=(1, 1, 1, 1),
        base_width=24,
        fpn_width=64,
        head_depth=2,
      ),
      data=dict(
        name="coco_json",
        train_split="train",
        test_split="val",
        image_size=256,
        scale_jitter=(0.8, 1.25),
      ),
      optimizer=dict(
        name="adamw",
        learning_rate=0.03,
        warmup_steps=50,
        weight_decay=0.05,
        clip_norm=10,
      ),
      eval_every=150,
      log_every=25,
    )
  )
