# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in one process: bad steps, full disks, stalls; profiles."""

import json
import logging
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.core import errors, protocols
from musiclm_jax.partitioning import axes, mesh, partitioner
from musiclm_jax.training import (
  checkpoints,
  compile_cache,
  distributed,
  goodput,
  ledger,
  loop,
  optimizers,
  preemption,
  profiling,
  skips,
  supervisor,
  watchdog,
)


class Line:
  """A linear model with ballast, whose loss is NaN where the data is."""

  def __init__(self, ballast=1):
    self.ballast = ballast

  def input_shapes(self, batch_size):
    return {"x": jax.ShapeDtypeStruct((batch_size, 4), jnp.float32)}

  def init(self, key, batch):
    def make(size):
      return axes.named(lambda k, s: jax.random.normal(k, s), ("embed",))(
        key, (size,)
      )

    return {"params": {"kernel": make(4), "ballast": make(self.ballast)}}

  def loss(self, variables, batch, key, step, train):
    noise = 0.1 * jax.random.normal(key, ())
    loss = jnp.mean((batch["x"] @ variables["params"]["kernel"] + noise) ** 2)
    metric = protocols.Mean(loss, jnp.ones(()))
    return loss, protocols.LossOutput({}, {"loss": metric})


def stream(bad=()):
  def batches(start):
    position = start
    while True:
      x = np.random.default_rng(position).normal(size=(8, 4))
      if position in bad:
        x[3] = np.nan
      yield {
        "x": x.astype(np.float32),
        "example_ids": np.arange(8) + 1000 * position,
      }
      position += 1

  return batches


def run(model_dir, total_steps=12, bad=(), trainable=None, every=4, **options):
  checkpointing = checkpoints.CheckpointConfig(every_steps=every, every_secs=0)
  checkpointing = options.pop("checkpointing", checkpointing)
  return loop.train(
    model_dir,
    trainable or Line(),
    stream(bad),
    None,
    loop.LoopConfig(
      total_steps, log_every_steps=3, checkpointing=checkpointing
    ),
    optimizers.OptimizerConfig(total_steps=12, learning_rate=0.1),
    partitioner.Partitioner(mesh.MeshConfig(data=1)),
    loop.RunOptions(**options),
  )


def assert_same(a, b):
  for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


def test_rollback_leaves_the_batch_out_for_good(tmp_path):
  whole = run(tmp_path / "a", bad=(6,), rollback=True)
  assert [one["batch"] for one in skips.read(tmp_path / "a")] == [6]
  assert "6003" in skips.read(tmp_path / "a")[0]["reason"]
  # A resume before the place of the bad batch takes the same batches, and
  # needs no rollback any more.
  run(tmp_path / "b", 5, bad=(6,), rollback=True)
  (tmp_path / "b" / skips.FILE_NAME).write_text(
    (tmp_path / "a" / skips.FILE_NAME).read_text()
  )
  assert_same(whole, run(tmp_path / "b", bad=(6,)))
  kinds = [line["kind"] for line in ledger.read(tmp_path / "b")]
  assert "rollback" not in kinds
  # The steps done twice are lost, and all adds up.
  lines = ledger.read(tmp_path / "a")
  assert next(o["step"] for o in lines if o["kind"] == "rollback") == 4
  secs = goodput.summary(tmp_path / "a")
  assert secs["lost"] > 0
  # Metrics read like those of an unbroken run.
  text = (tmp_path / "a" / "metrics.jsonl").read_text()
  steps = [json.loads(line)["step"] for line in text.splitlines()]
  assert steps == [3, 6, 9, 12]


def test_skips_shift_the_stream():
  taken = skips.without(lambda start: iter(range(start, 99)), [2, 3, 7], 0)
  whole = [next(taken) for _ in range(8)]
  assert whole == [0, 1, 4, 5, 6, 8, 9, 10]
  for step in range(8):
    later = skips.without(lambda start: iter(range(start, 99)), [2, 3, 7], step)
    assert next(later) == whole[step] == skips.batch_at(step, [7, 2, 3])


def test_rollback_gives_up_in_the_end(tmp_path):
  with pytest.raises(FloatingPointError, match="step 6"):
    run(tmp_path, bad=range(5, 99), rollback=True, max_rollbacks=2)
  assert len(skips.read(tmp_path)) == 2


def test_full_disk_keeps_the_checkpoint_before(tmp_path):
  heavy = Line(ballast=200_000)
  good = run(tmp_path, 4, trainable=heavy)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  # No file may grow past this, as on a disk with so much room left.
  resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
  try:
    with pytest.raises(errors.RetryError, match="checkpoint 8.*one is 4"):
      run(tmp_path, 12, trainable=heavy)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert ledger.read(tmp_path)[-1]["cause"] == "RetryError"
  assert checkpoints.latest_step(tmp_path) == 4
  assert not list((tmp_path / "checkpoints").glob("*tmp*"))
  assert_same(good.params, run(tmp_path, 4, trainable=heavy).params)


def test_temporary_checkpoints_go_by_the_clock(tmp_path):
  config = checkpoints.CheckpointConfig(every_steps=5, keep=2, every_secs=1e-6)
  run(tmp_path, 11, checkpointing=config)
  found = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
  # 3, 6 and 9 were overdue, 5 and 10 regular, 11 the end.
  assert found == [5, 10, 11]


