"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  document.documentElement.classList.add("js");

  // Small pictures are enlarged without smoothing, so that a pixel of the model stays a pixel.
  const picture = document.querySelector(".pair img");
  if (picture) picture.decode().then(() => document.documentElement.classList.toggle("pixels", picture.naturalWidth <= 64), () => {});

  // Tabs: one panel at a time, by click, arrow keys, Home, End, or the address's #name.
  const tabs = all("[role=tab]");
  const panel = (tab) => document.getElementById(tab.getAttribute("aria-controls"));
  function select(tab) {
    for (const other of tabs) {
      other.setAttribute("aria-selected", String(other === tab));
      other.tabIndex = other === tab ? 0 : -1;
      panel(other).hidden = other !== tab;
    }
  }
  const named = () => tabs.find((tab) => tab.hash === location.hash) || tabs[0];
  tabs.forEach((tab, place) => {
    tab.addEventListener("click", (event) => {
      event.preventDefault();
      history.replaceState(null, "", tab.hash);
      select(tab);
    });
    tab.addEventListener("keydown", (event) => {
      const last = tabs.length - 1;
      const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: last }[event.key];
      if (event.key === " ") { event.preventDefault(); tab.click(); }
      if (to === undefined) return;
      event.preventDefault();
      const next = tabs[(to + tabs.length) % tabs.length];
      next.focus();
      next.click();
    });
  });
  if (tabs.length) {
    select(named());
    addEventListener("hashchange", () => select(named()));
  }

  // Galleries: how a pair is shown, and which.
  for (const gallery of all(".gallery")) {
    for (const radio of all("input[type=radio]", gallery)) {
      radio.addEventListener("change", () => { gallery.dataset.mode = radio.value; });
    }
    for (const button of all("[data-filter]", gallery)) {
      button.addEventListener("click", () => {
        const wanted = button.dataset.filter;
        all("[data-filter]", gallery).forEach((one) => one.setAttribute("aria-pressed", String(one === button)));
        const cards = all(".card", gallery);
        for (const card of cards) card.hidden = wanted !== "" && !card.dataset.notable.split(" ").includes(wanted);
        for (const group of all(".group", gallery)) group.hidden = !group.querySelector(".card:not([hidden])");
        const shown = cards.filter((card) => !card.hidden).length;
        gallery.querySelector(".shown").textContent = wanted ? `${shown} of ${cards.length} shown` : "";
      });
    }
  }
  for (const range of all(".wipe input")) {
    const root = range.closest(".gallery, dialog");
    range.addEventListener("input", () => root.style.setProperty("--share", `${range.value}%`));
  }

  // Details of a picture.
  const dialog = document.getElementById("detail");
  if (dialog) {
    const details = JSON.parse(document.getElementById("details").textContent);
    let card = null;
    const text = (selector, words) => { dialog.querySelector(selector).textContent = words; };
    function tops(list, shares) {
      list.replaceChildren(...Object.entries(shares || {}).map(([name, share]) => {
        const item = document.createElement("li");
        item.textContent = `${name} ${(100 * share).toFixed(share > 0.0995 || share === 0 ? 0 : 1)} %`;
        item.style.setProperty("--share", `${100 * share}%`);
        return item;
      }));
    }
    function show(next) {
      card = next;
      const button = card.querySelector(".open");
      const found = details[Number(button.dataset.place)];
      const [before, after] = ["before", "after"].map((name) => card.querySelector(`img.${name}`));
      text("#detail-title", found.prompt);
      text(".sub", `${found.group} · ${found.from}${found.answer ? ` · ${found.erased ? "erased" : "right answer"}: ${found.answer}` : ""}`);
      const [one, two, three] = all(".three img", dialog);
      for (const image of [one, dialog.querySelector(".compare .before")]) image.src = before.src;
      for (const image of [two, dialog.querySelector(".compare .after")]) image.src = after.src;
      dialog.querySelector(".anchor").hidden = !found.anchor;
      if (found.anchor) three.src = found.anchor; else three.removeAttribute("src");
      text(".anchor figcaption", found.anchorName ? `anchor: ${found.anchorName}` : "anchor");
      const [old, now] = all("ol.top", dialog);
      tops(old, found.before);
      tops(now, found.after);
      text(".change", Object.entries(found.change).map(([name, value]) => `${name.toUpperCase()} ${value}`).join(" · "));
      if (!dialog.open) dialog.showModal();
    }
    const visible = () => all(".card", card.closest(".gallery")).filter((one) => one.offsetParent !== null);
    for (const button of all(".open")) button.addEventListener("click", () => show(button.closest(".card")));
    for (const button of all("[data-step]", dialog)) {
      button.addEventListener("click", () => {
        const cards = visible();
        show(cards[(cards.indexOf(card) + Number(button.dataset.step) + cards.length) % cards.length]);
      });
    }
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("close", () => card && card.querySelector(".open").focus());
  }

  // The front: its first panel shows any two of the columns that were measured, each number where it hides nothing.
  for (const front of all(".front")) {
    const { side, pad, axes } = JSON.parse(front.querySelector("script").textContent);
    const plot = front.querySelector(".plot"), points = all(".point", plot), chosen = all("select", front);
    const tried = [];
    for (let r = 12; r < 100; r += 8) {
      for (let k = -2; k < 10; k++) tried.push([r * Math.cos(k * Math.PI / 6), r * Math.sin(k * Math.PI / 6)]);
    }
    const draw = () => {
      const [x, y] = chosen.map((one) => axes[one.value]);
      plot.setAttribute("aria-label", `${y.words} against ${x.words}`);
      plot.querySelector(".x").innerHTML = x.x;
      plot.querySelector(".y").innerHTML = y.y;
      const place = (share) => pad + share * (side - 2 * pad);
      const dots = points.map((_, i) => x.at[i] === null || y.at[i] === null ? null : [place(x.at[i]), side - place(y.at[i])]);
      const taken = dots.filter(Boolean).map(([a, b]) => [a, b, 5, 5]);
      points.forEach((point, i) => {
        point.setAttribute("display", dots[i] ? "inline" : "none");
        if (!dots[i]) return;
        const [cx, cy] = dots[i], number = point.querySelector("text"), wide = 4 * number.textContent.length, high = 6;
        const within = (at, half) => half < at && at < side - half;
        const free = ([dx, dy]) => within(cx + dx, wide) && within(cy + dy, high) && taken.every(
          ([a, b, w, h]) => Math.abs(cx + dx - a) >= wide + w || Math.abs(cy + dy - b) >= high + h);
        const [dx, dy] = tried.find(free) || tried[0], way = 1 - 8 / Math.hypot(dx, dy);
        taken.push([cx + dx, cy + dy, wide, high]);
        point.setAttribute("transform", `translate(${cx},${cy})`);
        point.querySelector(".leader").setAttribute("d", `M0 0L${dx * way} ${dy * way}`);
        number.setAttribute("x", dx);
        number.setAttribute("y", dy + 4);
      });
      plot.querySelector(".none").setAttribute("display", dots.some(Boolean) ? "none" : "inline");
    };
    for (const one of chosen) {
      one.addEventListener("change", draw);
      one.value = [...one.options].find((option) => option.defaultSelected).value; // what is drawn, after a reload too
    }
  }

  for (const button of all(".copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code); // a browser that does not let a page copy: marked, to be copied by hand
        button.textContent = "Marked";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }

  // Print: everything that can be opened is open.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = all("details:not([open], .long)");
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
})();
