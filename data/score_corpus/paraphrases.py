# SPDX-License-Identifier: Apache-2.0
"""Descriptions in words that no caption of this corpus uses: for evaluation.

The aspects of a clip, as stored, flow in; its facts, tags and a paraphrase
flow out. No caption is worded so, hence no model has read such a sentence:
every template and every phrase for a fact has a word that captions lack.
"""

import dataclasses
import random
from collections.abc import Sequence

from . import instruments

# Of each instrument, who or what sounds.
_PLAYERS = {
  "piano": ("a pianist", "someone at a pianoforte"),
  "harpsichord": ("a harpsichordist", "plucked baroque clavier"),
  "church organ": ("an organist", "cathedral pipes"),
  "acoustic guitar": ("a guitarist on a Spanish six-string", "guitar picking"),
  "banjo": ("a banjoist", "bluegrass banjo picking"),
  "music box": ("a wind-up musical toy", "a tinkling musical clockwork"),
  "marimba": ("a marimbist", "wooden bars struck by mallets"),
  "violin": ("a violinist", "one bowed violin string"),
  "cello": ("a cellist", "a violoncello"),
  "string ensemble": ("an orchestral strings section", "massed bowed strings"),
  "choir": ("a chorus of singers", "wordless choral singing"),
  "flute": ("a flautist", "a transverse woodwind flute"),
  "clarinet": ("a clarinettist", "the reedy sound of a clarinet"),
  "trumpet": ("a trumpeter", "a bright trumpet fanfare sound"),
  "tuba": ("a tubist", "a huge brass bass horn"),
  "synth lead": ("an electronic synthesizer player", "buzzing electronics"),
  "oboe": ("an oboist", "the nasal double reed of an oboe"),
  "bassoon": ("a bassoonist", "a deep double reed"),
  "french horn": ("a hornist", "a hunting horn's mellow call"),
  "trombone": ("a trombonist", "sliding brass"),
  "alto saxophone": ("a saxophonist", "a jazzy sax"),
  "vibraphone": ("a vibraphonist", "metal bars struck by mallets"),
  "harp": ("a harpist", "plucked harp glissandi"),
  "accordion": ("an accordionist", "a squeezebox"),
  "sitar": ("a sitarist", "twanging Indian strings"),
  "distorted electric guitar": (
    "a rock guitarist",
    "overdriven heavy metal guitar",
  ),
  "pan flute": ("panpipes", "breathy Andean pipes"),
  "string quartet": ("four bowed players", "chamber strings, four players"),
  "brass quartet": ("four brass players", "a small brass band"),
  "woodwind quartet": ("four wind players", "a small wind band"),
  "saxophone quartet": ("four saxophonists", "a small band of saxes"),
}
_TEMPO = {
  "slow": ("leisurely", "dragging", "sluggish"),
  "moderate": ("strolling", "middling", "ambling"),
  "fast": ("brisk", "hurrying", "racing"),
}
_REGISTER = {
  "low": ("down among the bass pitches", "far below", "at the bottom"),
  "middle": ("around the centre", "halfway up", "at average height"),
  "high": ("up in the treble", "far above", "at the top"),
}
_LOUDNESS = {
  "soft": ("barely audible", "whispering", "delicate"),
  "medium": ("at ordinary volume", "of average strength", "fairly audible"),
  "loud": ("thunderous", "blaring", "at full blast"),
}
_MODE = {
  "major": ("sunny, bright harmony", "a happy-sounding scale"),
  "minor": ("gloomy, dark harmony", "a sad-sounding scale"),
}
_DRUMS = {
  True: ("a drummer joins in", "someone hits snare and cymbals"),
  False: ("nobody is drumming", "there is no drummer"),
}
_MOOD = {
  "solemn": ("grave", "ceremonious"),
  "melancholic": ("mournful", "wistful"),
  "gentle": ("tender", "sweet"),
  "calm": ("peaceful", "serene"),
  "energetic": ("lively", "vigorous"),
  "light": ("airy", "playful"),
  "cheerful": ("joyful", "merry"),
  "restless": ("agitated", "nervous"),
  "confident": ("bold", "self-assured"),
  "relaxed": ("easygoing", "laid-back"),
  "steady": ("unwavering", "even-tempered"),
}
_STYLE = {
  "chorale": ("a congregational hymn", "church music for a congregation"),
  "fiddle tune": ("a rural barn dance", "country dancing"),
  "folk song": ("a traditional village ballad", "something peasants sang"),
  "classical": ("a concert work", "a movement by a Viennese composer"),
  "ragtime": ("syncopated saloon entertainment", "syncopated Joplin swing"),
}
# Of all dances of the two collections of tunes.
_DANCE = ("a Celtic dance", "ceilidh dancing")
_TEMPLATES = (
  "You can hear {players}; {drums}. The speed is {tempo}, the sound {loudness} "
  "and pitched {register}, with {mode}.",
  "This recording features {players}. Everything feels {mood} and {tempo}, "
  "{loudness}, pitched {register}; {drums}. It has {mode}.",
  "{style}, {tempo} and {mood}, performed by {players}, {loudness}, sitting "
  "{register}. It uses {mode}, and {drums}.",
  "Picture {players}: {loudness}, {tempo}, pitched {register}. Listeners "
  "notice {mode}, and that {drums}.",
)
_LOUDNESS_TAGS = {"soft": "soft", "medium loudness": "medium", "loud": "loud"}
# General MIDI programs of a quartet that are instruments of their own too.
_BY_PROGRAM = {item.program: item.name for item in instruments.INSTRUMENTS}


