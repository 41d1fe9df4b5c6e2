/* A confusion matrix: one canvas for any number of classes, their names beside and above it, and a selected cell that pointer
   and arrow keys move. `open(label, taken)` is called for a cell that is pressed. */
class Heat {
  /* With more classes than this, no names fit; the selected cell says its own. */
  static NAMED = 200;

  constructor(root, classes, open) {
    this.root = root;
    this.classes = classes;
    [this.canvas, this.status, this.window] = [".window canvas", ".cell", ".window"].map((query) => root.querySelector(query));
    [this.above, this.beside] = [".above", ".beside"].map((query) => root.querySelector(query));
    this.cell = [0, 0];
    this.seen = false;
    this.named = classes.length <= Heat.NAMED;
    if (this.named) [this.above, this.beside].forEach((place) => place.append(...classes.map((name) => make("span", { title: name }, name))));
    this.canvas.addEventListener("keydown", (event) => this.key(event, open));
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("click", (event) => { if (this.point(event)) open(...this.cell); });
    this.canvas.addEventListener("focus", () => { if (this.counts && !this.status.textContent) this.move(...this.cell); });
    new IntersectionObserver(([entry]) => { if (entry.isIntersecting && !this.seen) { this.seen = true; this.paint(); } }, { rootMargin: "300px" }).observe(root);
    new ResizeObserver(() => requestAnimationFrame(() => this.paint())).observe(root);
  }

  show(matrix) {
    const n = this.classes.length;
    this.counts = matrix && new Uint32Array(n * n);
    let place = 0;
    for (let i = 0; matrix && i < matrix.length; i += 2) { place += matrix[i]; this.counts[place] = matrix[i + 1]; }
    this.totals = matrix && [...Array(n).keys()].map((c) => this.counts.subarray(c * n, (c + 1) * n).reduce((a, b) => a + b, 0));
    this.window.hidden = !matrix;
    this.status.textContent = matrix ? "" : "Left out to keep this page small: report on fewer trials to see it.";
    this.paint();
  }

  /* The side of a cell: as large as fits, and where there are names, no smaller than a line of them. */
  side() {
    const n = this.classes.length, names = this.named ? 150 : 0;
    return Math.max(this.named ? 13 : 2, Math.min(30, Math.floor(Math.min(this.root.clientWidth - names, 900) / n)));
  }

  paint() {
    if (!this.counts || !this.seen || !this.root.clientWidth) return;
    const n = this.classes.length, size = this.side();
    const [wrong, right, soft, focus] = ["--lost", "--won", "--soft", "--focus"].map(css), context = this.canvas.getContext("2d"), sharp = n * size > 2000 ? 1 : window.devicePixelRatio || 1;
    this.size = size;
    this.window.style.setProperty("--side", `${size}px`);
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
    if (this.named) {
      [...this.above.children].forEach((name, i) => name.classList.toggle("at", i === b));
      [...this.beside.children].forEach((name, i) => name.classList.toggle("at", i === a));
    }
    this.paint();
  }

  point(event) {
    if (!this.counts) return false;
    const box = this.canvas.getBoundingClientRect();
    this.move(Math.floor((event.clientY - box.top) / this.size), Math.floor((event.clientX - box.left) / this.size));
    return true;
  }

  key(event, open) {
    const [a, b] = this.cell, n = this.classes.length;
    if (!this.counts) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      open(a, b);
      return;
    }
    const to = { ArrowUp: [a - 1, b], ArrowDown: [a + 1, b], ArrowLeft: [a, b - 1], ArrowRight: [a, b + 1], Home: [a, 0], End: [a, n - 1], PageUp: [a - 10, b], PageDown: [a + 10, b] }[event.key];
    if (!to) return;
    event.preventDefault();
    this.move(...to);
  }
}
