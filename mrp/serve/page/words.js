// Every word of the page, in English and Chinese.
const WORDS = {
  en: {
    skip: "Go to the text field", side: "Cast and chats", cast: "Cast", chats: "Chats", close: "Close", menu: "Open the menu",
    newScene: "New scene …", export: "Export", import: "Import", theme: "Light or dark", language: "中文", about: "Persona and lore",
    thread: "The conversation", direct: "Who speaks next", say: "What you say", send: "Send", stop: "Stop",
    hint: "Enter sends, Shift+Enter makes a new line, Esc stops. Alt+↑ and Alt+↓ go through the chats.",
    auto: "Whoever should answer", autoAbout: "The one whom you mean, or who fits best, answers.", whoPlays: "Who plays",
    scenario: "Scenario (where it is, what is going on)", yourName: "Your name in it (empty: you only watch and direct)",
    cancel: "Cancel", begin: "Begin", next: "▶ Next turn", retry: "↻ Retry", edit: "✎ Edit", copy: "Copy", copied: "copied", save: "Save",
    remove: "Delete this chat", removeSure: "Delete this chat for good?", you: "You", greeting: "Say something, or let somebody begin.",
    welcome: "Who shall answer?", twoAtLeast: "A scene needs two characters at least.", persona: "Persona", lore: "Lore", aliases: "Also called",
    noPersona: "No persona is written.", stopped: "stopped", cut: "cut off: the reply was too long", key: "This server wants an API key:",
    unreachable: "The server cannot be reached", badImport: "This file holds no chats of this page", imported: "chats brought in",
    silent: "(said nothing)", earlier: "Earlier version", later: "Later version", scene: "Scene", chatWith: "chat",
    enters: "comes in", leaves: "leaves", door: "Come and go …", doorLabel: "Who comes in or leaves", directorLabel: "Who decides who speaks next",
    "director.natural": "by mention or lot", "director.round-robin": "in turn", "director.model": "the model decides", "director.manual": "I decide",
    full: "The browser has no room left: export and delete old chats",
  },
  zh: {
    skip: "跳到输入框", side: "角色与对话", cast: "角色", chats: "对话", close: "关闭", menu: "打开菜单",
    newScene: "新场景…", export: "导出", import: "导入", theme: "明暗", language: "English", about: "人设与设定",
    thread: "对话内容", direct: "下一个谁说话", say: "你要说的话", send: "发送", stop: "停止",
    hint: "回车发送，Shift+回车换行，Esc 停止。Alt+↑ 与 Alt+↓ 切换对话。",
    auto: "谁该回答就谁来", autoAbout: "你叫到谁，或者谁最合适，谁就回答。", whoPlays: "谁出场",
    scenario: "情境（在哪里，发生什么）", yourName: "你在其中的名字（留空：只看和导演）",
    cancel: "取消", begin: "开始", next: "▶ 下一句", retry: "↻ 重来", edit: "✎ 修改", copy: "复制", copied: "已复制", save: "保存",
    remove: "删除这个对话", removeSure: "确定删除这个对话吗？", you: "你", greeting: "说点什么，或者让谁先开口。",
    welcome: "让谁来回答？", twoAtLeast: "场景至少要有两个角色。", persona: "人设", lore: "设定", aliases: "又名",
    noPersona: "没有写人设。", stopped: "已停止", cut: "回复太长，被截断", key: "这个服务器需要 API 密钥：",
    unreachable: "连不上服务器", badImport: "这个文件里没有本页的对话", imported: "个对话已导入",
    silent: "（没有说话）", earlier: "上一个版本", later: "下一个版本", scene: "场景", chatWith: "对话",
    enters: "上场", leaves: "离开", door: "上场与离开…", doorLabel: "谁上场，谁离开", directorLabel: "谁来决定下一个说话的人",
    "director.natural": "看提到谁，或抽签", "director.round-robin": "轮流", "director.model": "模型决定", "director.manual": "我来决定",
    full: "浏览器存满了：请导出并删除旧对话",
  },
};

let language = localStorage.getItem("mrp.language") || (navigator.language.startsWith("zh") ? "zh" : "en");

export const word = (key) => WORDS[language][key] ?? key;

/** Write the words into everything that names one: `data-text` as its text, `data-label` for those who listen. */
export function writeWords(root = document) {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of root.querySelectorAll("[data-text]")) node.textContent = word(node.dataset.text);
  for (const node of root.querySelectorAll("[data-label]")) {
    node.setAttribute("aria-label", word(node.dataset.label));
    if (node.matches("button")) node.title = word(node.dataset.label);
    if (node.matches("textarea")) node.placeholder = word(node.dataset.label);
  }
}

export function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  localStorage.setItem("mrp.language", language);
}
