# SPDX-License-Identifier: Apache-2.0
"""Artefacts: round trip, fingerprints, damage."""

import dataclasses
import json
import os

import numpy as np
import pytest

from musiclm_jax.core import artifacts, errors


@dataclasses.dataclass(frozen=True)
class Inner:
  size: int = 3


@dataclasses.dataclass(frozen=True)
class Outer:
  inner: Inner = Inner()
  items: tuple[Inner, ...] = ()
  maybe: Inner | None = None
  rates: tuple[float, ...] = (1.0,)


ARRAYS = {"params": {"layer": {"kernel": np.arange(6.0).reshape(2, 3)}}}


def _save(path, arrays=None, config=None, files=None):
  return artifacts.save(
    path, "thing", config or {"a": 1}, arrays or ARRAYS, files=files
  )


def test_round_trip(tmp_path):
  mark = _save(tmp_path / "a", files={"text.model": b"xyz"})
  loaded = artifacts.load(tmp_path / "a", "thing")
  assert (
    loaded.fingerprint == mark == artifacts.read_fingerprint(tmp_path / "a")
  )
  np.testing.assert_array_equal(
    loaded.arrays["params"]["layer"]["kernel"],
    ARRAYS["params"]["layer"]["kernel"],
  )
  assert loaded.files["text.model"] == b"xyz"


def test_whoever_may_read_the_folder_may_read_the_weights(tmp_path):
  before = os.umask(0o022)
  try:
    _save(tmp_path / "a", files={"text.model": b"xyz"})
  finally:
    os.umask(before)
  for path in (tmp_path / "a").iterdir():
    assert path.stat().st_mode & 0o777 == 0o644, path.name


def test_fingerprint_covers_weights_config_and_files(tmp_path):
  changed = {"params": {"layer": {"kernel": np.zeros((2, 3))}}}
  marks = [
    _save(tmp_path / "a"),
    _save(tmp_path / "b", arrays=changed),
    _save(tmp_path / "c", config={"a": 2}),
    _save(tmp_path / "d", files={"x": b"1"}),
    _save(tmp_path / "e", files={"x": b"2"}),
  ]
  assert len(set(marks)) == 5
  assert _save(tmp_path / "f") == marks[0]


def test_swapped_weights_are_found_with_both_fingerprints(tmp_path):
  first = _save(tmp_path / "a")
  changed = {"params": {"layer": {"kernel": np.zeros((2, 3))}}}
  second = _save(tmp_path / "b", arrays=changed)
  weights = (tmp_path / "b" / "weights.safetensors").read_bytes()
  (tmp_path / "a" / "weights.safetensors").write_bytes(weights)
  with pytest.raises(errors.UserError) as caught:
    artifacts.load(tmp_path / "a")
  assert first in str(caught.value) and second in str(caught.value)


@pytest.mark.parametrize("name", ["weights.safetensors", "artifact.json"])
def test_damage_is_one_clear_error(tmp_path, name):
  _save(tmp_path / "a")
  path = tmp_path / "a" / name
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(errors.UserError, match="damaged artefact"):
    artifacts.load(tmp_path / "a")


def test_missing_and_wrong_kind(tmp_path):
  with pytest.raises(errors.UserError, match="no artefact at"):
    artifacts.load(tmp_path / "nothing")
  _save(tmp_path / "a")
  with pytest.raises(errors.UserError, match="expected a 'codec'"):
    artifacts.load(tmp_path / "a", "codec")


def test_config_round_trip():
  config = Outer(Inner(4), (Inner(1), Inner(2)), Inner(9), (0.5, 2.0))
  values = json.loads(json.dumps(artifacts.config_to_dict(config)))
  assert artifacts.config_from_dict(Outer, values) == config
  with pytest.raises(errors.UserError, match="did you mean 'inner'"):
    artifacts.config_from_dict(Outer, {"iner": {}})
