// A face for everybody: a picture made from the name, the same each time.
const SPACE = "http://www.w3.org/2000/svg";

function number(name) {
  let value = 2166136261;
  for (const sign of name) value = Math.imul(value ^ sign.codePointAt(0), 16777619) >>> 0;
  return value;
}

const make = (tag, attributes) => {
  const node = document.createElementNS(SPACE, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
};

/** One or two letters of a name: the first of its first and last word; of a Chinese name the last sign. */
export function initials(name) {
  const signs = [...name.trim()];
  if (signs.some((sign) => /\p{Script=Han}/u.test(sign))) return signs.filter((sign) => /\p{Script=Han}/u.test(sign)).at(-1);
  const words = name.trim().split(/\s+/).filter(Boolean);
  return words.length ? [...new Set([words[0], words.at(-1)])].map((w) => [...w][0].toUpperCase()).join("") : "?";
}

export function face(name, small = false) {
  const seed = number(name);
  const hue = (seed >>> 7) % 360;
  const svg = make("svg", { viewBox: "0 0 40 40", class: small ? "face small" : "face", "aria-hidden": "true" });
  svg.append(
    make("circle", { cx: 20, cy: 20, r: 20, fill: `hsl(${hue} 45% 42%)` }),
    make("circle", { cx: 8 + (seed >> 9) % 24, cy: 36, r: 9 + (seed >> 14) % 10, fill: `hsl(${(hue + 40) % 360} 50% 36%)` }),
  );
  const text = make("text", { x: 20, y: 20, "text-anchor": "middle", "dominant-baseline": "central", fill: "#fff", "font-size": 16, "font-family": "system-ui, sans-serif", "font-weight": 600 });
  text.textContent = initials(name);
  svg.append(text);
  return svg;
}
