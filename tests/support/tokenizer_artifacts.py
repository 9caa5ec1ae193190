# SPDX-License-Identifier: Apache-2.0
"""Writes the three tokenizers with random weights, as small as they get."""

import io
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

RATE_HZ = 8000


def random_values(tree, seed):
  """Values for a tree of shapes; nothing is compiled for them."""
  from musiclm_jax.partitioning import axes

  rng = np.random.default_rng(seed)

  def fill(path, leaf):
    if "scale" in str(path[-1]):
      return np.ones(leaf.shape, np.float32)
    fan_in = max(1, math.prod(leaf.shape[:-1]))
    return rng.normal(size=leaf.shape).astype(np.float32) / fan_in**0.5

  return jax.tree_util.tree_map_with_path(fill, axes.unbox(tree))


def write_codec(directory, is_fitted=False, num_channels=1) -> None:
  """Writes a codec of 8 kHz with 3 codebooks of 16; arguments as `write`.

  Two channels are for one that is not fitted.
  """
  from musiclm_jax.networks import soundstream
  from musiclm_jax.systems import tokenizers

  config = soundstream.SoundStreamConfig(
    sample_rate_hz=RATE_HZ,
    num_channels=num_channels,
    channels=4,
    strides=(4, 5, 8),
    dilations=(1, 3),
    kernel_size=3,
    code_dim=8,
    num_codebooks=3,
    codebook_size=16,
    init="random",
  )
  shapes = jax.eval_shape(
    soundstream.SoundStream(config).init,
    jax.random.key(0),
    jnp.zeros((1, 1600) if num_channels == 1 else (1, 1600, num_channels)),
  )
  variables = random_values(shapes, 0)
  embed = np.random.default_rng(1).normal(size=(3, 16, 8))
  if is_fitted:
    network = soundstream.SoundStream(config)
    points = jax.jit(
      lambda variables, x: network.apply(variables, x, method=network.latents)
    )(variables, music(2.0, 7)[None])[0]
    points = np.asarray(points)
    embed = embed * points.std(0)
    embed[0] += points.mean(0)
  books = {
    "quantizer": {
      **variables["codebooks"]["quantizer"],
      "embed": embed.astype(np.float32),
    }
  }
  tokenizers.export_soundstream(directory, config, variables["params"], books)


def _semantic(directory, is_fitted):
  from musiclm_jax.layers import conformer
  from musiclm_jax.networks import w2v_bert
  from musiclm_jax.systems import embedders, tokenizers

  block = conformer.ConformerConfig(
    num_layers=1, embed_dim=16, num_heads=2, mlp_dim=32
  )
  config = w2v_bert.W2vBertConfig(
    mel_normalization="clip",
    conv_channels=(8, 4),
    contrastive=block,
    masked_prediction=block,
    codebook_size=4,
    code_dim=4,
    tap_layer=1,
  )
  key = jax.random.key(0)
  shapes = jax.eval_shape(
    lambda keys: w2v_bert.W2vBert(config).init(
      keys, jnp.zeros((1, 6400)), None, 1.0, True
    ),
    {"params": key, "mask": key},
  )
  params = random_values(shapes["params"], 2)
  mean, std = np.zeros(16, np.float32), np.ones(16, np.float32)
  if is_fitted:
    points = embedders.SemanticFeatures(config, params)(
      music(2.0, 7)[None], RATE_HZ
    )[0]
    mean, std = points.mean(0), points.std(0) + 1e-3
  centroids = np.random.default_rng(3).normal(size=(40, 16))
  tokenizers.export_semantic(directory, config, params, mean, std, centroids)


def text_model(texts) -> bytes:
  """A SentencePiece model of up to 60 ids, of some sentences."""
  import sentencepiece

  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(list(texts) * 5),
    model_writer=model,
    vocab_size=60,
    hard_vocab_limit=False,
    pad_id=0,
    unk_id=1,
    bos_id=-1,
    eos_id=-1,
    minloglevel=2,
  )
  return model.getvalue()


