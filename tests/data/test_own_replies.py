"""The base's own replies: what it says greedily, kept as it comes, and asked for once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from heard import Heard
from tiny_models import save_base

from mrp.cast import OTHER, PLAIN, Cast, Character
from mrp.data import own_replies as module
from mrp.data.own_replies import REPLIES, greedy, own_replies
from mrp.data.samples import Sample
from mrp.data.view import USER, Message
from mrp.dialogue import Turn
from mrp.models.load import Hardware, load_model, load_tokenizer, set_threads
from mrp.play.embedded import TransformersEngine
from mrp.play.engine import Request, Sampling
from mrp.render import ChatTemplate, render_sample
from mrp.report import Progress

PROMPTS = ["Who?", "What is 17 times 6?", "Why is the sky blue, and the sea?", "你好", "List five fruits. " * 6, "Hm."]
LONGEST = 24


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base, made to end some of its replies early."""
    import torch
    from safetensors.torch import load_file, save_file

    set_threads(1)
    folder = save_base(tmp_path_factory.mktemp("replying-base"))
    weights = load_file(folder / "model.safetensors")
    end = load_tokenizer(folder).convert_tokens_to_ids("<|im_end|>")
    head = weights["lm_head.weight"]
    with torch.no_grad():
        head[end] *= 2.5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def loaded(base: Path) -> tuple[Any, Hardware, ChatTemplate]:
    import torch

    on = Hardware("cpu", torch.float32, None)
    return load_model(base, on), on, ChatTemplate(load_tokenizer(base))


class Killed(Exception):
    """Stands for whatever ends a process in the middle of its work."""


class KilledAfter(Heard):
    """A reporter that ends the work after so many steps of a progress, and counts them."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left, self.asked = steps, 0.0

    @contextmanager
    def progress(self, label: str, total: float, unit: str) -> Iterator[Progress]:
        assert (label, unit) == ("asking the base", "replies")

        def update(done: float, **shown: object) -> None:
            assert done <= total and not shown
            self.asked = done
            self.left -= 1
            if self.left == 0:
                raise Killed

        yield update


def said(scenes: list[Any]) -> list[tuple[str, str]]:
    return [(scene.turns[0].text, scene.turns[1].text) for scene in scenes]


def test_replies_in_a_batch_are_those_that_the_engine_gives_one_by_one(
    loaded: tuple[Any, Hardware, ChatTemplate],
) -> None:
    model, on, template = loaded
    prompts = [template.prompt([Message(USER, prompt)]) for prompt in PROMPTS]
    assert len({len(ids) for ids in prompts}) > 3  # so there is padding
    stops = template.stop_ids()
    engine, sampling = TransformersEngine(model, on), Sampling(0, 1, LONGEST)
    alone = [[token.id for token in engine.stream(Request(ids, sampling, stops))] for ids in prompts]
    together = greedy(model, on, prompts, stops, LONGEST)
    assert [ids for ids, _ in together] == alone
    assert [cut for _, cut in together] == [len(ids) == LONGEST for ids in alone]
    assert {cut for _, cut in together} == {True, False}  # both kinds are here


def test_a_whole_reply_becomes_a_scene_of_nobody_and_a_cut_one_is_told(base: Path, tmp_path: Path) -> None:
    heard = Heard()
    scenes = own_replies(base, PROMPTS, tmp_path, heard, LONGEST, batch=4)
    rows = [json.loads(line) for line in (tmp_path / REPLIES).read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == PROMPTS
    whole = [(row["prompt"], row["reply"]) for row in rows if row["reply"] and not row["cut"]]
    assert 0 < len(whole) < len(PROMPTS)
    assert said(scenes) == whole
    assert f"{len(whole)} of {len(PROMPTS)} used ({sum(row['cut'] for row in rows)} not at an end" in heard.lines[0]
    for scene in scenes:
        assert (scene.speakers(), set(scene.participants), scene.scenario) == ([OTHER, PLAIN], {OTHER, PLAIN}, "")
        assert PROMPTS[int(scene.source.removeprefix("own-replies:")) - 1] == scene.turns[0].text
    assert len({scene.id for scene in scenes}) == len(scenes)


def test_the_base_was_asked_what_training_will_show(
    base: Path, loaded: tuple[Any, Hardware, ChatTemplate], tmp_path: Path
) -> None:
    """Law 2: the prompt of a reply is the beginning of the sample that learns it."""
    template = loaded[2]
    cast = Cast(scenario="Night.", characters=[Character(id="a", name="Ann")])
    for scene in own_replies(base, PROMPTS, tmp_path, max_new_tokens=LONGEST):
        turns, loss = scene.turns, (False, True)
        sample = Sample("s", PLAIN, scene.id, scene.participants, turns, loss, scene.source, scene.scenario)
        (rendered,), _ = render_sample(template, cast, sample)
        assert rendered.loss.index(True) == len(template.prompt([Message(USER, turns[0].text)]))
        assert rendered.input_ids[: rendered.loss.index(True)] == template.prompt([Message(USER, turns[0].text)])


def test_a_killed_call_goes_on_where_it_stopped_and_ends_the_same(base: Path, tmp_path: Path) -> None:
    once = own_replies(base, PROMPTS, tmp_path / "once", max_new_tokens=LONGEST, batch=2)
    killed = KilledAfter(1)
    with pytest.raises(Killed):
        own_replies(base, PROMPTS, tmp_path / "twice", killed, LONGEST, batch=2)
    with (tmp_path / "twice" / REPLIES).open("a", encoding="utf-8") as file:
        file.write('{"key": "ab')  # a line cut off in the middle
    again = KilledAfter(99)
    assert own_replies(base, PROMPTS, tmp_path / "twice", again, LONGEST, batch=2) == once
    assert killed.asked + again.asked == len(PROMPTS)
    assert (tmp_path / "twice" / REPLIES).read_bytes() == (tmp_path / "once" / REPLIES).read_bytes()


def test_what_is_known_is_not_asked_again(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = own_replies(base, PROMPTS, tmp_path, max_new_tokens=LONGEST)
    monkeypatch.setattr(module, "_Asking", None)  # calling it would fail
    assert own_replies(base, PROMPTS, tmp_path, max_new_tokens=LONGEST) == first
    fewer = own_replies(base, PROMPTS[:3], tmp_path, max_new_tokens=LONGEST)
    assert fewer == [scene for scene in first if scene.turns[0].text in PROMPTS[:3]]
    for change in ({"max_new_tokens": LONGEST + 1}, {"prompts": ["Another?"]}):
        with pytest.raises(TypeError):
            own_replies(**{"base": base, "prompts": PROMPTS, "folder": tmp_path, "max_new_tokens": LONGEST} | change)


def test_another_base_is_asked_anew(base: Path, tiny_base: Path, tmp_path: Path) -> None:
    own_replies(base, PROMPTS[:2], tmp_path, max_new_tokens=4)
    asked = KilledAfter(99)
    own_replies(tiny_base, PROMPTS[:2], tmp_path, asked, 4)
    assert asked.asked == 2
    rows = (tmp_path / REPLIES).read_text(encoding="utf-8").splitlines()
    assert len(rows) == len({json.loads(row)["key"] for row in rows}) == 4


def test_no_prompt_is_no_work(base: Path, tmp_path: Path) -> None:
    assert own_replies(base, [], tmp_path) == []


def test_a_sample_of_it_reads_as_it_was_said(base: Path, tmp_path: Path) -> None:
    for scene in own_replies(base, PROMPTS, tmp_path, max_new_tokens=LONGEST):
        assert scene.turns[1] == Turn(PLAIN, scene.turns[1].text.strip())
