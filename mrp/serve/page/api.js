// The server's own public API, as any OpenAI client uses it. Addresses are relative, so a proxy may put the page anywhere.
export class ApiFault extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const headers = () => {
  const key = localStorage.getItem("mrp.key");
  return key ? { Authorization: `Bearer ${key}` } : {};
};

async function answered(response) {
  if (response.ok) return response;
  let text = response.statusText || `HTTP ${response.status}`;
  try {
    text = (await response.json()).error.message || text;
  } catch {
    // not the API's own error: a proxy's page, say
  }
  throw new ApiFault(text, response.status);
}

export async function cast() {
  return (await answered(await fetch("v1/cast", { headers: headers() }))).json();
}

/** The events of a streamed answer. One that says that the reply broke off is told as a fault. */
async function* streamed(path, body, signal) {
  const response = await answered(await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers() },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  }));
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ApiFault(event.error.message);
    yield event;
  }
}

/**
 * One reply, piece by piece. `onPiece(text)` hears each piece, `onWho({character, reason, confidence})` who answers, as
 * soon as it is known. Returns {end: finish_reason}. A stream that ends without one was cut off, and is told as a fault.
 */
export async function reply(body, { onPiece, onWho, signal }) {
  let end = "";
  let told = false;
  for await (const event of streamed("v1/chat/completions", body, signal)) {
    if (event.mrp && !told) {
      told = true;
      onWho(event.mrp);
    }
    const choice = event.choices && event.choices[0];
    // the first chunk of `auto` holds the speaker's name, for clients that show nothing but the text
    if (choice && choice.delta && choice.delta.content && !choice.delta.role) onPiece(choice.delta.content);
    if (choice && choice.finish_reason) end = choice.finish_reason;
  }
  if (!end) throw new ApiFault("the reply was cut off by the server");
  return { end };
}

/** The next turn of a scene, in the same way. Returns {end, events}: all that happened in it, the turn last. */
export async function step(body, { onPiece, onWho, signal }) {
  let last = null;
  for await (const event of streamed("v1/scenes/step", body, signal)) {
    if (event.type === "turn.begin") onWho(event.mrp);
    if (event.type === "turn.delta") onPiece(event.text);
    if (event.type === "turn.end") last = event;
  }
  if (!last) throw new ApiFault("the reply was cut off by the server");
  return { end: last.finish_reason, events: last.events };
}

/** The `data:` of each server-sent event, whatever way the bytes are cut. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      waiting += value.replaceAll("\r\n", "\n");
      const parts = waiting.split("\n\n");
      waiting = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
