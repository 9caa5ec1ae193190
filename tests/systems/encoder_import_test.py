# SPDX-License-Identifier: Apache-2.0
"""Imported encoders: numeric parity with transformers, and clear refusals."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from musiclm_jax.core import artifacts, errors, streams
from musiclm_jax.networks import speech_encoder
from musiclm_jax.partitioning import axes
from musiclm_jax.systems import (
  embedders,
  encoder_import,
  tokenizers,
  window_programs,
)

SIZES = {
  "hidden_size": 32,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "intermediate_size": 48,
  "conv_dim": [16, 16, 24],
  "conv_kernel": [10, 3, 2],
  "conv_stride": [5, 2, 2],
  "num_conv_pos_embeddings": 16,
  "num_conv_pos_embedding_groups": 4,
}
GROUP = {
  "feat_extract_norm": "group",
  "conv_bias": False,
  "do_stable_layer_norm": False,
}
LAYER = {
  "feat_extract_norm": "layer",
  "conv_bias": True,
  "do_stable_layer_norm": True,
}


def write(directory, weights, **settings):
  """A folder as transformers writes it."""
  directory.mkdir(exist_ok=True)
  settings = {"model_type": "hubert", **SIZES, **GROUP, **settings}
  (directory / "config.json").write_text(json.dumps(settings))
  safetensors_numpy.save_file(weights, directory / "model.safetensors")
  return directory


def random_weights(config):
  """Arrays with the names and shapes of the original."""
  generator = np.random.default_rng(0)
  weights = {
    theirs: generator.normal(size=encoder_import._shape(ours, config))
    for theirs, ours in encoder_import._names(config).items()
  }
  base = "encoder.pos_conv_embed.conv.weight"
  weights[f"{base}_v"] = weights.pop(base)
  weights[f"{base}_g"] = np.ones((1, 1, config.position_kernel))
  return {k: 0.1 * v.astype(np.float32) for k, v in weights.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("encoder")
  (root / "config.json").write_text(
    json.dumps({"model_type": "hubert", **SIZES, **GROUP})
  )
  weights = random_weights(encoder_import.read_config(root, 3))
  weights["masked_spec_embed"] = np.zeros(32, np.float32)
  return write(root, {f"hubert.{k}": v for k, v in weights.items()})


def test_parameters_are_those_of_the_network(folder):
  for layer in (0, 2, 3):
    config, params = encoder_import.load(folder, layer)
    network = speech_encoder.SpeechEncoder(config)
    boxed = jax.eval_shape(
      lambda network=network: network.init(
        jax.random.key(0), jnp.zeros((1, 800)), method=network.features
      )
    )
    shapes = axes.unbox(boxed)["params"]
    found = {k: v.shape for k, v in artifacts.flatten(params).items()}
    expected = {k: v.shape for k, v in artifacts.flatten(shapes).items()}
    assert found == expected


def test_padding_does_not_change_frames(folder):
  config, params = encoder_import.load(folder, 2)
  config = dataclasses.replace(config, pool_frames=2)
  assert (config.hop_length, config.reach) == (20, 30)
  assert config.frame_rate_hz == 400.0
  network = speech_encoder.SpeechEncoder(config)
  waveform = np.random.default_rng(0).normal(size=(2, 40 * 15)).astype("f4")
  apply = jax.jit(
    lambda x, mask: network.apply(
      {"params": params}, x, mask, method="features"
    )
  )
  whole = apply(waveform, np.ones((2, 15), bool))
  assert whole.shape == (2, 15, 32)
  longer = np.pad(waveform, ((0, 0), (0, 40 * 5)), constant_values=0.7)
  padded = apply(longer, np.arange(20) < np.full((2, 1), 15))
  np.testing.assert_allclose(padded[:, :15], whole, atol=1e-5)


def test_artefact_is_a_semantic_tokenizer(folder, tmp_path):
  config, params = encoder_import.load(folder, 1, pool_frames=32)
  waveform = np.random.default_rng(1).normal(size=(1, 24000))
  frames = embedders.SemanticFeatures(config, params)(waveform, 24000)[0]
  mean, std = frames.mean(0), frames.std(0)
  tokenizers.export_semantic(
    tmp_path, config, params, mean, std, ((frames - mean) / std)[:6]
  )
  tokenizer = tokenizers.SemanticTokenizer.load(tmp_path)
  assert tokenizer.stream == streams.TokenStream("semantic", 6, 1, 25.0)
  codes = tokenizer.encode(waveform, 24000)
  assert codes.shape == (1, 25, 1)
  np.testing.assert_array_equal(codes[0, :6, 0], np.arange(6))
  artifact = artifacts.load(tmp_path)
  program = window_programs.SemanticProgram(artifact, 2.0, 0.4)
  ((bucket, row),) = program.cut(
    window_programs.Audio(waveform[0].astype(np.float32), 24000)
  ).rows
  batch = {name: array[None] for name, array in row.items()}
  again = program.apply(program.weights, batch)[:, :25]
  assert bucket >= 25 and np.mean(again == codes) > 0.95


@pytest.mark.parametrize(
  ("settings", "match"),
  [
    ({"model_type": "whisper"}, "model_type='whisper'"),
    ({"hidden_act": "relu"}, "hidden_act='relu'"),
    ({"deepnorm": True}, "deepnorm=True"),
    ({"feature_extractor_cqt": True}, "feature_extractor_cqt=True"),
    ({"num_attention_heads": 5}, "num_heads=5"),
    ({"intermediate_size": 64}, r"intermediate_dense.weight.*\(48, 32\)"),
    ({"num_hidden_layers": 4}, r"lacks 16 of .*encoder.layers.3"),
    ({"feat_extract_norm": "layer"}, "lacks 4 of"),
    ({"feat_proj_layer_norm": False}, "does not explain.*layer_norm"),
  ],
)
def test_what_does_not_fit_is_named(folder, tmp_path, settings, match):
  weights = safetensors_numpy.load_file(folder / "model.safetensors")
  copy = write(tmp_path / "m", weights, **settings)
  layers = settings.get("num_hidden_layers", 3)
  with pytest.raises(errors.UserError, match=match):
    encoder_import.load(copy, layers)


def test_missing_files_are_named(folder, tmp_path):
  with pytest.raises(errors.UserError, match="no config.json"):
    encoder_import.load(tmp_path, 1)
  (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
  with pytest.raises(errors.UserError, match="pickle"):
    encoder_import.load(tmp_path, 1)
  (tmp_path / "model.safetensors").write_bytes(b"no safetensors")
  with pytest.raises(errors.UserError, match="cannot read"):
    encoder_import.load(tmp_path, 1)
  with pytest.raises(errors.UserError, match="tap_layer=4"):
    encoder_import.load(folder, 4)


CASES = {
  "wav2vec2_group": ("wav2vec2", GROUP),
  "wav2vec2_layer": ("wav2vec2", LAYER),
  "hubert_group": ("hubert", GROUP),
  "hubert_layer": ("hubert", LAYER),
}
# Two of them with the answers of transformers 5.23, for where torch is not.
RECORDED = ("hubert_group", "wav2vec2_layer")
ANSWERS = pathlib.Path(__file__).parent / "encoder_answers"


def _by_transformers(case, directory, num_samples):
  """A random model in `directory`, a waveform, and its hidden states."""
  import torch
  import transformers

  kind, style = CASES[case]
  torch.manual_seed(0)
  classes = {
    "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
    "hubert": (transformers.HubertConfig, transformers.HubertModel),
  }
  make_config, make_model = classes[kind]
  model = make_model(make_config(**SIZES, **style)).eval()
  with torch.no_grad():  # Norms start as identities, biases as zeros.
    for parameter in model.parameters():
      parameter.add_(0.05 * torch.randn_like(parameter))
  model.save_pretrained(directory)
  waveform = np.random.default_rng(0).normal(size=(2, num_samples))
  waveform = waveform.astype(np.float32)
  with torch.no_grad():
    output = model(torch.from_numpy(waveform), output_hidden_states=True)
  # Whether the last of the hidden states has passed the last norm depends on
  # the version of transformers; ours has.
  states = [*output.hidden_states[:-1], output.last_hidden_state]
  return waveform, np.stack([state.numpy() for state in states])


def _check_parity(directory, waveform, states):
  for layer, expected in enumerate(states):
    config, params = encoder_import.load(directory, layer)
    network = speech_encoder.SpeechEncoder(config)
    found = network.apply(
      {"params": params},
      waveform,
      np.full(2, waveform.shape[1]),
      method=network.hidden_states,
    )
    np.testing.assert_allclose(
      found, expected, atol=2e-5, err_msg=f"layer {layer}"
    )


@pytest.mark.parametrize("case", RECORDED)
def test_hidden_states_are_those_that_transformers_gave(case):
  with np.load(ANSWERS / case / "answers.npz") as file:
    _check_parity(ANSWERS / case, file["waveform"], file["states"])


@pytest.mark.parametrize("case", CASES)
def test_parity_with_transformers(tmp_path, case):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  _check_parity(tmp_path, *_by_transformers(case, tmp_path, 3000))


if __name__ == "__main__":  # records the answers; needs torch
  for name in RECORDED:
    found_waveform, found_states = _by_transformers(name, ANSWERS / name, 800)
    np.savez_compressed(
      ANSWERS / name / "answers.npz",
      waveform=found_waveform,
      states=found_states,
    )
