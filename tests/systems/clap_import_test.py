# SPDX-License-Identifier: Apache-2.0
"""CLAP: numeric parity with transformers, and clear refusals."""

import json
import pathlib
import shutil

import listener_contract
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from musiclm_jax.audio import clap_mel
from musiclm_jax.cli import embedder_specs
from musiclm_jax.core import byte_pairs, errors, protocols
from musiclm_jax.networks import clap_audio
from musiclm_jax.systems import clap_import

TEXTS = ["a slow piano piece", "Loud drums, and a flute!"]
AUDIO = {
  "spec_size": 64,
  "num_mel_bins": 16,
  "window_size": 4,
  "patch_embeds_hidden_size": 8,
  "hidden_size": 32,
  "depths": [2, 2, 2],
  "num_attention_heads": [2, 4, 4],
}
TEXT = {
  "vocab_size": 320,
  "hidden_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "intermediate_size": 24,
  "max_position_embeddings": 40,
}
PROCESSOR = {
  "feature_size": 16,
  "max_length_s": 2,
  "frequency_min": 50,
  "frequency_max": 14000,
  "truncation": "rand_trunc",
  "padding": "repeatpad",
}
# With the answers of transformers 5.23, for where torch is not.
ANSWERS = pathlib.Path(__file__).parent / "clap_answers"


def _write_tokenizer(path):
  import tokenizers

  tokenizer = tokenizers.ByteLevelBPETokenizer()
  tokenizer.train_from_iterator(
    TEXTS * 3,
    vocab_size=300,
    min_frequency=2,
    special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    show_progress=False,
  )
  inner = tokenizers.Tokenizer.from_str(tokenizer.to_str())
  inner.post_processor = tokenizers.processors.RobertaProcessing(
    ("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False
  )
  inner.save(str(path))


def _by_transformers(directory):
  """A random model in `directory`, and what it gives."""
  import torch
  import transformers

  torch.manual_seed(0)
  config = transformers.ClapConfig(
    text_config=TEXT, audio_config=AUDIO, projection_dim=12
  )
  model = transformers.ClapModel(config).eval()
  with torch.no_grad():  # Norms start as identities, biases as zeros.
    for parameter in model.parameters():
      parameter.add_(0.2 * torch.randn_like(parameter))
    norm = model.audio_model.audio_encoder.batch_norm
    norm.running_mean.copy_(-30 + 5 * torch.randn_like(norm.running_mean))
    norm.running_var.copy_(200 + 50 * torch.rand_like(norm.running_var))
  directory.mkdir(exist_ok=True)
  model.save_pretrained(directory)
  extractor = transformers.ClapFeatureExtractor(**PROCESSOR)
  extractor.save_pretrained(directory)
  _write_tokenizer(directory / "tokenizer.json")
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(directory / "tokenizer.json"), pad_token="<pad>"
  )
  generator = np.random.default_rng(0)
  waveform = 0.1 * generator.normal(size=96000)
  waveform *= np.sin(np.arange(96000) / 9000)
  waveform = waveform.astype(np.float16).astype(np.float32)
  # One fills the window; one is repeated twice, and filled with zeros.
  clips = [waveform, waveform[:40000]]
  features = extractor(clips, sampling_rate=48000, return_tensors="pt")
  ids = tokenizer(TEXTS, padding=True, return_tensors="pt")
  with torch.no_grad():
    found = model(
      input_ids=ids["input_ids"],
      attention_mask=ids["attention_mask"],
      input_features=features["input_features"],
    )
  return {
    "waveform": waveform.astype(np.float16),
    "features": features["input_features"][:, 0].numpy(),
    "ids": ids["input_ids"].numpy(),
    "audio": found.audio_embeds.numpy(),
    "text": found.text_embeds.numpy(),
  }


def _check_parity(directory, answers):
  waveform = answers["waveform"].astype(np.float32)
  found = embedder_specs.open_text_embedder(f"clap:{directory}")
  whole = found.embed_audio_windows(waveform[None], 48000)
  short = found.embed_audio_windows(waveform[None, :40000], 48000)
  audio = np.concatenate([whole, short])[:, 0]
  np.testing.assert_allclose(audio, answers["audio"], atol=1e-4)
  assert np.abs(audio[0] - audio[1]).max() > 0.01
  text = found.embed_text(TEXTS)
  np.testing.assert_allclose(text, answers["text"], atol=1e-4)
  assert np.abs(text[0] - text[1]).max() > 0.01


@pytest.fixture(scope="module")
def recorded():
  with np.load(ANSWERS / "answers.npz") as file:
    return dict(file)


def test_towers_answer_as_transformers_did(recorded):
  _check_parity(ANSWERS, recorded)


def test_parity_with_transformers(tmp_path):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  _check_parity(tmp_path, _by_transformers(tmp_path))


def test_spectrogram_is_that_of_transformers(recorded):
  config, window_secs = clap_import.read_mel(ANSWERS)
  assert window_secs == 2.0
  waveform = recorded["waveform"].astype(np.float32)
  found = clap_mel.log_mel(waveform[None], config)
  assert found.shape == (1, 201, 16)
  np.testing.assert_allclose(found[0], recorded["features"][0], atol=1e-4)
  repeated = np.pad(np.tile(waveform[:40000], 2), (0, 16000))
  found = clap_mel.log_mel(repeated[None], config)
  np.testing.assert_allclose(found[0], recorded["features"][1], atol=1e-4)
  assert np.isclose(found.min(), -100)


