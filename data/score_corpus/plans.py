# SPDX-License-Identifier: Apache-2.0
"""Which arrangements are made: dealt from decks, so that all facts balance.

Pieces flow in; one `Plan` per clip flows out. Dealing from shuffled decks,
not drawing, makes every instrument and every tempo occur nearly equally often
even in a corpus of two hundred clips.
"""

import collections
import dataclasses
import math
import random
from collections.abc import Collection, Iterable, Sequence

from . import instruments, works

TEMPOS = ("slow", "moderate", "fast")
LOUDNESSES = ("soft", "medium", "loud")
SPLITS = ("train", "validation", "test")
# A corpus with more unusable scores than this is not the one described.
_MAX_UNUSABLE_FRACTION = 0.05


@dataclasses.dataclass(frozen=True)
class SizeSpec:
  """How much of a corpus is made.

  Attributes:
    counts: works by category.
    num_test_works: works in the test split.
    num_validation_works: works in the validation split.
    num_train_clips: clips in train, dealt over its works in turn.
    num_test_arrangements: arrangements of each test work.
    num_validation_arrangements: arrangements of each validation work.
    clip_secs: seconds of each clip.
    all_instruments: whether instruments outside the core are used.
  """

  counts: dict[str, int]
  num_test_works: int
  num_validation_works: int
  num_train_clips: int
  num_test_arrangements: int
  num_validation_arrangements: int
  clip_secs: float
  all_instruments: bool


SIZES = {
  # 33 minutes in train.
  "tiny": SizeSpec(
    {"chorale": 72, "fiddle": 66, "folk": 44, "oneill": 38, "classical": 10},
    num_test_works=45,
    num_validation_works=20,
    num_train_clips=198,
    num_test_arrangements=3,
    num_validation_arrangements=1,
    clip_secs=10.0,
    all_instruments=False,
  ),
  # 10 hours in train.
  "small": SizeSpec(
    {
      "chorale": 230,
      "fiddle": 260,
      "folk": 220,
      "oneill": 220,
      "classical": 26,
    },
    num_test_works=100,
    num_validation_works=40,
    num_train_clips=1200,
    num_test_arrangements=3,
    num_validation_arrangements=2,
    clip_secs=30.0,
    all_instruments=True,
  ),
}


def get_size(name: str, share: float = 1.0) -> SizeSpec:
  """A size, or a share of its works and clips.

  Raises:
    ValueError: if there is no such size, or the share is not in (0, 1].
  """
  if name not in SIZES:
    raise ValueError(
      f"size={name!r} of score_corpus: expected one of {sorted(SIZES)}"
    )
  if not 0 < share <= 1:
    raise ValueError(f"share={share} of score_corpus: expected in (0, 1]")
  size = SIZES[name]
  fewer = {
    field: math.ceil(share * getattr(size, field))
    for field in ("num_test_works", "num_validation_works", "num_train_clips")
  }
  counts = {key: math.ceil(share * n) for key, n in size.counts.items()}
  return dataclasses.replace(size, counts=counts, **fewer)


@dataclasses.dataclass(frozen=True)
class Plan:
  """One arrangement of one work.

  Attributes:
    clip_id: unique over the corpus.
    work_id: of its `works.Work`.
    arrangement: 0, 1, ... among the arrangements of the work.
    split: 'train', 'validation' or 'test'.
    ensemble: 'solo', 'duo' or 'quartet'.
    lead: instrument of the melody; the quartet's name for a quartet.
    partner: accompanying instrument of a duo, else ''.
    tempo: one of `TEMPOS`.
    loudness: one of `LOUDNESSES`.
    register: 'low', 'middle' or 'high', where the melody is set.
    has_drums: whether a drum kit plays along.
    secs: length of the clip.
    seed: of everything else that is random in it.
  """

  clip_id: str
  work_id: str
  arrangement: int
  split: str
  ensemble: str
  lead: str
  partner: str
  tempo: str
  loudness: str
  register: str
  has_drums: bool
  secs: float
  seed: int


class _Deck:
  """Deals cards in random order; reshuffles when all are dealt."""

  def __init__(self, cards: Iterable, rng: random.Random):
    self._cards, self._rng = tuple(cards), rng
    self._left: list = []

  def deal(self, refused: Collection = ()):
    """The next card that is not refused.

    When only refused cards are left, a fresh pack goes under them. When a
    whole pack is refused, the next card is dealt all the same.
    """
    for _ in range(2):
      for index in reversed(range(len(self._left))):
        if self._left[index] not in refused:
          return self._left.pop(index)
      pack = list(self._cards)
      self._rng.shuffle(pack)
      self._left = pack + self._left
    return self._left.pop()


