# SPDX-License-Identifier: Apache-2.0
"""What the trainables of acoustic back ends share: shapes, alarms, weights."""

from typing import Any

import jax

from musiclm_jax.core import alarms, protocols
from musiclm_jax.models import acoustic_alarms, code_loss


class AcousticTrainable:
  """Base of `Depthwise` and `SoundStorm`, which add `init` and the loss.

  Attributes:
    config: of the stage and its loss.
    layout: of a crop.
    network: what is trained.
    loss_terms: by level.
  """

  def __init__(self, config: Any, network: Any):
    """Binds a loss to a network.

    Raises:
      ValueError: if the stage is told codes without repeats: back ends add to
        each frame what is told of its instant.
    """
    if not config.spec.is_timed:
      raise ValueError(
        f"unique_consecutive=True in stage {config.spec.name!r}: expected "
        "False for a back end, which reads conditioning by instants"
      )
    self.config, self.network = config, network
    self.layout = config.layout
    self.loss_terms = acoustic_alarms.loss_terms(self.layout.num_target_levels)

  def input_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Features the loss reads."""
    return code_loss.whole_sequence_shapes(batch_size, self.layout.length)

  def alarm_rules(self, batch_size: int) -> tuple[alarms.AlarmRule, ...]:
    """See `acoustic_alarms.rules`."""
    del batch_size
    size = self.layout.target_stream.codebook_size
    return acoustic_alarms.rules(self.config.alarms, size)

  def gathered_params(self, variables: protocols.Variables) -> Any:
    """Parameters as the config wants them sent; see `code_loss.gathered`."""
    return code_loss.gathered(
      self.init,
      self.input_shapes(1),
      variables["params"],
      self.config.precision.compute_dtype,
      self.config.gather == "step",
    )
