# SPDX-License-Identifier: Apache-2.0
"""The MuLan evaluation: an artefact and clips to `mulan_evaluation.json`."""

import argparse
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from musiclm_jax.audio import files
from musiclm_jax.cli import embedding_files, mulan_clips
from musiclm_jax.core import atomic_files, errors, progress
from musiclm_jax.data import descriptions, magnatagatune
from musiclm_jax.evaluation import (
  mulan_table,
  probe,
  retrieval_intervals,
  summary,
  tagging,
  zero_shot,
)
from musiclm_jax.systems import tokenizers

FILE_NAME, TABLE_NAME = "mulan_evaluation.json", "mulan_evaluation.md"
FORMAT_VERSION = 1
# MagnaTagATune cuts tracks into clips: '...-30-59.mp3'.
_CUT = re.compile(r"-\d+-\d+(\.\w+)?$")


def retrieval_scores(
  mulan: tokenizers.MuLanTokenizer,
  clips: mulan_clips.Embedded,
  rows: Mapping[str, descriptions.Description],
  draw: Mapping[str, int],
) -> dict[str, Any]:
  """Retrieval by captions, by paraphrases, and the difference."""
  paraphrases = [
    rows[clip_id].paraphrase if clip_id in rows else ""
    for clip_id in clips.clip_ids
  ]
  result = {}
  kept = [i for i, text in enumerate(clips.captions) if text.strip()]
  both = [i for i in kept if paraphrases[i].strip()]
  if kept:
    part = clips.where(kept)
    found = _search(mulan, part, part.captions)
    result["captions"] = retrieval_intervals.table(found, part.work_ids, **draw)
  if both:
    part = clips.where(both)
    other = _search(mulan, part, [paraphrases[i] for i in both])
    result["paraphrases"] = retrieval_intervals.table(
      other, part.work_ids, **draw
    )
    if both != kept:  # the same clips for both
      found = _search(mulan, part, part.captions)
    result["paraphrases_minus_captions"] = retrieval_intervals.difference(
      other, found, part.work_ids, **draw
    )
  return result


def _search(mulan, clips, texts):
  return retrieval_intervals.search(
    mulan.embed_text(texts), clips.embeddings, texts
  )


def zero_shot_scores(
  mulan: tokenizers.MuLanTokenizer,
  embeddings: np.ndarray,
  labels: np.ndarray,
  tags: Sequence[str],
  templates: Sequence[str],
  groups: Sequence[str],
  draw: Mapping[str, int],
) -> dict[str, Any]:
  """Tagging by the texts of tags; see `tagging.table`."""
  vectors = zero_shot.tag_embeddings(mulan.embed_text, tags, templates)
  found = tagging.table(embeddings @ vectors.T, labels, tags, groups, **draw)
  return {**found, "templates": list(templates)}


def _described(
  clips: mulan_clips.Embedded,
  rows: Mapping[str, descriptions.Description],
  kind: str,
) -> list[int]:
  """Clips that have a tag of a kind."""
  return [
    place
    for place, clip_id in enumerate(clips.clip_ids)
    if clip_id in rows and rows[clip_id].tags.get(kind)
  ]


def tag_scores(
  mulan: tokenizers.MuLanTokenizer,
  clips: mulan_clips.Embedded,
  rows: Mapping[str, descriptions.Description],
  kinds: Sequence[str],
  given: Mapping[str, Sequence[str]],
  draw: Mapping[str, int],
) -> dict[str, Any]:
  """Zero-shot tagging of a split, by kind of tag.

  Raises:
    UserError: if no clip has tags of a kind.
  """
  result = {}
  for kind in kinds:
    kept = _described(clips, rows, kind)
    if not kept:
      raise errors.UserError(
        f"--tags={kind}: no clip of the split has such tags in --descriptions"
      )
    part = clips.where(kept)
    tags, labels = descriptions.labels(
      [rows[clip_id] for clip_id in part.clip_ids], kind
    )
    result[kind] = zero_shot_scores(
      mulan,
      part.embeddings,
      labels,
      tags,
      zero_shot.templates_for(kind, given),
      part.work_ids,
      draw,
    )
  return result


def probe_scores(
  parts: Mapping[str, mulan_clips.Embedded],
  rows: Mapping[str, descriptions.Description],
  kinds: Sequence[str],
) -> dict[str, Any]:
  """Accuracy of linear probes on audio embeddings, by kind of tag.

  Args:
    parts: 'train', 'validation' and 'test'.
    rows: descriptions by clip.
    kinds: of tags; one that not every described clip has once is refused.

  Raises:
    UserError: if a clip has several tags of a kind.
  """
  result = {}
  for kind in kinds:
    examples, names = {}, {}
    for split, part in parts.items():
      kept = _described(part, rows, kind)
      part = part.where(kept)
      found = [rows[clip_id].tags[kind] for clip_id in part.clip_ids]
      if any(len(tags) > 1 for tags in found):
        raise errors.UserError(
          f"--probe_tags={kind}: clips have several of these tags: expected "
          "one each"
        )
      labels = [names.setdefault(tags[0], len(names)) for tags in found]
      examples[split] = probe.Examples(
        {"audio": part.embeddings}, np.array(labels, int), part.work_ids
      )
    result[kind] = probe.probe(**examples)
  return result


