"use strict";
// Tooltips, following one method through all figures, the download, and opening what is folded for print, save the finest tables.
(() => {
  const box = document.getElementById("tip");
  const hide = () => { box.hidden = true; };
  const show = (target, event) => {
    box.replaceChildren();
    const head = document.createElement("b");
    head.textContent = target.dataset.head;
    box.append(head);
    for (const [slot, name, value] of JSON.parse(target.dataset.tip)) {
      const row = document.createElement("div");
      if (slot) row.className = "m-" + slot;
      const dot = document.createElement("i");
      if (slot) dot.className = "dot";
      row.append(dot);
      for (const text of [name, value]) {
        const span = document.createElement("span");
        span.textContent = text;
        row.append(span);
      }
      box.append(row);
    }
    box.hidden = false;
    const { width, height } = box.getBoundingClientRect();
    const x = event.clientX + 16 + width > innerWidth ? event.clientX - width - 12 : event.clientX + 16;
    const y = event.clientY + 16 + height > innerHeight ? event.clientY - height - 12 : event.clientY + 16;
    box.style.left = Math.max(4, x) + "px";
    box.style.top = Math.max(4, y) + "px";
  };
  document.addEventListener("pointermove", (event) => {
    const target = event.target.closest("[data-tip]");
    if (target) show(target, event); else hide();
  });
  document.addEventListener("pointerdown", (event) => {
    const target = event.target.closest("[data-tip]");
    if (target) show(target, event); else hide();
  });
  document.addEventListener("scroll", hide, { passive: true });

  const keys = [...document.querySelectorAll("button.key")];
  let followed = null;
  const dim = (name) => {
    for (const g of document.querySelectorAll("figure .series")) g.classList.toggle("dim", name !== null && g.dataset.m !== name);
  };
  for (const key of keys) {
    key.addEventListener("click", () => {
      followed = followed === key.dataset.m ? null : key.dataset.m;
      for (const other of keys) other.setAttribute("aria-pressed", String(other.dataset.m === followed));
      dim(followed);
    });
    key.addEventListener("pointerenter", () => dim(key.dataset.m));
    key.addEventListener("pointerleave", () => dim(followed));
  }

  const button = document.getElementById("download");
  if (button) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const text = document.getElementById("results").textContent;
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
      link.download = button.dataset.file || "results.json";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }

  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open]):not(.fine)")];
    for (const d of folded) d.open = true;
  });
  addEventListener("afterprint", () => { for (const d of folded) d.open = false; });
})();
