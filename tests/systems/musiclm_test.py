# SPDX-License-Identifier: Apache-2.0
"""The composed system on tiny random stages and hand-made tokenizers."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_stages

from musiclm_jax.core import artifacts, errors, stages, streams
from musiclm_jax.systems import musiclm, stage_lm

MULAN = streams.TokenStream("mulan", 4, 2)
SEMANTIC = streams.TokenStream("semantic", 6, 1, 4.0)
ACOUSTIC = streams.TokenStream("acoustic", 5, 4, 8.0)
STREAMS = (MULAN, SEMANTIC, ACOUSTIC)
SPECS = (
  stages.semantic_stage(2, 2.0),
  stages.coarse_stage(2, 2, 1.0),
  stages.fine_stage(2, 4, 1.0),
)
STACK = tiny_stages.STACK


class _Codec:
  stream = ACOUSTIC
  sample_rate_hz = 80

  def decode(self, codes):
    return jnp.repeat(jnp.asarray(codes).sum(-1) / 20.0, 10, axis=-1)


class _Mulan:
  stream = MULAN

  def encode_text(self, texts):
    codes = [[len(text) % 4, text.count("a") % 4] for text in texts]
    return np.array(codes, np.int32)[:, None]


def make_params(spec):
  return tiny_stages.make_params(spec, STREAMS)


@pytest.fixture(scope="module")
def system():
  parts = [
    stage_lm.StageLM(spec, STREAMS, STACK, make_params(spec)) for spec in SPECS
  ]
  return musiclm.MusicLM(_Codec(), _Mulan(), *parts)


def test_lengths_are_exact_and_codes_legal_beyond_the_crop(system):
  result = system.generate(["a piano", "drums"], 3.33, seed=[5, 6])
  assert result.waveform.shape == (2, round(3.33 * 80))
  assert result.waveform.dtype == np.float32
  assert np.isfinite(result.waveform).all()
  shapes = {name: codes.shape for name, codes in result.codes.items()}
  assert shapes == {
    "mulan": (2, 1, 2),
    "semantic": (2, 14, 1),
    "acoustic": (2, 27, 4),
  }
  for stream in STREAMS:
    codes = result.codes[stream.name]
    assert codes.min() >= 0 and codes.max() < stream.codebook_size
  assert len(np.unique(result.codes["acoustic"])) > 2


def test_item_depends_on_its_prompt_and_seed_only(system):
  both = system.generate(["a piano", "drums"], 3.0, seed=[5, 6])
  # The neighbour changes place and text, or there is none.
  alone = system.generate("drums", 3.0, seed=6)
  other = system.generate(["drums", "a violin"], 3.0, seed=[6, 9])
  for name, codes in both.codes.items():
    np.testing.assert_array_equal(codes[1], alone.codes[name][0])
    np.testing.assert_array_equal(codes[1], other.codes[name][0])
  again = system.generate("drums", 3.0, seed=7)
  assert (again.codes["semantic"] != alone.codes["semantic"]).any()


def test_int_seed_counts_up():
  assert musiclm.item_seeds(3, 2) == (3, 4)
  with pytest.raises(errors.UserError, match="1 seeds given"):
    musiclm.item_seeds([3], 2)


def test_text_enters_the_codes(system):
  codes = system.generate(["a piano", "drum"], 3.0, seed=[5, 5]).codes
  assert (codes["mulan"][0] != codes["mulan"][1]).any()
  assert (codes["semantic"][0] != codes["semantic"][1]).any()


@pytest.mark.parametrize(
  "prompts,seconds,sampling,message",
  [
    ("", 1.0, (1, 1, 1), "prompt 0 is ''"),
    (["ok", "  "], 1.0, (1, 1, 1), "prompt 1"),
    ([], 1.0, (1, 1, 1), "no prompt"),
    ("ok", 0.0, (1, 1, 1), "seconds=0.0"),
    ("ok", float("nan"), (1, 1, 1), "seconds=nan"),
    ("ok", 1.0, (1, -1, 1), "temperature=-1"),
    ("ok", 1.0, (1, 1), "expected three"),
  ],
)
def test_bad_requests_are_user_errors(
  system, prompts, seconds, sampling, message
):
  with pytest.raises(errors.UserError, match=message):
    system.generate(prompts, seconds, 0, sampling)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_greedy_stage_agrees_with_its_own_teacher_forced_scores(weights):
  spec = SPECS[1]
  stage = stage_lm.StageLM(
    spec, STREAMS, STACK, make_params(spec), weights=weights
  )
  dtypes = {
    name: str(leaf.dtype)
    for name, leaf in artifacts.flatten(stage.variables["params"]).items()
  }
  assert dtypes["output"] == weights == stage.weights
  narrow = [name for name, dtype in dtypes.items() if dtype == "int8"]
  # What a step looks up, or adds, stays as it is.
  assert len(narrow) == (5 if weights == "int8" else 0), narrow
  rng = np.random.default_rng(1)
  codes = {
    "mulan": rng.integers(0, 4, (2, 1, 2)),
    "semantic": rng.integers(0, 6, (2, 4, 1)),
  }
  keys = jax.random.split(jax.random.key(0), 2)
  made = stage.generate(codes, None, 8, 0.0, keys)
  assert made.shape == (2, 8, 2)
  padded = np.concatenate([made, np.zeros_like(made)], axis=-1)
  best = stage.score(codes | {"acoustic": padded})
  assert best.shape == (2, 8, 2)
  for level in range(2):
    for shift in range(1, 5):
      other = padded.copy()
      other[:, 5, level] = (other[:, 5, level] + shift) % 5
      worse = stage.score(codes | {"acoustic": other})
      assert (worse[:, 5, level] > best[:, 5, level]).all()
  # A known prefix and forced frames continue the same greedy sequence.
  prefixed = stage.generate(
    codes, made[:, :4], 4, 0.0, keys, forced=made[:, 4:6]
  )
  np.testing.assert_array_equal(prefixed, made[:, 4:])


def test_stage_survives_export_and_load(system, tmp_path):
  spec = SPECS[0]
  params = make_params(spec)
  stage_lm.export_stage(
    tmp_path / "s", spec, STREAMS, STACK, params, {"mulan": "ab"}
  )
  loaded = stage_lm.StageLM.load(tmp_path / "s")
  assert loaded.spec == spec and loaded.tokenizers == {"mulan": "ab"}
  # One that was written before stages could be guided.
  artifact = artifacts.load(tmp_path / "s", stage_lm.KIND)
  del artifact.config["spec"]["dropped_streams"]
  artifacts.save(tmp_path / "old", "stage", artifact.config, artifact.arrays)
  assert stage_lm.StageLM.load(tmp_path / "old").spec == spec
  codes = {
    "mulan": np.zeros((1, 1, 2), np.int32),
    "semantic": np.arange(6, dtype=np.int32).reshape(1, 6, 1),
  }
  np.testing.assert_allclose(
    loaded.score(codes), system.stages["semantic"].score(codes), rtol=1e-6
  )


def test_streams_of_stages_and_tokenizers_must_agree(system):
  codec = _Codec()
  codec.stream = streams.TokenStream("acoustic", 7, 4, 8.0)
  with pytest.raises(errors.UserError, match="codebook_size=7"):
    musiclm.MusicLM(codec, _Mulan(), *system.stages.values())


def test_import_loads_no_tensorflow():
  code = (
    "import sys, musiclm_jax.systems.musiclm;"
    "assert not {'tensorflow', 'seqio', 'optax', 'orbax'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=".")
