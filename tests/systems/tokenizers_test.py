# SPDX-License-Identifier: Apache-2.0
"""Frozen tokenizers: export, load, determinism, fingerprints, shapes."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizer_artifacts

from musiclm_jax.core import artifacts, errors, vocabularies
from musiclm_jax.layers import conformer
from musiclm_jax.networks import (
  mulan,
  soundstream,
  w2v_bert,
)
from musiclm_jax.partitioning import axes
from musiclm_jax.systems import (
  bert_import,
  embedders,
  mulan_rvq,
  semantic_clusters,
  text_mapper,
  tokenizers,
)

CODEC = soundstream.SoundStreamConfig(
  sample_rate_hz=8000,
  channels=4,
  strides=(4, 5, 8),
  dilations=(1,),
  kernel_size=3,
  code_dim=8,
  num_codebooks=3,
  codebook_size=16,
)
BLOCK = conformer.ConformerConfig(
  num_layers=1, embed_dim=16, num_heads=2, mlp_dim=32
)
SEMANTIC = w2v_bert.W2vBertConfig(
  conv_channels=(2, 2),
  contrastive=BLOCK,
  masked_prediction=BLOCK,
  codebook_size=4,
  code_dim=4,
  tap_layer=1,
)
MULAN = tokenizer_artifacts.mulan_config()
TEXTS = ["a slow piano piece", "fast drums and flute", "loud brass march"]


def _copy_with(tree, change):
  """`tree` with one leaf of 'params' changed slightly."""
  leaves, structure = jax.tree.flatten(tree)
  leaves[0] = leaves[0] + change
  return jax.tree.unflatten(structure, leaves)


@pytest.fixture(scope="module")
def text_model():
  return {"text.model": tokenizer_artifacts.text_model(TEXTS)}


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
  network = soundstream.SoundStream(CODEC)
  variables = axes.unbox(
    jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 1600)))
  )
  # Fresh codebooks may be zeros: give every entry a place.
  books = jax.tree.map(
    lambda leaf: (
      jax.random.normal(jax.random.key(1), leaf.shape)
      if leaf.dtype == jnp.float32
      else leaf
    ),
    variables["codebooks"],
  )
  directory = tmp_path_factory.mktemp("codec") / "soundstream"
  params = dict(variables["params"], discriminator={"kernel": np.ones(2)})
  mark = tokenizers.export_soundstream(
    directory, CODEC, params, books, {"step": 3}
  )
  return directory, mark, params, books, network


@pytest.fixture(scope="module")
def semantic(tmp_path_factory):
  network = w2v_bert.W2vBert(SEMANTIC)
  key = jax.random.key(0)
  params = axes.unbox(
    jax.jit(
      lambda keys: network.init(keys, jnp.zeros((1, 6400)), None, 1.0, True)
    )({"params": key, "mask": key})
  )["params"]
  features = embedders.SemanticFeatures(SEMANTIC, params)
  waveform = np.random.default_rng(0).normal(size=(2, 32000)) * 0.1
  frames = features(waveform, 16000)
  quantizer = semantic_clusters.fit([frames], 10, key)[:3]
  directory = tmp_path_factory.mktemp("semantic") / "semantic"
  mark = tokenizers.export_semantic(directory, SEMANTIC, params, *quantizer)
  return directory, mark, params, quantizer, waveform, frames


@pytest.fixture(scope="module")
def joint(tmp_path_factory, text_model):
  network = mulan.MuLan(MULAN)
  params = axes.unbox(
    jax.jit(network.init)(
      jax.random.key(0), jnp.zeros((1, 8000)), jnp.ones((1, 8), jnp.int32)
    )
  )["params"]
  points = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
  points /= np.linalg.norm(points, axis=-1, keepdims=True)
  codebooks = mulan_rvq.fit(points, 3, 8, jax.random.key(0))
  directory = tmp_path_factory.mktemp("mulan") / "mulan"
  mark = tokenizers.export_mulan(
    directory, MULAN, params, codebooks, text_model
  )
  return directory, mark, params, codebooks, points


def test_codec_round_trip(codec):
  directory, mark, params, books, network = codec
  tokenizer = tokenizers.SoundStreamTokenizer.load(directory)
  assert tokenizer.fingerprint == mark
  assert tokenizer.sample_rate_hz == 8000
  assert (tokenizer.stream.codebook_size, tokenizer.stream.num_codebooks) == (
    16,
    3,
  )
  assert tokenizer.stream.frame_rate_hz == 50.0
  waveform = np.random.default_rng(0).normal(size=(3, 8100)) * 0.3
  codes = tokenizer.encode(waveform)
  assert codes.shape == (3, 51, 3)
  assert codes.dtype == np.int32
  assert len(np.unique(codes)) > 4
  variables = {
    "params": {name: params[name] for name in ("encoder", "decoder")},
    "codebooks": books,
  }
  # Zeros fill the last frame.
  whole = np.pad(waveform, ((0, 0), (0, 60))).astype(np.float32)
  plain = jax.jit(lambda x: network.apply(variables, x, method=network.encode))(
    whole
  )
  np.testing.assert_array_equal(codes, plain)
  again = tokenizers.SoundStreamTokenizer.load(directory)
  np.testing.assert_array_equal(again.encode(waveform[:1]), codes[:1])
  for levels in (1, 3):
    decoded = tokenizer.decode(codes[..., :levels])
    assert decoded.shape == (3, 51 * 160)
    assert decoded.dtype == np.float32
    expected = jax.jit(
      lambda x: network.apply(variables, x, method=network.decode)
    )(codes[..., :levels])
    np.testing.assert_allclose(decoded, expected, atol=1e-5)
  stored = artifacts.load(directory).arrays["params"]
  assert set(stored) == {"encoder", "decoder"}


def test_codec_refuses_bad_input(codec):
  tokenizer = tokenizers.SoundStreamTokenizer.load(codec[0])
  with pytest.raises(ValueError, match="shape"):
    tokenizer.encode(np.zeros(8000, np.float32))
  with pytest.raises(errors.UserError, match="waveform 1"):
    tokenizer.encode(np.array([[0.0, 0.1], [0.0, np.nan]], np.float32))
  with pytest.raises(ValueError, match=r"\[0, 16\)"):
    tokenizer.decode(np.full((1, 4, 3), 16, np.int32))
  with pytest.raises(ValueError, match="1 to 3"):
    tokenizer.decode(np.zeros((1, 4, 5), np.int32))
  with pytest.raises(errors.UserError, match="'soundstream'"):
    tokenizers.MuLanTokenizer.load(codec[0])


def test_fingerprints_change_with_any_weight(tmp_path, codec, semantic, joint):
  _, mark, params, books, _ = codec
  export = tokenizers.export_soundstream
  assert export(tmp_path / "a", CODEC, params, books) == mark
  assert export(tmp_path / "a", CODEC, _copy_with(params, 1e-3), books) != mark
  _, mark, params, (mean, std, centroids), _, _ = semantic
  export = tokenizers.export_semantic
  rest = (mean, std, centroids)
  assert export(tmp_path / "b", SEMANTIC, params, *rest) == mark
  other = (mean, std, centroids + 1e-3)
  assert export(tmp_path / "b", SEMANTIC, params, *other) != mark
  directory, mark, params, codebooks, _ = joint
  content = (directory / "text.model").read_bytes()
  text_model, other = {"text.model": content}, {"text.model": content + b"x"}
  export = tokenizers.export_mulan
  path = tmp_path / "c"
  assert export(path, MULAN, params, codebooks, text_model) == mark
  assert export(path, MULAN, params, codebooks + 1e-3, text_model) != mark
  assert export(path, MULAN, params, codebooks, other) != mark


def test_semantic_codes_are_nearest_centroids(semantic):
  directory, mark, _, (mean, std, centroids), waveform, frames = semantic
  tokenizer = tokenizers.SemanticTokenizer.load(directory)
  assert tokenizer.fingerprint == mark
  assert tokenizer.stream.codebook_size == 10
  assert tokenizer.stream.frame_rate_hz == 25.0
  codes = tokenizer.encode(waveform, 16000)
  assert codes.shape == (2, 50, 1)
  assert codes.dtype == np.int32
  points = (frames - mean) / std
  distances = ((points[:, :, None] - centroids) ** 2).sum(-1)
  assert (codes[..., 0] == distances.argmin(-1)).mean() > 0.99
  np.testing.assert_array_equal(
    tokenizer.encode(waveform[1:], 16000), codes[1:]
  )
  # 24 kHz audio of the same length has as many frames.
  assert tokenizer.encode(np.zeros((1, 48000)), 24000).shape == (1, 50, 1)


def test_semantic_bucket_does_not_change_features(semantic):
  features = tokenizers.SemanticTokenizer.load(semantic[0]).features
  waveform = semantic[4]
  part = features(waveform[:, : 640 * 30], 16000)
  network = w2v_bert.W2vBert(SEMANTIC)
  exact = jax.jit(
    lambda x: network.apply({"params": semantic[2]}, x, method=network.features)
  )(waveform[:, : 640 * 30].astype(np.float32))
  np.testing.assert_allclose(part, exact, atol=1e-4)


def test_mulan_text_and_audio(joint):
  directory, mark, _, codebooks, _ = joint
  tokenizer = tokenizers.MuLanTokenizer.load(directory)
  assert tokenizer.fingerprint == mark
  np.testing.assert_array_equal(tokenizer.codebooks, codebooks)
  stream = tokenizer.stream
  assert (stream.codebook_size, stream.num_codebooks) == (8, 3)
  assert stream.frame_rate_hz == 0.0
  text = tokenizer.embed_text(TEXTS)
  assert text.shape == (3, 16)
  np.testing.assert_allclose(np.linalg.norm(text, axis=-1), 1.0, rtol=1e-5)
  np.testing.assert_allclose(
    tokenizer.embed_text([TEXTS[1].upper()])[0], text[1], atol=1e-5
  )
  waveform = np.random.default_rng(0).normal(size=(2, 64000)) * 0.1
  windows = tokenizer.embed_windows(waveform, 16000)
  assert windows.shape == (2, 3, 16)  # windows of 2 s at 0, 1 and 2 s
  second = tokenizer.embed_windows(waveform[1:, 16000:48000], 16000)
  np.testing.assert_allclose(windows[1, 1], second[0, 0], atol=1e-5)
  mean = windows.mean(1)
  mean /= np.linalg.norm(mean, axis=-1, keepdims=True)
  audio = tokenizer.embed_audio(waveform, 16000)
  np.testing.assert_allclose(audio, mean, atol=1e-5)
  codes = tokenizer.quantize(audio)
  assert codes.shape == (2, 1, 3)
  assert codes.dtype == np.int32
  np.testing.assert_array_equal(codes, tokenizer.encode(waveform, 16000))
  assert tokenizer.embed_audio(waveform[:, :9000], 16000).shape == (2, 16)
  with pytest.raises(errors.UserError, match="text 1"):
    tokenizer.embed_text(["piano", "  "])


def test_text_mapper_moves_what_generation_starts_from(
  joint, text_model, tmp_path
):
  directory, mark, params, codebooks, _ = joint
  plain = tokenizers.MuLanTokenizer.load(directory)
  bias = np.full(16, 5.0, np.float32)
  other = tokenizers.export_mulan(
    tmp_path / "mulan",
    MULAN,
    params,
    codebooks,
    text_model,
    text_mapper=text_mapper.TextMapper(bias),
  )
  assert other != mark
  mapped = tokenizers.MuLanTokenizer.load(tmp_path / "mulan")
  text = plain.embed_text(TEXTS)
  np.testing.assert_array_equal(mapped.embed_text(TEXTS), text)
  moved = text + bias
  moved /= np.linalg.norm(moved, axis=-1, keepdims=True)
  expected = plain.quantize(moved)
  np.testing.assert_array_equal(mapped.encode_text(TEXTS), expected)
  assert (plain.encode_text(TEXTS) != expected).any()
  waveform = np.random.default_rng(0).normal(size=(1, 32000)) * 0.1
  np.testing.assert_array_equal(
    mapped.encode(waveform, 16000), plain.encode(waveform, 16000)
  )


def test_damaged_text_model_is_a_user_error(joint):
  _, _, params, _, _ = joint
  with pytest.raises(errors.UserError, match="SentencePiece"):
    embedders.MuLanEmbedder(MULAN, params, {"text.model": b"x"})


def test_an_artefact_with_a_bert_speaks_word_piece(tmp_path):
  folder = pathlib.Path(__file__).parent / "bert_answers" / "uncased"
  config = dataclasses.replace(
    MULAN,
    text_tower="bert",
    bert=bert_import.text_tower(folder, 8),
  )
  shapes = jax.eval_shape(
    mulan.MuLan(config).init,
    jax.random.key(0),
    jnp.zeros((1, 8000)),
    jnp.ones((1, 8), jnp.int32),
  )
  params = tokenizer_artifacts.random_values(shapes["params"], 0)
  params["text"] |= bert_import.BertWeights(folder).load(config.bert)
  codebooks = np.random.default_rng(0).normal(size=(3, 8, 16))
  files = vocabularies.load(folder).files
  tokenizers.export_mulan(tmp_path / "mulan", config, params, codebooks, files)
  code = (
    "import sys; from musiclm_jax.systems import tokenizers; "
    f"t = tokenizers.MuLanTokenizer.load({str(tmp_path / 'mulan')!r}); "
    "print(t.embed_text(['Slow piano', 'slow PIANO', 'loud']).tolist()); "
    "print(sorted({'tensorflow', 'sentencepiece', 'seqio'} & set(sys.modules)))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  embeddings, modules = done.stdout.splitlines()
  assert modules == "[]"
  slow, same, loud = np.array(json.loads(embeddings))
  np.testing.assert_allclose(slow, same, atol=1e-6)
  assert np.abs(slow - loud).max() > 1e-3
  tokenizer = tokenizers.MuLanTokenizer.load(tmp_path / "mulan")
  assert tokenizer.tokenize(["slow piano " * 9]).tolist() == [
    [2, 5, 6, 5, 6, 5, 6, 3]
  ]
  with pytest.raises(errors.UserError, match="text 1"):
    tokenizer.tokenize(["slow", " "])
  words = json.loads(files["tokenizer.json"])
  words["model"]["vocab"]["more"] = len(words["model"]["vocab"])
  many = {"tokenizer.json": json.dumps(words).encode()}
  with pytest.raises(errors.UserError, match="vocab_size="):
    embedders.MuLanEmbedder(config, params, many)


def test_importing_tokenizers_is_light():
  code = (
    "import sys; from musiclm_jax.systems import tokenizers; "
    "heavy = {'tensorflow', 'sentencepiece', 'seqio', 'optax', 'tokenizers'}; "
    "print(sorted(heavy & set(sys.modules)))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "[]"
