// What one step says: the card beside a token, and the same as a table.

/** Alternatives as a list of bars; the token taken is marked, and added where it is not among them. */
function barList(step) {
  const list = element("ol", { class: "bars" });
  const most = Math.max(...step.alternatives.map(({ p }) => p), step.p ?? 0, 1e-9);
  step.alternatives.forEach(({ token, p }, place) => {
    list.append(barItem(place + 1, token, p, most, token === step.token));
  });
  if (!step.alternatives.some(({ token }) => token === step.token)) {
    list.append(barItem(step.rank, step.token, step.p, most, true));
  }
  return list;
}

function barItem(rank, token, p, most, isTaken) {
  const bar = element("span", { class: "bar", "aria-hidden": "true" });
  bar.style.width = `${(100 * (p ?? 0)) / most}%`;
  return element(
    "li", { class: isTaken ? "taken" : "" },
    element("span", { class: "place" }, String(rank)),
    element("span", { class: "piece" }, label(token)),
    element("span", { class: "p" }, percent(p)),
    bar,
  );
}

/** What a step of a completion is by itself, for the card. */
function stepContent(data, row, index) {
  const step = stepOf(data, row, index);
  const fact = (name, value) => element("span", {}, element("span", {}, `${name} `), value);
  const covered = step.alternatives.reduce((sum, { p }) => sum + p, 0);
  return [
    element("p", { class: "head" }, label(step.token)),
    element(
      "div", { class: "facts" },
      fact("rank", String(step.rank)), fact("p", percent(step.p)),
      step.sampled === null ? null : fact("as drawn", percent(step.sampled)),
      fact("surprise", `${step.surprise.toPrecision(3)} nats`), fact("entropy", `${step.entropy.toPrecision(3)} nats`),
    ),
    ...(step.alternatives.length ? [barList(step)] : []),
    element("p", { class: "foot" }, step.alternatives.length
      ? `the ${step.alternatives.length} most probable tokens cover ${percent(covered)}`
      : "no alternatives were recorded (output.top_k: 0)"),
    stepFoot(data, row, index),
  ];
}

function stepFoot(data, row, index) {
  const { token } = stepOf(data, row, index);
  const bytes = token.name === undefined ? ` · bytes ${hex(token.bytes)}` : "";
  return element("p", { class: "foot" }, `step ${index + 1} of ${data.rows.steps[row]} · token ${token.id}${bytes}`);
}

/** The same for the ear. */
function stepWords(data, row, index) {
  const step = stepOf(data, row, index);
  const best = step.alternatives.slice(0, 3).map(({ token, p }) => `${label(token)} ${percent(p)}`).join(", ");
  return `${label(step.token)}, rank ${step.rank}, ${percent(step.p)}. ${best}`;
}

class Card {
  constructor(data) {
    this.data = data;
    this.box = document.getElementById("card");
    this.live = document.getElementById("live");
    this.isPinned = false;
    this.box.addEventListener("pointerleave", () => this.leave());
  }

  show(token, row, index) {
    this.mark(token);
    this.box.replaceChildren(...cardContent(this.data, row, index));
    this.box.hidden = false;
    this.place(token);
  }

  say(row, index) {
    this.live.textContent = spoken(this.data, row, index);
  }

  /** Below the token, or above it where there is no room below. */
  place(token) {
    const rects = token.getClientRects();
    const at = rects[rects.length - 1];
    const width = this.box.offsetWidth;
    const height = this.box.offsetHeight;
    const left = Math.max(8, Math.min(at.left, document.documentElement.clientWidth - width - 8));
    const below = at.bottom + 4;
    const isAbove = below + height > window.innerHeight && at.top - height - 4 > 0;
    this.box.style.left = `${left + window.scrollX}px`;
    this.box.style.top = `${(isAbove ? at.top - height - 4 : below) + window.scrollY}px`;
  }

  mark(token) {
    this.token?.classList.remove("current");
    this.token = token;
    token?.classList.add("current");
  }

  pin(isPinned) {
    this.isPinned = isPinned;
    this.box.classList.toggle("pinned", isPinned);
  }

  leave() {
    if (!this.isPinned && !this.token?.closest(".tokens")?.matches(":focus-visible")) this.close();
  }

  close() {
    this.pin(false);
    this.mark(null);
    this.box.hidden = true;
  }
}

/** All steps of a completion as a table, for those who read rather than point. */
function stepTable(data, row) {
  const body = element("tbody");
  for (let index = 0; index < data.rows.steps[row]; index++) {
    const step = stepOf(data, row, index);
    const others = step.alternatives.slice(0, 3).map(({ token, p }) => `${label(token)} ${percent(p)}`).join(", ");
    body.append(element(
      "tr", {}, element("th", { scope: "row" }, String(index + 1)),
      ...[label(step.token), String(step.rank), percent(step.p), step.entropy.toFixed(2), others]
        .map((text) => element("td", {}, text)),
    ));
  }
  const names = ["step", "token", "rank", "p", "entropy", "most probable"];
  const head = element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name)));
  return element("div", { class: "steps", tabindex: "0" }, element("table", {}, element("thead", {}, head), body));
}
