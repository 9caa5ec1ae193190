# SPDX-License-Identifier: Apache-2.0
"""Frechet distances of the public packages, on embeddings both sides make.

The distance functions of `fadtk` (MIT) and `frechet-audio-distance` (MIT) are
taken out of the installed files, because the files also import torch and
several models. Run as a script, with both packages importable, it writes their
answers to the fixture that the tests use where the packages are missing:

  python tests/support/public_frechet.py
"""

import ast
import importlib.metadata
import importlib.util
import json
import logging
import pathlib

import numpy as np

FIXTURE = pathlib.Path(__file__).with_name("public_frechet.json")
# Package to the file in it and the function in the file.
FUNCTIONS = {
  "fadtk": ("fad.py", "calc_frechet_distance"),
  "frechet_audio_distance": ("fad.py", "calculate_frechet_distance"),
}
# Name to dimensions and numbers of vectors.
CASES = {
  "8 dimensions": (8, 60, 45),
  "32 dimensions": (32, 400, 300),
  "128 dimensions": (128, 600, 500),
  "shifted 128 dimensions": (128, 1000, 700),
}


def embeddings(name: str) -> tuple[np.ndarray, np.ndarray]:
  """Reference and evaluated vectors of a case, float32."""
  dim, num_reference, num_evaluated = CASES[name]
  generator = np.random.default_rng(len(name) + dim)
  offset = 5.0 if name.startswith("shifted") else 0.0
  sets = []
  for index, count in enumerate((num_reference, num_evaluated)):
    mixing = generator.normal(size=(dim, dim)) / np.sqrt(dim)
    vectors = generator.normal(size=(count, dim)) @ mixing
    sets.append((vectors + offset + 0.1 * index).astype(np.float32))
  return sets[0], sets[1]


def moments(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean and covariance in float64, as both packages take them by numpy."""
  vectors = vectors.astype(np.float64)
  return vectors.mean(0), np.cov(vectors, rowvar=False)


def load(package: str):
  """The distance function of an installed package, or None.

  Returns:
    A function of two pairs (mean, covariance).
  """
  spec = importlib.util.find_spec(package)
  if spec is None:
    return None
  file_name, function = FUNCTIONS[package]
  path = pathlib.Path(next(iter(spec.submodule_search_locations))) / file_name
  found = [
    node
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.FunctionDef) and node.name == function
  ]
  from numpy.lib.scimath import sqrt as scisqrt
  from scipy import linalg

  names = {
    "np": np,
    "linalg": linalg,
    "scisqrt": scisqrt,
    "log": logging.getLogger(package),
  }
  exec(  # noqa: S102 - the code of a package the user installed
    compile(ast.Module(found, []), str(path), "exec"), names
  )
  distance = names[function]
  is_method = found[0].args.args[0].arg == "self"
  before = (None,) if is_method else ()
  return lambda first, second: complex(distance(*before, *first, *second)).real


def answers() -> dict[str, dict[str, float]]:
  """Of all packages that are installed, by package and case."""
  found = {}
  for package in FUNCTIONS:
    distance = load(package)
    if distance is not None:
      found[package] = {
        name: distance(*map(moments, embeddings(name))) for name in CASES
      }
  return found


if __name__ == "__main__":
  content = {
    "versions": {
      name: importlib.metadata.version(name)
      for name in (*FUNCTIONS, "numpy", "scipy")
    },
    "distances": answers(),
  }
  FIXTURE.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