@dataclasses.dataclass(frozen=True)
class HeardFacts:
  """What the stored aspects of a clip say.

  Attributes:
    ensemble: 'solo', 'duo' or 'quartet'.
    lead: instrument or quartet.
    partner: accompanying instrument of a duo, else ''.
    has_drums: whether drums play.
    tempo: 'slow', 'moderate' or 'fast'.
    register: 'low', 'middle' or 'high'.
    loudness: 'soft', 'medium' or 'loud'.
    mode: 'major' or 'minor'.
    style: of the work.
    mood: a word of `captions.mood`.
    texture: as in `arrange.Facts`.
    meter: time signature.
  """

  ensemble: str
  lead: str
  partner: str
  has_drums: bool
  tempo: str
  register: str
  loudness: str
  mode: str
  style: str
  mood: str
  texture: str
  meter: str


def read_aspects(aspects: Sequence[str]) -> HeardFacts:
  """Facts from the aspects that `captions.aspects` made of them.

  Args:
    aspects: all of a clip, in their order.

  Returns:
    The facts; key and exact tempo are left out.

  Raises:
    ValueError: if they are not aspects of this corpus.
  """
  left = list(aspects)
  try:
    ensemble, lead, partner = "duo", left.pop(0), ""
    if lead in instruments.QUARTETS_BY_NAME:
      ensemble = "quartet"
    elif lead.startswith("solo "):
      ensemble, lead = "solo", lead.removeprefix("solo ")
    else:
      partner = left.pop(0).removesuffix(" accompaniment")
    drums, tempo, register, loudness, mode = left[:5]
    style, mood, texture, meter = left[5:9]
    facts = HeardFacts(
      ensemble=ensemble,
      lead=lead,
      partner=partner,
      has_drums={"drums": True, "no drums": False}[drums],
      tempo=tempo.removesuffix(" tempo"),
      register=register.removesuffix(" register"),
      loudness=_LOUDNESS_TAGS[loudness],
      mode=mode.removesuffix(" key"),
      style=style,
      mood=mood,
      texture=texture,
      meter=meter.removesuffix(" meter"),
    )
    _words(facts, 0)  # Every fact has words, or it is no fact of this corpus.
  except (IndexError, KeyError, ValueError) as error:
    raise ValueError(
      f"aspects {list(aspects)}: expected those of a score_corpus"
    ) from error
  return facts


def tags(facts: HeardFacts) -> dict[str, list[str] | str]:
  """Labels of a clip by kind.

  Returns:
    `instrument`: names of all that sounds: the lead (or quartet), the partner,
    the members of a quartet that are instruments of the corpus on their own.
    `lead`, `ensemble`, `drums` ('drums' or 'no drums'), `tempo`, `register`,
    `loudness`, `mode`, `mood`, `style`, `texture`: one name each.
  """
  names = [facts.lead, *([facts.partner] if facts.partner else [])]
  if facts.ensemble == "quartet":
    programs = instruments.QUARTETS_BY_NAME[facts.lead].programs
    members = (_BY_PROGRAM[p] for p in programs if p in _BY_PROGRAM)
    names += dict.fromkeys(members)
  return {
    "instrument": names,
    "lead": facts.lead,
    "ensemble": facts.ensemble,
    "drums": "drums" if facts.has_drums else "no drums",
    "tempo": facts.tempo,
    "register": facts.register,
    "loudness": facts.loudness,
    "mode": facts.mode,
    "mood": facts.mood,
    "style": facts.style,
    "texture": facts.texture,
  }


def _words(facts: HeardFacts, seed: int | str) -> dict[str, str]:
  """A phrase for each fact."""
  rng = random.Random(f"{seed}/paraphrase")
  players = rng.choice(_PLAYERS[facts.lead])
  if facts.partner:
    players += rng.choice((" backed by ", " over backing from ")) + rng.choice(
      _PLAYERS[facts.partner]
    )
  elif facts.ensemble == "solo":
    players = rng.choice((f"only {players}", f"just {players}, nobody else"))
  words = {"players": players, "drums": rng.choice(_DRUMS[facts.has_drums])}
  for name, table in (
    ("tempo", _TEMPO),
    ("register", _REGISTER),
    ("loudness", _LOUDNESS),
    ("mode", _MODE),
    ("mood", _MOOD),
  ):
    words[name] = rng.choice(table[getattr(facts, name)])
  words["style"] = rng.choice(_STYLE.get(facts.style, _DANCE))
  words["template"] = rng.choice(_TEMPLATES)
  return words


def paraphrase(facts: HeardFacts, seed: int | str) -> str:
  """One or two sentences that tell the facts in held-out words.

  It tells what a clip's first caption does: players, drums, tempo, register,
  loudness and mode; some templates the mood and the genre too.

  Args:
    facts: of the clip.
    seed: of the wording; the clip's id gives each clip its own.
  """
  words = _words(facts, seed)
  text = words.pop("template").format(**words)
  return text[0].upper() + text[1:]
