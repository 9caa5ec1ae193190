# SPDX-License-Identifier: Apache-2.0
"""Codes without repeats: sequences in time in, what changes in them out."""

import numpy as np


def collapse(
  codes: np.ndarray,
  codebook_size: int,
  end_code: int | None = None,
  pad_in_front: bool = False,
) -> np.ndarray:
  """Leaves out codes that are the same as the one before.

  What is left out makes room for padding. So the result of codes without
  repeats is the same codes, and training and decoding share this function.

  Args:
    codes: integers `[..., frames, 1]`; what is no code, as -1 or the end, is
      padding.
    codebook_size: codes are in `[0, codebook_size)`.
    end_code: put behind the last code if it is given and there is room.
    pad_in_front: padding comes first, not last.

  Returns:
    Codes in the shape and dtype of `codes`, -1 on padding.
  """
  codes = np.asarray(codes)
  flat = codes[..., 0]
  frames = np.arange(flat.shape[-1])
  is_kept = (flat >= 0) & (flat < codebook_size)
  is_kept[..., 1:] &= flat[..., 1:] != flat[..., :-1]
  count = is_kept.sum(-1, keepdims=True)
  # A stable sort keeps the order of those that are kept.
  order = np.argsort(is_kept ^ (not pad_in_front), axis=-1, kind="stable")
  moved = np.take_along_axis(flat, order, axis=-1)
  first = frames.size - count if pad_in_front else np.zeros_like(count)
  end = first + count
  moved = np.where((frames >= first) & (frames < end), moved, -1)
  if end_code is not None:
    moved = np.where(frames == end, end_code, moved)
  return moved[..., np.newaxis].astype(codes.dtype)


def lengths(codes: np.ndarray) -> np.ndarray:
  """Codes before the padding behind them, `[...]` of `[..., frames, 1]`."""
  return (np.asarray(codes)[..., 0] >= 0).sum(-1)
