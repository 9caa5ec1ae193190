# SPDX-License-Identifier: Apache-2.0
"""Pieces of the studio's page: values in, escaped HTML text out."""

import html

from musiclm_jax.cli import studio_queue
from musiclm_jax.systems import story as story_lib
from musiclm_jax.systems import watched

STYLE = """
.gradio-container {
  width: 100% !important; max-width: 1180px !important;
  margin: 0 auto !important;
}
:root { --ink: #1b1f24; --muted: #57606a; --line: #d5dbe1; --first: #0b62c4; }
.dark {
  --ink: #e6e9ed; --muted: #9aa4af; --line: #343b44; --first: #5aa9ff;
}
.studio-status { min-height: 2.6rem; font-size: .95rem; color: var(--ink); }
.studio-status .bar {
  height: .5rem; border-radius: .25rem; background: var(--line);
  overflow: hidden;
}
.studio-status .bar + div { padding-top: .45rem; }
#new-seed { align-self: end; flex-grow: 0; white-space: nowrap; }
#melody, #continuation { min-height: 11rem; }
.studio-status .bar span {
  display: block; height: 100%; background: var(--first);
  transition: width .4s;
}
.studio-status .error { color: #b42318; font-weight: 600; }
.dark .studio-status .error, .dark .studio-note .error { color: #ff8078; }
.studio-note { color: var(--muted); font-size: .88rem; }
.studio-note .error { color: #b42318; }
.studio-line { display: flex; gap: 2px; width: 100%; }
.studio-line div {
  overflow: hidden; white-space: nowrap; text-overflow: ellipsis;
  padding: .35rem .5rem; font-size: .82rem; min-width: 0;
  border-radius: .3rem; color: var(--ink);
  background: color-mix(in srgb, var(--first) 18%, transparent);
}
.studio-line div:nth-child(even) {
  background: color-mix(in srgb, var(--first) 36%, transparent);
}
.studio-line b { font-variant-numeric: tabular-nums; margin-right: .35rem; }
.studio-figure svg { width: 100%; height: auto; display: block; }
footer { display: none !important; }
"""
_STAGES = {
  "semantic": "composing (semantic stage)",
  "coarse": "sounding (coarse stage)",
  "fine": "refining (fine stage)",
  "acoustic_depthwise": "sounding (depth-wise decoder)",
  "acoustic_soundstorm": "sounding (SoundStorm)",
  watched.AUDIO: "decoding",
  "": "reading the prompt",
}


def clock(secs: float) -> str:
  """Minutes and seconds."""
  minutes, rest = divmod(round(max(0.0, secs)), 60)
  return f"{minutes}:{rest:02d}"


def error(text: str) -> str:
  """One line about what went wrong."""
  return (
    '<div class="studio-status"><div class="error" role="alert">'
    f"{html.escape(text)}</div></div>"
  )


def note(text: str, is_error: bool = False) -> str:
  """A line below a field; '' for none."""
  kind = ' class="error" role="alert"' if is_error else ""
  return (
    f'<div class="studio-note"><span{kind}>{html.escape(text)}</span></div>'
  )


def _status(text: str, fraction: float | None = None) -> str:
  bar = ""
  if fraction is not None:
    percent = round(100 * min(1.0, max(0.0, fraction)))
    bar = (
      f'<div class="bar" role="progressbar" aria-valuenow="{percent}" '
      f'aria-valuemin="0" aria-valuemax="100"><span style="width:{percent}%">'
      "</span></div>"
    )
  return (
    f'<div class="studio-status" aria-live="polite">{bar}'
    f"<div>{html.escape(text)}</div></div>"
  )


def ready() -> str:
  """The status before anything was asked for."""
  return _status("Nothing made yet.")


def progress(task: studio_queue.Task, num_ahead: int, took_secs: float) -> str:
  """How far a task is.

  Args:
    task: in any state.
    num_ahead: tasks before it.
    took_secs: since it was asked for.
  """
  if task.state == studio_queue.WAITING:
    others = "one visitor is" if num_ahead == 1 else f"{num_ahead} visitors are"
    return _status(f"Waiting: {others} served first.", 0.0)
  if task.state == studio_queue.FAILED:
    return error(task.error)
  if task.state == studio_queue.STOPPED:
    return _status("Cancelled.")
  if task.state == studio_queue.DONE:
    return _status(f"Done in {clock(took_secs)}.", 1.0)
  watcher = task.watcher
  if watcher.is_stopped:
    return _status("Cancelling: the window under way is still finished.")
  left, fraction = watcher.secs_left, watcher.fraction
  stage = _STAGES.get(watcher.stage, watcher.stage)
  if fraction == 1.0:
    return _status("Comparing and writing.", fraction)
  if left is None:
    when = "time left is known once each stage has run; the first time compiles"
  else:
    when = f"about {clock(left)} left"
  text = f"{round(100 * fraction)} %, {stage}; {when}."
  return _status(text[0].upper() + text[1:], fraction)


def timeline(story: story_lib.Story, secs: float) -> str:
  """The prompts of a story by their share of time."""
  times = [scene.at for scene in story.scenes] + [secs]
  parts = []
  for scene, start, end in zip(story.scenes, times, times[1:]):
    share = max(0.0, end - start)
    text = html.escape(scene.text)
    parts.append(
      f'<div style="flex:{share:g} 1 0" title="{text}">'
      f"<b>{clock(start)}</b>{text}</div>"
    )
  return f'<div class="studio-line">{"".join(parts)}</div>'


def figure(svg: str) -> str:
  """A drawing at the width there is."""
  return f'<div class="studio-figure">{svg}</div>' if svg else ""


def take_label(rank: int, seed: int, score: float | None) -> str:
  """One candidate among others."""
  judged = "" if score is None else f", MuLan score {score:.3f}"
  return f"{rank}: seed {seed}{judged}"
