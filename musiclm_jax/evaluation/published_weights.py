# SPDX-License-Identifier: Apache-2.0
"""Which weights are the published ones: a fingerprint in, a short name out.

A metric may be called FAD_VGG only where VGGish's own weights made the
embeddings: with other weights the number is another one. A short name is given
by the hash of the weights alone, never by what a folder is called. Where the
hash is not in the table, the metric is 'FAD (vggish)', and the card of the
number states the hash, so that two such numbers can still be compared.
"""

import types
from collections.abc import Mapping

from musiclm_jax.core import protocols

# Fingerprint to short name. A row is added only by who has the weights from
# the publisher; none is taken from hearsay.
PUBLISHED: Mapping[str, str] = types.MappingProxyType(
  {
    # Of the package musicnn 0.1.0, through `musiclm import_tagger`.
    "21fb5c8fb61c43a1": "MTT_musicnn",
    "a66147591a66ce8f": "MTT_vgg",
    "afafca3776563ea8": "MSD_musicnn",
    "14ac098ce2178851": "MSD_vgg",
  }
)


def find(fingerprint: str) -> str | None:
  """The short name of published weights, or None for any others."""
  return PUBLISHED.get(fingerprint)


def short_name(listener: protocols.Listener) -> str | None:
  """The short name that a listener has a right to, or None.

  Raises:
    ValueError: if it claims another one than its fingerprint has.
  """
  known = find(listener.fingerprint)
  if listener.published_as != known:
    raise ValueError(
      f"published_as={listener.published_as!r} of {listener.name!r}: expected "
      f"{known!r}, the name of weights with fingerprint {listener.fingerprint}"
    )
  return known


def metric_name(metric: str, listener: protocols.Listener) -> str:
  """What a metric made with a listener is called.

  Args:
    metric: such as 'FAD'.
    listener: an embedder or a classifier.

  Returns:
    Such as 'FAD_VGG' for published weights, else such as 'FAD (mulan)'.

  Raises:
    ValueError: as `short_name`.
  """
  known = short_name(listener)
  return f"{metric} ({listener.name})" if known is None else f"{metric}_{known}"