def _probe_parts(
  source: mulan_clips.Source,
  args: argparse.Namespace,
  rows: Mapping[str, descriptions.Description],
  test: mulan_clips.Embedded,
) -> dict[str, mulan_clips.Embedded]:
  """Embedded splits for probes; empty where one has no descriptions."""
  parts = {}
  for split in ("train", "validation"):
    if split == args.split or split not in source.splits:
      return {}
    parts[split] = source.embed(split, rows.keys(), args.max_probe_clips)
    if not parts[split].clip_ids:
      return {}
  return {**parts, "test": test}


def magnatagatune_scores(
  mulan: tokenizers.MuLanTokenizer,
  args: argparse.Namespace,
  given: Mapping[str, Sequence[str]],
  draw: Mapping[str, int],
) -> dict[str, Any]:
  """Zero-shot tagging of MagnaTagATune, or of what has its form.

  Raises:
    UserError: if there are no annotations, or too much audio cannot be read.
  """
  known = magnatagatune.read(args.magnatagatune).most_frequent(args.num_tags)
  folders = [name for name in args.magnatagatune_folders.split(",") if name]
  known = known.only(magnatagatune.in_folders(known, folders))
  kept, vectors, bad = [], [], []
  total = len(known.paths)
  with progress.Progress("embed MagnaTagATune", total, unit="clip") as bar:
    for place, path in enumerate(known.paths):
      try:
        waveform, rate_hz = files.read_audio(
          pathlib.Path(args.audio_dir) / path
        )
      except errors.UserError as error:
        logging.warning("%s is left out: %s", path, error)
        bad.append(path)
      else:
        vectors.append(mulan.embed_audio(waveform[None], rate_hz)[0])
        kept.append(place)
      bar.update()
  if not kept or len(bad) > args.max_bad_fraction * total:
    raise errors.UserError(
      f"{len(bad)} of {total} clips of {args.magnatagatune} cannot be read "
      f"below --audio_dir={args.audio_dir} (folders {folders or 'all'}), such "
      f"as {bad[0] if bad else 'none'}: expected at most "
      f"--max_bad_fraction={args.max_bad_fraction:g}"
    )
  known = known.only(kept)
  found = zero_shot_scores(
    mulan,
    np.stack(vectors),
    known.labels,
    known.tags,
    zero_shot.templates_for("magnatagatune", given),
    [_CUT.sub("", path) for path in known.paths],
    draw,
  )
  return {**found, "num_unreadable": len(bad), "folders": folders}


def _templates(texts: Sequence[str]) -> dict[str, list[str]]:
  found: dict[str, list[str]] = {}
  for text in texts:
    kind, separator, template = text.partition("=")
    if not separator or template.count("{}") != 1:
      raise errors.UserError(
        f"--template={text}: expected KIND=TEXT with one {{}} in the text"
      )
    found.setdefault(kind, []).append(template)
  return found


def _names(text: str) -> list[str]:
  return [name for name in text.split(",") if name]


def run(args: argparse.Namespace) -> str:
  """Evaluates, writes JSON and tables; returns the tables.

  Raises:
    UserError: if inputs are missing or do not belong together.
  """
  if args.corpus_dir and args.cache_dir:
    raise errors.UserError(
      "--corpus_dir and --cache_dir: expected one of them, both hold the clips"
    )
  if not (args.corpus_dir or args.cache_dir or args.magnatagatune):
    raise errors.UserError(
      "nothing to evaluate on: expected --corpus_dir, --cache_dir or "
      "--magnatagatune"
    )
  if args.magnatagatune and not args.audio_dir:
    raise errors.UserError("--magnatagatune: expected --audio_dir beside it")
  given = _templates(args.template)
  rows = descriptions.read(args.descriptions)
  mulan = embedding_files.load_mulan(args.mulan)
  draw = {"num_resamples": args.num_resamples, "seed": args.seed}
  result: dict[str, Any] = {
    "format_version": FORMAT_VERSION,
    "fingerprint": mulan.fingerprint,
    "num_resamples": args.num_resamples,
    "zero_shot": {},
  }
  if args.corpus_dir or args.cache_dir:
    source: mulan_clips.Source
    if args.cache_dir:
      source = mulan_clips.CachedClips(mulan, args.cache_dir)
    else:
      source = mulan_clips.CorpusClips(mulan, args.corpus_dir)
    test = source.embed(args.split)
    if not test.clip_ids:
      raise errors.UserError(f"split {args.split!r} has no clips")
    result |= {
      "split": args.split,
      "num_clips": len(test.clip_ids),
      "num_works": len(set(test.work_ids)),
      "retrieval": retrieval_scores(mulan, test, rows, draw),
    }
    if rows:
      result["zero_shot"] |= tag_scores(
        mulan, test, rows, _names(args.tags), given, draw
      )
      parts = _probe_parts(source, args, rows, test)
      if parts:
        result["probe"] = probe_scores(parts, rows, _names(args.probe_tags))
  if args.magnatagatune:
    result["zero_shot"]["magnatagatune"] = magnatagatune_scores(
      mulan, args, given, draw
    )
  folder = pathlib.Path(args.output_dir)
  summary.write_summary(folder / FILE_NAME, result)
  text = mulan_table.table(result)
  atomic_files.write_text(folder / TABLE_NAME, text + "\n")
  return text
