# SPDX-License-Identifier: Apache-2.0
"""What MuLan does with odd audio and odd texts (docs/mulan.md)."""

import json
import logging
import pathlib

import numpy as np
import pytest
import tokenizer_artifacts

from musiclm_jax.core import artifacts, errors, vocabularies
from musiclm_jax.systems import mulan_inputs, tokenizers

UNCASED = pathlib.Path(__file__).parent / "bert_answers" / "uncased"
TEXTS = ["a slow piano piece", "fast drums and flute", "loud brass march"]


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
  folder = tokenizer_artifacts.write(tmp_path_factory.mktemp("bundle"))
  return tokenizers.MuLanTokenizer(artifacts.load(folder / "mulan", "mulan"))


@pytest.fixture
def warned(caplog):
  """The one-line warnings so far."""
  caplog.set_level(logging.WARNING, mulan_inputs.__name__)

  def lines():
    found = [record.getMessage() for record in caplog.records]
    assert all("\n" not in line for line in found)
    caplog.clear()
    return found

  return lines


def _tone(secs, rate_hz):
  at = np.arange(round(secs * rate_hz)) / rate_hz
  tone = np.sin(2 * np.pi * 300 * at) + 0.5 * np.sin(2 * np.pi * 750 * at)
  return (0.3 * tone).astype(np.float32)


def test_channels_are_averaged(joint, warned):
  left, right = _tone(2.5, 16000), 0.1 * _tone(2.5, 16000)[::-1]
  stereo = np.stack([left, right], -1)
  mono = joint.embed_audio(((left + right) / 2)[None], 16000)
  np.testing.assert_allclose(
    joint.embed_audio(stereo[None], 16000), mono, atol=1e-5
  )
  one = joint.embed_audio(left[None, :, None], 16000)
  np.testing.assert_allclose(joint.embed_audio(left[None], 16000), one)
  assert joint.encode(stereo[None], 16000).shape == (1, 1, 3)
  assert warned() == []


@pytest.mark.parametrize("rate_hz", [8000, 11025, 44100, 48000, 96000.0])
def test_any_rate_is_resampled(joint, warned, rate_hz):
  expected = joint.embed_audio(_tone(2.5, 16000)[None], 16000)[0]
  other = joint.embed_audio(_tone(2.5, rate_hz)[None], rate_hz)[0]
  # The same sound; taken for 16 kHz it is another.
  assert other @ expected > 0.99
  assert warned() == []


@pytest.mark.parametrize("secs", [0.9, 0.05, 1 / 16000])
def test_less_than_a_second_is_repeated_with_a_warning(joint, warned, secs):
  short = _tone(1.0, 16000)[400 : 400 + round(secs * 16000)]
  found = joint.embed_audio(short[None], 16000)
  (line,) = warned()
  assert f"{secs:.3g} s" in line and "repeated" in line
  repeated = np.tile(short, 32001 // len(short) + 1)[:32000]
  whole = joint.embed_audio(repeated[None], 16000)
  np.testing.assert_allclose(found, whole, atol=1e-5)
  assert warned() == []


def test_silence_is_embedded_with_a_warning(joint, warned):
  batch = np.stack([_tone(2, 16000), np.zeros(32000), 5e-5 * np.ones(32000)])
  found = joint.embed_audio(batch, 16000)
  np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1.0, rtol=1e-5)
  (line,) = warned()
  assert line.startswith("2 of 3 waveforms are silent") and "number 1" in line
  # Channels that cancel are silence too.
  tone = _tone(2, 16000)
  joint.embed_audio(np.stack([tone, -tone], -1)[None], 16000)
  assert "1 of 1 waveforms are silent" in warned()[0]


