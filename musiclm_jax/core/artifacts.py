# SPDX-License-Identifier: Apache-2.0
"""Frozen artefacts: a directory of weights, config and fingerprint.

A trained tokenizer or stage is written once and never changed. Its
fingerprint is a hash over kind, config and every array; loading recomputes it,
so a swapped or edited file is found before it is used. No pickle.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy

from musiclm_jax.core import atomic_files, errors

FORMAT_VERSION = 1
_WEIGHTS = "weights.safetensors"
_CONFIG = "artifact.json"


@dataclasses.dataclass(frozen=True)
class Artifact:
  """A loaded artefact.

  Attributes:
    kind: 'soundstream', 'semantic', 'mulan', 'stage', ... .
    config: JSON-compatible settings the network is rebuilt from.
    arrays: nested dict of numpy arrays (parameters, codebooks, statistics).
    fingerprint: hex hash over kind, config and arrays.
    metadata: provenance (step, versions, parent fingerprints); not hashed.
    files: bytes of other files (a text vocabulary), hashed too.
  """

  kind: str
  config: dict[str, Any]
  arrays: dict[str, Any]
  fingerprint: str
  metadata: dict[str, Any]
  files: dict[str, bytes]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested dict to flat dict with '/'-joined keys."""
  flat = {}
  for key, value in tree.items():
    path = f"{prefix}/{key}" if prefix else str(key)
    if isinstance(value, Mapping):
      flat.update(flatten(value, path))
    else:
      flat[path] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  tree: dict[str, Any] = {}
  for path, value in flat.items():
    node = tree
    *parents, leaf = path.split("/")
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = value
  return tree


def config_to_dict(config: Any) -> dict[str, Any]:
  """A (nested) frozen dataclass to JSON-compatible values."""
  return json.loads(json.dumps(dataclasses.asdict(config)))


def config_from_dict(cls: type, values: Mapping[str, Any]) -> Any:
  """Rebuilds dataclass `cls` from `config_to_dict` values.

  Raises:
    UserError: if a field is unknown to this version of `cls`.
  """
  hints = typing.get_type_hints(cls)
  kwargs = {}
  for name, value in values.items():
    if name not in hints:
      raise errors.UserError(
        f"{cls.__name__} has no field {name!r}"
        f"{errors.nearest(name, hints)} (artefact of another version?)"
      )
    kwargs[name] = _rebuild(hints[name], value)
  return cls(**kwargs)


def _rebuild(hint: Any, value: Any) -> Any:
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
    return config_from_dict(hint, value)
  if origin is tuple and isinstance(value, (list, tuple)):
    inner = args[0] if args else Any
    return tuple(_rebuild(inner, item) for item in value)
  if origin is not None and type(None) in args and value is not None:
    inner = [arg for arg in args if arg is not type(None)]
    return _rebuild(inner[0], value) if len(inner) == 1 else value
  return value


def fingerprint(
  kind: str,
  config: Mapping[str, Any],
  arrays: Mapping[str, Any],
  files: Mapping[str, bytes] | None = None,
) -> str:
  """Hex hash (16 digits) over kind, config, arrays and other files."""
  digest = hashlib.sha256()
  digest.update(kind.encode())
  digest.update(json.dumps(config, sort_keys=True).encode())
  for name, array in sorted(flatten(arrays).items()):
    array = np.asarray(array, order="C")
    digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
    digest.update(array.tobytes())
  for name, content in sorted((files or {}).items()):
    digest.update(name.encode())
    digest.update(content)
  return digest.hexdigest()[:16]


def save(
  directory: str | os.PathLike,
  kind: str,
  config: Mapping[str, Any],
  arrays: Mapping[str, Any],
  metadata: Mapping[str, Any] | None = None,
  files: Mapping[str, bytes] | None = None,
) -> str:
  """Writes an artefact atomically (a sibling folder, then a rename).

  Args:
    directory: target; replaced when it exists.
    kind: what it is; checked at loading.
    config: JSON-compatible settings.
    arrays: nested dict of arrays.
    metadata: provenance, not part of the fingerprint.
    files: other files by name, part of the fingerprint.

  Returns:
    The fingerprint.
  """
  directory = pathlib.Path(directory)
  config = json.loads(json.dumps(config))
  flat = {
    name: np.asarray(array, order="C")
    for name, array in flatten(arrays).items()
  }
  mark = fingerprint(kind, config, flat, files)
  header = {
    "format_version": FORMAT_VERSION,
    "kind": kind,
    "fingerprint": mark,
    "config": config,
    "files": sorted(files or {}),
    "metadata": dict(metadata or {}),
  }
  with atomic_files.written_folder(directory) as scratch:
    safetensors_numpy.save_file(flat, scratch / _WEIGHTS)
    for name, content in (files or {}).items():
      (scratch / name).write_bytes(content)
    (scratch / _CONFIG).write_text(json.dumps(header, indent=2) + "\n")
    # safetensors makes files that nobody else can read, whatever the umask.
    shutil.copymode(scratch / _CONFIG, scratch / _WEIGHTS)
  return mark


def load(directory: str | os.PathLike, kind: str | None = None) -> Artifact:
  """Reads an artefact and checks that its content fits its fingerprint.

  Raises:
    UserError: if it is missing, damaged, of another kind or changed; the
      message names the folder, and both fingerprints where they differ.
  """
  directory = pathlib.Path(directory)
  path = directory / _CONFIG
  if not path.is_file():
    raise errors.UserError(f"no artefact at {directory}: {_CONFIG} is missing")
  try:
    header = json.loads(path.read_text())
    flat = safetensors_numpy.load_file(directory / _WEIGHTS)
    files = {name: (directory / name).read_bytes() for name in header["files"]}
    version, found = header["format_version"], header["kind"]
  except Exception as error:  # safetensors and json raise many kinds
    raise errors.UserError(
      f"damaged artefact at {directory}: {error}"
    ) from error
  if version != FORMAT_VERSION:
    raise errors.UserError(
      f"artefact at {directory} has format_version={version}: expected "
      f"{FORMAT_VERSION}"
    )
  if kind is not None and found != kind:
    raise errors.UserError(
      f"artefact at {directory} is a {found!r}: expected a {kind!r}"
    )
  mark = fingerprint(found, header["config"], flat, files)
  if mark != header["fingerprint"]:
    raise errors.UserError(
      f"artefact at {directory} was changed: its content has fingerprint "
      f"{mark}, its {_CONFIG} says {header['fingerprint']}"
    )
  return Artifact(
    kind=found,
    config=header["config"],
    arrays=unflatten(flat),
    fingerprint=mark,
    metadata=header["metadata"],
    files=files,
  )


def read_fingerprint(directory: str | os.PathLike) -> str:
  """The recorded fingerprint, without reading the weights.

  Raises:
    UserError: if there is no artefact.
  """
  path = pathlib.Path(directory) / _CONFIG
  if not path.is_file():
    raise errors.UserError(f"no artefact at {directory}: {_CONFIG} is missing")
  return json.loads(path.read_text())["fingerprint"]


def check_fingerprint(what: str, found: str, expected: str) -> None:
  """Raises UserError, printing both, if two fingerprints differ."""
  if found != expected:
    raise errors.UserError(
      f"{what} has fingerprint {found}, but {expected} was expected: it is "
      "not the artefact these tokens or parameters were made with"
    )
