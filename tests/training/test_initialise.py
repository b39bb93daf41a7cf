"""Weights to begin with: what is changed, what is refused, where from."""

import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import safetensors.numpy
from flax import linen as nn
from flax import traverse_util

from halonet.errors import UsageError
from halonet.interop import pretrained
from halonet.models.registry import create_model
from halonet.parallel import make_mesh, replicated
from halonet.tasks.task import make_task
from halonet.training import config as config_lib
from halonet.training import initialise
from halonet.training import optimizer as optimizer_lib
from halonet.training.checkpoint import Checkpoints
from halonet.training.restore import restore_model
from halonet.training.state import TrainState, make_init
from halonet.training.workdir import Workdir
from tests.layers.test_base import resize

SMALL = dict(depths=(1, 1), heads=(2, 2), base_width=8, num_classes=5)
# Both operators whose tables differ, in timm's way.
TIMM = SMALL | dict(
  operators=("timm_halo", "global"), block_size=4, halo_size=1
)


def draw(model, seed=0):
  """Drawn variables, no two alike, by path; running variances are positive."""
  rng = np.random.default_rng(seed)
  images = np.zeros((1, 32, 32, 3), np.float32)

  def draw_one(path, x):
    drawn = rng.normal(size=x.shape).astype(np.float32)
    return np.abs(drawn) if path[-1].key == "var" else drawn

  return jax.tree.map_with_path(
    draw_one, dict(jax.eval_shape(model.init, jax.random.key(0), images))
  )


def flat(tree):
  return traverse_util.flatten_dict(jax.device_get(tree), sep="/")


def transfer(source, target, seeds=(0, 1)):
  """Between two drawn models; gives all three by path, and the notes."""
  trees = [
    draw(model, seed)
    for model, seed in zip((source, target), seeds, strict=True)
  ]
  result, notes = initialise.transfer(*trees, source, target)
  assert jax.tree.structure(result) == jax.tree.structure(trees[1])
  return *map(flat, trees), flat(result), notes


def test_the_same_model_takes_all_as_it_is():
  model = create_model("halonet_h1", **SMALL)
  source, _, result, notes = transfer(model, model)
  assert notes == []
  for path, array in result.items():
    np.testing.assert_array_equal(array, source[path], err_msg=path)


def test_another_head_is_left_as_drawn_and_said():
  source, target, result, notes = transfer(
    create_model("halonet_h1", **SMALL),
    create_model("halonet_h1", **SMALL | dict(num_classes=7)),
  )
  assert notes == ["The classifier is new: 7 classes in place of 5"]
  for path, array in result.items():
    origin = target if "classifier" in path else source
    np.testing.assert_array_equal(array, origin[path], err_msg=path)


