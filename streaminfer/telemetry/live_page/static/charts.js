// History of one service, bounded, and the charts and tables of its panels.

const POINTS = 600;
const RATE_S = 0.999; // a rate is over at least a second, but for the rounding of milliseconds
const COLORS = 6;

export class History {
  // a new label makes a new schema; the history so far stays
  constructor(service, old) {
    this.service = service;
    this.times = old?.times ?? [];
    this.reads = old?.reads ?? []; // not each update reads the counters
    const column = (kept) => (panel) => panel.labels.map((label) => {
      const p = old?.service.panels.findIndex((it) => it.id === panel.id) ?? -1;
      const l = p < 0 ? -1 : old.service.panels[p].labels.indexOf(label);
      return l < 0 ? this.times.map(() => null) : old[kept][p][l];
    });
    this.columns = service.panels.map(column("columns"));
    this.rates = service.panels.map(column("rates"));
  }

  add(timeMs, numbers, readMs) {
    this.times.push(timeMs / 1000);
    this.reads.push(readMs / 1000);
    const last = this.times.length - 1;
    let since = last;
    while (since > 0 && this.reads[last] - this.reads[since] < RATE_S) since -= 1;
    let at = 0;
    this.service.panels.forEach((panel, p) => {
      panel.labels.forEach((_, l) => {
        const column = this.columns[p][l];
        column.push(numbers[at]);
        this.rates[p][l].push(this.rate(panel.kind, column, since, last));
        at += 1;
      });
    });
    if (this.times.length >= POINTS * 1.2) this.trim();
  }

  rate(kind, column, since, last) {
    const [now, before] = [column[last], column[since]];
    const seconds = this.reads[last] - this.reads[since];
    if (kind === "gauge" || kind === "table") return null;
    if (seconds < RATE_S || now == null || before == null) return null;
    if (kind === "ratio") {
      const [rows, batches] = [now[0] - before[0], now[1] - before[1]];
      return batches > 0 && rows >= 0 ? rows / batches : null;
    }
    const rate = (now - before) / seconds;
    return rate >= 0 ? rate : null; // a counter that fell was made again
  }

  trim() {
    const extra = this.times.length - POINTS;
    [this.times, this.reads, ...this.columns.flat(), ...this.rates.flat()].forEach((column) => column.splice(0, extra));
  }

  series(p) {
    const kind = this.service.panels[p].kind;
    return kind === "counter" || kind === "ratio" ? this.rates[p] : this.columns[p];
  }

  latest(id, label) {
    const p = this.service.panels.findIndex((panel) => panel.id === id);
    if (p < 0) return null;
    const series = this.series(p);
    const found = this.service.panels[p].labels.map((text, l) => [text, series[l].at(-1)]);
    const chosen = label === undefined ? found : found.filter(([text]) => text === label || text.endsWith(`: ${label}`));
    const values = chosen.map(([, value]) => value).filter((value) => typeof value === "number");
    return values.length ? values : null;
  }
}

/** Format the remaining part of an error budget. */
export function formatBudget(value) {
  return value < 0 ? `overspent ${short(-value)}×` : format(value, "share");
}

export function format(value, unit) {
  if (value == null) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return Array.isArray(value) ? "–" : String(value);
  if (unit === "s" && value !== 0) {
    for (const [size, name] of [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]]) {
      if (Math.abs(value) >= size || name === "µs") return `${short(value / size)} ${name}`;
    }
  }
  if (unit === "share") return `${short(value * 100)} %`;
  return `${short(value)}${unit === "s" ? "" : unit}`;
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 100 || Number.isInteger(value)) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(3)));
}

export class Panel {
  constructor(history, p) {
    this.history = history;
    this.p = p;
    this.panel = history.service.panels[p];
    const { id, title, kind, labels, unit } = this.panel;
    const isTable = kind === "table";
    this.element = element(isTable ? "details" : "section", { className: isTable ? "panel wide" : "panel", id: `panel-${id}` });
    const heading = element(isTable ? "summary" : "h3", { textContent: title, id: `title-${id}` });
    this.element.setAttribute("aria-labelledby", heading.id);
    this.element.append(heading);
    if (!isTable) {
      this.chart = element("div", { className: "chart" });
      this.chart.setAttribute("aria-hidden", "true"); // the table below has the same figures
      this.element.append(this.chart);
    }
    const columns = isTable ? ["now"] : ["now", "least", "most"];
    const table = element("table");
    const head = element("tr");
    head.append(...["", ...columns].map((text) => element("th", { scope: "col", textContent: text })));
    table.append(element("thead"), element("tbody"));
    table.tHead.append(head);
    table.setAttribute("aria-labelledby", heading.id);
    this.cells = labels.map((label, l) => {
      const row = element("tr");
      const name = element("th", { scope: "row" });
      if (!isTable) {
        name.append(element("span", { className: `swatch c${l % COLORS}${l >= COLORS ? " dashed" : ""}` }));
      }
      name.append(label.replaceAll("_", " "));
      const cells = columns.map(() => element("td"));
      row.append(name, ...cells);
      table.tBodies[0].append(row);
      return cells;
    });
    const scroll = element("div", { className: "scroll" });
    scroll.append(table);
    this.element.append(scroll);
    this.unit = unit;
  }

  data() {
    return [this.history.times, ...this.history.series(this.p)];
  }

  draw() {
    if (!this.chart) return;
    const width = this.chart.clientWidth;
    if (!this.plot) this.plot = this.make(width);
    else if (this.plot.width !== width) this.plot.setSize({ width, height: 170 });
    this.plot.setData(this.data());
  }

  make(width) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const axis = { stroke: color("--muted"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line") } };
    const series = this.panel.labels.map((label, l) => ({
      label,
      stroke: color(`--c${l % COLORS}`),
      width: 1.5,
      dash: l >= COLORS ? [6, 4] : undefined,
      points: { show: false },
    }));
    const fromZero = (_, low, high) => [Math.min(low ?? 0, 0), high > 0 ? high * 1.08 : 1];
    return new window.uPlot({
      width,
      height: 170,
      legend: { show: false },
      cursor: { show: false },
      scales: { y: { range: fromZero } },
      axes: [{ ...axis, space: 80, size: 32, values: (_, ticks) => ticks.map(clock) }, { ...axis, size: 64, values: (_, ticks) => ticks.map((tick) => format(tick, this.unit)) }],
      series: [{}, ...series],
    }, this.data(), this.chart);
  }

  tell() {
    const series = this.history.series(this.p);
    this.cells.forEach((cells, l) => {
      const numbers = series[l].filter((value) => typeof value === "number");
      const texts = [series[l].at(-1), ...(numbers.length ? [least(numbers), most(numbers)] : [null, null])];
      const text = this.panel.id === "budget" ? formatBudget : (value) => format(value, this.unit);
      cells.forEach((cell, at) => set(cell, text(texts[at])));
    });
  }

  remove() {
    this.plot?.destroy();
    this.element.remove();
  }
}

const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hourCycle: "h23" });
const least = (numbers) => numbers.reduce((one, other) => Math.min(one, other));
const most = (numbers) => numbers.reduce((one, other) => Math.max(one, other));

export function element(tag, properties = {}) {
  return Object.assign(document.createElement(tag), properties);
}

export function set(cell, text) {
  if (cell.textContent !== text) cell.textContent = text; // unchanged text is not read out again
}
