"""Configs: complete, checked, and wrong in words that help."""

import pytest

from halonet.errors import UsageError
from halonet.models.registry import model_fields
from halonet.training import config as config_lib

DIGITS = "configs/digits.py"


def write(tmp_path, body):
  path = tmp_path / "mine.py"
  path.write_text(
    "import ml_collections\n"
    f"def get_config(*args):\n  return ml_collections.ConfigDict({body})\n"
  )
  return str(path)


def test_a_file_sets_what_differs_from_the_defaults(tmp_path):
  path = write(
    tmp_path, "dict(steps=700, model=dict(name='halonet_h4', rb=2.0))"
  )
  config = config_lib.load_config(path)
  assert config.steps == 700 and config.batch_size == 64
  fields = config.model.to_dict()
  assert fields.keys() == {"name"} | model_fields("halonet_h4").keys() - {
    "num_classes"
  }
  assert fields["rb"] == 2.0 and fields["block_size"] == 12
  assert config.data.image_size == 384  # The model's own.


def test_overrides_win_and_have_the_fields_kind():
  config = config_lib.load_config(
    DIGITS,
    [
      "steps=2000",
      "optimizer.learning_rate=1",
      "model.depths=(1,2)",
      "model.df=64",
      "model.mask_padding=false",
      "data.data_dir=/some/where",
      "data.flip=True",
    ],
  )
  assert config.steps == 2000
  assert config.optimizer.learning_rate == 1.0
  assert isinstance(config.optimizer.learning_rate, float)
  assert config.model.depths == (1, 2) and config.model.df == 64
  assert config.model.mask_padding is False and config.data.flip is True
  assert config.data.data_dir == "/some/where"


def test_an_overridden_model_brings_its_own_fields(tmp_path):
  path = write(tmp_path, "dict(model=dict(name='halonet_h0'))")
  config = config_lib.load_config(path, ["model.name=halonet_h6"])
  assert config.model.block_size == 8 and config.model.halo_size == 4


def test_paths_and_numpy_numbers_are_taken(tmp_path):
  path = write(
    tmp_path,
    "dict(steps=np.int64(300),"
    " data=dict(data_dir=pathlib.Path('a'), image_size=np.int32(32)))",
  )
  file = tmp_path / "mine.py"
  file.write_text("import pathlib\nimport numpy as np\n" + file.read_text())
  config = config_lib.load_config(path)
  assert config.data.data_dir == "a" and config.data.image_size == 32
  config_lib.to_json(config)
  assert (
    config_lib.load_config(path, ["data.data_dir=12"]).data.data_dir == "12"
  )


@pytest.mark.parametrize("text", ["[]", "{}", '{"steps": 3}', "3", "{"])
def test_json_of_something_else_is_refused(text):
  with pytest.raises(ValueError, match="."):
    config_lib.from_json(text)


def test_argument_of_the_file(tmp_path):
  path = write(tmp_path, "dict(steps=int(args[0]))")
  assert config_lib.load_config(f"{path}:120").steps == 120


def test_json_is_the_identity():
  config = config_lib.load_config(DIGITS)
  again = config_lib.from_json(config_lib.to_json(config))
  assert again.to_dict() == config.to_dict()
  assert config_lib.differences(config, again) == ([], [])


def test_differences_name_the_fields():
  config = config_lib.load_config(DIGITS)
  overrides = ["steps=9999", "model.halo_size=2", "model.remat=block"]
  other = config_lib.load_config(DIGITS, overrides)
  assert config_lib.differences(config, other) == (
    ["model.halo_size: 1 → 2", f"steps: {config.steps} → 9999"],
    ["model.remat: none → block"],  # A run may go on with that.
  )


def _literal(message):
  """Parentheses are meant as such."""
  return message.replace("(", r"\(").replace(")", r"\)")


