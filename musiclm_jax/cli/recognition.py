# SPDX-License-Identifier: Apache-2.0
"""The recognize job: an artefact and a corpus to `recognize.json`, a table."""

import argparse
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from musiclm_jax.audio import chroma, files, perturb
from musiclm_jax.core import atomic_files, errors, progress, rvq
from musiclm_jax.data import clip_source, melody_pairs
from musiclm_jax.evaluation import melody_retrieval, summary
from musiclm_jax.systems import melody_tokenizer

FILE_NAME, TABLE_NAME = "recognize.json", "recognize.md"
_REFERENCE = "reference"
_CHROMA_HOP_SECS = 0.25

# From a version, its rate, the point in it and a generator to a crop.
_Change = Callable[
  [np.ndarray, int, float, float, np.random.Generator], np.ndarray
]


def _noise(waveform, rate_hz, centre, secs, generator):
  crop = melody_pairs.crop_around(waveform, rate_hz, centre, secs)
  return perturb.add_noise(crop, 10.0, generator)


def _room(waveform, rate_hz, centre, secs, generator):
  response = perturb.room(rate_hz, 0.8, generator)
  wet = np.convolve(waveform, response)[: len(waveform)]
  return melody_pairs.crop_around(wet, rate_hz, centre, secs)


def _telephone(waveform, rate_hz, centre, secs, generator):
  del generator
  gains = perturb.band(rate_hz, len(waveform), 300.0, 3400.0)
  narrow = np.fft.irfft(np.fft.rfft(waveform) * gains, len(waveform))
  return melody_pairs.crop_around(narrow, rate_hz, centre, secs)


def _detuned(waveform, rate_hz, centre, secs, generator):
  del generator
  speed = 2 ** (40 / 1200)
  return melody_pairs.crop_around(waveform, rate_hz, centre, secs, speed)


def _later(waveform, rate_hz, centre, secs, generator):
  del generator
  return melody_pairs.crop_around(waveform, rate_hz, centre + 0.5, secs)


# Changes of the reference's recording, beside those the corpus has.
CHANGES: dict[str, _Change] = {
  "noise, 10 dB": _noise,
  "room, 0.8 s": _room,
  "telephone band": _telephone,
  "40 cents higher": _detuned,
  "0.5 s later": _later,
}


def _as_unit(vectors: np.ndarray) -> np.ndarray:
  norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
  return (vectors / np.maximum(norm, 1e-9)).astype(np.float32)


def _chroma_embeddings(crops: np.ndarray, rate_hz: int) -> np.ndarray:
  """Chromagrams as vectors: what one gets without learning."""
  profile = jax.jit(
    lambda waveform: chroma.chroma(
      waveform, rate_hz, hop_length=round(_CHROMA_HOP_SECS * rate_hz)
    )
  )
  frames = np.asarray(profile(crops))
  frames = frames - frames.mean(axis=(1, 2), keepdims=True)
  return _as_unit(frames.reshape(len(crops), -1))


def read_crops(
  corpus_dir: str, split: str, secs: float, max_works: int, seed: int
) -> tuple[dict[str, np.ndarray], int]:
  """The middle of each melody in each version, and changes of the reference.

  Args:
    corpus_dir: a corpus `melody_pairs`.
    split: of it.
    secs: length of the crops.
    max_works: only so many; 0 for all.
    seed: of noise and rooms.

  Returns:
    float32 `[works, samples]` by name of the transformation, and their rate.

  Raises:
    UserError: if the corpus has no versions, or fewer than two works.
  """
  builder = clip_source.corpus_builder(corpus_dir)
  if split not in builder.info.splits:
    raise errors.UserError(
      f"split {split!r} of {corpus_dir}: expected one of "
      f"{sorted(builder.info.splits)}"
    )
  versions = melody_pairs.read_versions(corpus_dir, split)
  records = builder.as_data_source(split)
  num_works = len(records) // versions.stored
  num_works = min(num_works, max_works or num_works)
  if versions.stored < 2 or num_works < 2:
    raise errors.UserError(
      f"split {split!r} of {corpus_dir} has {num_works} melodies in "
      f"{versions.stored} versions: expected at least 2 in 2, from `musiclm "
      "prepare melody_pairs`"
    )
  crops: dict[str, list[np.ndarray]] = {}
  reach = 0.5 * secs * versions.max_tempo_ratio
  with progress.Progress("melodies", num_works, unit="work") as bar:
    for work in range(num_works):
      for index in range(versions.stored):
        record = records[work * versions.stored + index]
        waveform, rate_hz = files.decode_audio(bytes(record["audio"]))
        centre = melody_pairs.centre_of(
          len(waveform) / rate_hz, float(record["tempo_ratio"]), reach, 0.5
        )
        name = _text(record["transformation"])
        found = {
          name: melody_pairs.crop_around(waveform, rate_hz, centre, secs)
        }
        if name == _REFERENCE:
          for number, (change, apply) in enumerate(CHANGES.items()):
            generator = np.random.default_rng([seed, work, number])
            found[change] = apply(waveform, rate_hz, centre, secs, generator)
        for key, crop in found.items():
          crops.setdefault(key, []).append(np.asarray(crop, np.float32))
      bar.update()
  bad = [name for name, rows in crops.items() if len(rows) != num_works]
  if bad or _REFERENCE not in crops:
    raise errors.UserError(
      f"split {split!r} of {corpus_dir}: expected each transformation once per "
      f"melody, and one called {_REFERENCE!r}; not so: {bad}"
    )
  return {name: np.stack(rows) for name, rows in crops.items()}, rate_hz


def _text(value: str | bytes) -> str:
  return value.decode() if isinstance(value, bytes) else value


def run(args: argparse.Namespace) -> str:
  """Scores, writes `recognize.json` and `recognize.md`; returns the table.

  Raises:
    UserError: if the artefact or the corpus is missing or another one.
  """
  tokenizer = melody_tokenizer.MelodyTokenizer.load(args.melody)
  crops, rate_hz = read_crops(
    args.corpus_dir,
    args.split,
    tokenizer.config.window_secs,
    args.max_works,
    args.seed,
  )
  embedded: dict[str, dict[str, np.ndarray]] = {
    "embedding": {}, "codes": {}, "chroma": {}
  }  # fmt: skip
  with progress.Progress("embed", len(crops), unit="version") as bar:
    for name, waveforms in crops.items():
      vectors = tokenizer.embed_windows(waveforms, rate_hz)[:, 0]
      codes = tokenizer.quantize(vectors)
      embedded["embedding"][name] = vectors
      embedded["codes"][name] = _as_unit(rvq.decode(codes, tokenizer.codebooks))
      embedded["chroma"][name] = _chroma_embeddings(waveforms, rate_hz)
      bar.update()
  results = {
    name: melody_retrieval.score(vectors) for name, vectors in embedded.items()
  }
  text = melody_retrieval.table(results)
  folder = pathlib.Path(args.output_dir)
  record = {
    "split": args.split,
    "fingerprints": {"melody": tokenizer.fingerprint},
    "results": results,
  }
  summary.write_summary(folder / FILE_NAME, record)
  atomic_files.write_text(folder / TABLE_NAME, text + "\n")
  return text
