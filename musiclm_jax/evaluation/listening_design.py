# SPDX-License-Identifier: Apache-2.0
"""Who compares what: numbers of systems, prompts and raters in, sheets out.

The pairwise protocol of MusicLM (section 5.2): every pair of systems equally
often, so each system in the same number of comparisons. Here each pair is also
heard equally often in either order, and each stretch of a sheet has all pairs.
"""

import dataclasses
import itertools
import math

import numpy as np

# Orders that are drawn to find one in which a text does not come twice running.
_MAX_TRIES = 64


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One question to one rater.

  Attributes:
    prompt: index of the text.
    first: index of the system that is heard as clip A.
    second: index of the system that is heard as clip B.
  """

  prompt: int
  first: int
  second: int


@dataclasses.dataclass(frozen=True)
class Shape:
  """How large a test is.

  Attributes:
    num_systems: that are compared, at least 2.
    num_prompts: for which each system has a clip.
    num_raters: sheets to make.
    comparisons_per_rater: without attention checks; as many of each pair.
    raters_per_comparison: raters who judge the same clips; divides
      `num_raters`.
  """

  num_systems: int
  num_prompts: int
  num_raters: int
  comparisons_per_rater: int
  raters_per_comparison: int

  def __post_init__(self):
    if self.num_systems < 2:
      raise ValueError(f"num_systems={self.num_systems}: expected at least 2")
    for field in dataclasses.fields(self):
      if getattr(self, field.name) < 1:
        raise ValueError(
          f"{field.name}={getattr(self, field.name)}: expected at least 1"
        )
    if self.comparisons_per_rater % self.num_pairs:
      raise ValueError(
        f"comparisons_per_rater={self.comparisons_per_rater}: expected a "
        f"multiple of {self.num_pairs}, the pairs of {self.num_systems} systems"
      )
    if self.rounds > self.num_prompts:
      raise ValueError(
        f"comparisons_per_rater={self.comparisons_per_rater} of "
        f"{self.num_prompts} prompts and {self.num_pairs} pairs: expected at "
        f"most {self.num_prompts * self.num_pairs}"
      )
    if self.num_raters % self.raters_per_comparison:
      raise ValueError(
        f"raters_per_comparison={self.raters_per_comparison}: expected a "
        f"divisor of num_raters={self.num_raters}"
      )

  @property
  def num_pairs(self) -> int:
    """Pairs of different systems."""
    return math.comb(self.num_systems, 2)

  @property
  def rounds(self) -> int:
    """Comparisons of each pair on a sheet."""
    return self.comparisons_per_rater // self.num_pairs


def pairs(num_systems: int) -> list[tuple[int, int]]:
  """All pairs of indices of systems, the lower one first."""
  return list(itertools.combinations(range(num_systems), 2))


def _leads(low: int, high: int, num_systems: int) -> bool:
  """Which of a pair is first the odd time: each system about as often."""
  distance = high - low
  if 2 * distance == num_systems:
    return low % 2 == 0
  return 2 * distance < num_systems


def _questions(
  shape: Shape, group: int, row: int, order: np.ndarray
) -> list[list[Comparison]]:
  """Of one rater, by pair: `[pairs][rounds]`.

  Args:
    shape: of the test.
    group: of raters who judge the same clips.
    row: of the rater in the group; neighbours hear the other order.
    order: the prompts, shuffled.
  """
  found = []
  for index, (low, high) in enumerate(pairs(shape.num_systems)):
    lead = _leads(low, high, shape.num_systems)
    # Pairs take turns along the prompts, so each is asked as often.
    start = (index + group) * shape.rounds
    mine = []
    for turn in range(shape.rounds):
      prompt = int(order[(start + turn) % shape.num_prompts])
      is_low_first = lead ^ bool((turn + row + group) % 2)
      first, second = (low, high) if is_low_first else (high, low)
      mine.append(Comparison(prompt, first, second))
    found.append(mine)
  return found


def _in_rounds(
  questions: list[list[Comparison]], generator: np.random.Generator
) -> list[Comparison]:
  """Rounds with one of each pair, in an order without the same text twice."""
  best, least = [], math.inf
  for _ in range(_MAX_TRIES):
    shuffled = [
      [mine[place] for place in generator.permutation(len(mine))]
      for mine in questions
    ]
    sheet = []
    for turn in range(len(questions[0])):
      for index in generator.permutation(len(questions)):
        sheet.append(shuffled[index][turn])
    repeats = sum(a.prompt == b.prompt for a, b in itertools.pairwise(sheet))
    if repeats < least:
      best, least = sheet, repeats
    if not least:
      break
  return best


def sheets(shape: Shape, seed: int) -> list[list[Comparison]]:
  """The questions of all raters, each in the order they are asked.

  Args:
    shape: how many of everything.
    seed: of prompts and orders. Who knows it can tell which system made which
      clip.

  Returns:
    `num_raters` sheets of `comparisons_per_rater` each. On a sheet every pair
    has the same number of comparisons, no comparison twice, and either order
    as often (once more where the number is odd); raters of a group have the
    same comparisons in different orders.
  """
  order = np.random.default_rng([seed, 0]).permutation(shape.num_prompts)
  found = []
  for rater in range(shape.num_raters):
    group, row = divmod(rater, shape.raters_per_comparison)
    generator = np.random.default_rng([seed, 1, rater])
    found.append(_in_rounds(_questions(shape, group, row, order), generator))
  return found


def check_places(num_comparisons: int, num_checks: int, seed: int) -> list[int]:
  """Where attention checks stand: one in each equal stretch of a sheet.

  Args:
    num_comparisons: of the sheet, without checks.
    num_checks: to place.
    seed: of the places.

  Returns:
    Indices into the sheet with checks, rising, below
    `num_comparisons + num_checks`; not 0, for the first is to learn the page.
  """
  generator = np.random.default_rng([seed, 2])
  ends = np.linspace(0, num_comparisons, num_checks + 1).round().astype(int)
  return [
    int(generator.integers(max(low, 1), max(high, 1) + 1)) + before
    for before, (low, high) in enumerate(itertools.pairwise(ends))
  ]
