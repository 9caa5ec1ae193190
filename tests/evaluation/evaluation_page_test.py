# SPDX-License-Identifier: Apache-2.0
"""The page of an evaluation: 1,000 clips in a browser, wide and narrow.

The tests in a browser need playwright and a Chromium of the system.
"""

import re
import shutil
import time

import numpy as np
import pytest
import statistics_listener

from musiclm_jax.evaluation import (
  evaluation_page,
  metric_card,
  run_comparison,
  thumbnails,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NUM_FILES, NUM_PICTURES, NUM_ITEMS = 20, 200, 1000


def card(value, metric="MCC", **changes):
  found = {
    "metric": metric,
    "value": value,
    "low": value - 0.1,
    "high": value + 0.1,
    "better": "higher",
    "num_items": NUM_ITEMS,
    "num_expected": 5521,
    "embedder": "mulan",
    "embedder_fingerprint": "aa",
    "warnings": ("1,000 of 5,521 items were scored",),
    **changes,
  }
  return metric_card.MetricCard(**found).to_dict()


def run(root, name, values, **changes):
  """A finished evaluation whose clips share a few files."""
  folder = root / name
  statistics_listener.write_clips(folder / "samples", NUM_FILES)
  names = sorted(path.name for path in (folder / "samples").iterdir())
  items = [
    {
      "file": names[index % NUM_FILES],
      "prompt": f"prompt {index} with <b>markup</b> & more",
      "take": 0,
      "seed": index,
      "source": {"kind": "negation"} if index % 2 else {},
      "reference": None,
      "key": f"{index % NUM_PICTURES:024x}",
      "scores": {"MCC": value},
    }
    for index, value in enumerate(values)
  ]
  curve = [
    {
      "prompt_tokens": count,
      "exact": {"mean": 0.001, "low": 0.0, "high": 0.002},
      "approximate": {"mean": 0.01, "low": 0.005, "high": 0.02},
    }
    for count in (0, 125, 250)
  ]
  report = {
    "num_items": len(items),
    "num_expected": 5521,
    "job": {"bundle": "b", "seconds": 10.0},
    "bundle_fingerprint": "cafe",
    "fingerprints": {"mulan": "aa"},
    "reference": {},
    "cards": [card(float(np.mean(values)), **changes)],
    "notes": ["KAD was not computed: one clip"],
    "kinds": {
      "negation": {
        "MCC": {"mean": 0.2, "low": 0.1, "high": 0.3, "num_items": 500}
      }
    },
    "items": items,
    "timing": [
      {"what": "MCC", "num_clips": 9, "secs": 0.5, "clips_per_sec": 18.0}
    ],
    "bad": {"generated": [{"name": "x.wav", "reason": "x.wav is empty"}]},
    "memorization": {"curve": curve, "protocol": {"frame_rate_hz": 25.0}},
    "versions": {"python": "3"},
  }
  return run_comparison.Run(name, folder, (folder / "samples",), report)


@pytest.fixture(name="root", scope="module")
def _root(tmp_path_factory):
  """A page of 1,000 clips and one of two runs."""
  root = tmp_path_factory.mktemp("pages")
  rng = np.random.default_rng(0)
  values = rng.uniform(-0.2, 0.8, NUM_ITEMS)
  first = run(root, "first", values)
  evaluation_page.write(root / "one" / "index.html", [first])
  some = run(root, "second", values[:50] + 0.05)
  runs = [run(root, "first", values[:50]), some]
  evaluation_page.write(
    root / "two" / "index.html", runs, run_comparison.compare(runs), 30
  )
  return root


def test_worst_clips_come_first(root):
  text = (root / "one" / "index.html").read_text()
  shown = [
    float(v.replace("−", "-")) for v in re.findall(r"MCC (−?0\.\d+)", text)
  ]
  assert len(shown) == NUM_ITEMS and shown == sorted(shown)
  assert "<b>markup" not in text and "&lt;b&gt;markup" in text
  assert "1,000 of 5,521" in text and "x.wav is empty" in text
  assert "KAD was not computed" in text
  assert text.count('preload="none"') == text.count("<audio") == NUM_ITEMS
  assert text.count('loading="lazy"') == NUM_ITEMS
  assert "<script" not in text and "http" not in text
  sizes = [p.stat().st_size for p in (root / "one/spectrograms").iterdir()]
  assert len(sizes) == NUM_PICTURES and max(sizes) < 12_000


def test_runs_stand_side_by_side(root):
  text = (root / "two" / "index.html").read_text()
  # What a reader has to know, once for all runs.
  assert text.count("<li>1,000 of 5,521 items were scored (MCC)</li>") == 1
  assert "<li>second: KAD was not computed" in text
  assert "30 of 50 clips" in text and text.count("<audio") == 60
  assert "better" in text and "Difference to first" in text


def test_what_cannot_be_compared_is_not(root, tmp_path):
  runs = [
    run(tmp_path, "a", [0.1, 0.2, 0.3]),
    run(tmp_path, "b", [0.2, 0.3, 0.4], embedder_fingerprint="bb"),
  ]
  table = run_comparison.compare(runs)
  page = evaluation_page.write(tmp_path / "index.html", runs, table)
  assert "not comparable: embedder_fingerprint" in page.read_text()
  assert not table["paired"]


def test_thumbnails_show_pitch():
  time_secs = np.arange(16000) / 16000
  low, high = (
    thumbnails.pixels(0.5 * np.sin(2 * np.pi * hz * time_secs), 16000)
    for hz in (200, 4000)
  )
  assert low.shape == (thumbnails.HEIGHT, thumbnails.WIDTH, 3)
  assert low.dtype == np.uint8
  rows = [picture.sum((1, 2)).argmax() for picture in (low, high)]
  assert rows[0] > rows[1] + 20  # Low notes are at the bottom.


@pytest.fixture(name="browser", scope="module")
def _browser():
  sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed"
  )
  if CHROMIUM is None:
    pytest.skip("no chromium on this machine")
  with sync_api.sync_playwright() as play:
    browser = play.chromium.launch(
      executable_path=CHROMIUM,
      args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
    )
    yield browser
    browser.close()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("which", ["one", "two"])
def test_pages_work_in_a_browser(root, browser, which, width):
  page = browser.new_page(viewport={"width": width, "height": 844})
  asked, faults = [], []
  page.on("request", lambda request: asked.append(request.url))
  page.on("pageerror", lambda error: faults.append(error))
  begun = time.monotonic()
  page.goto(f"file://{root}/{which}/index.html")
  assert time.monotonic() - begun < 20
  # Pictures and sounds far below the fold are not loaded yet.
  assert len(asked) < 120 and all(url.startswith("file://") for url in asked)
  assert page.evaluate("document.documentElement.scrollWidth") <= width
  page.locator(".clip").last.scroll_into_view_if_needed()
  picture = page.locator(".clip img").last
  picture.scroll_into_view_if_needed()
  page.wait_for_function(
    "image => image.complete", arg=picture.element_handle()
  )
  assert picture.evaluate("image => image.naturalWidth") == thumbnails.WIDTH
  box = page.locator(".clip audio").last.bounding_box()
  assert box["x"] >= 0 and box["x"] + box["width"] <= width
  sound = page.locator(".clip audio").last
  sound.evaluate("async audio => { audio.muted = true; await audio.play(); }")
  assert sound.evaluate("audio => audio.duration") > 0.4
  details = page.locator("#cards details").first
  details.locator("summary").click()
  assert details.locator("td", has_text="embedder_fingerprint").is_visible()
  assert not faults
  page.close()
