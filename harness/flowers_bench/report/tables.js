/* Tables: sorted by a column, and kept as CSV. */
function sortable(table) {
  all(table, "thead th").forEach((head, column) => {
    head.querySelector("button")?.addEventListener("click", () => {
      const text = head.dataset.kind === "text";
      sortBy(table, column, head.hasAttribute("aria-sort") ? head.getAttribute("aria-sort") === "descending" : text);
    });
  });
}

function sortBy(table, column, ascending) {
  const heads = all(table, "thead th"), text = heads[column].dataset.kind === "text";
  heads.forEach((other) => other.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
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
  table.dispatchEvent(new Event("sorted", { bubbles: true }));
}

/* The lines that are shown, in their order, with all columns. A cell that a spreadsheet would compute is quoted. */
function csvOf(table) {
  const words = (cell) => {
    const parts = all(cell, ".pair > *").map((part) => part.textContent); // a cell of the comparison matrix has several lines
    return (cell.dataset.value || (parts.length ? parts.join(" ") : cell.textContent)).replace(/\s+/g, " ").trim();
  };
  const inert = (text) => (/^[=+\-@＝＋－＠﹢﹣﹦﹫]/.test(text) && Number.isNaN(Number(text.split(" ")[0])) ? `'${text}` : text);
  const ticks = (cell) => cell.querySelector("input[type=checkbox]") || cell.textContent === "In the plots";
  const line = (row) => [...row.children].filter((cell) => !ticks(cell) && !cell.hidden).map((cell) => `"${inert(words(cell)).replaceAll('"', '""')}"`).join(",");
  return [...table.rows].filter((row) => !row.hidden).map(line).join("\r\n") + "\r\n";
}

/* Below each table that is not yet so, a button that keeps it; `stem` begins the file's name. */
function keepTables(root, stem) {
  all(root, ".scroll").filter((place) => place.querySelector("table") && !place.nextElementSibling?.matches(".saves")).forEach((place) => {
    const save = asButton("CSV", { class: "quiet save csv", "aria-label": `Keep as CSV: ${place.getAttribute("aria-label")}` });
    save.addEventListener("click", () => keep(csvOf(place.querySelector("table")), "text/csv", `${fileName(stem, place.getAttribute("aria-label"))}.csv`));
    place.after(make("p", { class: "saves" }, save));
  });
}
