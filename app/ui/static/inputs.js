// What the browser keeps of each tab's inputs: it dims a result that others made, and puts them into a link and back.
// The functions of window.rewardPage are called by the events that form.py declares; Gradio passes the inputs' values.
window.rewardPage = (() => {
  const present = {}; // by tab, the values of its inputs by name
  const redraws = {}; // by tab, the function that asks for the code of its inputs
  const came = {}; // by tab, the inputs of the code that came last
  const MAX_LINK_CHARS = 1_000_000; // browsers cut or refuse longer addresses
  const update = (properties = {}) => ({ __type__: "update", ...properties });

  // A table's value is an object of its headers and data; only the cells count, and differ if the text that they show does.
  const byName = (names, values) => Object.fromEntries(names.map((name, i) => [name, values[i]?.data ?? values[i]]));
  const textOf = (cells) => cells.map((row) => row.map((cell) => String(cell ?? "")));
  const asText = (value) => JSON.stringify(Array.isArray(value) ? textOf(value) : (value ?? ""));

  function differs(tab, answer) {
    const made = JSON.parse(answer.dataset.inputs);
    return Object.entries(made).some(([name, value]) => asText(value) !== asText(present[tab][name]));
  }

  function check(tab) {
    if (!present[tab]) return;
    const answer = document.querySelector(`#${tab}-result [data-inputs]`);
    answer?.classList.toggle("rw-stale", differs(tab, answer));
    const code = document.querySelector(`#${tab}-code [data-inputs]`);
    if (!code || code.dataset.inputs === came[tab]) return;
    came[tab] = code.dataset.inputs;
    if (differs(tab, code)) redraws[tab](); // Gradio may deliver the code of earlier inputs last
  }

  function edited(tab, names, values) {
    present[tab] = byName(names, values);
    check(tab);
    redraws[tab]?.();
    return [];
  }

  function codeBox(tab, trigger) {
    redraws[tab] = () => trigger("input");
    if (present[tab]) redraws[tab]();
  }

  // -- The link --------------------------------------------------------------------------------------------------------

  function encode(value) {
    const bytes = new TextEncoder().encode(JSON.stringify(value));
    let text = "";
    for (const byte of bytes) text += String.fromCharCode(byte);
    return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  }

  function decode(text) {
    const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (part) => part.charCodeAt(0));
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  }

  let known;
  function linked() {
    if (known === undefined) {
      known = null;
      try {
        if (location.hash.length > 1) known = decode(location.hash.slice(1));
        if (known && (typeof known.tab !== "string" || !(known.inputs instanceof Object))) throw new Error("no inputs");
      } catch {
        known = null;
        const notice = document.createElement("p");
        notice.className = "rw-error";
        notice.role = "alert";
        notice.textContent = "This link is damaged, so its inputs could not be restored. The page shows its example instead.";
        document.querySelector("#tabs").before(notice);
      }
    }
    return known;
  }

  function restored(tab, names, values) {
    const link = linked();
    const inputs = link?.tab === tab ? link.inputs : {};
    return names.map((name, i) => {
      const value = inputs[name];
      if (value === undefined || value === null) return update();
      return update({ value: values[i]?.data ? { ...values[i], data: value } : value });
    });
  }

  // Opens the tab that the link names, once its inputs are restored. Its panel is not in the document before that.
  function opened(tab) {
    const button = document.querySelector(`[role=tab][aria-controls="${tab}-tab"]`);
    if (linked()?.tab === tab && button?.getAttribute("aria-selected") !== "true") button?.click();
    return [];
  }

  async function copyLink(button) {
    const tab = Object.keys(present).find((name) => document.querySelector(`#${name}-result`)?.offsetParent);
    let words = "This tab has no inputs";
    if (tab) {
      const link = new URL(location.href);
      link.hash = encode({ tab, inputs: present[tab] });
      words = "Too long for a link";
      if (link.href.length <= MAX_LINK_CHARS) {
        history.replaceState(null, "", link);
        words = (await copied(link.href)) ? "Link copied" : "The link is in the address bar";
      }
    }
    const before = "Copy link";
    button.textContent = words;
    setTimeout(() => (button.textContent = before), 2500);
  }

  async function copied(text) {
    try {
      await navigator.clipboard.writeText(text); // only on https and on this machine
      return true;
    } catch {
      return false;
    }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-link]");
    if (button) copyLink(button);
  });
  addEventListener("hashchange", () => location.reload());

  // -- The Score tab's fields of responses -------------------------------------------------------------------------------

  function layout({ form, count, prompt, responses, conversation }) {
    const isPlain = form !== "Conversation";
    const boxes = responses.map((value, i) => update({ value, visible: isPlain && i < count }));
    return [
      update({ value: form }),
      update({ value: count }),
      update({ value: prompt, visible: isPlain }),
      ...boxes,
      update({ value: conversation, visible: !isPlain }),
      update({ visible: isPlain && count < responses.length }),
      update({ visible: isPlain && count > 1 }),
    ];
  }

  function fields(names, values) {
    const all = byName(names, values);
    const responses = names.filter((name) => name.startsWith("response_")).map((name) => all[name] ?? "");
    return { ...all, responses };
  }

  const shown = (tab, names, values) => layout(fields(names, values));
  const counted = (step) => (tab, names, values) => {
    const all = fields(names, values);
    return layout({ ...all, count: Math.min(Math.max(all.count + step, 1), all.responses.length) });
  };

  function example([prompt, texts], conversation, max) {
    const responses = Array.from({ length: max }, (_, i) => texts[i] ?? "");
    return layout({ form: "Prompt and responses", count: texts.length, prompt, responses, conversation });
  }

  // -- Files --------------------------------------------------------------------------------------------------------------

  // Reads a file that is chosen in the zone, or dropped on it or on what `selector` finds, and hands its text to the zone's
  // upload event. The file is not uploaded: its text is the event's input, like that of any field.
  function dropZone(element, props, trigger, selector) {
    const read = async (file) => {
      props.value = await file.text();
      trigger("upload");
    };
    element.addEventListener("change", (event) => {
      if (!event.target.matches("input[type=file]") || !event.target.files[0]) return;
      read(event.target.files[0]);
      event.target.value = "";
    });
    for (const name of ["dragover", "dragleave", "drop"]) {
      document.addEventListener(
        name,
        (event) => {
          const zone = element.contains(event.target) ? element : event.target.closest?.(selector);
          if (!zone || !event.dataTransfer?.types.includes("Files")) return;
          event.preventDefault();
          event.stopPropagation();
          zone.classList.toggle("rw-over", name === "dragover");
          if (name === "drop" && event.dataTransfer.files[0]) read(event.dataTransfer.files[0]);
        },
        true
      );
    }
  }

  // A text that the page has made, as a file.
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-download]");
    if (!button) return;
    const text = button.parentElement.querySelector("code").textContent;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = button.dataset.download;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });

  new MutationObserver(() => Object.keys(present).forEach(check)).observe(document, { childList: true, subtree: true });

  return { edited, codeBox, restored, opened, shown, oneMore: counted(1), oneFewer: counted(-1), example, dropZone };
})();
