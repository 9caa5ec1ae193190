# SPDX-License-Identifier: Apache-2.0
"""Residual vector quantization with fixed codebooks, in numpy.

Training-time quantizers (EMA, dead codes) are in `layers/quantize.py`; this is
for frozen codebooks on the host: MuLan tokens of a crop.
"""

import numpy as np

# Vectors whose distances to a whole codebook are held at once.
_CHUNK = 1 << 14


def squares(codebooks: np.ndarray) -> np.ndarray:
  """Squared lengths of the entries, `[codebooks, codebook_size]`."""
  return np.stack([(codebook**2).sum(-1) for codebook in codebooks])


def encode(
  vectors: np.ndarray,
  codebooks: np.ndarray,
  squared_lengths: np.ndarray | None = None,
) -> np.ndarray:
  """Nearest code per level, each on the residual of those before.

  Args:
    vectors: float32 `[..., code_dim]`.
    codebooks: float32 `[codebooks, codebook_size, code_dim]`.
    squared_lengths: `squares(codebooks)`, for callers with many vectors.

  Returns:
    int32 `[..., codebooks]`.
  """
  flat = vectors.reshape(-1, vectors.shape[-1]).astype(np.float32)
  codes = np.empty((flat.shape[0], codebooks.shape[0]), np.int32)
  if squared_lengths is None:
    squared_lengths = squares(codebooks)
  for start in range(0, len(flat), _CHUNK):
    residual = flat[start : start + _CHUNK]
    for level, codebook in enumerate(codebooks):
      distance = squared_lengths[level] - 2.0 * residual @ codebook.T
      nearest = distance.argmin(-1)
      codes[start : start + _CHUNK, level] = nearest
      residual = residual - codebook[nearest]
  return codes.reshape(*vectors.shape[:-1], codebooks.shape[0])


def decode(codes: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
  """Sum of the chosen entries of the first `codes.shape[-1]` levels."""
  out = np.zeros((*codes.shape[:-1], codebooks.shape[-1]), np.float32)
  for level in range(codes.shape[-1]):
    out += codebooks[level][codes[..., level]]
  return out