def mulan_config():
  """Towers for 60 ids and windows of 2 s."""
  from musiclm_jax.layers import transformer
  from musiclm_jax.networks import mulan, mulan_audio, mulan_text

  return mulan.MuLanConfig(
    resnet=mulan_audio.ResNetConfig(
      stage_blocks=(1,), width=8, expansion=1, stem="patch", num_groups=4
    ),
    text=mulan_text.TextTowerConfig(
      vocab_size=60,
      max_length=8,
      transformer=transformer.TransformerConfig(
        num_layers=1, embed_dim=16, num_heads=2, mlp_dim=32, causal=False
      ),
    ),
    output_dim=16,
    window_secs=2.0,
  )


def write_mulan(directory, seed=4) -> None:
  """Writes a MuLan of random weights with windows of 2 s."""
  from musiclm_jax.networks import mulan
  from musiclm_jax.systems import tokenizers

  config = mulan_config()
  shapes = jax.eval_shape(
    mulan.MuLan(config).init,
    jax.random.key(0),
    jnp.zeros((1, 8000)),
    jnp.ones((1, 8), jnp.int32),
  )
  params = random_values(shapes["params"], seed)
  codebooks = np.random.default_rng(0).normal(size=(3, 8, 16))
  tokenizers.export_mulan(
    directory,
    config,
    params,
    codebooks.astype(np.float32),
    {"text.model": text_model(["a slow piano piece", "loud brass march"])},
  )


def write_melody(directory) -> pathlib.Path:
  """Writes a melody tokenizer of 4 kHz with 5 codebooks of 8."""
  from musiclm_jax.audio import spectrogram
  from musiclm_jax.layers import transformer
  from musiclm_jax.networks import melody
  from musiclm_jax.systems import melody_tokenizer

  config = melody.MelodyConfig(
    mel=spectrogram.LogMelConfig(
      sample_rate_hz=4000, num_mels=24, frame_length=256, hop_length=80
    ),
    output_dim=12,
    transformer=transformer.TransformerConfig(
      num_layers=1,
      embed_dim=16,
      num_heads=2,
      mlp_dim=32,
      positions="none",
      causal=False,
    ),
  )
  shapes = jax.eval_shape(
    melody.MelodyEmbedder(config).init,
    jax.random.key(0),
    jnp.zeros((1, config.num_samples)),
  )
  params = random_values(shapes["params"], 5)
  # A random network says nearly the same of all music: its mean is taken away.
  points = melody_tokenizer.MelodyEmbeddings(config, params).embed_windows(
    music(12.0, 7)[None], RATE_HZ, 1.0
  )[0]
  random = np.random.default_rng(6).normal(size=(5, 8, 12))
  codebooks = (random * points.std(0)).astype(np.float32)
  codebooks[0] += points.mean(0)
  melody_tokenizer.export_melody(directory, config, params, codebooks)
  return pathlib.Path(directory)


def write(directory, is_fitted=False) -> pathlib.Path:
  """Writes `soundstream` (8 kHz), `semantic` and `mulan` (windows of 2 s).

  Args:
    directory: of the three.
    is_fitted: place the codes where the music of this module lies, so that
      many are used; two programs are compiled for it.
  """
  root = pathlib.Path(directory)
  write_codec(root / "soundstream", is_fitted)
  _semantic(root / "semantic", is_fitted)
  write_mulan(root / "mulan")
  return root


def music(secs: float, seed: int) -> np.ndarray:
  """float32 `[samples]`: a new tone of its own pitch and level every 0.15 s."""
  rng = np.random.default_rng(seed)
  at = np.arange(round(secs * RATE_HZ)) / RATE_HZ
  note = (at / 0.15).astype(int)
  hz = 100 * 35 ** rng.uniform(size=note[-1] + 1)
  level = rng.uniform(0.02, 0.5, size=note[-1] + 1)
  waveform = level[note] * np.sin(2 * np.pi * hz[note] * at)
  return (waveform + 0.01 * rng.normal(size=len(at))).astype(np.float32)
