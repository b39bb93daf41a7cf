"""Measures the attention layers of a model, one by one.

  python scripts/bench_attention.py [--model=halonet_h1] [--image_size=256]
      [--batch_size=8] [--dtype=float32] [--implementation=NAME ...]
      [--model.FIELD=VALUE ...] [--json=FILE]

Every distinct local attention of the model is run on maps drawn at random, by
every implementation that this machine has, forward alone and forward with the
gradients of queries, keys, values and relative tables. Implementations take
turns in one process; the medians are compared with the first one's. Memory is
what the compiled program holds between its steps, beside arguments and results.
Per-pixel attention (--model=sasa_resnet50) has one more: "gathered", the plain
form, with the windows of all pixels in memory, and without masks.

  python scripts/bench_attention.py --figure=FILE.png [...]

measures the first of these layers alone, with halos from 1 to 8 pixels, or with
windows of 3 to 17, and draws time and memory against the side of the window.
"""

import collections
import functools
import statistics
import time

import benchmark

from halonet import command
from halonet.errors import UsageError, unknown

PASSES = ("forward", "with gradients")
HALOS = (1, 2, 3, 4, 6, 8)
# Okabe and Ito's colours, which the colour-blind can tell apart.
STYLES = {
  "gathered": dict(color="#000000", marker="X"),
  "direct": dict(color="#56b4e9", marker="P"),
  "xla": dict(color="#d55e00", marker="o"),
  "xla_chunked": dict(color="#0072b2", marker="D"),
  "xla_packed": dict(color="#009e73", marker="s"),
  "pallas_tpu": dict(color="#cc79a7", marker="^"),
  "pallas_gpu": dict(color="#e69f00", marker="v"),
}


def main() -> None:
  parser = benchmark.parser(__doc__)
  parser.add_argument(
    "--implementation", action="append", metavar="NAME", help="(default: all)"
  )
  command.add_output(
    parser, "--figure", ".png", help="draw the first layer's costs here"
  )
  arguments, rest = parser.parse_known_args()

  import jax

  layers = find_layers(arguments, command.model_fields(rest))
  if not layers:
    raise UsageError(f"--model: {arguments.model} has no local attention")
  per_pixel = [layer for _, layer in layers if is_per_pixel(layer)]
  if any(not x.content or x.position != "relative" for x in per_pixel):
    raise UsageError(
      "--model: per-pixel attention is measured with content and relative"
      f" positions alone, and {arguments.model} has others"
    )
  names = implementations(arguments.implementation, bool(per_pixel))
  about = f"{benchmark.words(arguments)}, on {jax.devices()[0].device_kind}"
  if arguments.figure:
    shape, layer = next(iter(layers))
    layers = {(shape, reaching(layer, halo)): 1 for halo in HALOS}
    about = f"the first layer of {about}"
  else:
    about = f"{sum(layers.values())} layers, {len(layers)} distinct, of {about}"
  print(about)
  rows = []
  for (shape, layer), count in layers.items():
    for what in PASSES:
      done = f"{len(rows) + 1}/{len(layers) * len(PASSES)}"
      print(f"{done} {title(shape, layer)}, {what}", flush=True)
      found = measure(shape, layer, what, names, arguments)
      row = {"layer": title(shape, layer), "count": count, "pass": what}
      rows.append(row | {"window": window_of(layer)} | found)
  # Layers with different halos do not add up.
  print(table(rows if arguments.figure else rows + totals(rows, names), names))
  command.write_json(arguments.json, rows)
  if arguments.figure:
    draw(rows, about, arguments)
    command.wrote(arguments.figure)


def implementations(wanted: list[str] | None, per_pixel: bool) -> list[str]:
  """Returns the forms that were asked for, or all that run here."""
  import jax

  from halonet.ops.dispatch import IMPLEMENTATIONS

  known = [name for name in STYLES if name in IMPLEMENTATIONS]
  known = ["gathered", *known] if per_pixel else known[1:]
  for name in wanted or ():
    if name not in known:
      message = unknown("implementation", name, known)
      raise UsageError(f"--implementation: {message}")
  for backend in ("tpu", "gpu"):
    if jax.default_backend() != backend:  # Interpreted, it is very slow.
      known.remove(f"pallas_{backend}")
  return wanted or known


