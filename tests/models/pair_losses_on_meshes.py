# SPDX-License-Identifier: Apache-2.0
"""Pair losses on several meshes; `pair_losses_test.py` runs this.

A program of its own, because jax fixes the number of devices when it starts.
Prints one JSON object. With 'pairs' as argument: per mesh and loss the largest
error of values and gradients relative to the largest value, with all rows and
without some, and shapes of the compiled program. With 'train': what a step
gives with and without microbatches.
"""

import json
import re
import sys

import jax
import numpy as np
import optax
import pair_reference

from musiclm_jax.core import rng
from musiclm_jax.layers import transformer
from musiclm_jax.models import contrastive, pair_losses
from musiclm_jax.networks import mulan, mulan_audio, mulan_text
from musiclm_jax.partitioning import mesh, partitioner
from musiclm_jax.training import state, steps

MESHES = {
  "one": mesh.MeshConfig(),
  "data x fsdp x tensor": mesh.MeshConfig(data=2, fsdp=2, tensor=2),
  "2 slices": mesh.MeshConfig(
    data=1, fsdp=2, sequence=2, dcn_data=2, num_slices=2
  ),
  "data_parallel": mesh.MeshConfig(
    data=2, fsdp=2, tensor=2, rules="data_parallel"
  ),
}
SCALE, BIAS, CHUNK = 12.5, -3.0, 10
# Rows that have no partner; 19 has the text of rows 3 and 30.
ABSENT = (0, 19, 23, 24, 47)


def error(found: jax.Array, expected: np.ndarray) -> float:
  gap = np.abs(np.asarray(found, np.float64) - expected).max()
  return float(gap / np.abs(expected).max())


def pairs(config: mesh.MeshConfig, loss: str) -> dict:
  """Errors of one loss on one mesh."""
  devices = jax.devices()[: 1 if config == mesh.MeshConfig() else 8]
  part = partitioner.Partitioner(config, devices)
  example = pair_reference.example()
  weights = np.linspace(0.5, 1.5, pair_reference.PAIRS).astype(np.float32)

  def total(audio, text, scale, bias, ids, weights, present):
    found = pair_losses.pair_losses(
      audio, text, ids, scale, bias, loss, CHUNK, present
    )
    return (found.loss * weights).sum(), found

  def arguments(present):
    batch = example | {"weights": weights, "present": present}
    batch = part.put_batch(batch)
    values = batch["audio"], batch["text"], np.float32(SCALE), np.float32(BIAS)
    return *values, batch["ids"], batch["weights"], batch["present"]

  everyone = np.ones(pair_reference.PAIRS, bool)
  program = (
    part.jit(jax.grad(total, (0, 1, 2, 3), has_aux=True))
    .lower(*arguments(everyone))
    .compile()
  )

  def errors_of(present):
    gradients, found = program(*arguments(present))
    value, slopes = pair_reference.value_and_gradients(
      {name: x[present] for name, x in example.items()},
      weights[present],
      SCALE,
      BIAS,
      loss,
    )
    expected = [*slopes[:2], value]
    for index, x in enumerate(expected):
      expected[index] = np.zeros((pair_reference.PAIRS, *x.shape[1:]))
      expected[index][present] = x
    names = {"audio": 0, "text": 1, "scale": 2, "bias": 3}
    if loss != "sigmoid":
      del names["bias"]  # It cancels in the others.
    expected[2:2] = slopes[2:]
    of = {name: error(gradients[k], expected[k]) for name, k in names.items()}
    return of | {"loss": error(found.loss, expected[-1])}, found

  some = everyone.copy()
  some[list(ABSENT)] = False
  fewer, _ = errors_of(some)
  errors, found = errors_of(everyone)
  errors |= {f"{name}, some absent": value for name, value in fewer.items()}
  shapes = {
    tuple(map(int, shape.split(",")))
    for shape in re.findall(r"\w+\[([\d,]+)\]", program.as_text())
  }
  square = [s for s in shapes if s.count(pair_reference.PAIRS) > 1]
  return {
    "errors": errors,
    "square": square,
    "widest": max(int(np.prod(s)) for s in shapes),
    "ranks": np.asarray(found.rank_text).tolist(),
    "hits": np.asarray(found.hit_audio).tolist(),
    "nearest": np.asarray(found.nearest_text).tolist(),
  }


def train(config: mesh.MeshConfig, num_microbatches: int, loss: str) -> dict:
  """Metrics and moved parameters of one step of plain descent."""
  devices = jax.devices()[: 1 if config == mesh.MeshConfig() else 8]
  part = partitioner.Partitioner(config, devices)
  trainable = contrastive.Contrastive(
    contrastive.ContrastiveConfig(loss=loss, crop_secs=0.1, pair_chunk=5),
    mulan.MuLanConfig(
      # Without distortions, which depend on the part a row is in.
      augment=mulan.AugmentConfig(
        gain_db=0.0,
        equalizer_db=0.0,
        low_pass_rate=0.0,
        noise_db=0.0,
        num_time_masks=0,
        num_band_masks=0,
      ),
      resnet=mulan_audio.ResNetConfig(
        stage_blocks=(1,), width=8, expansion=2, stem="patch", num_groups=4
      ),
      text=mulan_text.TextTowerConfig(
        vocab_size=20,
        max_length=6,
        transformer=transformer.TransformerConfig(
          num_layers=1,
          embed_dim=16,
          num_heads=2,
          mlp_dim=32,
          causal=False,
          dropout_rate=0.0,
        ),
      ),
      output_dim=16,
    ),
  )
  generator = np.random.default_rng(0)
  batch = {
    "waveform": 0.3 * generator.normal(size=(16, 1600)).astype(np.float32),
    "text_tokens": generator.integers(1, 20, (16, 6)).astype(np.int32),
  }
  optimizer = optax.sgd(0.1)
  fresh, shardings = state.create(trainable, optimizer, part, 16, 0)
  step = part.jit(
    steps.make_train_step(trainable, optimizer, num_microbatches),
    out_shardings=(shardings, None),
  )
  new, metrics = step(fresh, part.put_batch(batch), rng.root_key(0))
  moved = jax.tree.map(
    lambda a, b: np.asarray(a) - np.asarray(b), new.params, fresh.params
  )
  leaves = jax.tree_util.tree_leaves_with_path(moved)
  return {
    "moved": {
      jax.tree_util.keystr(path): leaf.ravel().tolist() for path, leaf in leaves
    },
    "metrics": {
      name: float(metric.total / metric.count)
      for name, metric in metrics.items()
    },
  }


def main(kind: str) -> None:
  # Compiling is what takes time.
  jax.config.update("jax_disable_most_optimizations", True)
  results = {}
  if kind == "pairs":
    for name, config in MESHES.items():
      results[name] = {loss: pairs(config, loss) for loss in pair_losses.LOSSES}
      print(name, "done", file=sys.stderr, flush=True)
  else:
    fsdp = mesh.MeshConfig(data=2, fsdp=2, tensor=2)
    for loss in ("sigmoid", "mulan"):
      results[loss] = {
        "one": train(mesh.MeshConfig(), 1, loss),
        "8 devices, 4 parts": train(fsdp, 4, loss),
      }
      print(loss, "done", file=sys.stderr, flush=True)
  print(json.dumps(results))


if __name__ == "__main__":
  main(sys.argv[1])
