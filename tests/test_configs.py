"""Every config: loaded, built, stepped once without computing; its commands.

The configs are those in the files, those of the papers' rows in
docs/reproduce.md, and the first and the last point of every sweep.
"""

import functools
import importlib.util
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from halonet.errors import UsageError
from halonet.models.registry import create_model, get_entry, list_models
from halonet.parallel import make_mesh
from halonet.sweep.grid import read_sweep
from halonet.tasks.task import make_task
from halonet.training import config as config_lib
from halonet.training import optimizer as optimizer_lib
from halonet.training.state import abstract_batch, abstract_state, make_init
from halonet.training.step import make_train_step

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"
sys.path.append(str(SCRIPTS))  # Scripts import one another.

import reproduce  # noqa: E402

FILES = [
  "configs/digits.py",
  "configs/cifar10.py",
  *map(str, pathlib.Path("configs/imagenet").glob("*.py")),
  *map(str, pathlib.Path("configs/detection").glob("*.py")),
]


IMAGENET = 1_281_167  # Images in its training split.


def module_of(path):
  spec = importlib.util.spec_from_file_location("config", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


MODULES = {path: module_of(path) for path in sorted(FILES)}
SOURCES = [
  f"{path}:{variant}" if variant else path
  for path, module in MODULES.items()
  for variant in getattr(module, "VARIANTS", [""])
]
TABLES = reproduce.read_tables()
ROWS = {
  (source, tuple(overrides))
  for table in TABLES
  if table.trains
  for source, overrides in (
    table.source(row) for row in table.rows if table.command(row)
  )
}
SWEEPS = {
  f"{table.config}:{row.arguments}"
  for table in TABLES
  for row in table.rows
  if "scripts/sweep.py" in table.script
} | {
  f"configs/sweeps/cifar10.py:{variant}"
  for variant in module_of("configs/sweeps/cifar10.py").VARIANTS
}
POINTS = {
  (sweep.base_of(point), tuple(sweep.overrides(point)))
  for sweep in map(read_sweep, SWEEPS)
  for point in (sweep.points()[0], sweep.points()[-1])
}
COMMANDS = [
  command
  for module in MODULES.values()
  for command in re.findall(
    r"scripts/train\.sh.*", module.__doc__.replace("\\\n", "")
  )
]


@pytest.fixture
def fast():
  """Shapes of arrays are checked in other tests."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


@functools.cache
def abstract_step(text):
  """Shapes of the state before a step, of that after it, and of the metrics.

  Of the blocks of a stage the second stands for all that follow: they are the
  same again, and hundreds of blocks take minutes to trace.
  """
  config = config_lib.from_json(text)
  config.model.depths = tuple(min(depth, 2) for depth in config.model.depths)
  mesh = make_mesh()
  task = make_task(config, {"labels": [str(number) for number in range(1000)]})
  model = config_lib.create_model(config, task)
  optimizer = optimizer_lib.make_optimizer(config)
  state = abstract_state(make_init(model, optimizer, config, mesh), mesh)
  step = make_train_step(model, task, optimizer, config, mesh)
  return state, *jax.eval_shape(step, state, abstract_batch(task, mesh))


def what_the_step_sees(config):
  """Makes configs equal whose steps have the same shapes."""
  if config.task == "detection":
    return config_lib.to_json(config)
  seen = config_lib.load_config("configs/digits.py")
  with seen.unlocked(), seen.ignore_type():
    seen.model = config.model
    for field in ("image_size", "image_dtype", "mixup", "cutmix"):
      seen.data[field] = config.data[field]
    for field in ("batch_size", "steps", "ema_decay"):
      seen[field] = config[field]
  return config_lib.to_json(seen)


def shapes(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@pytest.mark.parametrize(
  "source, overrides",
  [
    pytest.param(*each, id=" ".join([each[0], *each[1]]))
    for each in sorted({(source, ()) for source in SOURCES} | ROWS | POINTS)
  ],
)
def test_a_step(source, overrides, fast):
  config = config_lib.load_config(source, overrides)
  assert config_lib.from_json(config_lib.to_json(config)) == config
  config = config_lib.in_steps(config, IMAGENET)
  for devices in (8, 32, 128):
    if devices > config.batch_size:
      continue
    # As the docstrings say: 32 images at once, or fewer.
    at_once = max(config.model.get("batch_norm_group", 0), 32)
    config.accumulation_steps = max(config.batch_size // devices // at_once, 1)
    config_lib.check_devices(config, devices)
  config.accumulation_steps = 1
  before, after, metrics = abstract_step(what_the_step_sees(config))
  assert shapes(after) == shapes(before)
  assert metrics["loss"].shape == () and metrics["loss"].dtype == jnp.float32
  for leaf in jax.tree.leaves(before.params):
    assert leaf.dtype == jnp.float32


def test_networks_for_small_photographs_have_their_parameters(fast):
  counts = {}
  for variant in ("", "small", "attention", "sasa", "resnet", "slide"):
    model = config_lib.load_config(f"configs/cifar10.py:{variant}").model
    arguments = model.to_dict() | {"num_classes": 10}
    network = create_model(arguments.pop("name"), **arguments)
    image = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    counts[variant] = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert list(counts.values()) == [
    *(222_202, 88_282, 85_498, 85_114, 84_646, 88_996)
  ]
  text = MODULES["configs/cifar10.py"].__doc__
  assert all(f"{count:,}" in text for count in counts.values())


# Rows of each table and figure, as counted in the papers.
HALONET = (
  *(
    ("Table 1", 4),
    ("Tables 2 and A2, Figure 4", 8),
    ("Table 3", 16),
    ("Table 4", 4),
  ),
  *(("Table 5", 6), ("Table 6: pre-", 5), ("Table 6: fine-", 8)),
  *(("Table A1", 5), ("Appendix F", 1)),
  *(("Figure 5", 3), ("Figure 6", 2), ("Figure 7", 1), ("Figure 8", 11)),
)
SASA = (
  *(("Table 1", 9), ("Table 2", 5), ("Table 3", 8), ("Table 4", 5)),
  *(("Table 5", 3), ("Table 6", 2), ("Table 7", 3), ("Figure 5", 3)),
)
SLIDE = (("ImageNet", 22), ("COCO, M", 12), ("COCO, C", 6), ("ADE20K", 8))
OTHERS = ("R50 in the literature", "ViT-L/16", "BiT-M")
OTHERS += ("PVT-M", "Slide-PVT-M", "CSwin", "Slide-CSwin", "NAT", "Slide-NAT")


def test_every_row_of_the_papers_has_a_command():
  page = (SCRIPTS.parent / "docs/reproduce.md").read_text()
  for table in TABLES:
    for row in table.rows:
      run = table.command(row)
      assert bool(run) != row.name.startswith(OTHERS), (table.name, row.name)
      assert run is None or f"`{run}`" in page, "scripts/reproduce.py --write"
      assert row.result, (table.name, row.name)
  for paper, published in (
    ("HaloNet", HALONET),
    ("SASA", SASA),
    ("Slide-Transformer", SLIDE),
  ):
    tables = [table for table in TABLES if table.paper == paper]
    assert len(tables) == len(published)
    for name, rows in published:
      (table,) = (each for each in tables if each.name.startswith(name))
      assert len(table.rows) == rows, (paper, name)


def test_a_networks_name_says_what_is_compiled():
  load = config_lib.load_config
  base = "configs/imagenet/finetune.py:base128_512"
  assert reproduce.network(load(base)) == (
    "halonet_h4_base128 at 512, block_size=16, halo_size=1"
  )
  # What a training draws or recomputes is no other network.
  other = load(base, ["model.drop_path=0.3", "label_smoothing=0.0"])
  assert reproduce.network(load(base)) == reproduce.network(other)
  keys = [case.key for case in reproduce.cases(("v3:4x4", "v5e:4x4"))]
  assert len(set(keys)) == len(keys) > 80


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_in_docstrings(command):
  options = dict(
    word.removeprefix("--").split("=", 1)
    for word in command.split()
    if word.startswith("--")
  )
  source = options.pop("config", "configs/digits.py")
  options.pop("workdir", None)
  overrides = []
  for option, value in options.items():
    assert option.startswith("config."), command
    overrides.append(f"{option.removeprefix('config.')}={value}")
  config_lib.load_config(source, overrides)


def test_every_file_has_a_command():
  for path, module in MODULES.items():
    if path != "configs/digits.py":  # It is what comes without --config.
      assert f"scripts/train.sh --config={path}" in module.__doc__
    variants = getattr(module, "VARIANTS", [])
    if "" in variants:
      continue  # It has a default, and its docstring tells the others.
    for variant in variants:
      # A line may hold the figures of two networks.
      row = variant.removeprefix("halonet50").removeprefix("resnet50")
      line = rf"^  ({variant}|{row}) "
      assert not row or re.search(line, module.__doc__, re.M), variant
      with pytest.raises(ValueError, match=f"'' is none of .*{variant}"):
        module.get_config()


def test_an_unknown_argument_is_answered_in_one_line():
  with pytest.raises(UsageError, match="'h8' is none of h0, h1, .*") as caught:
    config_lib.load_config("configs/imagenet/halonet.py:h8")
  assert "\n" not in str(caught.value)


def test_every_model_of_the_paper_has_a_config():
  """At the size of its table."""
  trained = set()
  for source in SOURCES:
    config = config_lib.load_config(source)
    trained.add(config.model.name)
    # SASA's is smaller than HaloNet's, and fine-tuning takes larger ones.
    if "imagenet" in source and not re.search("finetune|:resnet50", source):
      size = get_entry(config.model.name).image_size
      assert config.data.image_size == size, source
  families = list_models("halonet_h?"), list_models("halonet_h7_conv*")
  families += list_models("halonet50*"), list_models("halonet_h4_base128*")
  families += list_models("slide_*"), list_models("sasa_*")
  families += (["resnet26", "resnet38", "resnet50"],)
  ours = {name for family in families for name in family}
  ours -= {"halonet50ts"}  # timm's.
  assert ours <= trained


SLIDE_DROP_PATHS = {
  **dict(slide_swin_tiny=0.2, slide_swin_small=0.3, slide_swin_base=0.5),
  **dict(swin_tiny=0.2, swin_small=0.3, swin_base=0.5),
  **dict(slide_pvt_tiny=0.1, slide_pvt_v2_b2=0.1, pvt_small=0.1),
}


def recipe(source):
  """The fields that the HaloNet paper gives, as they are in a config."""
  config = config_lib.load_config(f"configs/imagenet/{source}")
  data, optimizer = config.data, config.optimizer
  assert optimizer.name == "sgd"
  assert data.randaugment_policy == "tpu" or not data.randaugment_layers
  return {
    "epochs": float(config.steps.removesuffix(" epochs")),
    "warmup": float(optimizer.warmup_steps.removesuffix(" epochs")),
    "batch": config.batch_size,
    "rate": optimizer.learning_rate,
    "end": optimizer.final_learning_rate_ratio,
    "decay": optimizer.weight_decay,
    "smoothing": config.label_smoothing,
    "magnitude": data.randaugment_layers and data.randaugment_magnitude,
    "size": data.image_size,
  }


FAMILY = dict(epochs=350, warmup=10, batch=4096, rate=0.1, end=1 / 128)
FAMILY |= dict(decay=2e-5, smoothing=0.1)
STUDY = FAMILY | dict(epochs=150, size=256, end=0, smoothing=0)
PRETRAINED = STUDY | dict(epochs=90, warmup=2, rate=0.16, decay=8e-5)
FINETUNED = dict(epochs=8, warmup=0.5, batch=512, rate=0.016 / 2, end=0)
FINETUNED |= dict(decay=0, smoothing=0.1, magnitude=0)


@pytest.mark.parametrize(
  "source, expected",
  [
    *(
      (f"halonet.py:h{number}", FAMILY | dict(magnitude=magnitude, size=size))
      for number, (magnitude, size) in enumerate(
        zip(
          (6, 8, 10, 14, 17, 19, 24, 31),
          (256, 256, 256, 320, 384, 448, 512, 600),
          strict=True,
        )
      )
    ),
    ("halonet.py:h7_conv12", FAMILY | dict(magnitude=31, size=600)),
    ("components.py:halonet50", STUDY | dict(decay=8e-5, magnitude=0)),
    (
      "components.py:resnet50_ls_se_silu_ra",
      STUDY | dict(decay=4e-5, magnitude=10, smoothing=0.1),
    ),
    (
      "components.py:halonet50_rv3",
      STUDY | dict(decay=4e-5, magnitude=10, smoothing=0.1),
    ),
    ("imagenet21k.py:base128", PRETRAINED | dict(magnitude=0)),
    ("finetune.py:base128_384", FINETUNED | dict(size=384)),
    ("finetune.py:base128_conv12_512", FINETUNED | dict(size=512)),
    ("backbones.py:resnet101_se8", FAMILY | dict(magnitude=15, size=512)),
  ],
)
def test_the_recipes_of_halonets_paper(source, expected):
  """Sections 4.1, 4.2 and 4.5, appendices C and E."""
  assert recipe(source) == expected


@pytest.mark.parametrize("variant", ["resnet50", "sasa_resnet50_full"])
def test_the_recipe_of_sasas_paper(variant):
  """SASA, A.2: 1.6 for 4096 images, after 10 of 130 epochs."""
  config = config_lib.load_config(f"configs/imagenet/sasa.py:{variant}")
  assert config.batch_size == 4096 == 128 * config.model.batch_norm_group
  optimizer = config.optimizer
  rate = optimizer.learning_rate * config.batch_size / 256
  assert rate == pytest.approx(1.6)
  assert optimizer.name == "sgd"
  assert (optimizer.warmup_steps, config.steps) == ("10 epochs", "130 epochs")
  assert config.ema_decay == 0.9999
  assert not config.data.randaugment_layers and not config.label_smoothing


@pytest.mark.parametrize("variant, drop_path", SLIDE_DROP_PATHS.items())
def test_the_recipe_of_slide_transformers_paper(variant, drop_path):
  """Its section on ImageNet; hosts share it."""
  config = config_lib.load_config(f"configs/imagenet/slide.py:{variant}")
  data, optimizer = config.data, config.optimizer
  assert (config.steps, optimizer.warmup_steps) == ("300 epochs", "20 epochs")
  assert (optimizer.name, optimizer.weight_decay) == ("adamw", 0.05)
  peak = optimizer_lib.peak_learning_rate(config)
  assert peak == pytest.approx(5e-4 * config.batch_size / 512)
  end = peak * optimizer.final_learning_rate_ratio
  assert end == pytest.approx(5e-6 * config.batch_size / 512)
  assert optimizer.clip_norm == 5
  assert (data.randaugment_policy, data.randaugment_layers) == ("timm", 2)
  assert (data.randaugment_magnitude, data.randaugment_std) == (9, 0.5)
  assert (data.mixup, data.cutmix, data.random_erasing) == (0.8, 1, 0.25)
  assert config.label_smoothing == 0.1
  assert (config.model.name, config.model.drop_path) == (variant, drop_path)
