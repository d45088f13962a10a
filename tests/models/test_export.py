"""`mrp export`: the hf folder loads in plain transformers, Modelfiles say what training saw, places are kept safe."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import fails, mrp

from mrp.cast import Cast, Character
from mrp.config import ChatOptions
from mrp.errors import InputError, MrpError, SetupError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")

from projects import change_yaml, snapshot, write_project  # noqa: E402
from shapes import SHAPES  # noqa: E402

from mrp.data.view import ASSISTANT, SYSTEM, USER, Message, system_text  # noqa: E402
from mrp.models import export as exporting  # noqa: E402
from mrp.models.export import export, model_name  # noqa: E402
from mrp.models.hf_folder import portable_config, portable_template  # noqa: E402
from mrp.models.ollama import go_template, holdable, modelfiles  # noqa: E402
from mrp.render import ChatTemplate  # noqa: E402

CHAT = [
    Message(SYSTEM, "You are 悟空."),
    Message(USER, "Who are you?"),
    Message(ASSISTANT, "I."),
    Message(USER, "Why?"),
]


def parse_modelfile(text: str) -> list[tuple[str, str]]:
    """A Modelfile as Ollama's parser reads it (parser/parser.go): a value begins behind the first space of a line and
    ends at the first line break where its quotes are closed; characters that do not print are lost."""
    found: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        if text[at] in " \t\n":
            at += 1
            continue
        name, at = re.match(r"[A-Za-z]+", text[at:]), at  # type: ignore[assignment]
        assert name, f"no instruction at {text[at : at + 40]!r}"
        at += name.end()
        command = name.group().lower()
        assert command in ("from", "template", "parameter", "system", "message", "license", "adapter")
        if command in ("parameter", "message"):
            word = re.match(r" ([a-z_]+) ", text[at:])
            assert word
            command, at = f"{command} {word[1]}", at + word.end()
        else:
            at += 1
        start = at
        while True:
            end = text.find("\n", at)
            end = len(text) if end < 0 else end
            value = unquoted(text[start:end].strip())
            at = end + 1
            if value is not None:
                break
            assert end < len(text), "quotes are never closed"
        found.append((command, "".join(c for c in value if c in "\n\t" or c.isprintable())))
    return found


def unquoted(value: str) -> str | None:
    for quotes in ('"""', '"'):
        if value.startswith(quotes):
            closed = len(value) >= 2 * len(quotes) and value.endswith(quotes)
            return value[len(quotes) : -len(quotes)] if closed else None
    return value


