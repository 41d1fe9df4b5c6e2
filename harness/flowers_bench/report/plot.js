/* Plots as SVG: points, lines, bands and intervals, on linear or logarithmic axes. Traces and axes are described as plotly
   describes them, of which this draws what the page uses; all texts are shown as they are. */
const drawPlot = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const DASHES = { dash: "7 4", dot: "2 4", dashdot: "7 4 2 4" };
  const LETTER = 6.4; // pixels, at 12 px
  const node = (tag, attributes = {}, ...children) => {
    const found = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
    found.append(...children);
    return found;
  };
  const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

  /* About `count` round numbers from low to high. */
  const rounded = (low, high, count, least) => {
    const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = Math.max(least, [1, 2, 5, 10].map((digit) => digit * power).find((size) => size >= rough));
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step);
    return found.map((value) => [value, Number(value.toPrecision(10)).toLocaleString("en")]);
  };

  class Axis {
    constructor(values, options) {
      this.log = options.type === "log";
      this.options = options;
      const scaled = values.filter((value) => known(value) && (!this.log || value > 0)).map((value) => this.scale(value));
      const [low, high] = scaled.length ? [Math.min(...scaled), Math.max(...scaled)] : [0, 1];
      const room = (high - low || Math.abs(high) || 1) * 0.06;
      [this.low, this.high] = options.range ?? [low - room, high + room];
    }

    scale(value) { return this.log ? Math.log10(value) : value; }
    place(from, to) { [this.from, this.to] = [from, to]; }
    at(value) { return this.from + ((this.scale(value) - this.low) / (this.high - this.low)) * (this.to - this.from); }

    ticks(count) {
      const { tickvals, ticktext, dtick, tickformat } = this.options;
      if (tickvals) return tickvals.map((value, i) => [value, ticktext[i]]).filter(([value]) => this.scale(value) >= this.low - 1e-9 && this.scale(value) <= this.high + 1e-9);
      if (!this.log) return dtick ? rounded(this.low, this.high, this.high - this.low, dtick) : rounded(this.low, this.high, count, tickformat === "d" ? 1 : 0);
      const powers = rounded(this.low, this.high, count, 1);
      return powers.map(([power]) => [10 ** power, (10 ** power).toLocaleString("en")]);
    }
  }

  /* What a point says when it is pointed at: the template's %{x:.1f}, %{y} and %{customdata} filled in, once. */
  const hover = (trace, i) => {
    const number = (value, format) => {
      const [, digits, kind] = /^\.(\d+)([fg])$/.exec(format ?? "") ?? [];
      if (!kind) return String(value);
      return kind === "f" ? value.toFixed(digits) : String(Number(value.toPrecision(digits)));
    };
    const parts = trace.hovertemplate.replace(/<extra>.*<\/extra>$/s, "").split("<br>").map((line) => line.replace(/%\{(x|y|customdata)(?::([^}]*))?\}/g, (_, key, format) => {
      const value = trace[key][i];
      return typeof value === "number" ? number(value, format) : Array.isArray(value) ? value.join("\n") : value;
    }));
    const name = /<extra><\/extra>$/.test(trace.hovertemplate) ? [] : [trace.name];
    return [...name, ...parts].join("\n");
  };

  const line = (trace, x, y) => {
    const runs = [[]];
    trace.x.forEach((value, i) => { if (known(value) && known(trace.y[i])) runs.at(-1).push([x.at(value), y.at(trace.y[i])]); else runs.push([]); });
    const step = ([px, py], i, run) => (i === 0 ? `M${px},${py}` : trace.line.shape === "hv" ? `H${px}V${py}` : `L${px},${py}`);
    return runs.map((run) => run.map(step).join("")).join("");
  };

  const legend = (traces, width, ink) => {
    const shown = traces.filter((trace) => trace.showlegend !== false && trace.name);
    const group = node("g", { class: "legend" });
    let [left, row] = [0, 0];
    for (const trace of shown) {
      const size = 40 + LETTER * trace.name.length;
      if (left && left + size > width) [left, row] = [0, row + 1];
      const colour = trace.line?.color ?? trace.marker.color;
      group.append(node("line", { x1: left, x2: left + 20, y1: row * 18, y2: row * 18, stroke: colour, "stroke-width": 2.5, "stroke-dasharray": DASHES[trace.line?.dash] ?? "none" }));
      group.append(node("text", { x: left + 26, y: row * 18 + 4, class: "legendtext", fill: ink }, trace.name));
      left += size;
    }
    return { group, height: shown.length ? 18 * (row + 1) : 0 };
  };

  const apart = (a, b) => a[2] <= b[0] || b[2] <= a[0] || a[3] <= b[1] || b[3] <= a[1];

  /* Write the names of points where they cover no point, no interval and no other name; those with no room are left out. */
  const names = (traces, x, y, frame) => {
    const found = node("g"), taken = [], wanted = [];
    for (const trace of traces.filter((one) => one.hoverinfo !== "skip")) {
      trace.x.forEach((value, i) => {
        if (!known(value) || !known(trace.y[i])) return;
        const [px, py] = [x.at(value), y.at(trace.y[i])], error = trace.error_y;
        taken.push([px - 6, py - 6, px + 6, py + 6]);
        if (error) taken.push([px - 2, y.at(trace.y[i] + error.array[i]), px + 2, y.at(trace.y[i] - error.arrayminus[i])]);
        if (trace.text?.[i]) wanted.push([px, py, trace.text[i], trace.textfont]);
      });
    }
    for (const [px, py, text, font] of wanted) {
      const wide = 0.53 * font.size * text.length + 4, high = font.size + 2;
      const places = [[9, -8], [-9 - wide, -8], [9, high], [-9 - wide, high], [9, -8 - high], [-9 - wide, -8 - high], [9, 2 * high], [-9 - wide, 2 * high]];
      const boxes = places.map(([dx, dy]) => [px + dx, py + dy - font.size + 1, px + dx + wide, py + dy + 3]);
      const box = boxes.find((one) => one[0] >= frame[0] && one[2] <= frame[2] && one[1] >= frame[1] && one[3] <= frame[3] && taken.every((other) => apart(one, other)));
      if (!box) continue;
      taken.push(box);
      found.append(node("text", { class: "name", x: box[0] + 2, y: box[3] - 3, "font-size": font.size, fill: font.color, stroke: font.edge, "stroke-width": 3, "paint-order": "stroke" }, text));
    }
    return found;
  };

  const points = (trace, x, y) => {
    const found = node("g", { opacity: trace.opacity ?? 1 });
    const marked = (trace.mode ?? "lines").includes("markers"), each = (value, i) => (Array.isArray(value) ? value[i] : value);
    trace.x.forEach((value, i) => {
      if (!known(value) || !known(trace.y[i])) return;
      const [px, py] = [x.at(value), y.at(trace.y[i])], error = trace.error_y;
      if (error) {
        const [top, bottom] = [y.at(trace.y[i] + error.array[i]), y.at(trace.y[i] - error.arrayminus[i])];
        found.append(node("path", { class: "interval", d: `M${px - 3},${top}h6M${px - 3},${bottom}h6M${px},${top}V${bottom}`, stroke: error.color, "stroke-width": error.thickness, fill: "none" }));
      }
      const colour = marked ? each(trace.marker?.color, i) ?? trace.line.color : "transparent", edge = trace.marker?.line;
      const circle = node("circle", { class: "point", cx: px, cy: py, r: marked ? each(trace.marker?.size ?? 6, i) / 2 : 7, fill: colour, stroke: edge?.color ?? "none", "stroke-width": edge?.width ?? 0 });
      if (trace.hovertemplate) circle.append(node("title", {}, hover(trace, i)));
      found.append(circle);
    });
    return found;
  };

  return (element, traces, xOptions, yOptions, extra, colours) => {
    const [width, height] = [element.clientWidth, element.clientHeight];
    const { ink, muted, grid } = colours;
    const reach = (trace) => (trace.error_y ? trace.y.flatMap((v, i) => [v + trace.error_y.array[i], v - trace.error_y.arrayminus[i]]) : trace.y);
    const x = new Axis(traces.flatMap((trace) => trace.x), xOptions), y = new Axis(traces.flatMap(reach), yOptions);
    const key = extra.showlegend === false ? { group: "", height: 0 } : legend(traces, width - 70, ink);
    const yTicks = y.ticks(Math.max(3, height / 60)), widest = Math.max(...yTicks.map(([, text]) => text.length), 1);
    const [left, right, top, bottom] = [30 + LETTER * widest, width - 14, extra.title ? 34 : 12, height - 46 - key.height];
    x.place(left, right);
    y.place(bottom, top);
    const svg = node("svg", { class: "main-svg", width, height, viewBox: `0 0 ${width} ${height}`, "font-size": 12, "font-family": "inherit" });
    for (const [value, text] of yTicks) {
      svg.append(node("line", { x1: left, x2: right, y1: y.at(value), y2: y.at(value), stroke: grid }));
      svg.append(node("text", { x: left - 6, y: y.at(value) + 4, "text-anchor": "end", fill: muted }, text));
    }
    let until = -Infinity;
    for (const [value, text] of x.ticks(Math.max(2, width / 110))) {
      svg.append(node("line", { x1: x.at(value), x2: x.at(value), y1: top, y2: bottom, stroke: grid }));
      const half = (LETTER * text.length) / 2;
      if (x.at(value) - half < until + 4) continue; // labels do not overlap
      until = x.at(value) + half;
      svg.append(node("g", { class: "xtick" }, node("text", { x: Math.min(x.at(value), right - half + 10), y: bottom + 18, "text-anchor": "middle", fill: muted }, text)));
    }
    if (extra.title) svg.append(node("text", { x: left, y: 20, "font-size": extra.title.font.size, "font-weight": 600, fill: ink }, extra.title.text));
    svg.append(node("text", { class: "xtitle", x: (left + right) / 2, y: bottom + 38, "text-anchor": "middle", fill: ink }, xOptions.title?.text ?? ""));
    svg.append(node("text", { transform: `translate(13 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle", fill: ink }, yOptions.title.text));
    for (const trace of traces) {
      if (trace.fill === "toself") {
        if (trace.x.length) svg.append(node("path", { d: `${line(trace, x, y)}Z`, fill: trace.fillcolor, stroke: "none" }));
        continue;
      }
      if ((trace.mode ?? "lines").includes("lines")) {
        svg.append(node("path", { class: "line", d: line(trace, x, y), fill: "none", stroke: trace.line.color, "stroke-width": trace.line.width, "stroke-dasharray": DASHES[trace.line.dash] ?? "none" }));
      }
      if (trace.hoverinfo !== "skip") svg.append(points(trace, x, y));
    }
    if (!traces.some((trace) => trace.hoverinfo !== "skip" && trace.y.some(known))) svg.append(node("text", { x: (left + right) / 2, y: (top + bottom) / 2, "text-anchor": "middle", fill: muted }, "Nothing to draw of these rows"));
    svg.append(names(traces, x, y, [left, top - 8, right + 10, bottom]));
    if (key.height) {
      key.group.setAttribute("transform", `translate(${left} ${bottom + 56})`);
      svg.append(key.group);
    }
    element.data = traces; // for whoever looks at the page with a script
    element.replaceChildren(svg);
  };
})();

/* Keep a plot as it is drawn, on a background: as `svg`, or as `png` of twice its size. */
function keepPlot(element, kind, name, background) {
  const svg = element.querySelector("svg").cloneNode(true), [width, height] = ["width", "height"].map((side) => Number(svg.getAttribute(side)));
  const paper = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  for (const [key, value] of Object.entries({ width, height, fill: background })) paper.setAttribute(key, value);
  svg.prepend(paper);
  svg.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  svg.setAttribute("font-family", "system-ui, sans-serif");
  const text = new XMLSerializer().serializeToString(svg);
  if (kind === "svg") {
    keep(text, "image/svg+xml", `${name}.svg`);
    return;
  }
  const image = new Image();
  image.onload = () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [2 * width, 2 * height];
    canvas.getContext("2d").drawImage(image, 0, 0, 2 * width, 2 * height);
    canvas.toBlob((content) => keep(content, "image/png", `${name}.png`));
  };
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
}