def test_ids_are_those_of_transformers_with_two_changed(recorded):
  vocabulary = byte_pairs.BytePairs((ANSWERS / "tokenizer.json").read_bytes())
  theirs = recorded["ids"]
  swapped = np.where(theirs < 2, 1 - theirs, theirs)
  length = theirs.shape[1]
  for text, expected in zip(TEXTS, swapped):
    np.testing.assert_array_equal(vocabulary.encode(text, length), expected)
  cut = vocabulary.encode(TEXTS[1], 5)
  np.testing.assert_array_equal(cut, [*swapped[1][:4], 2])
  survey = vocabulary.survey(TEXTS[1], 5)
  assert survey == (len(swapped[1]) - 2, 3, 0)
  assert not vocabulary.encode(" ", 5).any()
  with pytest.raises(errors.UserError, match="expected a tokenizer.json"):
    byte_pairs.BytePairs(b"{}")


def test_is_a_text_embedder():
  found = embedder_specs.open_embedder(f"clap:{ANSWERS},hop_secs=1")
  assert isinstance(found, protocols.TextEmbedder)
  listener_contract.check(found, 16000, 3.0, 2)
  with pytest.raises(errors.UserError, match="text 1 is ' '"):
    found.embed_text(["a song", " "])


def test_stretching_is_cubic():
  """Both ends stay; halfway between inputs Keys' weights stand."""
  weights = clap_audio.stretch_weights(10, 19)
  np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
  np.testing.assert_allclose(weights[::2], np.eye(10), atol=1e-6)
  halfway = [0, 0, 0, -0.09375, 0.59375, 0.59375, -0.09375, 0, 0, 0]
  np.testing.assert_allclose(weights[9], halfway, atol=1e-6)
  # Beyond the end the last input is repeated.
  at_end = [0.5, 0.59375, -0.09375]
  np.testing.assert_allclose(weights[1, :3], at_end, atol=1e-6)


def _copy(directory, name, path=(), **settings):
  """The recorded folder with other settings in one of its files."""
  shutil.copytree(ANSWERS, directory, dirs_exist_ok=True)
  found = json.loads((directory / name).read_text())
  place = found
  for key in path:
    place = place[key]
  place.update(settings)
  (directory / name).write_text(json.dumps(found))
  return directory


@pytest.mark.parametrize(
  ("path", "settings", "match"),
  [
    (("audio_config",), {"enable_fusion": True}, "without feature fusion"),
    ((), {"model_type": "clip"}, "model_type='clip'"),
    (("audio_config",), {"patch_stride": [4, 2]}, "expected the same twice"),
    (("audio_config",), {"patch_stride": 2}, "expected patch_size=4"),
    (("audio_config",), {"hidden_act": "silu"}, "hidden_act='silu'"),
    (("audio_config",), {"window_size": 3}, "expected a multiple of 48"),
    (("audio_config",), {"depths": [2, 2, 1]}, "does not explain"),
    (("audio_config",), {"num_mel_bins": 32}, "of 16 bands: expected"),
    (("text_config",), {"num_hidden_layers": 3}, "lacks 16 of"),
    (("text_config",), {"pad_token_id": 0}, "pad_token_id=0"),
    (("text_config",), {"vocab_size": 99}, "ids: expected at most"),
    ((), {"projection_dim": 13}, "has shape"),
  ],
)
def test_what_does_not_fit_is_named(tmp_path, path, settings, match):
  folder = _copy(tmp_path / "m", "config.json", path, **settings)
  with pytest.raises(errors.UserError, match=match):
    clap_import.load(folder)


def test_other_spectrograms_are_refused(tmp_path):
  for settings, match in (
    ({"truncation": "fusion"}, "truncation='fusion'"),
    ({"padding": "pad"}, "padding='pad'"),
    ({"frequency_max": 30000}, "high_hz=30000.0"),
    ({"max_length_s": 3}, "makes 301 frames"),
  ):
    name = "preprocessor_config.json"
    folder = _copy(tmp_path / "m", name, **settings)
    with pytest.raises(errors.UserError, match=match):
      clap_import.load(folder)


def test_missing_and_changed_parts_are_named(tmp_path):
  folder = _copy(tmp_path / "m", "config.json")
  before = clap_import.load(folder).fingerprint
  assert before == clap_import.load(ANSWERS).fingerprint
  weights = safetensors_numpy.load_file(folder / "model.safetensors")
  weights["text_projection.linear1.bias"] = (
    weights["text_projection.linear1.bias"] + 1
  )
  safetensors_numpy.save_file(weights, folder / "model.safetensors")
  assert clap_import.load(folder).fingerprint != before
  (folder / "tokenizer.json").unlink()
  with pytest.raises(errors.UserError, match="no tokenizer.json"):
    clap_import.load(folder)
  (folder / "preprocessor_config.json").unlink()
  with pytest.raises(errors.UserError, match="preprocessor_config.json"):
    clap_import.load(folder)


if __name__ == "__main__":  # records the answers; needs torch
  np.savez_compressed(ANSWERS / "answers.npz", **_by_transformers(ANSWERS))
