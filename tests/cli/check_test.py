# SPDX-License-Identifier: Apache-2.0
"""`musiclm check`: configurations without data, verdicts, golden values."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from musiclm_jax.cli import (
  check_output,
  check_search,
  checking,
  children,
  scaling_tables,
)
from musiclm_jax.core import errors
from musiclm_jax.partitioning import mesh, partitioner, topologies
from musiclm_jax.training import aot, program_cost

ROOT = pathlib.Path(__file__).resolve().parents[2]
STAGE = "experiments/musiclm_semantic_tiny_score_corpus.gin"
# Recompiled by the test; each is a few seconds of work.
GOLDEN = ("semantic on v5p-128", "fine on 4 x v5e-256")
COMPARED = (
  "peak_bytes",
  "executed_flops_per_chip",
  "hbm_bytes_accessed",
  "collective_bytes",
  "roofline_seconds",
)
needs_compiler = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs libtpu"
)


def _request(*overrides, what="train"):
  topology = topologies.parse("v5e-4")
  return checking.Request((STAGE,), overrides, topology, what=what)


def _result(peak_gib, knobs=()):
  memory = aot.Memory(0, 0, int(peak_gib * 2**30), 16 * 2**30)
  cost = program_cost.Cost(197e12, 819e9 / 2, ())
  program = aot.Program(memory, cost, 1.0, 1.0)
  return checking.Result(
    _request(), {"data": 4}, 8, 1, 2, 10, 197e12, program, knobs=knobs
  )


def test_loads_without_data_or_cache(monkeypatch):
  monkeypatch.chdir(ROOT)
  run = checking.load(_request())
  assert run.data is None and run.exporter is None
  assert run.trainable.layout.target_stream.codebook_size == 1024
  with pytest.raises(errors.UserError, match="did you mean 'BATCH_SIZE'"):
    checking.load(_request("BATCH_SIZ=3"))


def test_roofline_is_the_longest_resource():
  result = _result(8.0)
  assert result.bound == "compute"
  assert result.roofline_seconds == pytest.approx(1.0)
  # A quarter of the peak of 4 chips; HBM would take half a second more.
  assert result.predicted_mfu == pytest.approx(0.25)
  assert result.pessimistic_mfu == pytest.approx(0.25 / 1.5)
  assert result.program.fits


def test_knobs_are_ranked_by_what_they_save():
  knobs = (("a", ()), ("b", ()), ("c", ()), ("d", ()))
  result = _result(20.0, knobs)
  others = [_result(18.0), _result(12.0), ValueError("no"), _result(21.0)]
  found = checking.savings(result, others)
  assert [saving.text for saving in found] == ["b", "a"]
  text = check_output.knobs(found)
  assert "1. b: saves 8.00 GiB, then it fits" in text
  assert "2. a: saves 2.00 GiB, not enough alone" in text
  assert "NO: 4.00 GiB over" in check_output.table(result)


def test_knobs_change_the_experiment(monkeypatch):
  monkeypatch.chdir(ROOT)
  run = checking.load(_request())
  changes = (("rows_per_device", 2), ("remat", "full"), ("optimizer", "adam"))
  new = checking.changed(run, changes)
  assert new.rows_per_device == 2
  assert new.trainable.config.transformer.remat == "full"
  assert new.optimizer.name == "adam"
  assert run.trainable.config.transformer.remat == "none"


def test_what_a_search_finds_is_what_training_does(monkeypatch):
  monkeypatch.chdir(ROOT)
  run = checking.load(_request("BATCH_SIZE=12"))
  placing = partitioner.Partitioner(mesh.MeshConfig(data=1), jax.devices()[:1])
  found = dataclasses.replace(_result(8.0), rows_per_device=12, remat="full")
  assert check_search._rows(found) == [1, 2, 3, 4, 6, 12]
  for rows in check_search._rows(found):
    changed = checking.changed(run, (("rows_per_device", rows),))
    assert changed.loop_on(placing).num_microbatches == 12 // rows
  found = dataclasses.replace(found, rows_per_device=3, num_microbatches=4)
  options = check_search.bindings(found).replace("--gin.", "").split()
  assert check_search.bindings(found) in check_search.table([found])
  run = checking.load(_request("BATCH_SIZE=12", *options))
  assert run.loop_on(placing).num_microbatches == 4
  assert run.trainable.config.transformer.remat == "full"


def test_child_returns_values_and_errors():
  def fail():
    raise errors.UserError("wrong")

  assert children.call(lambda x: x + 1, 2) == 3
  with pytest.raises(errors.UserError, match="wrong"):
    children.call(fail)
  with pytest.raises(RuntimeError, match="status"):
    children.call(os._exit, 7)


def _check(tmp_path, *options):
  path = tmp_path / "check.json"
  done = subprocess.run(
    [
      *(sys.executable, "-m", "musiclm_jax.cli.main", "check"),
      *options,
      f"--json={path}",
    ],
    cwd=ROOT,
    # The TPU's compiler does not know flags of the CPU's (conftest.py).
    env={**os.environ, "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert path.exists(), done.stderr
  return done, json.loads(path.read_text())


@needs_compiler
def test_refuses_what_does_not_fit(tmp_path):
  done, values = _check(
    tmp_path,
    f"--gin_file={STAGE}",
    "--topology=v5e:1x1",
    "--gin.BATCH_SIZE=4096",
    "--gin.transformer.TransformerConfig.num_layers=2",
  )
  assert done.returncode == 1
  assert not values["fits"] and values["over_bytes"] > 0
  # The new state takes the place of the old one: parameters, two moments.
  state_bytes = 12 * values["parameters"]
  assert state_bytes <= values["donated_bytes"] < 1.2 * state_bytes
  assert values["donated_bytes"] < values["argument_bytes"]
  assert "GiB over" in done.stdout
  assert "what would help most" in done.stdout
  assert "experiment.Experiment.rows_per_device=2048: saves" in done.stdout


@needs_compiler
@pytest.mark.parametrize("key", GOLDEN)
def test_golden_cases_have_not_become_worse(tmp_path, key):
  (case,) = (c for c in scaling_tables.cases() if c.key == key)
  golden = scaling_tables.read(ROOT / "docs")[key]
  _, values = _check(
    tmp_path,
    *(f"--gin_file={name}" for name in case.gin_files),
    f"--topology={case.topology}",
    f"--num_slices={case.num_slices}",
  )
  assert values["fits"] == golden["fits"]
  worse = {
    name: (golden[name], values[name])
    for name in COMPARED
    if values[name] > 1.05 * golden[name]
  }
  assert not worse, "regenerate docs/scaling.json if this is meant to be"
  assert values["predicted_mfu"] > 0.95 * golden["predicted_mfu"]


_ASKED = """
import jax
import jax.numpy as jnp
from musiclm_jax.partitioning import axes, topologies
from musiclm_jax.training import aot

topologies.prepare_environment()

def function(x):
  print(axes.platform(), axes.is_split("length"))
  return x + 1

shape = jax.ShapeDtypeStruct((8, 128), jnp.float32)
aot.compile_function(function, (shape,), topologies.parse("v5e-4"))
"""


@needs_compiler
def test_layers_of_a_decode_step_know_that_it_is_for_a_tpu():
  done = subprocess.run(
    [sys.executable, "-c", _ASKED],
    cwd=ROOT,
    env={**os.environ, "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.stdout.split() == ["tpu", "False"], done.stderr
