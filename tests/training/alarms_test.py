# SPDX-License-Identifier: Apache-2.0
"""Alarms: conditions, patience, once each; what went bad first; the loop."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.core import alarms as rules_lib
from musiclm_jax.core import protocols
from musiclm_jax.partitioning import axes, mesh, partitioner
from musiclm_jax.training import alarms, ledger, loop, optimizers


def rule(condition, threshold, **options):
  options = {"metric": "loss", "message": "Do less.", **options}
  return rules_lib.AlarmRule(
    "x", condition=condition, threshold=threshold, **options
  )


def steps_of(rules, values, split="train"):
  """Steps (10, 20, ...) at which a new alarm comes."""
  watch = alarms.Alarms([rules])
  return [
    10 * (i + 1)
    for i, value in enumerate(values)
    if watch.check(10 * (i + 1), {"loss": value, "other": 99.0}, split)
  ]


@pytest.mark.parametrize(
  ("one", "expected"),
  [
    (rule("below", 0.5), [10, 40]),
    (rule("above", 0.5), [30]),
    (rule("near", 0.4, tolerance=0.15), [10, 50]),
    (rule("risen", 4.0), [30]),
    (rule("risen", 2.5), [30, 50]),
    (rule("grown", 4.0), []),
    (rule("below", 0.5, patience_steps=10), [20, 50]),
    (rule("below", 0.5, patience_steps=30), []),
    (rule("below", 0.5, after_step=10), [20, 40]),
    (rule("below", 0.5, until_step=30), [10]),
    (rule("below", 0.5, split="heldout"), []),
    (rule("above", 50.0, metric="oth?r"), [10]),
  ],
)
def test_a_rule_holds_once_until_it_ends(one, expected):
  assert steps_of(one, [0.4, 0.2, 1.0, 0.1, 0.3]) == expected


def test_the_smallest_value_is_never_forgotten():
  # From 1 slowly up to 2: no value is far above those just before it.
  slow = list(1.0 + np.arange(1000) / 1000)
  assert steps_of(rule("risen", 1.5), slow) == [5020]


def test_a_stop_by_an_alarm_is_booked_as_such():
  assert ledger.cause_of(alarms.Diverged("x")) == "stopped by an alarm"
  assert ledger.cause_of(FloatingPointError("x")) == "not finite"


def test_nan_and_first_values_raise_nothing():
  for condition in rules_lib.CONDITIONS:
    assert steps_of(rule(condition, 2.0), [np.nan]) == []
  assert steps_of(rule("risen", 2.0), [1e9, 1e9]) == []


def test_growth_is_told_from_the_median():
  # A silent window is no reason to cry later; a loud one is.
  values = [1.0, 1.1, 1e-6, 0.9, 1.0, 30.0]
  assert steps_of(rule("grown", 10.0), values) == [60]
  assert steps_of(rule("risen", 10.0), values) == [40]


def test_each_metric_of_a_pattern_is_watched_by_itself():
  watch = alarms.Alarms([rule("below", 0.1, metric="usage/*")])
  first = watch.check(1, {"usage/00": 0.05, "usage/01": 0.5})
  second = watch.check(2, {"usage/00": 0.05, "usage/01": 0.05})
  assert [a.metric for a in first + second] == ["usage/00", "usage/01"]
  assert "usage/01 is 0.05, below 0.1. Do less." in str(second[0])


def test_bad_rules_are_named():
  with pytest.raises(ValueError, match="condition='over'"):
    rule("over", 1.0)
  with pytest.raises(ValueError, match="threshold=0.5"):
    rule("grown", 0.5)


class _Players:
  loss_terms = {"generator": ("mel", "feature"), "critic": ("hinge",)}


def test_history_names_the_term_and_player_that_left_first():
  history = alarms.History(_Players())
  for step in range(1, 30):
    hinge = 2.0 if step < 20 else 10.0 ** (step - 17)
    mel = 1.0 if step < 23 else 200.0
    feature = 50.0 if step == 5 else 0.5  # a spike that went away
    history.add(step, {"mel": mel, "feature": feature, "hinge": hinge})
  text = history.explain()
  assert "hinge of the critic, 1000 at step 20 where 2 was usual" in text
  assert "after it: mel" in text and "feature" not in text


class Runaway:
  """A loss that its own rule and its own data can blow up."""

  loss_terms = {"walker": ("square",)}

  def input_shapes(self, batch_size):
    return {"x": jax.ShapeDtypeStruct((batch_size, 4), jnp.float32)}

  def init(self, key, batch):
    ones = axes.named(lambda key, shape: jnp.ones(shape), ("embed",))
    return {"params": {"kernel": ones(key, (4,))}}

  def alarm_rules(self, batch_size):
    limit = 100.0 * batch_size
    return [
      rule("above", 30.0),
      rule("above", limit, metric="square", action="stop"),
    ]

  def loss(self, variables, batch, key, step, train):
    loss = jnp.mean((batch["x"] @ variables["params"]["kernel"]) ** 2)
    one = jnp.ones(())
    metrics = {"loss": protocols.Mean(loss, one)}
    metrics["square"] = protocols.Mean(loss, one)
    return loss, protocols.LossOutput({}, metrics)


def _train(folder, sizes, log_every):
  def batches(start):
    for step in range(start, 10**6):
      x = np.full((8, 4), sizes[min(step, len(sizes) - 1)], np.float32)
      yield {"x": x, "example_ids": np.arange(8)}

  return loop.train(
    folder,
    Runaway(),
    batches,
    None,
    loop.LoopConfig(total_steps=len(sizes), log_every_steps=log_every),
    optimizers.OptimizerConfig(total_steps=100, learning_rate=1e-6),
    partitioner.Partitioner(mesh.MeshConfig(data=1)),
  )


def test_the_loop_warns_notes_and_stops_with_the_reason(tmp_path, caplog):
  with pytest.raises(FloatingPointError, match="square of the walker") as error:
    _train(tmp_path, [0.5] * 4 + [2.0, 3.0, 30.0, 1.0], log_every=1)
  assert "square is 1.44e+04, above 800" in str(error.value)
  assert "at step 5 where 4 was usual" in str(error.value)
  warned = [r.message for r in caplog.records if "alarm" in r.message]
  assert len(warned) == 2 and "at step 5" in warned[0]
  notes = [n for n in ledger.read(tmp_path) if n["kind"] == "alarm"]
  assert [n["metric"] for n in notes] == ["loss", "square"]
  assert json.dumps(notes)


def test_a_step_that_is_not_finite_says_what_grew_before(tmp_path):
  sizes = [0.5] * 5 + [4.0, 8.0, np.nan]
  with pytest.raises(
    FloatingPointError,
    match=r"step 8: .*examples.*computed first: square of the walker. First "
    r"to go bad: square of the walker, 256 at step 6 where 4",
  ):
    _train(tmp_path, sizes, log_every=100)
