# SPDX-License-Identifier: Apache-2.0
"""The bias card: a corpus and neutral prompts to shares, JSON and a page."""

import argparse
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.cli import embedder_specs, prompt_files
from musiclm_jax.core import errors, progress, protocols
from musiclm_jax.data import clips, corpora, descriptions, paraphrases
from musiclm_jax.evaluation import (
  audio_facts,
  bias,
  bias_page,
  summary,
  zero_shot,
)
from musiclm_jax.systems import musiclm, provenance

FILE_NAME, PAGE_NAME = "bias.json", "index.html"
FORMAT_VERSION = 1
_BATCH_SIZE = 16
_HEARD = {
  "tempo": "Tempo as estimated by librosa, on both sides alike.",
  "key": "Key as estimated from chroma (Krumhansl's profiles), on both sides "
  "alike; the relative key is a common mistake.",
  "mode": "Mode of the estimated key.",
}
# Names to ask for where neither descriptions nor --tags give any.
_USUAL_TAGS = {
  "instrument": (
    "piano", "guitar", "violin", "cello", "flute", "trumpet", "saxophone",
    "organ", "drums", "bass guitar", "synthesizer", "voice",
  ),
  "genre": (
    "classical", "folk", "jazz", "blues", "rock", "pop", "hip hop", "metal",
    "country", "electronic", "ambient", "reggae",
  ),
}  # fmt: skip


class Items(NamedTuple):
  """Sounds of one side.

  Attributes:
    ids: of each.
    groups: works, or prompts.
    aspects: words that are stored about each.
    heard: 'tempo', 'key' and 'mode' of each.
    embeddings: float32 `[items, embed]` of unit length, or None without a
      MuLan.
    classes: the classifier's best of each; None without one.
  """

  ids: list[str]
  groups: list[str]
  aspects: list[tuple[str, ...]]
  heard: list[dict[str, str]]
  embeddings: np.ndarray | None
  classes: list[str] | None


class Judges(NamedTuple):
  """What listens beside the estimates of tempo and key.

  Attributes:
    system: whose MuLan embeds, or None.
    classifier: or None.
  """

  system: musiclm.MusicLM | None
  classifier: protocols.Classifier | None

  def listen(
    self, waveforms: np.ndarray, rate_hz: float, found: Items
  ) -> Items:
    """Adds what is heard in `[batch, samples]` to what was before."""
    found.heard.extend(audio_facts.facts(waveforms, rate_hz))
    if self.classifier is not None:
      names = best_classes(self.classifier, waveforms, rate_hz)
      found = found._replace(classes=(found.classes or []) + names)
    if self.system is not None:
      parts = [self.system.mulan.embed_audio(waveforms, rate_hz)]
      if found.embeddings is not None:
        parts.insert(0, found.embeddings)
      found = found._replace(embeddings=np.concatenate(parts))
    return found


class Sample(NamedTuple):
  """A generated piece."""

  file: str
  prompt: str
  seed: int | None
  waveform: np.ndarray
  sample_rate_hz: int


def _check(args: argparse.Namespace) -> None:
  for name in ("num_clips", "num_samples", "batch_size"):
    if getattr(args, name) < 1:
      raise errors.UserError(f"--{name}={getattr(args, name)}: expected >= 1")
  if args.samples_dir and not args.bundle:
    raise errors.UserError("--samples_dir without --bundle: its MuLan listens")


def best_classes(
  classifier: protocols.Classifier, waveforms: np.ndarray, rate_hz: float
) -> list[str]:
  """The class of the largest mean logit over windows, by waveform."""
  logits = classifier.classify_windows(waveforms, rate_hz).mean(1)
  return [classifier.class_names[index] for index in logits.argmax(1)]


def open_classifier(spec: str | None) -> protocols.Classifier | None:
  """What `--classifier` names.

  Raises:
    UserError: if it is missing, or no classifier.
  """
  return embedder_specs.open_classifier(spec) if spec else None


