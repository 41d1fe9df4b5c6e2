"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const COLOURS = 8;
  const all = (root, query) => [...root.querySelectorAll(query)];
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  /* Names for legends are cut, unless two of them would then look the same. */
  const short = (names, length = 34) => {
    const cut = names.map((name) => (name.length > length ? `${name.slice(0, length - 1)}…` : name)), seen = new Map();
    cut.forEach((name) => seen.set(name, (seen.get(name) ?? 0) + 1));
    return names.map((name, i) => (seen.get(cut[i]) > 1 ? name : cut[i]));
  };

  const faint = (colour) => {
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
    return `rgba(${r},${g},${b},0.15)`;
  };
  const draw = (element, traces, x, y, extra = {}) => drawPlot(element, traces, x, y, extra, { ink: css("--ink"), muted: css("--muted"), grid: css("--line") });
  const band = (x, curve, colour) => ({
    x: [...x, ...[...x].reverse()], y: [...curve.high, ...[...curve.low].reverse()], fill: "toself", mode: "lines",
    line: { width: 0 }, fillcolor: faint(colour), hoverinfo: "skip", showlegend: false, type: "scatter",
  });
  /* A logarithmic axis with round numbers: 1, 2, 5, 10, or only powers of ten if those would be too many. */
  const logarithmic = (values) => {
    let [low, high] = [Math.min(...values) / 1.3, Math.max(...values) * 1.3];
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) ticks.push(...[1, 2, 5].map((digit) => Number(`${digit}e${power}`)));
    if (high < 4 * low) [low, high] = [Math.max(...ticks.filter((tick) => tick <= low)), Math.min(...ticks.filter((tick) => tick >= high))];
    const inside = ticks.filter((tick) => tick >= low && tick <= high), few = inside.length > 7 ? inside.filter((tick) => String(tick.toExponential()).startsWith("1e")) : inside;
    return { type: "log", tickvals: few, ticktext: few.map((tick) => tick.toLocaleString("en", { maximumSignificantDigits: 3 })), range: [low, high].map(Math.log10) };
  };
  const percent = (values) => values.map((v) => (v === null ? null : 100 * v));

  /* A confusion matrix: one canvas for any number of classes, and a selected cell that pointer and arrow keys move. */
  class Heat {
    constructor(root, classes) {
      this.root = root;
      this.classes = classes;
      [this.canvas, this.status] = [root.querySelector("canvas"), root.querySelector(".cell")];
      this.cell = [0, 0];
      this.seen = false;
      this.canvas.addEventListener("keydown", (event) => this.key(event));
      this.canvas.addEventListener("pointermove", (event) => this.point(event));
      this.canvas.addEventListener("pointerdown", (event) => this.point(event));
      this.canvas.addEventListener("focus", () => this.move(...this.cell));
      new IntersectionObserver(([entry]) => { if (entry.isIntersecting && !this.seen) { this.seen = true; this.paint(); } }, { rootMargin: "300px" }).observe(root);
      new ResizeObserver(() => requestAnimationFrame(() => this.paint())).observe(root);
    }

    show(matrix) {
      const n = this.classes.length;
      this.counts = matrix && new Uint32Array(n * n);
      let place = 0;
      for (let i = 0; matrix && i < matrix.length; i += 2) { place += matrix[i]; this.counts[place] = matrix[i + 1]; }
      this.totals = matrix && [...Array(n).keys()].map((c) => this.counts.subarray(c * n, (c + 1) * n).reduce((a, b) => a + b, 0));
      this.canvas.hidden = !matrix;
      this.status.textContent = matrix ? "" : "Left out to keep this page small: report on fewer trials to see it.";
      this.paint();
    }

    paint() {
      if (!this.counts || !this.seen || !this.root.clientWidth) return;
      const n = this.classes.length, size = Math.max(2, Math.min(28, Math.floor(Math.min(this.root.clientWidth, 660) / n)));
      const [wrong, right, soft, focus] = ["--lost", "--won", "--soft", "--focus"].map(css), context = this.canvas.getContext("2d"), sharp = window.devicePixelRatio || 1;
      this.size = size;
      [this.canvas.width, this.canvas.height] = [n * size * sharp, n * size * sharp];
      [this.canvas.style.width, this.canvas.style.height] = [`${n * size}px`, `${n * size}px`];
      context.scale(sharp, sharp);
      context.fillStyle = soft;
      context.fillRect(0, 0, n * size, n * size);
      const gap = size > 5 ? 1 : 0;
      this.counts.forEach((count, k) => {
        if (!count) return;
        const [label, taken] = [Math.floor(k / n), k % n];
        context.globalAlpha = 0.15 + 0.85 * Math.sqrt(count / this.totals[label]);
        context.fillStyle = label === taken ? right : wrong;
        context.fillRect(taken * size, label * size, size - gap, size - gap);
      });
      context.globalAlpha = 1;
      if (!this.status.textContent) return;
      context.strokeStyle = focus;
      context.lineWidth = 2;
      context.strokeRect(this.cell[1] * size - 1, this.cell[0] * size - 1, size + 1, size + 1);
    }

    move(label, taken) {
      const last = this.classes.length - 1, within = (c) => Math.max(0, Math.min(last, c));
      this.cell = [within(label), within(taken)];
      const [a, b] = this.cell, count = this.counts[a * (last + 1) + b], total = this.totals[a];
      const share = total ? `${(100 * count / total).toFixed(0)} %` : "no test images";
      this.status.textContent = a === b ? `${this.classes[a]} is recognised: ${share}` : `${this.classes[a]} taken for ${this.classes[b]}: ${share}`;
      this.paint();
    }

    point(event) {
      if (!this.counts) return;
      const box = this.canvas.getBoundingClientRect();
      this.move(Math.floor((event.clientY - box.top) / this.size), Math.floor((event.clientX - box.left) / this.size));
    }

    key(event) {
      const [a, b] = this.cell, n = this.classes.length;
      const to = { ArrowUp: [a - 1, b], ArrowDown: [a + 1, b], ArrowLeft: [a, b - 1], ArrowRight: [a, b + 1], Home: [a, 0], End: [a, n - 1], PageUp: [a - 10, b], PageDown: [a + 10, b] }[event.key];
      if (!to || !this.counts) return;
      event.preventDefault();
      this.move(...to);
    }
  }

  class Group {
    constructor(section) {
      this.section = section;
      this.data = DATA[section.dataset.group];
      this.rows = this.data.rows;
      this.names = short(this.rows.map((row) => row.name));
      this.chosen = new Set([...this.rows.keys()].filter((i) => i < this.data.drawn));
      this.drawn = new Set();
      this.watch();
      all(section, ".draw").forEach((box) => {
        const row = Number(box.closest("tr").dataset.row);
        box.checked = this.chosen.has(row);
        box.addEventListener("change", () => {
          this.chosen[box.checked ? "add" : "delete"](row);
          this.redraw();
          this.legend();
        });
      });
      all(section, ".cost, .curve, .scaling").forEach((menu) => menu.addEventListener("change", () => this.redraw()));
      const scaling = this.find(".scaling");
      if (!this.rows.some((row) => row.reliability.raw)) scaling.value = "scaled";
      if (!this.rows.some((row) => row.reliability.scaled)) scaling.closest("label").hidden = true;
      this.heat = new Heat(this.find(".heat"), this.data.classes);
      const menu = this.find(".explore");
      menu.addEventListener("change", () => this.explore(Number(menu.value)));
      this.explore(0);
      const search = this.find(".find");
      if (search) search.addEventListener("input", () => this.filter(search.value));
      this.fill(section);
      this.legend();
    }

    find(query) { return this.section.querySelector(query); }
    colour(row) { return css(`--c${row % COLOURS}`); }
    dash(row) { return ["solid", "dash", "dot", "dashdot"][Math.floor(row / COLOURS) % 4]; }
    label(row) { return this.names[row]; }
    picked() { return [...this.chosen].sort((a, b) => a - b); }

    watch() {
      const stress = this.find("[data-plots=stress]");
      if (stress) {
        const kinds = new Set(this.rows.flatMap((row) => Object.keys(row.stress)));
        kinds.forEach((kind) => stress.append(make("div", { class: "plot", "data-plot": "stress", "data-kind": kind, role: "img", "aria-label": `Accuracy under ${kind}` })));
      }
      const seen = new IntersectionObserver((entries) => entries.filter((e) => e.isIntersecting).forEach((entry) => {
        seen.unobserve(entry.target);
        this.drawn.add(entry.target);
        this.plot(entry.target);
      }), { rootMargin: "300px" });
      all(this.section, ".plot").forEach((element) => seen.observe(element));
    }

    drawAll() {
      if (this.section.hidden) return;
      all(this.section, ".plot").forEach((element) => this.drawn.add(element));
      all(this.section, ".verdicts details").forEach((more) => { more.open = true; });
      this.heat.seen = true;
      this.redraw();
    }

    redraw() { this.drawn.forEach((element) => this.plot(element)); this.heat.paint(); }

    /* One legend for all plots of changed images. */
    legend() {
      const entry = (i) => make("li", {}, make("span", { class: "line", style: `border-top: 3px ${{ solid: "solid", dash: "dashed" }[this.dash(i)] ?? "dotted"} var(--c${i % COLOURS})` }), this.names[i]);
      this.find(".legend")?.replaceChildren(...this.picked().filter((i) => Object.keys(this.rows[i].stress).length).map(entry));
    }

    plot(element) { this[element.dataset.plot](element); }

    cost(element) {
      const key = this.find(".cost").value;
      const { axis, unit, words } = this.data.costs.find((cost) => cost.key === key);
      const points = [...this.rows.keys()].filter((i) => this.rows[i].costs[key] !== null);
      const value = (i) => this.rows[i].costs[key];
      const front = [];
      let best = -1;
      for (const i of [...points].sort((a, b) => value(a) - value(b) || this.rows[b].top1[1] - this.rows[a].top1[1])) {
        if (this.rows[i].top1[1] > best) { best = this.rows[i].top1[1]; front.push(i); }
      }
      const y = (i) => 100 * this.rows[i].top1[1];
      const x = (i) => value(i) / unit;
      // A name is written only where there is no other name; the other points show theirs on hover.
      const span = (list) => Math.max(...list) - Math.min(...list) || 1, across = points.map((i) => Math.log(value(i) || 1));
      const [wide, high] = [span(across), span(points.map(y))], written = [];
      for (const i of [...front, ...points.filter((i) => this.chosen.has(i))]) {
        const near = (j) => Math.abs(Math.log((value(i) || 1) / (value(j) || 1))) < 0.16 * wide && Math.abs(y(i) - y(j)) < 0.06 * high;
        if (!written.some(near)) written.push(i);
      }
      // Names are above and beside the point, away from its interval and the front, towards the middle of the plot.
      const middle = (Math.min(...across) + Math.max(...across)) / 2, side = (i) => (Math.log(value(i) || 1) > middle ? "top left" : "top right");
      const trace = (name, chosen, colours, opacity) => ({
        type: "scatter", mode: "markers+text", name, x: chosen.map(x), y: chosen.map(y), opacity,
        text: chosen.map((i) => (written.includes(i) ? this.label(i) : "")), textposition: chosen.map(side), textfont: { size: 11, color: css("--muted") }, cliponaxis: false,
        customdata: chosen.map((i) => [this.rows[i].name, this.rows[i].backbone]),
        hovertemplate: "%{customdata}<br>%{y:.1f} %<br>%{x:.4g} " + words + "<extra></extra>",
        error_y: { type: "data", symmetric: false, array: chosen.map((i) => 100 * this.rows[i].top1[2] - y(i)), arrayminus: chosen.map((i) => y(i) - 100 * this.rows[i].top1[0]), thickness: 1.2, width: 3, color: css("--muted") },
        marker: { size: 11, color: colours, line: { color: css("--card"), width: 1.5 } },
      });
      const picked = points.filter((i) => this.chosen.has(i)), others = points.filter((i) => !this.chosen.has(i));
      draw(element, [
        { type: "scatter", mode: "lines", name: "front", x: front.map(x), y: front.map(y), line: { color: css("--pollen"), width: 2.5, shape: "hv" }, hoverinfo: "skip" },
        trace("ticked rows", picked, picked.map((i) => this.colour(i)), 1),
        trace("other rows", others, css("--muted"), 0.55),
      ], { title: { text: axis }, ...(Math.min(...points.map(value)) > 0 ? logarithmic(points.map(x)) : { type: "linear" }) }, { title: { text: "test top-1 %" } }, { showlegend: false });
    }

    curves(element) {
      const key = this.find(".curve").value, share = key !== "train_loss";
      const traces = this.picked().flatMap((i) => {
        const found = this.rows[i].curves[key], scaled = share ? Object.fromEntries(Object.entries(found).map(([k, v]) => [k, percent(v)])) : found;
        const x = scaled.mean.map((_, epoch) => epoch + 1);
        return [band(x, scaled, this.colour(i)), {
          type: "scatter", mode: x.length < 2 ? "markers" : "lines", name: this.label(i), x, y: scaled.mean, line: { color: this.colour(i), width: 2.2, dash: this.dash(i) },
          hovertemplate: `epoch %{x}: %{y:.4g}<extra>${this.label(i)}</extra>`,
        }];
      });
      const epochs = Math.max(1, ...this.picked().map((i) => this.rows[i].curves[key].mean.length));
      draw(element, traces, { title: { text: "epoch" }, tickformat: "d", dtick: epochs <= 12 ? 1 : undefined }, { title: { text: share ? `${this.data.curves[key]}, %` : this.data.curves[key] } });
    }

    calibration(element) {
      const key = this.find(".scaling").value;
      const traces = this.picked().filter((i) => this.rows[i].reliability[key]).map((i) => {
        const found = this.rows[i].reliability[key], total = found.n.reduce((a, b) => a + b, 0);
        const full = [...found.n.keys()].filter((bin) => found.n[bin] > 0);
        return {
          type: "scatter", mode: "lines+markers", name: this.label(i), x: full.map((b) => 100 * found.confidence[b]), y: full.map((b) => 100 * found.accuracy[b]),
          line: { color: this.colour(i), width: 1.8, dash: this.dash(i) }, marker: { size: full.map((b) => 4 + 16 * Math.sqrt(found.n[b] / total)) },
          customdata: full.map((b) => found.n[b]), hovertemplate: `confidence %{x:.0f} %: right in %{y:.0f} % of %{customdata}<extra>${this.label(i)}</extra>`,
        };
      });
      const ideal = { type: "scatter", mode: "lines", x: [0, 100], y: [0, 100], line: { color: css("--muted"), dash: "dot", width: 1.5 }, hoverinfo: "skip", showlegend: false };
      draw(element, [ideal, ...traces], { title: { text: "confidence, %" }, range: [0, 102] }, { title: { text: "right, %" }, range: [0, 102] });
    }

    sweep(element) {
      const found = this.data.sweeps[Number(element.dataset.sweep)], y = found.top1.map((v) => 100 * v[1]), colour = css("--c0");
      const wide = found.x[0] > 0 && found.x.at(-1) / found.x[0] >= 20;
      draw(element, [{
        type: "scatter", mode: "lines+markers", x: found.x, y, line: { color: colour, width: 2 }, marker: { size: 8 },
        error_y: { type: "data", symmetric: false, array: found.top1.map((v, i) => 100 * v[2] - y[i]), arrayminus: found.top1.map((v, i) => y[i] - 100 * v[0]), thickness: 1.2, width: 3, color: css("--muted") },
        customdata: found.names, hovertemplate: "%{customdata}<br>%{x}: %{y:.1f} %<extra></extra>",
      }], { title: { text: found.key }, type: wide ? "log" : "linear" }, { title: { text: "top-1 %" } }, { title: { text: found.factor, font: { size: 14 } }, showlegend: false });
    }

    stress(element) {
      const kind = element.dataset.kind;
      const traces = this.picked().filter((i) => this.rows[i].stress[kind]).flatMap((i) => {
        const found = this.rows[i].stress[kind], curve = { low: percent(found.low), high: percent(found.high) };
        return [band(found.levels, curve, this.colour(i)), {
          type: "scatter", mode: "lines+markers", name: this.label(i), x: found.levels, y: percent(found.mean), line: { color: this.colour(i), width: 2, dash: this.dash(i) },
          customdata: found.labels, hovertemplate: `%{customdata}: %{y:.1f} %<extra>${this.label(i)}</extra>`,
        }];
      });
      const first = this.rows.map((row) => row.stress[kind]).find(Boolean);
      draw(element, traces, { tickvals: first.levels, ticktext: first.labels }, { title: { text: "top-1 %" } }, { title: { text: kind, font: { size: 14 } }, showlegend: false });
    }

    shots(element) {
      const curves = this.data.shots.curves.slice(0, COLOURS), names = short(curves.map((found) => found.name));
      const traces = curves.flatMap((found, i) => {
        const [low, mean, high] = [0, 1, 2].map((k) => found.top1.map((v) => 100 * v[k])), colour = css(`--c${i}`), name = names[i];
        return [band(found.x, { low, high }, colour), {
          type: "scatter", mode: "lines+markers", name, x: found.x, y: mean, line: { color: colour, width: 2 }, marker: { size: 7 },
          hovertemplate: `%{x} a class: %{y:.1f} %<extra>${name}</extra>`,
        }];
      });
      const ticks = [...new Set(this.data.shots.curves.flatMap((found) => found.x))].sort((a, b) => a - b);
      draw(element, traces, { title: { text: "training images of each class" }, type: "log", tickvals: ticks, ticktext: ticks.map((x) => String(Math.round(10 * x) / 10)) }, { title: { text: "test top-1 %" } });
    }

    image(key, alt) {
      const uri = this.data.images[key];
      return uri ? make("img", { src: uri, alt, title: key }) : null;
    }

    fill(root) { all(root, "img[data-image]").forEach((image) => { image.src = this.data.images[image.dataset.image]; }); }

    explore(index) {
      const row = this.rows[index], name = (c) => this.data.classes[c];
      this.heat.show(row.matrix);
      const pairs = row.confused.map((pair) => {
        const strip = make("div", { class: "strip" });
        const add = (keys, text) => keys.map((key) => this.image(key, text)).filter(Boolean).forEach((image) => strip.append(image));
        add(pair.mistaken, `${name(pair.label)}, taken for ${name(pair.taken)}`);
        if (strip.childElementCount) {
          strip.append(make("span", { class: "arrow" }, "≈", make("span", { class: "hidden" }, " looks like ")));
          add(pair.typical, name(pair.taken));
        }
        const text = make("p", {}, make("strong", {}, name(pair.label)), " taken for ", make("strong", {}, name(pair.taken)), make("span", { class: "muted" }, `: ${pair.images} of ${pair.of} images`));
        return make("li", {}, text, ...(strip.childElementCount ? [strip] : []));
      });
      const gallery = (images, kind, caption) => make("ul", { class: `gallery ${kind}` }, ...images.map((found) => {
        const image = this.image(found.key, name(found.label));
        return make("li", {}, make("figure", {}, ...(image ? [image] : []), make("figcaption", {}, ...caption(found))));
      }));
      const sure = (found) => make("span", { class: "muted" }, `${(100 * found.sure).toFixed(0)} % sure`);
      const columns = ["class", "test images", "recognised %", "right when named %"];
      const heads = columns.map((title, i) => make("th", { scope: "col", ...(i ? { class: "number" } : { "data-kind": "text" }) }, make("button", { type: "button" }, title)));
      const lines = row.per_class.map(([n, ...shares], c) => make("tr", {}, make("th", { scope: "row" }, name(c)), make("td", { class: "number" }, String(n)),
        ...shares.map((share) => make("td", { class: "number", "data-value": share ?? "" }, share === null ? "-" : (100 * share).toFixed(1)))));
      const table = make("table", { class: "sortable" }, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...lines));
      sortable(table);
      const classes = make("details", { class: "kind" }, make("summary", {}, "Class by class"), make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Class by class" }, table));
      this.find(".explorer").replaceChildren(
        make("h4", {}, "Most confused pairs"), pairs.length ? make("ul", { class: "pairs" }, ...pairs) : make("p", { class: "empty" }, "No image is mistaken."),
        make("h4", {}, "Wrong, and most sure of it"), row.wrong.length ? gallery(row.wrong, "bad", (f) => [name(f.label), ", taken for ", name(f.taken), make("br"), sure(f)]) : make("p", { class: "empty" }, "No image is wrong with every seed."),
        make("h4", {}, "Right, and most sure of it"), row.right.length ? gallery(row.right, "good", (f) => [name(f.label), make("br"), sure(f)]) : make("p", { class: "empty" }, "No image is right with every seed."),
        classes,
      );
    }

    filter(text) {
      const words = text.toLowerCase().split(/\s+/);
      all(this.section, ".board tbody tr").forEach((line) => { line.hidden = !words.every((word) => line.textContent.toLowerCase().includes(word)); });
    }
  }

  function sortable(table) {
    all(table, "thead th").forEach((head, column) => {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const text = head.dataset.kind === "text";
        const ascending = head.hasAttribute("aria-sort") ? head.getAttribute("aria-sort") === "descending" : text;
        all(table, "thead th").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        const value = (line) => {
          const cell = line.children[column];
          if (text) return cell.textContent.trim();
          const number = parseFloat(cell.dataset.value ?? cell.textContent);
          return Number.isNaN(number) ? null : number;
        };
        const lines = all(table, "tbody tr").map((line) => [value(line), line]);
        lines.sort(([a], [b]) => {
          if (a === null || b === null) return (a === null) - (b === null);
          return (ascending ? 1 : -1) * (text ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
        });
        table.tBodies[0].append(...lines.map(([, line]) => line));
      });
    });
  }

  const groups = all(document, ".group").map((section) => new Group(section));
  all(document, "table.sortable").forEach(sortable);
  all(document, ".copy").forEach((button) => button.addEventListener("click", async () => {
    const text = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch { // some browsers do not let files use the clipboard: leave the text selected
      getSelection().selectAllChildren(text);
    }
  }));

  /* If there are several groups, one is shown at a time; a link into a group opens it and the element it points to. */
  function show() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const section = target?.closest(".group") ?? groups.find(({ section }) => !section.hidden)?.section;
    if (section && groups.length > 1) {
      groups.forEach((group) => { group.section.hidden = group.section !== section; });
      all(document, ".groups a").forEach((link) => (link.hash === `#${section.id}` ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
    }
    if (target?.tagName === "DETAILS") target.open = true;
    if (target && target !== section) target.scrollIntoView();
  }
  window.addEventListener("hashchange", show);
  show();

  const THEMES = ["automatic", "light", "dark"], button = document.getElementById("theme");
  let theme = 0;
  const repaint = () => groups.forEach((group) => group.redraw());
  let width = window.innerWidth;
  window.addEventListener("resize", () => { if (width !== window.innerWidth) { width = window.innerWidth; requestAnimationFrame(repaint); } });
  /* On paper there is no scrolling and no opening: everything that is shown is drawn before. */
  window.addEventListener("beforeprint", () => groups.forEach((group) => group.drawAll()));
  button.addEventListener("click", () => {
    theme = (theme + 1) % THEMES.length;
    button.textContent = `Theme: ${THEMES[theme]}`;
    if (theme) document.documentElement.dataset.theme = THEMES[theme];
    else delete document.documentElement.dataset.theme;
    repaint();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
})();
