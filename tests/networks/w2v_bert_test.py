# SPDX-License-Identifier: Apache-2.0
"""Contracts of the w2v-BERT network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.core import artifacts
from musiclm_jax.layers import conformer
from musiclm_jax.networks import w2v_bert
from musiclm_jax.partitioning import axes

BLOCK = conformer.ConformerConfig(
  num_layers=2, embed_dim=16, num_heads=2, mlp_dim=32, dropout_rate=0.0
)
CONFIG = w2v_bert.W2vBertConfig(
  conv_channels=(4, 3),
  contrastive=dataclasses.replace(BLOCK, num_layers=1),
  masked_prediction=BLOCK,
  codebook_size=8,
  code_dim=6,
  tap_layer=1,
)
# Without the 'params' of the Conformer blocks, which have their own test.
NAMES = [
  "context_project/bias",
  "context_project/kernel",
  "feature_norm/bias",
  "feature_norm/scale",
  "input_project/bias",
  "input_project/kernel",
  "prediction/bias",
  "prediction/kernel",
  "quantizer/bias",
  "quantizer/codebook",
  "quantizer/kernel",
  "subsample_0/bias",
  "subsample_0/kernel",
  "subsample_1/bias",
  "subsample_1/kernel",
]
BLOCK_NAMES = [
  "attention_key/kernel",
  "attention_norm/bias",
  "attention_norm/scale",
  "attention_out/kernel",
  "attention_query/kernel",
  "attention_value/kernel",
  "conv_gate/bias",
  "conv_gate/kernel",
  "conv_kernel",
  "conv_norm/bias",
  "conv_norm/scale",
  "conv_norm_in/bias",
  "conv_norm_in/scale",
  "conv_out/bias",
  "conv_out/kernel",
  "mlp_in_down/bias",
  "mlp_in_down/kernel",
  "mlp_in_norm/bias",
  "mlp_in_norm/scale",
  "mlp_in_up/bias",
  "mlp_in_up/kernel",
  "mlp_out_down/bias",
  "mlp_out_down/kernel",
  "mlp_out_norm/bias",
  "mlp_out_norm/scale",
  "mlp_out_up/bias",
  "mlp_out_up/kernel",
  "norm_out/bias",
  "norm_out/scale",
]


def _init(config, waveform):
  network = w2v_bert.W2vBert(config)
  key = jax.random.key(0)
  return network.init(
    {"params": key, "mask": key}, waveform, deterministic=True
  )


@pytest.fixture(scope="module")
def setup():
  network = w2v_bert.W2vBert(CONFIG)
  waveform = 0.1 * jax.random.normal(jax.random.key(1), (2, 640 * 12))
  variables = axes.unbox(jax.jit(lambda: _init(CONFIG, waveform))())
  features = jax.jit(
    lambda waveform, mask: network.apply(
      variables, waveform, mask, method=network.features
    )
  )
  return network, variables, waveform, features


def test_parameter_names(setup):
  _, variables, _, _ = setup
  names = set(artifacts.flatten(variables["params"]))
  blocks = [
    f"{stack}/{name}"
    for stack in (
      "contrastive/block_0",
      "masked_prediction/block_0",
      "masked_prediction/block_1",
    )
    for name in BLOCK_NAMES
  ]
  assert names == set(NAMES + blocks)


def test_ten_seconds_are_250_frames():
  network = w2v_bert.W2vBert(CONFIG)
  shape = jax.eval_shape(
    lambda waveform: network.apply(
      _init(CONFIG, waveform), waveform, method=network.features
    ),
    jax.ShapeDtypeStruct((3, 160_000), jnp.float32),
  )
  assert shape.shape == (3, 250, 16)
  assert CONFIG.frame_rate_hz == 25.0


def test_xl_has_600_million_parameters():
  shapes = jax.eval_shape(
    lambda: _init(w2v_bert.W2vBertConfig(), jnp.zeros((1, 6400)))
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert 0.55e9 < count < 0.65e9


def test_padding_does_not_leak(setup):
  _, _, waveform, features = setup
  whole = features(waveform[:, : 640 * 8], jnp.ones((2, 8), bool))
  mask = jnp.broadcast_to(jnp.arange(12) < 8, (2, 12))
  # Silence behind the audio, as a tokenizer fills its buckets.
  padded = features(waveform.at[:, 640 * 8 :].set(0.0), mask)
  np.testing.assert_allclose(padded[:, :8], whole, atol=2e-5)
  unmasked = features(waveform.at[:, 640 * 8 :].set(0.0), None)
  assert np.abs(np.asarray(unmasked[:, :8] - whole)).max() > 1e-3


def test_clip_normalization_ignores_level_and_padding(setup):
  _, variables, waveform, _ = setup
  network = w2v_bert.W2vBert(
    dataclasses.replace(CONFIG, mel_normalization="clip")
  )
  # The frames below the Conformer blocks, which have their own tests.
  frames = jax.jit(
    lambda waveform, mask: network.apply(
      variables, waveform, mask, method="frames"
    )
  )
  loud = 0.5 * waveform / jnp.abs(waveform).max()
  mask = jnp.broadcast_to(jnp.arange(12) < 8, (2, 12))
  whole = frames(loud[:, : 640 * 8], jnp.ones((2, 8), bool))
  padded = frames(loud.at[:, 640 * 8 :].set(0.0), mask)
  np.testing.assert_allclose(padded[:, :8], whole, atol=2e-5)
  np.testing.assert_allclose(
    frames(0.5 * loud, mask)[:, :8], frames(loud, mask)[:, :8], atol=1e-2
  )


def test_rows_are_independent(setup):
  _, _, waveform, features = setup
  both = features(waveform, None)
  swapped = features(waveform[::-1], None)
  np.testing.assert_allclose(both[::-1], swapped, atol=1e-5)


def test_tap_is_the_named_block(setup):
  network, variables, waveform, features = setup
  upper = dict(variables["params"])
  upper["masked_prediction"] = dict(
    upper["masked_prediction"],
    block_1=jax.tree.map(jnp.zeros_like, upper["masked_prediction"]["block_1"]),
  )
  features_of = jax.jit(
    lambda params: network.apply(
      {"params": params}, waveform, method=network.features
    )
  )
  tapped = features_of(upper)
  np.testing.assert_allclose(tapped, features(waveform, None), atol=1e-5)
  lower = dict(variables["params"])
  lower["masked_prediction"] = dict(
    lower["masked_prediction"],
    block_0=jax.tree.map(
      lambda leaf: leaf * 0.5, lower["masked_prediction"]["block_0"]
    ),
  )
  moved = features_of(lower)
  assert not np.allclose(tapped, moved, atol=1e-3)


def test_training_forward_masks_input_but_not_targets(setup):
  network, variables, waveform, _ = setup

  @jax.jit
  def run(seed):
    return network.apply(
      variables,
      waveform,
      deterministic=True,
      rngs={"mask": jax.random.key(seed)},
    )

  first, second = run(0), run(3)
  assert first.prediction_logits.shape == (2, 12, 8)
  assert first.context.shape == first.codes.shape == (2, 12, 6)
  assert not np.array_equal(first.masked, second.masked)
  np.testing.assert_array_equal(first.target_ids, second.target_ids)
  np.testing.assert_array_equal(first.codes, second.codes)
  assert not np.allclose(first.context, second.context)
  np.testing.assert_array_equal(first.code_ids, first.target_ids)


def test_span_mask_covers_about_half():
  mask = np.asarray(
    w2v_bert.span_mask(jax.random.key(0), (64, 1000), 0.065, 10)
  )
  # 1 - (1 - 0.065)^10
  assert abs(mask.mean() - 0.489) < 0.02
  edges = np.diff(np.pad(mask.astype(int), ((0, 0), (1, 0))), axis=1)
  starts = np.argwhere(edges == 1)
  for row, frame in starts[:200]:
    assert mask[row, frame : frame + 10].all()


@pytest.mark.parametrize(
  ("field", "value"),
  [("tap_layer", 3), ("code_dim", 0), ("mel_normalization", "none")],
)
def test_bad_config_names_field(field, value):
  with pytest.raises(ValueError, match=f"{field}={value!r}"):
    dataclasses.replace(CONFIG, **{field: value})


def test_tap_by_name(setup):
  _, variables, waveform, features = setup

  def at(name):
    network = w2v_bert.W2vBert(dataclasses.replace(CONFIG, tap_layer=name))
    return network.apply(variables, waveform, method=network.features)

  np.testing.assert_allclose(
    at("masked_prediction/1"), features(waveform, None), atol=1e-5
  )
  names = ("contrastive/1", "masked_prediction/1", "masked_prediction/2")
  first, second, third = (np.asarray(at(name)) for name in names)
  for one, other in ((first, second), (second, third)):
    assert np.abs(one - other).max() > 0.1
  for name in ("contrastive/2", "masked_prediction/0", "top/1", "contrastive"):
    with pytest.raises(ValueError, match=f"tap_layer='{name}'"):
      dataclasses.replace(CONFIG, tap_layer=name)
