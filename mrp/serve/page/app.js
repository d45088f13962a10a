// The page: who is there, the chats, the conversation. All that a model says is shown as text, never as markup.
import { ApiFault, cast as fetchCast, reply, step } from "./api.js";
import {
  addTurn, allChats, dropTurn, findChat, handOut, keep, newChat, path, present, removeChat, sceneOf, showVersion, takeIn, versions,
} from "./chats.js";
import { face } from "./faces.js";
import { switchLanguage, word, writeWords } from "./words.js";

const $ = (id) => document.getElementById(id);
let people = { characters: [], scenario: "" };
let chat = null; // the one that is looked at
let running = null; // {controller, chat, turn} while a reply is being written

function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function button(label, work, className = "quiet") {
  const node = element("button", className, label);
  node.type = "button";
  node.addEventListener("click", work);
  return node;
}

const character = (id) => people.characters.find((one) => one.id === id);
const nameOf = (id) => (id === "auto" ? word("auto") : character(id)?.name ?? id);
const isScene = (one) => one.model.startsWith("scene:");
const titleOf = (one) => (isScene(one) ? present(one).map(nameOf).join(", ") : nameOf(one.model));

function toast(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => { $("toast").hidden = true; }, 3500);
}

function save() {
  if (!keep()) toast(word("full"));
}

// -- the left side -----------------------------------------------------------------------------------------------

function drawSide() {
  const rows = [{ id: "auto", name: word("auto") }, ...people.characters];
  $("cast").replaceChildren(...rows.map((one) => {
    const row = button("", () => begin(one.id), "");
    row.append(face(one.id === "auto" ? "?" : one.name), element("span", "name", one.name));
    row.dataset.character = one.id;
    return element("li", "", row);
  }));
  $("chats").replaceChildren(...allChats().filter((one) => one.leaf || one === chat).map((one) => {
    const row = button("", () => open(one.id), "");
    row.append(element("span", "name", one.title || titleOf(one)));
    if (one === chat) row.setAttribute("aria-current", "true");
    const remove = button("✕", () => forget(one), "quiet remove");
    remove.setAttribute("aria-label", word("remove"));
    return element("li", "", row, remove);
  }));
}

function begin(model) {
  halt();
  const greeting = character(model)?.greeting?.trim();
  chat = newChat(model, model === "auto" ? people.characters.map((one) => one.id) : [model]);
  if (greeting) addTurn(chat, null, model, greeting);
  save();
  draw();
  $("say").focus();
}

function open(id) {
  if (chat?.id !== id) halt();
  chat = findChat(id) ?? null;
  draw();
}

function forget(one) {
  if (!confirm(word("removeSure"))) return;
  if (one === chat) {
    halt();
    chat = null;
  }
  removeChat(one.id);
  save();
  draw();
}

// -- the conversation --------------------------------------------------------------------------------------------

function draw() {
  $("side").classList.remove("open");
  drawSide();
  drawTop();
  drawThread();
  drawDirect();
  drawInfo();
  drawButtons();
}

function drawTop() {
  $("title").textContent = chat ? titleOf(chat) : "mRP-LLM";
  $("subtitle").textContent = chat ? (isScene(chat) ? chat.scenario || word("scene") : chat.model === "auto" ? word("autoAbout") : (character(chat.model)?.persona ?? "").split("\n")[0]) : "";
  $("top-faces").replaceChildren(...(chat ? (chat.model === "auto" ? [face("?")] : present(chat).slice(0, 5).map((id) => face(nameOf(id)))) : []));
}

function drawThread() {
  const turns = chat ? path(chat) : [];
  const atEnd = $("thread").scrollHeight - $("thread").scrollTop - $("thread").clientHeight < 80;
  $("thread").replaceChildren(...(chat ? turns.map(drawTurn) : [welcome()]));
  if (chat && !turns.length) $("thread").append(element("div", "welcome", element("p", "", word("greeting"))));
  if (atEnd || !running) $("thread").scrollTop = $("thread").scrollHeight;
}

function welcome() {
  const faces = element("div", "faces", ...[{ id: "auto", name: word("auto") }, ...people.characters].map((one) => {
    const node = button("", () => begin(one.id), "");
    node.append(face(one.id === "auto" ? "?" : one.name), element("span", "", one.name));
    return node;
  }));
  return element("div", "welcome", element("h2", "", word("welcome")), faces);
}

