# SPDX-License-Identifier: Apache-2.0
"""The loop: exact resume, damaged checkpoints, alarms, SIGTERM, sharding."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.core import errors, protocols, rng, stages, streams
from musiclm_jax.layers import transformer
from musiclm_jax.models import token_lm
from musiclm_jax.partitioning import axes, mesh, partitioner
from musiclm_jax.training import checkpoints, loop, optimizers, steps
from musiclm_jax.training import state as state_lib

STREAMS = (
  streams.TokenStream("mulan", 8, 2),
  streams.TokenStream("semantic", 16, 1, 25.0),
)


def make_lm(dropout_rate=0.1):
  return token_lm.TokenLM(
    token_lm.TokenLMConfig(
      spec=stages.semantic_stage(num_mulan_codebooks=2, crop_secs=0.4),
      streams=STREAMS,
      transformer=transformer.TransformerConfig(
        num_layers=2,
        embed_dim=16,
        num_heads=2,
        mlp_dim=32,
        dropout_rate=dropout_rate,
      ),
    )
  )


def make_batch(trainable, step, batch_size=8):
  """A batch that is a function of the step alone."""
  random = np.random.default_rng(step)
  batch = {}
  for name, shape in trainable.input_shapes(batch_size).items():
    if shape.dtype == jnp.int32:
      batch[name] = random.integers(2, 15, shape.shape, dtype=np.int32)
    else:
      batch[name] = np.ones(shape.shape, np.float32)
  layout = trainable.config.layout
  offset = int(layout.target_offsets[0])
  tail = batch["decoder_target_tokens"][:, layout.target_start :]
  tail[:] = offset + random.integers(0, 16, tail.shape)
  batch["decoder_loss_weights"][:, : layout.target_start] = 0
  batch["example_ids"] = np.arange(batch_size) + 100 * step
  return batch


def run(model_dir, total_steps, trainable=None, config=None, **overrides):
  trainable = trainable or make_lm()

  def batches(start):
    step = start
    while True:
      yield make_batch(trainable, step)
      step += 1

  settings = {
    "total_steps": total_steps,
    "log_every_steps": 2,
    "eval_every_steps": 4,
    "checkpointing": checkpoints.CheckpointConfig(every_steps=3, keep=3),
    **overrides,
  }
  return loop.train(
    model_dir,
    trainable,
    batches,
    lambda: iter([make_batch(trainable, 10**6)]),
    loop.LoopConfig(**settings),
    optimizers.OptimizerConfig(total_steps=8, warmup_steps=2),
    partitioner.Partitioner(config or mesh.MeshConfig(data=1)),
  )


def losses(model_dir):
  lines = (pathlib.Path(model_dir) / "metrics.jsonl").read_text().splitlines()
  return [
    (record["step"], record["split"], record["loss"])
    for record in map(json.loads, lines)
  ]


def assert_same(a, b):
  for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


def test_resume_is_bit_identical(tmp_path):
  whole = run(tmp_path / "whole", 8)
  # Stopped after 5 of 8 steps: the newest checkpoint is step 5's.
  run(tmp_path / "parts", 5)
  resumed = run(tmp_path / "parts", 8)
  assert_same(whole.params, resumed.params)
  assert_same(whole.optimizer, resumed.optimizer)
  of_whole = {(s, k): v for s, k, v in losses(tmp_path / "whole")}
  of_parts = {(s, k): v for s, k, v in losses(tmp_path / "parts")}
  for step in (4, 8):
    for split in ("train", "heldout"):
      if (step, split) == (8, "train"):
        continue
      assert of_whole[step, split] == of_parts[step, split]
  assert of_whole[8, "heldout"] == of_parts[8, "heldout"]


def test_damaged_newest_checkpoint_is_skipped(tmp_path, caplog):
  whole = run(tmp_path / "a", 8)
  run(tmp_path / "b", 6)
  newest = tmp_path / "b" / "checkpoints" / "6"
  for path in newest.rglob("*"):
    if path.is_file() and path.stat().st_size > 64:
      path.write_bytes(path.read_bytes()[:10])
  resumed = run(tmp_path / "b", 8)
  assert_same(whole.params, resumed.params)
  assert (tmp_path / "b" / "damaged_checkpoint_6").exists()
  assert any("damaged" in record.message for record in caplog.records)


class Poisoned:
  """A linear model whose loss is NaN where the data says so."""

  def input_shapes(self, batch_size):
    return {"x": jax.ShapeDtypeStruct((batch_size, 4), jnp.float32)}

  def init(self, key, batch):
    ones = axes.named(lambda key, shape: jnp.ones(shape), ("embed",))
    return {"params": {"kernel": ones(key, (4,))}}

  def loss(self, variables, batch, key, step, train):
    loss = jnp.mean((batch["x"] @ variables["params"]["kernel"]) ** 2)
    metric = protocols.Mean(loss, jnp.ones(()))
    return loss, protocols.LossOutput({}, {"loss": metric})


def test_nan_stops_names_examples_and_keeps_a_good_state(tmp_path):
  def batches(start):
    for step in range(start, 10**6):
      x = np.full((8, 4), 0.1 * (step + 1), np.float32)
      if step == 2:
        x[3] = np.nan
      yield {"x": x, "example_ids": np.arange(8) + 1000 * step}

  with pytest.raises(FloatingPointError, match="step 3.*2003"):
    loop.train(
      tmp_path,
      Poisoned(),
      batches,
      None,
      loop.LoopConfig(total_steps=6, log_every_steps=4),
      optimizers.OptimizerConfig(total_steps=6),
      partitioner.Partitioner(mesh.MeshConfig(data=1)),
    )
  checkpointer = checkpoints.Checkpointer(
    tmp_path, checkpoints.CheckpointConfig()
  )
  values = checkpointer._manager.restore(4)
  assert np.isfinite(values["params"]["kernel"]).all()


def test_microbatches_equal_one_batch(tmp_path):
  trainable = make_lm(dropout_rate=0.0)
  one = run(tmp_path / "one", 2, trainable)
  four = run(tmp_path / "four", 2, trainable, num_microbatches=4)
  for left, right in zip(
    jax.tree.leaves(one.params), jax.tree.leaves(four.params)
  ):
    np.testing.assert_allclose(left, right, atol=2e-5)


def test_microbatches_save_memory_and_the_state_is_donated():
  trainable, key = make_lm(), jax.eval_shape(lambda: rng.root_key(0))
  placing = partitioner.Partitioner(mesh.MeshConfig(data=1), jax.devices()[:1])
  config = optimizers.OptimizerConfig(total_steps=9, warmup_steps=1)
  transform = optimizers.make_optimizer(config)
  state, shardings = state_lib.create(
    trainable, transform, placing, 256, 0, abstract=True
  )
  found = [
    placing.jit(
      steps.make_train_step(trainable, transform, count),
      donate_argnums=0,
      out_shardings=(shardings, None),
    )
    .lower(state, trainable.input_shapes(256), key)
    .compile()
    .memory_analysis()
    for count in (1, 2)
  ]
  one, two = (analysis.temp_size_in_bytes for analysis in found)
  assert two < 0.6 * one
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  assert [analysis.alias_size_in_bytes for analysis in found] == [size] * 2


def test_ema_follows_parameters(tmp_path):
  state = run(tmp_path, 3, ema_decay=0.5)
  differ = [
    not np.allclose(a, b)
    for a, b in zip(
      jax.tree.leaves(state.params), jax.tree.leaves(state.ema_params)
    )
  ]
  assert any(differ)


def test_batch_must_fit_the_mesh():
  with pytest.raises(ValueError, match="num_microbatches=3"):
    loop.LoopConfig(total_steps=1, num_microbatches=3)
  part = partitioner.Partitioner(mesh.MeshConfig(data=1))
  part.check_batch_size(7)
  with pytest.raises(ValueError, match="devices"):
    mesh.make_mesh(mesh.MeshConfig(data=3, fsdp=5))


_CHILD = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import loop_test
from musiclm_jax.core import errors
from musiclm_jax.partitioning import mesh
"""


