"""Does SillyTavern work with `mrp serve`: the program itself, driven through its own page in a headless Chromium?

    npm install --prefix FOLDER sillytavern
    python benchmarks/client_sillytavern.py RUN --sillytavern FOLDER/node_modules/sillytavern [--pictures FOLDER]

SillyTavern (AGPL, from npm; node 20 or newer) is started on the loopback with a data folder of its own. Then what a
user does: the plug, "Chat Completion", "Custom (OpenAI-compatible)", the address, a key, Connect, a character as the
model, a line. RUN is served on the loopback with that key. Exits with 1 if a check fails; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from client_litellm import served
from playwright.sync_api import sync_playwright
from serve_soak import free_port

LINE = "Who are you?"
KEY = "a-key-for-this-run-alone"
CHARACTER = "wukong"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("--sillytavern", type=Path, required=True, metavar="FOLDER", help="with its server.js")
    options.add_argument("--pictures", type=Path, help="leave a screenshot here")
    given = options.parse_args()
    os.environ["MRP_API_KEY"] = KEY
    with served(given.run, None) as url, sillytavern(given.sillytavern) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        page.goto(address)
        checks = connect(page, url) | talk(page)
        if given.pictures:
            given.pictures.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=given.pictures / "sillytavern.png")
        counted = httpx.get(url.removesuffix("/v1") + "/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
        checks["the reply was made here"] = f'character="{CHARACTER}"' in counted
        browser.close()
    for name, is_good in checks.items():
        print(f"{'ok    ' if is_good else 'FAILED'} {name}")
    version = json.loads((given.sillytavern / "package.json").read_text(encoding="utf-8"))["version"]
    print(json.dumps({"checks": checks, "sillytavern": version}))
    return 0 if all(checks.values()) else 1


def connect(page: Any, url: str) -> dict[str, bool]:
    """What a user does once."""
    page.wait_for_selector("#preloader", state="detached")
    page.locator("dialog[open] .popup-button-ok").click()  # the welcome, of a new data folder
    page.wait_for_selector("dialog[open]", state="detached")
    page.click("#sys-settings-button .drawer-toggle")
    page.select_option("#main_api", "openai")
    page.select_option("#chat_completion_source", "custom")
    page.fill("#custom_api_url_text", url)
    page.fill("#api_key_custom", KEY)
    page.click("#api_button_openai")
    page.wait_for_selector(f"#model_custom_select option[value={CHARACTER}]", state="attached")
    models = page.locator("#model_custom_select option").all_inner_texts()
    page.select_option("#model_custom_select", CHARACTER)
    page.wait_for_function(f"document.getElementById('custom_model_id').value == '{CHARACTER}'")
    state = page.locator(".online_status_text:visible").all_inner_texts()
    page.click("#sys-settings-button .drawer-toggle")
    return {"the characters are its models": {CHARACTER, "auto"} <= set(models), "connected": "Valid" in state}


def talk(page: Any) -> dict[str, bool]:
    """Say a line; watch the reply grow."""
    page.fill("#send_textarea", LINE)
    page.press("#send_textarea", "Enter")
    reply = page.locator("#chat .mes[is_user=false] .mes_text").last
    seen: set[str] = set()
    until = time.monotonic() + 120
    page.wait_for_selector("#mes_stop:visible")
    while page.locator("#mes_stop:visible").count() and time.monotonic() < until:
        seen.add(reply.inner_text() if reply.count() else "")
        page.wait_for_timeout(50)
    text = reply.inner_text()
    grown = {part for part in seen if part and text.startswith(part)}
    said = page.locator("#chat .mes[is_user=true] .mes_text").all_inner_texts()
    print(f"{LINE}\n  {text}")
    return {"the line stands": said == [LINE], "a reply": len(text) > 3, "it streamed": len(grown) > 2}


@contextmanager
def sillytavern(folder: Path) -> Iterator[str]:
    """The address of SillyTavern, with nothing saved in it."""
    port = free_port()
    address = f"http://127.0.0.1:{port}/"
    with tempfile.TemporaryDirectory() as home:
        command = ["node", "server.js", "--port", str(port), "--dataRoot", f"{home}/data", "--listen", "false"]
        command += ["--configPath", f"{home}/config.yaml", "--browserLaunchEnabled", "false"]
        started = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not answers(address):
                if started.poll() is not None:
                    raise SystemExit("SillyTavern ended: run `node server.js` by hand to see why")
                time.sleep(0.5)
            yield address
        finally:
            started.terminate()
            started.wait(30)


def answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    sys.exit(main())
