"""The floor plan of docs/architecture.md, read from the source files."""

import ast
import collections
import graphlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# A file may import its own floor and the floors below it. The lowest is first;
# a name is a folder or a file of halonet/.
FLOORS = (
  "errors chips fields command signals compilation",
  "parallel distributed",
  "ops",
  "layers",
  "models",
  "interop",
  "cost",
  "data",
  "tasks",
  "training",
  "tpu",
  "inference pictures box_pictures",
  "serving",
  "train evaluate predict export",
  "sweep",  # It runs the command train in a child process.
  "__init__",
)
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names.split()}

DOCS = (
  "architecture attention benchmarks costs data departures detection models"
  " reproduce recipes slide sweeps timm tpu training"
)


def module_name(path):
  """Returns the dotted name of a file; a package's is that of __init__.py."""
  return ".".join(path.relative_to(ROOT).with_suffix("").parts)


SOURCES = {
  module_name(path): path.read_text()
  for path in sorted(ROOT.glob("halonet/**/*.py"))
}


def file_of(name):
  """Returns the module that a dotted name is in: itself, or what holds it."""
  while name:
    for module in (name, f"{name}.__init__"):
      if module in SOURCES:
        return module
    name = name.rpartition(".")[0]
  return None


def imported_names(text):
  """Yields the dotted name of every import, also of those in functions."""
  for node in ast.walk(ast.parse(text)):
    match node:
      case ast.Import(names=names):
        yield from (alias.name for alias in names)
      case ast.ImportFrom(module=module, names=names, level=0):
        yield from (f"{module}.{alias.name}" for alias in names)
      case ast.ImportFrom():
        raise AssertionError(f"line {node.lineno}: a relative import")
      case ast.Call(
        func=ast.Name("import_module") | ast.Attribute(attr="import_module"),
        args=[ast.Constant(value=str(name)), *_],
      ):
        yield name


IMPORTS = {
  module: sorted({*imported_names(text)}) for module, text in SOURCES.items()
}


def room(module):
  return module.split(".")[1]


def test_every_file_has_a_floor():
  missing = {room(module) for module in SOURCES} - set(FLOOR)
  assert not missing, f"add to FLOORS: {sorted(missing)}"
  empty = set(FLOOR) - {room(module) for module in SOURCES}
  assert not empty, f"remove from FLOORS: {sorted(empty)}"


@pytest.mark.parametrize("name", FLOOR)
def test_imports_run_downward(name):
  upward = [
    f"{module} imports {imported}"
    for module in SOURCES
    if room(module) == name
    for imported in IMPORTS[module]
    if (target := file_of(imported))
    and FLOOR.get(room(target), -1) > FLOOR[name]
  ]
  assert not upward, "\n".join(upward)


def test_no_files_import_in_a_circle():
  graph = {
    module: {target for name in names if (target := file_of(name))} - {module}
    for module, names in IMPORTS.items()
  }
  try:
    graphlib.TopologicalSorter(graph).prepare()
  except graphlib.CycleError as error:
    pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_library_imports_nothing_around_it():
  around = [
    f"{module} imports {imported}"
    for module, names in IMPORTS.items()
    for imported in names
    if imported.split(".")[0] in ("configs", "scripts", "tests")
  ]
  assert not around, "\n".join(around)


def test_operations_know_no_flax_and_no_config():
  known = [
    f"{module} imports {imported}"
    for module, names in IMPORTS.items()
    if room(module) == "ops"
    for imported in names
    if imported.split(".")[0] in ("flax", "ml_collections", "optax")
  ]
  assert not known, "\n".join(known)


def test_no_other_room_imports_a_particular_task():
  interface = {"task", "__init__"}  # Files of halonet/tasks/.
  particular = [
    f"{module} imports {imported}"
    for module, names in IMPORTS.items()
    if room(module) not in ("tasks", "__init__")
    for imported in names
    if imported.startswith("halonet.tasks.")
    and file_of(imported).rpartition(".")[2] not in interface
  ]
  assert not particular, "\n".join(particular)


def test_configs_import_nothing_of_the_library():
  for path in ROOT.glob("configs/**/*.py"):
    names = [*imported_names(path.read_text())]
    assert not any(name.split(".")[0] == "halonet" for name in names), path


def test_module_names_are_unique():
  files = collections.defaultdict(list)
  for module in SOURCES:
    files[module.rpartition(".")[2]].append(module)
  del files["__init__"]
  twice = [modules for modules in files.values() if len(modules) > 1]
  assert not twice, twice
  assert "utils" not in files


def test_class_names_are_unique():
  classes = collections.defaultdict(list)
  for module, text in SOURCES.items():
    for node in ast.parse(text).body:
      if isinstance(node, ast.ClassDef):
        classes[node.name].append(module)
  twice = {name: found for name, found in classes.items() if len(found) > 1}
  assert not twice, twice


def test_the_library_does_not_name_the_extension():
  texts = [path.read_text() for path in ROOT.glob("tests/extension/**/*.py")]
  registered = re.findall(r'\bregister_\w+\(\s*"(\w+)"', "\n".join(texts))
  assert len(registered) >= 4  # Operator, host, task and source.
  for name in ["tests.extension", "spinning", *registered]:
    for module, text in SOURCES.items():
      assert f'"{name}"' not in text, f"{module} names {name}"


@pytest.mark.parametrize("name", DOCS.split())
def test_a_page_of_the_documentation_exists(name):
  assert (ROOT / "docs" / f"{name}.md").exists()


def test_the_readme_is_one_page():
  lines = (ROOT / "README.md").read_text().splitlines()
  assert len(lines) <= 150
  assert (ROOT / "CONTRIBUTING.md").exists()


def test_relative_links_lead_somewhere():
  pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
  lost = [
    f"{page.name}: {target}"
    for page in pages
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    if not (page.parent / target).exists()
  ]
  assert not lost, "\n".join(lost)
