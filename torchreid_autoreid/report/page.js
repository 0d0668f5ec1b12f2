"use strict";
const begin = () => {
  // A slider shows one step of everything in its section: what has data-steps, a list of the steps to which it belongs,
  // and on each curve a mark with the values of the step. Who points at a curve, or moves on it by keys, moves the slider.
  for (const slider of document.querySelectorAll("[data-slider]")) {
    const input = slider.querySelector("input"), said = slider.querySelector("output"), play = slider.querySelector("button");
    const labels = JSON.parse(slider.dataset.labels), places = slider.parentElement.querySelectorAll("[data-steps]");
    const along = JSON.parse(slider.dataset.places || "[]");
    const curves = [...slider.parentElement.querySelectorAll(".curve")].map((curve) => {
      const box = curve.querySelector("svg").viewBox.baseVal, lowest = curve.querySelector("path"), mark = curve.querySelector(".mark");
      const [, left, right] = /^M([\d.]+) [\d.]+H([\d.]+)$/.exec(lowest.getAttribute("d")).map(Number);
      return { curve, box, left, right, mark, values: JSON.parse(curve.dataset.values), name: curve.ariaLabel.split(" by epoch")[0] };
    });
    const show = () => {
      const step = Number(input.value);
      for (const place of places) {
        place.toggleAttribute("hidden", !place.dataset.steps.split(" ").includes(input.value));
      }
      for (const { curve, left, right, mark, values } of curves) {
        for (const end of ["x1", "x2"]) mark.setAttribute(end, left + along[step] * (right - left));
        curve.parentElement.querySelector("figcaption b").textContent = values[step];
        curve.ariaValueNow = step;
        curve.ariaValueText = `${labels[step].split(",")[0]}: ${values[step]}`;
      }
      said.textContent = labels[step];
      input.setAttribute("aria-valuetext", labels[step]);
      slider.dispatchEvent(new Event("shown"));
    };
    let timer = 0;
    const stop = () => {
      clearInterval(timer);
      timer = 0;
      play.textContent = "Play";
    };
    const choose = (step) => {
      stop();
      input.value = step;
      show();
    };
    input.addEventListener("input", () => choose(input.value));
    for (const { curve, box, left, right, name } of curves) {
      Object.assign(curve, { role: "slider", tabIndex: 0, ariaLabel: `${name}, by epoch`, ariaValueMin: 0, ariaValueMax: input.max });
      const point = (event) => {
        const svg = curve.querySelector("svg").getBoundingClientRect();
        const place = (((event.clientX - svg.left) / svg.width) * box.width - left) / (right - left);
        let nearest = 0;
        along.forEach((one, step) => {
          if (Math.abs(one - place) < Math.abs(along[nearest] - place)) nearest = step;
        });
        if (nearest !== Number(input.value)) choose(nearest);
      };
      curve.addEventListener("pointermove", point);
      curve.addEventListener("pointerdown", point);
      curve.addEventListener("keydown", (event) => {
        const step = Number(input.value), last = Number(input.max);
        const to = { ArrowLeft: step - 1, ArrowDown: step - 1, ArrowRight: step + 1, ArrowUp: step + 1, Home: 0, End: last }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        choose(Math.min(last, Math.max(0, to)));
      });
    }
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
  // A row of probabilities tells, below its table, what its edge keeps, against what, and what that costs: the row of
  // the kept edges says it. Of an edge that is not kept it tells what is strongest.
  for (const table of document.querySelectorAll("table.heat")) {
    const readout = table.parentElement.nextElementSibling, section = table.closest("section");
    const names = [...table.tHead.rows[0].cells].slice(1).map((head) => head.textContent);
    const tell = (row) => {
      const edge = row.cells[0].textContent, named = `${table.caption.textContent}, ${edge}`;
      const heads = [...section.querySelectorAll("[data-steps]:not([hidden]) tbody th")];
      const found = heads.find((head) => head.textContent === named);
      if (found) {
        const [kept, probability, ...rest] = [...found.parentElement.cells].slice(1).map((cell) => cell.textContent);
        const of = [...found.closest("table").tHead.rows[0].cells].slice(3).map((head) => head.textContent);
        const words = rest.map((text, place) => `${of[place]} ${text}`);
        readout.textContent = `${edge} keeps ${kept} (${probability}): ${words.join(", ")}.`;
        return;
      }
      const ranked = [...row.cells].slice(1).map((cell, place) => [Number(cell.textContent), names[place]]);
      ranked.sort(([one], [other]) => other - one);
      const [[first, name], [second, other] = []] = ranked;
      readout.textContent = `${edge} is not kept: ${name} ${first}${other ? `, ${other} ${second}` : ""}.`;
    };
    const shown = () => [...table.tBodies].find((body) => !body.hidden);
    let place = 0;
    const offer = () => {
      for (const body of table.tBodies) for (const row of body.rows) row.tabIndex = -1;
      const rows = shown().rows;
      rows[Math.min(place, rows.length - 1)].tabIndex = 0;
      tell(rows[Math.min(place, rows.length - 1)]);
    };
    const at = (event) => event.target.closest("tbody tr");
    const move = (event) => {
      const row = at(event);
      if (!row) return;
      place = row.sectionRowIndex;
      offer();
    };
    table.addEventListener("pointerover", move);
    table.addEventListener("focusin", move);
    table.addEventListener("keydown", (event) => {
      const to = { ArrowUp: place - 1, ArrowDown: place + 1 }[event.key], rows = shown().rows;
      if (to === undefined || !at(event)) return;
      event.preventDefault();
      rows[Math.min(rows.length - 1, Math.max(0, to))].focus();
    });
    section.querySelector("[data-slider]").addEventListener("shown", offer);
    readout.hidden = false;
    offer();
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
};
begin();