def test_another_block_and_halo_resize_the_tables_alone():
  source, _, result, notes = transfer(
    create_model("halonet_h1", **SMALL, block_size=4, halo_size=1),
    create_model("halonet_h1", **SMALL, block_size=5, halo_size=3),
  )
  assert notes == ["4 relative tables are resized from 9 to 15 rows"]
  for path, array in result.items():
    expected = source[path]
    if "relative" in path:
      expected = resize(expected, 15)
    np.testing.assert_allclose(array, expected, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("block_size, halo_size", [(6, 2), (2, 2), (3, 1)])
def test_timms_tables_are_resized_where_they_are_alive(block_size, halo_size):
  """Also where as many rows are others: 2·4 + 4·1 − 1 = 2·2 + 4·2 − 1."""
  other = dict(block_size=block_size, halo_size=halo_size, global_size=6)
  source, _, result, notes = transfer(
    create_model("halonet26t", **TIMM),
    create_model("halonet26t", **TIMM | other),
  )
  live = 2 * (block_size + halo_size) - 1
  for axis in ("height", "width"):
    path = f"params/stage1_block1/attention/relative_{axis}"
    dead = 2 * halo_size
    assert (result[path][:dead] == 0).all()
    np.testing.assert_allclose(
      result[path][dead:], resize(source[path][2:], live), atol=1e-6
    )
    # Global attention's have no dead rows.
    path = f"params/stage2_block1/attention/relative_{axis}"
    np.testing.assert_allclose(
      result[path], resize(source[path], 11), atol=1e-6
    )
  assert set(notes) == {
    "2 relative tables are resized from 15 to 11 rows",
    f"2 relative tables are resized from 11 to {live + dead} rows",
  }


@pytest.mark.parametrize(
  "fields, message",
  [
    (dict(base_width=16), r"key/kernel is \(8, 2, 4\), not \(16, 2, 8\)"),
    (dict(base_width=16), r"; and \d+ more"),
    (dict(depths=(1, 2)), r"stage2_block2/\S+ \(.*\) is missing"),
    (dict(df=4), r"final/kernel \(16, 4\) is missing"),
    (dict(df=4), r"classifier/kernel is \(16, 5\), not \(4, 5\)"),
    (dict(heads=(4, 2)), r"relative_height is \(21, 2\), not \(21, 1\)"),
    (
      dict(operators=("conv", "halo")),
      r"attention/\S+ \([\d, ]+\) is unexpected",
    ),
  ],
)
def test_what_does_not_fit_is_named(fields, message):
  source = create_model("halonet_h1", **SMALL)
  target = create_model("halonet_h1", **SMALL | fields)
  with pytest.raises(UsageError, match=message) as caught:
    transfer(source, target)
  assert str(caught.value).startswith("the weights do not fit config.model: ")
  assert "\n" not in str(caught.value)
  assert str(caught.value).count(";") <= 5


class Other(nn.Module):
  """A host without a spec or relative tables, whose head has any name."""

  head: str = "classifier"

  @property
  def head_modules(self):
    return (self.head,)

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Conv(8, (7, 7), use_bias=False, name="stem")(x)
    return nn.Dense(5, name=self.head)(x.mean((1, 2)))


def test_weights_of_another_host():
  """Heads differ; what fits is taken, and what does not is named."""
  source = Other("angle")
  with pytest.raises(UsageError, match=r"key/kernel \(8, 2, 4\) is missing"):
    transfer(source, create_model("halonet_h1", **SMALL))
  given, own, result, notes = transfer(source, Other())
  assert len(notes) == 1 and notes[0].startswith("The head is new")
  assert result.keys() == own.keys()
  for path, origin in (
    ("params/stem/kernel", given),
    ("params/classifier/kernel", own),
  ):
    np.testing.assert_array_equal(result[path], origin[path])


def initial_state(config, num_classes):
  """The fresh state and the one to begin with, by path, and the notes."""
  mesh = make_mesh()
  labels = [str(number) for number in range(num_classes)]
  model = config_lib.create_model(config, make_task(config, {"labels": labels}))
  optimizer = optimizer_lib.make_optimizer(config)
  draw_state = make_init(model, optimizer, config, mesh)
  fresh = draw_state(config.seed)
  state, notes = initialise.initial_state(config, model, lambda: fresh, mesh)
  assert shapes(state) == shapes(fresh)
  return fresh, state, notes


def shapes(state):
  return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state)


def test_a_run_at_another_size_with_another_block(trained, small_config):
  workdir, _ = trained
  config = small_config(
    f"init_from={workdir}",
    "data.image_size=24",
    "model.block_size=3",
    "model.halo_size=2",
    "ema_decay=0.9",
  )
  fresh, state, notes = initial_state(config, num_classes=4)
  assert notes == [
    f"Weights from {workdir}",
    "The classifier is new: 4 classes in place of 10",
    "4 relative tables are resized from 5 to 9 rows",
  ]
  source = flat(restore_model(str(workdir), make_mesh()).variables)
  for path, array in flat(state.variables).items():
    if "classifier" in path:
      expected = flat(fresh.variables)[path]
    elif "relative" in path:
      expected = resize(source[path], 9)
    else:
      expected = source[path]
    np.testing.assert_allclose(array, expected, atol=1e-6, err_msg=path)
  jax.tree.map(np.testing.assert_array_equal, state.ema, state.variables)
  for leaf in [*jax.tree.leaves(state.opt_state), state.step]:
    assert not np.any(np.asarray(leaf))
  # The training step consumes the state, so no array may be there twice.
  consume = jax.jit(
    lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0
  )
  before = jax.tree.map(np.array, state)
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, y + 1), consume(state), before
  )


@pytest.mark.parametrize(
  "path, value, problem",
  [
    ("params/classifier/bias", np.nan, "holds NaN"),
    ("params/classifier/kernel", np.inf, "holds infinity"),
    ("batch_stats/stem_norm/var", -1.0, "is a running variance, and holds"),
  ],
)
def test_a_run_with_impossible_values_is_refused(
  trained, small_config, tmp_path, path, value, problem
):
  """Its files are as they were written."""
  workdir = tmp_path / "run"
  shutil.copytree(
    trained[0], workdir, ignore=shutil.ignore_patterns("checkpoints")
  )
  state = restore_model(str(trained[0]), make_mesh()).state
  averages = flat(state.ema)
  averages[path] = averages[path] * 0 + value
  averages = jax.device_put(
    traverse_util.unflatten_dict(averages, sep="/"), replicated(make_mesh())
  )
  checkpoints = Checkpoints(workdir / "checkpoints", "accuracy", keep=1)
  checkpoints.save(24, state.replace(ema=averages, opt_state=()), 24)
  checkpoints.close()
  with pytest.raises(UsageError) as caught:
    initial_state(small_config(f"init_from={workdir}"), num_classes=10)
  assert str(caught.value).startswith(
    f"config.init_from is {workdir}: weights: {workdir}, step 24: {path}"
    f" {problem}"
  )