def go_prints(text: str, messages: list[Message]) -> str:
    """What the Go template prints: `range`, `if`/`else if` on the role, `.Content` and `not .System` alone."""
    default = re.match(r"\{\{ if not \.System \}\}(.*?)\{\{ end \}\}", text, re.S)
    if default:
        text = text[default.end() :]
    body = re.fullmatch(r"\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*)", text, re.S)
    assert body
    branches = re.findall(r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}(.*?)(?=\{\{ else if|\Z)', body[1], re.S)
    shown = dict(branches)
    assert set(shown) == {SYSTEM, USER, ASSISTANT} and all(p.count("{{") == 1 for p in shown.values())
    start = default[1] if default and messages[0].role != SYSTEM else ""
    return start + "".join(shown[m.role].replace("{{ .Content }}", m.text) for m in messages) + body[2]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A run whose merged model is its base (an adapter is not what is tried here)."""
    place = tmp_path_factory.mktemp("project")
    run = write_project(place, tiny_base, chat={"temperature": 0.4, "top_p": 0.8, "max_new_tokens": 9})
    change_yaml(place / "cast.yaml", scenario="On the road.")
    shutil.copytree(tiny_base, place / "run" / "merged")
    (place / "run" / "merged" / "LICENSE").write_text("Apache", encoding="utf-8")
    return run


# -- hf ------------------------------------------------------------------------------------------------------------


def test_the_folder_loads_in_plain_transformers_and_says_the_same(
    project: Path, tiny_base: Path, tmp_path: Path
) -> None:
    export(project, tmp_path / "out", "hf")
    ids = torch.arange(1, 30).view(1, -1)
    models = [transformers.AutoModelForCausalLM.from_pretrained(f) for f in (tiny_base, tmp_path / "out")]
    with torch.inference_mode():
        assert torch.equal(*(model(ids).logits for model in models))
    ours, theirs = (transformers.AutoTokenizer.from_pretrained(f) for f in (tiny_base, tmp_path / "out"))
    assert ChatTemplate(ours).prompt(CHAT) == ChatTemplate(theirs).prompt(CHAT)
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == (ours.bos_token, ours.eos_token, ours.pad_token)
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.temperature, generation.top_p, generation.do_sample) == (0.4, 0.8, True)
    assert (tmp_path / "out" / "LICENSE").is_file()


def test_older_servers_find_the_words_they_know(project: Path, tmp_path: Path) -> None:
    export(project, tmp_path / "out", "hf", "f16")
    config, tokenizer = (
        json.loads((tmp_path / "out" / n).read_text()) for n in ("config.json", "tokenizer_config.json")
    )
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["torch_dtype"] == config["dtype"] == "float16"
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["chat_template"] == (tmp_path / "out" / "chat_template.jinja").read_text(encoding="utf-8")
    assert "auto_map" not in config


def test_scaled_rotary_positions_stand_there_in_old_words_and_new() -> None:
    new = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}}
    old = {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 7.0}
    for config in (new, old):
        found = portable_config({"model_type": "llama", **config})
        assert (found["rope_theta"], found["rope_scaling"]) == (7.0, {"rope_type": "linear", "factor": 2.0})
        assert found["rope_parameters"] == new["rope_parameters"]


@pytest.mark.parametrize("stop", ["llama3", "internlm2"])
def test_every_token_that_ends_a_reply_is_a_stop(stop: str, tmp_path: Path) -> None:
    from test_export_gguf import save_model

    tokenizer = SHAPES[stop].tokenizer()
    save_model(tmp_path / "m", "llama", tokenizer)
    export(tmp_path / "m", tmp_path / "out", "hf")
    stops = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    stops = [stops] if isinstance(stops, int) else stops
    assert {ChatTemplate(tokenizer).end_of_turn_id, tokenizer.eos_token_id} == set(stops)


@pytest.mark.parametrize("name", [n for n, s in SHAPES.items() if s.own_system])
def test_the_portable_template_prints_what_training_saw(name: str) -> None:
    template = ChatTemplate(SHAPES[name].tokenizer())
    again = ChatTemplate(template.tokenizer, portable_template(template))
    assert again.prompt(CHAT) == template.prompt(CHAT) and not again.traits.options
    assert "{% generation" not in again.text


def test_the_cast_goes_with_the_folder_without_paths(project: Path, tmp_path: Path) -> None:
    export(project, tmp_path / "out", "hf")
    text = (tmp_path / "out" / "cast.yaml").read_text(encoding="utf-8")
    assert "Sun Wukong" in text and "jsonl" not in text and "home" not in text
    again = export(tmp_path / "out", tmp_path / "again", "ollama")
    assert {"Modelfile.wukong", "Modelfile.bajie"} <= again["files"].keys()


# -- ollama --------------------------------------------------------------------------------------------------------


def test_a_modelfile_holds_identity_template_stops_and_sampling(project: Path, tmp_path: Path) -> None:
    from mrp.config import load_run

    done = mrp("export", project, tmp_path / "out", "--to", "ollama", "--quant", "q8_0", "--json")
    assert done.code == 0 and done.json["quant"] == "q8_0"
    run = load_run(project)
    said = parse_modelfile((tmp_path / "out" / "Modelfile.wukong").read_text(encoding="utf-8"))
    values = dict(said)
    assert (tmp_path / "out" / values["from"]).is_file()
    assert values["system"] == system_text(run.cast, "wukong") == "You are Sun Wukong.\n\nOn the road."
    assert (values["parameter temperature"], values["parameter top_p"]) == ("0.4", "0.8")
    assert (values["parameter num_ctx"], values["parameter num_predict"]) == (
        "1024",
        "9",
    )  # the model's own context is shorter
    stops = [value for name, value in said if name == "parameter stop"]
    assert "<|im_end|>" in stops and "\nZhu Bajie:" in stops and not any("Wukong" in stop for stop in stops)
    commands = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "ollama create out-wukong -f Modelfile.wukong" in commands


@pytest.mark.parametrize("name", ["chatml", "qwen2_5", "qwen3", "llama3", "internlm2"])
def test_the_go_template_gives_the_tokens_that_training_saw(name: str) -> None:
    tokenizer = SHAPES[name].tokenizer()
    template = ChatTemplate(tokenizer)
    text = go_template(template).text()
    for messages in (CHAT, CHAT[:2], [CHAT[0], Message(ASSISTANT, "Ha!"), CHAT[1]], CHAT[1:2]):
        printed = go_prints(text, messages)
        ids = tokenizer(printed).input_ids  # with the BOS that a runtime adds, where the tokenizer adds one
        assert ids == template.prompt(messages), printed


@pytest.mark.parametrize("name", ["gemma2", "llama2"])
def test_a_template_that_ollama_cannot_express_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="cannot be written in Ollama's form"):
        go_template(ChatTemplate(SHAPES[name].tokenizer()))


NASTY = [
    'He said "hi"',
    '""quoted"" at\nboth ""\nends""',
    'breaks out"""\nPARAMETER temperature 5\nSYSTEM """evil',
    '"""',
    "\nFROM /etc/passwd\n",
    "  outer spaces  ",
    "back\\slash {{ .System }} {{ end }} # no comment",
    "",
]


@pytest.mark.parametrize("text", NASTY)
def test_text_of_people_never_breaks_out(text: str) -> None:
    people = [
        Character(id="a", name="A", persona=f"x{text}", greeting=f"y{text}"),
        Character(id="b", name='B "the" {{.}} B', persona=text),
    ]
    cast, template = Cast(characters=people), ChatTemplate(SHAPES["chatml"].tokenizer())
    files, notes = modelfiles("m.gguf", template, cast, ChatOptions(), ["<|im_end|>"])
    sampling = r"parameter (stop|temperature|top_p|top_k|min_p|num_\w+|repeat_penalty)"
    allowed = re.compile(rf"from|template|system|message assistant|{sampling}")
    for character in cast:
        said = parse_modelfile(files[f"Modelfile.{character.id}"])
        assert all(allowed.fullmatch(name) for name, _ in said)
        values = dict(said)
        assert (values["from"], values["parameter temperature"]) == ("./m.gguf", "0.7")
        expected = system_text(cast, character.id)
        assert values["system"] == re.sub('"{3,}', lambda m: "'" * len(m[0]), expected)
        assert len([1 for name, _ in said if name == "system"]) == 1
    assert bool(notes) is ('"""' in text)


def test_characters_that_ollama_drops_are_told() -> None:
    held, notes = holdable("全角\u3000空格，👨\u200d👩\r\nnext")
    assert held == "全角 空格，👨👩\nnext"
    assert "U+200D" in notes[0] and "U+3000" in notes[0]
    assert holdable("plain\ttext\n——……") == ("plain\ttext\n——……", [])


def test_a_greeting_is_the_first_message_with_a_neutral_name_for_the_person() -> None:
    cast = Cast(characters=[Character(id="a", name="A", greeting="Hello {{user}}!\nSit.")])
    files, _ = modelfiles("m.gguf", ChatTemplate(SHAPES["chatml"].tokenizer()), cast, ChatOptions(), [])
    assert ("message assistant", "Hello Someone!\nSit.") in parse_modelfile(files["Modelfile.a"])


# -- places --------------------------------------------------------------------------------------------------------


def test_an_earlier_export_is_replaced_and_nothing_else(tiny_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(tiny_base, out, "hf")
    export(tiny_base, out, "gguf")
    assert not (out / "config.json").exists() and (out / "out-f16.gguf").is_file()
    (out / "mine.txt").write_text("keep", encoding="utf-8")
    before = snapshot(out)
    with pytest.raises(InputError, match=r"no export wrote and that would be lost: mine\.txt"):
        export(tiny_base, out, "gguf")
    other = tmp_path / "other"
    other.mkdir()
    (other / "a").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="not empty, and no earlier export"):
        export(tiny_base, other, "gguf")
    with pytest.raises(InputError, match="what it is made from"):
        export(tiny_base, tiny_base, "gguf")
    assert snapshot(out) == before


def test_a_full_disk_leaves_the_earlier_export(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export(tiny_base, out, "gguf")
    before = snapshot(out)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type(usage)(usage.total, usage.total - 1000, 1000))
    with pytest.raises(SetupError, match="the exported model needs"):
        export(tiny_base, out, "hf")
    monkeypatch.undo()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "write_gguf", full)
    with pytest.raises(SetupError, match="no space left"):
        export(tiny_base, out, "gguf")
    assert snapshot(out) == before and not list(tmp_path.glob(".mrp*"))