def find_layers(arguments, fields) -> collections.Counter:
  """Counts the local attentions of a model, by the shape of their input."""
  import jax
  import jax.numpy as jnp
  from flax import linen as nn

  from halonet.layers.halo import HaloAttention
  from halonet.layers.per_pixel import PerPixelAttention
  from halonet.layers.timm_halo import TimmHaloAttention

  local = HaloAttention, PerPixelAttention, TimmHaloAttention
  found = collections.Counter()

  def note(call, args, kwargs, context):
    module = context.module
    if isinstance(module, local) and context.method_name == "__call__":
      # Layers that differ only in their place are the same.
      found[args[0].shape, module.clone(name=None, parent=None)] += 1
    return call(*args, **kwargs)

  model = benchmark.create_model("--model", arguments, fields)
  size, batch = arguments.image_size, arguments.batch_size
  images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
  with nn.intercept_methods(note):
    jax.eval_shape(model.init, jax.random.key(0), images)
  return found


def title(shape, layer) -> str:
  _, height, width, channels = shape
  text = f"{height}×{width}, {channels} channels, {layer.heads} heads"
  if is_per_pixel(layer):  # Its stride is that of the pool after it.
    return f"{text}, k {layer.window_size}"
  text += f", b {layer.block_size}, h {layer.halo_size}"
  return text + (f", stride {layer.stride}" if layer.stride > 1 else "")


def is_per_pixel(layer) -> bool:
  return hasattr(layer, "window_size")


def window_of(layer) -> int:
  """Returns the side of what a query sees, in pixels."""
  if is_per_pixel(layer):
    return layer.window_size
  return layer.block_size + 2 * layer.halo_size


def reaching(layer, pixels: int):
  """Returns a copy that reaches so far beyond its block or its pixel."""
  if is_per_pixel(layer):
    return layer.clone(window_size=2 * pixels + 1)
  return layer.clone(halo_size=pixels)


def gathered(query, key, value, relative_height, relative_width):
  """Computes per-pixel attention with all windows in memory, unmasked."""
  import jax
  import jax.numpy as jnp

  _, height, width, _, _ = query.shape
  size, half = relative_height.shape

  def windows(x):
    border = (size - 1) // 2, size // 2
    x = jnp.pad(x, ((0, 0), border, border, (0, 0), (0, 0)))
    rows = [x[:, row : row + height] for row in range(size)]
    seen = [x[:, :, col : col + width] for x in rows for col in range(size)]
    return jnp.stack(seen, 3).reshape(
      *query.shape[:3], size, size, *x.shape[3:]
    )

  logits = jnp.einsum("byxnd,byxijnd->byxnij", query, windows(key))
  rows = jnp.einsum("byxnd,id->byxni", query[..., :half], relative_height)
  cols = jnp.einsum("byxnd,jd->byxnj", query[..., half:], relative_width)
  logits += rows[..., None] + cols[..., None, :]
  weights = jax.nn.softmax(logits, axis=(-2, -1))
  return jnp.einsum("byxnij,byxijnd->byxnd", weights, windows(value))


def attention_of(layer, name):
  """Returns a function of the five arrays, or None if the form has none."""
  from halonet.ops import attention

  if name == "gathered" and is_per_pixel(layer):
    return gathered
  if is_per_pixel(layer):
    function, fields = attention.per_pixel_attention, ("window_size",)
  elif name in ("gathered", "direct"):
    return None
  else:
    function = attention.blocked_local_attention
    fields = "block_size", "halo_size", "stride", "mask_window"
  options = {field: getattr(layer, field, False) for field in fields}
  options["mask_padding"] = getattr(layer, "mask_padding", False)
  if is_timm(layer):
    options["relative_stride"] = 1
    if layer.block_size % layer.stride:  # An average pool takes its place.
      options["stride"] = 1
  return functools.partial(function, **options, implementation=name)


def is_timm(layer) -> bool:
  from halonet.layers.timm_halo import TimmHaloAttention

  return isinstance(layer, TimmHaloAttention)


