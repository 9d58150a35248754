// The graph on a canvas. Coordinates come with the data; here boxes are opened, moved and lit.
"use strict";
const [NODE, GROUP, IN, OUT] = [0, 1, 2, 3];
const HEIGHT = 26, TALL = 38, BETWEEN = 28, HEAD = 26, PAD = 14, GAP = 18;
const KINDS = [
  ["weights", /Conv|MatMul|Gemm|LSTM|GRU|RNN|Attention|Einsum|Embed/],
  ["norm", /Norm/],
  ["act", /Relu|Gelu|Sigmoid|Tanh|Softmax|Silu|Swish|Elu|Clip|Erf|Softplus/],
  ["quant", /Quantize|Cast/],
  ["shape", /Reshape|Transpose|Squeeze|Flatten|Concat|Split|Slice|Gather|Shape|Expand|Pad|Identity|Constant|Where|Range/],
];

// Centres nearest to the wish at which neighbours do not overlap (pools of adjacent violators).
const separate = (wish, widths) => {
  const shift = [0];
  for (let k = 1; k < wish.length; k += 1) shift.push(shift[k - 1] + (widths[k - 1] + widths[k]) / 2 + GAP);
  const pools = [];
  wish.forEach((want, k) => {
    pools.push([want - shift[k], 1]);
    while (pools.length > 1 && pools.at(-2)[0] > pools.at(-1)[0]) {
      const [mean, n] = pools.pop();
      const last = pools.at(-1);
      last[0] = (last[0] * last[1] + mean * n) / (last[1] + n);
      last[1] += n;
    }
  });
  const means = pools.flatMap(([mean, n]) => Array(n).fill(mean));
  return means.map((mean, k) => mean + shift[k]);
};

class Scene {
  constructor(graph, strings, told, opened) {
    this.graph = graph;
    this.strings = strings;
    this.told = told ?? graph.nodes;
    this.open = new Set();
    this.blocks = graph.groups.flatMap((g, k) => (g[0] === "block" ? [k] : []));
    if (opened) this.blocks.forEach((k) => this.open.add(k));
    this.lay();
  }
  text(column, k, from = this.graph.nodes) { return from[column]?.length ? this.strings[from[column][k]] : ""; }
  number(column, k) { return this.graph.nodes[column]?.length ? this.graph.nodes[column][k] : null; }
  others(k) { return this.told.others?.length ? this.told.others[k] : []; }

