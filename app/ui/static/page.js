// The cursor over the scores of words, their colours, and code that is copied. Delegated: Gradio redraws what is inside.
(() => {
  const minus = (value) => value.toFixed(3).replace("-", "\u2212");

  // Points are numbered from 0, the score before the response, where there is one; `data-first` is the first point's number.
  function show(group, point) {
    const words = group.querySelectorAll(".rw-token");
    const slider = group.querySelector(".rw-tokens");
    const series = JSON.parse(group.dataset.series);
    const first = Number(group.dataset.first);
    const last = first + Object.values(series)[0].length - 1;
    const i = Math.min(Math.max(point, first), last);
    const word = words[i - 1];
    group.querySelector(".rw-token.rw-at")?.classList.remove("rw-at");
    word?.classList.add("rw-at");
    const scores = Object.entries(series).map(
      ([name, values]) => `${name} ${minus(values[i - first])} (${minus(1 / (1 + Math.exp(-values[i - first])))})`
    );
    const place = i === 0 ? "Before the response" : word ? `Word ${i} of ${words.length}, \u201c${word.textContent.trim()}\u201d` : "At the end";
    const text = `${place}: ${scores.join(", ")}`;
    slider.setAttribute("aria-valuenow", i);
    slider.setAttribute("aria-valuetext", text);
    group.querySelector(".rw-readout").textContent = text;
    const cursor = group.querySelector(".rw-cursor");
    cursor.hidden = false;
    cursor.style.left = `${last > first ? (100 * (i - first)) / (last - first) : 0}%`;
  }

  const groupOf = (node) => node.closest?.(".rw-cursor-group");
  const place = (group) => Number(group.querySelector(".rw-tokens").getAttribute("aria-valuenow"));

  document.addEventListener("pointermove", (event) => {
    const group = groupOf(event.target);
    if (!group) return;
    const token = event.target.closest(".rw-token");
    const area = event.target.closest(".rw-area");
    if (token) show(group, 1 + [...group.querySelectorAll(".rw-token")].indexOf(token));
    if (area) {
      const box = area.getBoundingClientRect();
      const first = Number(group.dataset.first);
      const numSteps = Object.values(JSON.parse(group.dataset.series))[0].length - 1;
      show(group, first + Math.round(((event.clientX - box.left) / box.width) * numSteps));
    }
  });

  document.addEventListener("focusin", (event) => {
    if (event.target.matches?.(".rw-tokens")) show(groupOf(event.target), place(groupOf(event.target)));
  });

  document.addEventListener("keydown", (event) => {
    if (!event.target.matches?.(".rw-tokens")) return;
    const group = groupOf(event.target);
    const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10, Home: -1e9, End: 1e9 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    show(group, place(group) + steps[event.key]);
  });

  // The clipboard of browsers is for secure pages alone; selecting the text and copying that works on any.
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-copy]");
    if (!button) return;
    const range = document.createRange();
    range.selectNodeContents(button.closest("figure").querySelector("code"));
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    button.textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl+C";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });

  document.addEventListener("change", (event) => {
    const name = event.target.dataset?.colour;
    if (!name) return;
    for (const word of groupOf(event.target).querySelectorAll(".rw-token")) {
      word.style.setProperty("--step", JSON.parse(word.dataset.steps)[name]);
    }
  });

  // Gradio's table leaves the boxes of its cells without a name.
  new MutationObserver(() => {
    for (const box of document.querySelectorAll("#ppo-table :is(input[type=checkbox], .select-all-checkbox):not([aria-label])")) {
      box.setAttribute("aria-label", box.closest("[role=gridcell]") ? "safety prompt" : "all are safety prompts");
    }
  }).observe(document, { childList: true, subtree: true });
})();
