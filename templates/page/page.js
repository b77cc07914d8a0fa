// Shows what is new without a reload: the part with the id "live" is fetched again and replaced. Without scripts the page is whole, too; then it
// is as old as it was when it was loaded.
"use strict";
(() => {
  const live = () => document.getElementById("live");
  if (!live() || !live().dataset.every) return;

  const pause = document.createElement("button");
  pause.type = "button";
  pause.className = "pause";
  pause.setAttribute("aria-pressed", "false");
  pause.textContent = "Pause updates";
  pause.addEventListener("click", () => {
    const paused = pause.getAttribute("aria-pressed") !== "true";
    pause.setAttribute("aria-pressed", String(paused));
  });
  live().before(pause);

  // Who is inside of it by keyboard, or has chosen text there, is not disturbed.
  const busy = () => {
    const chosen = document.getSelection();
    return live().contains(document.activeElement) || (chosen && !chosen.isCollapsed && live().contains(chosen.anchorNode));
  };

  const again = async () => {
    if (pause.getAttribute("aria-pressed") === "true" || document.hidden || busy()) return;
    try {
      const answer = await fetch(location.href, { credentials: "same-origin" });
      if (!answer.ok) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("live");
      if (fresh && !busy()) live().replaceWith(document.adoptNode(fresh));
      if (live().dataset.every) return;
      clearInterval(timer); // nothing of it changes any more
      pause.remove();
    } catch {
      // The next time.
    }
  };
  const timer = setInterval(again, Number(live().dataset.every) * 1000);
})();