const isMove = (turn) => turn.event === "enters" || turn.event === "leaves";

function drawTurn(turn) {
  const mine = turn.speaker === "";
  if (isMove(turn)) {
    const note = element("article", "turn note", element("div", "text", `${nameOf(turn.speaker)} ${word(turn.event)}`), drawTools(turn, mine));
    note.dataset.turn = turn.id;
    return note;
  }
  const node = element("article", `turn${mine ? " mine" : ""}${turn.end === "fault" ? " fault" : ""}`);
  node.dataset.turn = turn.id;
  const name = mine ? chat.me || word("you") : nameOf(turn.speaker || chat.model);
  const who = element("div", "who", element("span", "", name));
  if (turn.why) who.append(element("span", "why", turn.why));
  const lore = Object.values(turn.lore ?? {}).filter((why) => why !== "always");
  if (lore.length) who.append(element("span", "why", `${word("lore")}: ${lore.join(", ")}`));
  const text = element("div", `text${running?.turn === turn ? " writing" : ""}`, turn.text || (running?.turn === turn ? "" : word("silent")));
  text.dir = "auto";
  node.append(face(name), who, text, drawTools(turn, mine));
  return node;
}

function drawTools(turn, mine) {
  const tools = element("div", "tools");
  if (running?.turn === turn) return tools;
  const others = versions(chat, turn);
  if (others.length > 1) {
    const at = others.indexOf(turn);
    const step = (by, label) => {
      const node = button(by < 0 ? "‹" : "›", () => { showVersion(chat, others[at + by]); save(); draw(); });
      node.setAttribute("aria-label", word(label));
      node.disabled = !others[at + by] || running !== null;
      return node;
    };
    tools.append(step(-1, "earlier"), element("span", "", `${at + 1}/${others.length}`), step(1, "later"));
  }
  if (isMove(turn)) return tools;
  if (!mine && turn.parent !== undefined && (turn.parent || isScene(chat))) tools.append(button(word("retry"), () => retry(turn)));
  tools.append(button(word("edit"), () => edit(turn)));
  tools.append(button(word("copy"), async () => {
    await navigator.clipboard?.writeText(turn.text);
    toast(word("copied"));
  }));
  if (turn.end === "stopped" || turn.end === "length") tools.append(element("span", "", word(turn.end === "length" ? "cut" : "stopped")));
  return tools;
}

function edit(turn) {
  if (running) return;
  const node = document.querySelector(`[data-turn="${CSS.escape(turn.id)}"] .text`);
  const area = document.createElement("textarea");
  area.value = turn.text;
  area.rows = Math.min(12, turn.text.split("\n").length + 1);
  area.setAttribute("aria-label", word("edit"));
  const done = () => {
    const text = area.value.trim();
    if (!text || text === turn.text) return draw();
    addTurn(chat, turn.parent ?? null, turn.speaker, text);
    save();
    if (turn.speaker === "" && !isScene(chat)) return answer();
    return draw();
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); draw(); }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); done(); }
  });
  node.replaceWith(element("div", "edit", area, button(word("save"), done, ""), button(word("cancel"), draw)));
  area.focus();
}

function retry(turn) {
  if (running) return;
  chat.leaf = turn.parent ?? null;
  answer(turn.speaker && isScene(chat) ? turn.speaker : "");
}

/** Who speaks next, who comes and goes, and who decides it. */
function drawDirect() {
  $("direct").hidden = !chat || !isScene(chat);
  if ($("direct").hidden) return;
  const there = present(chat);
  const speak = there.map((id) => {
    const node = button("", () => answer(id), "");
    node.append(face(nameOf(id), true), nameOf(id));
    return node;
  });
  const next = button(word("next"), () => answer(), "next");
  next.disabled = !there.length || chat.director === "manual";
  const moves = people.characters.map((one) => [there.includes(one.id) ? "leaves" : "enters", one]);
  const choices = moves.map(([event, one]) => [`${event}:${one.id}`, `${one.name} ${word(event)}`]);
  const door = picker("door", [["", word("door")], ...choices], "", (value) => {
    const [event, id] = value.split(":");
    addTurn(chat, chat.leaf, id, "", { event });
    save();
    draw();
  });
  const directors = ["natural", "round-robin", "model", "manual"].map((one) => [one, word(`director.${one}`)]);
  const director = picker("director", directors, chat.director ?? "natural", (value) => {
    chat.director = value;
    save();
    drawDirect();
    drawButtons();
  });
  $("direct").replaceChildren(next, ...speak, door, director);
}