@pytest.mark.parametrize(
  "steps, stay",
  [
    ((3, 5), {3, 5} - {3}),
    ((5, 7), {5, 7}),
    ((5, 10, 12, 15, 16), {10, 15, 16}),
    ((5, 10, 15, 20), {10, 15, 20}),
  ],
)
def test_retention_is_a_function_of_the_steps(steps, stay):
  config = checkpoints.CheckpointConfig(5, keep=2, keep_every_steps=10)
  assert config.kept(steps) == stay | {s for s in steps if s % 10 == 0}


def test_stall_writes_stacks(tmp_path, capfd):
  with watchdog.Watchdog(tmp_path, lambda: "data_wait", 0.2, 0) as dog:
    dog.beat(7)
    deadline = time.monotonic() + 20
    while not list((tmp_path / "stalls").glob("*")):
      assert time.monotonic() < deadline
      time.sleep(0.05)
    dog.beat(8)
  text = next((tmp_path / "stalls").glob("process_0_step_7.txt")).read_text()
  assert "test_stall_writes_stacks" in text
  assert "test_stall_writes_stacks" in capfd.readouterr().err


def test_profile_of_a_window(tmp_path):
  run(tmp_path, 6, profile_steps=(2, 4))
  found = list((tmp_path / "tensorboard").rglob("*.xplane.pb"))
  assert len(found) == 1
  with pytest.raises(errors.UserError, match="15:10"):
    profiling.parse_window("15:10")


def test_compile_cache_says_hit_or_miss(tmp_path, caplog):
  names = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
  )
  before = {name: getattr(jax.config, name) for name in names}
  caplog.set_level(logging.INFO, logger="absl")
  compile_cache.enable(tmp_path / "cache")
  jax.config.update(names[1], 0)
  try:
    for outcome in ("miss", "hit"):
      with compile_cache.logged("sines"):
        jax.jit(lambda x: jnp.sin(jnp.sin(x)) @ x)(jnp.eye(7))
      assert f"compile cache {outcome}" in caplog.records[-1].message
      jax.clear_caches()
  finally:
    for name, value in before.items():
      jax.config.update(name, value)


def test_maintenance_notice_saves_and_stops(tmp_path, monkeypatch):
  notice = tmp_path / "notice"
  notice.write_text("NONE\n")
  monkeypatch.setenv(preemption.NOTICE_VARIABLE, str(notice))
  monkeypatch.setattr(preemption, "_POLL_SECS", 0.05)

  def announced(start):
    for step, batch in enumerate(stream()(start), start):
      if step == 4:
        notice.write_text("TERMINATE_ON_HOST_MAINTENANCE")
      time.sleep(0.01 if step < 4 else 0.05)
      yield batch

  with pytest.raises(errors.Preempted, match="saved step") as caught:
    loop.train(
      tmp_path / "run",
      Line(),
      announced,
      None,
      loop.LoopConfig(total_steps=10**6),
      optimizers.OptimizerConfig(),
      partitioner.Partitioner(mesh.MeshConfig(data=1)),
    )
  step = checkpoints.latest_step(tmp_path / "run")
  assert f"saved step {step} " in str(caught.value) and step > 4
  assert ledger.read(tmp_path / "run")[-1]["cause"] == "preempted"


@pytest.mark.parametrize(
  "text, expected",
  [
    (
      "DEADLINE_EXCEEDED: Barrier timed out.\n# of tasks that reached the "
      "barrier: 1/4.\nThe first task at the barrier: 0. Some timed out task "
      "names:\n3\n1\n\nRPC: /xla.coordination.CoordinationService/RegisterTask",
      "processes 1, 3 did not come in time to start",
    ),
    (
      "UNAVAILABLE: The following tasks are unhealthy (stopped sending "
      "heartbeats):\n2\nThe tasks have crashed.",
      "lost process 2: no sign of life any more",
    ),
    ("Polled an error from", "lost process 0, the coordinator at h:1"),
    ("free(): invalid pointer", "process 1 was ended by SIGABRT"),
  ],
)
def test_supervisor_says_who_is_lost(text, expected):
  assert supervisor.explain(text, 1, "h:1", "SIGABRT") == expected


@pytest.mark.parametrize(
  "values, expected",
  [
    (("h:1", 2, 2), "process_id=2"),
    (("h", 2, 0), "host:port"),
    ((None, 2, None), "expected all three"),
  ],
)
def test_half_a_cluster_is_refused(values, expected, monkeypatch):
  monkeypatch.setattr(distributed, "_detected", lambda: None)
  with pytest.raises(errors.UserError, match=expected):
    distributed.find_cluster(distributed.ClusterConfig(*values))


def test_cluster_from_the_environment(monkeypatch):
  monkeypatch.setattr(distributed, "_detected", lambda: ("pod:8476", 4, 3))
  found = distributed.find_cluster(distributed.ClusterConfig())
  assert (found.coordinator_address, found.process_id) == ("pod:8476", 3)
  monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
  assert distributed.find_cluster(distributed.ClusterConfig()) is None
