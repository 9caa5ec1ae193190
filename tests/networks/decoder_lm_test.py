# SPDX-License-Identifier: Apache-2.0
"""The stage network: stable names, paper size, cached == teacher-forced."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.core import artifacts
from musiclm_jax.layers import attention, transformer
from musiclm_jax.networks import decoder_lm
from musiclm_jax.partitioning import axes

# Checkpoints and artefacts depend on these names and shapes.
GOLDEN = {
  "output": (2, 8, 5),
  "token_embed/table": (20, 8),
  "transformer/final_norm/scale": (8,),
  "transformer/layers/attention/out/kernel": (2, 2, 4, 8),
  "transformer/layers/attention/qkv/kernel": (2, 8, 3, 2, 4),
  "transformer/layers/attention_norm/scale": (2, 8),
  "transformer/layers/mlp/wi/kernel": (2, 8, 12),
  "transformer/layers/mlp/wo/kernel": (2, 12, 8),
  "transformer/layers/mlp_norm/scale": (2, 8),
  "transformer/relative_bias/table": (32, 2),
}


# One conditioning segment without frames, one with half of the target's.
SHAPES = ((1, 3), (2, 1), (4, 2))
LENGTH, START = 13, 5


def _network(aligned_conditioning=0.0, masks_padding=False, **fields):
  stack = transformer.TransformerConfig(2, 8, 2, 12, **fields)
  return decoder_lm.DecoderLM(
    decoder_lm.DecoderLMConfig(
      stack, 20, 2, 5, aligned_conditioning, masks_padding
    )
  )


def test_parameter_names_and_shapes_are_stable():
  shapes = jax.eval_shape(
    lambda: axes.unbox(
      _network().init(
        jax.random.key(0), jnp.zeros((1, LENGTH), jnp.int32), SHAPES
      )
    )
  )
  flat = artifacts.flatten(shapes["params"])
  assert {name: leaf.shape for name, leaf in flat.items()} == GOLDEN


def test_paper_backbone_has_302_million_parameters():
  stack = transformer.TransformerConfig(24, 1024, 16, 4096)
  network = decoder_lm.DecoderLM(
    decoder_lm.DecoderLMConfig(stack, 13314, 1, 1024)
  )
  shapes = jax.eval_shape(
    lambda: axes.unbox(
      network.init(
        jax.random.key(0), jnp.zeros((1, 8), jnp.int32), ((4, 1), (4, 1))
      )
    )
  )
  count = sum(x.size for x in jax.tree.leaves(shapes["params"]["transformer"]))
  assert round(count / 1e6) == 302


def _init(network, tokens):
  return axes.unbox(
    jax.jit(network.init, static_argnums=2)(jax.random.key(0), tokens, SHAPES)
  )


@pytest.mark.parametrize("aligned, masked", [(0.0, 0), (3.0, 0), (0.0, 1)])
@pytest.mark.parametrize("num_known", [0, 3])
def test_cached_decode_logits_equal_teacher_forced_logits(
  aligned, masked, num_known
):
  network = _network(aligned, bool(masked), scan_layers=True)
  tokens = jax.random.randint(jax.random.key(1), (2, LENGTH), 0, 20)
  tokens = tokens.at[0, 1 : 1 + 3 * masked].set(0)
  variables = _init(network, tokens)
  expected = jax.jit(lambda v, x: network.apply(v, x, SHAPES))(
    variables, tokens
  )
  assert expected.shape == (2, 4, 2, 5) and expected.dtype == jnp.float32
  # Decoding runs unrolled.
  config = dataclasses.replace(
    network.config,
    transformer=dataclasses.replace(
      network.config.transformer, scan_layers=False
    ),
  )
  network = decoder_lm.DecoderLM(config)
  params = {"params": transformer.unstack_layers(variables["params"])}
  first = START + num_known
  # With known frames the cache is short at first, and grows.
  num_steps = 2 if num_known else None
  hidden, state = jax.jit(
    lambda tokens: network.apply(
      params, tokens, SHAPES, num_steps, method="prefill", mutable=["cache"]
    )
  )(tokens[:, : first + 1])
  step = jax.jit(
    lambda state, token: network.apply(
      params | state, token, method="step", mutable=["cache"]
    )
  )
  logits = []
  for position in range(first, LENGTH):
    level = (position - START) % 2
    logits.append(
      network.apply(params, hidden, jnp.int32(level), method="level_logits")
    )
    if num_steps and position == first + num_steps:
      more = LENGTH - position
      state = {"cache": attention.grow_cache(state["cache"], more)}
    if position + 1 < LENGTH:
      hidden, state = step(state, tokens[:, position + 1])
  decoded = jnp.stack(logits, axis=1)
  expected = expected.reshape(2, -1, 5)[:, num_known:]
  np.testing.assert_allclose(decoded, expected, atol=1e-5)


@pytest.mark.parametrize("attention", ["plain", "blocked"])
def test_padding_in_front_is_as_if_it_were_not_there(attention):
  # Without BOS, of which the distance differs.
  network = _network(masks_padding=True, attention=attention)
  tokens = jax.random.randint(jax.random.key(1), (2, LENGTH), 1, 20)
  tokens = tokens.at[:, :3].set(0)
  variables = _init(network, tokens)
  apply = jax.jit(network.apply, static_argnums=2)
  logits = apply(variables, tokens, SHAPES)
  bare = apply(variables, tokens[:, 3:], ((2, 1), (4, 2)))
  np.testing.assert_allclose(logits, bare, atol=1e-5)
  # Only what is masked is: padding elsewhere is a token like others.
  hidden = apply(variables, tokens.at[:, START].set(0), SHAPES)
  assert np.abs(hidden - logits).max() > 1e-3
  with pytest.raises(ValueError, match="aligned_conditioning=3.0.*repeats"):
    _network(3.0, True)


def test_aligned_conditioning_tells_each_frame_its_own_codes():
  network = _network(3.0)
  tokens = jax.random.randint(jax.random.key(1), (1, LENGTH), 0, 10)
  params = _init(network, tokens)["params"]

  apply = jax.jit(lambda params, x: network.apply(params, x, SHAPES))

  def outcome(changed_position):
    # Closed attention: only the aligned path is left between positions.
    layers = params["transformer"]["layers"]
    closed = jax.tree.map(jnp.zeros_like, layers["attention"])
    stack = params["transformer"] | {"layers": layers | {"attention": closed}}
    changed = tokens.at[0, changed_position].add(10)
    logits = apply({"params": params | {"transformer": stack}}, changed)
    return np.asarray(logits[0]).reshape(4, -1)

  base = outcome(0)
  # Positions 1 to 3 hold the stream without frames, 4 and 5 one frame each;
  # 5 is also the position that predicts the first target token.
  for position, frames in {2: [0, 1, 2, 3], 4: [0, 1], 5: [0, 2, 3]}.items():
    moved = np.abs(outcome(position) - base).max(axis=1) > 1e-6
    assert list(np.flatnonzero(moved)) == frames


def test_code_nats_is_cross_entropy():
  logits = jax.random.normal(jax.random.key(0), (3, 5))
  codes = jnp.array([0, 4, 2])
  expected = -np.log(np.asarray(jax.nn.softmax(logits)))[range(3), codes]
  np.testing.assert_allclose(
    decoder_lm.code_nats(logits, codes), expected, rtol=1e-5
  )


def test_gain_multiplies_streams_with_frames_only():
  tokens = jnp.arange(4)[None]
  # A stream without frames of two levels, one of two frames, four to make.
  shapes = ((1, 2), (2, 1), (4, 1))

  def told(gain):
    return decoder_lm.sum_of_instants(
      lambda x: jnp.float32(x)[..., None], tokens, shapes, gain
    )[0, :, 0]

  np.testing.assert_array_equal(told(1.0), [3, 3, 4, 4])
  np.testing.assert_array_equal(told(5.0), [11, 11, 16, 16])
