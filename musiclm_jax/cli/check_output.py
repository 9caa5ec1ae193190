# SPDX-License-Identifier: Apache-2.0
"""What `musiclm check` prints and writes."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from musiclm_jax.cli import checking
from musiclm_jax.partitioning import topologies


def to_json(result: checking.Result) -> dict[str, Any]:
  """The result as plain data."""
  memory, cost = result.program.memory, result.program.cost
  return {
    "fits": result.program.fits,
    "hbm_bytes": memory.budget,
    "peak_bytes": memory.peak,
    "parameters": result.parameters,
    "flops_per_step": result.model_flops,
    "hbm_bytes_accessed": cost.hbm_bytes,
    "collective_bytes": result.collective_bytes,
    "bound": result.bound,
    "roofline_seconds": result.roofline_seconds,
    "predicted_mfu": result.predicted_mfu,
    "compile_seconds": result.program.compile_seconds,
    "num_devices": result.topology.num_devices,
    # More than was asked for.
    "what": result.request.what,
    "gin_files": list(result.request.gin_files),
    "topology": result.topology.name,
    "mesh": result.mesh_shape,
    "global_batch_size": result.global_batch_size,
    "num_microbatches": result.num_microbatches,
    "remat": result.remat,
    "argument_bytes": memory.arguments,
    "donated_bytes": memory.donated,
    "temporary_bytes": memory.temporaries,
    "over_bytes": memory.over,
    "executed_flops_per_chip": cost.flops,
    "seconds": result.seconds,
    "pessimistic_mfu": result.pessimistic_mfu,
    "collectives": [dataclasses.asdict(entry) for entry in cost.collectives],
    "uncounted_kernels": cost.uncounted_kernels,
    "compile_cpu_seconds": result.program.cpu_seconds,
  }


def write_json(result: checking.Result, path: str) -> None:
  """Writes `to_json` as a file."""
  target = pathlib.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  target.write_text(json.dumps(to_json(result), indent=2) + "\n")


def gib(num_bytes: float) -> str:
  """Bytes for people."""
  return f"{num_bytes / topologies.GIB:.2f} GiB"


def _head(result: checking.Result) -> list[tuple[str, str]]:
  memory, chips = result.program.memory, result.topology.num_devices
  mesh = " ".join(f"{k}={v}" for k, v in result.mesh_shape.items())
  batch = f"{result.global_batch_size} rows"
  if result.request.what == "train":
    batch += (
      f", {result.num_microbatches} microbatch(es), {result.rows_per_device} "
      "row(s) on a device at a time"
    )
  rows = [
    ("step", result.request.what),
    ("topology", f"{result.topology.name}: {chips} chips, mesh {mesh}"),
    ("batch", batch),
    ("parameters", f"{result.parameters:,}"),
  ]
  if result.remat:
    rows.append(("remat", result.remat))
  return [
    *rows,
    ("compiled in", f"{result.program.compile_seconds:.0f} s"),
    (
      "arguments",
      f"{gib(memory.arguments)} per chip, {gib(memory.donated)} of it donated",
    ),
    ("temporaries", f"{gib(memory.temporaries)} per chip"),
    ("peak", f"{gib(memory.peak)} of {gib(memory.budget)} per chip"),
    (
      "model FLOPs",
      f"{result.model_flops / 1e12:.2f} T per step, "
      f"{result.model_flops / chips / 1e12:.3f} T per chip",
    ),
  ]


def table(result: checking.Result) -> str:
  """The result for people."""
  memory, cost = result.program.memory, result.program.cost
  ms = {
    name: f"{value * 1e3:9.2f} ms" for name, value in result.seconds.items()
  }
  rows = [
    *_head(result),
    ("compute", f"{ms['compute']}  {cost.flops / 1e12:.3f} TFLOP executed"),
    ("HBM", f"{ms['hbm']}  {cost.hbm_bytes / 1e9:.2f} GB"),
  ]
  for network in ("ici", "dcn"):
    found = checking.by_network(result, network)
    total = sum(entry.num_bytes for entry in found)
    rows.append((network.upper(), f"{ms[network]}  {total / 1e9:.3f} GB"))
    rows += [
      (
        f"  {entry.kind}",
        f"{entry.seconds * 1e3:9.2f} ms  {entry.num_bytes / 1e9:.3f} GB in "
        f"{entry.count}, over {entry.axes}",
      )
      for entry in found
    ]
  roofline = result.roofline_seconds
  rows.append(("roofline", f"{roofline * 1e3:9.2f} ms  bound: {result.bound}"))
  if result.audio_secs:
    speed = result.rows_per_device * result.audio_secs / roofline
    rows.append(("audio", f"{speed:.0f} s of audio per second and chip"))
  mfu = f"{result.predicted_mfu:.1%} if all overlaps, "
  rows.append(("predicted MFU", f"{mfu}{result.pessimistic_mfu:.1%} if none"))
  if cost.uncounted_kernels:
    rows.append(
      (
        "CAUTION",
        f"{cost.uncounted_kernels} runs of kernels that do not say their "
        "FLOPs: compute is more than shown",
      )
    )
  fits = "yes" if result.program.fits else f"NO: {gib(memory.over)} over"
  rows.append(("fits", fits))
  return "\n".join(f"{name:18}{value}" for name, value in rows)


def knobs(savings: Sequence[checking.Saving]) -> str:
  """The three changes that save most."""
  if not savings:
    return "no knob saves memory: take more chips"
  lines = ["what would help most, each compiled:"]
  for rank, saving in enumerate(savings[:3], 1):
    fits = "then it fits" if saving.fits else "not enough alone"
    lines.append(
      f"  {rank}. {saving.text}: saves {gib(saving.num_bytes)}, {fits}, "
      f"MFU {saving.predicted_mfu:.1%}"
    )
  return "\n".join(lines)
