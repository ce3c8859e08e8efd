// One cell of a prompt: the completions of a strategy, one at a time, with coloured tokens.

/** A cell that shows one of several items at a time: rows of a report, pairs of a comparison. */
function steppedCell(name, items, contentOf, first = 0) {
  const cell = element("article", { class: "cell", "data-strategy": name });
  cell.items = items;
  cell.show = (index) => {
    cell.index = (index + items.length) % items.length;
    cell.replaceChildren(...contentOf(cell, items[cell.index]));
  };
  cell.show(first);
  return cell;
}

/** What a completion is, under a header that already has its name. */
function rowContent(view, cell, header, row) {
  const { rows, strategies } = view.data;
  if (rows.errorType[row] !== null) {
    header.append(element("span", { class: "end failed" }, `error: ${rows.errorType[row]}`));
    return [header, element("p", { class: "failed text" }, visible(rows.errorMessage[row] ?? ""))];
  }
  header.append(element("span", { class: "end" }, ending(view.data, row)));
  if (strategies[rows.strategy[row]].type === "next_token") {
    return [header, rows.steps[row] ? barList(stepOf(view.data, row, 0)) : null].filter(Boolean);
  }
  return [header, tokenRun(view, row), foot(view, cell, row)];
}

/** Buttons around a text, where there is more than one item. */
function stepper(view, cell, text) {
  if (cell.items.length < 2) return null;
  const turn = (sign, name, by) =>
    element("button", { type: "button", "aria-label": name, onclick: () => view.turn(cell, by) }, sign);
  return element("span", { class: "stepper" }, turn("‹", "previous sample", -1), text, turn("›", "next sample", 1));
}

function ending(data, row) {
  const match = data.rows.stop[row];
  const stop = match === null ? "" : ` “${visible(String(match), false)}”`;
  return `${numTokens(data.rows.steps[row])} · ${data.rows.finish[row]}${stop}`;
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

function foot(view, cell, row) {
  const { data } = view;
  const score = data.rows.score[row];
  const facts = [comparedWith(data, row), score === null ? null : `score ${score.toPrecision(4)}`].filter(Boolean);
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
