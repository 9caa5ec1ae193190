# SPDX-License-Identifier: Apache-2.0
"""Bundles: parts that do not fit together are refused, naming both sides."""

import json
import shutil

import numpy as np
import pytest

from musiclm_jax.core import artifacts, errors
from musiclm_jax.systems import bundle


@pytest.fixture
def parts(tmp_path):
  dirs, marks = {}, {}
  for seed, name in enumerate(bundle.TOKENIZERS):
    dirs[name] = tmp_path / f"src_{name}"
    arrays = {"w": np.full(3, seed, np.float32)}
    marks[name] = artifacts.save(dirs[name], name, {}, arrays)
  for name in bundle.STAGES:
    dirs[name] = tmp_path / f"src_{name}"
    config = {"tokenizers": marks, "name": name}
    artifacts.save(dirs[name], "stage", config, {"w": np.ones(2)})
  return dirs


def test_round_trip(parts, tmp_path):
  written = bundle.write_bundle(tmp_path / "b", parts)
  for path in parts.values():
    shutil.rmtree(path)  # A bundle stands alone.
  (tmp_path / "b").rename(tmp_path / "moved")
  opened = bundle.open_bundle(tmp_path / "moved")
  assert opened.fingerprints == written.fingerprints
  assert set(opened.paths) == set(bundle.PARTS)
  assert "jax" in opened.versions
  assert not list(tmp_path.glob("*.writing"))


def test_melody_parts_may_be_there_and_must_fit(parts, tmp_path):
  melody = (bundle.MELODY, bundle.MELODY_STAGE)
  for name in melody:
    parts[name] = tmp_path / f"src_{name}"
  mark = artifacts.save(parts["melody"], "melody", {}, {"w": np.ones(3)})
  config = {"tokenizers": {"melody": mark}}
  stage = parts[bundle.MELODY_STAGE]
  artifacts.save(stage, "stage", config, {"w": np.ones(2)})
  bundle.write_bundle(tmp_path / "b", parts)
  opened = bundle.open_bundle(tmp_path / "b")
  assert set(opened.paths) == {*bundle.PARTS, *melody}
  # A stage without its tokenizer, then with another one.
  without = {name: path for name, path in parts.items() if name != "melody"}
  with pytest.raises(errors.UserError, match="fingerprint None"):
    bundle.write_bundle(tmp_path / "c", without)
  new = artifacts.save(parts["melody"], "melody", {}, {"w": np.zeros(3)})
  with pytest.raises(errors.UserError, match=f"{mark}.*{new}"):
    bundle.write_bundle(tmp_path / "c", parts)


def test_stage_of_another_tokenizer_is_refused_with_both(parts, tmp_path):
  old = artifacts.read_fingerprint(parts["soundstream"])
  new = artifacts.save(
    parts["soundstream"], "soundstream", {}, {"w": np.full(3, 9.0)}
  )
  with pytest.raises(errors.UserError) as error:
    bundle.write_bundle(tmp_path / "b", parts)
  assert old in str(error.value) and new in str(error.value)
  assert not (tmp_path / "b").exists()


def test_swapped_part_is_found_at_opening(parts, tmp_path):
  bundle.write_bundle(tmp_path / "b", parts)
  config = json.loads((tmp_path / "b/stage_fine/artifact.json").read_text())
  new = artifacts.save(
    tmp_path / "b/stage_fine", "stage", config["config"], {"w": np.zeros(2)}
  )
  with pytest.raises(errors.UserError) as error:
    bundle.open_bundle(tmp_path / "b")
  assert new in str(error.value) and config["fingerprint"] in str(error.value)


def test_missing_unknown_and_damaged(parts, tmp_path):
  with pytest.raises(errors.UserError, match="no bundle"):
    bundle.open_bundle(tmp_path / "none")
  with pytest.raises(errors.UserError, match="mulan"):
    bundle.write_bundle(tmp_path / "b", parts | {"mulam": parts["mulan"]})
  with pytest.raises(errors.UserError, match="lacks stage_fine"):
    bundle.write_bundle(
      tmp_path / "b", {k: v for k, v in parts.items() if k != "stage_fine"}
    )
  bundle.write_bundle(tmp_path / "b", parts)
  (tmp_path / "b/bundle.json").write_text("{")
  with pytest.raises(errors.UserError, match="damaged bundle"):
    bundle.open_bundle(tmp_path / "b")
