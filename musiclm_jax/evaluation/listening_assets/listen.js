// SPDX-License-Identifier: Apache-2.0
// The page of a listening test: asks the server for questions, plays clips,
// sends answers. All texts are set as text, never as HTML.
"use strict";

const LETTERS = ["a", "b"];
// Browsers end a clip a little before or after its length.
const SLACK_SECS = 0.25;
// Values of the scale, from A to B.
const PREFERENCES = [-2, -1, 0, 1, 2];

const byId = (id) => document.getElementById(id);
const players = LETTERS.map(() => new Audio());
let test = null;
let rater = "";
let items = [];
let answered = new Set();
let current = null;
let shownAt = 0;
let isSaving = false;

function show(name) {
  for (const id of ["welcome", "question", "end"]) byId(id).hidden = id !== name;
}

function complain(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

async function ask(path, content) {
  const options = content === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(content),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw new Error("The server cannot be reached. Try again.");
  }
  let reply = {};
  try {
    reply = await response.json();
  } catch (error) {
    // Below: only the status is known.
  }
  if (!response.ok) {
    throw new Error(reply.error || `The server answers with ${response.status}.`);
  }
  return reply;
}

// Names that were used on this device; storage may be switched off.
const storageKey = () => `musiclm_listen_${test.fingerprint}`;
function remember(name) {
  try {
    if (name) localStorage.setItem(storageKey(), name);
    else localStorage.removeItem(storageKey());
  } catch (error) {
    // Then the name has to be typed again.
  }
}
function remembered() {
  try {
    return localStorage.getItem(storageKey()) || "";
  } catch (error) {
    return "";
  }
}

// Seconds of a clip that were played, each counted once.
function heardSecs(player) {
  let secs = 0;
  for (let i = 0; i < player.played.length; i++) {
    secs += player.played.end(i) - player.played.start(i);
  }
  return secs;
}

const wantedSecs = () => test.min_played_share * test.seconds;
const isHeard = (player) => heardSecs(player) >= wantedSecs() - SLACK_SECS;

function chosen() {
  const box = document.querySelector("#scale input:checked");
  return box === null ? null : Number(box.value);
}

function refresh() {
  players.forEach((player, i) => {
    const letter = LETTERS[i];
    const name = letter.toUpperCase();
    const isPlaying = !player.paused && !player.ended;
    byId(`play-${letter}`).textContent = `${isPlaying ? "Pause" : "Play"} ${name}`;
    byId(`play-${letter}`).setAttribute("aria-pressed", String(isPlaying));
    const length = Number.isFinite(player.duration) ? player.duration : test.seconds;
    byId(`seek-${letter}`).max = length;
    byId(`seek-${letter}`).value = player.currentTime;
    const left = Math.max(wantedSecs() - heardSecs(player), 0);
    byId(`heard-${letter}`).textContent = isHeard(player)
      ? "Heard" : `${Math.ceil(left)} s to listen to`;
    byId(`heard-${letter}`).parentElement.classList.toggle("heard", isHeard(player));
  });
  const mayAnswer = players.every(isHeard);
  byId("scale").disabled = !mayAnswer;
  byId("save").disabled = !mayAnswer || chosen() === null || isSaving;
  const hint = mayAnswer
    ? (chosen() === null ? "Choose one." : "")
    : "Listen to both clips to answer.";
  if (byId("hint").textContent !== hint) byId("hint").textContent = hint;
}

function toggle(index) {
  const player = players[index];
  players[1 - index].pause();
  if (player.paused || player.ended) {
    player.play().then(() => complain("")).catch((error) => {
      // Another press came in between; that is no problem.
      if (error.name !== "AbortError") complain("The clip cannot be played. Try again.");
    });
  } else {
    player.pause();
  }
  refresh();
}

function nextItem() {
  return items.find((item) => !answered.has(item.item)) || null;
}

function ahead(item) {
  // So that the next question does not have to wait.
  for (const url of [item.first, item.second]) {
    const early = new Audio();
    early.preload = "auto";
    early.src = url;
  }
}

