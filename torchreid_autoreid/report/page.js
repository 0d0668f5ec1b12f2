"use strict";
// A slider shows one step of everything in its section: what has data-steps, a list of the steps to which it belongs.
for (const slider of document.querySelectorAll("[data-slider]")) {
  const input = slider.querySelector("input"), said = slider.querySelector("output"), play = slider.querySelector("button");
  const labels = JSON.parse(slider.dataset.labels), places = slider.parentElement.querySelectorAll("[data-steps]");
  const show = () => {
    for (const place of places) {
      place.toggleAttribute("hidden", !place.dataset.steps.split(" ").includes(input.value));
    }
    said.textContent = labels[input.value];
    input.setAttribute("aria-valuetext", labels[input.value]);
  };
  let timer = 0;
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  };
  input.addEventListener("input", () => {
    stop();
    show();
  });
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (input.value === input.max) input.value = 0;
    play.textContent = "Stop";
    timer = setInterval(() => {
      input.stepUp();
      show();
      if (input.value === input.max) stop();
    }, Math.max(60, 6000 / labels.length));
    show();
  });
  slider.hidden = false;
  show();
}
// A table is sorted by the column whose head is pressed: numbers by value, what is no number last.
const unit = { k: 1e3, M: 1e6, G: 1e9 };
const value = (cell) => {
  const found = /^([+-]?[\d.]+(?:e[+-]?\d+)?)\s?([kMG]?)/.exec(cell.textContent.trim());
  return found ? found[1] * (unit[found[2]] || 1) : NaN;
};
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.ariaSort === "descending" ? 1 : -1;
      for (const other of heads) other.ariaSort = null;
      head.ariaSort = down > 0 ? "ascending" : "descending";
      const keyed = [...body.rows].map((row) => [value(row.cells[column]), row.cells[column].textContent, row]);
      keyed.sort(([a, name], [b, other]) => {
        if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b) || down * name.localeCompare(other);
        return down * (a - b);
      });
      body.append(...keyed.map(([, , row]) => row));
    });
  });
}
