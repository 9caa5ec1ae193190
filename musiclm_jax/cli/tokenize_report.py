# SPDX-License-Identifier: Apache-2.0
"""Where the time of a tokenize job went, and what bounds it.

Sums that the job collects flow in; a page of text and a JSON file beside the
cache flow out. They differ from run to run and are no part of the cache.
"""

import dataclasses
import os
import pathlib
import socket
import time
from typing import Any

from musiclm_jax.data import token_cache_writer, token_manifest
from musiclm_jax.systems import device_feed

# From this share on, more devices would make the job faster.
_DEVICE_BOUND = 0.85


@dataclasses.dataclass
class HostTimes:
  """Seconds on the host; those of threads add up over threads.

  Attributes:
    wall_secs: of all, without start-up and without waiting for others.
    input_wait_secs: the feed of the devices waited for decoded audio.
    write_secs: joining, packing and writing shards.
    read_secs: threads read bytes.
    decode_secs: threads decoded and resampled to the codec's rate.
    cut_secs: threads resampled for the other tokenizers and cut windows.
    audio_secs: tokenized.
    num_clips: tokenized.
    num_skipped: unusable inputs.
  """

  wall_secs: float = 0.0
  input_wait_secs: float = 0.0
  write_secs: float = 0.0
  read_secs: float = 0.0
  decode_secs: float = 0.0
  cut_secs: float = 0.0
  audio_secs: float = 0.0
  num_clips: int = 0
  num_skipped: int = 0


def summarize(
  host: HostTimes, feed: device_feed.DeviceFeed, num_readers: int
) -> dict[str, Any]:
  """The report as JSON-compatible values.

  `device_busy_fraction` is the time at least one batch was on its way to,
  on or from the devices, as share of the time in which programs were there.
  """
  device = feed.times
  busy = device.busy_fraction
  reading = {
    "reading": host.read_secs,
    "decoding": host.decode_secs,
    "resampling and cutting": host.cut_secs,
  }
  if busy >= _DEVICE_BOUND:
    bound = "the devices"
  elif host.input_wait_secs >= host.write_secs:
    bound = f"the host: {max(reading, key=reading.get)}"
  else:
    bound = "the host: writing"
  return {
    "audio_secs_per_sec": host.audio_secs / max(host.wall_secs, 1e-9),
    "device_busy_fraction": busy,
    "bound_by": bound,
    "num_devices": feed.num_devices,
    "rows_per_device": feed.rows_per_device,
    "num_readers": num_readers,
    "host": dataclasses.asdict(host),
    "device": dataclasses.asdict(device),
  }


def describe(report: dict[str, Any]) -> str:
  """The report as text."""
  host, device = report["host"], report["device"]
  filling = device["num_filling"] / max(device["num_rows"], 1)
  return (
    f"{host['audio_secs']:.0f} s of audio in {host['wall_secs']:.1f} s: "
    f"{report['audio_secs_per_sec']:.1f} s of audio per second\n"
    f"devices ({report['num_devices']}): busy "
    f"{device['busy_secs']:.1f} s, "
    f"{100 * report['device_busy_fraction']:.0f} %, idle "
    f"{device['idle_secs']:.1f} s, compiling {device['compile_secs']:.1f} s; "
    f"{100 * filling:.0f} % of {device['num_rows']} rows were filling\n"
    f"host: waited {host['input_wait_secs']:.1f} s for audio, wrote for "
    f"{host['write_secs']:.1f} s; {report['num_readers']} readers: reading "
    f"{host['read_secs']:.1f} s, decoding {host['decode_secs']:.1f} s, "
    f"resampling and cutting {host['cut_secs']:.1f} s\n"
    f"bound by {report['bound_by']}"
  )


def write(directory: pathlib.Path, report: dict[str, Any]) -> pathlib.Path:
  """Writes the report of this process beside the cache; returns its path."""
  folder = directory / token_manifest.REPORTS_NAME
  folder.mkdir(parents=True, exist_ok=True)
  name = f"{socket.gethostname()}-{os.getpid()}-{time.time():.0f}.json"
  path = folder / name
  token_cache_writer.write_json(path, report)
  return path
