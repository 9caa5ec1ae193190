# SPDX-License-Identifier: Apache-2.0
"""Measures a codec over 1 to all codebooks, with a page to listen to.

Sets of sounds (held-out works of a corpus, folders of recordings, pure tones)
are encoded once and decoded from every number of codebooks: tables as JSON
and CSV, and an HTML page with the original beside the copies.
"""

import argparse
import pathlib
from typing import Any

EPILOG = """example:
  musiclm codec report --codec=runs/quickstart/artifacts/soundstream \\
    --audio=works=runs/quickstart/data/score_corpus/tiny/1.1.0 \\
    --audio=recordings=my_recordings --output=runs/codec_report"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options."""
  parser.add_argument(
    "--codec", required=True, help="a soundstream artefact, or a bundle"
  )
  parser.add_argument(
    "--audio",
    action="append",
    default=[],
    metavar="[NAME=]PATH",
    help="a prepared corpus, a folder of audio files or a file; repeatable",
  )
  parser.add_argument("--output", required=True, help="folder of the report")
  parser.add_argument(
    "--split",
    default="test",
    help="of prepared corpora (default: %(default)s)",
  )
  parser.add_argument(
    "--codebooks",
    default="",
    metavar="N,N,...",
    help="rows of the tables (default: 1 to all)",
  )
  parser.add_argument(
    "--max_sounds",
    type=int,
    default=30,
    help="of each set, spread over it (default: %(default)s)",
  )
  parser.add_argument(
    "--max_secs",
    type=float,
    default=10.0,
    help="of each sound, from its start (default: %(default)s)",
  )
  parser.add_argument(
    "--num_shown",
    type=int,
    default=3,
    help="sounds of each set on the page (default: %(default)s)",
  )
  parser.add_argument(
    "--shown_codebooks",
    default="1,4,8,12",
    metavar="N,N,...",
    help="what they are decoded from (default: %(default)s)",
  )
  parser.add_argument(
    "--tones",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="measure pure tones too",
  )
  parser.add_argument(
    "--visqol", help="the ViSQOL program (default: the one on PATH, if any)"
  )
  parser.add_argument(
    "--visqol_model", help="its SVR model (default: the one beside it)"
  )


def main(args: argparse.Namespace) -> int:
  """Runs the report."""
  from musiclm_jax.cli import codec_files
  from musiclm_jax.core import progress
  from musiclm_jax.evaluation import codec_report, codec_report_page

  codec = codec_files.load_codec(args.codec)
  sets, skipped = read_sets(args, codec)
  most = codec.stream.num_codebooks
  config = codec_report.ReportConfig(
    codebook_counts=_numbers("codebooks", args.codebooks)
    or tuple(range(1, most + 1)),
    num_shown=args.num_shown,
    shown_counts=_numbers("shown_codebooks", args.shown_codebooks),
    visqol=args.visqol,
    visqol_model=args.visqol_model,
  )
  total = sum(len(one.waveforms) for one in sets)
  with progress.Progress("codec report", total, unit="sound") as bar:
    report, listening = codec_report.measure(codec, sets, config, bar.update)
  report["skipped"] = skipped
  page = codec_report_page.write(args.output, report, listening)
  _print(report)
  print(page)
  return 0


def _numbers(name: str, text: str) -> tuple[int, ...]:
  from musiclm_jax.core import errors

  try:
    return tuple(sorted({int(part) for part in text.split(",") if part}))
  except ValueError:
    raise errors.UserError(
      f"--{name}={text}: expected numbers with commas between them"
    ) from None


