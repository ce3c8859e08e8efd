// What is shown, as values that live in the address (#strategy=greedy&page=2), so that every view is a link.

const DEFAULTS = {
  q: "", strategy: "", finish: "", error: "", why: "", colour: "rank", per: "25", different: "", page: "1", row: "",
};

const COLOURS = {
  rank: {
    label: "rank", classes: ["c0", "c1", "c2", "c3", "c4"], names: ["1", "2–10", "11–100", "101–1000", "above 1000"],
    of: (step) => (step.rank <= 1 ? 0 : step.rank <= 10 ? 1 : step.rank <= 100 ? 2 : step.rank <= 1000 ? 3 : 4),
  },
  probability: {
    label: "probability", classes: ["c0", "c1", "c2", "c3", "c4"],
    names: ["50 % and more", "10–50 %", "1–10 %", "0.1–1 %", "below 0.1 %"],
    of: ({ p }) => (p >= 0.5 ? 0 : p >= 0.1 ? 1 : p >= 0.01 ? 2 : p >= 0.001 ? 3 : 4),
  },
  entropy: {
    label: "entropy", classes: ["c0", "c1", "c2", "c3", "c4"],
    names: ["below 1 nat", "1–2", "2–4", "4–6", "6 and more"],
    of: ({ entropy }) => (entropy < 1 ? 0 : entropy < 2 ? 1 : entropy < 4 ? 2 : entropy < 6 ? 3 : 4),
  },
  sampled: {
    label: "sampled ÷ raw", classes: ["d0", "d1", "d2", "d3", "d4"],
    names: ["half or less", "0.5–0.8", "0.8–1.25, or not drawn", "1.25–2", "twice and more"],
    of: ({ sampled, p }) => {
      if (sampled === null || p === 0) return 2;
      const ratio = sampled / p;
      return ratio <= 0.5 ? 0 : ratio < 0.8 ? 1 : ratio <= 1.25 ? 2 : ratio < 2 ? 3 : 4;
    },
  },
  none: { label: "none", classes: ["c0"], names: ["no colour"], of: () => 0 },
};

function readState() {
  const given = new URLSearchParams(location.hash.slice(1));
  const state = { ...DEFAULTS };
  for (const key of Object.keys(DEFAULTS)) if (given.has(key)) state[key] = given.get(key);
  if (!Object.hasOwn(COLOURS, state.colour)) state.colour = DEFAULTS.colour;
  return state;
}

function addressOf(state) {
  const changed = Object.entries(state).filter(([key, value]) => value !== DEFAULTS[key]);
  return `#${new URLSearchParams(changed)}`;
}

/** Whether a completion is one of those asked for, its text aside. */
function isWanted(data, state, row) {
  const { strategy, finish, errorType } = data.rows;
  if (state.strategy && data.strategies[strategy[row]].name !== state.strategy) return false;
  if (state.finish && finish[row] !== state.finish) return false;
  if (state.error === "ok") return errorType[row] === null;
  if (state.error === "error") return errorType[row] !== null;
  return !state.error || errorType[row] === state.error;
}

/** Numbers of the prompts to show, in order. */
function matching(data, state) {
  const wanted = state.q.toLowerCase();
  return data.prompts.flatMap((prompt, number) => {
    if (state.row) return String(prompt.index) === state.row ? [number] : [];
    if (state.why && !(prompt.why.includes(state.why) || (state.why === "at random" && !prompt.why.length))) return [];
    if (state.different && !isDifferent(data, prompt)) return [];
    const rows = [...prompt.cells.values()].flat().filter((row) => isWanted(data, state, row));
    return rows.length && (!wanted || isFound(data, prompt, rows, wanted)) ? [number] : [];
  });
}

function isFound(data, prompt, rows, wanted) {
  const own = [prompt.id, prompt.text ?? "", ...prompt.kept.map(([, value]) => value)];
  return own.some((text) => text.toLowerCase().includes(wanted)) || rows.some((row) => textOf(data, row).includes(wanted));
}

/** Text of a completion in lower case, for search. */
function textOf(data, row) {
  data.texts ??= [];
  data.texts[row] ??= pieces(tokensOf(data, row)).join("").toLowerCase();
  return data.texts[row];
}

function tokensOf(data, row) {
  const at = data.first[row];
  return Array.from(data.steps.token.subarray(at, at + data.rows.steps[row]), (place) => data.vocabulary[place]);
}
