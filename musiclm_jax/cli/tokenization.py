# SPDX-License-Identifier: Apache-2.0
"""The tokenize job: audio of a corpus or a folder to shards of a token cache.

Threads read, decode and cut; one thread starts batches, one waits for them,
and this one puts clips together and writes shards. Any number of processes
work on one cache: a shard is claimed before it is begun (`shard_claims`), and
who finds all shards done writes the manifest.
"""

import contextlib
import dataclasses
import pathlib
import random
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from absl import logging

from musiclm_jax.cli import jobs, sigterm, tokenize_report
from musiclm_jax.core import progress
from musiclm_jax.data import (
  audio_source,
  read_ahead,
  shard_claims,
  token_cache,
  token_cache_writer,
  token_manifest,
  worker_pool,
)
from musiclm_jax.systems import (
  device_feed,
  melody_program,
  window_programs,
)

_BATCHES_AHEAD = 8
_ROWS_AHEAD = 4096
_MAX_READERS = 32
_POLL_SECS = 0.5
_WAIT_NOTE_SECS = 30.0


def _mulan(
  programs: Iterable[window_programs.Program],
) -> window_programs.MuLanProgram | None:
  found = (p for p in programs if p.stream.name == token_cache.MULAN)
  return next(found, None)


def cache_config(
  job: jobs.TokenizeJob,
  programs: Iterable[window_programs.Program],
  inputs: audio_source.Inputs,
) -> token_cache.TokenCacheConfig:
  """What a cache made by `job` holds."""
  programs = list(programs)
  mulan, windows = _mulan(programs), {}
  if mulan is not None:
    windows = {
      "mulan_window_secs": mulan.window_secs,
      "mulan_stride_secs": window_programs.MULAN_STRIDE_SECS,
    }
  return token_cache.TokenCacheConfig(
    streams=tuple(program.stream for program in programs),
    fingerprints={
      program.stream.name: program.fingerprint for program in programs
    },
    corpus_dir=str(job.corpus_dir),
    **windows,
    shard_size=job.shard_size,
    acoustic_window_secs=job.acoustic_window_secs,
    semantic_window_secs=job.semantic_window_secs,
    semantic_halo_secs=job.semantic_halo_secs,
    inputs=inputs.mark,
  )


@dataclasses.dataclass
class _Begun:
  """A shard at work: its inputs by index, and what its marker will tell."""

  shard: token_cache_writer.Shard
  clips: dict[int, token_cache.CachedClip | None] = dataclasses.field(
    default_factory=dict
  )
  skipped: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)
  notes: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)
  num_samples: dict[int, int] = dataclasses.field(default_factory=dict)

  @property
  def is_done(self) -> bool:
    return len(self.clips) == self.shard.end - self.shard.start

  def details(self, sample_rate_hz: int) -> dict[str, Any]:
    """What the marker tells beside the counts; in the order of the inputs."""
    clips = [self.clips[index] for index in sorted(self.clips)]
    frames: dict[str, int] = {}
    for clip in clips:
      for name, array in (clip.arrays if clip else {}).items():
        frames[name] = frames.get(name, 0) + len(array)
    samples = sum(self.num_samples.values())
    return {
      "audio_secs": round(samples / sample_rate_hz, 3),
      "frames": dict(sorted(frames.items())),
      "reasons": dict(self.skipped[index] for index in sorted(self.skipped)),
      "notes": dict(self.notes[index] for index in sorted(self.notes)),
    }


