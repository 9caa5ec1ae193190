# SPDX-License-Identifier: Apache-2.0
"""Which dtype is used where."""

import dataclasses

import jax.numpy as jnp

_DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Precision:
  """Dtypes by role; logits, softmax, losses, STFT and codec stay float32.

  Attributes:
    param: stored parameters and optimizer state.
    compute: activations and products (bfloat16 on TPU, float32 on CPU).
  """

  param: str = "float32"
  compute: str = "float32"

  def __post_init__(self):
    for field in ("param", "compute"):
      if getattr(self, field) not in _DTYPES:
        raise ValueError(
          f"{field}={getattr(self, field)!r}: expected one of {_DTYPES}"
        )

  @property
  def param_dtype(self):
    return jnp.dtype(self.param)

  @property
  def compute_dtype(self):
    return jnp.dtype(self.compute)
