# SPDX-License-Identifier: Apache-2.0
"""Corpora from builders: finds, loads and runs the builders in `data/`.

A name, a size or a folder of audio flows in; the path of a built TFDS dataset
flows out. Builders need neither apache_beam nor mlcroissant here.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import json
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from musiclm_jax.core import errors
from musiclm_jax.data import doctor, worker_pool

SAMPLE_RATE_HZ = 24_000
BUILDERS_PACKAGE = "musiclm_jax_builders"
# Corpora were named before these options were there; as they are here, they
# do not change a name.
_LATER_OPTIONS = {"sample_rate_hz": SAMPLE_RATE_HZ, "num_channels": 1}
_SCORE_CORPUS, _AUDIO_FOLDER = "score_corpus", "audio_folder"
_MELODY_PAIRS = "melody_pairs"


def clip_features(more: Sequence[str] = ()) -> Any:
  """Features of a clip, the same in every corpus but for kinds of texts.

  Args:
    more: features beside captions and aspects, lists of texts.

  Audio stays encoded (FLAC of 16 bit; mono at 24 kHz where nothing else was
  asked for) until a crop is wanted, so it is a scalar of bytes and not a TFDS
  `Audio` feature. The bytes tell their channels, `num_samples` counts those of
  one.
  """
  import numpy as np
  import tensorflow_datasets as tfds

  return tfds.features.FeaturesDict(
    {
      "id": tfds.features.Text(),
      "audio": tfds.features.Tensor(shape=(), dtype=np.object_),
      "sample_rate_hz": tfds.features.Scalar(dtype=np.int32),
      "num_samples": tfds.features.Scalar(dtype=np.int64),
      "work_id": tfds.features.Text(),
      "arrangement": tfds.features.Scalar(dtype=np.int32),
      "captions": tfds.features.Sequence(tfds.features.Text()),
      "aspects": tfds.features.Sequence(tfds.features.Text()),
      **{name: tfds.features.Sequence(tfds.features.Text()) for name in more},
    }
  )


def find_builder_dir(
  directory: str | os.PathLike | None = None,
) -> pathlib.Path:
  """The folder that holds one folder per corpus builder.

  Args:
    directory: that folder, where it is not the usual one.

  Returns:
    `directory`, or `data/` beside the package in a checkout, or the installed
    package `musiclm_jax_builders`.

  Raises:
    UserError: if no builders lie there.
  """
  if directory is not None:
    candidates = [pathlib.Path(directory)]
  else:
    candidates = [pathlib.Path(__file__).resolve().parents[2] / "data"]
    candidates.extend(map(pathlib.Path, _installed_builders()))
  for candidate in candidates:
    if (candidate / _SCORE_CORPUS).is_dir():
      return candidate
  raise errors.UserError(
    f"no corpus builders in {' or '.join(map(str, candidates))}: expected a "
    f"folder {_SCORE_CORPUS!r} there"
  )


def _installed_builders() -> list[str]:
  """Folders of the installed builders package, if there is one."""
  if BUILDERS_PACKAGE in sys.modules:  # Perhaps ours, which has no spec.
    return list(sys.modules[BUILDERS_PACKAGE].__path__)
  spec = importlib.util.find_spec(BUILDERS_PACKAGE)
  return list(spec.submodule_search_locations or ()) if spec else []


def load_builder_module(
  corpus: str, builder_dir: str | os.PathLike | None = None
) -> Any:
  """Imports the builder module of a corpus.

  It is imported under a package name of our own, not as `data`, a name any
  other project may use; imports inside its folder are relative ones.

  Args:
    corpus: folder in the builder directory.
    builder_dir: see `find_builder_dir`.

  Raises:
    UserError: if there is no such corpus.
  """
  return load_builder_part(corpus, f"{corpus}_dataset_builder", builder_dir)


def load_builder_part(
  corpus: str, name: str, builder_dir: str | os.PathLike | None = None
) -> Any:
  """Imports one module of a corpus; see `load_builder_module`.

  `tfds build` imports a builder by its folder's name, which workers of Beam
  elsewhere do not know; what they get is imported by this.
  """
  directory = find_builder_dir(builder_dir)
  if not (directory / corpus / f"{name}.py").is_file():
    known = [path.parent.name for path in directory.glob("*/*_builder.py")]
    raise errors.UserError(
      f"corpus {corpus!r} in {directory}: expected one of {sorted(known)}"
      f"{errors.nearest(corpus, known)}"
    )
  worker_pool.register_package(BUILDERS_PACKAGE, [str(directory)])
  return importlib.import_module(f"{BUILDERS_PACKAGE}.{corpus}.{name}")


def load_beam_pipeline(corpus: str) -> Any:
  """Imports a corpus's module `beam_pipeline`.

  Raises:
    UserError: if Beam is not installed.
  """
  if importlib.util.find_spec("apache_beam") is None:
    raise errors.UserError(
      f"use_beam of {corpus}: Apache Beam is not installed; expected the extra "
      "[beam], with the versions of constraints-beam.txt"
    )
  return load_builder_part(corpus, "beam_pipeline")


def _build(builder: Any) -> pathlib.Path:
  """Builds a dataset unless it is there; returns its folder.

  TFDS writes to a folder `incomplete.*` and renames it at the end, so a
  killed build leaves nothing that looks whole; what it leaves is removed.
  """
  import tensorflow_datasets as tfds

  path = pathlib.Path(builder.data_dir)
  if builder.is_prepared():
    return path
  for leftover in path.parent.glob(f"incomplete.*_{path.name}"):
    shutil.rmtree(leftover, ignore_errors=True)
  # Builders show their own progress, one line per ten seconds in a log.
  tfds.disable_progress_bar()
  builder.download_and_prepare()
  return path


def prepare_score_corpus(
  data_dir: str | os.PathLike,
  size: str = "tiny",
  seed: int = 0,
  num_processes: int = 0,
  builder_dir: str | os.PathLike | None = None,
  share: float = 1.0,
) -> pathlib.Path:
  """Renders the demo corpus, or finds it rendered.

  Args:
    data_dir: where built datasets lie, one folder per corpus.
    size: 'tiny' (33 min in train) or 'small' (10 h).
    seed: of works, splits and arrangements; other seeds than 0 get a folder
      of their own.
    num_processes: renderers; 0 means all cores. Does not change the corpus.
    builder_dir: see `find_builder_dir`.
    share: of the works and clips of the size, to try things out; less than 1
      gets a folder of its own, `tiny_share0.2`.

  Returns:
    The dataset's folder, `<data_dir>/score_corpus/tiny/1.1.0`.

  Raises:
    UserError: if the size is unknown, or the share not in (0, 1].
  """
  module = load_builder_module(_SCORE_CORPUS, builder_dir)
  config = _sized_config(
    _SCORE_CORPUS,
    module.ScoreCorpusConfig,
    module.plans.SIZES,
    size,
    seed,
    share,
  )
  return _build(
    module.Builder(
      config=config,
      data_dir=os.fspath(data_dir),
      num_processes=num_processes,
    )
  )


def prepare_melody_pairs(
  data_dir: str | os.PathLike,
  size: str = "tiny",
  seed: int = 0,
  num_processes: int = 0,
  builder_dir: str | os.PathLike | None = None,
  share: float = 1.0,
) -> pathlib.Path:
  """Renders melodies in many versions, or finds them rendered.

  Args:
    data_dir: where built datasets lie, one folder per corpus.
    size: 'tiny' (165 works in train) or 'small' (816).
    seed: of works, splits and versions.
    num_processes: renderers; 0 means all cores. Does not change the corpus.
    builder_dir: see `find_builder_dir`.
    share: of the works, to try things out.

  Returns:
    The dataset's folder, `<data_dir>/melody_pairs/tiny/1.0.0`.

  Raises:
    UserError: if the size is unknown, or the share not in (0, 1].
  """
  module = load_builder_module(_MELODY_PAIRS, builder_dir)
  config = _sized_config(
    _MELODY_PAIRS,
    module.MelodyPairsConfig,
    module.versions.SIZES,
    size,
    seed,
    share,
  )
  return _build(
    module.Builder(
      config=config,
      data_dir=os.fspath(data_dir),
      num_processes=num_processes,
    )
  )


def _sized_config(
  corpus: str,
  make_config: Any,
  sizes: Iterable[str],
  size: str,
  seed: int,
  share: float,
) -> Any:
  """A shipped config by name, or one for another seed or share."""
  sizes = sorted(sizes)
  if size not in sizes:
    raise errors.UserError(
      f"size={size!r} of {corpus}: expected one of {sizes}"
      f"{errors.nearest(size, sizes)}"
    )
  if not 0 < share <= 1:
    raise errors.UserError(f"share={share}: expected in (0, 1]")
  if seed == 0 and share == 1:
    return size
  name = size + (f"_seed{seed}" if seed else "")
  return make_config(
    name=name + (f"_share{share:g}" if share != 1 else ""),
    description=f"Size {size}, seed {seed}, share {share:g}.",
    size=size,
    seed=seed,
    share=share,
  )


def prepare_audio_folder(
  data_dir: str | os.PathLike,
  source_dir: str | os.PathLike,
  captions: str | os.PathLike | None = None,
  segment_secs: float = 30.0,
  num_processes: int = 0,
  builder_dir: str | os.PathLike | None = None,
  **options: Any,
) -> pathlib.Path:
  """Makes a corpus of a tree of audio files, or finds it made.

  The doctor's report lies beside the dataset's folder (`doctor.json`,
  `doctor.txt` in its parent), also when the job fails.

  Args:
    data_dir: where built datasets lie, one folder per corpus.
    source_dir: tree of WAV, FLAC, OGG or MP3 files.
    captions: CSV or JSONL file with columns `file` and `caption`.
    segment_secs: length of the clips.
    num_processes: readers; 0 means all cores. Does not change the corpus.
    builder_dir: see `find_builder_dir`.
    **options: other fields of the builder's `AudioFolderConfig` (`work_from`,
      `test_fraction`, `max_bad_fraction`, `near_duplicates`,
      `sample_rate_hz`, `num_channels`, ...).

  Returns:
    The dataset's folder; its name changes with the files and the settings, so
    that a changed folder is built anew.

  Raises:
    UserError: if the folder or the captions file is missing or malformed, too
      many files are bad, or an option is unknown or out of range.
  """
  module = load_builder_module(_AUDIO_FOLDER, builder_dir)
  source_dir = pathlib.Path(source_dir).expanduser().resolve()
  settings = {
    "source_dir": str(source_dir),
    "captions": str(pathlib.Path(captions).resolve()) if captions else "",
    "segment_secs": float(segment_secs),
    # Named even if not asked for: corpora without the search exist.
    "near_duplicates": True,
    **options,
  }
  known = [field.name for field in dataclasses.fields(module.AudioFolderConfig)]
  for name in settings:
    if name not in known:
      raise errors.UserError(
        f"option {name!r} of {_AUDIO_FOLDER}: expected one of {known}"
        f"{errors.nearest(name, known)}"
      )
  try:
    config = module.AudioFolderConfig(
      name=_folder_name(source_dir, settings),
      description=f"Files of {source_dir}.",
      **settings,
    )
  except ValueError as error:
    raise errors.UserError(f"{_AUDIO_FOLDER}: {error}") from error
  return _build(
    module.Builder(
      config=config,
      data_dir=os.fspath(data_dir),
      num_processes=num_processes,
    )
  )


def _folder_name(source_dir: pathlib.Path, settings: dict[str, Any]) -> str:
  """A name that changes when files or settings change."""
  named = {k: v for k, v in settings.items() if _LATER_OPTIONS.get(k) != v}
  digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode())
  watched = [source_dir / name for name in doctor.list_audio(source_dir)]
  if settings["captions"]:
    captions = pathlib.Path(settings["captions"])
    if not captions.is_file():
      raise errors.UserError(f"no captions file at {captions}")
    watched.append(captions)
  for path in watched:
    # Of a link its target counts; a broken one is for the doctor to report.
    state = path.stat() if path.exists() else path.lstat()
    digest.update(f"{path}/{state.st_size}/{state.st_mtime_ns}".encode())
  stem = re.sub(r"[^a-z0-9]+", "_", source_dir.name.lower()).strip("_")
  return f"{stem or 'folder'}_{digest.hexdigest()[:8]}"