class Tokenizer:
  """One process of a tokenize job."""

  def __init__(self, job: jobs.TokenizeJob):
    """Opens the inputs, loads the tokenizers, begins the cache or goes on.

    Raises:
      UserError: if something is missing, or does not fit the cache.
    """
    self._job = job
    self._programs = (
      *window_programs.load(
        job.artifact_dir,
        job.acoustic_window_secs,
        job.semantic_window_secs,
        job.semantic_halo_secs,
      ),
      *melody_program.load(job.artifact_dir),
    )
    self._rate_hz = self._programs[0].sample_rate_hz
    splits = [split for split in job.splits.split(",") if split]
    self._inputs = audio_source.open_inputs(
      job.corpus_dir, splits, self._rate_hz, self._programs[0].num_channels
    )
    self._sizes = {
      split: len(source) for split, source in self._inputs.sources.items()
    }
    self._directory = pathlib.Path(job.output_dir)
    self._num_readers = job.num_readers or min(
      _MAX_READERS, worker_pool.default_num_processes()
    )
    self._begun: dict[int, _Begun] = {}
    self._num_groups = 0
    self._reasons: dict[str, str] = {}
    self.times = tokenize_report.HostTimes()

  def run(self) -> None:
    """Writes what is missing, alone or among others.

    Raises:
      UserError: if too many inputs are unusable.
      Preempted: on SIGTERM; finished shards stay.
    """
    config = cache_config(self._job, self._programs, self._inputs)
    if is_finished(self._directory, config, self._sizes):
      # Whoever finished it may have been killed before this.
      token_manifest.sweep(self._directory, self._sizes)
      print(f"{self._directory}: was finished before")
      return
    mulan = _mulan(self._programs)
    self._writer = token_cache_writer.TokenCacheWriter(
      self._directory, config, None if mulan is None else mulan.codebooks
    )
    feed = device_feed.DeviceFeed(self._programs, self._job.batch_size)
    total = sum(self._sizes.values())
    todo = sum(shard.end - shard.start for shard in self._pending())
    claims = shard_claims.Claims(
      self._directory / token_manifest.CLAIMS_NAME, self._job.stale_secs
    )
    with (
      sigterm.raises("SIGTERM: finished shards are kept"),
      claims,
      progress.Progress("tokenize", total, total - todo, "clip") as bar,
    ):
      self._work_until_done(claims, feed, bar)
    manifest = token_manifest.finish(
      self._writer, self._sizes, self._job.max_bad_fraction
    )
    token_manifest.sweep(self._directory, self._sizes)
    self._tell(manifest, feed)

  def _pending(self) -> list[token_cache_writer.Shard]:
    return [
      shard
      for split, size in self._sizes.items()
      for shard in self._writer.pending(split, size)
    ]

  def _work_until_done(self, claims, feed, bar) -> None:
    """Writes shards until none is missing, be it by others."""
    last_note = time.monotonic()
    while pending := self._pending():
      before = self._num_groups
      began = time.monotonic()
      self._work(pending, claims, feed, bar)
      if self._num_groups > before:
        self.times.wall_secs += time.monotonic() - began
        continue
      if time.monotonic() - last_note > _WAIT_NOTE_SECS:
        last_note = time.monotonic()
        print(f"waiting for {len(pending)} shards of others", flush=True)
      time.sleep(_POLL_SECS)

  def _work(self, pending, claims, feed, bar) -> None:
    """Writes those of `pending` that nobody else has."""
    items = read_ahead.map_ahead(
      self._read,
      self._claimed(pending, claims),
      self._num_readers,
      2 * self._num_readers + 2,
    )
    batches = read_ahead.read_ahead(
      feed.dispatch(self._timed(items)), _BATCHES_AHEAD
    )
    events = read_ahead.read_ahead(feed.collect(batches), _ROWS_AHEAD)
    results: dict[int, dict[tuple[str, int], np.ndarray]] = {}
    with contextlib.closing(events):
      for event in events:
        if isinstance(event, device_feed.Item):
          item = event
          if item.num_rows:
            results[id(item)] = {}
            continue
          self._skip(item)
        else:
          item, found = event.item, results[id(event.item)]
          found[event.program, event.window] = event.result
          if len(found) < sum(item.num_rows.values()):
            continue
          self._complete(item, results.pop(id(item)))
        if self._begun[item.group].is_done:
          self._write(self._begun.pop(item.group), claims, bar)

  def _claimed(self, pending, claims) -> Iterator[tuple[int, str, int]]:
    """Inputs of the shards that become ours, one shard after the other."""
    # Processes that begin at different places hardly meet.
    offset = random.SystemRandom().randrange(len(pending))
    for shard in pending[offset:] + pending[:offset]:
      if self._writer.is_done(shard) or not claims.claim(shard.file_name):
        continue
      if self._writer.is_done(shard):  # finished just before we claimed it
        claims.release(shard.file_name)
        continue
      group = self._num_groups
      self._begun[group] = _Begun(shard)
      self._num_groups += 1
      for index in range(shard.start, shard.end):
        yield group, shard.split, index

  def _read(self, place: tuple[int, str, int]) -> device_feed.Item:
    """Decodes and cuts one input; runs in the readers."""
    group, split, index = place
    decoded = self._inputs.sources[split].read(index)
    cuts, num_samples = {}, 0
    began = time.monotonic()
    if decoded.waveform is not None:
      audio = window_programs.Audio(decoded.waveform, self._rate_hz)
      cuts = {program.name: program.cut(audio) for program in self._programs}
      num_samples = len(decoded.waveform)
    return device_feed.Item(
      group,
      index,
      cuts,
      (
        decoded._replace(waveform=None),
        num_samples,
        time.monotonic() - began,
      ),
    )

  def _timed(self, items: Iterator) -> Iterator:
    """Notes how long the feed waited for each item."""
    while True:
      began = time.monotonic()
      item = next(items, None)
      self.times.input_wait_secs += time.monotonic() - began
      if item is None:
        return
      yield item

  def _skip(self, item: device_feed.Item) -> None:
    decoded, _, _ = item.payload
    logging.warning("%s is skipped: %s", decoded.clip_id, decoded.reason)
    begun = self._begun[item.group]
    begun.clips[item.index] = None
    begun.skipped[item.index] = (decoded.clip_id, decoded.reason)
    self._reasons[decoded.clip_id] = decoded.reason
    self._count(item)
    self.times.num_skipped += 1
    # No need to decode the rest of a hopeless corpus.
    token_manifest.check_bad_fraction(
      self.times.num_skipped,
      sum(self._sizes.values()),
      self._job.max_bad_fraction,
      f"the log and the markers in {self._directory}",
      self._reasons,
    )

  def _complete(
    self,
    item: device_feed.Item,
    results: dict[tuple[str, int], np.ndarray],
  ) -> None:
    """Puts a clip together from its rows."""
    decoded, num_samples, _ = item.payload
    began = time.monotonic()
    arrays = {
      name: cut.join([results[name, n] for n in range(item.num_rows[name])])
      for name, cut in item.cuts.items()
    }
    begun = self._begun[item.group]
    begun.clips[item.index] = token_cache.CachedClip(
      decoded.clip_id, arrays, decoded.work_id, decoded.captions
    )
    begun.num_samples[item.index] = num_samples
    if decoded.note:
      begun.notes[item.index] = (decoded.clip_id, decoded.note)
    self._count(item)
    self.times.num_clips += 1
    self.times.audio_secs += num_samples / self._rate_hz
    self.times.write_secs += time.monotonic() - began

  def _count(self, item: device_feed.Item) -> None:
    decoded, _, cut_secs = item.payload
    self.times.read_secs += decoded.read_secs
    self.times.decode_secs += decoded.decode_secs
    self.times.cut_secs += cut_secs

  def _write(self, begun: _Begun, claims, bar) -> None:
    began = time.monotonic()
    clips = [begun.clips[index] for index in sorted(begun.clips)]
    self._writer.write_shard(
      begun.shard,
      [clip for clip in clips if clip is not None],
      [begun.skipped[index][0] for index in sorted(begun.skipped)],
      begun.details(self._rate_hz),
    )
    claims.release(begun.shard.file_name)
    self.times.write_secs += time.monotonic() - began
    bar.update(len(clips))

  def _tell(self, manifest: dict[str, Any], feed) -> None:
    """Prints and keeps what came of it and where the time went."""
    print(
      f"{self._directory}: {manifest['num_clips']} clips, "
      f"{manifest['audio_secs'] / 60:.1f} min of audio, "
      f"{manifest['num_skipped']} inputs skipped; all is told in "
      f"{token_manifest.MANIFEST_NAME}"
    )
    if self.times.num_clips:
      report = tokenize_report.summarize(self.times, feed, self._num_readers)
      tokenize_report.write(self._directory, report)
      print(tokenize_report.describe(report))


def is_finished(
  directory: pathlib.Path,
  config: token_cache.TokenCacheConfig,
  sizes: dict[str, int],
) -> bool:
  """Whether a cache holds all of it, perhaps from an earlier version.

  Raises:
    UserError: if it is of other tokenizers.
  """
  if not (directory / token_cache.CONFIG_NAME).is_file():
    return False
  header = token_cache.read_header(directory)
  found = {k: v["num_inputs"] for k, v in header["splits"].items()}
  if any(found.get(split) != size for split, size in sizes.items()):
    return False
  token_cache.check_same_tokenizers(
    directory, token_cache.read_config(directory), config
  )
  if header["format_version"] == token_cache.FORMAT_VERSION:
    token_cache_writer.check_same_settings(directory, config)
  return True


def run(job: jobs.TokenizeJob) -> None:
  """Runs one process of a tokenize job; see `Tokenizer`."""
  if job.compile_cache:
    from musiclm_jax.training import compile_cache

    compile_cache.enable(job.compile_cache)
  Tokenizer(job).run()