  lay() {
    this.boxes = [];
    this.edges = [];
    this.home = new Map();
    const top = this.plan(0);
    this.width = top.w;
    this.height = top.h;
    this.put(top, 0, 0, null);
    this.boxes.sort((a, b) => a.depth - b.depth);
  }
  // Sizes and places of a plan's items, relative to the middle of its top.
  plan(level) {
    const { items, dummies, edges, labels } = this.graph.plans[level];
    const layers = [];
    const at = (layer, entry) => (layers[layer] ??= []).push(entry);
    const laid = items.map(([kind, ref, layer, x, w], k) => {
      const item = { kind, ref, x, w, h: HEIGHT, label: this.strings[labels[k]], inner: null };
      if (kind === NODE && this.text("weights", ref)) item.h = TALL;
      if (kind === IN || kind === OUT) item.h = level ? 0 : 22;
      if (kind === GROUP) {
        item.h = this.graph.groups[ref][0] === "block" ? TALL : 20;
        if (this.open.has(ref)) {
          item.inner = this.plan(ref + 1);
          item.w = Math.max(item.inner.w + 2 * PAD, w);
          item.h = item.inner.h + HEAD + PAD;
        }
      }
      at(layer, item);
      return item;
    });
    const ways = dummies.map(([layer, x]) => { const way = { x, w: 10, h: 0 }; at(layer, way); return way; });
    let y = 0, left = 0, right = 0;
    for (const layer of layers) {
      layer.sort((a, b) => a.x - b.x);
      if (layer.some((i) => i.inner)) {
        separate(layer.map((i) => i.x), layer.map((i) => i.w)).forEach((x, k) => { layer[k].x = x; });
      }
      const h = Math.max(...layer.map((i) => i.h));
      for (const item of layer) {
        item.top = y; item.bottom = y + h;
        item.y = y + (h - item.h) / 2;
        left = Math.min(left, item.x - item.w / 2);
        right = Math.max(right, item.x + item.w / 2);
      }
      y += h + (h ? BETWEEN : BETWEEN / 2);
    }
    const middle = (left + right) / 2;
    for (const item of [...laid, ...ways]) item.x -= middle;
    return { laid, ways, edges, w: right - left, h: Math.max(y - BETWEEN, 0), level };
  }
  put(plan, x, y, over) {
    const depth = over ? over.depth + 1 : 0;
    const ends = plan.laid.map((item) => {
      const box = { ...item, x: x + item.x, y: y + item.y, depth, over, level: plan.level };
      if (!(plan.level && item.kind >= IN)) this.boxes.push(box);
      if (item.kind === NODE) this.home.set(item.ref, box);
      if (item.kind === GROUP) {
        if (item.inner) box.ports = this.put(item.inner, box.x, box.y + HEAD, box);
        else this.fill(item.ref, box);
      }
      return box;
    });
    const port = (box, s, kind) => box.ports?.find((p) => p.kind === kind && p.source === s)?.x ?? box.x;
    for (const [a, b, s, ...through] of plan.edges) {
      const [from, to] = [ends[a], ends[b]];
      const start = [port(from, s, OUT), from.y + from.h];
      const end = [port(to, s, IN), to.y];
      if (plan.level && to.kind === OUT && over) end[1] = over.y + over.h;
      if (plan.level && from.kind === IN && over) start[1] = over.y + HEAD - 4;
      const far = through[0] === -1;
      const way = far ? [] : through.flatMap((d) => [[x + plan.ways[d].x, y + plan.ways[d].top], [x + plan.ways[d].x, y + plan.ways[d].bottom]]);
      this.edges.push({ from, to, source: s, far, points: [start, ...way, end], depth });
    }
    return ends.filter((e) => e.kind >= IN).map((e) => ({ kind: e.kind, source: e.ref, x: e.x }));
  }
  // Nodes inside of a closed box stand where it stands.
  fill(group, box) {
    for (const [kind, ref] of this.graph.plans[group + 1].items) {
      if (kind === NODE) this.home.set(ref, box);
      if (kind === GROUP) this.fill(ref, box);
    }
  }
  hit(x, y) {
    for (let k = this.boxes.length - 1; k >= 0; k -= 1) {
      const b = this.boxes[k];
      if (Math.abs(x - b.x) <= b.w / 2 && y >= b.y && y <= b.y + b.h) return b;
    }
    return null;
  }
  nodesOf(box) {
    if (box.kind === NODE) return [box.ref];
    if (box.kind !== GROUP) return [];
    const found = [];
    const walk = (g) => this.graph.plans[g + 1].items.forEach(([kind, ref]) => {
      if (kind === NODE) found.push(ref);
      if (kind === GROUP) walk(ref);
    });
    walk(box.ref);
    return found;
  }
  // Open every box around a node, so that it can be seen.
  reveal(k) {
    for (let box = this.home.get(k); box && box.kind === GROUP; box = this.home.get(k)) {
      this.open.add(box.ref);
      this.lay();
    }
    return this.home.get(k);
  }
}

