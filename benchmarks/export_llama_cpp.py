"""Does an exported GGUF say in llama.cpp what the model says here? Token ids, logits and greedy replies, at f16.

    pip install llama-cpp-python            # builds for about ten minutes, so no test needs it
    python benchmarks/export_llama_cpp.py [MODEL_FOLDER...] [--quant f16] [--tokens 32]

Without a folder it takes the default base. The same prompts go through the chat template into both; the text between
control tokens is also given to llama.cpp's own tokenizer, whose ids must be ours. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mrp.data.view import ASSISTANT, SYSTEM, USER, Message
from mrp.models.bases import DEFAULT_BASE, KNOWN_BASES, base_folder
from mrp.models.export import export
from mrp.models.load import Hardware, load_model, load_tokenizer
from mrp.render import ChatTemplate

QUESTIONS = (
    "Who are you?",
    "你是谁？报上名来！",
    "What is 12345 + 678?",
    "def f(x):\n\treturn x",
    "😀 Tell me a story.",
)
TEXTS = (
    *QUESTIONS,
    " leading and trailing ",
    "……——“你好”\r\n\n\n1. 2024年",
    "naïve café, 12,345.67 it's \t tabs  and   spaces",
    "👨‍👩‍👧 Ａｂｃ ｱ ﬁ",
)


def main() -> None:
    """Compare each model and print a line about it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("models", nargs="*", type=Path, metavar="MODEL_FOLDER")
    options.add_argument("--quant", default="f16")
    options.add_argument("--tokens", type=int, default=32, help="length of the greedy replies")
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    found = []
    for folder in given.models or [base_folder(KNOWN_BASES[DEFAULT_BASE])]:
        row = compare(folder, given.quant, given.tokens, given.threads)
        found.append(row)
        print(
            f"{row['model']:28} {row['quant']}: same ids {row['same_ids']}/{row['texts']}, same prompts "
            f"{row['same_prompts']}/{row['prompts']}, same replies {row['same_replies']}/{row['prompts']}, "
            f"same first choice {row['same_first_choice']:.1%}, logits off by {row['logit_error']:.2%}"
        )
    print(json.dumps(found))


def compare(folder: Path, quant: str, tokens: int, threads: int) -> dict[str, Any]:
    """What differs between the model here (float32) and its GGUF in llama.cpp."""
    tokenizer = load_tokenizer(folder)
    template = ChatTemplate(tokenizer)
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        export(folder, Path(place) / "model", "gguf", quant)
        seconds = time.monotonic() - began
        file = next((Path(place) / "model").glob("*.gguf"))
        llama = open_llama(file, threads)
        model = load_model(folder, Hardware("cpu", torch.float32, None))
        same_ids = sum(
            llama.tokenize(text.encode(), add_bos=False, special=True)
            == tokenizer(text, add_special_tokens=False).input_ids
            for text in TEXTS
        )
        rows = [compare_prompt(llama, model, template, messages, tokens) for messages in dialogues()]
    return {
        "model": folder.name,
        "quant": quant,
        "export_seconds": round(seconds, 1),
        "texts": len(TEXTS),
        "same_ids": same_ids,
        "prompts": len(rows),
        "same_prompts": sum(row["same_prompt"] for row in rows),
        "same_replies": sum(row["same_reply"] for row in rows),
        "same_first_choice": sum(row["same_first_choice"] for row in rows) / len(rows),
        "logit_error": max(row["logit_error"] for row in rows),
        "replies": [row["reply"] for row in rows],
    }


def open_llama(file: Path, threads: int) -> Any:
    """The file in llama.cpp, without the weights laid out anew for this CPU.

    On the virtual machine of the recorded run, llama-cpp-python 0.3.36 ends in a segmentation fault with q8_0, q4_0
    and its own q4_k_m if it may use its extra buffer types (the CPU shows AMX; the cause was not looked for further).
    """
    import llama_cpp
    from llama_cpp import llama_cpp as low

    defaults = low.llama_model_default_params

    def plain_layout() -> Any:
        params = defaults()
        params.use_extra_bufts = False
        return params

    low.llama_model_default_params = llama_cpp.llama_model_default_params = plain_layout
    try:
        return llama_cpp.Llama(str(file), n_ctx=256, logits_all=True, n_threads=threads, verbose=False)
    finally:
        low.llama_model_default_params = llama_cpp.llama_model_default_params = defaults


def dialogues() -> list[list[Message]]:
    """Questions to a character, the last one within a longer talk."""
    system = Message(SYSTEM, "You are Sun Wukong, the Monkey King. 你是孙悟空。")
    asked = [[system, Message(USER, question)] for question in QUESTIONS]
    return [*asked, [*asked[0], Message(ASSISTANT, "Old Monkey!"), Message(USER, "And your weapon?")]]


def compare_prompt(
    llama: Any, model: Any, template: ChatTemplate, messages: list[Message], tokens: int
) -> dict[str, Any]:
    """One prompt: its ids by llama.cpp's tokenizer, the logits at its tokens, and the greedy replies."""
    tokenizer, ids = template.tokenizer, template.prompt(messages)
    adds = llama.metadata.get("tokenizer.ggml.add_bos_token") == "true"
    text = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.text} for m in messages],
        chat_template=llama.metadata["tokenizer.chat_template"],
        tokenize=False,
        add_generation_prompt=True,
    )
    if adds:  # the runtime puts it there, and takes the template's own away
        text = text.removeprefix(tokenizer.bos_token)
    there = llama.tokenize(text.encode(), add_bos=adds, special=True)
    llama.reset()
    llama.eval(ids)
    found = np.array(llama.scores[: len(ids)])
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    reply_there = greedy(lambda more: llama_next(llama, ids, more), template.stop_ids(), tokens)
    reply_here = greedy(lambda more: model_next(model, ids, more), template.stop_ids(), tokens)
    return {
        "same_prompt": there == ids,
        "same_first_choice": float((found.argmax(-1) == expected.argmax(-1)).mean()),
        "logit_error": float(np.linalg.norm(found - expected) / np.linalg.norm(expected)),
        "same_reply": reply_there == reply_here,
        "reply": tokenizer.decode(reply_there),
    }


def greedy(next_token: Any, stops: list[int], tokens: int) -> list[int]:
    reply: list[int] = []
    while len(reply) < tokens:
        token = next_token(reply)
        if token in stops:
            break
        reply.append(token)
    return reply


def llama_next(llama: Any, ids: list[int], more: list[int]) -> int:
    llama.reset()
    llama.eval([*ids, *more])
    return int(np.argmax(llama.scores[len(ids) + len(more) - 1]))


def model_next(model: Any, ids: list[int], more: list[int]) -> int:
    with torch.inference_mode():
        return int(model(input_ids=torch.tensor([[*ids, *more]]), logits_to_keep=1).logits[0, -1].argmax())


if __name__ == "__main__":
    main()
