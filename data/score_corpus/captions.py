# SPDX-License-Identifier: Apache-2.0
"""Facts of an arrangement in words: captions in several phrasings, aspects.

Every full caption names instruments, drums, tempo, register, loudness and
mode; wording varies with a seed, facts never do.
"""

import random

from . import arrange, instruments

_TEMPO = {
  "slow": ("slow", "slow-paced", "unhurried"),
  "moderate": ("moderate", "medium", "walking-pace"),
  "fast": ("fast", "quick", "rapid"),
}
_REGISTER = {
  "low": ("in a low register", "with low, deep notes", "with a low pitch"),
  "middle": (
    "in the middle register",
    "with mid-range notes",
    "with a medium pitch",
  ),
  "high": ("in a high register", "with high notes", "with a high pitch"),
}
_LOUDNESS = {
  "soft": ("soft", "quiet", "hushed"),
  "medium": ("medium-loud", "neither soft nor loud", "moderately loud"),
  "loud": ("loud", "forceful", "powerful"),
}
_ADVERB = {"soft": "softly", "medium": "at a medium volume", "loud": "loudly"}
_DRUMS = (" with drums", " with a drum kit", " over a drum beat")
_NO_DRUMS = (", without drums", ", no drums", ", no percussion")
_METER = {
  "3/4": "waltz-like three-four time",
  "6/8": "lilting six-eight time",
  "9/8": "lilting nine-eight time",
  "4/4": "four-four time",
  "2/4": "two-four time",
}
_TEXTURE = {
  "unaccompanied melody": "a single unaccompanied melody line",
  "several voices": "several voices in harmony",
  "four voices": "four voices in harmony",
  "lower voices": "lower voices under the melody",
  "chords": "block chords under the melody",
  "arpeggios": "arpeggios under the melody",
  "bass notes": "plain bass notes under the melody",
}


_STYLE_NOUN = {"ragtime": "rag", "classical": "classical piece"}


def mood(facts: arrange.Facts) -> str:
  """A word for how it feels, fixed by tempo, loudness and mode."""
  if facts.tempo == "slow":
    if facts.loudness == "loud":
      return "solemn"
    if facts.mode == "minor":
      return "melancholic"
    return "gentle" if facts.loudness == "soft" else "calm"
  if facts.tempo == "fast":
    if facts.loudness == "loud":
      return "energetic"
    if facts.loudness == "soft":
      return "light"
    return "cheerful" if facts.mode == "major" else "restless"
  if facts.loudness == "loud":
    return "confident"
  return "relaxed" if facts.loudness == "soft" else "steady"


def _with_article(words: str) -> str:
  return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _capital(words: str) -> str:
  return words[0].upper() + words[1:]


def _name(lead: str, rng: random.Random) -> str:
  other = instruments.BY_NAME[lead].other_names
  # The plain name twice as often as all others together.
  return rng.choice(other) if other and rng.random() < 0.3 else lead


def _players(facts: arrange.Facts, rng: random.Random) -> str:
  """The instruments, as a noun phrase without article."""
  if facts.ensemble == "quartet":
    quartet = instruments.QUARTETS_BY_NAME[facts.lead]
    return rng.choice(
      (quartet.name, quartet.name, f"{quartet.name} of {quartet.members}")
    )
  lead = _name(facts.lead, rng)
  if facts.ensemble == "solo":
    # Beside drums a soloist is not unaccompanied.
    alone = "solo" if facts.has_drums else "unaccompanied"
    return rng.choice((f"solo {lead}", f"{alone} {lead}", f"{lead} solo"))
  return rng.choice(
    (
      f"{lead} with {facts.partner}",
      f"{lead} accompanied by {facts.partner}",
      f"{lead} and {facts.partner} duo",
    )
  )


def key_name(facts: arrange.Facts) -> str:
  """'D minor'."""
  return f"{arrange.PITCH_NAMES[facts.tonic]} {facts.mode}"


def captions(facts: arrange.Facts, seed: int) -> list[str]:
  """Five captions of one arrangement, the most complete first.

  Args:
    facts: all that may be said.
    seed: of the wording.

  Returns:
    Five different sentences or phrases.
  """
  rng = random.Random(f"{seed}/captions")

  def drums() -> str:
    return rng.choice(_DRUMS if facts.has_drums else _NO_DRUMS)

  def tempo() -> str:
    return rng.choice(_TEMPO[facts.tempo])

  def register() -> str:
    return rng.choice(_REGISTER[facts.register])

  def loud() -> str:
    return rng.choice(_LOUDNESS[facts.loudness])

  def players() -> str:
    return _players(facts, rng)

  feeling, mode = mood(facts), facts.mode
  style = _STYLE_NOUN.get(facts.style, facts.style)
  meter = _METER.get(facts.meter)
  return [
    f"{_capital(players())}{drums()}, {tempo()} tempo, {register()}, {loud()}, "
    f"in a {mode} key.",
    f"{_capital(_with_article(f'{feeling}, {tempo()} {style}'))} for "
    f"{players()}{drums()}, {register()}, {loud()}, {mode} mode.",
    f"{_capital(players())}{drums()}, playing {_with_article(feeling)} tune "
    f"{_ADVERB[facts.loudness]} at a {tempo()} tempo and {register()}, with "
    f"{_TEXTURE[facts.texture]}.",
    ", ".join(aspects(facts)[: rng.choice((7, 8))]),
    f"{_capital(players())}{drums()}. The tempo is {facts.tempo}, the music is "
    f"{loud()} and played {register()}. It is in {key_name(facts)}"
    + (f" and {meter}." if meter else "."),
  ]


def beats_per_minute(facts: arrange.Facts) -> int:
  """The tempo, counted in the note value that fits the word for it.

  A fast melody of half notes is counted in halves, a slow one of sixteenths
  in eighths: 'slow' is below 76, 'fast' from 120 up, 'moderate' between 70
  and 140.
  """
  lowest = {"slow": 38.0, "moderate": 70.0, "fast": 120.0}[facts.tempo]
  rate = facts.quarters_per_minute
  while rate < lowest:
    rate *= 2
  while rate >= 2 * lowest:
    rate /= 2
  return round(rate)


def aspects(facts: arrange.Facts) -> list[str]:
  """Short tags, instruments first."""
  if facts.ensemble == "quartet":
    tags = [facts.lead]
  elif facts.ensemble == "solo":
    tags = [f"solo {facts.lead}"]
  else:
    tags = [facts.lead, f"{facts.partner} accompaniment"]
  tags += [
    "drums" if facts.has_drums else "no drums",
    f"{facts.tempo} tempo",
    f"{facts.register} register",
    {"soft": "soft", "medium": "medium loudness", "loud": "loud"}[
      facts.loudness
    ],
    f"{facts.mode} key",
    facts.style,
    mood(facts),
    facts.texture,
    f"{facts.meter} meter",
    f"key of {key_name(facts)}",
    f"about {beats_per_minute(facts)} beats per minute",
  ]
  return tags
