// Everything together: the view, and what pointer and keys do to it.

class View {
  constructor(data) {
    this.data = data;
    this.card = new Card(data);
    this.form = document.getElementById("filters");
    [this.legend, this.list, this.status, this.pager] = ["legend", "list", "status", "pager"]
      .map((id) => document.getElementById(id));
    fillFilters(this);
    this.follow();
  }

  /** Show what the address says. */
  follow() {
    this.state = readState();
    for (const [key, value] of Object.entries(this.state)) {
      const field = this.form.elements[key];
      if (field?.type === "checkbox") field.checked = Boolean(value);
      else if (field && field !== document.activeElement) field.value = value;
    }
    this.spot = null;
    this.draw();
  }

  /** Change the state, and the address with it. Any change of a filter begins at the first page. */
  change(values) {
    const isFilter = !("colour" in values);
    this.state = { ...this.state, ...(isFilter ? { page: "1", row: "" } : {}), ...values };
    history.replaceState(null, "", addressOf(this.state));
    this.follow();
  }

  draw() {
    this.card.close();
    drawLegend(this);
    drawList(this);
    this.spotMarks();
  }

  spotlight(bin) {
    this.spot = this.spot === bin ? null : bin;
    this.draw();
  }

  spotMarks() {
    if (this.spot === null) delete this.list.dataset.spot;
    else this.list.dataset.spot = this.spot;
  }

  /** Next or previous sample of a cell; the keyboard stays where it was. */
  turn(cell, by) {
    const isButton = document.activeElement?.closest(".stepper") !== null;
    const hadFocus = cell.contains(document.activeElement);
    this.card.close();
    cell.show(cell.index + by);
    if (hadFocus) (isButton ? cell.querySelectorAll(".stepper button")[by < 0 ? 0 : 1] : cell.querySelector(".tokens"))?.focus();
  }

  /** Move to a step of the completion that has the focus. */
  step(run, index) {
    const tokens = run.querySelectorAll(".t");
    const place = Math.max(0, Math.min(tokens.length - 1, index));
    if (!tokens.length) return;
    this.card.show(tokens[place], run.row, place);
    this.card.say(run.row, place);
  }

  nextPrompt(by) {
    const prompts = [...this.list.children];
    const here = prompts.indexOf(document.activeElement?.closest(".prompt"));
    const next = prompts[here < 0 && by < 0 ? prompts.length - 1 : here + by];
    next?.focus();
    next?.scrollIntoView({ block: "start" });
  }
}

function listenToPointer(view) {
  const tokenOf = (event) => event.target.closest?.("#list .tokens .t");
  view.list.addEventListener("pointerover", (event) => {
    const token = tokenOf(event);
    if (token && !view.card.isPinned) view.card.show(token, token.closest(".tokens").row, Number(token.dataset.i));
  });
  view.list.addEventListener("pointerout", (event) => {
    const to = event.relatedTarget;
    if (!to?.closest?.("#card, #list .tokens .t")) view.card.leave();
  });
  view.list.addEventListener("click", (event) => {
    const token = tokenOf(event);
    if (!token) return;
    const isSame = view.card.isPinned && view.card.token === token;
    view.card.show(token, token.closest(".tokens").row, Number(token.dataset.i));
    view.card.pin(!isSame);
  });
  document.addEventListener("click", (event) => {
    if (!event.target.closest("#card") && !tokenOf(event)) view.card.close();
  });
}

function listenToFocus(view) {
  view.list.addEventListener("focusin", (event) => {
    if (event.target.matches(".tokens:focus-visible")) view.step(event.target, 0);
  });
  view.list.addEventListener("focusout", (event) => {
    if (event.target.matches(".tokens") && !view.card.isPinned) view.card.close();
  });
}

function listenToKeys(view) {
  const letters = {
    "/": () => document.getElementById("search").focus(),
    "?": () => document.getElementById("help").showModal(),
    j: () => view.nextPrompt(1),
    k: () => view.nextPrompt(-1),
    d: () => view.change({ different: view.state.different ? "" : "1" }),
    c: () => view.change({ colour: following(Object.keys(COLOURS), view.state.colour) }),
    t: () => turnTheme(),
    "[": () => turnFocused(view, -1),
    "]": () => turnFocused(view, 1),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") return leaveKey(view, event);
    if (event.target.closest("input, select, textarea, dialog")) return;
    const run = event.target.closest(".tokens");
    if (run && stepKey(view, run, event.key)) return event.preventDefault();
    if (Object.hasOwn(letters, event.key) && document.getElementById("keys").checked) {
      event.preventDefault();
      letters[event.key]();
    }
  });
}

function leaveKey(view, event) {
  view.card.close();
  if (event.target.id === "search") event.target.blur();
}

/** Keys within a completion. Returns whether the key was one. */
function stepKey(view, run, key) {
  const here = view.card.token && run.contains(view.card.token) ? Number(view.card.token.dataset.i) : -1;
  const targets = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: view.data.rows.steps[run.row] - 1 };
  if (Object.hasOwn(targets, key)) view.step(run, targets[key]);
  else if (key === "Enter" && here >= 0) view.card.pin(!view.card.isPinned);
  else return false;
  return true;
}

function turnFocused(view, by) {
  const cell = document.activeElement?.closest(".cell");
  if (cell && cell.items.length > 1) view.turn(cell, by);
}

function following(values, value) {
  return values[(values.indexOf(value) + 1) % values.length];
}

function turnTheme() {
  const root = document.documentElement;
  const theme = following(["auto", "light", "dark"], root.dataset.theme ?? "auto");
  root.dataset.theme = theme;
  document.getElementById("theme").textContent = `theme: ${theme}`;
}

function listenToForm(view) {
  const value = (field) => (field.type === "checkbox" ? (field.checked ? "1" : "") : field.value);
  view.form.addEventListener("submit", (event) => event.preventDefault());
  view.form.addEventListener("input", (event) => {
    if (event.target.name) view.change({ [event.target.name]: value(event.target) });
  });
  document.getElementById("reset").addEventListener("click", () => {
    view.change({ ...DEFAULTS });
  });
  document.getElementById("theme").addEventListener("click", turnTheme);
  document.getElementById("help-open").addEventListener("click", () => document.getElementById("help").showModal());
  window.addEventListener("hashchange", () => {
    if (location.hash === "#prompts-title") return;
    view.follow();
    document.getElementById("prompts-title").scrollIntoView();
  });
}

async function start() {
  const data = await readData();
  Object.assign(DEFAULTS, data.defaults);
  const view = new View(data);
  for (const listen of [listenToPointer, listenToFocus, listenToKeys, listenToForm]) listen(view);
  for (const id of ["app", "theme", "help-open"]) document.getElementById(id).hidden = false;
  document.documentElement.dataset.ready = "yes";
}

start();
