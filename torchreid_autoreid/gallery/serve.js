"use strict";
// Sends a picture to the server that this page is from, and shows its answer; a score above the slider is known.
const [drop, file, slider, at, answer, found, crop] = ["#drop", "input[type=file]", "#threshold", "#at", "#answer", "#found", "#crop"].map(
  (name) => document.querySelector(name),
);
const rows = found.querySelector("tbody");
let last = null, asked = 0, moved = false;

function show() {
  at.textContent = Number(slider.value).toFixed(3);
  if (!last) return;
  const best = last.people[0], threshold = moved || last.threshold === null ? Number(slider.value) : last.threshold;
  const margin = last.margin === null ? "" : `, ${last.margin.toFixed(3)} more than the next`;
  answer.textContent = best.score > threshold ? `${best.pid} (score ${best.score.toFixed(3)}${margin})` : "unknown: nobody enrolled scores enough";
  if (last.stale) answer.textContent += "; the gallery has changed since it was calibrated";
  if (last.threshold === null && !moved) answer.textContent += "; the gallery is not calibrated, so move the slider";
  rows.replaceChildren(...last.people.map(({ pid, score }) => {
    const row = document.createElement("tr");
    for (const text of [pid, score.toFixed(3), score > threshold ? "yes" : "no"]) {
      row.appendChild(document.createElement("td")).textContent = text; // a name is text, and never markup
    }
    return row;
  }));
}

async function ask(picture) {
  if (!picture) return;
  const number = ++asked;
  last = null;
  found.hidden = true;
  answer.textContent = "looking …";
  let said;
  try {
    const response = await fetch("query", { method: "POST", body: picture });
    said = await response.json();
  } catch {
    said = { error: "the server does not answer; is it still running?" };
  }
  if (number !== asked) return; // another picture has been dropped meanwhile
  if (said.error) {
    answer.textContent = said.error;
    return;
  }
  last = said;
  if (!moved && last.threshold !== null) slider.value = last.threshold;
  URL.revokeObjectURL(crop.src);
  crop.hidden = false;
  crop.src = URL.createObjectURL(picture);
  found.hidden = false;
  show();
}

slider.addEventListener("input", () => {
  moved = true;
  show();
});
crop.addEventListener("error", () => {
  crop.hidden = true; // a picture that the server reads, and this browser does not
});
file.addEventListener("change", () => ask(file.files[0]));
document.addEventListener("paste", (event) => ask(event.clipboardData.files[0]));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault(); // else the browser would leave this page for the picture
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop") ask(event.dataTransfer.files[0]);
  });
}
show();
