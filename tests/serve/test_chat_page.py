"""The page, in a real browser against a real server: chat, branches, scenes, files, looks; nothing from elsewhere."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripted import CAST, ScriptedPlayer, scripted
from serving import Running, serving

from mrp.lore import LoreEntry
from mrp.play.engine import Request, Token
from mrp.serve.keys import add_key, load_keys
from mrp.serve.page_files import FILES

sync_api = pytest.importorskip("playwright.sync_api", reason="only on machines with playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = os.environ.get("MRP_AXE")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="only on machines with a Chromium")
NAMELESS = """[...document.querySelectorAll('button,textarea,input,select,nav,aside')]
    .filter(node => node.checkVisibility() && !node.textContent.trim() && !node.getAttribute('aria-label'))
    .map(node => node.id || node.className)"""
sync_api.expect.set_options(timeout=20_000)  # for slow machines
DESKTOP, PHONE = (1280, 800), (390, 780)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def page_of(browser: Any, server: Running, size: tuple[int, int] = DESKTOP, **options: Any) -> Iterator[Any]:
    """The opened page. Fails on an error in the console, and on any request to another place."""
    viewport = {"width": size[0], "height": size[1]}
    context = browser.new_context(viewport=viewport, **({"locale": "en-US"} | options))
    page = context.new_page()
    faults: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.set_default_timeout(20_000)
    page.goto(server.url)
    page.wait_for_selector("#cast li", state="attached")
    yield page
    context.close()
    assert not [text for text in faults if "401" not in text]
    assert all(url.startswith((server.url, "blob:", "data:")) for url in asked), asked


def say(page: Any, text: str) -> None:
    page.fill("#say", text)
    page.keyboard.press("Enter")
    settled(page)


def settled(page: Any) -> None:
    page.wait_for_selector("#send:not([hidden])")
    page.wait_for_selector(".writing", state="detached")


def texts(page: Any) -> list[str]:
    return [str(text) for text in page.locator("#thread .text").all_inner_texts()]


def names(page: Any) -> list[str]:
    return [str(text) for text in page.locator("#thread .who span:first-child").all_inner_texts()]


def choose(page: Any, character: str) -> None:
    page.click(f"#cast [data-character={character}]")


def tool(page: Any, turn: int, label: str) -> None:
    node = page.locator("#thread .turn").nth(turn)
    node.hover()
    node.locator(".tools button", has_text=label).click()
    settled(page)


def test_a_chat_with_retry_edit_and_branches(browser: Any) -> None:
    player = scripted(CAST, "I am <b>Monkey</b>.", "Who asks?", "A peach!")
    with serving(player) as server, page_of(browser, server) as page:
        choose(page, "wukong")
        assert texts(page) == ["Ha! Who calls Old Monkey?"]  # the greeting
        say(page, "Who are you?")
        assert texts(page)[1:] == ["Who are you?", "I am <b>Monkey</b>."]  # as text, never as markup
        assert page.locator("#thread b").count() == 0
        assert names(page) == ["Sun Wukong", "You", "Sun Wukong"]
        assert page.locator(".who .why").count() == 0  # the person chose
        tool(page, 2, "Retry")
        assert texts(page)[2] == "Who asks?" and "2/2" in page.locator("#thread .turn").nth(2).inner_text()
        tool(page, 2, "‹")
        assert texts(page)[2] == "I am <b>Monkey</b>."
        page.locator("#thread .turn").nth(1).hover()
        page.locator("#thread .turn").nth(1).locator("button", has_text="Edit").click()
        page.fill(".edit textarea", "What is in your hand?")
        page.keyboard.press("Enter")
        sync_api.expect(page.locator("#thread")).to_contain_text("A peach!")
        settled(page)
        assert texts(page) == ["Ha! Who calls Old Monkey?", "What is in your hand?", "A peach!"]
        page.reload()  # the chats stay in the browser
        page.click("#chats li button")
        assert texts(page)[-1] == "A peach!"


def test_the_page_sends_what_the_terminal_would(browser: Any) -> None:
    from mrp.play.conversation import Conversation

    player = scripted(CAST, "One.", "Two.")
    with serving(player) as server, page_of(browser, server) as page:
        choose(page, "bajie")
        say(page, "Hello.")
        say(page, "And now?")
    chat = Conversation(player, ["bajie"])
    for speaker, text in ((None, "Hello."), ("bajie", "One."), (None, "And now?")):
        chat.say(text, speaker)
    assert player.engine.prompts[-1] == chat.prompt("bajie")


def test_who_answers_and_why(browser: Any) -> None:
    player = scripted(CAST, "Food?")
    with serving(player) as server, page_of(browser, server) as page:
        choose(page, "auto")
        say(page, "Pigsy, are you hungry?")
        assert names(page)[-1] == "Zhu Bajie"
        assert page.locator(".who .why").inner_text() == "'pigsy' is called at the start"


def test_a_scene_goes_on_is_directed_and_joined(browser: Any) -> None:
    player = scripted(CAST, "A tiger!", "Run!", "Peace.", "Yes, Master.")
    with serving(player) as server, page_of(browser, server) as page:
        page.click("#new-scene")
        page.click("#scene-begin")
        assert "two characters" in page.locator("#scene-fault").inner_text()
        for number in range(3):
            page.locator("#scene-cast input").nth(number).check()
        page.fill("#scene-scenario", "A dark wood.")
        page.fill("#scene-me", "Guanyin")
        page.click("#scene-begin")
        page.click("#direct .next")
        settled(page)
        page.locator("#direct button", has_text="Tang Sanzang").click()
        settled(page)
        say(page, "Be calm.")
        assert texts(page) == ["A tiger!", "Run!", "Be calm.", "Peace."]
        assert names(page)[1:3] == ["Tang Sanzang", "Guanyin"]
    last = player.tokenizer.decode(player.engine.prompts[-1])
    assert "A dark wood." in last and "Guanyin: Be calm." in last


def test_in_a_scene_one_comes_and_goes_and_the_person_decides_who_speaks(browser: Any) -> None:
    staff = LoreEntry(keys=["staff"], text="It weighs 13,500 jin.")
    player = scripted(CAST.model_copy(update={"lore": [staff]}), "A staff!", "Heavy.", "")
    with serving(player) as server, page_of(browser, server) as page:
        page.click("#new-scene")
        for number in range(2):
            page.locator("#scene-cast input").nth(number).check()
        page.select_option("#scene-director", "manual")
        page.click("#scene-begin")
        assert page.locator("#direct .next").is_disabled()
        page.locator("#direct button", has_text="Sun Wukong").click()
        settled(page)
        page.select_option("#direct select >> nth=0", label="Tang Sanzang comes in")
        page.locator("#direct button", has_text="Tang Sanzang").click()
        settled(page)
        page.select_option("#direct select >> nth=0", label="Sun Wukong leaves")
        assert page.locator("#direct button", has_text="Sun Wukong").count() == 0
        page.locator("#direct button", has_text="Zhu Bajie").click()
        settled(page)
        said = ["A staff!", "Tang Sanzang comes in", "Heavy.", "Sun Wukong leaves", "(said nothing)"]
        assert texts(page) == said
        assert "staff" in page.locator("#thread .turn:last-child .why").last.inner_text()
    monk, pig = (str(player.tokenizer.decode(player.engine.prompts[k])) for k in (1, 2))
    assert "staff" not in monk  # he was not there yet
    assert "A staff!" in pig and "13,500 jin" in pig


class Slow:
    """An engine that goes on until it is closed."""

    def __init__(self, player: ScriptedPlayer) -> None:
        self.ids, self.closed = player.template.plain.ids("on ", ""), False

    def stream(self, request: Request) -> Iterator[Token]:
        del request
        try:
            for token in itertools.cycle(self.ids):
                time.sleep(0.01)
                yield Token(token)
        finally:
            self.closed = True

    def score(self, ids: Any, continuations: Any, voice: str | None = None) -> list[list[float]]:
        raise NotImplementedError

    def close(self) -> None:
        pass


def test_stop_ends_the_reply_here_and_on_the_server(browser: Any) -> None:
    player: Any = scripted(CAST, max_new_tokens=1000)
    engine = Slow(player)
    object.__setattr__(player, "engine", engine)
    with serving(player) as server, page_of(browser, server) as page:
        choose(page, "tang")
        page.fill("#say", "Pray.")
        page.keyboard.press("Enter")
        sync_api.expect(page.locator(".writing")).to_contain_text("on on on")
        page.keyboard.press("Escape")
        settled(page)
        assert "stopped" in page.locator("#thread .turn:last-child .tools").inner_text()
        server.wait_until_idle()
        assert engine.closed


def test_chats_go_out_and_come_back(browser: Any, tmp_path: Path) -> None:
    player = scripted(CAST, "Amitabha.")
    with serving(player) as server:
        with page_of(browser, server) as page:
            choose(page, "tang")
            say(page, "Bless me.")
            with page.expect_download() as waiting:
                page.click("#export")
            waiting.value.save_as(tmp_path / "chats.json")
        kept = json.loads((tmp_path / "chats.json").read_text(encoding="utf-8"))
        assert kept["format"] == "mrp-chats" and len(kept["chats"]) == 1
        (tmp_path / "other.json").write_text('{"chats": [{"id": 7}]}', encoding="utf-8")
        with page_of(browser, server) as page:
            page.set_input_files("#import-file", tmp_path / "other.json")
            sync_api.expect(page.locator("#toast")).to_contain_text("no chats")
            page.set_input_files("#import-file", tmp_path / "chats.json")
            page.click("#chats li button")
            assert texts(page) == ["Bless me.", "Amitabha."]


def test_a_key_is_asked_for(browser: Any, tmp_path: Path) -> None:
    player = scripted(CAST, "Welcome.")
    key = add_key(tmp_path / "keys", "me")
    with serving(player, keys=load_keys(tmp_path / "keys")) as server:
        context = browser.new_context(locale="en-US")
        page = context.new_page()
        page.on("dialog", lambda dialog: dialog.accept(key))
        page.goto(server.url)
        page.wait_for_selector("#cast [data-character=wukong]")
        choose(page, "bajie")
        say(page, "Hello.")
        assert texts(page) == ["Hello.", "Welcome."]
        context.close()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_runs_over_the_edge_and_all_has_a_name(browser: Any, size: tuple[int, int]) -> None:
    player = scripted(CAST, "long" * 200)
    with serving(player) as server, page_of(browser, server, size, color_scheme="dark", locale="zh-CN") as page:
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        if size == PHONE:
            page.click("#open-side")
        choose(page, "wukong")
        say(page, "很长")
        page.click("#about")
        assert "proud and quick" in page.locator("#info").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert page.evaluate(NAMELESS) == []


@pytest.mark.skipif(not AXE, reason="only on machines with axe-core (npm): MRP_AXE names its axe.min.js")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing(browser: Any, size: tuple[int, int], scheme: str) -> None:
    """Every view: welcome, chat with persona and lore, the dialog of a new scene, a scene."""
    faults: list[str] = []
    # the page's own policy lets no script of others in, and axe is one
    policy = {"color_scheme": scheme, "bypass_csp": True}
    with serving(scripted(CAST, "Ha!", "Halt!")) as server, page_of(browser, server, size, **policy) as page:
        page.add_script_tag(path=AXE)

        def look(view: str) -> None:
            page.wait_for_timeout(300)  # until nothing fades any more
            found = page.evaluate("axe.run()")
            assert len(found["passes"]) > 20
            faults.extend(f"{view}: {one['id']}: {one['nodes'][0]['html']}" for one in found["violations"])

        look("welcome")
        page.click(".welcome .faces button:nth-child(2)")
        say(page, "Who are you?")
        page.click("#about")
        look("chat")
        page.evaluate("document.getElementById('about').click()")
        page.evaluate("document.getElementById('new-scene').click()")
        look("dialog")
        for number in range(2):
            page.locator("#scene-cast input").nth(number).check()
        page.click("#scene-begin")
        page.click("#direct .next")
        settled(page)
        page.select_option("#direct select >> nth=0", label="Tang Sanzang comes in")
        look("scene")
    assert not faults


def test_the_files_carry_a_policy_and_name_no_other_place() -> None:
    with serving(scripted(CAST)) as server:
        for path in ("/", *(f"/page/{name}" for name in FILES)):
            answer = httpx.get(server.url + path)
            assert answer.status_code == 200
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            others = [word for word in answer.text.split() if "//" in word and "http" in word and "w3.org" not in word]
            assert not others, (path, others)
