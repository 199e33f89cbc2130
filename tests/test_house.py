"""The house holds: imports point down, files and functions stay small, names stay honest."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "imax_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# The first prefix that fits a module decides its floor; the room is what brothers are.
FLOORS = (
  ("imax_jax.schema", 0),
  ("imax_jax.tree", 0),
  ("imax_jax.mesh", 0),
  ("imax_jax.ledger", 0),
  ("imax_jax.progress", 0),
  ("imax_jax.data.pipeline", 2),
  ("imax_jax.data", 1),
  ("imax_jax.models", 1),
  ("imax_jax.weights", 2),
  ("imax_jax.train", 3),
  ("imax_jax.evaluate", 3),
  ("imax_jax.fisher", 3),
  ("imax_jax.pseudo", 3),
  ("imax_jax.report", 3),
  ("imax_jax.study", 4),
  ("imax_jax.parameters", 4),
  ("imax_jax.encoder", 4),
  ("imax_jax.sight", 4),
  ("imax_jax.feed", 4),
  ("imax_jax.choices", 4),
  ("imax_jax.selection", 4),
  ("imax_jax.build", 4),
  ("imax_jax.provenance", 4),
  ("imax_jax.runs", 4),
  ("imax_jax.costs", 4),
  ("imax_jax.results", 4),
  ("imax_jax.comparison", 4),
  ("imax_jax.evaluated", 4),
  ("imax_jax.predict", 4),
  ("imax_jax.model_card", 4),
  ("imax_jax.deliver", 4),
  ("imax_jax.publication", 4),
  ("imax_jax.foundation", 4),
  ("imax_jax.conversion", 4),
  ("imax_jax.audit", 4),
  ("imax_jax.outlook", 4),
  ("imax_jax.strategy", 4),
  ("imax_jax.answers", 4),
  ("imax_jax.spectra", 4),
  ("imax_jax.experiment", 4),
  ("imax_jax.main", 5),
)
# The two halves meet in schema.py; the verbs meet in experiment.py.
ROOMS_THAT_BROTHERS_DO_NOT_ENTER = {1, 3}
LINES_OF_FILE, LINES_OF_FUNCTION = 350, 60
# Imported by no module: `weights.pickles` starts it as a process.
PICKLES_ARE_READ_BY = "imax_jax.weights.unpickle"
# A loop that is read from top to bottom is clearer whole.
LONGER = {("imax_jax/train/loop.py", "train"): 160}


def module_of(path: Path) -> str:
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(part for part in parts if part != "__init__")


def floor_of(module: str) -> tuple[str, int]:
  for prefix, floor in FLOORS:
    if module == prefix or module.startswith(f"{prefix}."):
      return prefix, floor
  raise AssertionError(f"{module} stands on no floor: add it to FLOORS")


def imports_of(path: Path) -> set[str]:
  found = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_down(path: Path) -> None:
  module = module_of(path)
  if module == "imax_jax":
    return
  room, floor = floor_of(module)
  for name in imports_of(path):
    if not name.startswith("imax_jax."):
      continue
    other_room, other = floor_of(name)
    assert other <= floor, f"{module} (floor {floor}) imports {name} (floor {other})"
    if other == floor and floor in ROOMS_THAT_BROTHERS_DO_NOT_ENTER:
      assert other_room == room, f"{module} imports its brother {name}"


def test_no_import_cycle() -> None:
  modules = {module_of(path): path for path in FILES}
  edges = {
    module: {
      known
      for name in imports_of(path)
      for known in (name, name.rsplit(".", 1)[0])
      if known in modules and known != module
    }
    for module, path in modules.items()
  }
  state: dict[str, str] = {}

  def visit(module: str, trail: tuple[str, ...]) -> None:
    if state.get(module) == "done":
      return
    assert state.get(module) != "open", f"cycle: {' -> '.join((*trail, module))}"
    state[module] = "open"
    for other in sorted(edges[module]):
      visit(other, (*trail, module))
    state[module] = "done"

  for module in edges:
    visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_and_functions_stay_small(path: Path) -> None:
  text = path.read_text(encoding="utf8")
  assert text.count("\n") <= LINES_OF_FILE, f"{path} has {text.count(chr(10))} lines"
  name = str(path.relative_to(ROOT))
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      allowed = LONGER.get((name, node.name), LINES_OF_FUNCTION)
      length = (node.end_lineno or 0) - node.lineno + 1
      assert length <= allowed, f"{name}:{node.lineno} {node.name} has {length} lines"


def test_data_does_not_start_jax_and_nothing_runs_torch() -> None:
  for path in FILES:
    module, names = module_of(path), imports_of(path)
    roots = {name.split(".")[0] for name in names}
    assert not any(name.startswith(PICKLES_ARE_READ_BY) for name in names), module
    # Pickles are programs: the one module that reads them is a process of its own.
    allowed = {"torch"} if module == PICKLES_ARE_READ_BY else set()
    foreign = roots & {"torch", "pickle", "tensorflow", "requests", "urllib"}
    assert foreign <= allowed, module
    if module.startswith("imax_jax.data") and module != "imax_jax.data.pipeline":
      assert not roots & {"jax", "flax", "optax"}, f"{module} imports jax"
    if "flax" in roots:
      assert module.startswith(("imax_jax.models", "imax_jax.train.state")), module


def test_no_rooms_for_odds_and_ends() -> None:
  for path in FILES:
    assert path.stem not in {"utils", "common", "helpers"}, path
    assert not path.stem.startswith("base_"), path
