# SPDX-License-Identifier: Apache-2.0
"""A device needs no more memory for the pair losses where there are more."""

import json
import pathlib

import virtual_devices

_HERE = pathlib.Path(__file__).parent
_ROWS, _DIM, _CHUNK, _WHOLE = 256, 16, 128, 100_000
_DEVICES = 8
_FLOAT_BYTES = 4


def _temporary_bytes():
  """On one device and on eight, by loss and chunk."""
  return virtual_devices.run(
    _HERE / "pair_losses_memory.py",
    _ROWS,
    _DIM,
    json.dumps([_CHUNK, _WHOLE]),
    num_devices=_DEVICES,
  )


def test_memory_grows_by_the_embeddings_of_the_batch_and_no_more():
  pairs = _DEVICES * _ROWS
  # Both embeddings of each pair elsewhere, and a few numbers (id, gradient of
  # the loss, denominators).
  gathered = (pairs - _ROWS) * (2 * _DIM + 4) * _FLOAT_BYTES
  similarities = _ROWS * pairs * _FLOAT_BYTES
  for loss, found in _temporary_bytes().items():
    one, many = found[str(_CHUNK)]
    assert many - one < 1.25 * gathered, (loss, one, many)
    assert many < similarities / 2, (loss, many)
    # In one chunk it would hold all similarities of its rows.
    _, whole = found[str(_WHOLE)]
    assert whole > similarities, (loss, whole)