@pytest.mark.parametrize(
  "override, message",
  [
    ("optimizer.learning_rat=1", "did you mean config.optimizer.learning_rate"),
    ("model.blok_size=1", "did you mean config.model.block_size"),
    ("model=1", "there is no field config.model;"),
    ("modle.depths=1", "known: config.data.…, config.model.…, config.optimi"),
    ("steps", "write --config.steps=VALUE"),
    ("steps=many", "config.steps is 'many'; it must be a whole number"),
    ("steps=1.5", "config.steps is 1.5; it must be a whole number"),
    ("steps=True", "config.steps is True; it must be a whole number"),
    ("steps=0", "config.steps is 0; it must be at least 1"),
    ("seed=-1", "config.seed is -1"),
    ("seed=9999999999", "config.seed is 9999999999"),
    ("data.flip=1", "config.data.flip is 1; it must be true or false"),
    ("model.depths=3", "config.model.depths is 3; it must be a tuple"),
    ("model.depths=(1,'a')", "config.model.depths is"),
    ("model.block_size=0", "config.model.block_size is 0"),
    ("model.halo_size=-1", "config.model.halo_size is -1"),
    ("model.heads=(3,4)", "config.model.stage1_block1: heads is 3, which"),
    ("model.name=resnext", "config.model.name: there is no model resnext"),
    ("model.operators=('conv',1)", "config.model.operators is"),
    ("model.operators=1", "config.model.operators is 1"),
    ("model.heads=()", "config.model.heads is ()"),
    ("data.crop_area=0", "config.data.crop_area is 0.0"),
    ("data.crop_padding=4", "config.data.crop_padding is 4, and crop_area is"),
    ("data.mean=(0.5,)", "config.data.mean is"),
    ("data.std=(1,1,0)", "config.data.std is .* above 0"),
    ("label_smoothing=1", "config.label_smoothing is 1.0"),
    (
      "optimizer.name=lamb",
      "config.optimizer.name: there is no optimizer",
    ),
    ("optimizer.warmup_steps=5000", "config.optimizer.warmup_steps is 5000"),
    ("optimizer.learning_rate=nan", "config.optimizer.learning_rate is"),
    ("optimizer.learning_rate=1e999", "it must be a finite number"),
    ("steps=50", "config.optimizer.warmup_steps is 50; it must be below"),
    (
      "model.df=abc",
      "config.model.df is 'abc'; it must be a whole number, or None",
    ),
    ("model.dtype=float64", "config.model.dtype is 'float64'; training takes"),
    ("model.df=1.5", "config.model.df is 1.5"),
    ("model.operators=('h',)", "conv, halo, per_pixel or global in place of"),
    (
      "model.timm=True",
      "config.model.timm: the field is gone; write timm_halo",
    ),
    ("packages=nothing", "config.packages: nothing cannot be imported"),
    ("packages=(1,)", "config.packages is 1; it must be a text"),
    ("task=regression", "config.task: there is no task regression"),
    ("data.image_size=big", "config.data.image_size is 'big'"),
    ("optimizer.learning_rate=-1", "config.optimizer.learning_rate is -1.0"),
    ("steps=9 weeks", "config.steps is '9 weeks'; it must be a whole number"),
    ("steps=0 epochs", "config.steps is 0 epochs; it must be at least 1"),
    ("log_every=-1", "config.log_every is -1; it must be at least 1"),
    ("data.randaugment_magnitude=11", "randaugment_magnitude is 11.0; it must"),
    ("data.random_erasing=2", "config.data.random_erasing is 2.0"),
    ("data.crop_fraction=0", "config.data.crop_fraction is 0.0"),
    ("data.interpolation=cubic", "did you mean bicubic?"),
    ("data.image_dtype=float16", "did you mean bfloat16?"),
    ("data.mixup=-1", "config.data.mixup is -1.0"),
    ("ema_decay=1", "config.ema_decay is 1.0; it must be at least 0 and below"),
    (
      "profile_steps=(3,)",
      "config.profile_steps is (3,); it must be the first",
    ),
    ("profile_steps=(3,2)", "config.profile_steps is (3, 2); it must be the"),
    ("accumulation_steps=0", "config.accumulation_steps is 0"),
  ],
)
def test_wrong_overrides_are_named(override, message):
  with pytest.raises(UsageError, match=_literal(message)):
    config_lib.load_config(DIGITS, [override])


