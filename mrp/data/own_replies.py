"""The base's own replies to plain prompts: general chat data against forgetting, made by the model that could forget.

    scenes = own_replies(find_base("smollm2-135m-instruct"), plain_prompts("en", "for_training"), folder, report)
    scenes[0].turns       # (Turn("other", "What is 17 times 6?"), Turn("plain", "17 times 6 is 102."))

Greedy, several prompts at once. Each batch is appended to `own-replies.jsonl` in `folder` when it is done, under a hash
of base, prompt and options: whatever stops the work, the next call goes on there; and asking again costs nothing (not
even torch). Batches are made of all prompts, whatever is known already, so a resumed call gives what one call gives.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrp.cast import OTHER, PLAIN
from mrp.data.view import USER, Message
from mrp.dialogue import Scene, Turn
from mrp.errors import InputError
from mrp.files import disk_error, fingerprint, folder_lock, write_jsonl
from mrp.models.bases import model_identity
from mrp.play.reply import NOT_TEXT
from mrp.report import SILENT, Reporter

if TYPE_CHECKING:
    from mrp.models.load import Hardware
    from mrp.render import ChatTemplate

REPLIES = "own-replies.jsonl"
VERSION = 1  # one more whenever the same base gives other replies by our doing
MAX_NEW_TOKENS = 384


@dataclass(frozen=True, slots=True)
class Reply:
    """What the base answered; `cut`: it had not ended after `max_new_tokens`."""

    key: str
    prompt: str
    reply: str
    cut: bool


def own_replies(
    base: Path,
    prompts: Sequence[str],
    folder: Path,
    report: Reporter = SILENT,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch: int = 16,
    bits: int = 16,
) -> list[Scene]:
    """A scene for each prompt that the base in the folder `base` answered whole, in the order of the prompts.

    `bits`: of the base's weights. A reply that was cut off is none: it would teach to stop in the middle. Such ones and
    empty ones are left out, and that is said. Raises `InputError` for a base that cannot be loaded or prompted.
    """
    made_with = {"version": VERSION, "base": model_identity(base), "max_new_tokens": max_new_tokens}
    made_with |= {"bits": bits} if bits != 16 else {}
    keys = {prompt: fingerprint(made_with | {"prompt": prompt}) for prompt in prompts}
    with folder_lock(folder):
        path = folder / REPLIES
        known = _read(path)
        if any(key not in known for key in keys.values()):
            write_jsonl(path, map(asdict, known.values()))  # without a line that a kill cut off
            _Asking(base, path, known, report, bits).ask(keys, max_new_tokens, batch)
            known = {key: known[key] for key in dict.fromkeys([*keys.values(), *sorted(known)])}
            write_jsonl(path, map(asdict, known.values()))
    replies = [known[keys[prompt]] for prompt in prompts]
    cut, empty = sum(r.cut for r in replies), sum(not r.cut and not r.reply for r in replies)
    if cut or empty:
        what = f"{cut} not at an end after {max_new_tokens} tokens, {empty} empty"
        report.line(f"the base's own replies: {len(replies) - cut - empty} of {len(replies)} used ({what})")
    return [_scene(r, number) for number, r in enumerate(replies, 1) if r.reply and not r.cut]


def _scene(reply: Reply, number: int) -> Scene:
    turns = (Turn(OTHER, reply.prompt), Turn(PLAIN, reply.reply))
    return Scene(f"own-reply-{reply.key[:12]}", (PLAIN, OTHER), turns, source=f"own-replies:{number}")


def _read(path: Path) -> dict[str, Reply]:
    """What was answered before; a line that is no reply is read past, and asked again."""
    found: dict[str, Reply] = {}
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for line in lines:
        try:
            reply = Reply(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found[reply.key] = reply
    return found


class _Asking:
    """The loaded base, and the file that its replies go to."""

    def __init__(self, base: Path, path: Path, known: dict[str, Reply], report: Reporter, bits: int) -> None:
        from mrp.models.load import hardware, load_model, load_tokenizer
        from mrp.models.loss import keeps_apart
        from mrp.render import ChatTemplate

        self.path, self.known, self.report = path, known, report
        self.on: Hardware = hardware()
        self.template: ChatTemplate = ChatTemplate(load_tokenizer(base), where=str(base))
        self.model: Any = load_model(base, self.on, bits)
        self.stop_ids = self.template.stop_ids(self.model.generation_config.eos_token_id)
        self.may_pad = keeps_apart(self.model)  # a model that reads padding gets one prompt at a time

    def ask(self, keys: Mapping[str, str], max_new_tokens: int, batch: int) -> None:
        """Answer every prompt of `keys` whose key is not known yet."""
        asked = {prompt: self._ids(prompt, max_new_tokens) for prompt in keys}
        ordered = sorted(asked, key=lambda prompt: (len(asked[prompt]), prompt))  # little padding
        size = batch if self.may_pad else 1
        batches = [ordered[at : at + size] for at in range(0, len(ordered), size)]
        due = [prompts for prompts in batches if any(keys[prompt] not in self.known for prompt in prompts)]
        total = sum(map(len, due))
        with self.report.progress("asking the base", total, "replies") as update:
            done = 0
            for prompts in due:
                answers = greedy(self.model, self.on, [asked[p] for p in prompts], self.stop_ids, max_new_tokens)
                texts = [self._text(ids) for ids, _ in answers]
                cuts = [cut for _, cut in answers]
                self._keep(Reply(keys[p], p, t, c) for p, t, c in zip(prompts, texts, cuts, strict=True))
                done += len(prompts)
                update(done)

    def _ids(self, prompt: str, max_new_tokens: int) -> list[int]:
        """The prompt as play sends it to the plain model."""
        ids = self.template.prompt([Message(USER, prompt)])
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if longest and len(ids) + max_new_tokens > longest:
            what = f"a plain prompt of {len(ids)} tokens and its reply of {max_new_tokens} are longer than {longest}"
            raise InputError(what, prompt[:60], "take a base with a longer context, or shorter prompts")
        return ids

    def _text(self, ids: Sequence[int]) -> str:
        text = self.template.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return NOT_TEXT.sub("", str(text)).strip()

    def _keep(self, replies: Iterable[Reply]) -> None:
        """Append what is new, all of a batch at once."""
        new = [reply for reply in replies if reply.key not in self.known]
        text = "".join(json.dumps(asdict(reply), ensure_ascii=False) + "\n" for reply in new)
        try:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(text)
        except OSError as error:
            raise disk_error(error, self.path) from error
        self.known |= {reply.key: reply for reply in new}


def greedy(
    model: Any, on: Hardware, prompts: Sequence[Sequence[int]], stop_ids: Iterable[int], max_new_tokens: int
) -> list[tuple[list[int], bool]]:
    """The likeliest reply to each of B prompts: its ids without the stop id, and whether it was cut off.

    Prompts are padded on the left and the padding is masked, so in fp32 each reply is the one that
    `TransformersEngine` gives to its prompt alone at temperature 0.
    """
    import torch
    from transformers import DynamicCache

    stops, width = set(stop_ids), max(map(len, prompts))
    rows = [[0] * (width - len(ids)) + list(ids) for ids in prompts]
    shown = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
    new, mask = torch.tensor(rows, device=on.device), torch.tensor(shown, device=on.device)  # (B, T)
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # (B, T), from 0 at the first token of a prompt
    cache = DynamicCache(config=model.config)
    replies: list[list[int]] = [[] for _ in prompts]
    going = [True] * len(prompts)
    for _ in range(max_new_tokens):
        with torch.no_grad(), on.autocast_context():
            given = {"input_ids": new, "attention_mask": mask, "position_ids": positions}
            logits = model(**given, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]  # (B, V)
        new = logits.float().argmax(-1, keepdim=True)  # (B, 1)
        for row, token in enumerate(new[:, 0].tolist()):
            going[row] = going[row] and token not in stops
            if going[row]:
                replies[row].append(token)
        if not any(going):
            break
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], 1)
        positions = positions[:, -1:] + 1
    return list(zip(replies, going, strict=True))
