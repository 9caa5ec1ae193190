# SPDX-License-Identifier: Apache-2.0
"""The fast way to stage batches: the same examples as the seqio task gives."""

import dataclasses
import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf

from musiclm_jax.core import stages
from musiclm_jax.data import (
  example_order,
  loader,
  preprocessors,
  read_ahead,
  tasks,
)

SPEC = stages.coarse_stage(3, 2, 1.0)
UNIQUE = stages.semantic_stage(3, 1.0, unique_consecutive=True)


def make_recipe(small_cache, weights=(), spec=SPEC):
  config = tasks.StageTaskConfig((small_cache,) * 2, spec, weights)
  return tasks.stage_recipe(config)


def take(batches, count):
  return list(itertools.islice(batches, count))


@pytest.mark.parametrize(
  "weights, spec", [((), SPEC), ((3.0, 1.0), SPEC), ((), UNIQUE)]
)
def test_batches_are_those_of_the_task(weights, spec, small_cache):
  recipe = make_recipe(small_cache, weights, spec)
  fast = loader.Loader(recipe, 6, seed=3)
  slow = loader.Loader(dataclasses.replace(recipe, reader=None), 6, seed=3)
  for one, two in [
    (take(data.train_batches(7, 1, 2), 9) for data in (fast, slow)),
    (list(data.eval_batches("train", 0, 2)) for data in (fast, slow)),
  ]:
    assert len(one) == len(two)
    for a, b in zip(one, two):
      assert a.keys() == b.keys()
      for name, array in a.items():
        assert array.dtype == b[name].dtype
        np.testing.assert_array_equal(array, b[name], err_msg=name)


def hashes(data, start, count, num_hosts):
  hosts = [
    take(data.train_batches(start, host, num_hosts), count)
    for host in range(num_hosts)
  ]
  return [loader.batch_hash(rows) for rows in zip(*hosts, strict=True)]


def test_200_steps_are_equal_for_1_2_and_4_hosts(small_cache):
  recipe = make_recipe(small_cache)
  whole = hashes(loader.Loader(recipe, 8, seed=2), 0, 200, 1)
  assert len(set(whole)) == 200
  for num_hosts in (2, 4):
    assert hashes(loader.Loader(recipe, 8, seed=2), 0, 200, num_hosts) == whole
  # Resumed on other numbers of hosts.
  data = loader.Loader(recipe, 8, seed=2)
  parts = [hashes(data, start, 50, n) for start, n in ((0, 4), (50, 1))]
  parts += [hashes(data, start, 50, n) for start, n in ((100, 2), (150, 8))]
  assert list(itertools.chain(*parts)) == whole


def test_two_processes_read_the_rows_of_one(small_cache, tmp_path):
  code = """
import itertools, sys, numpy as np
from musiclm_jax.core import stages
from musiclm_jax.data import loader, tasks
cache, host, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
config = tasks.StageTaskConfig((cache,) * 2, stages.coarse_stage(3, 2, 1.0))
data = loader.Loader(tasks.stage_recipe(config), 8, seed=2)
rows = list(itertools.islice(data.train_batches(0, host, 2), 200))
names = rows[0]
np.savez(out, **{n: np.stack([row[n] for row in rows]) for n in names})
"""
  outs = [tmp_path / f"{host}.npz" for host in range(2)]
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", code, small_cache, str(host), str(out)]
    )
    for host, out in enumerate(outs)
  ]
  assert [process.wait(timeout=280) for process in processes] == [0, 0]
  rows = [dict(np.load(out)) for out in outs]
  found = [
    loader.batch_hash([{n: a[step] for n, a in host.items()} for host in rows])
    for step in range(200)
  ]
  data = loader.Loader(make_recipe(small_cache), 8, seed=2)
  assert found == hashes(data, 0, 200, 1)


def test_draws_are_those_of_tensorflow():
  rng = np.random.default_rng(0)
  seeds = rng.integers(0, 2**31, (40, 2))
  counts = rng.integers(1, 10**6, 40)
  expected = [
    int(
      preprocessors._draw_int(
        {"crop_seed": tf.constant(seed, tf.int32)}, "crop", int(count)
      )
    )
    for seed, count in zip(seeds, counts)
  ]
  found = preprocessors.draw_ints(seeds, "crop", counts)
  assert found.tolist() == expected
  assert preprocessors.draw_ints(seeds, "gain", counts).tolist() != expected


@pytest.mark.parametrize("sizes", [[1], [2, 3], [7, 190], [100_003]])
@pytest.mark.parametrize("shuffle", [True, False])
def test_positions_are_those_of_one_by_one(sizes, shuffle):
  order = example_order.ExampleOrder(sizes, 11, (), shuffle)
  keys = np.concatenate([np.arange(50), 10**12 + np.arange(50)])
  expected = [order.position(int(key)) for key in keys]
  assert order.positions(keys).tolist() == expected


def test_read_ahead_keeps_order_and_errors_and_stops():
  def numbers():
    yield from range(5)
    raise ValueError("after five")

  found = []
  with pytest.raises(ValueError, match="after five"):
    for number in read_ahead.read_ahead(numbers(), 2):
      found.append(number)
  assert found == list(range(5))
  assert list(read_ahead.read_ahead(iter(range(9)), 3)) == list(range(9))
  endless = read_ahead.read_ahead(itertools.count(), 2)
  assert next(endless) == 0
  endless.close()
  names = [thread.name for thread in threading.enumerate()]
  assert "read_ahead" not in names