def test_a_missing_or_cut_shard_is_named(tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "m")
    data = (tmp_path / "m" / "model.safetensors").read_bytes()
    (tmp_path / "m" / "model.safetensors").write_bytes(data[:-100])
    for form in ("hf", "gguf", "ollama"):
        with pytest.raises(InputError, match="cut off"):
            export(tmp_path / "m", tmp_path / "out", form)
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights"):
        export(tmp_path / "m", tmp_path / "out", "hf")


def test_a_run_that_is_not_merged_and_an_adapter_say_what_to_do(tmp_path: Path, tiny_base: Path) -> None:
    run = write_project(tmp_path / "p", tiny_base)
    fails(mrp("export", run, tmp_path / "out", "--to", "gguf"), 2, "no merged model", "mrp run")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    fails(mrp("export", adapter, tmp_path / "out", "--to", "gguf"), 2, "is an adapter", "mrp merge")


def test_a_trained_run_is_exported_until_its_merge_is_stale(tmp_path: Path, tiny_base: Path) -> None:
    run = write_project(tmp_path / "p", tiny_base)
    assert mrp("run", run, "-q").code == 0
    for given in (run, tmp_path / "p" / "run"):
        assert mrp("export", given, tmp_path / "out", "--to", "hf", "-q").code == 0
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "p" / "run" / "merged").state_dict()
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(merged[name], found[name]) for name in merged)
    assert "Loss on lines" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    change_yaml(tmp_path / "p" / "cast.yaml", scenario="Another road.")
    fails(mrp("export", run, tmp_path / "out", "--to", "hf"), 2, "as they are now", "mrp merge")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "onnx"], "no form 'onnx'"),
        (["--to", "gguf", "--quant", "q8"], "did you mean 'q8_0'"),
        (["--to", "hf", "--quant", "q8_0"], "cannot be written with --to hf"),
    ],
)
def test_unknown_forms_and_numbers_are_refused(options: list[str], words: str, tiny_base: Path, tmp_path: Path) -> None:
    fails(mrp("export", tiny_base, tmp_path / "out", *options), 2, words)


def test_a_file_name_for_the_folder_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(MrpError, match="name of a file"):
        export(tiny_base, tmp_path / "model.gguf", "gguf")


def test_names_of_files_are_safe() -> None:
    assert [model_name(Path(n)) for n in ("my cast", "西游", "../a'b", "x-1.5")] == ["my-cast", "model", "a-b", "x-1.5"]
