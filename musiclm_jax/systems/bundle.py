# SPDX-License-Identifier: Apache-2.0
"""A bundle: every frozen part of one MusicLM in one directory.

Artefact directories in; one directory with `bundle.json` out, whose parts are
known to fit together. The parts of melody conditioning may be missing, and
coarse and fine stage where an acoustic back end takes their place.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Collection, Mapping
from typing import Any

from musiclm_jax.core import artifacts, atomic_files, errors

FORMAT_VERSION = 1
_HEADER = "bundle.json"
TOKENIZERS = ("soundstream", "semantic", "mulan")
STAGES = ("stage_semantic", "stage_coarse", "stage_fine")
PARTS = TOKENIZERS + STAGES
# Missing where no stage was trained on it: the bundle is an AudioLM's then.
MULAN = "mulan"
# A bundle that can be given a melody has these too.
MELODY, MELODY_STAGE = "melody", "stage_semantic_melody"
# Each takes the place of coarse and fine stage, or stands beside them.
ACOUSTIC = ("acoustic_depthwise", "acoustic_soundstorm")
OPTIONAL_PARTS = (MELODY, MELODY_STAGE, *ACOUSTIC)
_ALL_STAGES = (*STAGES, MELODY_STAGE)


def required_parts(names: Collection[str]) -> tuple[str, ...]:
  """Parts that a bundle with parts `names` must have.

  MuLan is needed only by stages that were trained on it, which say so.
  """
  spared = {MULAN}
  if set(ACOUSTIC) & set(names):
    spared |= {"stage_coarse", "stage_fine"}
  return tuple(name for name in PARTS if name not in spared)


@dataclasses.dataclass(frozen=True)
class Bundle:
  """An opened, verified bundle.

  Attributes:
    directory: where it is.
    paths: artefact directories by part name.
    fingerprints: by part name.
    versions: of the packages that wrote it.
  """

  directory: pathlib.Path
  paths: dict[str, pathlib.Path]
  fingerprints: dict[str, str]
  versions: dict[str, str]


def combined_fingerprint(fingerprints: Mapping[str, str]) -> str:
  """One hex hash (16 digits) for all parts; '' for none."""
  if not fingerprints:
    return ""
  lines = "".join(f"{k} {v}\n" for k, v in sorted(fingerprints.items()))
  return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _check_tokenizers(
  stage: str,
  config: Mapping[str, Any],
  fingerprints: Mapping[str, str],
  directory: pathlib.Path,
) -> None:
  """Every tokenizer a stage was trained on must be the one in the bundle."""
  for name, trained_on in config.get("tokenizers", {}).items():
    found = fingerprints.get(name)
    if found != trained_on:
      raise errors.UserError(
        f"{stage} in {directory} was trained on tokens of {name} with "
        f"fingerprint {trained_on}, but the {name} there has fingerprint "
        f"{found}"
      )


def _verify(
  directory: pathlib.Path, paths: Mapping[str, pathlib.Path]
) -> dict[str, str]:
  """Reads every part (which checks its content) and compares fingerprints."""
  configs, fingerprints = {}, {}
  for name, path in paths.items():
    kind = "stage" if name in _ALL_STAGES else name
    artifact = artifacts.load(path, kind)
    configs[name] = artifact.config
    fingerprints[name] = artifact.fingerprint
  for name in (*_ALL_STAGES, *ACOUSTIC):
    if name in configs:
      _check_tokenizers(name, configs[name], fingerprints, directory)
  return fingerprints


def _versions() -> dict[str, str]:
  import importlib.metadata
  import platform

  versions = {"python": platform.python_version()}
  for package in ("musiclm_jax", "jax", "flax", "numpy"):
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue  # Run from a source tree that is not installed.
  return versions


def write_bundle(
  directory: str | os.PathLike,
  artifact_dirs: Mapping[str, str | os.PathLike],
) -> Bundle:
  """Copies artefacts into a new bundle, atomically.

  Args:
    directory: where; replaced when it exists.
    artifact_dirs: artefact directory of each name in `PARTS` (see
      `required_parts`), and perhaps of those in `OPTIONAL_PARTS`.

  Returns:
    The bundle.

  Raises:
    UserError: if a part is missing, unknown, damaged, or does not fit the
      others; nothing is written then.
  """
  directory = pathlib.Path(directory)
  known = PARTS + OPTIONAL_PARTS
  for name in artifact_dirs:
    if name not in known:
      raise errors.UserError(
        f"unknown bundle part {name!r}{errors.nearest(name, known)}"
      )
  needed = required_parts(artifact_dirs)
  missing = [name for name in needed if name not in artifact_dirs]
  if missing:
    raise errors.UserError(f"bundle {directory} lacks {', '.join(missing)}")
  sources = {
    name: pathlib.Path(artifact_dirs[name])
    for name in known
    if name in artifact_dirs
  }
  fingerprints = _verify(directory, sources)
  versions = _versions()
  header = {
    "format_version": FORMAT_VERSION,
    "parts": {
      name: {"path": name, "fingerprint": fingerprints[name]}
      for name in sources
    },
    "versions": versions,
  }
  with atomic_files.written_folder(directory) as scratch:
    for name, source in sources.items():
      shutil.copytree(source, scratch / name)
    (scratch / _HEADER).write_text(json.dumps(header, indent=2) + "\n")
  paths = {name: directory / name for name in sources}
  return Bundle(directory, paths, fingerprints, versions)


def _read_header(directory: pathlib.Path) -> dict[str, Any]:
  path = directory / _HEADER
  if not path.is_file():
    raise errors.UserError(f"no bundle at {directory}: {_HEADER} is missing")
  try:
    header = json.loads(path.read_text())
    dict(header["parts"])
  except (ValueError, KeyError, TypeError) as error:
    raise errors.UserError(f"damaged bundle at {path}: {error!r}") from error
  return header


def has_part(directory: str | os.PathLike, name: str) -> bool:
  """Whether a bundle names a part; nothing is verified.

  Raises:
    UserError: if it is missing or damaged.
  """
  return name in _read_header(pathlib.Path(directory))["parts"]


def open_bundle(directory: str | os.PathLike) -> Bundle:
  """Opens a bundle and verifies that its parts are whole and fit together.

  Raises:
    UserError: if it is missing or damaged, a part was changed, or a stage was
      trained on another tokenizer; the message prints both fingerprints.
  """
  directory = pathlib.Path(directory)
  header = _read_header(directory)
  path = directory / _HEADER
  try:
    version, parts = header["format_version"], header["parts"]
    needed = required_parts(parts)
    names = tuple(n for n in PARTS if n in parts or n in needed)
    names += tuple(n for n in OPTIONAL_PARTS if n in parts)
    paths = {name: directory / parts[name]["path"] for name in names}
    expected = {name: parts[name]["fingerprint"] for name in names}
    versions = dict(header.get("versions", {}))
  except (ValueError, KeyError, TypeError) as error:
    raise errors.UserError(f"damaged bundle at {path}: {error!r}") from error
  if version != FORMAT_VERSION:
    raise errors.UserError(
      f"bundle at {directory} has format_version={version}: expected "
      f"{FORMAT_VERSION}"
    )
  fingerprints = _verify(directory, paths)
  for name in names:
    artifacts.check_fingerprint(
      f"{name} in {directory}", fingerprints[name], expected[name]
    )
  return Bundle(directory, paths, fingerprints, versions)
