// Pages work without this file; it shows what happens while one looks.
"use strict";

const SAID_EVERY_MS = 5000;
const LOOK_EVERY_MS = 2000;

// A search that runs: its progress as it is told, and its end. What it is at is read out at most every few seconds.
function follow(section) {
  let saidAt = 0;
  const told = (event) => {
    const search = JSON.parse(event.data);
    const share = `${Math.round(100 * search.progress)} %`;
    const state = document.querySelector(".facts [data-state]");
    state.textContent = search.state;
    state.className = `state ${search.state}`;
    section.querySelector("progress").value = search.progress;
    section.querySelector("[data-share]").textContent = share;
    section.querySelector("[data-message]").textContent = search.message;
    if (Date.now() - saidAt > SAID_EVERY_MS) {
      saidAt = Date.now();
      section.querySelector("[data-said]").textContent = `${share}: ${search.message}`;
    }
  };
  const events = new EventSource(section.dataset.events);
  events.addEventListener("progress", told);
  events.addEventListener("end", () => {
    events.close();
    location.reload();
  });
}

// A list with searches that run: fetched again, and shown unless somebody is in it with the keyboard.
async function renew(section) {
  let live = section;
  while (live.hasAttribute("data-live")) {
    await new Promise((done) => setTimeout(done, LOOK_EVERY_MS));
    if (document.hidden || live.contains(document.activeElement)) continue;
    try {
      const answer = await fetch("/" + location.search, { headers: { Accept: "text/html" } });
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById(live.id);
      if (!answer.ok || !fresh) continue;
      live.replaceWith(fresh);
      live = fresh;
    } catch {
      continue; // the service is away for a moment
    }
  }
}

// Tables and pictures that are wider than the screen say so.
const widths = new ResizeObserver((seen) => {
  for (const { target } of seen) target.classList.toggle("more", target.scrollWidth > target.clientWidth + 1);
});

// What is wrong with a form is where one goes on.
document.querySelector("[aria-invalid]")?.focus();
document.querySelectorAll(".scroll").forEach((box) => widths.observe(box));
document.querySelectorAll("[data-events]").forEach(follow);
document.querySelectorAll("[data-live]").forEach(renew);
