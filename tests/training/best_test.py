# SPDX-License-Identifier: Apache-2.0
"""The best checkpoint: kept, restored after kills, named in its file."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.core import errors, metric_directions, protocols
from musiclm_jax.partitioning import axes, mesh, partitioner
from musiclm_jax.training import best, checkpoints, loop, optimizers


class Line:
  """A linear model; its held-out accuracy rises and falls with the step."""

  def input_shapes(self, batch_size):
    return {"x": jax.ShapeDtypeStruct((batch_size, 4), jnp.float32)}

  def init(self, key, batch):
    ones = axes.named(lambda key, shape: jnp.ones(shape), ("embed",))
    return {"params": {"kernel": ones(key, (4,))}}

  def loss(self, variables, batch, key, step, train):
    loss = jnp.mean((batch["x"] @ variables["params"]["kernel"]) ** 2)
    one = jnp.ones(())
    values = {
      "loss": loss,
      "accuracy": jnp.cos(0.8 * step),
      "temperature": loss,
    }
    means = {name: protocols.Mean(value, one) for name, value in values.items()}
    return loss, protocols.LossOutput({}, means)


@dataclasses.dataclass(frozen=True)
class Outputs:
  """An evaluator: the mean size of the model's outputs, row by row."""

  name: str = "outputs"
  every_steps: int = 3
  num_batches: int = 0
  directions = {"size": "min"}

  def fits(self, trainable):
    return isinstance(trainable, Line)

  def rows(self, trainable, variables, batch, key):
    return jnp.abs(batch["x"] @ variables["params"]["kernel"])

  def score(self, rows):
    return {"size": float(rows.mean()), "rows": len(rows)}


class Killed(Exception):
  pass


def batch(step, weights=None):
  x = np.random.default_rng(step).normal(size=(8, 4)).astype(np.float32)
  found = {"x": x, "example_ids": np.arange(8)}
  return found if weights is None else {**found, "example_weights": weights}


def run(model_dir, kill_at=None, total_steps=14, held_out=(), **settings):
  def batches(start):
    step = start
    while True:
      if step == kill_at:
        raise Killed
      yield batch(step)
      step += 1

  if held_out == ():
    half = np.repeat(np.float32([1, 0]), 4)
    held_out = [batch(1001), batch(1002, half)]
  config = {
    "eval_every_steps": 2,
    "keep_best_by": "heldout/accuracy",
    "checkpointing": checkpoints.CheckpointConfig(5, keep=1, every_secs=0),
    **settings,
  }
  return loop.train(
    model_dir,
    Line(),
    batches,
    None if held_out is None else lambda: iter(held_out),
    loop.LoopConfig(total_steps, log_every_steps=7, **config),
    optimizers.OptimizerConfig(total_steps=14, learning_rate=0.1),
    partitioner.Partitioner(mesh.MeshConfig(data=1)),
    loop.RunOptions(tensorboard=False),
  )


def kept(model_dir):
  folder = pathlib.Path(model_dir) / "checkpoints"
  return sorted(int(path.name) for path in folder.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """An unbroken run; cos(0.8 step) at even steps is largest at 8."""
  folder = tmp_path_factory.mktemp("best") / "whole"
  return folder, run(folder)


def test_best_of_all_evaluations_is_kept(whole, tmp_path):
  folder, _ = whole
  record = best.read(folder)
  assert (record["step"], record["metric"]) == (8, "heldout/accuracy")
  assert record["value"] == pytest.approx(np.cos(0.8 * 8), abs=1e-6)
  assert kept(folder) == [8, 10, 14]
  run(tmp_path, total_steps=12, best_is="min")
  assert best.find(tmp_path, kept(tmp_path)).step == 4
  assert kept(tmp_path) == [4, 10, 12]


def test_killed_run_keeps_the_same_best(whole, tmp_path):
  folder, state = whole
  for kill_at in (6, 9, 13):
    with pytest.raises(Killed):
      run(tmp_path, kill_at)
  again = run(tmp_path)
  for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(again)):
    np.testing.assert_array_equal(left, right)
  same = ("metric", "direction", "step", "value")
  a, b = best.read(folder), best.read(tmp_path)
  assert [a[name] for name in same] == [b[name] for name in same]
  assert kept(folder) == kept(tmp_path)


