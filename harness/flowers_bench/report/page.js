/* The page: each group with its plots, menus and tables; what is found, kept in the address, and printed. */
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const COLOURS = 8;
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
          remember();
        });
      });
      all(section, ".cost, .curve, .scaling").forEach((menu) => menu.addEventListener("change", () => { this.redraw(); remember(); }));
      const scaling = this.find(".scaling");
      if (!this.rows.some((row) => row.reliability.raw)) scaling.value = "scaled";
      if (!this.rows.some((row) => row.reliability.scaled)) scaling.closest("label").hidden = true;
      this.hits = null;
      this.differ = new Disagreement(this.find(".differ"), this.data, remember);
      this.heat = new Heat(this.find(".heat"), this.data.classes, (label, taken) => this.openPair(Number(menu.value), this.differ.pair[1], [label, taken]));
      const menu = this.find(".explore");
      menu.addEventListener("change", () => { this.explore(Number(menu.value)); remember(); });
      this.explore(0);
      all(section, ".pair").forEach((button) => button.addEventListener("click", () => this.openPair(Number(button.closest("tr").dataset.row), Number(button.closest("td").dataset.column))));
      section.addEventListener("click", (event) => {
        const button = event.target.closest(".enlarge");
        if (button) this.differ.enlarge(button.dataset.image, button.querySelector("img")?.alt ?? "");
      });
      this.board();
      this.keepable();
      this.fill(section);
      this.legend();
    }

    /* The leaderboard's columns, and its order where there is no head to press. */
    board() {
      const [table, everything, order] = [".board", ".all-columns", ".sort-by"].map((query) => this.find(query)), heads = all(table, "thead th");
      const labels = heads.map((head) => head.textContent.trim()); // a phone shows each row as a card of names and values
      all(table, "tbody tr").forEach((line) => [...line.children].forEach((cell, i) => { if (cell.matches("td:not(.tick)")) cell.dataset.label = labels[i]; }));
      everything.addEventListener("change", () => { table.classList.toggle("whole", everything.checked); remember(); });
      order.append(...heads.flatMap((head, i) => (head.querySelector("button") ? [make("option", { value: i }, head.textContent.trim())] : [])));
      order.value = heads.findIndex((head) => head.hasAttribute("aria-sort"));
      order.addEventListener("change", () => sortBy(table, Number(order.value), heads[Number(order.value)].dataset.kind === "text"));
      table.addEventListener("sorted", () => { order.value = heads.findIndex((head) => head.hasAttribute("aria-sort")); remember(); });
    }

    /* Each plot can be kept as SVG and PNG, each table as CSV, the leaderboard as LaTeX too. */
    keepable() {
      const stem = this.section.querySelector("h2").firstChild.textContent.trim();
      all(this.section, ".plot").forEach((element) => {
        const name = fileName(stem, element.dataset.plot, element.dataset.kind ?? element.dataset.sweep ?? ""), what = element.getAttribute("aria-label").split(";")[0];
        const button = (kind) => {
          const found = asButton(kind.toUpperCase(), { class: `quiet save ${kind}`, "aria-label": `Keep as ${kind.toUpperCase()}: ${what}` });
          found.addEventListener("click", () => { this.drawn.add(element); this.plot(element); keepPlot(element, kind, name, css("--card")); });
          return found;
        };
        element.after(make("p", { class: "saves" }, button("svg"), button("png")));
      });
      keepTables(this.section, stem);
      const latex = asButton("LaTeX", { class: "quiet save latex", "aria-label": "Keep as LaTeX: leaderboard" });
      latex.addEventListener("click", () => keep(this.data.latex, "text/x-tex", `${fileName(stem, "leaderboard")}.tex`));
      this.find(`[id$="-board"] .saves`).append(latex);
    }

    /* Bring the images on which two rows disagree into view, or those of a cell of the first one's confusion matrix. */
    openPair(a, b, cell = null) {
      this.differ.choose(a, b, cell);
      remember(this.differ.root.id);
      this.differ.root.scrollIntoView();
      this.differ.root.querySelector("select").focus({ preventScroll: true });
    }

    /* What stands in the address: what the reader chose, where it is not what the page begins with. */
    state() {
      const found = {}, value = (query) => this.find(query)?.value, id = (i) => this.rows[i].id.slice(0, 8), put = (key, text, usual) => { if (text !== undefined && text !== usual) found[key] = text; };
      put("cost", value(".cost"), this.data.costs.some((cost) => cost.key === "seconds") ? "seconds" : this.data.costs[0]?.key);
      put("curve", value(".curve"), Object.keys(this.data.curves)[0]);
      put("rows", this.picked().map(id).join("."), [...this.rows.keys()].filter((i) => i < this.data.drawn).map(id).join("."));
      put("of", id(Number(value(".explore"))), id(0));
      const [a, b] = this.differ.pair;
      put("a", id(a), id(0));
      put("b", id(b), id(Math.min(1, this.rows.length - 1)));
      put("cell", this.differ.cell?.join("-"));
      const table = this.find(".board"), sorted = all(table, "thead th").findIndex((head) => head.hasAttribute("aria-sort"));
      put("sort", `${sorted}${table.querySelector("[aria-sort=ascending]") ? "up" : "down"}`, "2down");
      put("columns", this.find(".all-columns").checked ? "all" : undefined);
      return found;
    }

    /* Put the page into a state that `state` gave; what is not in this page, or no longer, is passed over. */
    restore(state) {
      const row = (id) => this.rows.findIndex((found) => id && found.id.startsWith(id)), menu = (query, value) => {
        const found = this.find(query);
        if (found && [...found.options].some((option) => option.value === value)) found.value = value;
      };
      menu(".cost", state.get("cost"));
      menu(".curve", state.get("curve"));
      if (state.has("rows")) {
        this.chosen = new Set(state.get("rows").split(".").map(row).filter((i) => i >= 0));
        all(this.section, ".draw").forEach((box) => { box.checked = this.chosen.has(Number(box.closest("tr").dataset.row)); });
      }
      if (row(state.get("of")) > 0) { this.find(".explore").value = row(state.get("of")); this.explore(row(state.get("of"))); }
      if (["a", "b", "cell"].some((key) => state.has(key))) {
        const [a, b] = [["a", 0], ["b", 1]].map(([key, usual]) => (row(state.get(key)) < 0 ? usual : row(state.get(key))));
        const cell = /^(\d+)-(\d+)$/.exec(state.get("cell") ?? "")?.slice(1).map(Number), last = this.data.classes.length;
        this.differ.choose(a, Math.min(b, this.rows.length - 1), cell?.every((c) => c < last) ? cell : null);
      }
      const [, column, way] = /^(\d+)(up|down)$/.exec(state.get("sort") ?? "") ?? [], table = this.find(".board");
      if (column && all(table, "thead th")[column]?.querySelector("button")) sortBy(table, Number(column), way === "up");
      if (state.get("columns") === "all") { this.find(".all-columns").checked = true; table.classList.add("whole"); }
      this.redraw();
      this.legend();
    }

    find(query) { return this.section.querySelector(query); }
    colour(row) { return css(`--c${row % COLOURS}`); }
    dash(row) { return ["solid", "dash", "dot", "dashdot"][Math.floor(row / COLOURS) % 4]; }
    label(row) { return this.names[row]; }
    shown(row) { return !this.hits || this.hits.has(row); }
    picked() { return [...this.chosen].sort((a, b) => a - b); }
    visible() { return this.picked().filter((row) => this.shown(row)); }

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
      all(this.section, ".plot").forEach((element) => this.drawn.add(element));
      this.heat.seen = true;
      this.redraw();
    }

    redraw() { this.drawn.forEach((element) => this.plot(element)); this.heat.paint(); }

    /* One legend for all plots of changed images. */
    legend() {
      const entry = (i) => make("li", {}, make("span", { class: "line", style: `border-top: 3px ${{ solid: "solid", dash: "dashed" }[this.dash(i)] ?? "dotted"} var(--c${i % COLOURS})` }), this.names[i]);
      this.find(".legend")?.replaceChildren(...this.visible().filter((i) => Object.keys(this.rows[i].stress).length).map(entry));
    }

    plot(element) { this[element.dataset.plot](element); }

    cost(element) {
      const key = this.find(".cost").value;
      const { axis, unit, words } = this.data.costs.find((cost) => cost.key === key);
      const points = [...this.rows.keys()].filter((i) => this.shown(i) && this.rows[i].costs[key] !== null);
      const value = (i) => this.rows[i].costs[key];
      const front = [];
      let best = -1;
      for (const i of [...points].sort((a, b) => value(a) - value(b) || this.rows[b].top1[1] - this.rows[a].top1[1])) {
        if (this.rows[i].top1[1] > best) { best = this.rows[i].top1[1]; front.push(i); }
      }
      const y = (i) => 100 * this.rows[i].top1[1];
      const x = (i) => value(i) / unit;
      // A name is written where there is room for it; the other points show theirs on hover.
      const named = (i) => front.includes(i) || this.chosen.has(i);
      const trace = (name, chosen, colours, opacity) => ({
        type: "scatter", mode: "markers+text", name, x: chosen.map(x), y: chosen.map(y), opacity,
        text: chosen.map((i) => (named(i) ? this.label(i) : "")), textfont: { size: 11, color: css("--ink"), edge: css("--card") },
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
      const traces = this.visible().flatMap((i) => {
        const found = this.rows[i].curves[key], scaled = share ? Object.fromEntries(Object.entries(found).map(([k, v]) => [k, percent(v)])) : found;
        const x = scaled.mean.map((_, epoch) => epoch + 1);
        return [band(x, scaled, this.colour(i)), {
          type: "scatter", mode: x.length < 2 ? "markers" : "lines", name: this.label(i), x, y: scaled.mean, line: { color: this.colour(i), width: 2.2, dash: this.dash(i) },
          hovertemplate: `epoch %{x}: %{y:.4g}<extra>${this.label(i)}</extra>`,
        }];
      });
      const epochs = Math.max(1, ...this.visible().map((i) => this.rows[i].curves[key].mean.length));
      draw(element, traces, { title: { text: "epoch" }, tickformat: "d", dtick: epochs <= 12 ? 1 : undefined }, { title: { text: share ? `${this.data.curves[key]}, %` : this.data.curves[key] } });
    }

    calibration(element) {
      const key = this.find(".scaling").value;
      const traces = this.visible().filter((i) => this.rows[i].reliability[key]).map((i) => {
        const found = this.rows[i].reliability[key], [x, y, low, high] = ["confidence", "accuracy", "low", "high"].map((name) => percent(found[name]));
        return {
          type: "scatter", mode: "lines+markers", name: this.label(i), x, y, line: { color: this.colour(i), width: 1.8, dash: this.dash(i) }, marker: { size: 7 },
          error_y: { array: high.map((v, bin) => v - y[bin]), arrayminus: low.map((v, bin) => y[bin] - v), thickness: 1.2, color: this.colour(i) },
          customdata: found.n, hovertemplate: `confidence %{x:.0f} %: right in %{y:.0f} % of %{customdata}<extra>${this.label(i)}</extra>`,
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
      const traces = this.visible().filter((i) => this.rows[i].stress[kind]).flatMap((i) => {
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

    /* An image that is in the page, as a button that enlarges it; or null. */
    image(key, alt) { return key in this.data.images ? this.differ.picture(key, alt) : null; }

    fill(root) { all(root, ".enlarge[data-image] img:not([src])").forEach((image) => { image.src = this.data.images[image.parentElement.dataset.image]; }); }

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
      keepTables(classes, `${row.name}-`);
    }

    /* Show the rows that have all words, in tables, plots and menus; all of them, if none has. Gives how many were found. */
    filter(words) {
      const has = (line) => words.every((word) => `${line.textContent} ${this.find(`details[data-row="${line.dataset.row}"] tbody`)?.textContent}`.toLowerCase().includes(word));
      const found = new Set(all(this.section, ".board tbody tr").filter(has).map((line) => Number(line.dataset.row)));
      this.hits = words.length && found.size ? found : null;
      all(this.section, "[data-row]").forEach((line) => { line.hidden = !this.shown(Number(line.dataset.row)); });
      all(this.section, ".matrix [data-column]").forEach((cell) => { cell.hidden = !this.shown(Number(cell.dataset.column)); });
      all(this.section, ".explore option, .differ option").forEach((option) => { option.hidden = !this.shown(Number(option.value)); });
      const menu = this.find(".explore");
      if (!this.shown(Number(menu.value))) { menu.value = Math.min(...this.hits); this.explore(Number(menu.value)); }
      this.redraw();
      this.legend();
      return words.length ? found.size : 0;
    }
  }

  /* Everything else that can be found: lines of tables and pictures; where nothing is found, all stay. */
  const OTHERS = "main tbody tr:not([data-row]), .gallery li, .pairs li";
  const search = document.getElementById("find"), told = document.getElementById("found");
  const words = () => search.value.toLowerCase().split(/\s+/).filter(Boolean);
  function find() {
    const rows = groups.reduce((sum, group) => sum + group.filter(words()), 0), others = findOthers();
    told.textContent = !words().length ? "" : rows || others ? `${rows} row${rows === 1 ? "" : "s"}, ${others} other` : "nothing found";
    remember();
  }
  function findOthers() {
    const places = new Map(), wanted = words();
    all(document, OTHERS).forEach((line) => places.set(line.parentElement, [...(places.get(line.parentElement) ?? []), line]));
    let found = 0;
    for (const lines of places.values()) {
      const hits = lines.filter((line) => wanted.every((word) => line.textContent.toLowerCase().includes(word)));
      if (wanted.length) found += hits.length;
      lines.forEach((line) => { line.hidden = hits.length > 0 && !hits.includes(line); });
    }
    return found;
  }

  /* The state stands in the address after the place, `#place?key=value`, so that what one sees can be sent to somebody. */
  let place = "", theme = 0, restoring = true;
  const THEMES = ["automatic", "light", "dark"];
  function remember(target) {
    if (restoring) return;
    if (search.value) findOthers(); // of what was chosen since
    const group = groups.find(({ section }) => !section.hidden), state = new URLSearchParams(group ? group.state() : {});
    if (target) place = target;
    if (search.value) state.set("find", search.value);
    if (theme) state.set("theme", THEMES[theme]);
    const text = String(state);
    history.replaceState(null, "", place || text ? `#${place || group?.section.id || ""}${text ? `?${text}` : ""}` : location.pathname + location.search);
  }

  const groups = all(document, ".group").map((section) => new Group(section));
  search.addEventListener("input", find);
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
    const [name, text] = location.hash.slice(1).split("?");
    place = decodeURIComponent(name);
    const target = document.getElementById(place), section = target?.closest(".group") ?? groups.find(({ section }) => !section.hidden)?.section;
    if (section && groups.length > 1) {
      groups.forEach((group) => { group.section.hidden = group.section !== section; });
      all(document, ".groups a").forEach((link) => (link.hash === `#${section.id}` ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
    }
    if (text) restore(new URLSearchParams(text), groups.find((group) => group.section === section));
    if (target?.tagName === "DETAILS") target.open = true;
    if (target && target !== section) target.scrollIntoView();
    restoring = false;
    remember();
  }
  function restore(state, group) {
    restoring = true;
    group?.restore(state);
    if (THEMES.includes(state.get("theme"))) dress(THEMES.indexOf(state.get("theme")));
    search.value = state.get("find") ?? "";
    find();
  }

  const button = document.getElementById("theme"), dialog = document.getElementById("enlarged");
  const repaint = () => groups.forEach((group) => group.redraw());
  function dress(chosen) {
    theme = chosen;
    button.textContent = `Theme: ${THEMES[theme]}`;
    if (theme) document.documentElement.dataset.theme = THEMES[theme];
    else delete document.documentElement.dataset.theme;
    repaint();
  }
  button.addEventListener("click", () => { dress((theme + 1) % THEMES.length); remember(); });
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  window.addEventListener("hashchange", show);
  show();

  let width = window.innerWidth;
  window.addEventListener("resize", () => { if (width !== window.innerWidth) { width = window.innerWidth; requestAnimationFrame(repaint); } });
  /* On paper there is no scrolling, no opening and no darkness: everything is shown and drawn before, and put back afterwards. */
  let before = null;
  window.addEventListener("beforeprint", () => {
    before = { theme, hidden: groups.map(({ section }) => section.hidden), closed: all(document, "details:not([open])") };
    groups.forEach(({ section }) => { section.hidden = false; });
    before.closed.forEach((details) => { details.open = true; });
    dress(1);
    groups.forEach((group) => group.drawAll());
  });
  window.addEventListener("afterprint", () => {
    if (!before) return;
    groups.forEach(({ section }, i) => { section.hidden = before.hidden[i]; });
    before.closed.forEach((details) => { details.open = false; });
    dress(before.theme);
    before = null;
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
})();
