# SPDX-License-Identifier: Apache-2.0
"""The evaluation by prompts: generates, listens, scores, writes, resumes.

Every part keeps what it has done: files that were generated, and what was
heard of a clip. Only the numbers are computed anew.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from musiclm_jax.cli import (
  embedder_specs,
  evaluation_inputs,
  evaluation_jobs,
  jobs,
  prompt_evaluation_files,
)
from musiclm_jax.core import errors, progress, protocols
from musiclm_jax.evaluation import (
  clip_files,
  hearing,
  metric_card,
  prompt_metrics,
  prompt_results,
)

SAMPLES = "samples"
EMBEDDINGS = "embeddings"
PROMPTS = "prompts.jsonl"


def evaluate(job: evaluation_jobs.EvaluatePromptsJob) -> None:
  """Runs the job; see `evaluation_jobs.EvaluatePromptsJob`.

  Raises:
    UserError: if an input cannot be used; nothing is generated then.
  """
  if job.run:
    prompt_evaluation_files.compare(job)
    return
  specs = job.embedder or ((f"mulan:{job.bundle}",) if job.bundle else ())
  if not specs:
    raise errors.UserError("no --embedder: expected at least one that listens")
  metrics = tuple(name for name in job.metrics.split(",") if name)
  metrics = metrics or prompt_metrics.DEFAULT
  prompt_metrics.check_names(metrics)
  memorization = prompt_evaluation_files.read_memorization(job.memorization)
  prompts = evaluation_inputs.read_prompts(job)
  reference = evaluation_inputs.read_reference(job, prompts)
  listeners = [embedder_specs.open_listener(spec) for spec in specs]
  folders = job.samples_dir or _generate(job, prompts, reference)
  samples = evaluation_inputs.read_samples(folders, prompts)
  if job.samples_dir:
    evaluation_inputs.check_texts(samples, prompts, job.prompts)
  run = _Run(job, prompts, reference, samples)
  for listener in listeners:
    run.listen(listener, metrics)
  report = run.report()
  report["memorization"] = memorization
  prompt_evaluation_files.write(job, report, samples)
  for result in run.results:
    print(result.card)
  for note in run.notes:
    print(note)


def _generate(
  job: evaluation_jobs.EvaluatePromptsJob,
  prompts: evaluation_inputs.Prompts,
  reference: evaluation_inputs.Reference,
) -> tuple[str, ...]:
  """Makes the clips that are not there yet; their folder."""
  from musiclm_jax.cli import generation

  folder = pathlib.Path(job.output_dir)
  generate = jobs.GenerateJob(
    job.bundle,
    prompts=str(folder / PROMPTS),
    output_dir=str(folder / SAMPLES),
    **job.drawing(),
  )
  evaluation_inputs.write_prompts(folder / PROMPTS, prompts, job, reference)
  generation.make(generate)
  return (generate.output_dir,)


class _Run:
  """Samples and reference of a job, and what was found of them so far."""

  def __init__(
    self,
    job: evaluation_jobs.EvaluatePromptsJob,
    prompts: evaluation_inputs.Prompts,
    reference: evaluation_inputs.Reference,
    samples: Sequence[evaluation_inputs.Sample],
  ):
    self._job, self._reference, self._samples = job, reference, samples
    self._folder = pathlib.Path(job.embeddings_dir or job.output_dir)
    if not job.embeddings_dir:
      self._folder /= EMBEDDINGS
    self.results: list[prompt_results.Result] = []
    self.notes: list[str] = []
    self._timing: list[dict[str, Any]] = []
    self._bad: dict[str, list[clip_files.Bad]] = {"generated": []}
    self._clips = [sample.clip for sample in samples]
    total = len(self._clips) + len(reference.clips)
    with progress.Progress("read", total, unit="clip") as bar:
      self._keys, bad = clip_files.survey(self._clips, bar.update)
      self._note_bad("generated", bad, self._keys)
      self._reference_keys, bad = clip_files.survey(reference.clips, bar.update)
      self._note_bad("reference", bad, self._reference_keys)
    texts = prompts.texts or [sample.text for sample in samples]
    self._prompts = metric_card.fingerprint_of(texts)
    self._num_expected = max(
      prompts.num_expected * job.num_samples, len(samples)
    )

  def _note_bad(self, what, bad, keys) -> None:
    """Leaves clips out; raises UserError if these are too many."""
    noted = self._bad.setdefault(what, [])
    names = {one.name for one in noted}
    noted += [one for one in bad if one.name not in names]
    for one in bad:
      keys.pop(one.name, None)
    clips = self._clips if what == "generated" else self._reference.clips
    if noted:
      clip_files.check_bad(noted, len(clips), self._job.max_bad_fraction, what)

  def _pairs(self) -> dict[str, str]:
    """Content key of the reference clip of each sample that has one."""
    pairs = {}
    for sample in self._samples:
      clip = self._reference.pair(sample.source)
      if clip is not None and clip.name in self._reference_keys:
        pairs[sample.clip.name] = self._reference_keys[clip.name]
    return pairs

  def _material(self) -> prompt_results.Material:
    names = [clip.name for clip in self._clips if clip.name in self._keys]
    reference = dict(self._reference_keys)
    mark = clip_files.set_fingerprint(reference) if reference else ""
    return prompt_results.Material(
      names=tuple(names),
      keys=self._keys,
      texts={sample.clip.name: sample.text for sample in self._samples},
      reference_keys=tuple(reference.values()),
      pairs=self._pairs(),
      num_expected=self._num_expected,
      num_reference_expected=self._reference.num_expected,
      reference=mark,
      prompts=self._prompts,
    )

  def listen(
    self, listener: protocols.Listener, metrics: Sequence[str]
  ) -> None:
    """Hears all clips with one listener and computes its metrics."""
    if isinstance(listener, protocols.Embedder):
      clips = self._reference.clips if _needs_reference(metrics) else ()
      self._listen(
        listener,
        hearing.EMBED,
        listener.embed_audio_windows,
        clips,
        lambda store: prompt_metrics.embedded(
          listener, store, self._material(), metrics, self.notes
        ),
      )
    if isinstance(listener, protocols.Classifier) and "kld" in metrics:
      pairs = set(self._pairs().values())
      clips = [
        clip
        for clip in self._reference.clips
        if self._reference_keys.get(clip.name) in pairs
      ]
      if clips:
        self._listen(
          listener,
          hearing.CLASSIFY,
          listener.classify_windows,
          clips,
          lambda store: prompt_metrics.classified(
            listener, store, self._material(), metrics, self.notes
          ),
        )

  def _listen(self, listener, task, listen, reference, compute) -> None:
    job = self._job
    store = hearing.open_store(self._folder, listener, task, job.shard_size)
    total = len(reference) + len(self._clips)
    with progress.Progress(listener.name, total, unit="clip") as bar:
      for what, clips, keys in (
        ("reference", reference, self._reference_keys),
        ("generated", self._clips, self._keys),
      ):
        heard = hearing.fill(
          store, listen, clips, keys, job.embed_batch_size, bar.update
        )
        self._note_bad(what, heard.bad, keys)
        self._note_time(
          f"{task} {what} clips ({listener.name})", heard.num_new, heard.secs
        )
    self._compute(compute(store))

  def _compute(self, results: Iterable[prompt_results.Result]) -> None:
    for result in results:
      name = result.card.metric
      if name in {one.card.metric for one in self.results}:
        raise errors.UserError(
          f"two embedders give {name}: evaluate one of them into a folder of "
          "its own, and compare both by --run"
        )
      self.results.append(result)
      num_clips = result.card.num_items + result.card.num_reference
      self._note_time(result.card.metric, num_clips, result.secs)

  def _note_time(self, what: str, num_clips: int, secs: float) -> None:
    rate = num_clips / secs if secs > 0 and num_clips else None
    self._timing.append(
      {
        "what": what,
        "num_clips": num_clips,
        "secs": secs,
        "clips_per_sec": rate,
      }
    )

  def report(self) -> dict[str, Any]:
    """Everything found, JSON-compatible."""
    items = []
    for sample in self._samples:
      name = sample.clip.name
      if name not in self._keys:
        continue
      pair = self._reference.pair(sample.source)
      items.append(
        {
          "file": name,
          "prompt": sample.text,
          "take": sample.take,
          "seed": sample.about.get("seed"),
          "source": dict(sample.source),
          "reference": None if pair is None else pair.name,
          "key": self._keys[name],
          "scores": {
            result.card.metric: result.per_clip[name]
            for result in self.results
            if name in result.per_clip
          },
        }
      )
    about = self._samples[0].about
    return {
      "num_items": len(items),
      "num_expected": self._num_expected,
      "job": dataclasses.asdict(self._job),
      "bundle_fingerprint": about.get("bundle_fingerprint", ""),
      "fingerprints": about.get("fingerprints", {}),
      "reference": dict(self._reference.about),
      "cards": [result.card.to_dict() for result in self.results],
      "notes": self.notes,
      "kinds": _kinds(items),
      "items": items,
      "timing": self._timing,
      "bad": {
        what: [one._asdict() for one in bad] for what, bad in self._bad.items()
      },
    }


def _needs_reference(metrics: Sequence[str]) -> bool:
  return bool({"fad", "fad_infinity", "kad", "song_fad"} & set(metrics))


def _kinds(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Mean scores by kind of prompt, with intervals, where there are kinds."""
  from musiclm_jax.evaluation import bootstrap

  found: dict[str, dict[str, list[float]]] = {}
  for item in items:
    kind = item["source"].get("kind")
    if kind is not None:
      scores = found.setdefault(kind, {})
      for name, value in item["scores"].items():
        scores.setdefault(name, []).append(value)
  return {
    kind: {
      name: {
        **bootstrap.mean_interval(values).to_dict(),
        "num_items": len(values),
      }
      for name, values in scores.items()
    }
    for kind, scores in found.items()
  }
