/* Which test images only one of two techniques has right, and what all techniques take an image for. */
const unpacked = (text, Kind) => new Kind(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);

class Disagreement {
  /* So many images are shown at first. */
  static SHOWN = 18;

  constructor(root, data, changed) {
    [this.root, this.data, this.changed] = [root, data, changed];
    [this.menus, this.back, this.out] = [["a", "b"].map((name) => root.querySelector(`select.${name}`)), root.querySelector(".both"), root.querySelector(".differences")];
    const OfClass = data.classes.length > 256 ? Uint16Array : Uint8Array;
    this.labels = unpacked(data.kept.labels, OfClass);
    this.places = new Map(data.kept.keys.map((key, i) => [key, i]));
    this.votes = data.rows.map(({ votes }) => ({ taken: unpacked(votes.taken, OfClass), sure: unpacked(votes.sure, Uint8Array), right: unpacked(votes.right, Uint8Array) }));
    this.cell = null;
    this.menus.forEach((menu) => menu.addEventListener("change", () => { this.cell = null; this.show(); changed(); }));
    this.back.addEventListener("click", () => { this.cell = null; this.show(); changed(); });
    if (data.rows.length < 2) this.menus[1].closest("label").hidden = true;
    this.show();
  }

  get pair() { return this.menus.map((menu) => Number(menu.value)); }

  /* Choose the pair, and a cell [label, taken] of A's confusion matrix, or null. */
  choose(a, b, cell = null) {
    const other = b === a ? [...this.menus[1].options].findIndex((_, i) => i !== a) : b;
    [this.menus[0].value, this.menus[1].value] = [a, Math.max(0, other)];
    this.cell = cell;
    this.show();
  }

  show() {
    const [a, b] = this.pair, name = (c) => this.data.classes[c], row = (i) => this.data.rows[i].name;
    this.back.hidden = !this.cell || this.data.rows.length < 2;
    if (this.cell) {
      const [label, taken] = this.cell, found = this.select((i) => this.labels[i] === label && this.votes[a].taken[i] === taken, a);
      const what = label === taken ? `${name(label)}, recognised by ${row(a)}` : `${name(label)}, taken for ${name(taken)} by ${row(a)}`;
      this.out.replaceChildren(this.list(what, found, (i) => this.says(a === b ? a : b, i), label === taken ? "good" : "bad"));
      return;
    }
    if (a === b) {
      this.out.replaceChildren(make("p", { class: "empty" }, this.data.rows.length < 2 ? "There is one technique. Press a cell of the confusion matrix to see its images." : "Choose two."));
      return;
    }
    const only = (right, wrong) => this.select((i) => this.right(right, i) && !this.right(wrong, i), wrong);
    this.out.replaceChildren(
      this.list(`Only ${row(a)} is right`, only(a, b), (i) => this.says(b, i)),
      this.list(`Only ${row(b)} is right`, only(b, a), (i) => this.says(a, i)),
    );
  }

  right(row, i) { return this.votes[row].taken[i] === this.labels[i]; }

  /* The places of the images for which `test` holds, those first of which this row is most sure. */
  select(test, row) {
    const sure = this.votes[row].sure;
    return [...this.labels.keys()].filter(test).sort((i, j) => sure[j] - sure[i]);
  }

  says(row, i) {
    const { taken, sure } = this.votes[row], name = this.data.rows[row].name;
    return `${name}: ${this.right(row, i) ? "right" : this.data.classes[taken[i]]}, ${sure[i]} % sure`;
  }

  list(title, found, words, kind = "") {
    const gallery = make("ul", { class: `gallery ${kind}` });
    const item = (i) => make("li", {}, make("figure", {}, this.picture(this.data.kept.keys[i], this.data.classes[this.labels[i]]),
      make("figcaption", {}, this.data.classes[this.labels[i]], make("br"), make("span", { class: "muted" }, words(i)))));
    const add = (places) => gallery.append(...places.map(item));
    add(found.slice(0, Disagreement.SHOWN));
    const section = make("section", {}, make("h4", {}, `${title}: ${found.length} image${found.length === 1 ? "" : "s"}`), gallery);
    if (!found.length) gallery.replaceWith(make("p", { class: "empty" }, "None."));
    if (found.length > Disagreement.SHOWN) {
      const more = asButton(`Show all ${found.length}`);
      more.addEventListener("click", () => { more.remove(); add(found.slice(Disagreement.SHOWN)); });
      section.append(more);
    }
    return section;
  }

  /* An image as a button that enlarges it; its key, where there is no picture of it. */
  picture(key, alt) {
    const uri = this.data.images[key], inside = uri ? make("img", { src: uri, alt }) : make("span", { class: "no-picture" }, key.split("/").at(-1));
    return make("button", { type: "button", class: "enlarge", "data-image": key }, inside);
  }

  /* Open the dialog of one image. */
  enlarge(key, alt) {
    const dialog = document.getElementById("enlarged"), i = this.places.get(key), uri = this.data.images[key], picture = dialog.querySelector("img");
    dialog.querySelector("h2").textContent = alt;
    dialog.querySelector("p").textContent = key;
    picture.hidden = !uri;
    if (uri) picture.src = uri;
    picture.alt = alt;
    const line = (row) => {
      const { taken, sure, right } = this.votes[row], { name, seeds } = this.data.rows[row];
      const cells = [this.data.classes[taken[i]], String(sure[i]), `${right[i]} of ${seeds}`];
      return make("tr", { class: this.right(row, i) ? "hit" : "miss" }, make("th", { scope: "row" }, name), ...cells.map((text, k) => make("td", k ? { class: "number" } : {}, text)));
    };
    dialog.querySelector(".scroll").hidden = i === undefined;
    dialog.querySelector("tbody").replaceChildren(...(i === undefined ? [] : this.data.rows.map((_, row) => line(row))));
    dialog.showModal();
  }
}