class Pane {
  constructor(canvas, page, side) {
    Object.assign(this, { canvas, page, side, scale: 1, tx: 0, ty: 0, lit: new Set(), picked: null, over: null });
    this.draw2d = canvas.getContext("2d");
    new ResizeObserver(() => this.resize()).observe(canvas);
    this.listen();
  }
  show(scene, keep) {
    this.scene = scene;
    this.lit = new Set();
    this.picked = null;
    if (!keep) this.fit();
    this.paint();
  }
  resize() {
    const { clientWidth: w, clientHeight: h } = this.canvas;
    const dense = devicePixelRatio || 1;
    this.canvas.width = w * dense;
    this.canvas.height = h * dense;
    if (this.scene && !this.placed) this.fit();
    this.paint();
  }
  // The whole width, from the top; small graphs whole.
  fit() {
    const { clientWidth: w, clientHeight: h } = this.canvas;
    if (!w) return;
    const wide = (w - 48) / Math.max(this.scene.width, 1);
    const high = (h - 76) / Math.max(this.scene.height, 1);
    this.scale = Math.min(1.15, Math.max(Math.min(wide, Math.max(high, 0.75)), 0.5));
    this.tx = w / 2;
    this.ty = 48;
    this.placed = true;
  }
  limit() {
    const { clientWidth: w, clientHeight: h } = this.canvas;
    const half = this.scene.width * this.scale / 2;
    this.tx = Math.min(Math.max(this.tx, 60 - half), w - 60 + half);
    this.ty = Math.min(Math.max(this.ty, 60 - this.scene.height * this.scale), h - 60);
  }
  zoom(factor, x, y) {
    const scale = Math.min(3, Math.max(0.04, this.scale * factor));
    this.tx = x - (x - this.tx) * scale / this.scale;
    this.ty = y - (y - this.ty) * scale / this.scale;
    this.scale = scale;
    this.limit();
    this.paint();
  }
  centre(box) {
    if (!box) return;
    const { clientWidth: w, clientHeight: h } = this.canvas;
    if (this.scale < 0.45) this.scale = 0.8;
    this.tx = w / 2 - box.x * this.scale;
    this.ty = h / 2 - (box.y + Math.min(box.h, h / this.scale) / 2) * this.scale;
    this.limit();
    this.paint();
  }
  toggle(group, box) {
    const { open } = this.scene;
    const was = [box.x, box.y];
    if (open.has(group)) open.delete(group); else open.add(group);
    this.scene.lay();
    const now = this.scene.boxes.find((b) => b.kind === GROUP && b.ref === group);
    if (now) { this.tx += (was[0] - now.x) * this.scale; this.ty += (was[1] - now.y) * this.scale; }
    this.paint();
  }
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    return [x, y, this.scene.hit((x - this.tx) / this.scale, (y - this.ty) / this.scale)];
  }
  listen() {
    const { canvas } = this;
    let from = null;
    let moved = false;
    canvas.addEventListener("pointerdown", (e) => { from = [e.clientX, e.clientY]; moved = false; canvas.setPointerCapture(e.pointerId); });
    canvas.addEventListener("pointermove", (e) => {
      if (from) {
        const [dx, dy] = [e.clientX - from[0], e.clientY - from[1]];
        if (!moved && Math.hypot(dx, dy) < 4) return;
        moved = true;
        canvas.classList.add("dragging");
        this.tx += dx; this.ty += dy;
        from = [e.clientX, e.clientY];
        this.limit();
        this.page.leave();
        this.paint();
        return;
      }
      const [, , box] = this.at(e);
      canvas.classList.toggle("over", Boolean(box && box.kind <= GROUP));
      this.page.hover(this, box, e.clientX, e.clientY);
    });
    canvas.addEventListener("pointerup", (e) => {
      canvas.classList.remove("dragging");
      if (from && !moved) {
        const [, , box] = this.at(e);
        if (box?.kind === GROUP) { this.page.leave(); this.toggle(box.ref, box); } else this.page.pick(this, box);
      }
      from = null;
    });
    canvas.addEventListener("pointerleave", () => this.page.leave());
    canvas.addEventListener("wheel", (e) => {
      const zooming = e.ctrlKey || e.metaKey;
      if (!zooming && document.activeElement !== canvas) return;
      e.preventDefault();
      const [x, y] = this.at(e);
      if (zooming) this.zoom(Math.exp(-e.deltaY / 300), x, y);
      else { this.tx -= e.deltaX; this.ty -= e.deltaY; this.limit(); this.page.leave(); this.paint(); }
    }, { passive: false });
    canvas.addEventListener("keydown", (e) => this.key(e));
  }
  key(e) {
    const { clientWidth: w, clientHeight: h } = this.canvas;
    const step = { ArrowDown: 1, ArrowUp: -1, ArrowRight: 1, ArrowLeft: -1 }[e.key];
    if (step) {
      const list = this.scene.boxes.filter((b) => b.kind <= GROUP).sort((a, b) => a.y - b.y || a.x - b.x);
      const here = list.findIndex((b) => this.picked && b.kind === this.picked.kind && b.ref === this.picked.ref);
      const next = list[Math.min(Math.max(here + step, 0), list.length - 1)];
      if (next) { this.centre(next); this.page.pick(this, next); }
    } else if (e.key === "Enter" && this.picked?.kind === GROUP) this.toggle(this.picked.ref, this.picked);
    else if (e.key === "+" || e.key === "=") this.zoom(1.25, w / 2, h / 2);
    else if (e.key === "-") this.zoom(0.8, w / 2, h / 2);
    else if (e.key === "0") { this.fit(); this.paint(); } else if (e.key === "Escape") this.page.pick(this, null);
    else return;
    e.preventDefault();
  }

  paint() {
    if (this.waiting || !this.scene) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.render(); });
  }
  render() {
    const { draw2d: c, scene, scale } = this;
    const colour = this.page.colour;
    const dense = devicePixelRatio || 1;
    const [w, h] = [this.canvas.clientWidth, this.canvas.clientHeight];
    c.setTransform(dense, 0, 0, dense, 0, 0);
    c.fillStyle = colour.paper;
    c.fillRect(0, 0, w, h);
    c.setTransform(dense * scale, 0, 0, dense * scale, dense * this.tx, dense * this.ty);
    const top = -this.ty / scale, bottom = (h - this.ty) / scale;
    const left = -this.tx / scale, right = (w - this.tx) / scale;
    const seen = (b) => b.y < bottom && b.y + b.h > top && b.x - b.w / 2 < right && b.x + b.w / 2 > left;
    const near = new Set(this.lit);
    const deepest = scene.boxes.reduce((d, b) => Math.max(d, b.depth), 0);
    for (let depth = 0; depth <= deepest; depth += 1) {
      for (const box of scene.boxes) if (box.depth === depth && box.inner && seen(box)) this.frame(c, box, colour);
      this.lines(c, depth, near, top, bottom, colour);
      for (const box of scene.boxes) if (box.depth === depth && !box.inner && seen(box)) this.box(c, box, colour, near);
    }
  }
  lines(c, depth, near, top, bottom, colour) {
    const path = (edge) => {
      const { points } = edge;
      if (edge.far && !(near.has(edge.from.ref) || near.has(edge.to.ref))) {
        const [[x0, y0], [x1, y1]] = points;
        c.moveTo(x0, y0); c.lineTo(x0, y0 + 9);
        c.moveTo(x1, y1 - 9); c.lineTo(x1, y1);
        return;
      }
      c.moveTo(...points[0]);
      for (let k = 1; k < points.length; k += 1) {
        const [[x0, y0], [x1, y1]] = [points[k - 1], points[k]];
        if (Math.abs(x0 - x1) < 0.5) c.lineTo(x1, y1);
        else c.bezierCurveTo(x0, (y0 + y1) / 2, x1, (y0 + y1) / 2, x1, y1);
      }
    };
    c.lineWidth = Math.max(1.1, 0.7 / this.scale);
    c.strokeStyle = colour.edge;
    c.beginPath();
    const strong = [];
    for (const edge of this.scene.edges) {
      if (edge.depth !== depth) continue;
      const ends = [edge.points[0][1], edge.points.at(-1)[1]];
      if (Math.min(...ends) > bottom || Math.max(...ends) < top) continue;
      if (this.own && (edge.from === this.own || edge.to === this.own)) strong.push(edge); else path(edge);
    }
    c.stroke();
    c.strokeStyle = colour.accent;
    c.lineWidth = 1.8;
    c.beginPath();
    strong.forEach(path);
    c.stroke();
  }
  frame(c, box, colour) {
    c.fillStyle = colour.soft;
    c.strokeStyle = colour.line;
    c.lineWidth = 1;
    c.beginPath();
    c.roundRect(box.x - box.w / 2, box.y, box.w, box.h, 9);
    c.fill();
    c.stroke();
    if (this.scale < 0.3) return;
    c.fillStyle = colour.dim;
    c.font = `560 11px ${colour.sans}`;
    c.textAlign = "left";
    c.textBaseline = "middle";
    c.fillText(`▾ ${box.label}`, box.x - box.w / 2 + 9, box.y + HEAD / 2);
  }
  box(c, box, colour, near) {
    const { scene, scale } = this;
    const [x, y] = [box.x - box.w / 2, box.y];
    const members = scene.nodesOf(box);
    const lit = members.some((k) => near.has(k));
    const picked = this.picked && this.picked.kind === box.kind && this.picked.ref === box.ref;
    const style = this.page.style(this, members);
    c.beginPath();
    if (box.kind >= IN) c.roundRect(x, y, box.w, box.h, box.h / 2);
    else c.roundRect(x, y, box.w, box.h, box.kind === GROUP && box.h === 20 ? 10 : 7);
    c.fillStyle = box.kind >= IN ? colour.soft : style.fill;
    c.fill();
    c.strokeStyle = lit || picked ? colour.accent : style.stroke;
    c.lineWidth = lit || picked ? Math.max(2.4, 1.6 / scale) : 1;
    c.setLineDash(style.dashed && !lit && !picked ? [4, 3] : []);
    c.stroke();
    c.setLineDash([]);
    if (box.kind === GROUP && box.h !== 20) {
      c.beginPath();
      c.roundRect(x + 3, y + box.h, box.w - 6, 3, [0, 0, 5, 5]);
      c.stroke();
      let at = x + 8;
      for (const [tint, share] of this.page.shares(this, members)) {
        c.fillStyle = tint;
        c.fillRect(at, y + box.h - 6, share * (box.w - 16), 2.5);
        at += share * (box.w - 16);
      }
    }
    if (scale < 0.3) return;
    if (box.kind === NODE && style.strip) {
      c.fillStyle = style.strip;
      c.beginPath();
      c.roundRect(x + 4, y + 6, 3, box.h - 12, 2);
      c.fill();
    }
    c.textAlign = "center";
    c.textBaseline = "middle";
    c.fillStyle = box.kind >= IN || box.h === 20 ? colour.dim : style.ink;
    c.font = `${box.kind === NODE ? 560 : 500} ${box.h === 20 || box.kind >= IN ? 11 : 12}px ${colour.sans}`;
    const second = box.kind === NODE ? scene.text("weights", box.ref).split(",")[0] : box.kind === GROUP && box.h === TALL ? `${members.length} nodes` : "";
    c.fillText(box.kind === GROUP && box.h === TALL ? `▸ ${box.label}` : box.label, box.x, second ? y + 12.5 : y + box.h / 2 + 0.5);
    if (second) {
      c.fillStyle = colour.dim;
      c.font = `10.5px ${colour.sans}`;
      c.fillText(second, box.x, y + (box.kind === GROUP ? 25 : 26.5));
    }
  }
}