@pytest.fixture
def weights(tmp_path):
  """A file of timm's, of a model as its name has it but for its size."""
  model = create_model("halonet26t", **TIMM | dict(block_size=8, halo_size=2))
  variables = draw(model)
  path = tmp_path / "weights.safetensors"
  pretrained.save_timm(path, variables, model)
  return str(path), flat(variables)


def begin(init_from, name="halonet26t", **fields):
  fields = TIMM | fields
  if "timm" not in name and not name.startswith("halonet26"):
    fields = SMALL
  model = create_model(name, **fields)
  config = ml_collections.ConfigDict(
    dict(init_from=init_from, model=dict(name=name, **fields))
  )
  mesh = make_mesh()
  drawn = draw(model, seed=1)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=drawn.pop("params"),
    collections=drawn,
    opt_state=(),
  )
  fresh = state
  state, notes = initialise.initial_state(config, model, lambda: fresh, mesh)
  return flat(state.variables), notes


def test_timms_weights_from_a_file(weights):
  path, source = weights
  # The file has the tables of the name's block and halo; the model has not.
  result, notes = begin(path, num_classes=3)
  assert notes[1:] == [
    "The classifier is new: 3 classes in place of 5",
    "2 relative tables are resized from 23 to 11 rows",
  ]
  table = "params/stage1_block1/attention/relative_width"
  np.testing.assert_allclose(
    result[table][2:], resize(source[table][4:], 9), atol=1e-6
  )
  kernel = "params/stage2_block1/expand/kernel"
  np.testing.assert_array_equal(result[kernel], source[kernel])


def test_timms_weights_with_tables_of_the_config(tmp_path):
  model = create_model("halonet26t", **TIMM)
  path = tmp_path / "own.safetensors"
  pretrained.save_timm(path, draw(model), model)
  result, notes = begin(str(path))
  assert notes == [f"Weights from {path}"]
  for name, array in flat(draw(model)).items():
    np.testing.assert_array_equal(result[name], array, err_msg=name)


def test_timms_own_weights_are_asked_for_by_name(weights, monkeypatch):
  asked = []

  def download(*words):
    asked.append(words)
    return weights[0]

  monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
  begin("timm")
  begin("hf-hub:me/mine")
  assert asked == [
    ("timm/halonet26t.a1h_in1k", "model.safetensors"),
    ("me/mine", "model.safetensors"),
  ]


def test_bad_sources_are_named(weights, tmp_path):
  path, _ = weights
  broken = str(tmp_path / "broken.safetensors")
  tensors = safetensors.numpy.load_file(path)
  tensors["head.fc.bias"] *= np.nan
  safetensors.numpy.save_file(tensors, broken)
  for words, fields, message in (
    ((broken,), {}, f"is {broken}: .* head.fc.bias holds NaN"),
    ((path,), dict(base_width=16), "config.init_from is .* do not fit"),
    ((path, "halonet_h1"), {}, "timm has no weights of halonet_h1; name the"),
    (
      ("timm", "halonet_h1_timm"),
      {},
      "timm publishes no weights of halonet_h1",
    ),
    (("none.safetensors",), {}, "is none.safetensors: .*there is no file none"),
    ((str(tmp_path),), {}, f"is {tmp_path}: .* is not the folder of a run"),
  ):
    with pytest.raises(UsageError, match=message) as caught:
      begin(*words, **fields)
    assert str(caught.value).startswith("config.init_from is ")
    assert "--workdir" not in str(caught.value)


def test_tables_of_odd_windows_are_resized():
  source, target = (
    create_model("sasa_resnet26", **SMALL, window_size=size) for size in (3, 7)
  )
  given, _, result, notes = transfer(source, target)
  assert notes == ["4 relative tables are resized from 3 to 7 rows"]
  path = "params/stage1_block1/attention/relative_width"
  np.testing.assert_allclose(result[path], resize(given[path], 7), atol=1e-6)


@pytest.mark.parametrize("sizes", [(3, 4), (4, 3), (4, 6)])
def test_tables_of_even_windows_are_refused(sizes):
  source, target = (
    create_model("sasa_resnet26", **SMALL, window_size=size) for size in sizes
  )
  words = rf"relative_height is \({sizes[0]}, 2\), not \({sizes[1]}, 2\), and"
  with pytest.raises(UsageError, match=words):
    transfer(source, target)


def test_a_run_with_a_checkpoint_goes_on_without_its_origin(tmp_path):
  config = ml_collections.ConfigDict({"init_from": str(tmp_path / "gone")})
  workdir = Workdir(str(tmp_path))
  workdir.checkpoints.mkdir()
  with pytest.raises(UsageError, match="gone: .* is not the folder of a run"):
    initialise.check_source(config, workdir)
  (workdir.checkpoints / "20").mkdir()
  initialise.check_source(config, workdir)
