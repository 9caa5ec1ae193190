# SPDX-License-Identifier: Apache-2.0
"""The loader alone: batches of one host, read and thrown away."""

from typing import Any

from musiclm_jax.cli import benchmarking, experiment

# Batches read ahead before the clock starts would flatter a short run.
_NUM_WARM_UP_BATCHES = 8


def run(
  built: experiment.Experiment, timing: benchmarking.Timing
) -> dict[str, Any]:
  """Examples and tokens per second of training batches."""
  batches = built.data.train_batches(0, timing.host_index, timing.num_hosts)
  for _ in range(_NUM_WARM_UP_BATCHES):
    batch = next(batches)
  found = benchmarking.rates(lambda: next(batches), timing)
  batches.close()
  return {
    "global_batch_size": built.loop.global_batch_size,
    "num_hosts": timing.num_hosts,
    **benchmarking.per_batch(found, batch),
  }
