// The list of prompts: filters, legend, pages.

const LONG_PROMPT = 1200;
const MOST_REASONS = 3;

function promptCard(view, number) {
  const { data, state } = view;
  const prompt = data.prompts[number];
  const why = data.isSample ? reasons(prompt) : null;
  const header = element(
    "header", {},
    element(
      "div", { class: "facts" },
      element("b", {}, visible(prompt.id, false)),
      ...prompt.kept.map(([name, value]) => element("span", {}, `${name}: ${visible(value, false).slice(0, 80)}`)),
      element("span", {}, numTokens(prompt.numTokens)), why,
      element("a", { href: `#row=${prompt.index}`, "aria-label": `link to ${prompt.id}` }, "link"),
    ),
    promptText(prompt),
  );
  return element("section", { class: "prompt", tabindex: "-1", "aria-label": `prompt ${prompt.id}` }, header, ...promptBody(view, prompt));
}

function reasons({ why }) {
  const more = why.length > MOST_REASONS ? `, and ${why.length - MOST_REASONS} more reasons` : "";
  const text = why.length ? why.slice(0, MOST_REASONS).join(", ") + more : "at random";
  return element("span", { title: why.join("\n") }, text);
}

function promptText(prompt) {
  if (prompt.text === null) return element("p", { class: "text note" }, "no prompt");
  if (!prompt.text) return element("p", { class: "text note" }, "empty prompt");
  const characters = [...prompt.text];
  const isLong = characters.length > LONG_PROMPT;
  const shown = isLong ? `${characters.slice(0, LONG_PROMPT).join("")}…` : prompt.text;
  const text = element("p", { class: "text", dir: "auto" }, visible(shown));
  if (isLong) {
    const more = element("button", {
      type: "button", onclick: () => text.replaceChildren(visible(prompt.text)),
    }, `${characters.length.toLocaleString("en")} of ${prompt.length.toLocaleString("en")} characters`);
    text.append(" ", more);
  }
  return text;
}

function fillFilters(view) {
  const { data } = view;
  const distinct = (values) => [...new Set(values)].sort();
  const errors = distinct(data.rows.errorType.filter((type) => type !== null));
  const fill = (name, options) => {
    view.form.elements[name].replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
  };
  const named = (values) => values.map((value) => [value, value]);
  const types = new Map(data.strategies.map(({ name, type }) => [name, `${name} (${type})`]));
  fill("strategy", [["", "all"], ...types]);
  fill("finish", [["", "anything"], ...named(distinct(data.rows.finish.filter((reason) => reason !== null)))]);
  fill("error", [["", "all"], ["ok", "ok"], ["error", "error"], ...named(errors)]);
  fill("why", [["", "any reason"], ...named(distinct(data.prompts.flatMap(({ why }) => why))), ...named(["at random"])]);
  view.form.elements.why.closest("label").hidden = !data.isSample;
  fill("colour", Object.entries(COLOURS).map(([value, { label: text }]) => [value, text]));
  fill("per", [["25", "25"], ["100", "100"], ["all", "all"]]);
}

function drawLegend(view) {
  const colour = COLOURS[view.state.colour];
  const counts = colour.names.map(() => 0);
  const { data } = view;
  data.rows.steps.forEach((count, row) => {
    if (data.strategies[data.rows.strategy[row]].type === "next_token" || !isWanted(data, view.state, row)) return;
    for (let index = 0; index < count; index++) counts[colour.of(stepOf(data, row, index))]++;
  });
  const buttons = colour.names.map((name, bin) => element(
    "button", { type: "button", "aria-pressed": String(view.spot === bin), onclick: () => view.spotlight(bin) },
    element("span", { class: `t ${colour.classes[bin]}` }, ` ${name} `), `\u2002${counts[bin].toLocaleString("en")}`,
  ));
  const title = view.state.colour === "none" ? "" : `${colour.label}:`;
  view.legend.replaceChildren(title, ...(view.state.colour === "none" ? [] : buttons));
}

function drawList(view) {
  const { data, state } = view;
  const found = matching(data, state);
  const per = state.per === "all" ? Math.max(1, found.length) : Number(state.per) || 25;
  const pages = Math.max(1, Math.ceil(found.length / per));
  const page = Math.min(pages, Math.max(1, Number(state.page) || 1));
  const shown = found.slice((page - 1) * per, page * per);
  view.list.classList.toggle("many", shown.length > 25);
  view.list.replaceChildren(...shown.map((number) => promptCard(view, number)));
  const count = `${found.length.toLocaleString("en")} of ${data.prompts.length.toLocaleString("en")} prompts`;
  view.status.textContent = found.length ? count : `${count}. Nothing matches; “reset” shows all again.`;
  drawPager(view, page, pages);
}

function drawPager(view, page, pages) {
  const to = (text, target, isOff) => element("button", {
    type: "button", disabled: isOff, onclick: () => {
      view.change({ page: String(target) });
      document.getElementById("prompts-title").scrollIntoView();
    },
  }, text);
  view.pager.replaceChildren(...(pages > 1
    ? [to("‹ previous", page - 1, page === 1), `page ${page} of ${pages}`, to("next ›", page + 1, page === pages)]
    : []));
}