def read_sets(
  args: argparse.Namespace, codec: Any
) -> tuple[list[Any], list[dict[str, str]]]:
  """The sets named on the command line, at the codec's rate.

  Returns:
    `codec_report.SoundSet`s, and the files that could not be read.

  Raises:
    UserError: if a path is missing, or a set has no sound.
  """
  from musiclm_jax.audio import files
  from musiclm_jax.core import errors
  from musiclm_jax.evaluation import codec_report

  if args.max_sounds < 1 or not args.max_secs > 0:
    raise errors.UserError(
      f"--max_sounds={args.max_sounds}, --max_secs={args.max_secs:g}: "
      "expected > 0"
    )
  channels = getattr(codec.config, "num_channels", 1)
  rate_hz = codec.sample_rate_hz
  sets, skipped = [], []
  for text in args.audio:
    name, separator, place = text.partition("=")
    if not separator:
      name, place = pathlib.Path(text).name, text
    path = pathlib.Path(place)
    if not path.exists():
      raise errors.UserError(f"--audio={text}: no {path}")
    if name in [one.name for one in sets]:
      raise errors.UserError(f"--audio={text}: a set {name!r} is there already")
    if (path / "dataset_info.json").is_file():
      names, waveforms = _from_corpus(path, args, rate_hz, channels)
    else:
      names, waveforms = _from_files(path, args, rate_hz, channels, skipped)
    if not waveforms:
      raise errors.UserError(f"--audio={text}: no audio that can be read there")
    waveforms = [files.as_channels(one, channels) for one in waveforms]
    sets.append(codec_report.SoundSet(name, names, waveforms))
  if args.tones:
    sets.append(codec_report.pure_tones(rate_hz, num_channels=channels))
  if not sets:
    raise errors.UserError("nothing to measure: expected --audio or --tones")
  return sets, skipped


def _spread(total: int, count: int) -> list[int]:
  count = min(total, count)
  return [index * total // count for index in range(count)]


def _from_corpus(path, args, rate_hz, channels):
  """Works of one split: one clip of each, then more, spread over it."""
  from musiclm_jax.audio import files
  from musiclm_jax.data import clips

  reader = clips.ClipReader(path, args.split, channels)
  names, waveforms = [], []
  for index in _spread(len(reader), args.max_sounds):
    clip = reader[index]
    count = round(args.max_secs * clip.sample_rate_hz)
    waveforms.append(
      files.resample(clip.waveform[:count], clip.sample_rate_hz, rate_hz)
    )
    names.append(clip.captions[0] if clip.captions else clip.clip_id)
  return names, waveforms


def _from_files(path, args, rate_hz, channels, skipped):
  """Files below a folder in name order; bad ones are noted and left out."""
  from musiclm_jax.audio import files
  from musiclm_jax.core import errors

  found = [path]
  if path.is_dir():
    found = [path / name for name in files.list_names(path)]
    found = [one for one in found if one.is_file()]
  names, waveforms = [], []
  for index in _spread(len(found), args.max_sounds):
    try:
      waveform, _ = files.read_audio(found[index], rate_hz, mono=channels == 1)
    except errors.UserError as error:
      skipped.append({"path": str(found[index]), "reason": str(error)})
      continue
    names.append(found[index].stem)
    waveforms.append(waveform[: round(args.max_secs * rate_hz)])
  return names, waveforms


def _print(report: dict[str, Any]) -> None:
  """The distances of every set, for a terminal."""
  for name, entry in report["sets"].items():
    print(f"{name}: {entry['num_sounds']} sounds, {entry['secs']:.0f} s")
    columns = [key for key in entry["rows"][0] if key != "num_codebooks"]
    print("  codebooks " + " ".join(f"{key:>20}" for key in columns))
    for row in entry["rows"]:
      numbers = " ".join(f"{row[key]:20.3f}" for key in columns)
      print(f"  {row['num_codebooks']:9d} {numbers}")
    usage = " ".join(f"{100 * share:.0f}" for share in entry["codebook_usage"])
    print(
      f"  codebook usage by level (%), of {entry['num_frames']} frames: {usage}"
    )
  if " " in report["visqol"]:
    print(report["visqol"])
  for one in report["skipped"]:
    print(f"left out: {one['reason']}")