function picker(label, choices, chosen, work) {
  const node = document.createElement("select");
  node.append(...choices.map(([value, text]) => new Option(text, value, false, value === chosen)));
  node.setAttribute("aria-label", word(`${label}Label`));
  node.addEventListener("change", () => { if (node.value) work(node.value); });
  return node;
}

function drawInfo() {
  if ($("info").hidden) return;
  const chosen = chat ? present(chat).map(character).filter(Boolean) : people.characters;
  const parts = chosen.map((one) => {
    const box = element("section", "", element("h2", "", face(one.name), one.name));
    if (one.aliases?.length) box.append(element("p", "", `${word("aliases")}: ${one.aliases.join(", ")}`));
    box.append(element("h3", "", word("persona")), element("p", "", one.persona || word("noPersona")));
    if (one.lore?.length) {
      const list = element("dl", "", ...one.lore.flatMap((entry) => [element("dt", "", (entry.keys ?? []).join(", ")), element("dd", "", entry.text)]));
      box.append(element("h3", "", word("lore")), list);
    }
    return box;
  });
  const setting = chat?.scenario || people.scenario;
  if (setting) parts.unshift(element("section", "", element("h2", "", word("scenario")), element("p", "", setting)));
  $("info").replaceChildren(...parts);
}

function drawButtons() {
  const busy = running !== null;
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  $("direct").inert = busy;
  $("language").textContent = word("language");
}

// -- saying and answering ----------------------------------------------------------------------------------------

function messages() {
  const found = path(chat).filter((turn) => turn.text && turn.end !== "fault").map((turn) => (turn.speaker === ""
    ? { role: "user", content: turn.text, ...(chat.me ? { name: chat.me } : {}) }
    : { role: "assistant", content: turn.text, name: turn.speaker }));
  return chat.scenario ? [{ role: "system", content: chat.scenario }, ...found] : found;
}

/** Let somebody answer: the model of the chat, or in a scene `speaker`. */
async function answer(speaker = "") {
  if (running || !chat) return;
  const own = chat;
  const [ask, body] = isScene(own)
    ? [step, { scene: sceneOf(own), ...(speaker ? { character: speaker } : {}) }]
    : [reply, { model: speaker || own.model, messages: messages() }];
  const isOpen = !speaker && (own.model === "auto" || isScene(own)); // the server decides who answers, and says why
  const turn = addTurn(own, own.leaf, speaker || (isOpen ? own.cast[0] : own.model), "");
  const controller = new AbortController();
  running = { controller, chat: own, turn };
  draw();
  try {
    const { end, events = [] } = await ask(body, {
      signal: controller.signal,
      onWho: ({ character: who, reason, confidence, lore }) => {
        turn.lore = lore;
        turn.speaker = who || turn.speaker;
        const sure = confidence > 0 && confidence < 1 ? ` (${Math.round(100 * confidence)} %)` : "";
        turn.why = isOpen && reason ? reason + sure : "";
        refresh(turn);
      },
      onPiece: (piece) => {
        turn.text += piece;
        write(turn);
      },
    });
    turn.end = end;
    const said = events.pop();
    if (said) Object.assign(turn, { event: said.event === "says" ? undefined : said.event, lore: said.lore ?? undefined, before: events });
  } catch (fault) {
    if (fault.name === "AbortError") turn.end = "stopped";
    else failed(fault, turn);
  } finally {
    running = null;
    if (!turn.text && turn.end !== "stop") dropTurn(own, turn);
    save();
    if (chat === own) draw();
    else drawButtons();
    drawSide();
  }
}

function failed(fault, turn) {
  if (turn.text) turn.end = "fault";
  toast(fault instanceof ApiFault ? fault.message : word("unreachable"));
  if (fault.status === 401) askKey();
}