def _child(tmp_path, body, devices=1):
  here = pathlib.Path(__file__).parent
  code = _CHILD.format(tests=str(here), root=str(here.parents[1]))
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
  }
  return subprocess.Popen(
    [sys.executable, "-c", code + textwrap.dedent(body)],
    env=environment,
    stdout=subprocess.PIPE,
    text=True,
  )


def test_eight_devices_equal_one(tmp_path):
  """data x fsdp x tensor on 8 virtual devices, and restore on one."""
  child = _child(
    tmp_path,
    f"""
    import numpy as np
    lm = loop_test.make_lm(dropout_rate=0.0)
    state = loop_test.run({str(tmp_path / "eight")!r}, 6, lm,
      mesh.MeshConfig(data=2, fsdp=2, tensor=2))
    print("shards", len(state.step.sharding.device_set))
    """,
    devices=8,
  )
  output, _ = child.communicate(timeout=240)
  assert child.returncode == 0 and "shards 8" in output
  lm = make_lm(dropout_rate=0.0)
  one = run(tmp_path / "one", 6, lm)
  restored = run(tmp_path / "eight", 6, lm)  # nothing left to train
  for left, right in zip(
    jax.tree.leaves(one.params), jax.tree.leaves(restored.params)
  ):
    np.testing.assert_allclose(left, right, atol=5e-5)
  of_one, of_eight = losses(tmp_path / "one"), losses(tmp_path / "eight")
  np.testing.assert_allclose(
    [loss for *_, loss in of_one],
    [loss for *_, loss in of_eight[: len(of_one)]],
    rtol=2e-4,
  )


def test_sigterm_saves_and_exits_143(tmp_path):
  child = _child(
    tmp_path,
    f"""
    try:
      loop_test.run({str(tmp_path)!r}, 10**6)
    except errors.Preempted as error:
      print(error)
      sys.exit(error.exit_code)
    """,
  )
  metrics_file = tmp_path / "metrics.jsonl"
  for _ in range(1200):
    if metrics_file.exists() and metrics_file.stat().st_size:
      break
    import time

    time.sleep(0.1)
  child.send_signal(signal.SIGTERM)
  output, _ = child.communicate(timeout=120)
  assert child.returncode == errors.Preempted.exit_code == 143
  step = int(output.split("saved step ")[1].split()[0])
  assert checkpoints.latest_step(tmp_path) == step


def test_other_sizes_are_an_error_not_damage(tmp_path):
  run(tmp_path, 3)
  config = make_lm().config
  wider = dataclasses.replace(
    config, transformer=dataclasses.replace(config.transformer, mlp_dim=48)
  )
  with pytest.raises(errors.UserError, match="mlp.*another model_dir|shape"):
    run(tmp_path, 4, token_lm.TokenLM(wider))
  assert checkpoints.latest_step(tmp_path) == 3
