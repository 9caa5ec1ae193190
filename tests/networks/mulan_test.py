# SPDX-License-Identifier: Apache-2.0
"""Contracts of MuLan's towers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.core import artifacts
from musiclm_jax.layers import transformer
from musiclm_jax.networks import bert, mulan, mulan_audio, mulan_text
from musiclm_jax.partitioning import axes

STACK = transformer.TransformerConfig(
  num_layers=1, embed_dim=16, num_heads=2, mlp_dim=32, causal=False
)
CONFIG = mulan.MuLanConfig(
  resnet=mulan_audio.ResNetConfig(
    stage_blocks=(1, 1), width=8, expansion=2, num_groups=4
  ),
  ast=mulan_audio.AstConfig(
    max_frames=64, transformer=dataclasses.replace(STACK, positions="none")
  ),
  text=mulan_text.TextTowerConfig(
    vocab_size=20, max_length=6, transformer=STACK
  ),
  output_dim=12,
)
TOWERS = {
  "resnet": CONFIG,
  "patch": dataclasses.replace(
    CONFIG, resnet=dataclasses.replace(CONFIG.resnet, stem="patch")
  ),
  "ast": dataclasses.replace(CONFIG, audio_tower="ast"),
}
RESNET_NAMES = {
  "stem/conv/kernel",
  "stem_norm/norm/bias",
  "stem_norm/norm/scale",
  *(
    f"stage_{stage}_block_0/{part}"
    for stage in (0, 1)
    for layer in ("reduce", "mix", "expand", "shortcut")
    for part in (
      f"{layer}/conv/kernel",
      f"{layer}_norm/norm/bias",
      f"{layer}_norm/norm/scale",
    )
  ),
}
AST_NAMES = {
  "stem/kernel",
  "stem/bias",
  "time_position",
  "band_position",
  "cls",
}


def _init(config):
  network = mulan.MuLan(config)
  waveform = jnp.zeros((1, 8000))
  return network.init(jax.random.key(0), waveform, jnp.ones((1, 6), jnp.int32))


@pytest.fixture(scope="module", params=sorted(TOWERS))
def tower(request):
  config = TOWERS[request.param]
  network = mulan.MuLan(config)
  variables = axes.unbox(jax.jit(lambda: _init(config))())
  # Blocks start as their shortcuts; let every one speak.
  variables = jax.tree.map(
    lambda leaf: (
      leaf
      + 0.05
      * jnp.sin(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)
    ),
    variables,
  )
  return network, variables


def test_audio_embeddings_are_unit_and_rows_independent(tower):
  network, variables = tower
  waveform = 0.1 * jax.random.normal(jax.random.key(0), (3, 8000))
  waveform *= jnp.array([1.0, 0.1, 0.01])[:, None]
  embed = jax.jit(
    lambda x: network.apply(variables, x, method=network.embed_audio)
  )
  out = embed(waveform)
  assert out.shape == (3, 12)
  assert out.dtype == jnp.float32
  np.testing.assert_allclose((out**2).sum(-1), 1.0, rtol=1e-5)
  np.testing.assert_allclose(embed(waveform[::-1])[::-1], out, atol=1e-5)
  assert float(jnp.abs(out[0] - out[2]).max()) > 1e-3


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_text_padding_does_not_leak(pooling):
  config = mulan_text.TextTowerConfig(
    vocab_size=20, max_length=6, pooling=pooling, transformer=STACK
  )
  tower = mulan_text.TextTower(config, 8)
  tokens = jnp.array([[4, 5, 6, 0, 0, 0], [7, 8, 9, 3, 2, 1]])
  variables = axes.unbox(tower.init(jax.random.key(0), tokens))
  out = tower.apply(variables, tokens)
  short = tower.apply(variables, tokens[:1, :3])
  np.testing.assert_allclose(out[:1], short, atol=1e-5)
  moved = tower.apply(variables, tokens.at[0, 2].set(11))
  assert not np.allclose(moved[0], out[0], atol=1e-4)
  np.testing.assert_allclose(moved[1], out[1], atol=1e-5)
  # Order matters, unlike in a bag of words.
  turned = tower.apply(variables, tokens.at[1].set(tokens[1, ::-1]))
  assert not np.allclose(turned[1], out[1], atol=1e-4)


def test_bert_tower_learns_nothing_from_padding():
  sizes = bert.BertConfig(20, 6, 2, 16, 1, 2, 24, dropout_rate=0.0)
  for pooling in ("cls", "mean"):
    config = mulan_text.BertTowerConfig(sizes, 6, pooling)
    tower = mulan_text.BertTower(config, 8)
    tokens = jnp.array([[4, 5, 6, 0, 0, 0], [7, 8, 9, 3, 2, 1]])
    variables = axes.unbox(tower.init(jax.random.key(0), tokens))
    assert set(variables["params"]) == {"bert", "project"}
    out = tower.apply(variables, tokens)
    short = tower.apply(variables, tokens[:1, :3])
    np.testing.assert_allclose(out[:1], short, atol=1e-5)
  with pytest.raises(ValueError, match="pooling='max'"):
    mulan_text.BertTowerConfig(sizes, 6, "max")
  with pytest.raises(ValueError, match="max_length=7"):
    mulan_text.BertTowerConfig(sizes, 7)
  with pytest.raises(ValueError, match="num_layers=0"):
    dataclasses.replace(sizes, num_layers=0)


@pytest.mark.parametrize("name", ["resnet", "ast"])
def test_parameter_names(name):
  shapes = jax.eval_shape(lambda: _init(TOWERS[name]))
  params = axes.unbox(shapes)["params"]
  assert set(params) == {
    "audio",
    "audio_project",
    "text",
    "log_temperature",
  }
  names = set(artifacts.flatten(params["audio"]))
  if name == "ast":
    names = {path for path in names if not path.startswith("transformer/")}
  assert names == (RESNET_NAMES if name == "resnet" else AST_NAMES)
  assert {"embed", "transformer", "cls", "project"} == set(params["text"])


def test_published_sizes():
  def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

  for tower, low, high in (("resnet", 22e6, 26e6), ("ast", 80e6, 92e6)):
    config = mulan.MuLanConfig(audio_tower=tower)
    params = jax.eval_shape(lambda config=config: _init(config))["params"]
    assert low < count(params["audio"]) < high
    # BERT-base has 110 M, 0.4 M of them positions.
    assert 105e6 < count(params["text"]) < 115e6


def test_every_parameter_has_logical_names():
  boxed = jax.eval_shape(lambda: _init(CONFIG))
  specs = artifacts.flatten(axes.logical_specs(boxed)["params"])
  leaves = artifacts.flatten(axes.unbox(boxed)["params"])
  for path, leaf in leaves.items():
    assert len(specs[path]) == len(leaf.shape), path


def test_augmentation_off_is_identity_and_on_is_bounded():
  mel = jax.random.normal(jax.random.key(0), (4, 50, 64)) - 5.0
  off = mulan.AugmentConfig(
    gain_db=0.0,
    equalizer_db=0.0,
    low_pass_rate=0.0,
    noise_db=0.0,
    num_time_masks=0,
    num_band_masks=0,
  )
  key = jax.random.key(1)
  np.testing.assert_allclose(mulan.augment(mel, off, key), mel, atol=1e-6)
  gain = dataclasses.replace(off, gain_db=6.0)
  change = np.asarray(mulan.augment(mel, gain, key) - mel)
  np.testing.assert_allclose(
    change, np.broadcast_to(change[:, :1, :1], change.shape), atol=1e-5
  )
  assert np.unique(np.round(change[:, 0, 0], 4)).size == 4
  assert np.abs(change).max() <= 6.0 * np.log(10) / 20 + 1e-5
  masks = dataclasses.replace(off, num_time_masks=1, time_mask_frames=10)
  changed = np.asarray(mulan.augment(mel, masks, key) != mel).any(-1).sum(1)
  assert changed.max() <= 11
  assert changed.max() > 0
  strong = mulan.augment(mel, mulan.AugmentConfig(), key)
  assert np.isfinite(strong).all()


def test_training_augments_and_inference_does_not():
  network = mulan.MuLan(TOWERS["patch"])
  waveform = 0.1 * jax.random.normal(jax.random.key(0), (1, 8000))
  variables = axes.unbox(jax.jit(lambda: _init(TOWERS["patch"]))())

  @jax.jit
  def train(seed):
    return network.apply(
      variables,
      waveform,
      False,
      method=network.embed_audio,
      rngs={"augment": jax.random.key(seed)},
    )

  assert not np.allclose(train(0), train(1), atol=1e-4)


@pytest.mark.parametrize(
  ("field", "value"), [("audio_tower", "vgg"), ("initial_temperature", 2.0)]
)
def test_bad_config_names_field(field, value):
  with pytest.raises(ValueError, match=f"{field}={value!r}"):
    mulan.MuLanConfig(**{field: value})


def test_too_long_spectrogram_is_an_error():
  network = mulan.MuLan(TOWERS["ast"])
  with pytest.raises(ValueError, match="max_frames=64"):
    jax.eval_shape(
      lambda: network.init(
        jax.random.key(0), jnp.zeros((1, 16000)), jnp.ones((1, 6), jnp.int32)
      )
    )