class _Dealer:
  """All decks of one split."""

  def __init__(self, split: str, size: SizeSpec, seed: int):
    self._rng = random.Random(f"{seed}/plans/{split}")
    self._split, self._size, self._seed = split, size, seed
    leads = [
      item.name
      for item in instruments.INSTRUMENTS
      if item.is_core or size.all_instruments
    ]
    quartets = [
      item.name
      for item in instruments.QUARTETS
      if item.is_core or size.all_instruments
    ]
    # Two of every instrument for one of every quartet, which is as often as
    # an instrument leads a solo.
    cards = [("single", name) for name in leads] * 2
    cards += [("quartet", name) for name in quartets] * 2
    self._leads = _Deck(cards, self._rng)
    self._used: dict[str, set] = collections.defaultdict(set)
    self._ensembles: dict[str, _Deck] = {}
    self._registers: dict[str, _Deck] = {}
    self._partners = _Deck(instruments.PARTNERS, self._rng)
    self._tempos = _Deck(TEMPOS, self._rng)
    self._loudnesses = _Deck(LOUDNESSES, self._rng)
    self._drums = _Deck((True, True, False, False, False), self._rng)

  def _deck(self, decks: dict, name: str, cards: Iterable) -> _Deck:
    if name not in decks:
      decks[name] = _Deck(cards, self._rng)
    return decks[name]

  def plan(self, work_id: str, arrangement: int) -> Plan:
    # Arrangements of one work have different leads.
    card = self._leads.deal(self._used[work_id])
    self._used[work_id].add(card)
    kind, lead = card
    ensemble, partner, registers = "quartet", "", ("middle", "high")
    if kind == "single":
      registers = instruments.BY_NAME[lead].registers
      ensemble = self._deck(self._ensembles, lead, ("solo", "duo")).deal()
    if ensemble == "duo":
      partner = self._partners.deal({lead})
    return Plan(
      clip_id=f"{work_id}#{arrangement}",
      work_id=work_id,
      arrangement=arrangement,
      split=self._split,
      ensemble=ensemble,
      lead=lead,
      partner=partner,
      tempo=self._tempos.deal(),
      loudness=self._loudnesses.deal(),
      register=self._deck(self._registers, lead, registers).deal(),
      has_drums=self._drums.deal(),
      secs=self._size.clip_secs,
      seed=self._rng.randrange(1 << 30),
    )


def usable_pieces(parsed: Sequence[works.Piece | str]) -> list[works.Piece]:
  """The pieces among parsed scores, in order.

  Args:
    parsed: pieces, or why a score is unusable.

  Raises:
    RuntimeError: if more than one in twenty is unusable.
  """
  pieces = [item for item in parsed if not isinstance(item, str)]
  num_bad = len(parsed) - len(pieces)
  if num_bad > _MAX_UNUSABLE_FRACTION * len(parsed):
    first = next(item for item in parsed if isinstance(item, str))
    raise RuntimeError(
      f"{num_bad} of {len(parsed)} scores are unusable, such as {first}: "
      "expected the corpus of music21 9 or 10"
    )
  return pieces


def split_works(
  pieces: Sequence[works.Piece], size: SizeSpec, seed: int
) -> dict[str, list[str]]:
  """Work ids by split; pieces that share a melody stay together."""
  members: dict[int, list[str]] = collections.defaultdict(list)
  for piece, group in zip(pieces, works.melody_groups(pieces)):
    members[group].append(piece.work_id)
  groups = [members[group] for group in sorted(members)]
  random.Random(f"{seed}/split").shuffle(groups)
  splits: dict[str, list[str]] = {"test": [], "validation": [], "train": []}
  wanted = {
    "test": size.num_test_works,
    "validation": size.num_validation_works,
  }
  for group in groups:
    for split, count in wanted.items():
      if len(splits[split]) + len(group) <= count:
        splits[split].extend(group)
        break
    else:
      splits["train"].extend(group)
  return splits


def make_plans(
  pieces: Sequence[works.Piece], size: SizeSpec, seed: int
) -> list[Plan]:
  """All clips of a corpus, in split order."""
  splits = split_works(pieces, size, seed)
  counts = {
    "train": size.num_train_clips,
    "validation": len(splits["validation"]) * size.num_validation_arrangements,
    "test": len(splits["test"]) * size.num_test_arrangements,
  }
  plans = []
  for split, count in counts.items():
    work_ids = splits[split]
    dealer = _Dealer(split, size, seed)
    plans.extend(
      dealer.plan(work_ids[index % len(work_ids)], index // len(work_ids))
      for index in range(count if work_ids else 0)
    )
  return plans
