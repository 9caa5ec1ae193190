# SPDX-License-Identifier: Apache-2.0
"""Trains a small stage on several meshes; `partitioner_test.py` runs this.

A program of its own, because jax fixes the number of devices when it starts.
Prints one JSON object: per mesh the losses of 10 steps and what was split.
"""

import json

import jax
import numpy as np
import optax

from musiclm_jax.core import rng, stages, streams
from musiclm_jax.layers import transformer
from musiclm_jax.models import token_lm
from musiclm_jax.partitioning import mesh, partitioner
from musiclm_jax.training import optimizers, state, steps

BATCH_SIZE = 8
# Sequences of 2 + 10 + 38 = 50 tokens: no multiple of 4.
STREAMS = (
  streams.TokenStream("mulan", 8, 2),
  streams.TokenStream("semantic", 16, 1, 25.0),
  streams.TokenStream("acoustic", 16, 2, 50.0),
)
MESHES = {
  "8x1x1": mesh.MeshConfig(data=8),
  "4x2x1": mesh.MeshConfig(data=4, fsdp=2),
  "2x2x2": mesh.MeshConfig(data=2, fsdp=2, tensor=2),
  "1x8x1": mesh.MeshConfig(data=1, fsdp=8),
  "1x1x8": mesh.MeshConfig(data=1, tensor=8),
  "2 slices": mesh.MeshConfig(
    data=1, fsdp=2, sequence=2, dcn_data=2, num_slices=2
  ),
  "sequence_parallel": mesh.MeshConfig(
    data=2, tensor=4, rules="sequence_parallel"
  ),
}


# With heads of keys and values that divide the tensor axis, and with fewer.
GROUPED_MESHES = ("2x2x2", "sequence_parallel")


def make_trainable(**changes: object) -> token_lm.TokenLM:
  return token_lm.TokenLM(
    token_lm.TokenLMConfig(
      spec=stages.coarse_stage(2, 2, crop_secs=0.38),
      streams=STREAMS,
      transformer=transformer.TransformerConfig(
        num_layers=2,
        embed_dim=32,
        num_heads=8,
        mlp_dim=64,
        dropout_rate=0.1,
        **changes,
      ),
    )
  )


def make_batch(trainable: token_lm.TokenLM, step: int) -> dict[str, np.ndarray]:
  generator = np.random.default_rng(step)
  layout = trainable.config.layout
  # Few of the 16 codes: something to learn in 10 steps.
  codes = {
    "mulan": generator.integers(0, 8, (BATCH_SIZE, 1, 2)),
    "semantic": generator.integers(0, 16, (BATCH_SIZE, 10, 1)),
    "acoustic": generator.integers(0, 4, (BATCH_SIZE, 19, 2)),
  }
  tokens = layout.encode(codes)
  weights = np.zeros(tokens.shape, np.float32)
  weights[:, layout.target_start :] = 1
  first = np.full((BATCH_SIZE, 1), stages.BOS_ID, np.int32)
  return {
    "decoder_input_tokens": np.concatenate([first, tokens[:, :-1]], 1),
    "decoder_target_tokens": tokens,
    "decoder_loss_weights": weights,
  }


def shard_bytes(tree: object) -> int:
  """Bytes on one device, without scalars."""
  return sum(
    leaf.addressable_shards[0].data.nbytes
    for leaf in jax.tree.leaves(tree)
    if leaf.ndim
  )


def train(
  config: mesh.MeshConfig,
  devices: list[jax.Device],
  trainable: token_lm.TokenLM,
  optimizer: optax.GradientTransformation,
  fresh: state.TrainState | None,
) -> tuple[dict, state.TrainState]:
  """Losses of 10 steps and where the state lies, and the state at the start."""
  part = partitioner.Partitioner(config, devices)
  create = (trainable, optimizer, part, BATCH_SIZE, 0)
  if fresh is None:
    fresh = jax.device_get(state.create(*create)[0])
  _, shardings = state.create(*create, abstract=True)
  now = jax.device_put(fresh, shardings)
  key = rng.root_key(0)
  batches = [make_batch(trainable, index) for index in range(10)]
  lowered = part.jit(
    steps.make_train_step(trainable, optimizer),
    out_shardings=(shardings, None),
  ).lower(now, part.put_batch(batches[0]), key)
  result = {
    "shape": dict(part.mesh.shape),
    "devices": [device.id for device in part.mesh.devices.flatten()],
    "param_bytes": shard_bytes(now.params),
    "optimizer_bytes": shard_bytes(now.optimizer),
    "constraints": lowered.as_text().count("sharding_constraint"),
    "host_part": part.host_part(),
    "losses": [],
  }
  step = lowered.compile()
  for batch in batches:
    now, metrics = step(now, part.put_batch(batch), key)
    loss = metrics["loss"]
    result["losses"].append(float(loss.total / loss.count))
  return result, fresh


def main() -> None:
  devices = jax.devices()
  optimizer = optimizers.make_optimizer(
    optimizers.OptimizerConfig(learning_rate=1e-2, warmup_steps=2)
  )
  stages_of = {
    "": (make_trainable(), tuple(MESHES)),
    "grouped ": (make_trainable(num_kv_heads=2), GROUPED_MESHES),
  }
  results = {}
  for prefix, (trainable, names) in stages_of.items():
    results[prefix + "one"], fresh = train(
      mesh.MeshConfig(), devices[:1], trainable, optimizer, None
    )
    for name in names:
      results[prefix + name], _ = train(
        MESHES[name], devices, trainable, optimizer, fresh
      )
  print(json.dumps(results))


if __name__ == "__main__":
  main()
