# SPDX-License-Identifier: Apache-2.0
"""The import rules of docs/architecture.md, read from the syntax tree."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "musiclm_jax"
LEVELS = {
  "core": 0,
  "audio": 1,
  "partitioning": 1,
  "layers": 2,
  "data": 2,
  "networks": 3,
  "models": 4,
  "decoding": 4,
  "training": 5,
  "systems": 5,
  "evaluation": 6,
  "cli": 7,
}
FILES = sorted(PACKAGE.rglob("*.py"))


def _imports(path):
  """Imported modules of a file, with the names taken from each."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      for alias in node.names:
        yield f"{node.module}.{alias.name}"


def _folder(path):
  return path.relative_to(PACKAGE).parts[0]


def test_every_folder_has_a_level():
  folders = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}
  assert folders == set(LEVELS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
  folder = _folder(path)
  for name in _imports(path):
    parts = name.split(".")
    if parts[0] != "musiclm_jax" or len(parts) < 2 or parts[1] not in LEVELS:
      continue
    other = parts[1]
    if other == folder:
      continue
    assert LEVELS[other] < LEVELS[folder], f"{folder} may not import {name}"
    if other == "data":
      assert folder == "cli", f"only cli may import data, not {folder}"
    if other == "models":
      assert folder in ("training", "cli"), f"{folder} may not import models"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_frameworks_stay_in_their_folders(path):
  folder = _folder(path)
  allowed = {
    "gin": {"cli"},
    "tensorflow": {"data"},
    "tensorflow_datasets": {"data"},
    "seqio": {"data"},
    "orbax": {"training"},
    "flax": {"layers", "networks"},
  }
  for name in _imports(path):
    owner = allowed.get(name.split(".")[0])
    if owner is None:
      continue
    if name.startswith("flax") and path.name == "axes.py":
      continue
    assert folder in owner, f"{path.name} may not import {name}"


def test_no_cycles_inside_folders():
  graph = {}
  for path in FILES:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    graph[module] = set()
    for name in _imports(path):
      for candidate in (name, name.rpartition(".")[0]):
        target = ROOT / (candidate.replace(".", "/") + ".py")
        if candidate.startswith("musiclm_jax.") and target.exists():
          graph[module].add(candidate)
  done, stack = set(), []

  def visit(module):
    assert module not in stack, " -> ".join([*stack, module])
    if module in done:
      return
    stack.append(module)
    for target in sorted(graph.get(module, ())):
      visit(target)
    stack.pop()
    done.add(module)

  for module in sorted(graph):
    visit(module)


def test_gin_folder_holds_no_package():
  # With an __init__.py, `import gin` would find the folder, not gin-config.
  assert not (ROOT / "gin" / "__init__.py").exists()
