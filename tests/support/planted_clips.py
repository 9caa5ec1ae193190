# SPDX-License-Identifier: Apache-2.0
"""A token cache of planted clips and a stage that learns them by heart."""

import jax
import numpy as np
import optax

SECS = 2.0
NUM_FRAMES = 50  # of 25 a second


def write_cache(directory, bundle_dir, splits, seed=0):
  """Writes a cache of random clips of 2 s, each token held for a while.

  Args:
    directory: of the cache.
    bundle_dir: of the tokenizers it pretends to be made with.
    splits: clips by split.
    seed: of the tokens.
  """
  from musiclm_jax.core import artifacts
  from musiclm_jax.data import token_cache, token_cache_writer
  from musiclm_jax.systems import tokenizers

  rng = np.random.default_rng(seed)
  semantic = tokenizers.SemanticTokenizer.load(bundle_dir / "semantic")
  mulan = artifacts.load(bundle_dir / "mulan", "mulan")
  codebooks = mulan.arrays["codebooks"]
  stream = tokenizers.streams.TokenStream(
    "mulan", codebooks.shape[1], len(codebooks)
  )
  config = token_cache.TokenCacheConfig(
    (semantic.stream, stream),
    {"semantic": semantic.fingerprint, "mulan": mulan.fingerprint},
    mulan_window_secs=SECS,
    shard_size=8,
    semantic_window_secs=SECS,
    semantic_halo_secs=0.4,
  )
  writer = token_cache_writer.TokenCacheWriter(directory, config, codebooks)
  for split, count in splits.items():
    for shard in writer.pending(split, count):
      clips = []
      for index in range(shard.start, shard.end):
        held = rng.integers(0, semantic.stream.codebook_size, NUM_FRAMES)
        tokens = np.repeat(held, rng.integers(1, 4, NUM_FRAMES))[:NUM_FRAMES]
        vector = rng.normal(size=(1, codebooks.shape[-1]))
        arrays = {
          "semantic": tokens[:, None],
          token_cache.EMBEDDINGS: vector / np.linalg.norm(vector),
        }
        name = f"{split}/{index}"
        clips.append(token_cache.CachedClip(name, arrays, f"work {name}"))
      writer.write_shard(shard, clips)
  writer.finish(splits)


def train(cache_dir, directory, num_steps=200):
  """Trains a semantic stage on the clips of a cache and nothing else.

  Args:
    cache_dir: of `write_cache`.
    directory: of the artefact.
    num_steps: of Adam, each on all clips.

  Returns:
    Share of the tokens it then predicts right.
  """
  from musiclm_jax.core import stages
  from musiclm_jax.data import token_cache
  from musiclm_jax.layers import transformer
  from musiclm_jax.models import token_lm
  from musiclm_jax.partitioning import axes
  from musiclm_jax.systems import stage_lm

  config = token_cache.read_config(cache_dir)
  num_codebooks = config.stream("mulan").num_codebooks
  spec = stages.semantic_stage(num_codebooks, SECS)
  stack = transformer.TransformerConfig(1, 48, 2, 96, dropout_rate=0.0)
  model = token_lm.TokenLM(
    token_lm.TokenLMConfig(
      spec, config.streams, stack, aligned_conditioning=1.0
    )
  )
  codes = token_cache.stage_sequences(cache_dir, "train", spec)
  tokens = model.layout.encode(
    {name: np.stack(codes[name]) for name in ("mulan", "semantic")}
  )
  weights = np.zeros(tokens.shape, np.float32)
  weights[:, model.layout.target_start :] = 1
  bos = np.full((len(tokens), 1), stages.BOS_ID, np.int32)
  batch = {
    "decoder_input_tokens": np.concatenate([bos, tokens[:, :-1]], 1),
    "decoder_target_tokens": tokens,
    "decoder_loss_weights": weights,
  }
  params = axes.unbox(jax.jit(model.init)(jax.random.key(0), batch))["params"]
  optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, num_steps))

  @jax.jit
  def steps(params, state):
    def one(carry, _):
      params, state = carry
      (_, output), grads = jax.value_and_grad(
        lambda p: model.loss({"params": p}, batch, jax.random.key(0), 0, True),
        has_aux=True,
      )(params)
      updates, state = optimizer.update(grads, state)
      accuracy = output.metrics["accuracy"]
      share = accuracy.total / accuracy.count
      return (optax.apply_updates(params, updates), state), share

    carry, shares = jax.lax.scan(one, (params, state), None, num_steps)
    return carry[0], shares[-1]

  params, share = steps(params, optimizer.init(params))
  stage_lm.export_stage(
    directory,
    spec,
    config.streams,
    stack,
    params,
    config.fingerprints,
    aligned_conditioning=1.0,
  )
  return float(share)
