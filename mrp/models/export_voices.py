"""The voices that go with an exported model: PEFT folders for vLLM, GGUF LoRA files for llama.cpp and Ollama.

    voices = check_voices(voices_beside(run.voices, cast), merged)       # by character, each held against the model
    write_voices(voices, merged, part, "hf")                             # part/voices/wukong/adapter_model.safetensors
    write_voices(voices, merged, part, "gguf")                           # part/voices/wukong.gguf

A voice was trained on base + cast adapter; the merged model is just that, so it adds to it as it is (law 8).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mrp.cast import Cast
from mrp.errors import InputError, MrpError, raise_all
from mrp.files import read_json, write_json
from mrp.models.adapter_file import read_adapter
from mrp.models.gguf_lora import lora_to_gguf
from mrp.models.shards import read_weights
from mrp.models.voices import voices_in
from mrp.train.lora import CONFIG, WEIGHTS

VOICES = "voices"
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank may be


@dataclass(frozen=True)
class ExportedVoice:
    """A character's voice, and its largest rank (vLLM wants to know)."""

    character: str
    folder: Path
    rank: int

    @property
    def nbytes(self) -> int:
        return (self.folder / WEIGHTS).stat().st_size


def voices_beside(folder: Path, cast: Cast | None) -> dict[str, Path]:
    """The voice folders of a cast's characters, by id; without a cast all that are there."""
    return {who: folder / who for who in voices_in(folder) if cast is None or cast.get(who)}


def check_voices(voices: dict[str, Path], model: Path) -> list[ExportedVoice]:
    """Hold each voice against the model. Raises `InputError` with every reason that keeps one from being plain LoRA on
    it, as merging does."""
    found: list[ExportedVoice] = []
    faults: list[MrpError] = []
    weights = read_weights(model) if voices else {}
    for who, folder in voices.items():
        try:
            pairs = read_adapter(folder, model, weights)
        except InputError as error:
            faults += getattr(error, "faults", [error])
            continue
        found.append(ExportedVoice(who, folder, max(pair.a.shape[0] for pair in pairs.values())))
    raise_all("the voices do not fit the model", faults)
    return found


def write_voices(voices: Sequence[ExportedVoice], model: Path, part: Path, to: str) -> None:
    """Write `part/voices`: folders in PEFT's format for "hf", else GGUF files for `model` (float32, as trained)."""
    for voice in voices:
        place = part / VOICES / voice.character
        place.parent.mkdir(exist_ok=True)
        if to != "hf":
            lora_to_gguf(voice.folder, model, place.with_name(f"{voice.character}.gguf"), voice.character)
            continue
        place.mkdir()
        shutil.copyfile(voice.folder / WEIGHTS, place / WEIGHTS)
        # "." as the base: PEFT opens it from the export's folder, where the card's commands are run.
        write_json(place / CONFIG, read_json(voice.folder / CONFIG) | {"base_model_name_or_path": "."})


# -- how to use them -----------------------------------------------------------------------------------------------


def vllm_options(voices: Sequence[ExportedVoice]) -> str:
    """What `vllm serve` is told of the voices: one LoRA module for each character, all of them in one batch; "" where
    there are none."""
    if not voices:
        return ""
    largest = max(voice.rank for voice in voices)
    rank = next((known for known in VLLM_RANKS if known >= largest), largest)
    modules = " ".join(f"{v.character}=./{VOICES}/{v.character}" for v in voices)
    return f" --enable-lora --max-loras {len(voices)} --max-lora-rank {rank} --lora-modules {modules}"


def hf_voice_lines(voices: Sequence[ExportedVoice]) -> list[str]:
    """For the card of a safetensors folder."""
    if not voices:
        return []
    return [
        "",
        "Each character has a voice, a small LoRA adapter on this model (folder `voices`). A request to vLLM chooses "
        f'it by the name of the model, such as `"model": "{voices[0].character}"`, and gives that character\'s system '
        "prompt, as training did; `cast` is the model without a voice.",
    ]


def gguf_voice_lines(file: str, voices: Sequence[ExportedVoice], context_tokens: int) -> list[str]:
    """For the card beside a GGUF file."""
    if not voices:
        return []
    return [
        "",
        "Each character has a voice, a small LoRA adapter on this model. With it:",
        "",
        "```",
        *(
            f"llama-server -m {file} -c {context_tokens} --jinja --lora {VOICES}/{voice.character}.gguf"
            for voice in voices
        ),
        "```",
    ]


def ollama_voice_lines(voices: Sequence[ExportedVoice]) -> list[str]:
    """For the card beside Modelfiles."""
    if not voices:
        return []
    return [
        "",
        "Each character with a voice brings it as ADAPTER. Ollama's newer engine takes none and says so when the model "
        'is run ("loras are not yet implemented"); then fold the voice in: '
        f"`mrp merge RUN --voice {voices[0].character}`, and export the folder that it names.",
    ]
