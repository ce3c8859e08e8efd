// Text as people see it. Whatever it holds, it is put on the page as text nodes, and no character of it acts.

const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;
const JOINERS = "\u200c\u200d"; // they hold emoji and some scripts together

/** Control characters as pictures, other invisible ones as their code; line breaks stay, after a sign. */
function visible(text, keepLines = true) {
  return text.replace(HIDDEN, (character) => {
    const code = character.codePointAt(0);
    if (JOINERS.includes(character)) return character;
    if (character === "\n") return keepLines ? "⏎\n" : "⏎";
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    if (code === 0x7f) return "\u2421";
    return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

/** What each token adds to the text: whole characters, so that a token may add none and the next one add it. */
function pieces(tokens) {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const found = tokens.map((token) => decoder.decode(token.bytes, { stream: true }));
  const rest = decoder.decode();
  if (rest) found[found.length - 1] += rest;
  return found;
}

/** A token on its own, as `·line`; bytes that are no text of their own as ⟨E2 82⟩. */
function label(token) {
  if (token.name !== undefined) return token.name;
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(token.bytes);
    return visible(text, false).replaceAll(" ", "·");
  } catch {
    return `⟨${hex(token.bytes)}⟩`;
  }
}

function hex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
}

function numTokens(count) {
  return `${count} ${count === 1 ? "token" : "tokens"}`;
}

/** Three significant digits in percent. */
function percent(p) {
  if (p === null) return "–";
  if (p === 0) return "0 %";
  const value = 100 * p;
  return value < 0.001 ? "< 0.001 %" : `${Number(value.toPrecision(3))} %`;
}

/** An element with attributes, listeners (`onclick`) and children; strings become text nodes. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
