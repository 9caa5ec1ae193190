# SPDX-License-Identifier: Apache-2.0
"""Optimizers and learning-rate schedules, from optax."""

import dataclasses
from typing import Any

import jax
import optax

_NAMES = ("adam", "adamw", "adafactor")
_SCHEDULES = ("constant", "cosine", "linear", "rsqrt")
# Weight decay is for products only: neither biases, norms nor tables of
# relative positions.
_DECAYED = ("kernel", "embedding")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """What updates the parameters.

  Attributes:
    name: 'adam', 'adamw' or 'adafactor'.
    learning_rate: peak rate.
    schedule: 'constant', 'cosine', 'linear' or 'rsqrt', after the warm-up.
    warmup_steps: linear rise from 0.
    total_steps: where 'cosine' and 'linear' reach `final_fraction`.
    final_fraction: of the peak rate, at the end.
    beta1: first-moment decay.
    beta2: second-moment decay.
    weight_decay: decoupled, on parameters named '*kernel' or '*embedding'
      ('adamw'); token tables and output heads of the stages are not.
    clip_norm: global gradient norm is clipped to this; 0 turns it off.
    groups: top-level names of parameters with a clip and state each (the
      players of a GAN); empty for one group.
    rate_scales: pairs of a path of parameters, as 'text/bert', and a factor on
      their learning rate, at most 1: for a part that starts from trained
      weights. 0 freezes it.
  """

  name: str = "adamw"
  learning_rate: float = 1e-3
  schedule: str = "cosine"
  warmup_steps: int = 100
  total_steps: int = 1000
  final_fraction: float = 0.1
  beta1: float = 0.9
  beta2: float = 0.98
  weight_decay: float = 0.01
  clip_norm: float = 1.0
  groups: tuple[str, ...] = ()
  rate_scales: tuple[tuple[str, float], ...] = ()

  def __post_init__(self):
    object.__setattr__(self, "groups", tuple(self.groups))
    scales = tuple((path, float(scale)) for path, scale in self.rate_scales)
    object.__setattr__(self, "rate_scales", scales)
    if any(not 0 <= scale <= 1 for _, scale in scales):
      raise ValueError(f"rate_scales={scales}: expected factors in [0, 1]")
    if scales and self.groups:
      raise ValueError(
        f"rate_scales={scales} with groups={self.groups}: expected one of both"
      )
    if self.name not in _NAMES:
      raise ValueError(f"name={self.name!r}: expected one of {_NAMES}")
    if self.schedule not in _SCHEDULES:
      raise ValueError(
        f"schedule={self.schedule!r}: expected one of {_SCHEDULES}"
      )
    if not self.learning_rate > 0:
      raise ValueError(f"learning_rate={self.learning_rate}: expected > 0")
    if self.total_steps < 1:
      raise ValueError(f"total_steps={self.total_steps}: expected >= 1")


def make_schedule(config: OptimizerConfig) -> optax.Schedule:
  """Learning rate as a function of the optimizer step."""
  peak, warmup = config.learning_rate, config.warmup_steps
  decay_steps = max(1, config.total_steps - warmup)
  if config.schedule == "constant":
    after = optax.constant_schedule(peak)
  elif config.schedule == "cosine":
    after = optax.cosine_decay_schedule(
      peak, decay_steps, alpha=config.final_fraction
    )
  elif config.schedule == "linear":
    after = optax.linear_schedule(
      peak, peak * config.final_fraction, decay_steps
    )
  else:
    offset = max(warmup, 1)

    def after(step):
      return peak * (offset / (offset + step)) ** 0.5

  if not warmup:
    return after
  rise = optax.linear_schedule(0.0, peak, warmup)
  return optax.join_schedules([rise, after], [warmup])


def _decay_mask(params: Any) -> Any:
  def decayed(path, leaf):
    del leaf
    names = [str(getattr(entry, "key", entry)) for entry in path]
    return any(name.endswith(suffix) for name in names for suffix in _DECAYED)

  return jax.tree_util.tree_map_with_path(decayed, params)


def _scale_rates(
  scales: tuple[tuple[str, float], ...],
) -> optax.GradientTransformation:
  """Multiplies finished updates below some paths; keeps no state."""

  def scaled(updates):
    found = set()

    def scale(path, update):
      name = "/".join(str(getattr(entry, "key", entry)) for entry in path) + "/"
      for prefix, factor in scales:
        if name.startswith(f"{prefix}/"):
          found.add(prefix)
          update = update * factor
      return update

    updates = jax.tree_util.tree_map_with_path(scale, updates)
    missing = [prefix for prefix, _ in scales if prefix not in found]
    if missing:
      raise ValueError(
        f"rate_scales: no parameter below {missing[0]!r}: expected a path such "
        "as 'text/bert'"
      )
    return updates

  return optax.stateless(lambda updates, params: scaled(updates))


def _single(config: OptimizerConfig) -> optax.GradientTransformation:
  schedule = make_schedule(config)
  parts = []
  if config.clip_norm:
    parts.append(optax.clip_by_global_norm(config.clip_norm))
  if config.name == "adafactor":
    parts.append(optax.adafactor(schedule, clipping_threshold=None))
  elif config.name == "adamw":
    parts.append(
      optax.adamw(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        weight_decay=config.weight_decay,
        mask=_decay_mask,
      )
    )
  else:
    parts.append(optax.adam(schedule, b1=config.beta1, b2=config.beta2))
  if config.rate_scales:
    parts.append(_scale_rates(config.rate_scales))
  return optax.chain(*parts)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
  """Clip, then the optimizer; one of each per group where groups are named."""
  if not config.groups:
    return _single(config)
  parts = {name: _single(config) for name in config.groups}

  # Not optax.multi_transform: the holes it leaves in each group's state have
  # no place in a tree of shardings.
  def init(params):
    return {name: part.init(params[name]) for name, part in parts.items()}

  def update(updates, state, params=None):
    results = {
      name: part.update(
        updates[name], state[name], None if params is None else params[name]
      )
      for name, part in parts.items()
    }
    return (
      {name: result[0] for name, result in results.items()},
      {name: result[1] for name, result in results.items()},
    )

  return optax.GradientTransformation(init, update)
