// Two panes joined by provenance, the slider over the passes, tooltips, and the page's tables.
"use strict";
// Kinds of operators in a strip at the left, by the place of their colour.
const STRIPS = { weights: 0, norm: 2, act: 1, quant: 3 };
const PASSES = 6;
// Where no pass is known, what became of a node by the place of its colour.
const FATES = { replaced: 0, changed: 1, added: 2 };

class Page {
  constructor(data) {
    this.data = data;
    this.tip = make("div", { className: "tip", hidden: true });
    this.tip.setAttribute("role", "status");
    document.body.append(this.tip);
    this.said = $("#said");
    this.order = data.passes;
    this.read();
    for (const scheme of ["(prefers-color-scheme: dark)", "print"]) {
      matchMedia(scheme).addEventListener("change", () => { this.read(); this.legend(); this.panes.forEach((p) => p.render()); });
    }
    this.scenes = [];
    this.panes = [...document.querySelectorAll(".pane canvas")].map((canvas, k) => new Pane(canvas, this, k));
    this.controls();
    this.stage(data.stages.length - 1);
    this.fit();
  }
  // Both panes at one scale.
  fit() {
    this.panes.forEach((p) => p.fit());
    const scale = Math.min(...this.panes.map((p) => p.scale));
    this.panes.forEach((p) => { p.scale = scale; p.paint(); });
  }
  read() {
    const style = getComputedStyle(document.documentElement);
    const get = (name) => style.getPropertyValue(name).trim();
    this.colour = {
      paper: get("--paper"), soft: get("--soft"), line: get("--line"), ink: get("--ink"), dim: get("--dim"),
      accent: get("--accent"), edge: `color-mix(in srgb, ${get("--dim")} 55%, ${get("--paper")})`,
      sans: 'system-ui, "Liberation Sans", sans-serif',
      passes: Array.from({ length: PASSES }, (_, k) => get(`--p${k}`)),
    };
    this.styles = new Map();
  }
  // The colour of a pass, by its place in the pipeline.
  ofPass(name) {
    const at = this.order.indexOf(name);
    return this.colour.passes[(at < 0 ? this.order.length : at) % PASSES];
  }
  // How a box is drawn: tinted by the pass that touched its node; blocks only tell shares.
  style(pane, members) {
    const { scene } = pane;
    const { paper, ink, dim } = this.colour;
    const one = members.length === 1 ? members[0] : null;
    const gone = members.length > 0 && members.every((k) => scene.text("fate", k, scene.told) === "removed");
    const op = one === null ? "" : scene.text("op", one);
    const tint = one === null || gone ? null : this.tint(pane, one);
    const key = [op, tint, gone].join("|");
    if (!this.styles.has(key)) {
      const kind = KINDS.find(([, pattern]) => pattern.test(op))?.[0];
      const strip = STRIPS[kind] ?? null;
      this.styles.set(key, {
        fill: tint ? this.mix(tint, 17) : paper,
        stroke: gone ? dim : tint ? this.mix(tint, 70) : this.mix(dim, 38),
        ink: gone ? dim : ink,
        dashed: gone,
        strip: tint || strip === null ? null : this.mix(this.colour.passes[strip], 75),
      });
    }
    return this.styles.get(key);
  }
  mix(tint, percent) { return `color-mix(in srgb, ${tint} ${percent}%, ${this.colour.paper})`; }
  // The colour of what became of a node; null where nothing did.
  tint(pane, k) {
    const { scene } = pane;
    const fate = scene.text("fate", k, scene.told);
    const by = scene.text("by", k, scene.told);
    if (fate === "" || fate === "same" || (fate === "rewired" && !by)) return null;
    return by ? this.ofPass(by.split(" ").at(pane.side ? -1 : 0)) : this.colour.passes[FATES[fate] ?? 5];
  }
  // What share of nodes each colour has.
  shares(pane, members) {
    const counts = new Map();
    for (const k of members) {
      const tint = this.tint(pane, k);
      if (tint) counts.set(tint, (counts.get(tint) ?? 0) + 1);
    }
    return [...counts].map(([tint, n]) => [tint, n / members.length]);
  }

