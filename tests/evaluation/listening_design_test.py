# SPDX-License-Identifier: Apache-2.0
"""Every pair as often, in either order, for every rater; nothing twice."""

import collections
import itertools

import pytest

from musiclm_jax.evaluation import listening_design as design

SHAPES = [
  # MusicLM's: 1200 ratings of 4 sources, each in 600.
  design.Shape(4, 1000, 20, 60, 1),
  design.Shape(3, 20, 3, 60, 3),
  design.Shape(2, 7, 4, 5, 2),
  design.Shape(5, 12, 6, 30, 2),
  design.Shape(3, 1, 2, 3, 1),
]


def unordered(question):
  return tuple(sorted((question.first, question.second)))


@pytest.mark.parametrize("shape", SHAPES)
def test_balance(shape):
  sheets = design.sheets(shape, seed=5)
  assert len(sheets) == shape.num_raters
  pairs = design.pairs(shape.num_systems)
  sources = collections.Counter()
  for sheet in sheets:
    counts = collections.Counter(map(unordered, sheet))
    assert counts == dict.fromkeys(pairs, shape.rounds)
    # Nothing is asked twice, in whatever order.
    assert len({(unordered(q), q.prompt) for q in sheet}) == len(sheet)
    # Every stretch of a sheet has all pairs.
    for start in range(0, len(sheet), len(pairs)):
      stretch = sheet[start : start + len(pairs)]
      assert {unordered(question) for question in stretch} == set(pairs)
    for pair in pairs:
      first = sum((q.first, q.second) == pair for q in sheet)
      assert abs(2 * first - shape.rounds) <= 1
    for system in range(shape.num_systems):
      first = sum(q.first == system for q in sheet)
      second = sum(q.second == system for q in sheet)
      assert abs(first - second) <= 1
      sources[system] += first + second
    texts = collections.Counter(q.prompt for q in sheet)
    if len(texts) == shape.num_prompts:
      assert max(texts.values()) - min(texts.values()) <= 1
  assert len(set(sources.values())) == 1
  if shape.num_systems == 4:
    assert sources[0] == 600


@pytest.mark.parametrize("shape", SHAPES)
def test_groups_share_comparisons_and_hear_both_orders(shape):
  sheets = design.sheets(shape, seed=5)
  size = shape.raters_per_comparison
  for start in range(0, shape.num_raters, size):
    group = sheets[start : start + size]
    orders = collections.defaultdict(list)
    for sheet in group:
      for question in sheet:
        low = min(question.first, question.second)
        orders[unordered(question), question.prompt].append(
          question.first == low
        )
    assert all(len(found) == size for found in orders.values())
    assert all(abs(2 * sum(found) - size) <= 1 for found in orders.values())
  if size > 1 and shape.num_prompts > 1:
    assert [q.prompt for q in sheets[0]] != [q.prompt for q in sheets[1]]


def test_texts_do_not_follow_themselves_where_there_is_a_choice():
  for sheet in design.sheets(SHAPES[0], seed=1):
    assert all(a.prompt != b.prompt for a, b in itertools.pairwise(sheet))


def test_seeds_decide():
  shape = SHAPES[3]
  assert design.sheets(shape, 1) == design.sheets(shape, 1)
  assert design.sheets(shape, 1) != design.sheets(shape, 2)


def test_checks_are_spread():
  for seed in range(50):
    places = design.check_places(60, 6, seed)
    assert places == sorted(set(places)) and 0 not in places
    for number, place in enumerate(places):
      assert 10 * number <= place - number <= 10 * (number + 1)
  assert design.check_places(3, 0, 0) == []


@pytest.mark.parametrize(
  "numbers, message",
  [
    ((1, 5, 2, 3, 1), "num_systems=1"),
    ((3, 5, 2, 4, 1), "expected a multiple of 3"),
    ((3, 5, 2, 18, 1), "expected at most 15"),
    ((3, 5, 5, 15, 2), "divisor of num_raters=5"),
    ((3, 5, 0, 15, 1), "num_raters=0"),
  ],
)
def test_refuses(numbers, message):
  with pytest.raises(ValueError, match=message):
    design.Shape(*numbers)
