"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // ---------------------------------------------------------------- numbers
  const duration = (s) => {
    if (s === 0) return "0 s";
    const a = Math.abs(s);
    if (a < 0.0009995) return `${+(s * 1e6).toPrecision(3)} µs`;
    if (a < 0.9995) return `${+(s * 1e3).toPrecision(3)} ms`;
    if (a < 120) return `${+s.toPrecision(3)} s`;
    if (a < 7200) return `${+(s / 60).toPrecision(3)} min`;
    if (a < 172800) return `${+(s / 3600).toPrecision(3)} h`;
    return `${+(s / 86400).toPrecision(3)} d`;
  };
  const number = (v) => {
    if (v === 0) return "0";
    const a = Math.abs(v);
    if (a >= 1e5 || a < 1e-3) return v.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
    return String(+v.toPrecision(4));
  };
  const ticksOf = (low, high, wanted, time) => {
    const rough = (high - low) / Math.max(wanted, 1);
    if (!(rough > 0)) return [low];
    let steps = null;
    if (time && rough > 1) steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800];
    let step;
    if (steps) step = steps.find((s) => s >= rough) || 604800 * Math.ceil(rough / 604800);
    else {
      const power = 10 ** Math.floor(Math.log10(rough));
      step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
    }
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
    return found;
  };
  const logTicks = (low, high, wanted) => {
    const from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high));
    const found = [];
    const every = Math.max(1, Math.ceil((to - from) / wanted));
    for (let p = from; p <= to; p++) {
      if (Math.log10(high / low) * 3 <= wanted + 2) for (const m of [1, 2, 5]) found.push(m * 10 ** p);
      else if ((p - from) % every === 0) found.push(10 ** p);
    }
    return found.filter((v) => v >= low * 0.999 && v <= high * 1.001);
  };

  // -------------------------------------------------------------------- svg
  const make = (name, attributes, parent, text) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };
  const frame = (host, height, label) => {
    const width = Math.max(260, host.clientWidth || 520);
    host.replaceChildren();
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, host);
    return { svg, width, height, left: 52, right: width - 12, top: 26, bottom: height - 40 };
  };
  const axes = (f, x, y, xLabel, yLabel) => {
    for (const [value, text] of y.ticks) {
      const at = y.to(value);
      make("line", { class: "grid", x1: f.left, x2: f.right, y1: at, y2: at }, f.svg);
      make("text", { x: f.left - 8, y: at + 4, "text-anchor": "end" }, f.svg, text);
    }
    for (const [value, text] of x.ticks) {
      make("text", { x: x.to(value), y: f.bottom + 17, "text-anchor": "middle" }, f.svg, text);
    }
    make("text", { x: (f.left + f.right) / 2, y: f.height - 5, "text-anchor": "middle" }, f.svg, xLabel);
    if (yLabel) make("text", { x: 0, y: 2, "dominant-baseline": "hanging" }, f.svg, yLabel);
  };
  const scale = (low, high, from, to, log, say, time) => {
    if (low === high) { const pad = Math.abs(low) * 0.1 || 1; low -= log ? 0 : pad; high += pad; }
    const f = log ? Math.log10 : (v) => v;
    const a = f(low), b = f(high);
    const wanted = Math.max(2, Math.min(8, Math.round(Math.abs(to - from) / (from > to ? 45 : 80))));
    const ticks = (log ? logTicks(low, high, wanted) : ticksOf(low, high, wanted, time)).map((v) => [v, say(v)]);
    return { to: (v) => from + ((f(v) - a) / (b - a)) * (to - from), ticks };
  };

  const drawUtilisation = () => {
    const u = data.utilisation, host = byId("utilisation-chart");
    if (!host || !u.values.length) return;
    const high = Math.max(u.slots, ...u.values);
    const f = frame(host, 220, `Slots in use over time: at most ${number(Math.max(...u.values))} of ${u.slots}`);
    const x = scale(0, u.length_s, f.left, f.right, false, duration, true);
    const y = scale(0, high, f.bottom, f.top, false, number);
    y.ticks = y.ticks.filter(([v]) => Number.isInteger(v));
    axes(f, x, y, "time since the first start", "slots in use");
    const width = u.length_s / u.values.length;
    let path = `M${x.to(0)},${y.to(0)}`, edge = "";
    u.values.forEach((v, i) => {
      const segment = `${x.to(i * width).toFixed(1)},${y.to(v).toFixed(1)} ${x.to((i + 1) * width).toFixed(1)},${y.to(v).toFixed(1)}`;
      path += `L${segment}`; edge += `${i ? "L" : "M"}${segment}`;
    });
    make("path", { class: "area", d: `${path}L${x.to(u.length_s)},${y.to(0)}Z` }, f.svg);
    make("path", { class: "edge", d: edge }, f.svg);
    if (u.slots) make("line", { class: "limit", x1: f.left, x2: f.right, y1: y.to(u.slots), y2: y.to(u.slots) }, f.svg);
  };

  const drawDurations = () => {
    const d = data.durations, host = byId("durations-chart");
    if (!host || !d.counts.length) return;
    const f = frame(host, 220, `Histogram of the wall times; median ${duration(d.median)}`);
    const x = scale(d.edges[0], d.edges[d.edges.length - 1], f.left, f.right, d.log, duration);
    const y = scale(0, Math.max(...d.counts), f.bottom, f.top, false, number);
    y.ticks = y.ticks.filter(([v]) => Number.isInteger(v));
    axes(f, x, y, d.log ? "wall time of an attempt (log)" : "wall time of an attempt", "attempts");
    d.counts.forEach((count, i) => {
      if (!count) return;
      const left = x.to(d.edges[i]), right = x.to(d.edges[i + 1]);
      const bar = make("rect", { class: "bar", x: left + 0.5, width: Math.max(1, right - left - 1), y: y.to(count), height: y.to(0) - y.to(count) }, f.svg);
      make("title", {}, bar, `${duration(d.edges[i])} to ${duration(d.edges[i + 1])}: ${count}`);
    });
    make("line", { class: "median", x1: x.to(d.median), x2: x.to(d.median), y1: f.top - 10, y2: f.bottom }, f.svg);
    const side = x.to(d.median) > f.width * 0.7 ? "end" : "start";
    make("text", { x: x.to(d.median) + (side === "end" ? -6 : 6), y: f.top - 4, "text-anchor": side }, f.svg, `median ${duration(d.median)}`);
  };

  // ----------------------------------------------- results against parameters
  const scatter = data.scatter;
  const spreads = (column, ratio) => {
    if (!column.numeric) return false;
    const known = [...new Set(column.values.filter((v) => v !== null))].sort((a, b) => a - b);
    if (known.length < 3 || known[0] <= 0) return false;
    if (known[known.length - 1] / known[0] >= ratio) return true;
    // Steps that are equal as ratios, such as 16, 32, 64.
    const first = known[1] / known[0];
    return known.length <= 50 && known.every((v, i) => i === 0 || Math.abs(v / known[i - 1] / first - 1) < 0.05);
  };
  const drawScatter = () => {
    const host = byId("scatter-chart");
    if (!host) return;
    const xName = byId("scatter-x").value, yName = byId("scatter-y").value, cName = byId("scatter-c").value;
    const X = scatter.columns[xName], Y = scatter.columns[yName], C = cName ? scatter.columns[cName] : null;
    const logX = byId("scatter-logx").checked && X.numeric, logY = byId("scatter-logy").checked;
    const xPlain = xName.slice(2), yPlain = yName.slice(2);
    const f = frame(host, 340, `${yPlain} against ${xPlain}`);
    const categories = X.numeric ? null : [...new Set(X.values)];
    const points = [];
    for (let i = 0; i < Y.values.length; i++) {
      const x = categories ? categories.indexOf(X.values[i]) : X.values[i], y = Y.values[i];
      if (x === null || y === null || (logX && x <= 0) || (logY && y <= 0)) continue;
      points.push({ x, y, c: C ? C.values[i] : "", task: scatter.task[i] });
    }
    host.dataset.points = points.length;
    const key = byId("scatter-key");
    key.replaceChildren();
    if (!points.length) { make("text", { x: f.width / 2, y: 80, "text-anchor": "middle" }, f.svg, "no values to show"); return; }
    const extent = (name) => points.reduce(([a, b], p) => [Math.min(a, p[name]), Math.max(b, p[name])], [Infinity, -Infinity]);
    let [x0, x1] = extent("x"), [y0, y1] = extent("y");
    if (categories) { x0 = -0.5; x1 = categories.length - 0.5; }
    const pad = (a, b, log) => (log ? [a / (b / a) ** 0.03, b * (b / a) ** 0.03] : [a - (b - a) * 0.03, b + (b - a) * 0.03]);
    if (!categories) [x0, x1] = pad(x0, x1, logX);
    [y0, y1] = pad(y0, y1, logY);
    const say = (name) => (name.endsWith("_s") ? duration : number);
    const x = scale(x0, x1, f.left, f.right, logX, say(xPlain));
    if (categories) x.ticks = categories.slice(0, 20).map((name, i) => [i, name.length > 14 ? `${name.slice(0, 13)}…` : name]);
    const distinct = [...new Set(points.map((p) => p.x))].sort((a, b) => a - b);
    if (!categories && distinct.length <= 14) {
      // Few values: they are the ticks, as far as they have room.
      let free = -Infinity;
      x.ticks = distinct.filter((v) => { const at = x.to(v); if (at < free) return false; free = at + 44; return true; }).map((v) => [v, say(xPlain)(v)]);
    }
    const y = scale(y0, y1, f.bottom, f.top, logY, say(yPlain));
    axes(f, x, y, xPlain + (logX ? " (log)" : ""), yPlain + (logY ? " (log)" : ""));
    let groups = [...new Set(points.map((p) => p.c))];
    if (C && C.numeric) groups.sort((a, b) => a - b);
    const many = groups.length > 8;
    const paint = (c) => colour(`--c${many ? 0 : Math.max(0, groups.indexOf(c)) % 8}`);
    const shade = new Map(groups.map((g, i) => [g, many && C && C.numeric ? 0.25 + (0.75 * i) / (groups.length - 1) : 0.85]));
    if (!many) for (const group of groups) {
      const own = points.filter((p) => p.c === group).sort((a, b) => a.x - b.x);
      const simple = !categories && own.length > 1 && new Set(own.map((p) => p.x)).size === own.length && own.length <= 400;
      if (simple) make("path", { class: "series", stroke: paint(group), d: own.map((p, i) => `${i ? "L" : "M"}${x.to(p.x).toFixed(1)},${y.to(p.y).toFixed(1)}`).join("") }, f.svg);
    }
    const radius = points.length > 800 ? 2 : 3.5;
    for (const p of points) {
      const dot = make("circle", { cx: x.to(p.x).toFixed(1), cy: y.to(p.y).toFixed(1), r: radius, fill: paint(p.c), "fill-opacity": shade.get(p.c) }, f.svg);
      make("title", {}, dot, `task ${p.task}: ${xPlain} ${categories ? categories[p.x] : number(p.x)}, ${yPlain} ${number(p.y)}${C ? `, ${cName.slice(2)} ${p.c}` : ""}`);
    }
    if (C && !many) for (const group of groups) {
      const item = document.createElement("li"), box = document.createElement("i");
      box.style.background = paint(group);
      item.append(box, `${cName.slice(2)} = ${C.numeric ? number(group) : group}`);
      key.append(item);
    } else if (C) {
      const item = document.createElement("li");
      item.textContent = C.numeric ? `darker: larger ${cName.slice(2)}` : `${groups.length} values of ${cName.slice(2)}: one colour`;
      key.append(item);
    }
  };
  const startScatter = () => {
    if (!byId("scatter-x")) return;
    const again = () => {
      byId("scatter-logx").checked = spreads(scatter.columns[byId("scatter-x").value], 100);
      byId("scatter-logy").checked = spreads(scatter.columns[byId("scatter-y").value], 30);
    };
    again();
    for (const id of ["scatter-x", "scatter-y"]) byId(id).addEventListener("change", () => { again(); drawScatter(); });
    for (const id of ["scatter-c", "scatter-logx", "scatter-logy"]) byId(id).addEventListener("change", drawScatter);
  };

  // --------------------------------------------------------------- timeline
  const unpack = (text, Kind) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new Kind(bytes.buffer);
  };
  const timeline = () => {
    const canvas = byId("gantt"), t = data.timeline;
    if (!canvas) return null;
    const detail = t.kind === "detail";
    const lane = detail && unpack(t.lane, Uint16Array), start = detail && unpack(t.start, Float64Array);
    const took = detail && unpack(t.took, Float32Array), outcome = detail && unpack(t.outcome, Uint8Array);
    const task = detail && unpack(t.task, Uint32Array), tries = detail && unpack(t.number, Uint16Array);
    const busy = !detail && unpack(t.busy, Uint8Array);
    const last = t.lanes[t.lanes.length - 1], laneCount = last.first + last.count;
    const firstOf = new Uint32Array(laneCount + 1);
    if (detail) {
      for (let i = 0; i < lane.length; i++) firstOf[lane[i] + 1]++;
      for (let i = 0; i < laneCount; i++) firstOf[i + 1] += firstOf[i];
    }
    const LEFT = 118, BOTTOM = 24;
    const row = Math.max(2, Math.min(20, 420 / laneCount));
    const height = Math.max(70, Math.min(560, laneCount * row) + BOTTOM);
    let from = 0, to = t.length_s, width = 0, selected = -1, waiting = false, palette = [];
    const left = () => (width < 520 ? 74 : LEFT);
    const rowHeight = () => (height - BOTTOM) / laneCount;
    const xOf = (s) => left() + ((s - from) / (to - from)) * (width - left());
    const takePalette = () => { palette = ["--ok", "--fail", "--time", "--memory", "--lost", "--lost", "--lost"].map(colour); };

    const draw = () => {
      waiting = false;
      const began = performance.now();
      const ratio = Math.min(3, window.devicePixelRatio || 1);
      width = Math.max(240, canvas.clientWidth || canvas.parentElement.clientWidth);
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
        canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
        canvas.style.height = `${height}px`;
      }
      const g = canvas.getContext("2d");
      g.setTransform(ratio, 0, 0, ratio, 0, 0);
      g.clearRect(0, 0, width, height);
      const ink = colour("--ink"), soft = colour("--soft"), line = colour("--line");
      const h = rowHeight(), gap = h > 6 ? 1 : 0;
      let drawn = 0;
      g.save(); g.beginPath(); g.rect(left(), 0, width - left(), height - BOTTOM); g.clip();
      // Twice over: what failed is drawn last and never thinner than two pixels.
      if (detail) for (const bad of [false, true]) for (let l = 0; l < laneCount; l++) {
        let i = firstOf[l], end = firstOf[l + 1];
        for (let low = i, high = end; low < high;) {
          const mid = (low + high) >> 1;
          if (start[mid] + took[mid] < from) low = i = mid + 1; else high = mid;
        }
        let pixel = -1e9;
        for (; i < end && start[i] <= to; i++) {
          if ((outcome[i] !== 0) !== bad) continue;
          const a = xOf(start[i]), b = xOf(start[i] + took[i]);
          // Attempts within one pixel are drawn once.
          if (b - a < 0.7 && a - pixel < 0.7) continue;
          pixel = a;
          g.fillStyle = palette[outcome[i]] || soft;
          const w = Math.max(bad ? 2 : 0.8, b - a - (b - a > 3 ? 0.8 : 0));
          g.fillRect(a, l * h, w, h - gap);
          drawn++;
          if (w > 34 && h >= 13) {
            g.fillStyle = colour("--card"); g.font = "11px system-ui, sans-serif"; g.textBaseline = "middle";
            const text = String(task[i]);
            if (g.measureText(text).width < w - 8) g.fillText(text, Math.max(a, left()) + 4, l * h + (h - gap) / 2 + 0.5);
          }
        }
      } else {
        const bin = t.length_s / t.bins;
        g.fillStyle = palette[0];
        for (let l = 0; l < laneCount; l++) for (let b = 0; b < t.bins; b++) {
          const value = busy[l * t.bins + b];
          if (!value || (b + 1) * bin < from || b * bin > to) continue;
          g.globalAlpha = value / 255;
          const a = xOf(b * bin);
          g.fillRect(a, l * h, xOf((b + 1) * bin) - a + 0.3, h - gap);
          drawn++;
        }
        g.globalAlpha = 1;
      }
      if (selected >= 0) {
        g.strokeStyle = ink; g.lineWidth = 2;
        const a = xOf(start[selected]);
        g.strokeRect(a, lane[selected] * h + 0.5, Math.max(3, xOf(start[selected] + took[selected]) - a), Math.max(3, h - gap - 1));
      }
      g.restore();
      g.font = "12px system-ui, sans-serif"; g.textBaseline = "middle"; g.fillStyle = soft; g.strokeStyle = line; g.lineWidth = 1;
      let nextLabel = -1;
      for (const group of t.lanes) {
        const y = group.first * h, size = group.count * h;
        if (group.first && h * group.count > 3) { g.beginPath(); g.moveTo(0, Math.round(y) - 0.5); g.lineTo(width, Math.round(y) - 0.5); g.stroke(); }
        const middle = y + size / 2;
        if (middle - 7 < nextLabel) continue;
        nextLabel = middle + 8;
        let text = group.workers > 1 ? `${group.host} +${group.workers - 1}` : group.rank >= 0 ? `${group.host} · ${group.rank}` : group.host;
        while (text.length > 3 && g.measureText(text).width > left() - 12) text = `${text.slice(0, -2)}…`;
        g.fillText(text, 0, middle);
      }
      g.textBaseline = "alphabetic"; g.textAlign = "center";
      const wanted = Math.max(2, Math.round((width - left()) / 110));
      for (const tick of ticksOf(from, to, wanted, true)) {
        const at = xOf(tick);
        g.strokeStyle = line; g.beginPath(); g.moveTo(Math.round(at) + 0.5, height - BOTTOM); g.lineTo(Math.round(at) + 0.5, height - BOTTOM + 5); g.stroke();
        g.fillText(duration(tick), Math.min(width - 22, Math.max(left() + 14, at)), height - 5);
      }
      g.textAlign = "start";
      canvas.dataset.from = from; canvas.dataset.to = to; canvas.dataset.drawn = drawn;
      canvas.dataset.frameMs = (performance.now() - began).toFixed(2);
    };
    const later = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };
    const show = (a, b) => {
      const size = Math.min(t.length_s, Math.max(b - a, t.length_s * 1e-7));
      from = Math.max(0, Math.min(a, t.length_s - size)); to = from + size; later();
    };
    const zoom = (factor, at) => {
      const centre = at === undefined ? (from + to) / 2 : at;
      show(centre - (centre - from) * factor, centre + (to - centre) * factor);
    };
    const tip = byId("gantt-tip");
    const say = (i) => {
      if (i < 0) { tip.textContent = ""; return; }
      const group = t.lanes.find((g) => lane[i] < g.first + g.count);
      tip.textContent = `task ${task[i]}, attempt ${tries[i]}: ${t.outcomes[outcome[i]] || "?"}, ${duration(took[i])}, started ${duration(start[i])} after the first, on ${group.host}`;
    };
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    const timeAt = (x) => from + ((x - left()) / (width - left())) * (to - from);
    const find = (x, y) => {
      if (!detail || x < left()) return -1;
      const l = Math.floor(y / rowHeight());
      if (l < 0 || l >= laneCount) return -1;
      const when = timeAt(x), slack = ((to - from) / (width - left())) * 2;
      let best = -1;
      for (let i = firstOf[l]; i < firstOf[l + 1] && start[i] <= when + slack; i++) if (start[i] + took[i] >= when - slack) best = i;
      return best;
    };
    let grabbed = null, moved = false;
    canvas.addEventListener("pointerdown", (event) => { if (event.button === 0) { grabbed = { x: at(event).x, from, to }; moved = false; } });
    window.addEventListener("pointermove", (event) => {
      if (!grabbed) return;
      const shift = ((at(event).x - grabbed.x) / (width - left())) * (grabbed.to - grabbed.from);
      if (Math.abs(at(event).x - grabbed.x) > 3) moved = true;
      if (moved) show(grabbed.from - shift, grabbed.to - shift);
    });
    window.addEventListener("pointerup", () => { grabbed = null; });
    canvas.addEventListener("pointermove", (event) => { if (!grabbed) { const p = at(event); say(find(p.x, p.y)); } });
    canvas.addEventListener("pointerleave", () => say(selected));
    canvas.addEventListener("click", (event) => { if (moved) return; const p = at(event); selected = find(p.x, p.y); say(selected); later(); });
    canvas.addEventListener("dblclick", (event) => zoom(0.4, timeAt(at(event).x)));
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey && !event.shiftKey) return;  // a plain wheel scrolls the page
      event.preventDefault();
      zoom(Math.exp((event.deltaY || event.deltaX) * 0.002), timeAt(Math.max(left(), at(event).x)));
    }, { passive: false });
    const step = (by) => {
      if (!detail || !start.length) return;
      selected = selected < 0 ? 0 : Math.max(0, Math.min(start.length - 1, selected + by));
      const a = start[selected], b = a + took[selected];
      if (a < from || b > to) { const size = Math.max(to - from, took[selected] * 1.5); show((a + b - size) / 2, (a + b + size) / 2); }
      say(selected); later();
    };
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const size = to - from;
      const keys = {
        ArrowLeft: () => show(from - size * 0.2, to - size * 0.2), ArrowRight: () => show(from + size * 0.2, to + size * 0.2),
        "+": () => zoom(0.6), "=": () => zoom(0.6), "-": () => zoom(1 / 0.6), "0": () => show(0, t.length_s), Home: () => show(0, t.length_s),
        n: () => step(1), p: () => step(-1), Escape: () => { selected = -1; say(-1); later(); },
      };
      if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
    });
    byId("gantt-in").addEventListener("click", () => zoom(0.6));
    byId("gantt-out").addEventListener("click", () => zoom(1 / 0.6));
    byId("gantt-all").addEventListener("click", () => show(0, t.length_s));
    takePalette();
    return { draw, later, whole: () => { from = 0; to = t.length_s; }, palette: takePalette };
  };

  // ------------------------------------------------------------------- page
  const gantt = timeline();
  startScatter();
  const drawAll = () => {
    if (gantt) { gantt.palette(); gantt.draw(); }
    drawUtilisation(); drawDurations(); drawScatter();
  };
  let resize = 0;
  window.addEventListener("resize", () => { cancelAnimationFrame(resize); resize = requestAnimationFrame(drawAll); });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  const print = window.matchMedia("print");
  print.addEventListener("change", () => { if (gantt && print.matches) gantt.whole(); drawAll(); });
  window.addEventListener("beforeprint", () => {
    for (const item of document.querySelectorAll("#failures details")) item.open = true;
    if (gantt) gantt.whole();
    drawAll();
  });
  window.addEventListener("afterprint", drawAll);
  byId("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : window.matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    drawAll();
  });
  for (const button of document.querySelectorAll("button.copy")) button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code"), before = button.textContent;
    try { await navigator.clipboard.writeText(code.textContent); button.textContent = "copied"; } catch (error) {
      const range = document.createRange(); range.selectNodeContents(code);
      const selection = window.getSelection(); selection.removeAllRanges(); selection.addRange(range); button.textContent = "selected";
    }
    setTimeout(() => { button.textContent = before; }, 1500);
  });
  drawAll();
  document.documentElement.dataset.ready = "yes";
})();
