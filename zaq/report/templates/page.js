// Sorting of tables and hints of charts. Without this file a table is a plain table, and a browser shows the hints.
"use strict";

function valueOf(row, column) {
  const cell = row.cells[column];
  const text = (cell?.dataset.value ?? cell?.textContent ?? "").trim();
  const number = Number(text.replace(/[%,\s]/g, ""));
  return text === "" ? null : Number.isNaN(number) ? text : number;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sort(head) {
  // Numbers begin with the greatest, words with A; what has no value stays at the end.
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const rows = [...body.rows].map((row) => ({ row, value: valueOf(row, column) }));
  const known = rows.filter((r) => r.value !== null), unknown = rows.filter((r) => r.value === null);
  const first = known.some((r) => typeof r.value === "string") ? "ascending" : "descending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = head.ariaSort === first ? other : first;
  for (const each of head.parentNode.cells) if (each.ariaSort !== null) each.ariaSort = "none";
  head.ariaSort = order;
  known.sort((a, b) => (order === "ascending" ? 1 : -1) * compare(a.value, b.value));
  body.append(...[...known, ...unknown].map((r) => r.row));
}

for (const head of document.querySelectorAll("table.sortable thead th:not(.plain)")) {
  if (head.ariaSort === null) head.ariaSort = "none";
  head.tabIndex = 0;
  head.addEventListener("click", () => sort(head));
  head.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(head); }
  });
}

// A hint is an SVG title. Here it is shown at once, and under a finger too.
const tip = document.body.appendChild(document.createElement("div"));
tip.id = "tip";
tip.hidden = true;
for (const title of document.querySelectorAll("svg title")) {
  title.parentNode.dataset.tip = title.textContent;
  title.parentNode.setAttribute("aria-label", title.textContent);
  title.remove();
}
function show(event) {
  const told = event.target.closest?.("[data-tip]");
  tip.hidden = !told;
  if (!told) return;
  tip.textContent = told.dataset.tip;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - width - 4))}px`;
  tip.style.top = `${Math.max(4, event.clientY - height - 12)}px`;
}
document.addEventListener("pointermove", show);
document.addEventListener("pointerdown", show);