def test_audio_that_is_none_is_refused(joint):
  for shape in ((16000,), (1, 0), (0, 9), (1, 2, 16000), (1, 1, 1, 1)):
    with pytest.raises(ValueError, match="shape"):
      joint.embed_audio(np.zeros(shape, np.float32), 16000)
  with pytest.raises(ValueError, match="dtype int16"):
    joint.embed_audio(np.ones((1, 16000), np.int16), 16000)
  for rate_hz in (0, -8000, float("nan")):
    with pytest.raises(ValueError, match="sample_rate_hz"):
      joint.embed_audio(np.ones((1, 16000), np.float32), rate_hz)
  stereo = np.zeros((2, 16000, 2), np.float32)
  stereo[1, 7, 0] = np.nan
  with pytest.raises(errors.UserError, match="waveform 1"):
    joint.embed_audio(stereo, 16000)
  with pytest.raises(errors.UserError, match="1 samples at 192000 Hz"):
    joint.embed_audio(np.ones((1, 1), np.float32), 192000)


@pytest.mark.parametrize("text", ["", "  \t\n", "\u00a0"])
def test_a_blank_text_is_refused(joint, text):
  with pytest.raises(errors.UserError, match="text 1 is .*at least one word"):
    joint.embed_text(["piano", text])


@pytest.mark.parametrize("text", [None, 3, b"piano"])
def test_what_is_no_text_is_refused(joint, text):
  with pytest.raises(errors.UserError, match="text 1 is a .*expected text"):
    joint.embed_text(["piano", text])


def test_bytes_that_are_no_utf8_are_refused(joint):
  # What an argument of a command line with broken bytes becomes.
  text = b"piano \xff".decode("utf-8", "surrogateescape")
  with pytest.raises(errors.UserError, match="text 0 .*character 6"):
    joint.embed_text([text])


def test_ten_thousand_words_are_cut_with_a_warning(joint, warned):
  length = joint.config.active_text.max_length
  text = "slow piano " * 5000
  found = joint.embed_text([text])
  (line,) = warned()
  assert line.startswith("1 of 1 texts are cut: of text 0")
  assert f"reads {length} tokens of" in line and len(line) < 200
  tokens = joint.tokenize([text])
  assert tokens.shape == (1, length) and (tokens > 0).all()
  short = joint.embed_text(["slow piano " * 40])
  np.testing.assert_allclose(found, short, atol=1e-6)


def test_emoji_and_other_scripts_are_unknown_with_a_warning(joint, warned):
  texts = ["🎸🔥", "速いギター", "быстрая гитара"]
  found = joint.embed_text(texts)
  assert np.isfinite(found).all()
  (line,) = warned()
  assert line.startswith("3 of 3 texts are mostly unknown") and "2 of 2" in line
  # They all mean the same: unknown.
  np.testing.assert_allclose(found[0], found[1], atol=1e-6)
  # Beside known words one of them is no trouble.
  mixed = joint.embed_text(["loud 🎸"])
  assert warned() == []
  assert float(mixed[0] @ found[0]) < 0.9999


def test_word_piece_is_cut_and_surveyed_alike(warned):
  vocabulary = vocabularies.load(UNCASED)
  ids = mulan_inputs.as_ids(["slow piano"], vocabulary, 8)
  assert ids.shape == (1, 8) and warned() == []
  words = json.loads(vocabulary.files["tokenizer.json"])["model"]["vocab"]
  ids = mulan_inputs.as_ids(["slow piano " * 5000], vocabulary, 8)
  assert ids[0, 0] == words["[CLS]"] and ids[0, -1] == words["[SEP]"]
  assert "reads 6 tokens of 10000" in warned()[0]
  ids = mulan_inputs.as_ids(["🎸 ☃"], vocabulary, 8)
  assert (ids[0] == words["[UNK]"]).sum() == 2
  assert "2 of 2 tokens" in warned()[0]
  with pytest.raises(errors.UserError, match="text 0"):
    mulan_inputs.as_ids(["\u200d"], vocabulary, 8)


def test_survey_counts_what_is_cut_and_lost():
  model = tokenizer_artifacts.text_model(TEXTS)
  vocabulary = vocabularies.from_files({"text.model": model})
  known = vocabulary.survey("slow piano", 100)
  assert known.num_tokens == known.num_kept and known.num_unknown == 0
  cut = vocabulary.survey("slow piano", 1)
  assert cut == (known.num_tokens, 1, 0)
  lost = vocabulary.survey("🎸 🎸", 100)
  assert lost.num_unknown == lost.num_kept == lost.num_tokens
  half = vocabulary.survey("slow 🎸", 100)
  assert 0 < half.num_unknown < half.num_kept
