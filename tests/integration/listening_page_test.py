# SPDX-License-Identifier: Apache-2.0
"""The page of a listening test in Chromium, on a desktop and on a phone.

Needs playwright and a Chromium of the system; skipped without them.
"""

import json
import re
import shutil

import listening_sets
import pytest

from musiclm_jax.evaluation import listening_build, listening_files

sync_api = pytest.importorskip(
  "playwright.sync_api", reason="playwright is not installed"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
  pytest.skip("no chromium on this machine", allow_module_level=True)
SECS = 60.0


@pytest.fixture(name="browser", scope="module")
def _browser():
  with sync_api.sync_playwright() as play:
    browser = play.chromium.launch(
      executable_path=CHROMIUM, args=["--no-sandbox"]
    )
    yield browser
    browser.close()


@pytest.fixture(name="test_dir", scope="module")
def _test_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("listening")
  systems = listening_sets.write_systems(folder, 1)
  plan = listening_sets.plan(systems, comparisons_per_rater=3, num_checks=1)
  listening_build.build(plan, folder / "test")
  return folder / "test"


@pytest.fixture(name="running", scope="module")
def _running(test_dir):
  with listening_sets.Running(test_dir, token="a-token-of-tests") as running:
    yield running


def opened(browser, running, **options):
  """A page that remembers what it asked, heard and complained of."""
  page = browser.new_context(**options).new_page()
  page.set_default_timeout(1000 * SECS)
  page.bodies, page.problems = [], []
  page.on("request", lambda request: page.bodies.append(request.url))
  page.on("console", lambda message: page.problems.append(message.text))
  page.on("pageerror", lambda error: page.problems.append(str(error)))
  page.goto(running.address)
  page.wait_for_selector("#rater:visible")
  return page


def begin(page, name):
  page.fill("#rater", name)
  page.click("text=Begin")
  page.wait_for_selector("#question:visible")


def wait_until_heard(page, letter):
  page.locator(f"#heard-{letter}", has_text="Heard").wait_for()


def place(page, number):
  page.locator("#place", has_text=f"Question {number} of 4").wait_for()


def answers(test_dir):
  lines = (test_dir / "answers.jsonl").read_text().splitlines()
  return [one for one in map(json.loads, lines) if one["kind"] == "answer"]


def test_a_rater_answers_with_mouse_and_keys_and_comes_back(
  browser, running, test_dir
):
  page = opened(browser, running, viewport={"width": 1100, "height": 900})
  # The token stays out of the address.
  assert page.url == f"http://127.0.0.1:{running.port}/"
  assert page.title() == "A test"
  begin(page, "Anna")
  place(page, 1)
  # Nothing can be answered before both clips were heard.
  assert page.locator("#scale input").first.is_disabled()
  assert page.locator("#save").is_disabled()
  page.keyboard.press("1")
  assert page.locator("#scale input:checked").count() == 0
  page.click("#play-a")
  wait_until_heard(page, "a")
  assert page.locator("#scale input").first.is_disabled()
  # Going to the end of a clip is not hearing it.
  page.locator("#seek-b").fill("0.55")
  page.click("#play-b")
  page.locator("#play-b", has_text="Play B").wait_for()
  assert page.locator("#scale input").first.is_disabled()
  page.click("#play-b")
  wait_until_heard(page, "b")
  assert page.locator("#scale input").first.is_enabled()
  assert page.locator("#save").is_disabled()
  page.click("text=B, weak preference")
  page.click("#save")
  place(page, 2)
  assert page.locator("#scale input:checked").count() == 0
  # The second one by keys alone.
  page.keyboard.press("a")
  wait_until_heard(page, "a")
  page.keyboard.press("b")
  wait_until_heard(page, "b")
  page.keyboard.press("5")
  page.keyboard.press("1")
  page.keyboard.press("Enter")
  place(page, 3)
  assert [one["preference"] for one in answers(test_dir)] == [1, -2]
  # A page that is loaded again goes on; so does another device.
  page.reload()
  place(page, 3)
  other = opened(browser, running)
  begin(other, " anna ")
  place(other, 3)
  assert not page.problems and not other.problems
  asked = [url for url in page.bodies if not url.startswith("data:")]
  start = f"http://127.0.0.1:{running.port}/"
  assert all(url.startswith(start) for url in asked)
  for word in listening_sets.SYSTEMS:
    assert word not in page.content() and word not in "".join(page.bodies)


def test_a_phone_shows_it_whole_and_ends_with_thanks(
  browser, running, test_dir
):
  page = opened(
    browser,
    running,
    viewport={"width": 360, "height": 740},
    device_scale_factor=2,
    is_mobile=True,
    has_touch=True,
  )
  begin(page, "ben")
  for number in range(1, 5):
    place(page, number)
    # Nothing sticks out to the side.
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 360
    for name in ("#play-a", "#play-b", "#save", ".choice"):
      assert page.locator(name).first.bounding_box()["height"] >= 40
    page.tap("#play-a")
    wait_until_heard(page, "a")
    page.tap("#play-b")
    wait_until_heard(page, "b")
    page.tap(".choice >> text=No preference")
    page.tap("#save")
  page.locator("#end", has_text="All 4 answers are saved").wait_for()
  mine = [one for one in answers(test_dir) if one["rater"] == "ben"]
  assert len(mine) == 4
  assert all(min(one["played_secs"]) > 0.3 for one in mine)
  page.click("text=Someone else wants to listen")
  page.fill("#rater", "carl")
  page.click("text=Begin")
  page.locator("#problem", has_text="all 2 places").wait_for()


def test_texts_are_texts_and_failures_are_said(browser, tmp_path):
  systems = listening_sets.write_systems(tmp_path, 1)
  text = "<img src=x onerror=alert(1)> & <b>bold</b>"
  for folder in systems.values():
    for path in folder.glob("*.json"):
      content = json.loads(path.read_text())
      path.write_text(json.dumps({**content, "prompt": text}))
  plan = listening_sets.plan(systems, comparisons_per_rater=3, num_checks=0)
  listening_build.build(plan, tmp_path / "test")
  with listening_sets.Running(tmp_path / "test") as running:
    page = opened(browser, running)
    begin(page, "anna")
    assert page.inner_text("#caption") == text
    assert page.locator("#caption *").count() == 0
    for letter in "ab":
      page.keyboard.press(letter)
      wait_until_heard(page, letter)
    page.keyboard.press("3")
    # The network fails once; the answer is not lost.
    page.route(re.compile("api/answer"), lambda route: route.abort())
    page.keyboard.press("Enter")
    page.locator("#problem", has_text="cannot be reached").wait_for()
    assert page.locator("#scale input:checked").count() == 1
    page.unroute_all()
    page.keyboard.press("Enter")
    page.locator("#place", has_text="Question 2 of 3").wait_for()
  test = listening_files.read_test(tmp_path / "test")
  assert len(answers(tmp_path / "test")) == 1
  assert test.sheets[0][0].caption == text
