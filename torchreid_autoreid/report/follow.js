// The page follows a run: it asks every two seconds, and takes over what has changed in the place of what it shows.
const kept = "main [tabindex], main button, main input, main summary";
const refresh = async () => {
  const answer = await fetch("/", { cache: "no-store" });
  const main = document.querySelector("main"), range = main.querySelector("[data-slider] input");
  const page = new DOMParser().parseFromString(await answer.text(), "text/html"), later = page.querySelector("main");
  const focused = [...document.querySelectorAll(kept)].indexOf(document.activeElement);
  const open = [...main.querySelectorAll("details")].map((one) => one.open);
  const chosen = range && range.value !== range.max ? range.value : null;
  const top = scrollY;
  main.replaceWith(later);
  later.querySelectorAll("details").forEach((one, place) => (one.open = open[place]));
  const slider = later.querySelector("[data-slider] input");
  if (slider && chosen !== null) slider.value = chosen;
  begin();
  if (focused >= 0) document.querySelectorAll(kept)[focused]?.focus({ preventScroll: true });
  scrollTo(0, top);
  return page.querySelector("[data-follow]").dataset.follow;
};
let version = document.querySelector("[data-follow]").dataset.follow;
const follow = async () => {
  const said = document.querySelector("[data-follow]");
  try {
    const state = await (await fetch("/state", { cache: "no-store" })).json();
    if (state.version !== version) version = await refresh();
    if (said.textContent !== state.status) said.textContent = state.status;
  } catch {
    said.textContent = "The server of this page does not answer; what is shown is what it said last.";
  }
  setTimeout(follow, 2000);
};
follow();
