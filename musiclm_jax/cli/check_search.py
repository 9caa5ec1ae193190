# SPDX-License-Identifier: Apache-2.0
"""Finds the largest microbatch and the cheapest remat policy that fit.

A request flows in; for each policy the result with most rows that fits flows
out. Each trial is a compilation in a child process.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from musiclm_jax.cli import check_output, checking, children
from musiclm_jax.core import errors
from musiclm_jax.layers import transformer


def with_changes(
  request: checking.Request, changes: tuple[tuple[str, Any], ...]
) -> checking.Request:
  """The request with knobs turned."""
  return dataclasses.replace(request, changes=(*request.changes, *changes))


def _rows(result: checking.Result) -> list[int]:
  """Rows per device that the batch can be cut into, fewest first."""
  whole = result.rows_per_device * result.num_microbatches
  return [rows for rows in range(1, whole + 1) if whole % rows == 0]


def _largest(
  request: checking.Request, rows: Sequence[int]
) -> checking.Result | None:
  """The result with most rows that fits; memory grows with rows."""
  best, low, high = None, 0, len(rows) - 1
  while low <= high:
    # The whole batch first: small models fit.
    middle = (
      high if best is None and high == len(rows) - 1 else (low + high) // 2
    )
    trial = children.call(
      checking.check,
      with_changes(request, (("rows_per_device", rows[middle]),)),
    )
    if trial.program.fits:
      best, low = trial, middle + 1
    else:
      high = middle - 1
  return best


def search(request: checking.Request) -> list[checking.Result]:
  """Per remat policy, the result with the largest microbatch that fits.

  Args:
    request: of a train step.

  Raises:
    UserError: if nothing fits, or it is not a train step.
  """
  if request.what != "train":
    raise errors.UserError("--search: expected --what=train")
  first = children.call(checking.check, request)
  rows = _rows(first)
  policies = [None]
  if first.remat is not None:
    policies = list(transformer.REMAT_POLICIES)
  found = []
  for policy in policies:
    changes = () if policy is None else (("remat", policy),)
    result = _largest(with_changes(request, changes), rows)
    if result is not None:
      found.append(result)
  if not found:
    raise errors.UserError(
      f"{first.topology.name}: no microbatch of a row fits with any remat "
      "policy; without --search the knobs are listed"
    )
  return found


def best(found: Sequence[checking.Result]) -> checking.Result:
  """The fastest by roofline; of equals the one with most rows."""
  return min(
    found, key=lambda r: (round(r.roofline_seconds, 6), -r.rows_per_device)
  )


def bindings(result: checking.Result) -> str:
  """Options that make a training of what was found."""
  options = [
    f"--gin.experiment.Experiment.rows_per_device={result.rows_per_device}"
  ]
  if result.remat is not None:
    options.append(f"--gin.transformer.TransformerConfig.remat={result.remat}")
  return " ".join(options)


def table(found: Sequence[checking.Result]) -> str:
  """All candidates for people; the best is marked."""
  chosen = best(found)
  lines = ["  remat          rows  microbatches      peak  roofline    MFU"]
  for result in found:
    mark = "*" if result is chosen else " "
    lines.append(
      f"{mark} {result.remat or '-':13}{result.rows_per_device:6}"
      f"{result.num_microbatches:14}"
      f"{check_output.gib(result.program.memory.peak):>10}"
      f"{result.roofline_seconds * 1e3:7.1f} ms{result.predicted_mfu:7.1%}"
    )
  lines.append(f"to train so: {bindings(chosen)}")
  return "\n".join(lines) + "\n"