function askKey() {
  const key = prompt(word("key"));
  if (key === null) return;
  localStorage.setItem("mrp.key", key.trim());
  start();
}

/** The text of the turn in the making, without drawing all others again. */
function write(turn) {
  const node = document.querySelector(`[data-turn="${CSS.escape(turn.id)}"] .text`);
  if (!node) return;
  const box = $("thread");
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 80;
  node.textContent = turn.text;
  if (atEnd) box.scrollTop = box.scrollHeight;
}

function refresh(turn) {
  const node = document.querySelector(`[data-turn="${CSS.escape(turn.id)}"]`);
  if (node) node.replaceWith(drawTurn(turn));
}

function halt() {
  running?.controller.abort();
}

$("compose").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("say").value.trim();
  if (running || !text) return;
  if (!chat) begin("auto");
  $("say").value = "";
  grow();
  addTurn(chat, chat.leaf, "", text);
  save();
  if (isScene(chat) && (chat.director === "manual" || !present(chat).length)) draw();
  else answer();
});

function grow() {
  $("say").style.height = "auto";
  $("say").style.height = `${$("say").scrollHeight + 2}px`;
}

$("say").addEventListener("input", grow);
$("say").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("compose").requestSubmit();
});
$("stop").addEventListener("click", halt);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("scene-dialog").open) halt();
  if (!event.altKey || !["ArrowUp", "ArrowDown"].includes(event.key)) return;
  const all = allChats();
  const next = all[all.indexOf(chat) + (event.key === "ArrowDown" ? 1 : -1)];
  if (next) open(next.id);
  event.preventDefault();
});

// -- scenes, files, looks ----------------------------------------------------------------------------------------

$("new-scene").addEventListener("click", () => {
  $("scene-cast").replaceChildren(...people.characters.map((one) => {
    const box = document.createElement("input");
    box.type = "checkbox";
    box.value = one.id;
    return element("label", "", box, face(one.name, true), one.name);
  }));
  $("scene-director").replaceChildren(...["natural", "round-robin", "model", "manual"].map((one) => new Option(word(`director.${one}`), one)));
  $("scene-fault").textContent = "";
  $("scene-dialog").showModal();
});
$("scene-begin").addEventListener("click", (event) => {
  const chosen = [...$("scene-cast").querySelectorAll("input:checked")].map((box) => box.value);
  if (chosen.length < 2) {
    event.preventDefault();
    $("scene-fault").textContent = word("twoAtLeast");
    return;
  }
  halt();
  chat = newChat(`scene:${chosen.join(",")}`, chosen, {
    scenario: $("scene-scenario").value.trim(), me: $("scene-me").value.trim(), director: $("scene-director").value,
  });
  save();
  draw();
});

$("export").addEventListener("click", () => {
  const link = element("a", "");
  link.href = URL.createObjectURL(new Blob([handOut()], { type: "application/json" }));
  link.download = "mrp-chats.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
$("import").addEventListener("click", () => $("import-file").click());
$("import-file").addEventListener("change", async () => {
  const count = takeIn(await $("import-file").files[0].text());
  $("import-file").value = "";
  toast(count ? `${count} ${word("imported")}` : word("badImport"));
  save();
  draw();
});

function paint(theme) {
  document.documentElement.dataset.theme = theme;
}
const dark = matchMedia("(prefers-color-scheme: dark)");
paint(localStorage.getItem("mrp.theme") || (dark.matches ? "dark" : "light"));
$("theme").addEventListener("click", () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("mrp.theme", theme);
  paint(theme);
});
$("language").addEventListener("click", () => {
  switchLanguage();
  writeWords();
  draw();
});
$("about").addEventListener("click", () => {
  $("info").hidden = !$("info").hidden;
  $("about").setAttribute("aria-expanded", String(!$("info").hidden));
  drawInfo();
});
$("open-side").addEventListener("click", () => $("side").classList.add("open"));
$("close-side").addEventListener("click", () => $("side").classList.remove("open"));

async function start() {
  try {
    people = await fetchCast();
  } catch (fault) {
    toast(fault instanceof ApiFault ? fault.message : word("unreachable"));
    if (fault.status === 401) askKey();
  }
  draw();
}

writeWords();
start();
