// What the page of a comparison does its own way: completions in pairs, and the alternatives of both sides at a step.

/** The pairs of a prompt, one cell per strategy. */
function promptBody(view, prompt) {
  const { data, state } = view;
  const cells = element("div", { class: "cells pairs" });
  for (let first = 0; first < data.strategies.length; first += 2) {
    const pairs = pairsOf(data, prompt, first)
      .filter((pair) => pair.some((row) => row !== null && isWanted(data, state, row)))
      .filter((pair) => !state.different || hasChanged(data, pair));
    const content = (cell, pair) => pairContent(view, cell, pair);
    const shown = Math.max(0, pairs.findIndex((pair) => hasChanged(data, pair)));
    if (pairs.length) cells.append(steppedCell(pairName(data, first), pairs, content, shown));
  }
  return [secondPrompt(prompt), cells].filter(Boolean);
}

/** [row, row] of each sample, null where a side has none. */
function pairsOf(data, prompt, first) {
  const alone = (prompt.cells.get(first + 1) ?? []).filter((row) => data.rows.other[row] === null);
  return [...(prompt.cells.get(first) ?? []).map((row) => [row, data.rows.other[row]]), ...alone.map((row) => [null, row])];
}

function pairName(data, first) {
  const [one, other] = [data.strategies[first].name, data.strategies[first + 1].name];
  return one === other ? one : `${one} → ${other}`;
}

function hasChanged(data, [one, other]) {
  return one === null || other === null || data.rows.step[one] !== null;
}

function isDifferent(data, prompt) {
  return [...prompt.cells.values()].flat().some((row) => hasChanged(data, [row, data.rows.other[row]]));
}

function secondPrompt({ second }) {
  if (second === undefined) return null;
  const text = second.text === null ? "no prompt" : visible(second.text);
  return element("div", { class: "second-prompt" }, element("span", { class: "note" }, "in the second: "),
    element("span", { class: "text", dir: "auto" }, text));
}

function pairContent(view, cell, pair) {
  const { data } = view;
  const row = pair[0] ?? pair[1];
  const count = `${data.rows.sample[row] + 1} of ${cell.items.length}`;
  const changed = hasChanged(data, pair);
  const header = element(
    "header", {}, element("h3", {}, cell.dataset.strategy), stepper(view, cell, count),
    element("span", { class: changed ? "changed" : "" }, pairWords(data, pair)),
  );
  cell.classList.add("pair");
  const isCandidates = data.strategies[data.rows.strategy[row]].type === "next_token";
  if (isCandidates && pair.every((each) => each !== null && data.rows.steps[each])) {
    return [header, bothTable(data, pair, 0)];
  }
  const sides = changed ? pair.map((each, side) => sideOf(view, cell, each, side)) : [sideOf(view, cell, row, null)];
  return [header, element("div", { class: "sides" }, ...sides)];
}

/** What became of a pair. */
function pairWords(data, [one, other]) {
  if (one === null || other === null) return `only in the ${one === null ? "second" : "first"}`;
  const step = data.rows.step[one];
  if (step === null) return "the same on both sides";
  const [isFirstOver, isSecondOver] = [one, other].map((row) => step === data.rows.steps[row]);
  if (isFirstOver && isSecondOver) return "ends in another way";
  const then = isFirstOver ? "the first ends" : isSecondOver ? "the second ends" : "changed";
  return step ? `the same for ${numTokens(step)}, then ${then}` : "changed from the first token on";
}

/** A completion under the name of its side; `null` for both. */
function sideOf(view, cell, row, side) {
  const name = side === null ? "first and second" : side ? "second" : "first";
  const header = element("header", {}, element("h4", {}, name));
  if (row === null) return element("div", { class: "side" }, header, element("p", { class: "text note" }, "no such row"));
  const box = element("div", { class: "side" });
  box.append(...rowContent(view, box, header, row));
  return box;
}

