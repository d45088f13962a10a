"""The cast, who would answer, and scenes: what is kept, who hears what, and whose turn it is."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from scripted import CAST, ScriptedPlayer, scripted
from serving import Running, echoing, serving, with_gate

from mrp.serve.service import ServeOptions

BOTH = {"characters": ["wukong", "Pigsy"], "scenario": "At the inn."}


def post(server: Running, path: str, status: int = 200, **body: Any) -> Any:
    answer = httpx.post(f"{server.url}/v1{path}", json=body, timeout=20)
    assert answer.status_code == status, answer.text
    return answer.json()


def said(player: ScriptedPlayer, number: int = -1) -> str:
    text = str(player.tokenizer.decode(player.engine.prompts[number]))
    return text.replace("<|im_start|>", "[").replace("<|im_end|>\n", "]")


def test_the_cast_is_shown_with_its_personas() -> None:
    with serving(scripted(CAST)) as server:
        answer = httpx.get(f"{server.url}/v1/cast").json()
    first = answer["characters"][0]
    assert [c["id"] for c in answer["characters"]] == ["wukong", "bajie", "tang"]
    assert (first["persona"], first["aliases"]) == ("You are Sun Wukong, proud and quick.", ["Monkey King"])


def test_who_would_answer_is_told_without_an_answer() -> None:
    player = scripted(CAST)
    with serving(player) as server:

        def route(text: str, **more: Any) -> str:
            return str(post(server, "/route", messages=[{"role": "user", "content": text}], **more)["character"])

        assert route("Pigsy, are you hungry?") == "bajie"
        assert route("And you?", current="tang") == "tang"
        assert route("Pigsy, are you hungry?", candidates=["wukong", "tang"]) == "wukong"
        assert post(server, "/route", 404, messages=[{"role": "user", "content": "x"}], candidates=["nobody"])
    assert not player.engine.prompts


def test_a_scene_is_played_and_kept() -> None:
    player = scripted(CAST, "Halt!", "Buns?", "Good evening to you, old man.")
    with serving(player) as server:
        scene = post(server, "/scenes", 201, **BOTH)
        assert scene["characters"] == scene["present"] == ["wukong", "bajie"]
        turns = [post(server, f"/scenes/{scene['id']}/step")["turn"] for _ in range(2)]
        assert [(t["speaker"], t["text"]) for t in turns] == [("wukong", "Halt!"), ("bajie", "Buns?")]
        post(server, f"/scenes/{scene['id']}/lines", speaker="An old man", text="Good evening.")
        third = post(server, f"/scenes/{scene['id']}/step", character="Monkey King")
        assert third["usage"]["prompt_tokens"] == len(player.engine.prompts[2])
        state = httpx.get(f"{server.url}/v1/scenes/{scene['id']}").json()
        assert [t["speaker"] for t in state["turns"]] == ["wukong", "bajie", "An old man", "wukong"]
        assert state["present"] == ["wukong", "bajie", "An old man"]
        assert httpx.delete(f"{server.url}/v1/scenes/{scene['id']}").status_code == 204
        assert httpx.get(f"{server.url}/v1/scenes/{scene['id']}").status_code == 404
    assert said(player, 1).endswith("\n\nAt the inn.][user\nHalt!][assistant\n")
    assert said(player, 2).endswith("][assistant\nHalt!][user\nBuns?\nAn old man: Good evening.][assistant\n")


def test_a_character_hears_only_what_is_said_while_it_is_there() -> None:
    player = scripted(CAST, "Who is it?", "Buns!")
    with serving(player) as server:
        path = f"/scenes/{post(server, '/scenes', 201, **BOTH)['id']}"
        post(server, f"{path}/lines", speaker="wukong", text="A secret.")
        post(server, f"{path}/join", speaker="tang")
        post(server, f"{path}/lines", speaker="bajie", text="Master!")
        post(server, f"{path}/step", character="tang")
        post(server, f"{path}/leave", speaker="bajie")
        post(server, f"{path}/lines", speaker="wukong", text="The pig is a fool.")
        post(server, f"{path}/step", 400, character="bajie")
        post(server, f"{path}/join", speaker="bajie")
        post(server, f"{path}/step", character="bajie")
    assert said(player, 0).endswith("At the inn.][user\nZhu Bajie: Master!][assistant\n")
    assert "A secret." in said(player, 1)
    assert "fool" not in said(player, 1)
    assert "Tang Sanzang: Who is it?" in said(player, 1)


def test_a_client_may_keep_the_state_itself() -> None:
    player = scripted(CAST, "Buns?", "Buns?")
    with serving(player) as server:
        turns = [{"speaker": "wukong", "text": "Halt!"}]
        answer = post(server, "/scenes/step", scene={**BOTH, "turns": turns}, seed=3)
        kept = post(server, "/scenes", 201, **BOTH, turns=turns)
        post(server, f"/scenes/{kept['id']}/step", seed=3)
    assert answer["turn"] == {"speaker": "bajie", "text": "Buns?", "event": "says"}
    assert player.engine.prompts[0] == player.engine.prompts[1]
    assert player.engine.samplings[0].seed == 3


def test_a_turn_can_be_streamed() -> None:
    with serving(scripted(CAST, "Halt, all of you!")) as server:
        scene = post(server, "/scenes", 201, **BOTH)
        answer = httpx.post(f"{server.url}/v1/scenes/{scene['id']}/step", json={"stream": True})
        events = [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: ")]
        state = httpx.get(f"{server.url}/v1/scenes/{scene['id']}").json()
    assert events[0]["mrp"]["character"] == "wukong"
    assert "".join(e["text"] for e in events[1:-1]) == "Halt, all of you!"
    assert events[-1]["type"] == "turn.end"
    assert state["turns"] == [events[-1]["turn"]]


def test_a_turn_that_breaks_off_is_not_part_of_the_scene_and_can_be_had_again() -> None:
    player = echoing()
    player.engine.fails_at = 2
    with serving(player) as server:
        scene = post(server, "/scenes", 201, **BOTH, turns=[{"speaker": "wukong", "text": "Halt, all of you!"}])
        text = httpx.post(f"{server.url}/v1/scenes/{scene['id']}/step", json={"stream": True}).text
        assert '"error"' in text
        assert "turn.end" not in text
        post(server, f"/scenes/{scene['id']}/step", 500)
        player.engine.fails_at = None
        assert post(server, f"/scenes/{scene['id']}/step")["turn"]["speaker"] == "bajie"
        assert len(httpx.get(f"{server.url}/v1/scenes/{scene['id']}").json()["turns"]) == 2


def test_one_turn_at_a_time() -> None:
    player = with_gate(echoing())
    with serving(player, ServeOptions(max_running=4)) as server, ThreadPoolExecutor(1) as pool:
        scene = post(server, "/scenes", 201, **BOTH, turns=[{"speaker": "wukong", "text": "Halt!"}])
        first = pool.submit(post, server, f"/scenes/{scene['id']}/step")
        server.wait_for(lambda: player.engine.running == 1)
        assert post(server, f"/scenes/{scene['id']}/step", 409)["error"]["code"] == "scene_busy"
        assert post(server, f"/scenes/{scene['id']}/lines", 409, speaker="x", text="y")
        player.engine.gate.release(10_000)  # type: ignore[union-attr]
        assert first.result()["turn"]["text"] == "Halt!"


def test_what_cannot_be_a_scene_is_named() -> None:
    with serving(scripted(CAST)) as server:
        assert "did you mean 'wukong'" in post(server, "/scenes", 400, characters=["wukon"])["error"]["message"]
        post(server, "/scenes", 400, characters=[])
        assert post(server, "/scenes", 400, **BOTH, turns=[{"speaker": "tang", "text": "x"}])["error"]["param"]
        assert post(server, "/scenes", 400, **BOTH, turns=[{"speaker": "wukong", "text": " "}])["error"]["param"]
        assert post(server, "/scenes", 400, **BOTH, turns=[{"speaker": "a\nb", "text": "x"}])["error"]["param"]
        scene = post(server, "/scenes", 201, **BOTH)
        post(server, f"/scenes/{scene['id']}/leave", 400, speaker="tang")
        for speaker in ("wukong", "bajie"):
            post(server, f"/scenes/{scene['id']}/leave", speaker=speaker)
        assert post(server, f"/scenes/{scene['id']}/step", 400)["error"]["code"] == "scene_empty"
    with serving(scripted(None)) as server:
        post(server, "/scenes", 404, characters=["wukong"])
