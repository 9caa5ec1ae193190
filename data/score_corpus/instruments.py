# SPDX-License-Identifier: Apache-2.0
"""General MIDI instruments the arrangements use, and what each can play."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Instrument:
  """One General MIDI sound.

  Attributes:
    name: as captions say it.
    program: General MIDI program, 0-based.
    lowest: lowest MIDI pitch it plays here.
    highest: highest MIDI pitch.
    registers: registers its melodies are set in.
    is_polyphonic: whether it plays several voices at once.
    other_names: more words for it in captions.
    is_core: used in every size; the others only in the larger ones, where
      each still occurs often enough to be learnt.
  """

  name: str
  program: int
  lowest: int
  highest: int
  registers: tuple[str, ...]
  is_polyphonic: bool = False
  other_names: tuple[str, ...] = ()
  is_core: bool = True


_ALL = ("low", "middle", "high")
INSTRUMENTS = (
  Instrument("piano", 0, 24, 100, _ALL, True, ("grand piano",)),
  Instrument("harpsichord", 6, 31, 89, _ALL, True),
  Instrument("church organ", 19, 28, 96, _ALL, True, ("pipe organ",)),
  Instrument(
    "acoustic guitar", 24, 38, 81, ("low", "middle"), True, ("nylon guitar",)
  ),
  Instrument("banjo", 105, 45, 86, ("middle", "high"), True),
  Instrument("music box", 10, 60, 100, ("high",), True),
  Instrument("marimba", 12, 36, 96, _ALL, True),
  Instrument("violin", 40, 55, 96, ("middle", "high"), False, ("fiddle",)),
  Instrument("cello", 42, 36, 76, ("low", "middle")),
  Instrument(
    "string ensemble", 48, 36, 96, _ALL, True, ("string orchestra", "strings")
  ),
  Instrument("choir", 52, 40, 84, ("low", "middle"), True, ("choir voices",)),
  Instrument("flute", 73, 58, 96, ("middle", "high")),
  Instrument("clarinet", 71, 50, 91, ("middle", "high")),
  Instrument("trumpet", 56, 52, 88, ("middle", "high")),
  Instrument("tuba", 58, 26, 62, ("low",)),
  Instrument(
    "synth lead", 81, 36, 96, _ALL, True, ("synthesizer", "sawtooth synth lead")
  ),
  Instrument("oboe", 68, 58, 91, ("middle", "high"), is_core=False),
  Instrument("bassoon", 70, 34, 72, ("low", "middle"), is_core=False),
  Instrument("french horn", 60, 36, 77, ("low", "middle"), is_core=False),
  Instrument("trombone", 57, 36, 74, ("low", "middle"), is_core=False),
  Instrument("alto saxophone", 65, 49, 86, ("middle", "high"), is_core=False),
  # Above 91 the synthesizer never ends: the sample's loop becomes empty.
  Instrument("vibraphone", 11, 53, 89, ("middle", "high"), True, is_core=False),
  Instrument("harp", 46, 28, 96, _ALL, True, is_core=False),
  Instrument("accordion", 21, 48, 90, ("middle", "high"), True, is_core=False),
  Instrument("sitar", 104, 45, 84, ("middle",), True, is_core=False),
  Instrument(
    "distorted electric guitar", 30, 40, 86, ("low", "middle"), is_core=False
  ),
  Instrument("pan flute", 75, 60, 96, ("high",), is_core=False),
)
BY_NAME = {instrument.name: instrument for instrument in INSTRUMENTS}

# Accompanying instruments of a duo, all polyphonic.
PARTNERS = ("piano", "acoustic guitar", "harpsichord", "church organ")


@dataclasses.dataclass(frozen=True)
class Quartet:
  """Four parts of one family.

  Attributes:
    name: as captions say it.
    programs: General MIDI programs from the highest part to the lowest.
    members: what is in it, as captions say it.
    lowest: lowest MIDI pitch per part.
    highest: highest MIDI pitch per part.
    is_core: as for `Instrument`.
  """

  name: str
  programs: tuple[int, int, int, int]
  members: str
  lowest: tuple[int, int, int, int]
  highest: tuple[int, int, int, int]
  is_core: bool = True


QUARTETS = (
  Quartet(
    "string quartet",
    (40, 40, 41, 42),
    "two violins, viola and cello",
    (55, 55, 48, 36),
    (96, 90, 84, 70),
  ),
  Quartet(
    "brass quartet",
    (56, 60, 57, 58),
    "trumpet, horn, trombone and tuba",
    (54, 45, 40, 28),
    (86, 77, 70, 58),
  ),
  Quartet(
    "woodwind quartet",
    (73, 68, 71, 70),
    "flute, oboe, clarinet and bassoon",
    (59, 58, 50, 34),
    (96, 88, 84, 65),
  ),
  Quartet(
    "saxophone quartet",
    (64, 65, 66, 67),
    "soprano, alto, tenor and baritone saxophone",
    (56, 49, 44, 36),
    (88, 80, 75, 64),
    is_core=False,
  ),
)
QUARTETS_BY_NAME = {quartet.name: quartet for quartet in QUARTETS}