/** Where a completion parts from its counterpart; -1 where it does not, or has ended there. */
function partingStep(data, row) {
  const step = data.rows.other[row] === null ? null : data.rows.step[row];
  return step !== null && step < data.rows.steps[row] ? step : -1;
}

function comparedWith() {
  return null;
}

/** The rows of both sides where both saw the same text at a step, else null. */
function bothAt(data, row, index) {
  const other = data.rows.other[row];
  if (other === null || data.prompts[data.rows.prompt[row]].second !== undefined) return null;
  const step = data.rows.step[row];
  if ((step !== null && index > step) || index >= data.rows.steps[other]) return null;
  return data.strategies[data.rows.strategy[row]].side ? [other, row] : [row, other];
}

function cardContent(data, row, index) {
  const both = bothAt(data, row, index);
  if (both === null) return [...stepContent(data, row, index), element("p", { class: "foot" }, whyAlone(data, row, index))];
  return [
    element("p", { class: "head" }, ...tokensAt(data, both, index)),
    bothTable(data, both, index),
    element("p", { class: "foot" }, "▸ taken · – not among the tokens recorded there"),
    stepFoot(data, row, index),
  ];
}

/** Why there is nothing to hold a step against. */
function whyAlone(data, row, index) {
  const other = data.rows.other[row];
  if (other === null) return "the other side has no such row";
  const name = data.strategies[data.rows.strategy[row]].side ? "first" : "second";
  if (data.rows.errorType[other] !== null) return `in the ${name} it is an error`;
  if (index === data.rows.step[row] && index === data.rows.steps[other]) return `the ${name} has ended here`;
  return `the ${name} saw another text here, so that its probabilities say nothing about this step`;
}

function tokensAt(data, rows, index) {
  const [one, other] = rows.map((row) => label(stepOf(data, row, index).token));
  return one === other ? [one] : [one, element("span", { class: "note" }, " → "), other];
}

/** Alternatives of both sides at a step, the tokens taken among them: [token, p, p], the most probable first. */
function alternativesOf(data, rows, index) {
  const steps = rows.map((row) => stepOf(data, row, index));
  const found = new Map();
  steps.forEach((step, side) => {
    const own = [...step.alternatives];
    if (!own.some(({ token }) => token === step.token)) own.push({ token: step.token, p: step.p });
    for (const { token, p } of own) {
      if (!found.has(token)) found.set(token, [null, null]);
      found.get(token)[side] = p;
    }
  });
  const most = (probabilities) => Math.max(...probabilities.map((p) => p ?? 0));
  const listed = [...found].sort(([, left], [, right]) => most(right) - most(left));
  return { taken: steps.map((step) => step.token), listed };
}

function bothTable(data, rows, index) {
  const { taken, listed } = alternativesOf(data, rows, index);
  const most = Math.max(1e-9, ...listed.flatMap(([, both]) => both.map((p) => p ?? 0)));
  const body = element("tbody");
  for (const [token, both] of listed) {
    const cells = both.flatMap((p, side) => {
      const bar = element("span", { class: "bar" });
      bar.style.width = `${(100 * (p ?? 0)) / most}%`;
      const isTaken = taken[side] === token;
      return [
        element("td", { class: isTaken ? "p taken" : "p" }, isTaken ? "▸ " : "", percent(p)),
        element("td", { class: "mini", "aria-hidden": "true" }, p === null ? null : bar),
      ];
    });
    body.append(element("tr", {}, element("th", { class: "piece", scope: "row" }, label(token)), ...cells));
  }
  const name = (text) => element("th", { scope: "colgroup", colspan: "2" }, text);
  const head = element("tr", {}, element("th", { scope: "col" }, "token"), name("first"), name("second"));
  return element("table", { class: "both" }, element("thead", {}, head), body);
}

/** The same for the ear. */
function spoken(data, row, index) {
  const both = bothAt(data, row, index);
  if (both === null) return `${stepWords(data, row, index)}. ${whyAlone(data, row, index)}`;
  const names = ["first", "second"];
  return both.map((each, side) => `${names[side]}: ${stepWords(data, each, index)}`).join(". ");
}
