// The embedded block, decoded: what `payload.py` wrote. Rows and steps stay columns; a row owns steps from `first` on.

const ABSENT = 0xffff;

async function readData() {
  const text = document.getElementById("data").textContent;
  const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const block = await new Response(stream).arrayBuffer();
  const size = new DataView(block).getUint32(0, true);
  const data = JSON.parse(new TextDecoder().decode(new Uint8Array(block, 4, size)));
  let offset = 4 + size;
  data.steps = {};
  for (const [name, length, width] of data.columns) {
    data.steps[name] = new (width === 4 ? Uint32Array : Uint16Array)(block, offset, length);
    offset += length * width;
  }
  data.depth = data.steps.token.length ? data.steps.topToken.length / data.steps.token.length : 0;
  data.vocabulary = data.vocabulary.map(([id, bytes, name]) => ({
    id, name, bytes: Uint8Array.from(bytes, (character) => character.charCodeAt(0)),
  }));
  linkRows(data);
  return data;
}

function linkRows(data) {
  let first = 0;
  data.first = data.rows.steps.map((count) => (first += count) - count);
  for (const prompt of data.prompts) prompt.cells = new Map();
  data.rows.prompt.forEach((prompt, row) => {
    const cells = data.prompts[prompt].cells;
    const strategy = data.rows.strategy[row];
    if (!cells.has(strategy)) cells.set(strategy, []);
    cells.get(strategy).push(row);
  });
}

/** Token, rank, probabilities and alternatives of a step of a row. Probabilities are null where none was recorded. */
function stepOf(data, row, index) {
  const at = data.first[row] + index;
  const steps = data.steps;
  const step = {
    token: data.vocabulary[steps.token[at]],
    rank: steps.rank[at],
    surprise: steps.surprise[at] / 1000,
    p: probability(steps.surprise[at]),
    sampled: probability(steps.sampled[at]),
    entropy: steps.entropy[at] / 1000,
    alternatives: [],
  };
  for (let place = 0; place < data.depth; place++) {
    const p = probability(steps.topSurprise[at * data.depth + place]);
    if (p === null) break;
    step.alternatives.push({ token: data.vocabulary[steps.topToken[at * data.depth + place]], p });
  }
  return step;
}

function probability(millinats) {
  if (millinats === ABSENT) return null;
  return millinats === ABSENT - 1 ? 0 : Math.exp(-millinats / 1000);
}

function sameTokens(data, left, right) {
  const count = data.rows.steps[left];
  return count === data.rows.steps[right] && commonPrefix(data, left, right) === count;
}

function commonPrefix(data, left, right) {
  const shorter = Math.min(data.rows.steps[left], data.rows.steps[right]);
  const token = data.steps.token;
  let count = 0;
  while (count < shorter && token[data.first[left] + count] === token[data.first[right] + count]) count++;
  return count;
}