function showNext() {
  players.forEach((player) => player.pause());
  current = nextItem();
  if (current === null) {
    byId("end-count").textContent = items.length;
    show("end");
    return;
  }
  byId("place").textContent = `Question ${answered.size + 1} of ${items.length}`;
  byId("done").value = answered.size / items.length;
  byId("who").textContent = rater;
  byId("caption").textContent = current.caption;
  for (const box of document.querySelectorAll("#scale input")) box.checked = false;
  [current.first, current.second].forEach((url, i) => {
    players[i].src = url;
    players[i].preload = "auto";
    players[i].load();
  });
  shownAt = performance.now();
  show("question");
  refresh();
  window.scrollTo(0, 0);
  const rest = items.filter((item) => !answered.has(item.item));
  if (rest.length > 1) ahead(rest[1]);
}

async function join(name) {
  const reply = await ask("api/join", { rater: name });
  rater = reply.rater;
  items = reply.items;
  answered = new Set(reply.answered);
  remember(rater);
  complain("");
  showNext();
}

async function save() {
  if (isSaving || byId("save").disabled) return;
  isSaving = true;
  refresh();
  try {
    await ask("api/answer", {
      fingerprint: test.fingerprint,
      rater,
      item: current.item,
      preference: chosen(),
      played_secs: players.map((player) => Number(heardSecs(player).toFixed(2))),
      secs: Number(Math.min((performance.now() - shownAt) / 1000, 86400).toFixed(2)),
    });
    answered.add(current.item);
    complain("");
    isSaving = false;
    showNext();
  } catch (error) {
    complain(error.message);
  } finally {
    isSaving = false;
    if (current !== null) refresh();
  }
}

function leave() {
  remember("");
  players.forEach((player) => player.pause());
  current = null;
  byId("rater").value = "";
  show("welcome");
}

function press(event) {
  if (byId("question").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  if (LETTERS.includes(key)) {
    toggle(LETTERS.indexOf(key));
  } else if ("12345".includes(key) && key.length === 1 && !byId("scale").disabled) {
    const box = document.querySelectorAll("#scale input")[Number(key) - 1];
    box.checked = true;
    box.focus();
    refresh();
  } else if (key === "enter" && event.target.tagName !== "BUTTON") {
    save();
  } else {
    return;
  }
  event.preventDefault();
}

function prepare() {
  document.title = test.title;
  byId("title").textContent = test.title;
  byId("welcome-question").textContent = test.question;
  byId("asked").textContent = test.question;
  byId("seconds").textContent = `${test.seconds} s`;
  byId("count").textContent = test.num_items;
  test.scale.forEach((text, i) => {
    const label = document.createElement("label");
    label.className = "choice";
    const box = document.createElement("input");
    box.type = "radio";
    box.name = "preference";
    box.value = PREFERENCES[i];
    box.addEventListener("change", refresh);
    const words = document.createElement("span");
    words.textContent = text;
    label.append(box, words);
    byId("scale").append(label);
  });
  players.forEach((player, i) => {
    for (const name of ["play", "pause", "ended", "timeupdate", "durationchange"]) {
      player.addEventListener(name, () => current !== null && refresh());
    }
    player.addEventListener("error", () => {
      if (current !== null) complain("A clip cannot be loaded. Load the page again.");
    });
    byId(`play-${LETTERS[i]}`).addEventListener("click", () => toggle(i));
    byId(`seek-${LETTERS[i]}`).addEventListener("input", (event) => {
      player.currentTime = Number(event.target.value);
    });
  });
  byId("answer").addEventListener("submit", (event) => {
    event.preventDefault();
    save();
  });
  byId("join").addEventListener("submit", (event) => {
    event.preventDefault();
    join(byId("rater").value).catch((error) => complain(error.message));
  });
  byId("leave").addEventListener("click", leave);
  byId("end-leave").addEventListener("click", leave);
  document.addEventListener("keydown", press);
}

async function begin() {
  // The cookie has the token now; it should not stay in the address.
  if (location.search) history.replaceState(null, "", location.pathname);
  try {
    test = await ask("api/test");
    prepare();
    show("welcome");
    const name = remembered();
    if (name) await join(name);
  } catch (error) {
    complain(error.message);
  }
}

begin();
