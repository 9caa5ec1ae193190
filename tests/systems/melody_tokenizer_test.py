# SPDX-License-Identifier: Apache-2.0
"""The frozen melody tokenizer: windows, masks, rates, fingerprints."""

import json

import numpy as np
import pytest
import tokenizer_artifacts as small

from musiclm_jax.core import artifacts, errors, rvq
from musiclm_jax.systems import melody_tokenizer

RATE_HZ = small.RATE_HZ


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  return small.write_melody(tmp_path_factory.mktemp("artifacts") / "melody")


@pytest.fixture(scope="module")
def tokenizer(directory):
  return melody_tokenizer.MelodyTokenizer.load(directory)


def test_ten_seconds_are_three_windows(tokenizer):
  waveform = small.music(10.0, 0)
  codes = tokenizer.encode(waveform[None], RATE_HZ)
  assert codes.shape == (1, 3, 5)
  assert codes.dtype == np.int32
  assert codes.shape[1] == tokenizer.stream.num_frames(10.0)
  # 0-4, 3-7 and 6-10 s, each as if it were alone.
  for index, start in enumerate((0, 3, 6)):
    alone = waveform[start * RATE_HZ : (start + 4) * RATE_HZ]
    np.testing.assert_array_equal(
      tokenizer.encode(alone[None], RATE_HZ)[0, 0], codes[0, index]
    )
  assert len({tuple(row) for row in codes[0]}) == 3


@pytest.mark.parametrize(
  "secs, real",
  [
    (0.01, [0.01]),
    (4, [4]),
    (4.99, [4]),
    (5, [4, 2]),
    (7, [4, 4]),
    (10, [4] * 3),
    (11, [4, 4, 4, 2]),
  ],
)
def test_windows_are_cut_while_half_of_them_is_audio(secs, real):
  rate_hz = 100
  waveform = np.arange(round(secs * rate_hz), dtype=np.float32)[None] + 1
  windows, counts = melody_tokenizer.cut_windows(
    waveform, 4 * rate_hz, 3 * rate_hz
  )
  assert windows.shape == (1, len(real), 400)
  np.testing.assert_array_equal(counts, np.array(real) * rate_hz)
  for index, count in enumerate(counts):
    start = 300 * index
    np.testing.assert_array_equal(
      windows[0, index, :count], waveform[0, start : start + count]
    )
    assert not windows[0, index, count:].any()


def test_short_audio_is_masked_not_heard_as_silence(tokenizer):
  waveform = small.music(2.5, 1)[None]
  short = tokenizer.embed_windows(waveform, RATE_HZ)
  assert short.shape == (1, 1, 12)
  padded = np.pad(waveform, ((0, 0), (0, 4 * RATE_HZ - waveform.shape[1])))
  assert np.abs(tokenizer.embed_windows(padded, RATE_HZ) - short).max() > 1e-2


def test_embeddings_are_unit_vectors_row_by_row(tokenizer):
  waveforms = np.stack([small.music(8.0, seed) for seed in (2, 3, 4)])
  embeddings = tokenizer.embed_windows(waveforms, RATE_HZ, hop_secs=1.0)
  assert embeddings.shape == (3, 7, 12)
  np.testing.assert_allclose(np.linalg.norm(embeddings, axis=-1), 1, atol=1e-5)
  one = tokenizer.embed_windows(waveforms[1:2], RATE_HZ, hop_secs=1.0)
  np.testing.assert_allclose(one[0], embeddings[1], atol=1e-5)
  np.testing.assert_array_equal(
    tokenizer.quantize(embeddings),
    rvq.encode(embeddings, tokenizer.codebooks),
  )


def test_any_rate_is_resampled(tokenizer):
  secs, rates = 4.0, (4000, 16000)
  found = []
  for rate_hz in rates:
    at = np.arange(round(secs * rate_hz)) / rate_hz
    tone = (0.3 * np.sin(2 * np.pi * 440 * at)).astype(np.float32)
    found.append(tokenizer.embed_windows(tone[None], rate_hz)[0, 0])
  assert found[0] @ found[1] > 0.999


def test_bad_audio_is_refused(tokenizer):
  with pytest.raises(ValueError, match="not empty"):
    tokenizer.encode(np.zeros((1, 0), np.float32), RATE_HZ)
  with pytest.raises(errors.UserError, match="NaN"):
    tokenizer.encode(np.full((1, 9000), np.nan, np.float32), RATE_HZ)


def test_artifact_is_checked(tokenizer, directory, tmp_path):
  artifact = artifacts.load(directory, "melody")
  assert artifact.fingerprint == tokenizer.fingerprint

  def export(where, codebooks):
    return melody_tokenizer.export_melody(
      where, tokenizer.config, artifact.arrays["params"], codebooks
    )

  same = export(tmp_path / "same", tokenizer.codebooks)
  assert same == tokenizer.fingerprint
  assert export(tmp_path / "other", tokenizer.codebooks + 1e-3) != same
  with pytest.raises(ValueError, match=r"codebook_size, 12\]"):
    export(tmp_path / "bad", tokenizer.codebooks[..., :5])
  header = tmp_path / "same" / "artifact.json"
  values = json.loads(header.read_text())
  values["config"]["patch_frames"] = 2
  header.write_text(json.dumps(values))
  with pytest.raises(errors.UserError, match="was changed"):
    melody_tokenizer.MelodyTokenizer.load(tmp_path / "same")
  with pytest.raises(errors.UserError, match="missing"):
    melody_tokenizer.MelodyTokenizer.load(tmp_path / "none")
