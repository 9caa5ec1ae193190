# SPDX-License-Identifier: Apache-2.0
"""Which versions of each melody are made: pieces in, one plan per clip out.

All versions of a work play the same stretch of its score. The first ones are
in the key of the score, so that a reader who wants melodies in their key takes
those alone.
"""

import dataclasses
import math
import random
from collections.abc import Iterator, Sequence

from ..score_corpus import instruments, plans, works

TEXTURES = ("chords", "arpeggios", "bass notes", "lower voices")
# Versions of held-out works, by what differs from the reference, a piano alone.
# The first `NUM_SAME_KEY` are in the key of the score.
TRANSFORMATIONS = (
  "reference",
  "instrument",
  "register",
  "tempo",
  "accompaniment",
  "arrangement",
  "hum",
  "whistle",
  "key",
  "everything",
)
NUM_SAME_KEY = {"train": 8, "validation": 8, "test": 8}
NUM_VERSIONS = {"train": 11, "validation": 10, "test": 10}
_TRAIN_VOICES = (
  *("hum", "hum", "whistle", *["instrument"] * 5),  # in the score's key
  *("hum", "instrument", "instrument"),
)
_REFERENCE = "piano"
# Largest change of tempo, faster or slower.
MAX_TEMPO_RATIO = 1.25


@dataclasses.dataclass(frozen=True)
class SizeSpec:
  """How much is made.

  Attributes:
    score_size: key of `plans.SIZES` of score_corpus: works and their splits.
    train_secs: seconds of score in a training clip, at the middle tempo.
    heldout_secs: the same of the other splits.
  """

  score_size: str
  train_secs: float
  heldout_secs: float


SIZES = {
  "tiny": SizeSpec("tiny", 14.0, 10.0),
  "small": SizeSpec("small", 14.0, 10.0),
}


def get_size(name: str) -> SizeSpec:
  """A size.

  Raises:
    ValueError: if there is none of this name.
  """
  if name not in SIZES:
    raise ValueError(
      f"size={name!r} of melody_pairs: expected one of {sorted(SIZES)}"
    )
  return SIZES[name]


@dataclasses.dataclass(frozen=True)
class Version:
  """One version of one melody.

  Attributes:
    work_id: of its `works.Work`.
    split: 'train', 'validation' or 'test'.
    index: 0, 1, ... among the versions of the work.
    transformation: of `TRANSFORMATIONS`, or 'mixed' in train.
    voice: 'instrument', 'hum' or 'whistle'.
    lead: instrument of the melody; '' if it is hummed or whistled.
    partner: instrument of the accompaniment, or ''.
    texture: of `TEXTURES`, or '' without accompaniment.
    has_drums: whether a drum kit plays along.
    semitones: transposition of everything, not counting octaves.
    octave: which of the octaves that lie well for the lead, 0 for the lowest
      and 1 for the highest.
    tempo_ratio: over the middle tempo.
    score_secs: seconds of score, at the middle tempo.
    work_seed: of where in the score it begins.
    seed: of everything else that is random in it.
  """

  work_id: str
  split: str
  index: int
  transformation: str
  voice: str = "instrument"
  lead: str = _REFERENCE
  partner: str = ""
  texture: str = ""
  has_drums: bool = False
  semitones: int = 0
  octave: float = 0.5
  tempo_ratio: float = 1.0
  score_secs: float = 10.0
  work_seed: int = 0
  seed: int = 0

  @property
  def clip_id(self) -> str:
    return f"{self.work_id}~{self.index}"


def _tempo_ratio(rng: random.Random) -> float:
  limit = math.log(MAX_TEMPO_RATIO)
  return math.exp(rng.uniform(-limit, limit))


def _accompaniment(rng: random.Random, lead: str) -> dict[str, str]:
  partners = [name for name in instruments.PARTNERS if name != lead]
  return {"partner": rng.choice(partners), "texture": rng.choice(TEXTURES)}


def _other_key(rng: random.Random) -> int:
  return rng.choice([step for step in range(-5, 7) if step])


def _train_changes(rng: random.Random) -> Iterator[dict]:
  """What differs, of each version of a work in train."""
  names = [item.name for item in instruments.INSTRUMENTS]
  leads = iter(rng.sample(names, len(_TRAIN_VOICES)))
  for index, voice in enumerate(_TRAIN_VOICES):
    change = {
      "voice": voice,
      "lead": next(leads) if voice == "instrument" else "",
      "octave": rng.random(),
      "tempo_ratio": _tempo_ratio(rng),
    }
    if voice == "instrument" and rng.random() < 0.5:
      change |= _accompaniment(rng, change["lead"])
      change["has_drums"] = rng.random() < 0.3
    if index >= NUM_SAME_KEY["train"]:
      change["semitones"] = _other_key(rng)
    yield {"transformation": "mixed", **change}


def _heldout_changes(rng: random.Random) -> Iterator[dict]:
  """One transformation each, in the order of `TRANSFORMATIONS`."""
  names = [i.name for i in instruments.INSTRUMENTS if i.name != _REFERENCE]
  lead, other, third = rng.sample(names, 3)
  faster = rng.choice((MAX_TEMPO_RATIO, 1 / MAX_TEMPO_RATIO))

  def arrangement(lead: str) -> dict:
    return {
      "lead": lead,
      "octave": rng.random(),
      "tempo_ratio": _tempo_ratio(rng),
      "has_drums": rng.random() < 0.5,
      **_accompaniment(rng, lead),
    }

  changes = {
    "reference": {},
    "instrument": {"lead": lead},
    "register": {"octave": rng.choice((0.0, 1.0))},
    "tempo": {"tempo_ratio": faster},
    "accompaniment": _accompaniment(rng, ""),
    "arrangement": arrangement(other),
    "hum": {"voice": "hum", "lead": ""},
    "whistle": {"voice": "whistle", "lead": ""},
    "key": {"semitones": _other_key(rng)},
    "everything": {**arrangement(third), "semitones": _other_key(rng)},
  }
  for name in TRANSFORMATIONS:
    yield {"transformation": name, **changes[name]}


def make_versions(
  pieces: Sequence[works.Piece], size: str, seed: int, share: float = 1.0
) -> list[Version]:
  """Plans of all clips: by split, then by work, then by version.

  Splits are those of `score_corpus` of the same size and seed.

  Args:
    pieces: all usable pieces of that corpus, in its order.
    size: key of `SIZES`.
    seed: of splits and versions.
    share: of the works.
  """
  spec = get_size(size)
  score_size = plans.get_size(spec.score_size, share)
  splits = plans.split_works(pieces, score_size, seed)
  made = []
  for split in plans.SPLITS:
    is_train = split == "train"
    for work_id in splits[split]:
      rng = random.Random(f"{seed}/versions/{work_id}")
      work_seed = rng.randrange(1 << 30)
      changes = _train_changes(rng) if is_train else _heldout_changes(rng)
      for index, change in enumerate(changes):
        made.append(
          Version(
            work_id=work_id,
            split=split,
            index=index,
            score_secs=spec.train_secs if is_train else spec.heldout_secs,
            work_seed=work_seed,
            seed=rng.randrange(1 << 30),
            **change,
          )
        )
  return made
