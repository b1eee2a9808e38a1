// The browser of samples: the rows of each cell by page, filtered by result and by text.
(() => {
  "use strict";
  const source = document.getElementById("samples-data");
  if (!source) return;
  const PAGE = 20;
  let data = null;
  const make = (tag, text, attributes = {}) => {
    const made = document.createElement(tag);
    if (text !== null) made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const drawn = ([index, , result, place, prompt, expected, output]) => {
    const row = make("tr", null);
    const head = make("th", result + " ", { scope: "row" });
    head.append(make("small", "#" + index));
    const asked = make("td", null);
    const text = data.texts[prompt];
    const folded = make("details", null);
    folded.append(make("summary", text.length <= 48 ? text : "… " + text.slice(-48)), make("p", text));
    asked.append(folded);
    row.append(head, make("td", place), asked, make("td", data.texts[expected]), make("td", output));
    return row;
  };
  const browse = (cell) => {
    data ??= JSON.parse(source.textContent);
    const all = data.cells[Number(cell.dataset.cell)].rows;
    const body = cell.querySelector("tbody");
    const kinds = [["All", () => true], ["Misses", (r) => !r[1]], ["Hits", (r) => r[1]]];
    let kind = 0, words = "", page = 0;
    const bar = make("div", null, { class: "browse", role: "group", "aria-label": "Filter and page through samples" });
    const buttons = kinds.map(([name, test], i) => {
      const button = make("button", `${name} ${all.filter(test).length}`, { type: "button", class: "get" });
      button.addEventListener("click", () => { kind = i; page = 0; draw(); });
      return button;
    });
    const search = make("input", null, { type: "search", placeholder: "Text of prompt, answer or output", "aria-label": "Search" });
    search.addEventListener("input", () => { words = search.value.toLowerCase(); page = 0; draw(); });
    const status = make("span", null, { role: "status" });
    const turn = (name, step) => {
      const button = make("button", name, { type: "button", class: "get" });
      button.addEventListener("click", () => { page += step; draw(); });
      return button;
    };
    const previous = turn("Previous", -1), next = turn("Next", 1);
    const draw = () => {
      const rows = all.filter((r) => kinds[kind][1](r) &&
        (!words || [data.texts[r[4]], data.texts[r[5]], r[6]].some((t) => t.toLowerCase().includes(words))));
      const shown = rows.slice(page * PAGE, (page + 1) * PAGE);
      body.replaceChildren(...shown.map(drawn));
      status.textContent = rows.length ? `${page * PAGE + 1} to ${page * PAGE + shown.length} of ${rows.length}` : "none";
      previous.disabled = page === 0;
      next.disabled = (page + 1) * PAGE >= rows.length;
      buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === kind)));
    };
    bar.append(...buttons, search, previous, next, status);
    cell.querySelector("summary").after(bar);
    draw();
  };
  for (const cell of document.querySelectorAll("details[data-cell]")) {
    if (cell.open) browse(cell);
    else cell.addEventListener("toggle", () => browse(cell), { once: true });
  }
})();
