// One cell of a prompt: the completions of a strategy, one at a time, with coloured tokens.

function strategyCell(view, prompt, strategy, rows) {
  const cell = element("article", { class: "cell", "data-strategy": view.data.strategies[strategy].name });
  cell.rows = rows;
  cell.show = (index) => {
    cell.index = (index + rows.length) % rows.length;
    cell.replaceChildren(...cellContent(view, cell, rows[cell.index]));
  };
  cell.show(0);
  return cell;
}

function cellContent(view, cell, row) {
  const { rows, strategies } = view.data;
  const strategy = strategies[rows.strategy[row]];
  const header = element("header", {}, element("h3", {}, strategy.name), stepper(view, cell, row));
  if (rows.errorType[row] !== null) {
    header.append(element("span", { class: "end failed" }, `error: ${rows.errorType[row]}`));
    return [header, element("p", { class: "failed text" }, visible(rows.errorMessage[row] ?? ""))];
  }
  header.append(element("span", { class: "end" }, ending(view.data, row)));
  if (strategy.type === "next_token") {
    return [header, rows.steps[row] ? barList(stepOf(view.data, row, 0)) : null].filter(Boolean);
  }
  return [header, tokenRun(view, row), foot(view, cell, row)];
}

function stepper(view, cell, row) {
  if (cell.rows.length < 2) return null;
  const { data } = view;
  const alike = cell.rows.filter((other) => data.rows.errorType[other] === null && sameTokens(data, other, row)).length;
  const turn = (text, name, by) =>
    element("button", { type: "button", "aria-label": name, onclick: () => view.turn(cell, by) }, text);
  const kind = data.strategies[data.rows.strategy[row]].type === "beam_search" ? "beam " : "";
  const count = `${kind}${data.rows.sample[row] + 1} of ${cell.rows.length}${alike > 1 ? ` (${alike} alike)` : ""}`;
  return element("span", { class: "stepper" }, turn("‹", "previous sample", -1), count, turn("›", "next sample", 1));
}

function ending(data, row) {
  const count = data.rows.steps[row];
  const match = data.rows.stop[row];
  const stop = match === null ? "" : ` “${visible(String(match), false)}”`;
  return `${count} ${count === 1 ? "token" : "tokens"} · ${data.rows.finish[row]}${stop}`;
}

/** The tokens: one stop for Tab, arrows within. */
function tokenRun(view, row) {
  const { data, state } = view;
  const tokens = tokensOf(data, row);
  const texts = pieces(tokens);
  const colour = COLOURS[state.colour];
  const parting = partingStep(data, row);
  let kept = data.rows.keptBytes[row] ?? Infinity;
  const name = data.strategies[data.rows.strategy[row]].name;
  const run = element("div", {
    class: "tokens text", dir: "auto", tabindex: "0", role: "group", "aria-label": `${name}, ${ending(data, row)}`,
  });
  run.row = row;
  tokens.forEach((token, index) => {
    const bin = colour.of(stepOf(data, row, index));
    const classes = ["t", colour.classes[bin]];
    if (index === parting) classes.push("parts");
    if (bin === view.spot) classes.push("spot");
    run.append(tokenSpan(token, texts[index], classes, index, kept));
    kept -= token.bytes.length;
  });
  if (!tokens.length) run.append(element("span", { class: "sign" }, "no tokens"));
  return run;
}

/** A token on the page. What lies behind its first `kept` bytes was cut from the text with a stop string. */
function tokenSpan(token, text, classes, index, kept) {
  if (kept <= 0) classes.push("cut");
  if (token.name !== undefined) classes.push("special");
  else if (!text) classes.push("part");
  const span = element("span", { class: classes.join(" "), "data-i": index });
  if (token.name !== undefined) span.append(token.name);
  const head = kept > 0 && kept < token.bytes.length ? new TextDecoder().decode(token.bytes.subarray(0, kept)) : text;
  span.append(...signs(head));
  if (head !== text) span.append(element("span", { class: "cut" }, ...signs(text.slice(head.length))));
  return span;
}

/** Visible text, with what stands for the invisible set apart. */
function signs(text) {
  return visible(text)
    .split(/([⏎␀-␡]|⟨U\+[0-9A-F]+⟩)/u)
    .map((part, place) => (place % 2 ? element("span", { class: "sign" }, part) : part));
}

/** The first step whose token is not the baseline's; -1 where none is. */
function partingStep(data, row) {
  const baseline = baselineRow(data, row);
  if (baseline === null) return -1;
  const common = commonPrefix(data, row, baseline);
  return common < Math.min(data.rows.steps[row], data.rows.steps[baseline]) ? common : -1;
}

function foot(view, cell, row) {
  const { data } = view;
  const baseline = baselineRow(data, row);
  const score = data.rows.score[row];
  const facts = [];
  if (baseline !== null) facts.push(comparison(data, row, baseline));
  if (score !== null) facts.push(`score ${score.toPrecision(4)}`);
  const table = element("button", {
    type: "button", class: "link", "aria-expanded": "false",
    onclick: () => {
      const open = cell.querySelector(".steps");
      if (open) open.remove();
      else cell.append(stepTable(data, row));
      table.setAttribute("aria-expanded", String(!open));
    },
  }, "steps as a table");
  return element("p", { class: "foot" }, facts.length ? element("span", {}, facts.join(" · ")) : null, data.rows.steps[row] ? table : null);
}

function comparison(data, row, baseline) {
  const name = data.strategies[data.baseline].name;
  if (sameTokens(data, row, baseline)) return `= ${name}`;
  const common = commonPrefix(data, row, baseline);
  if (partingStep(data, row) < 0) return `= ${name} as far as the shorter one goes`;
  return common ? `= ${name} for ${common} ${common === 1 ? "token" : "tokens"}` : `parts from ${name} at the first token`;
}
