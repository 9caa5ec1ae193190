# SPDX-License-Identifier: Apache-2.0
"""Runs evaluators (`core/evaluator.py`) beside the held-out loss.

Held-out batches flow in, numbers by 'EVALUATOR/NAME' flow out, the same on
every process.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.core import errors, protocols
from musiclm_jax.core import evaluator as evaluator_lib
from musiclm_jax.partitioning import partitioner as partitioner_lib
from musiclm_jax.training import agreement, distributed, evaluation

# Of a batch, 0 on rows that only fill it (`data/features.py`).
_ROW_WEIGHTS = "example_weights"
_TAKEN = ("train", "heldout")


def check_names(evaluators: Sequence[evaluator_lib.Evaluator]) -> None:
  """Raises ValueError if a name is taken twice or by the loop itself."""
  names = [one.name for one in evaluators]
  for name in names:
    if not name or "/" in name or name in _TAKEN or names.count(name) > 1:
      raise ValueError(
        f"evaluators={names}: expected different names without '/', other "
        f"than {_TAKEN}"
      )


class Running:
  """One evaluator, its program compiled once."""

  def __init__(
    self,
    evaluator: evaluator_lib.Evaluator,
    trainable: protocols.Trainable,
    partitioner: partitioner_lib.Partitioner,
  ):
    """Binds an evaluator to what is trained.

    Raises:
      UserError: if the trainable does not have what it measures.
    """
    self._evaluator, self._partitioner = evaluator, partitioner
    if not evaluator.fits(trainable):
      raise errors.UserError(
        f"evaluator {evaluator.name!r} does not fit this experiment: "
        f"{type(trainable).__name__} does not have what it measures"
      )

    def program(variables, batch, key):
      weights = batch.get(_ROW_WEIGHTS)
      if weights is None:
        rows = len(next(iter(batch.values())))
        weights = jnp.ones(rows, jnp.float32)
      return evaluator.rows(trainable, variables, batch, key), weights

    self._program = partitioner.jit(
      program, out_shardings=partitioner.replicated
    )
    self._is_compiled = False

  def __call__(
    self,
    variables: Any,
    batches: Iterator[Mapping[str, np.ndarray]],
    names: Sequence[str],
    key: jax.Array,
  ) -> dict[str, float]:
    """Metrics by name, without the evaluator's.

    Raises:
      UserError: if there is no row to evaluate.
    """
    parts = []
    # Of a job with several processes, those that lack a batch add nothing.
    wanted = [*names, _ROW_WEIGHTS]
    for index, host_batch in enumerate(evaluation.in_step(batches, wanted)):
      if self._evaluator.num_batches and index >= self._evaluator.num_batches:
        break
      have = [name for name in wanted if name in host_batch or name in names]
      batch = evaluation.device_batch(host_batch, have, self._partitioner)
      args = (variables, batch, jax.random.fold_in(key, index))
      if not self._is_compiled and distributed.is_multi_process():
        agreement.compile_together(self._program, *args)
      self._is_compiled = True
      rows, weights = jax.device_get(self._program(*args))
      parts.append(jax.tree.map(lambda x, keep=weights > 0: x[keep], rows))
    if not parts or not len(jax.tree.leaves(parts[0])[0]):
      raise errors.UserError(
        f"evaluator {self._evaluator.name!r}: no held-out examples"
      )
    rows = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    return self._evaluator.score(rows)

  def is_due(self, step: int, is_heldout: bool, is_last: bool) -> bool:
    """Whether to run after `step` steps.

    Args:
      step: steps done.
      is_heldout: whether the held-out loss is computed now.
      is_last: whether it was the last step.
    """
    every = self._evaluator.every_steps
    return is_last or (step % every == 0 if every else is_heldout)

  @property
  def name(self) -> str:
    return self._evaluator.name


def known_metrics(
  eval_step: Callable[..., Any],
  args: Sequence[Any],
  evaluators: Sequence[evaluator_lib.Evaluator],
  direction_of: Callable[[str], str | None],
) -> dict[str, str | None]:
  """Every metric that evaluations will have; nothing is computed.

  Args:
    eval_step: jitted, of the trainable.
    args: of `eval_step`, or their shapes.
    evaluators: of the run.
    direction_of: of a metric of the trainable.

  Returns:
    'min', 'max' or None, by 'heldout/NAME' or 'EVALUATOR/NAME'.
  """
  names = eval_step.eval_shape(*args)
  known = {f"heldout/{name}": direction_of(name) for name in names}
  for one in evaluators:
    for name, direction in one.directions.items():
      known[f"{one.name}/{name}"] = direction
  return known
