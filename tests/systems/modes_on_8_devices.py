# SPDX-License-Identifier: Apache-2.0
"""Makes items of every mode on 1 and on 8 devices; `spread_test.py` runs this.

A program of its own, because jax fixes the number of devices when it starts.
Prints one JSON object: by mode whether codes are equal, and how many there are.
"""

import copy
import json
import pathlib
import sys
import tempfile

import jax
import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[1] / "support"))
# isort: split
import acoustic_models
import small_bundle
import tokenizer_artifacts

from musiclm_jax.core import stages
from musiclm_jax.decoding import sampling
from musiclm_jax.systems import (
  audio_prompt,
  audiolm,
  candidates,
  continuous_batching,
  melody_prompt,
  melody_tokenizer,
  prompts,
  recordings,
  stage_lm,
  story,
  streaming,
)

SEEDED, GREEDY = (1.0, 0.95, 0.4), (0.0,) * 3
TEXTS = ("flute", "drums")
SEEDS = (5, 17)
TALE = story.parse([{"at": 0, "text": TEXTS[0]}, {"at": 1.2, "text": TEXTS[1]}])


def music(kind, secs, seed):
  waveform = tokenizer_artifacts.music(secs, seed)
  return kind(waveform, tokenizer_artifacts.RATE_HZ)


SOUND = music(recordings.Recording, 2.0, 1)


def text(system, secs, draws):
  return system.sample(system.request(TEXTS, secs, SEEDS, draws))


def streamed(system, secs, draws):
  stream = streaming.Stream(system, system.request(TEXTS, secs, SEEDS, draws))
  pieces = [piece.acoustic_codes for piece in stream]
  return {"acoustic": np.concatenate(pieces, axis=1)}


def in_bulk(system, secs, draws, batch_size):
  """Three items share batches of two or eight."""
  batcher = continuous_batching.Batcher(system, batch_size)
  asked = [
    (index, lambda i=index: system.request(TEXTS[i % 2], secs, i, draws))
    for index in range(3)
  ]
  made = dict(batcher.run(asked))
  return {
    stream: np.concatenate([made[i].codes[stream] for i in range(3)])
    for stream in ("semantic", "acoustic")
  }


def best_of_two(system, secs, draws):
  found = candidates.generate(system, TEXTS[0], secs, 3, 2, 2, sampling=draws)
  return {"acoustic": np.stack([one.codes["acoustic"] for one in found[0]])}


def audio_and_mixture(system, secs, draws):
  told = [SOUND, prompts.mix((0.7, TEXTS[0]), (0.3, SOUND))]
  return system.sample(system.request(told, secs, SEEDS, draws))


def told_story(system, secs, draws):
  return system.sample(story.request(system, TALE, secs, SEEDS, draws))


def continued(system, secs, draws):
  audio = music(audio_prompt.AudioPrompt, 1.2, 2)
  return system.sample(
    audio_prompt.continuation(system, audio, secs, TEXTS, SEEDS, draws)
  )


def with_melody(system, secs, draws):
  hum = music(melody_prompt.Melody, 3.0, 3)
  return system.sample(system.request(TEXTS, secs, SEEDS, draws, hum))


def guided(system, secs, draws):
  first = sampling.SamplingConfig(draws[0], guidance=2.0)
  told = (first, *draws[1:])
  return system.sample(
    system.request(TEXTS, secs, SEEDS, told, negative="noise")
  )


SHORT = {
  "text": text,
  "stream": streamed,
  "candidates": best_of_two,
  "audio and a mixture": audio_and_mixture,
}
LONG = SHORT | {
  "story": told_story,
  "continuation": continued,
  "melody": with_melody,
  "guided": guided,
}


def write(folder):
  """A system of all parts, twice; the second on all devices."""
  path = small_bundle.write(folder, ("mulan",))
  one = audiolm.load(path)
  one.melody = melody_tokenizer.MelodyTokenizer.load(
    tokenizer_artifacts.write_melody(folder / "melody")
  )
  eight = copy.copy(one)
  streams = {
    part.stream.name: part.stream
    for part in (one.codec, one.mulan, one.semantic_tokenizer, one.melody)
  }
  marks = dict.fromkeys(streams, "")
  melody_spec = stages.semantic_melody_stage(3, 5)
  small_bundle.write_stage(folder / "hum", melody_spec, streams, marks)
  spec = stages.acoustic_stage(3, 3, 1.0)
  told = [streams[name] for name in ("mulan", "semantic", "acoustic")]
  for system in (one, eight):
    system.stages = {
      name: stage_lm.StageLM.load(path / f"stage_{name}")
      for name in ("semantic", "coarse", "fine")
    }
    system.melody_stage = stage_lm.StageLM.load(folder / "hum")
    system.acoustic = {
      "depthwise": acoustic_models.system_of(
        acoustic_models.depthwise_model(spec=spec, streams=told)
      ),
      "soundstorm": acoustic_models.system_of(
        acoustic_models.soundstorm_model(spec=spec, streams=told)
      ),
    }
  return one, eight


def compare(alone, spread, acoustic):
  """By mode, whether codes are equal, and how many there are."""
  alone, spread = (one.with_acoustic(acoustic) for one in (alone, spread))
  found = {}
  # Beyond the crops of all stages windows that go on are made too; what is
  # greedy has first ones only: each program takes a second to compile.
  for how, draws, secs, modes in (
    ("seeded", SEEDED, 2.5, LONG if acoustic == "stages" else SHORT),
    ("greedy", GREEDY, 1.0, SHORT),
  ):
    made = {
      name: [mode(system, secs, draws) for system in (alone, spread)]
      for name, mode in modes.items()
    }
    made["bulk"] = [
      in_bulk(alone, secs, draws, 2), in_bulk(spread, secs, draws, 8)
    ]  # fmt: skip
    for name, (first, second) in made.items():
      found[f"{acoustic}, {how}, {name}"] = (
        first.keys() == second.keys()
        and all(np.array_equal(first[key], second[key]) for key in first),
        len(np.unique(first["acoustic"])),
      )
  return found


def main() -> None:
  with tempfile.TemporaryDirectory() as folder:
    alone, spread = write(pathlib.Path(folder))
  choices = ("stages", "depthwise", "soundstorm")
  for acoustic in choices:
    spread.with_acoustic(acoustic).spread(jax.devices())
  found = {}
  for acoustic in choices:
    found |= compare(alone, spread, acoustic)
  print(json.dumps({"num_devices": len(jax.devices()), "modes": found}))


if __name__ == "__main__":
  main()
