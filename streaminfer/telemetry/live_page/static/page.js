// The feed, the table of services, and the charts of the selected service.

import { element, format, formatBudget, History, Panel, set } from "./charts.js";

const TELL_MS = 1000;
const SILENT_MS = 8000;
const $ = (id) => document.getElementById(id);

let histories = [];
let panels = [];
let chosen = null;
let paused = false;
let source = null;
let heardMs = Date.now();
let polls = false;
let drawing = false;
let feed = { id: "", number: 0 };
const counts = { updates: 0, missed: 0, restarts: 0 };

function connect() {
  source?.close();
  source = new EventSource(polls ? "events?poll" : "events");
  source.addEventListener("schema", (event) => take(event, schema));
  source.addEventListener("message", (event) => take(event, update));
  source.addEventListener("open", () => say("Live.", "live"));
  source.addEventListener("error", () => {
    // streams end on purpose, so the page reports only a longer silence
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 1000);
  });
}

function take(event, use) {
  heardMs = Date.now();
  const [id, text] = event.lastEventId.split("-");
  const number = Number(text);
  if (feed.id !== "" && feed.id !== id) {
    counts.restarts += 1;
    histories = [];
  } else if (feed.id === id && number > feed.number + 1) counts.missed += number - feed.number - 1;
  feed = { id, number };
  use(JSON.parse(event.data));
  say(paused ? "Paused." : "Live.", "live");
}

function schema({ services }) {
  const known = new Map(histories.map((history) => [history.service.name, history]));
  const text = (service) => JSON.stringify(service.panels);
  histories = services.map((service) => {
    const old = known.get(service.name);
    return old && text(old.service) === text(service) ? old : new History(service, old);
  });
  listServices();
  const found = histories.find((history) => history.service.name === chosen?.service.name) ?? histories[0];
  if (found !== chosen) choose(found);
}

function update([timeMs, services, readMs]) {
  services.forEach((numbers, at) => histories[at].add(timeMs, numbers, readMs[at]));
  counts.updates += 1;
  if (paused || document.hidden || drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    panels.forEach((panel) => panel.draw());
  });
}

function listServices() {
  const body = $("services").tBodies[0];
  const focused = document.activeElement?.dataset?.service;
  body.replaceChildren(...histories.map(({ service }) => {
    const row = element("tr");
    const name = element("th", { scope: "row" });
    const button = element("button", { type: "button", textContent: service.name });
    button.dataset.service = service.name;
    button.addEventListener("click", () => choose(histories.find((it) => it.service.name === service.name)));
    name.append(button);
    row.append(name, ...Array.from({ length: 6 }, () => element("td")));
    return row;
  }));
  if (focused !== undefined) [...body.querySelectorAll("button")].find((it) => it.dataset.service === focused)?.focus();
  markChosen();
}

function choose(history) {
  chosen = history;
  panels.forEach((panel) => panel.remove());
  panels = history.service.panels.map((_, p) => new Panel(history, p));
  $("panels").append(...panels.map((panel) => panel.element));
  set($("charts-title"), `Charts of ${history.service.name}`);
  markChosen();
  panels.forEach((panel) => panel.draw());
  tell();
}

function markChosen() {
  for (const button of $("services").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.service === chosen?.service.name));
  }
}

const sum = (values) => values && values.reduce((one, other) => one + other, 0);

function tell() {
  document.body.dataset.updates = counts.updates;
  document.body.dataset.missed = counts.missed;
  document.body.dataset.restarts = counts.restarts;
  document.body.dataset.points = Math.max(0, ...histories.map((history) => history.times.length));
  if (paused) return;
  [...$("services").tBodies[0].rows].forEach((row, at) => {
    const history = histories[at];
    const budget = history.latest("budget");
    const texts = [
      format(sum(history.latest("requests")), ""),
      format(history.latest("tail", "p50")?.[0], "s"),
      format(history.latest("tail", "p99")?.[0], "s"),
      format(sum(history.latest("queue", "queued")), ""),
      format(sum(history.latest("drops")) ?? 0, ""),
      formatBudget(budget && Math.min(...budget)),
    ];
    texts.forEach((text, cell) => set(row.cells[cell + 1], text));
  });
  panels.forEach((panel) => panel.tell());
  set($("counts"), `${counts.updates.toLocaleString("en")} updates, ${counts.missed} missed, ${counts.restarts} restarts.`);
}

function say(text, state) {
  if (state === "live" && paused) text = "Paused.";
  $("status").dataset.state = state;
  set($("status"), text);
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  say(paused ? "Paused." : "Live.", "live");
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chosen && choose(chosen));
addEventListener("resize", () => panels.forEach((panel) => panel.draw()));

setInterval(() => {
  tell();
  if (Date.now() - heardMs < SILENT_MS) return;
  say("No updates; trying again.", "lost");
  heardMs = Date.now();
  polls = !polls; // a proxy that holds streams back passes short responses
  connect();
}, TELL_MS);

connect();
