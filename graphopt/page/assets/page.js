// Tables, copying, and unpacking the data; the graph is in graph.js.
"use strict";
const $ = (selector, root = document) => root.querySelector(selector);
const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in node) node[name] = value; else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
};

const unpack = async () => {
  const bytes = Uint8Array.from(atob($("#data").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
};

const si = (value, unit, base = 1000) => {
  const steps = ["", "k", "M", "G", "T"];
  let k = 0;
  while (Math.abs(value) >= base && k < steps.length - 1) { value /= base; k += 1; }
  const text = k ? Number(value.toPrecision(3)).toString() : String(Math.round(value * 1000) / 1000);
  return `${text} ${steps[k]}${unit}`.trim();
};
const FORMS = {
  text: (v) => v,
  count: (v) => si(v, ""),
  bytes: (v) => si(v, "B"),
  ms: (v) => `${Number(v.toPrecision(3))} ms`,
  number: (v) => Number(v.toPrecision(3)).toString(),
};

// A table of { title, form, was } columns over rows of values; a column with `was` shows two.
const grid = (root, { columns, rows }, pick) => {
  const ROWS = 25;
  let by = columns.findIndex((c) => c.sorted);
  let down = true;
  let shown = ROWS;
  const body = $("tbody", root);
  const search = $("input[type=search]", root);
  const only = $("select", root);
  const more = $(".more", root);
  const key = (row, k) => (columns[k].was !== undefined ? row[k] ?? row[columns[k].was] : row[k]);
  const cell = (row, k) => {
    const form = FORMS[columns[k].form];
    const was = columns[k].was === undefined ? null : row[columns[k].was];
    const text = (v) => (v === null || v === undefined || v === "" || v === 0 ? "–" : form(v));
    const right = columns[k].form === "text" ? "" : "num";
    if (was === null || was === row[k]) return make("td", { className: right }, text(row[k]));
    return make("td", { className: `${right} was-is` }, `${text(was)} → `, make("b", {}, text(row[k])));
  };
  const render = () => {
    const words = search.value.toLowerCase();
    const kept = rows.filter((row) => {
      const text = columns.map((c, k) => (c.form === "text" ? row[k] : "")).join(" ").toLowerCase();
      return text.includes(words) && (only.value === "all" || (only.value === "changed") === row.changed);
    });
    if (by >= 0) {
      const sign = down ? -1 : 1;
      kept.sort((p, q) => {
        const [a, b] = [key(p, by), key(q, by)];
        if (a === null || b === null) return (a === null) - (b === null);
        return sign * (typeof a === "string" ? a.localeCompare(b) : a - b);
      });
    }
    body.replaceChildren(...kept.slice(0, shown).map((row) => {
      const cells = columns.flatMap((c, k) => (c.hidden ? [] : [cell(row, k)]));
      const head = make("th", { scope: "row", className: "mono" }, cells[0].textContent);
      const line = make("tr", {}, head, ...cells.slice(1));
      if (pick && row.node !== undefined) {
        line.className = "pick";
        line.addEventListener("click", () => pick(row.node));
      }
      return line;
    }));
    const rest = kept.length - Math.min(shown, kept.length);
    more.textContent = `${kept.length - rest} of ${rows.length} nodes`;
    $(".all", root).hidden = !rest;
    [...root.querySelectorAll("thead th")].forEach((th) => {
      const own = Number(th.dataset.column) === by;
      if (own) th.setAttribute("aria-sort", down ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    });
  };
  $("thead", root).replaceChildren(make("tr", {}, ...columns.flatMap((c, k) => {
    if (c.hidden) return [];
    const button = make("button", { type: "button" }, c.title);
    button.addEventListener("click", () => {
      if (by === k) down = !down; else { by = k; down = c.form !== "text"; }
      render();
    });
    const th = make("th", { scope: "col", className: c.form === "text" ? "" : "num" }, button);
    th.dataset.column = k;
    return [th];
  })));
  search.addEventListener("input", render);
  only.addEventListener("change", render);
  $(".all", root).addEventListener("click", () => { shown = Infinity; render(); });
  render();
};

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", () => {
    const text = $("pre", button.parentElement);
    getSelection().selectAllChildren(text);
    const done = navigator.clipboard?.writeText(text.textContent) ?? Promise.reject();
    done.catch(() => document.execCommand("copy")).finally(() => {
      getSelection().removeAllRanges();
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  });
}
