// What the report of a run does its own way: strategies side by side, each compared with a baseline.

/** The cells of a prompt, one per strategy. */
function promptBody(view, prompt) {
  const { data, state } = view;
  const cells = element("div", { class: "cells" });
  for (const [strategy, rows] of prompt.cells) {
    const wanted = rows.filter((row) => isWanted(data, state, row));
    const content = (cell, row) => cellContent(view, cell, row);
    if (wanted.length) cells.append(steppedCell(data.strategies[strategy].name, wanted, content));
  }
  return [cells];
}

function cellContent(view, cell, row) {
  const { data } = view;
  const strategy = data.strategies[data.rows.strategy[row]];
  const alike = cell.items.filter((other) => data.rows.errorType[other] === null && sameTokens(data, other, row)).length;
  const kind = strategy.type === "beam_search" ? "beam " : "";
  const count = `${kind}${data.rows.sample[row] + 1} of ${cell.items.length}${alike > 1 ? ` (${alike} alike)` : ""}`;
  const header = element("header", {}, element("h3", {}, strategy.name), stepper(view, cell, count));
  return rowContent(view, cell, header, row);
}

const cardContent = stepContent;
const spoken = stepWords;

/** Whether strategies that generate text gave different tokens for a prompt. */
function isDifferent(data, prompt) {
  const rows = [...prompt.cells.entries()]
    .filter(([strategy]) => data.strategies[strategy].isText)
    .flatMap(([, found]) => found.filter((row) => data.rows.errorType[row] === null));
  return rows.some((row) => !sameTokens(data, row, rows[0]));
}

/** The completion that a row is compared with, or null. */
function baselineRow(data, row) {
  const strategy = data.rows.strategy[row];
  if (data.baseline === null || strategy === data.baseline || !data.strategies[strategy].isText) return null;
  const found = data.prompts[data.rows.prompt[row]].cells.get(data.baseline);
  return found && data.rows.errorType[found[0]] === null && data.rows.errorType[row] === null ? found[0] : null;
}

/** The first step whose token is not the baseline's; -1 where none is. */
function partingStep(data, row) {
  const baseline = baselineRow(data, row);
  if (baseline === null) return -1;
  const common = commonPrefix(data, row, baseline);
  return common < Math.min(data.rows.steps[row], data.rows.steps[baseline]) ? common : -1;
}

/** How far a completion is the baseline's, in words, or null. */
function comparedWith(data, row) {
  const baseline = baselineRow(data, row);
  if (baseline === null) return null;
  const name = data.strategies[data.baseline].name;
  if (sameTokens(data, row, baseline)) return `= ${name}`;
  const common = commonPrefix(data, row, baseline);
  if (partingStep(data, row) < 0) return `= ${name} as far as the shorter one goes`;
  return common ? `= ${name} for ${numTokens(common)}` : `parts from ${name} at the first token`;
}
