# SPDX-License-Identifier: Apache-2.0
"""Clips and a network that listens in; what it heard of each goes to a store.

Clips that the store knows are not decoded again, so a killed job goes on.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from musiclm_jax.core import errors, protocols
from musiclm_jax.evaluation import clip_files, embedding_store

EMBED, CLASSIFY = "embed", "classify"


class Heard(NamedTuple):
  """What a pass over clips did.

  Attributes:
    num_new: clips that were listened to.
    num_known: clips the store knew.
    secs: it took.
    bad: clips that are no audio.
  """

  num_new: int
  num_known: int
  secs: float
  bad: tuple[clip_files.Bad, ...]


def describe(listener: protocols.Listener, task: str) -> dict[str, Any]:
  """All that changes what a listener says, JSON-compatible."""
  return {
    "name": listener.name,
    "task": task,
    "fingerprint": listener.fingerprint,
    "sample_rate_hz": listener.sample_rate_hz,
    "window_secs": listener.window_secs,
    "hop_secs": listener.hop_secs,
    "settings": dict(listener.settings()),
  }


def open_store(
  root, listener: protocols.Listener, task: str, shard_size: int
) -> embedding_store.EmbeddingStore:
  """The store below `root` of what a listener says."""
  about = describe(listener, task)
  return embedding_store.EmbeddingStore(
    embedding_store.directory(root, about), about, shard_size
  )


def fill(
  store: embedding_store.EmbeddingStore,
  listen: Callable[[np.ndarray, float], np.ndarray],
  clips: Sequence[clip_files.ClipFile],
  keys: Mapping[str, str],
  batch_size: int,
  update: Callable[[int], None] = lambda count: None,
) -> Heard:
  """Listens to the clips that the store does not know.

  Args:
    store: gets what was heard.
    listen: waveforms float32 `[batch, samples]` and their rate to float32
      `[batch, rows, width]`.
    clips: to hear.
    keys: of their content, by name; clips without one are left out.
    batch_size: neighbours of the same length and rate heard at once.
    update: called with numbers of clips that are through.

  Raises:
    ValueError: if `batch_size` is below 1.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size={batch_size}: expected at least 1")
  begun = time.monotonic()
  bad: list[clip_files.Bad] = []
  known = {keys[c.name] for c in clips if c.name in keys} & _known(store, keys)
  todo = {
    keys[clip.name]: clip
    for clip in clips
    if clip.name in keys and keys[clip.name] not in known
  }
  if len(todo) < len(clips):
    update(len(clips) - len(todo))
  num_new = 0
  try:
    for group in _groups(todo, batch_size, bad):
      waveforms = np.stack([waveform for _, waveform, _ in group])
      try:
        heard = listen(waveforms, group[0][2])
      except errors.UserError as error:
        # Clips of a group have one length and rate, so what is wrong with one
        # (too short, say) is wrong with all.
        names = [todo[key].name for key, _, _ in group]
        bad += [clip_files.Bad(name, f"{name}: {error}") for name in names]
        continue
      for (key, _, _), rows in zip(group, heard):
        store.add(key, rows)
      num_new += len(group)
      update(len(group))
  finally:
    store.flush()  # What an interrupt finds is kept too.
  if bad:
    update(len(bad))
  # What was tried once stands for all clips of the same content.
  reasons = {keys[one.name]: one.reason for one in bad}
  bad = [
    clip_files.Bad(clip.name, reasons[keys[clip.name]])
    for clip in clips
    if keys.get(clip.name) in reasons
  ]
  secs = time.monotonic() - begun
  return Heard(num_new, len(known), secs, tuple(bad))


def _known(
  store: embedding_store.EmbeddingStore, keys: Mapping[str, str]
) -> set[str]:
  return {key for key in keys.values() if key in store}


def _groups(
  todo: Mapping[str, clip_files.ClipFile],
  batch_size: int,
  bad: list[clip_files.Bad],
) -> Iterator[list[tuple[str, np.ndarray, int]]]:
  """Decoded neighbours that can be stacked; those that cannot be read in `bad`.

  Only neighbours: what is heard of a clip goes to disk in about the order in
  which clips are read back.
  """
  group: list[tuple[str, np.ndarray, int]] = []
  for key, clip in todo.items():
    try:
      waveform, rate_hz = clip.decode(clip.read())
    except errors.UserError as error:
      bad.append(clip_files.Bad(clip.name, str(error)))
      continue
    fits = group and (
      len(waveform) == len(group[0][1]) and rate_hz == group[0][2]
    )
    if group and (not fits or len(group) == batch_size):
      yield group
      group = []
    group.append((key, waveform, rate_hz))
  if group:
    yield group