def measure(shape, layer, what, names, arguments) -> dict[str, dict]:
  """Returns median seconds of a call, and memory, by implementation."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from halonet.ops.dispatch import Unserved
  from halonet.ops.positions import num_offsets

  batch, height, width, channels = shape
  heads = layer.heads
  dim = (layer.qk_features or channels) // heads
  value_dim = (layer.value_features or channels) // heads
  half = dim if is_timm(layer) else dim // 2
  if is_per_pixel(layer):
    offsets = layer.window_size
  else:
    offsets = num_offsets(layer.block_size, layer.halo_size)
  generator = np.random.default_rng(0)
  maps = [(batch, height, width, heads, d) for d in (dim, dim, value_dim)]
  arrays = [
    jnp.asarray(generator.standard_normal(s, np.float32), arguments.dtype)
    for s in (*maps, (offsets, half), (offsets, half))
  ]
  calls, found = {}, {}
  for name in names:
    function = attend = attention_of(layer, name)
    if attend is None:
      continue
    if what != "forward":

      def total(*arrays, attend=attend):
        return attend(*arrays).astype(jnp.float32).sum()

      function = jax.value_and_grad(total, argnums=range(5))
    begin = time.perf_counter()
    try:
      compiled = jax.jit(function).lower(*arrays).compile()
    except Unserved as error:
      print(f"  {name}: {error}", flush=True)
      continue
    seconds = time.perf_counter() - begin
    memory = compiled.memory_analysis()
    found[name] = {
      "compile_seconds": seconds,
      "temporary_bytes": memory.temp_size_in_bytes if memory else None,
    }
    calls[name] = functools.partial(compiled, *arrays)
    jax.block_until_ready(calls[name]())
  times = collections.defaultdict(list)
  for _ in range(arguments.rounds):
    for name, call in calls.items():
      begin = time.perf_counter()
      turns = 0
      while turns < 2 or time.perf_counter() - begin < 0.2:
        jax.block_until_ready(call())
        turns += 1
      times[name].append((time.perf_counter() - begin) / turns)
  for name in calls:
    found[name]["seconds"] = statistics.median(times[name])
  return found


def table(rows, names) -> str:
  first, lines = names[0], []
  for row in rows:
    for name in (name for name in names if name in row):
      own = row[name]
      held, compiled = own.get("temporary_bytes"), own.get("compile_seconds")
      ratio = row[first]["seconds"] / own["seconds"] if first in row else None
      lines.append(
        (
          *(row[column] for column in ("layer", "count", "pass")),
          name,
          f"{own['seconds'] * 1e3:.2f}",
          "–" if ratio is None else f"{ratio:.2f}",
          "–" if held is None else f"{held / 2**20:.1f}",
          "–" if compiled is None else f"{compiled:.1f} s",
        )
      )
  header = f"layer,times,pass,implementation,ms,{first} ÷ it"
  header = (*header.split(","), "temporaries, MiB", "compiled in")
  return command.table(header, lines, left=4)


def totals(rows, names) -> list[dict]:
  """Returns a row of each pass for all layers together."""
  found = []
  for what in PASSES:
    own = [row for row in rows if row["pass"] == what]
    total = {"layer": "all", "pass": what}
    total["count"] = sum(row["count"] for row in own)
    for name in names:
      if all(name in row for row in own):
        seconds = sum(row["count"] * row[name]["seconds"] for row in own)
        total[name] = {"seconds": seconds}
    found.append(total)
  return found


def draw(rows, about, arguments) -> None:
  """Draws time and memory of both passes against the window's side."""
  from matplotlib.figure import Figure
  from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

  figure = Figure(figsize=(9, 7), layout="constrained")
  sides = sorted({row["window"] for row in rows})
  images = arguments.batch_size
  quantities = (
    ("seconds", "ms", 1e3),
    ("temporary_bytes", "temporary MiB", 2**-20),
  )
  for line, what in zip(figure.subplots(2, 2), PASSES, strict=True):
    own = [row for row in rows if row["pass"] == what]
    for panel, (quantity, name, scale) in zip(line, quantities, strict=True):
      for implementation, style in STYLES.items():
        known = [
          (row["window"], row[implementation][quantity] * scale / images)
          for row in own
          if row.get(implementation, {}).get(quantity) is not None
        ]
        if known:
          panel.plot(*zip(*known, strict=True), label=implementation, **style)
      panel.loglog()
      panel.xaxis.set_major_locator(FixedLocator(sides))
      panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
      for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")
      panel.set_title(f"{what}: {name} per image")
      panel.set_xlabel("side of the window")
      panel.grid(which="both", color="lightgray", linewidth=0.5)
  line[0].legend()
  figure.suptitle(about[0].upper() + about[1:], fontsize=11)
  figure.savefig(arguments.figure, dpi=110)


if __name__ == "__main__":
  command.use_huge_pages()
  command.run(main)