  // Show the model after a pass; on the left, what has become of the source by then.
  stage(k) {
    const { stages, strings } = this.data;
    const opened = Math.max(...stages.map((s) => s.graph.nodes.op.length)) <= 60;
    const last = this.panes.length - 1;
    if (last) {
      const was = this.panes[0].scene;
      const scene = new Scene(stages[0].graph, strings, stages[k].left, opened);
      if (was) { scene.open = was.open; scene.lay(); }
      this.panes[0].show(scene, Boolean(was));
    }
    this.scenes[k] ??= new Scene(stages[k].graph, strings, null, opened);
    this.panes[last].show(this.scenes[k], Boolean(this.panes[last].scene));
    $(`#pane-${last}`).textContent = stages[k].label;
    this.legend();
  }
  legend() {
    const list = $(".legend");
    if (!list) return;
    const used = new Set();
    const bare = new Set();
    for (const { scene } of this.panes) {
      scene.graph.nodes.op.forEach((_, k) => {
        const by = scene.text("by", k, scene.told);
        if (by) by.split(" ").forEach((p) => used.add(p)); else bare.add(scene.text("fate", k, scene.told));
      });
    }
    const shown = this.order.filter((p) => used.has(p)).map((p) => [p, this.ofPass(p)]);
    const fates = Object.keys(FATES).filter((f) => bare.has(f)).map((f) => [f, this.colour.passes[FATES[f]]]);
    list.replaceChildren(...[...shown, ...(shown.length ? [] : fates)].map(([name, tint]) => {
      const mark = make("i");
      mark.style.background = this.mix(tint, 17);
      mark.style.borderColor = tint;
      return make("li", {}, mark, name);
    }), ...(this.panes.length > 1 ? [make("li", {}, make("i", { className: "gone" }), "removed")] : []));
  }
  controls() {
    const slider = $("#stage");
    if (slider) {
      const told = $("#stage-name");
      slider.addEventListener("input", () => {
        this.leave();
        told.textContent = this.data.stages[slider.value].label;
        this.stage(Number(slider.value));
      });
    }
    $("#fit").addEventListener("click", () => this.fit());
    $("#unfold").addEventListener("click", () => {
      const all = this.panes.some(({ scene }) => scene.blocks.some((g) => !scene.open.has(g)));
      for (const pane of this.panes) {
        const { scene } = pane;
        scene.blocks.forEach((g) => (all ? scene.open.add(g) : scene.open.delete(g)));
        scene.lay();
        pane.limit();
        pane.paint();
      }
    });
    const find = $("#find");
    find.addEventListener("keydown", (e) => {
      if (e.key !== "Enter" || !find.value) return;
      const words = find.value.toLowerCase();
      for (const pane of this.panes) {
        const { scene } = pane;
        const count = scene.graph.nodes.op.length;
        const from = this.found?.pane === pane && this.found.words === words ? this.found.k + 1 : 0;
        for (let n = 0; n < count; n += 1) {
          const k = (from + n) % count;
          if (`${scene.text("name", k)} ${scene.text("op", k)}`.toLowerCase().includes(words)) {
            this.found = { pane, k, words };
            pane.centre(scene.reveal(k));
            this.pick(pane, scene.home.get(k));
            return;
          }
        }
      }
    });
  }
  // A row of the table of layers: the node of the source.
  choose(k) {
    const pane = this.panes[0];
    $("#graph").scrollIntoView({ block: "start" });
    pane.centre(pane.scene.reveal(k));
    this.pick(pane, pane.scene.home.get(k));
  }
  twins(pane, box) {
    return pane.scene.nodesOf(box).flatMap((k) => pane.scene.others(k));
  }
  light(pane, box) {
    for (const p of this.panes) { p.lit = new Set(); p.own = null; }
    if (box) {
      pane.own = box;
      pane.lit = new Set(pane.scene.nodesOf(box));
      for (const other of this.panes) if (other !== pane) other.lit = new Set(this.twins(pane, box));
    }
    this.panes.forEach((p) => p.paint());
  }
  hover(pane, box, x, y) {
    if (!box || box.inner) {
      if (this.shown) this.leave();
      return;
    }
    if (this.shown !== box) { this.shown = box; this.light(pane, box); this.tell(pane, box); }
    const { offsetWidth: w, offsetHeight: h } = this.tip;
    this.tip.style.left = `${Math.min(x + 16, innerWidth - w - 8)}px`;
    this.tip.style.top = `${y + 18 + h > innerHeight ? Math.max(y - h - 12, 8) : y + 18}px`;
  }
  leave() {
    this.tip.hidden = true;
    this.shown = null;
    const [pane, box] = this.held ?? [];
    this.light(pane, box ?? null);
  }
  pick(pane, box) {
    this.panes.forEach((p) => { p.picked = null; });
    pane.picked = box;
    this.held = box ? [pane, box] : null;
    this.light(pane, box);
    if (!box) return;
    this.said.textContent = this.tell(pane, box, true);
    const other = this.panes.find((p) => p !== pane);
    const [first] = this.twins(pane, box);
    if (other && first !== undefined) other.centre(other.scene.home.get(first));
  }
  tell(pane, box, only) {
    const { scene } = pane;
    const lines = [];
    const rows = [];
    const add = (name, value) => { if (value !== null && value !== "" && value !== undefined) rows.push([name, value]); };
    if (box.kind === NODE) {
      const k = box.ref;
      lines.push([scene.text("op", k), scene.text("name", k)]);
      add("makes", scene.text("shapes", k));
      add("weights", scene.text("weights", k));
      const fate = scene.text("fate", k, scene.told);
      if (scene.told.fate?.length) add("became", [fate, scene.text("reason", k, scene.told)].filter(Boolean).join(": "));
      add("by", scene.text("by", k, scene.told).split(" ").join(", "));
      const macs = scene.number("macs", k), ms = scene.number("ms", k), error = scene.number("error", k);
      if (macs) add("MACs", FORMS.count(macs));
      if (scene.number("bytes", k)) add("holds", FORMS.bytes(scene.number("bytes", k)));
      if (ms !== null) add("time", FORMS.ms(ms));
      if (error !== null) add("error", `${FORMS.number(error)} relative L2`);
    } else if (box.kind === GROUP) {
      const members = scene.nodesOf(box);
      const counts = new Map();
      members.forEach((k) => counts.set(scene.text("op", k), (counts.get(scene.text("op", k)) ?? 0) + 1));
      const listed = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 6).map(([op, n]) => (n > 1 ? `${op} ×${n}` : op));
      lines.push([box.label, `${members.length} nodes, a click opens it`]);
      add("holds", listed.join(", ") + (counts.size > 6 ? ", …" : ""));
    } else lines.push([box.kind === IN ? "input" : "output", box.label]);
    if (!only) {
      this.tip.replaceChildren(make("b", {}, lines[0][0]), make("div", { className: "mono" }, lines[0][1]),
        make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])));
      this.tip.hidden = false;
    }
    return [...lines.flat(), ...rows.map((r) => r.join(" "))].join(", ");
  }
}

unpack().then((data) => {
  const page = data.stages.length && $(".pane") ? new Page(data) : null;
  const layers = $("#layers");
  if (layers && data.layers) grid(layers, data.layers, page && ((k) => page.choose(k)));
  document.documentElement.dataset.ready = String(performance.now() | 0);
});