def test_kill_before_the_checkpoint_is_whole(tmp_path):
  run(tmp_path, total_steps=12, best_is="min")
  record = best.read(tmp_path)
  # As it is when a better one was announced, and its write was killed.
  torn = {**record, "step": 13, "value": -2.0}
  before = {name: record[name] for name in ("step", "value")}
  (tmp_path / best.FILE_NAME).write_text(
    json.dumps({**torn, "previous": before})
  )
  assert best.find(tmp_path, kept(tmp_path)).step == record["step"]
  keeper = best.BestKeeper(tmp_path, record["metric"], "min")
  keeper.restore(12, kept(tmp_path))
  assert keeper.best == best.Best(**before)
  assert not keeper.offer(13, {record["metric"]: record["value"]})
  assert not keeper.offer(13, {record["metric"]: float("nan")})
  assert keeper.offer(13, {record["metric"]: -2.0})
  # A checkpoint that is gone is not the best one.
  shutil.rmtree(tmp_path / "checkpoints" / str(record["step"]))
  keeper.restore(12, kept(tmp_path))
  assert keeper.best is None
  with pytest.raises(errors.UserError, match="names step 13.*10, 12"):
    best.find(tmp_path, kept(tmp_path))
  (tmp_path / best.FILE_NAME).write_text('{"step": 1')
  with pytest.raises(errors.UserError, match="best.json: not a record"):
    best.read(tmp_path)


def test_evaluators_run_at_their_own_steps(tmp_path):
  state = run(
    tmp_path, total_steps=7, evaluators=[Outputs()], keep_best_by="outputs/size"
  )
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  found = {r["step"]: r for r in records if r["split"] == "outputs"}
  assert sorted(found) == [3, 6, 7]
  # Rows that only fill the last batch are left out.
  assert found[7]["rows"] == 12
  x = np.concatenate([batch(1001)["x"], batch(1002)["x"][:4]])
  expected = np.abs(x @ np.asarray(state.params["kernel"])).mean()
  assert found[7]["size"] == pytest.approx(expected, rel=1e-5)
  sizes = {step: one["size"] for step, one in found.items()}
  assert best.read(tmp_path)["step"] == min(sizes, key=sizes.get)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (
      {"keep_best_by": "heldout/acuracy"},
      "no such metric; did you mean 'heldout/accuracy'.*there are heldout/acc"
      ".*heldout/loss, heldout/temperature, outputs/size",
    ),
    (
      {"keep_best_by": "heldout/temperature"},
      "not known; set best_is.*heldout/accuracy, heldout/loss, outputs/size",
    ),
    (
      {"held_out": None},
      r"keep_best_by='heldout/accuracy', evaluators=\['outputs'\]: no held-out "
      "data, expected a split",
    ),
    ({"held_out": None, "keep_best_by": ""}, r"^evaluators=\['outputs'\]: no"),
  ],
)
def test_wrong_metrics_stop_before_the_first_step(tmp_path, settings, message):
  with pytest.raises(errors.UserError, match=message):
    run(tmp_path, kill_at=0, evaluators=[Outputs()], **settings)
  with pytest.raises(ValueError, match="best_is='up'"):
    loop.LoopConfig(1, best_is="up")
  with pytest.raises(ValueError, match="heldout"):
    loop.LoopConfig(1, evaluators=[Outputs(name="heldout")])


def test_held_out_data_without_examples_is_an_error_if_it_is_needed(
  tmp_path, caplog
):
  for name, settings in (("best", {}), ("none", {"held_out": None})):
    settings = {"held_out": [], "total_steps": 2} | settings
    if name == "best":
      with pytest.raises(errors.UserError, match="expected examples in their"):
        run(tmp_path / name, **settings)
    run(tmp_path / name, keep_best_by="", **settings)
    assert "nothing is evaluated" in caplog.text
    caplog.clear()


@pytest.mark.parametrize(
  ("name", "direction"),
  [
    ("cross_entropy_level_3", "min"),
    ("loss_minus_chance", "min"),
    ("recall_at_10_text_to_audio", "max"),
    ("si_snr_db", "max"),
    ("noisy_si_snr_db", None),
    ("codebook_usage/03", "max"),
    ("median_rank_audio_to_text", "min"),
    ("gumbel_temperature", None),
  ],
)
def test_directions(name, direction):
  assert metric_directions.direction_of(name) == direction