def test_a_duration_may_become_another_kind(tmp_path):
  path = write(tmp_path, "dict(steps='90 epochs', log_every=10)")
  config = config_lib.load_config(path, ["steps=200", "log_every=2 epochs"])
  assert (config.steps, config.log_every) == (200, "2 epochs")
  assert config_lib.load_config(path).steps == "90 epochs"


@pytest.mark.parametrize(
  "body, message",
  [
    ("dict(stepps=1)", "did you mean config.steps"),
    ("dict(optimizer=3)", "there is no field config.optimizer"),
    ("dict(steps='1')", "config.steps is '1'"),
    ("1/0", "mine.py fails: ZeroDivisionError"),
    ("exit(3)", "mine.py fails: SystemExit: 3"),
    ("dict(model='halonet_h0')", "there is no field config.model;"),
    ("dict(model=dict(name=['a']))", "config.model.name is .* must be a text"),
    ("dict(model=dict(depths=()))", "config.model.depths is ()"),
  ],
)
def test_wrong_files_are_named(tmp_path, body, message):
  with pytest.raises(UsageError, match=message):
    config_lib.load_config(write(tmp_path, body))


def test_a_file_that_is_none(tmp_path):
  with pytest.raises(UsageError, match="there is no file"):
    config_lib.load_config(str(tmp_path / "none.py"))
  with pytest.raises(UsageError, match="is not a Python file"):
    text = tmp_path / "config.txt"
    text.write_text("steps: 1")
    config_lib.load_config(str(text))


def test_epochs_become_steps():
  config = config_lib.load_config(
    DIGITS,
    [
      "batch_size=100",
      "steps=90 epochs",
      "optimizer.warmup_steps=2.5 epochs",
      "eval_every=1 epoch",
      "checkpoint_every=0.001epochs",
      "log_every=7",
    ],
  )
  resolved = config_lib.in_steps(config, train_size=1347)
  assert resolved.steps == 1212  # 90 · 1347 / 100 = 1212.3
  assert resolved.optimizer.warmup_steps == 34
  assert resolved.eval_every == 13
  assert resolved.checkpoint_every == 1
  assert resolved.log_every == 7
  # What is stored is what was given.
  assert config.steps == "90 epochs"


def test_a_warm_up_of_another_unit_is_checked_in_steps():
  config = config_lib.load_config(
    DIGITS, ["steps=10 epochs", "optimizer.warmup_steps=500"]
  )
  with pytest.raises(UsageError, match="warmup_steps is 500; it must"):
    config_lib.in_steps(config, train_size=1347)


@pytest.mark.parametrize(
  "overrides, devices",
  [
    (["batch_size=64"], 8),
    (["batch_size=64", "model.batch_norm_group=16"], 8),  # Spans devices.
    (
      [
        "batch_size=64",
        "model.batch_norm_group=4",
        "accumulation_steps=2",
        "data.mixup=0.2",
      ],
      8,
    ),
  ],
)
def test_what_splits_evenly_is_taken(overrides, devices):
  config_lib.check_devices(config_lib.load_config(DIGITS, overrides), devices)


@pytest.mark.parametrize(
  "overrides, devices, message",
  [
    (["batch_size=60"], 8, "8 devices do not divide evenly; take 56 or 64"),
    (["batch_size=3"], 8, "take 8$"),
    (
      ["batch_size=64", "accumulation_steps=3"],
      8,
      "8 devices × 3 accumulation_steps do not divide evenly; take 48 or 72",
    ),
    (
      ["batch_size=64", "accumulation_steps=2"],
      8,
      "batch_norm_group is 0; with config.accumulation_steps 2 it must divide"
      " the 4 images",
    ),
    (
      ["batch_size=64", "accumulation_steps=2", "model.batch_norm_group=8"],
      8,
      "batch_norm_group is 8; with",
    ),
    (
      ["batch_size=64", "model.batch_norm_group=24"],
      8,
      "batch_norm_group is 24, which does not divide config.batch_size, 64",
    ),
    (["batch_size=24", "data.cutmix=1"], 8, "3 images are computed at once"),
  ],
)
def test_what_does_not_split_is_named(overrides, devices, message):
  with pytest.raises(UsageError, match=message):
    config_lib.check_devices(config_lib.load_config(DIGITS, overrides), devices)