def read_corpus(args: argparse.Namespace, judges: Judges) -> Items:
  """Listens to clips of the corpus."""
  reader = clips.ClipReader(args.corpus_dir, args.split)
  count = min(args.num_clips, len(reader))
  if not count:
    raise errors.UserError(
      f"split {args.split!r} of {args.corpus_dir} is empty: expected clips"
    )
  indices = [n * len(reader) // count for n in range(count)]
  found = Items([], [], [], [], None, None)
  with progress.Progress("listen to corpus", count, unit="clip") as bar:
    for group in reader.groups(indices, _BATCH_SIZE):
      waveforms = np.stack([clip.waveform for clip in group])
      rate_hz = group[0].sample_rate_hz
      found.ids.extend(clip.clip_id for clip in group)
      found.groups.extend(clip.work_id or clip.clip_id for clip in group)
      found = judges.listen(waveforms, rate_hz, found)
      bar.update(len(group))
  found.aspects.extend(reader.texts(index).aspects for index in indices)
  return found


def generate(
  args: argparse.Namespace, system: musiclm.MusicLM, prompts: Sequence[str]
) -> list[Sample]:
  """Makes pieces for the prompts in turn and writes them."""
  folder = pathlib.Path(args.output_dir) / "generated"
  folder.mkdir(parents=True, exist_ok=True)
  rate_hz, samples = system.codec.sample_rate_hz, []
  with progress.Progress("generate", args.num_samples, unit="piece") as bar:
    for start in range(0, args.num_samples, args.batch_size):
      numbers = range(start, min(start + args.batch_size, args.num_samples))
      texts = [prompts[number % len(prompts)] for number in numbers]
      seeds = [args.seed + number for number in numbers]
      made = system.generate(texts, args.seconds, seeds).waveform
      for number, text, seed, waveform in zip(numbers, texts, seeds, made):
        path = folder / f"{number:03d}.wav"
        files.write_wav(path, waveform, rate_hz)
        name = f"{folder.name}/{path.name}"
        samples.append(Sample(name, text, seed, waveform, rate_hz))
      bar.update(len(texts))
  return samples


def read_samples(args: argparse.Namespace) -> list[Sample]:
  """Pieces of `musiclm generate` whose sidecar names a prompt.

  Raises:
    UserError: if there is none.
  """
  samples = []
  for folder in map(pathlib.Path, args.samples_dir):
    for path, record in provenance.sidecars(folder):
      if "prompt" not in record:
        continue
      prompt, seed = str(record["prompt"]), record.get("seed")
      waveform, rate_hz = files.read_audio(path)
      samples.append(
        Sample(path.resolve().as_uri(), prompt, seed, waveform, rate_hz)
      )
  if not samples:
    raise errors.UserError(
      f"--samples_dir={args.samples_dir}: no WAV file there has a sidecar with "
      "a prompt"
    )
  return samples


def listen(samples: Sequence[Sample], judges: Judges) -> Items:
  """What is heard in generated pieces, which may differ in length."""
  found = Items([], [], [], [], None, None)
  with progress.Progress("listen", len(samples), unit="piece") as bar:
    for one in samples:
      found.ids.append(one.file)
      found.groups.append(one.prompt)
      found.aspects.append(())
      found = judges.listen(one.waveform[None], one.sample_rate_hz, found)
      bar.update()
  return found


def known_tags(
  args: argparse.Namespace, items: Items
) -> dict[str, list[tuple[str, ...]]]:
  """What the metadata say of the clips, by kind of tag."""
  rows: Mapping[str, Mapping[str, Any]]
  if args.descriptions:
    rows = {
      clip_id: row.tags
      for clip_id, row in descriptions.read(args.descriptions).items()
    }
  else:
    rows = _tags_of_demo_corpus(args)
  kinds = sorted({kind for one in items.ids for kind in rows.get(one, ())})
  found = {
    kind: [_as_names(rows.get(one, {}).get(kind, ())) for one in items.ids]
    for kind in kinds
  }
  if any(items.aspects) and not found:
    found["aspect"] = items.aspects
  sources = [one.partition("/")[0] if "/" in one else "" for one in items.ids]
  if len(set(sources)) > 1:
    found["source"] = [(name,) if name else () for name in sources]
  return found


def _tags_of_demo_corpus(args: argparse.Namespace) -> dict[str, Any]:
  """Tags by clip that follow from a score_corpus; none of another corpus."""
  info = pathlib.Path(args.corpus_dir) / "dataset_info.json"
  if json.loads(info.read_text()).get("name") != "score_corpus":
    return {}
  rows = paraphrases.descriptions(args.corpus_dir, args.split)
  return {row["clip_id"]: row["tags"] for row in rows}


def _as_names(value: str | Iterable[str]) -> tuple[str, ...]:
  return (value,) if isinstance(value, str) else tuple(value)


def _different(names: Any) -> list[str]:
  """Names without those that come twice; ValueError for what is no list."""
  is_list = isinstance(names, list)
  if not is_list or not all(isinstance(name, str) for name in names):
    raise ValueError(f"{names!r}: expected a list of names")
  if len(set(names)) < 2:
    raise ValueError("a kind with fewer than 2 names")
  return [*dict.fromkeys(names)]


def asked_tags(
  path: str | None, known: Mapping[str, Sequence[Sequence[str]]]
) -> dict[str, list[str]]:
  """Names by kind that MuLan is asked for.

  Args:
    path: of a JSON file, or None.
    known: tags of the clips by kind; kinds with one name are no question.

  Raises:
    UserError: if the file is no such JSON.
  """
  if path is not None:
    try:
      found = json.loads(pathlib.Path(path).read_text())
      asked = {kind: _different(names) for kind, names in found.items()}
      if not asked:
        raise ValueError("no kind")
    except (ValueError, TypeError, AttributeError) as error:
      raise errors.UserError(
        f'{path}: expected JSON such as {{"instrument": ["piano", "flute"]}} '
        f"({error})"
      ) from error
    return asked
  names = {
    kind: sorted({name for found in rows for name in found})
    for kind, rows in known.items()
    if kind not in ("source", "aspect")
  }
  names = {kind: found for kind, found in names.items() if len(found) > 1}
  return names or {kind: [*found] for kind, found in _USUAL_TAGS.items()}


def facets(
  corpus: Items,
  generated: Items | None,
  known: Mapping[str, Sequence[tuple[str, ...]]],
  asked: Mapping[str, Sequence[str]],
  embed_text: Callable[[Sequence[str]], np.ndarray] | None,
) -> dict[str, Any]:
  """The shares of every facet, compared where both sides have it."""
  found: dict[str, Any] = {}

  def add(name, title, source, rows, other=None, kind=None):
    side = bias.Facet(tuple(rows), tuple(corpus.groups))
    if not side.num_named:
      return
    if other is None:
      one = bias.describe(side)
    else:
      one = bias.compare(
        side, bias.Facet(tuple(other), tuple(generated.groups))
      )
    if kind in known:
      facet = bias.Facet(tuple(known[kind]), tuple(corpus.groups))
      one["agreement"] = bias.agreement(rows, facet)
    found[name] = {"title": title, "source": source, **one}

  if corpus.classes is not None:
    add(
      "judged_class",
      "Class, as the classifier hears it",
      "The best class of a network that had no part in the bundle, on both "
      "sides alike.",
      *(
        None if one is None else [(name,) for name in one.classes]
        for one in (corpus, generated)
      ),
    )
  for kind, names in asked.items() if generated is not None else ():
    vectors = zero_shot.tag_embeddings(
      embed_text, names, zero_shot.templates_for(kind)
    )
    add(
      f"judged_{kind}",
      f"{kind.capitalize()}, as MuLan hears it",
      f"The best of {len(names)} names, by the cosine of their texts with the "
      "sound, on both sides alike. It is the MuLan the bundle was made with.",
      *(
        bias.top_names(one.embeddings @ vectors.T, names)
        for one in (corpus, generated)
      ),
      kind=kind,
    )
  for kind, source in _HEARD.items():
    rows = [
      None if one is None else [(heard[kind],) for heard in one.heard]
      for one in (corpus, generated)
    ]
    add(
      f"heard_{kind}",
      f"{kind.capitalize()}, as estimated",
      source,
      *rows,
      kind=kind if kind == "mode" else None,
    )
  order = audio_facts.tempo_names()
  tempo = found["heard_tempo"]
  tempo["names"] = [name for name in order if name in tempo["names"]]
  for kind, rows in known.items():
    add(f"known_{kind}", kind.capitalize(), "Metadata of the corpus.", rows)
  return found


def run(args: argparse.Namespace) -> None:
  """Listens, generates, counts, and writes JSON and the page.

  Raises:
    UserError: for bad inputs.
  """
  _check(args)
  prompts, system = [], None
  if args.bundle:
    shipped = corpora.find_builder_dir() / "prompts" / "neutral.jsonl"
    prompts = prompt_files.read(args.prompts or shipped)
    system = musiclm.MusicLM.load(args.bundle)
  samples: list[Sample] = []
  if args.samples_dir:
    samples = read_samples(args)
    prompts = sorted({one.prompt for one in samples})
  elif system is not None:
    samples = generate(args, system, prompts)
  judges = Judges(system, open_classifier(args.classifier))
  corpus = read_corpus(args, judges)
  known = known_tags(args, corpus)
  generated, asked = None, {}
  if system is not None:
    asked = asked_tags(args.tags, known)
    generated = listen(samples, judges)
  found = facets(
    corpus, generated, known, asked, system and system.mulan.embed_text
  )
  report = {
    "format_version": FORMAT_VERSION,
    "corpus": {
      "name": _corpus_name(args),
      "split": args.split,
      "num_clips": len(corpus.ids),
      "num_works": len(set(corpus.groups)),
    },
    "prompts": prompts,
    "samples": [
      {"file": one.file, "prompt": one.prompt, "seed": one.seed, "heard": heard}
      for one, heard in zip(samples, generated.heard if generated else ())
    ],
    "seconds": args.seconds,
    "facets": found,
    "fingerprints": (system.fingerprints if system else {})
    | (
      {judges.classifier.name: judges.classifier.fingerprint}
      if judges.classifier
      else {}
    ),
    "versions": summary.versions(),
  }
  folder = pathlib.Path(args.output_dir)
  folder.mkdir(parents=True, exist_ok=True)
  summary.write_summary(folder / FILE_NAME, report)
  page = bias_page.write(folder / PAGE_NAME, report)
  _print(found)
  print(page)


def _corpus_name(args: argparse.Namespace) -> str:
  info = pathlib.Path(args.corpus_dir) / "dataset_info.json"
  record = json.loads(info.read_text())
  parts = (record.get("name"), record.get("configName"), record.get("version"))
  return " ".join(str(part) for part in parts if part)


def _print(found: Mapping[str, Any]) -> None:
  """The distances, for a terminal."""
  for one in found.values():
    distance = one.get("total_variation")
    if distance is None:
      continue
    print(
      f"{one['title']}: {distance['mean']:.2f} [{distance['low']:.2f}, "
      f"{distance['high']:.2f}], as many clips of the corpus "
      f"{distance['chance']:.2f} (to {distance['chance_high']:.2f})"
    )
