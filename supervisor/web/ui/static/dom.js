// Elements and numbers. Text is only ever set as text: what clients and models write is never read as HTML.

export const $ = (id) => document.getElementById(id);

export function el(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** Sets what differs and nothing else, so that a selection and a focus outlive an update. */
export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function mark(node, name, on) {
  if (node.classList.contains(name) !== Boolean(on)) node.classList.toggle(name, Boolean(on));
}

export function show(node, on) {
  if (node.hidden === Boolean(on)) node.hidden = !on;
}

/** A list of elements kept in step with keys: made once, updated, put in order, removed. */
export class Keyed {
  constructor(parent, make) {
    this.parent = parent;
    this.make = make;
    this.rows = new Map();
  }

  sync(entries) {
    const keep = new Set(entries.map(([key]) => key));
    for (const [key, row] of this.rows) {
      if (!keep.has(key)) {
        row.node.remove();
        this.rows.delete(key);
      }
    }
    let before = this.parent.firstElementChild;
    for (const [key, item] of entries) {
      let row = this.rows.get(key);
      if (!row) this.rows.set(key, (row = this.make(key)));
      row.update(item, key);
      if (row.node === before) before = before.nextElementSibling;
      else this.parent.insertBefore(row.node, before);
    }
  }
}

export function options(select, values) {
  const fixed = select.querySelectorAll("option[data-own]");
  const known = [...fixed].map((option) => option.value);
  if (JSON.stringify(known) === JSON.stringify(values)) return;
  const chosen = select.value;
  fixed.forEach((option) => option.remove());
  for (const value of values) {
    const option = el("option", { value, textContent: value });
    option.dataset.own = "";
    select.append(option);
  }
  select.value = [...select.options].some((option) => option.value === chosen) ? chosen : select.options[0].value;
}

export const gib = (bytes) => (bytes / 2 ** 30).toFixed(1);
export const number = (value) => (value == null ? "–" : value.toLocaleString("en"));
export const percent = (share) => (share == null ? "–" : `${Math.round(share * 100)} %`);

/** `4.2 s`, `3 min`, `2 h 05`; short ones in milliseconds. */
export function span(seconds) {
  if (seconds == null) return "–";
  if (seconds < 0.9995) return `${Math.max(0, Math.round(seconds * 1000))} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  return coarse(seconds);
}

/** For what runs by the second: no milliseconds, which would only flicker. */
export function coarse(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 120) return `${whole} s`;
  if (whole < 7200) return `${Math.round(whole / 60)} min`;
  const minutes = Math.round(whole / 60);
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")}`;
}

export function clock(wall) {
  return new Date(wall * 1000).toLocaleTimeString("en-GB");
}
