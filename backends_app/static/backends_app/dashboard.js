// Keeps the dashboard current: polls its changing part and patches the differences into the page.

const live = document.getElementById("live");
const connection = document.getElementById("connection");
const announcement = document.getElementById("announcement");
const moment = document.getElementById("moment");
const pause = document.getElementById("pause");

const POLL_MS = 1000 * Number(live.dataset.pollS);
const LONGEST_PAUSE_MS = 60_000;
const PATIENCE_MS = 10_000;

let etag = live.dataset.etag;
let failures = 0;
let paused = false;
let asking = false;
let timer;

async function refresh() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  try {
    await ask();
    failures = 0;
  } catch {
    failures += 1;
  }
  asking = false;
  tell();
  plan();
}

async function ask() {
  const response = await fetch(live.dataset.source, {
    cache: "no-store",
    headers: { "If-None-Match": etag },
    signal: AbortSignal.timeout(PATIENCE_MS),
  });
  if (response.status === 200) {
    show(await response.text());
    etag = response.headers.get("ETag") ?? "";
  } else if (response.status !== 304) {
    throw new Error(`unexpected status ${response.status}`);
  }
  const date = new Date(response.headers.get("Date") ?? Date.now());
  moment.textContent = date.toISOString().slice(11, 19);
}

function plan() {
  clearTimeout(timer);
  if (paused || document.hidden) return;
  timer = setTimeout(refresh, Math.min(LONGEST_PAUSE_MS, POLL_MS * 2 ** failures));
}

// A screen reader announces this text, so it is set only when it changes.
function tell() {
  let text = "Live";
  if (paused) text = "Paused";
  else if (failures) text = "The server is unreachable; this page may be out of date. Retrying.";
  if (connection.textContent !== text) connection.textContent = text;
  connection.classList.toggle("bad", !paused && failures > 0);
}

function show(html) {
  const before = states();
  const focused = live.contains(document.activeElement);
  const fresh = document.createElement("template");
  fresh.innerHTML = html;
  updateChildren(live, fresh.content);
  if (focused && !live.contains(document.activeElement)) {
    document.getElementById("content").focus({ preventScroll: true }); // the focused element was removed
  }
  announce(before, states());
}

// Announce only health changes; figures change all the time.

function states() {
  return new Map(Array.from(live.querySelectorAll("[data-backend]"), (target) => [
    target.dataset.backend,
    { state: target.dataset.state, reason: target.dataset.reason },
  ]));
}

function announce(before, after) {
  const news = [];
  for (const [name, { state, reason }] of after) {
    if (before.get(name)?.state !== state) news.push(`${name} is ${state} now: ${reason}.`);
  }
  for (const name of before.keys()) {
    if (!after.has(name)) news.push(`${name} was removed.`);
  }
  if (news.length) announcement.textContent = news.join(" ");
}

// Update elements in place, so that they keep focus, selection and an open table.

function updateChildren(old, fresh) {
  const wantedIds = new Set(Array.from(fresh.children, (child) => child.id));
  for (const child of Array.from(old.children)) {
    if (child.id && !wantedIds.has(child.id)) child.remove();
  }
  const byId = new Map(Array.from(old.children, (child) => [child.id, child]));
  let next = old.firstChild;
  for (const wanted of Array.from(fresh.childNodes)) {
    const found = wanted.id ? byId.get(wanted.id) : next;
    if (!found || !alike(found, wanted)) {
      old.insertBefore(wanted, next);
      continue;
    }
    if (found === next) next = next.nextSibling;
    else old.insertBefore(found, next);
    update(found, wanted);
  }
  while (next) {
    const gone = next;
    next = next.nextSibling;
    gone.remove();
  }
}

function alike(one, other) {
  return one.nodeName === other.nodeName && (one.id ?? "") === (other.id ?? "");
}

function update(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of Array.from(old.attributes)) {
    const readers = name === "open"; // of a <details>
    if (!readers && !fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  updateChildren(old, fresh);
}

pause.addEventListener("click", () => {
  paused = !paused;
  pause.textContent = paused ? "Resume" : "Pause";
  tell();
  if (paused) plan();
  else refresh();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden || paused) plan();
  else refresh();
});
window.addEventListener("online", () => {
  if (!paused) refresh();
});

pause.hidden = false;
tell();
plan();
