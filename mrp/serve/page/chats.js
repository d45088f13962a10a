// The chats, kept in this browser alone. A chat is a tree of turns: another try, or an edited line, is a new branch.
//   chat = {id, title, model, cast: [ids], scenario, me, director, turns: {id: turn}, leaf}
//   turn = {id, parent, speaker ("" is the person), text, why, end}; in a scene also {event, lore, before}: what it is if
//   no line (enters, leaves, is silent), the lore that the speaker was told, and what happened right before (a memory)
const KEY = "mrp.chats";

let chats = read();

function read() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) || "[]");
    return Array.isArray(kept) ? kept.filter(isChat) : [];
  } catch {
    return [];
  }
}

export function isChat(value) {
  if (!value || typeof value.id !== "string" || typeof value.model !== "string" || typeof value.turns !== "object" || !value.turns) return false;
  const known = (id) => id === null || (typeof id === "string" && Object.hasOwn(value.turns, id));
  const turns = Object.values(value.turns);
  return Array.isArray(value.cast) && known(value.leaf ?? null) && isTree(value.turns)
    && turns.every((t) => typeof t.text === "string" && typeof t.speaker === "string" && known(t.parent ?? null));
}

function isTree(turns) {
  for (const turn of Object.values(turns)) {
    let steps = 0;
    for (let at = turn; at && at.parent; at = turns[at.parent]) if (++steps > 100000) return false;
  }
  return true;
}

const unique = () => (crypto.randomUUID ? crypto.randomUUID() : `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`);

/** False where the browser has no room left. */
export function keep() {
  try {
    localStorage.setItem(KEY, JSON.stringify(chats));
    return true;
  } catch {
    return false;
  }
}

export const allChats = () => chats;
export const findChat = (id) => chats.find((chat) => chat.id === id);

export function newChat(model, cast, { scenario = "", me = "", director = "natural" } = {}) {
  const chat = { id: unique(), title: "", model, cast, scenario, me, director, turns: {}, leaf: null };
  chats.unshift(chat);
  return chat;
}

export function removeChat(id) {
  chats = chats.filter((chat) => chat.id !== id);
}

/** Chats of a file, beside those here; one that is here already is replaced. Returns how many; 0 if it holds none. */
export function takeIn(text) {
  let found = [];
  try {
    found = JSON.parse(text).chats.filter(isChat);
  } catch {
    return 0;
  }
  const ids = new Set(found.map((chat) => chat.id));
  chats = [...found, ...chats.filter((chat) => !ids.has(chat.id))];
  return found.length;
}

export const handOut = () => JSON.stringify({ format: "mrp-chats", version: 1, chats }, null, 1);

/** The turns from the first to the one that is looked at. */
export function path(chat) {
  const turns = [];
  for (let id = chat.leaf; id; id = chat.turns[id].parent) turns.unshift(chat.turns[id]);
  return turns;
}

/** Whoever of the cast is in the scene now. */
export function present(chat) {
  const there = new Set(chat.cast);
  for (const turn of path(chat)) {
    if (turn.event === "enters") there.add(turn.speaker);
    if (turn.event === "leaves") there.delete(turn.speaker);
  }
  return [...there];
}

const NOBODY = "other"; // what the server calls somebody without a name

/** A scene as the server wants it: all that happened up to the turn that is looked at. */
export function sceneOf(chat) {
  const turns = path(chat).filter((turn) => turn.end !== "fault" && (turn.text || turn.event)).flatMap((turn) => [
    ...(turn.before ?? []),
    { speaker: turn.speaker || chat.me || NOBODY, text: turn.text, event: turn.event ?? "says", lore: turn.lore ?? null },
  ]);
  const persons = chat.me ? [chat.me] : [];
  return { characters: chat.cast, persons, scenario: chat.scenario, director: chat.director ?? "natural", turns };
}

export function addTurn(chat, parent, speaker, text, more = {}) {
  const turn = { id: unique(), parent, speaker, text, ...more };
  chat.turns[turn.id] = turn;
  chat.leaf = turn.id;
  if (!chat.title && !speaker) chat.title = text.slice(0, 60);
  return turn;
}

export const versions = (chat, turn) => Object.values(chat.turns).filter((other) => (other.parent ?? null) === (turn.parent ?? null));

/** Look at another version of a turn, to the end of its newest branch. */
export function showVersion(chat, turn) {
  let at = turn;
  for (;;) {
    const after = Object.values(chat.turns).filter((other) => other.parent === at.id);
    if (!after.length) break;
    at = after[after.length - 1];
  }
  chat.leaf = at.id;
}

/** Take a turn that has no others after it out of the tree. */
export function dropTurn(chat, turn) {
  delete chat.turns[turn.id];
  if (chat.leaf === turn.id) chat.leaf = turn.parent ?? null;
}
