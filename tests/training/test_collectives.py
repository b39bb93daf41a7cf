"""What the devices tell each other in a step, read from the compiled program.

Communication is what a pod waits for, and no result shows it: a step that
gathers activations computes the same numbers.
"""

import collections
import re

import jax
import pytest

from halonet.parallel import make_mesh
from halonet.tasks.task import make_task
from halonet.training import config as config_lib
from halonet.training.optimizer import make_optimizer
from halonet.training.state import abstract_batch, abstract_state, make_init
from halonet.training.step import make_train_step

COLLECTIVE = re.compile(
  r"(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
  r"|collective-broadcast)(?:-start)?\("
)
INSTRUCTION = re.compile(r"^  (?:ROOT )?(%[\w.-]+) = (.*)$")
EXAMPLES = 4  # Per device.


def compile_step(group):
  """The abstract state, and the text of the step compiled for 8 devices."""
  mesh = make_mesh()
  config = config_lib.load_config(
    "configs/digits.py",
    [
      f"batch_size={EXAMPLES * mesh.size}",
      "data.image_size=24",
      "data.mixup=0.2",
      "ema_decay=0.9",
      "model.block_size=8",
      "model.halo_size=3",
      "model.base_width=8",
      "model.depths=(1,1)",
      "model.heads=(2,2)",
      "model.operators=('conv','halo')",
      "model.channel_attention=se_last",
      "model.df=16",
      "model.drop_path=0.3",
      "model.dropout=0.2",
      f"model.batch_norm_group={group}",
    ],
  )
  task = make_task(config, {"labels": list("abcde")})
  model = config_lib.create_model(config, task)
  optimizer = make_optimizer(config)
  state = abstract_state(make_init(model, optimizer, config, mesh), mesh)
  step = make_train_step(model, task, optimizer, config, mesh)
  batch = abstract_batch(task, mesh)
  return state, step.lower(state, batch).compile().as_text()


def collectives(program):
  """Kinds, reduced shapes, and the longest chain of collectives.

  A collective is in round n + 1 if its operands depend on one of round n.
  """
  entry = program[program.index("\nENTRY ") :]
  # None is inside of a loop or a branch, which the rounds would miss.
  assert len(COLLECTIVE.findall(program)) == len(COLLECTIVE.findall(entry))
  kinds, shapes, rounds = set(), collections.Counter(), collections.Counter()
  for line in entry.splitlines():
    instruction = INSTRUCTION.match(line)
    if not instruction:
      continue
    name, text = instruction.groups()
    operands = re.findall(r"%[\w.-]+", text)
    rounds[name] = max((rounds[operand] for operand in operands), default=0)
    found = COLLECTIVE.search(text)
    if found:
      rounds[name] += 1
      kinds.add(found[1])
      for dims in re.findall(r"\w+\[([\d,]*)\]", text[: found.start()]):
        shapes[canonical(map(int, filter(None, dims.split(","))))] += 1
  return kinds, shapes, max(rounds.values())


def canonical(shape):
  """A shape as the compiler may permute it, or add sides of one to it."""
  return tuple(sorted(side for side in shape if side > 1))


def gradient_shapes(path, leaf):
  """What is reduced for a parameter."""
  if leaf.ndim == 4:
    # A CPU has one product for each row of a convolution's kernel.
    rows, columns, channels, features = leaf.shape
    return rows * [canonical((columns * channels, features))]
  return [gradient_shape(path, leaf)]


def gradient_shape(path, leaf):
  if path[-2].key in ("query", "key"):
    # Heads as one matrix, and keys and values as one, beside the queries of a
    # stride.
    joined = 2 if path[-2].key == "key" else 1
    return canonical((leaf.shape[0], joined * leaf.shape[1] * leaf.shape[2]))
  if "relative" not in path[-1].key:
    return canonical(leaf.shape)
  # The rows of a relative table that each query meets, before their sum: 14
  # in the window of a block of 8 with a halo of 3, for every other query.
  return canonical((4, 14, leaf.shape[1]))


@pytest.fixture(scope="module")
def grouped():
  state, program = compile_step(EXAMPLES)
  return state, collectives(program)


def test_only_gradients_statistics_and_metrics_are_reduced(grouped):
  state, (kinds, shapes, rounds) = grouped
  assert kinds == {"all-reduce"}
  gradients = jax.tree.leaves_with_path(state.params)
  statistics = jax.tree.leaves(state.collections)
  expected = collections.Counter(
    [
      shape
      for path, leaf in gradients
      if path[-2].key != "value"  # Reduced with the keys.
      for shape in gradient_shapes(path, leaf)
    ]
    + [canonical(leaf.shape) for leaf in statistics]
  )
  del shapes[()]  # Metrics.
  assert shapes == expected
  # Nothing in the step waits for a reduction and is then reduced itself, so
  # none is within the forward or the backward pass.
  assert rounds == 1


def test_statistics_of_the_whole_batch_are_communicated_in_every_norm(grouped):
  state, (_, few, _) = grouped
  _, program = compile_step(0)
  kinds, many, rounds = collectives(program)
  assert kinds == {"all-reduce"}
  # The forward pass cannot go on without them, nor can the backward pass; two
  # of the norms, of shortcuts, are beside others.
  norms = len(jax.tree.leaves(state.collections)) // 2
  assert rounds >= 2 * (norms - 2)
  assert many.total() > few.total()
