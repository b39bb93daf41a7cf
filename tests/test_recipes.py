"""Whole recipes on photographs: all options at once, and the paper's own."""

import json
import math
import shutil

import pytest

from tests.conftest import arguments, finish, losses, run_command


def test_a_folder_of_photographs_with_all_that_a_recipe_has(
  trained, photos, tmp_path
):
  folder = tmp_path / "photos"
  shutil.copytree(photos, folder)
  damaged = folder / "train" / "flower" / "007.JPEG"
  damaged.write_bytes(damaged.read_bytes()[:200])
  overrides = [
    "data.name=folder",
    "data.test_split=val",
    "data.skip_corrupt=true",
    "data.randaugment_layers=2",
    "data.randaugment_std=0.5",
    "data.random_erasing=0.25",
    "data.mixup=0.8",
    "data.cutmix=1.0",
    "data.image_dtype=bfloat16",
    "batch_size=16",
    "steps=3 epochs",
    "optimizer.name=adamw",
    "optimizer.clip_norm=5",
    "ema_decay=0.99",
    "accumulation_steps=2",
    "model.dtype=bfloat16",
    "model.batch_norm_group=2",
    "model.remat=block",
    "model.drop_path=0.1",
    "model.dropout=0.1",
    "profile_steps=(2,3)",
    # Trained on ten classes of digits; the head is another.
    f"init_from={trained[0]}",
  ]
  workdir = tmp_path / "run"
  words = arguments(folder, workdir, *overrides)
  code, output = finish(run_command(*words, devices=2))
  assert code == 0, output
  assert "Data: folder photos in" in output and "2 classes" in output
  assert "The classifier is new: 2 classes in place of 10" in output
  assert "moving averages: test accuracy" in output
  results = json.loads((workdir / "results.json").read_text())
  assert results["steps"] == 7  # 3 · 37 / 16 = 6.9
  assert results["test_images"] == 11 and "raw_test_accuracy" in results
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  logged = [row for row in rows if "loss" in row]
  # Once in every epoch.
  assert sum(row["skipped_images"] for row in logged) == 3
  last = logged[-1]
  assert 0 <= last["input_wait"] <= 1
  assert last["images_per_second_per_device"] > 0
  assert list((workdir / "tensorboard" / "plugins" / "profile").iterdir())
  assert (
    json.loads((workdir / "config.json").read_text())["steps"] == "3 epochs"
  )


def test_pre_training_then_fine_tuning_as_the_paper(photos, tmp_path, data_dir):
  """HaloNet, table 6, with its own configs, narrow and short.

  The size, the block, the halo and the classes change. The first loss is that
  of a classifier of zeros, which finds all classes equally likely.
  """
  narrow = [
    "model.base_width=16",
    "model.depths=(1,1,1,1)",
    "model.dtype=float32",
    "model.batch_norm_group=0",
    "log_every=1",
  ]
  pretrained = tmp_path / "pretrained"
  code, output = finish(
    run_command(
      "--config=configs/imagenet/imagenet21k.py:base128_conv12",
      f"--workdir={pretrained}",
      *(
        f"--config.{text}"
        for text in (
          *narrow,
          "data.name=digits",
          f"data.data_dir={data_dir}",
          "data.test_split=test",
          "data.image_size=64",
          "batch_size=64",
          "steps=12",
          "optimizer.warmup_steps=4",
        )
      ),
    )
  )
  assert code == 0, output
  workdir = tmp_path / "finetuned"
  code, output = finish(
    run_command(
      "--config=configs/imagenet/finetune.py:base128_conv12_384",
      f"--workdir={workdir}",
      *(
        f"--config.{text}"
        for text in (
          *narrow,
          "data.name=folder",
          f"data.data_dir={photos}",
          "data.test_split=val",
          "data.image_size=96",
          "batch_size=16",
          f"init_from={pretrained}",
        )
      ),
    )
  )
  assert code == 0, output
  assert "The classifier is new: 2 classes in place of 10" in output
  # 2 · (8 + 2) − 1 and 2 · (12 + 2) − 1, in stages 3 and 4.
  assert "4 relative tables are resized from 19 to 27 rows" in output
  found = losses(workdir)
  assert found[1] == pytest.approx(math.log(2), abs=1e-6)
  # The first step of the warm-up has no learning rate.
  assert found[2] == found[1]
  assert abs(found[3] - math.log(2)) > 1e-4
  # Without moving averages: the raw figures are all there are.
  results = json.loads((workdir / "results.json").read_text())
  assert results["steps"] == 18  # 8 · 37 / 16 = 18.5, rounded to even.
  assert "raw_test_accuracy" not in results
