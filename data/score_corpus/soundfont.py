# SPDX-License-Identifier: Apache-2.0
"""A SoundFont whose sample headers say at which pitch a sample sounds.

SoundFonts may say it in a zone of an instrument as well, which then counts
(generator 58, overridingRootKey). symusic's synthesizer reads the headers
only: with `TimGM6mb.sf2` the guitar, the violin and many others sound up to
two octaves away from the note. So what zones say is written into headers.
"""

import struct
from collections.abc import Iterator

_SAMPLE_ID, _ROOT_KEY = 53, 58
_COARSE_TUNE, _FINE_TUNE = 51, 52
_HEADER = struct.Struct("<20s5IBbHH")
_PAIR = struct.Struct("<HH")


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
  """(id, data) of the chunks in a RIFF list."""
  at = 0
  while at + 8 <= len(content):
    (size,) = struct.unpack_from("<I", content, at + 4)
    yield content[at : at + 4], content[at + 8 : at + 8 + size]
    at += 8 + size + size % 2


def _chunk(name: bytes, data: bytes) -> bytes:
  return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _signed(value: int) -> int:
  return value - 65536 if value > 32767 else value


def with_tuned_headers(content: bytes) -> bytes:
  """A SoundFont in which every zone's pitch is that of its sample's header.

  Zones that disagree with their sample get a copy of its header; the sound
  itself is not copied.

  Args:
    content: an SF2 file.

  Returns:
    An SF2 file that sounds the same to players that read zones.

  Raises:
    ValueError: if it is no SF2 file.
  """
  if content[:4] != b"RIFF" or content[8:12] != b"sfbk":
    raise ValueError(f"content begins with {content[:12]!r}: expected an SF2")
  parts = []
  for name, data in _chunks(content[12:]):
    if data[:4] == b"pdta":
      tables = dict(_chunks(data[4:]))
      tables[b"igen"], tables[b"shdr"] = _tuned(tables)
      data = b"pdta" + b"".join(_chunk(n, d) for n, d in tables.items())
    parts.append(_chunk(name, data))
  return _chunk(b"RIFF", b"sfbk" + b"".join(parts))


def _tuned(tables: dict[bytes, bytes]) -> tuple[bytes, bytes]:
  """Generators of instruments and sample headers that agree."""
  generators = [list(pair) for pair in _PAIR.iter_unpack(tables[b"igen"])]
  starts = [bag[0] for bag in _PAIR.iter_unpack(tables[b"ibag"])]
  *headers, last = _HEADER.iter_unpack(tables[b"shdr"])
  known = {header: index for index, header in enumerate(headers)}
  for start, end in zip(starts, starts[1:]):
    zone = {g: place for place, (g, _) in enumerate(generators[start:end])}
    if _SAMPLE_ID not in zone:
      continue
    place = start + zone[_SAMPLE_ID]
    header = list(headers[generators[place][1]])
    if _ROOT_KEY in zone:
      key = generators[start + zone[_ROOT_KEY]][1]
      header[6] = key if key < 128 else header[6]
    cents = header[7]
    for generator, unit in ((_COARSE_TUNE, 100), (_FINE_TUNE, 1)):
      if generator in zone:
        at = start + zone[generator]
        cents += unit * _signed(generators[at][1])
        generators[at][1] = 0
    if header[6] < 128:
      semitones = round(cents / 100)
      header[6] = min(max(header[6] - semitones, 0), 127)
      header[7] = cents - 100 * semitones
    tuned = tuple(header)
    if tuned not in known:
      known[tuned] = len(headers)
      headers.append(tuned)
    generators[place][1] = known[tuned]
  return (
    b"".join(_PAIR.pack(*pair) for pair in generators),
    b"".join(_HEADER.pack(*header) for header in (*headers, last)),
  )
