"""Open a run, or a model folder, for play.

    player, characters = open_player(Path("mrp.yaml"))

RUN is a run file or run folder (its merged model if there is one, else base + adapter), a merged model's folder, or
an adapter's folder with `base`. The characters of a model folder come from `cast`, or the cast.yaml in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mrp.cast import Cast, load_cast
from mrp.config import KEPT_CAST_FILE, KEPT_RUN_FILE, RUN_FILE, ChatOptions, Run, chat_options, load_run
from mrp.errors import InputError
from mrp.models.bases import check_base_folder, find_base
from mrp.models.load import Hardware, hardware, load_model, load_tokenizer, set_threads, template_text
from mrp.models.merge import is_merged
from mrp.models.run_voices import voices_of
from mrp.plan.chat import MORE_GRAPHS, choose_chat, predict_chat
from mrp.plan.choose import SPARE
from mrp.plan.shapes import shape_of_folder
from mrp.plan.training import CONTEXT
from mrp.play.reply import Player
from mrp.render import ChatTemplate

BITS = ("auto", "16", "8", "4")  # of weights
ENGINES = ("transformers", "onnx")  # in this process


def open_player(
    path: Path,
    *,
    base: str | None = None,
    cast: Path | None = None,
    template: Path | None = None,
    flags: dict[str, str] | None = None,
    bits: str = "auto",
    chats: int | None = 1,
    engine: str = "transformers",
) -> Player:
    """Load what RUN names, its weights in `bits`: 16, 8, 4, or auto (see `choose_bits`). `engine`: one of ENGINES.

    `chats`: how many go on at once, or the characters of a scene, whose keys and values memory is to hold beside the
    weights; None: as many as the cast has characters.
    Raises `InputError` if there is nothing to play in it.
    """
    if engine not in ENGINES:
        raise InputError(f"no engine {engine!r} in this process", "--engine", f"one of: {', '.join(ENGINES)}")
    characters: Cast | None = None
    voices: Path | None = None
    if path.is_file() or (path / KEPT_RUN_FILE).exists() or (path / RUN_FILE).exists():
        if base is not None:
            raise InputError("--base goes with an adapter folder, and this is a run", str(path), "leave --base out")
        run = load_run(path, flags)
        folder, adapter = model_of(run)
        characters, options, precision = run.cast, run.config.chat, run.config.train.precision
        voices = voices_of(run)
        set_threads(run.config.train.threads)
    else:
        folder, adapter = _model_folder(path, base)
        if (path / KEPT_CAST_FILE).is_file() and cast is None:
            characters = load_cast(path / KEPT_CAST_FILE)
        options, precision = chat_options(flags or {}), "auto"
    if cast is not None:
        characters = load_cast(cast)
    if chats is None:
        chats = len(characters.characters) if characters else 1
    return load_player(folder, adapter, characters, options, precision, template, voices, bits, chats, engine)


def load_player(
    folder: Path,
    adapter: Path | None,
    cast: Cast | None,
    options: ChatOptions,
    precision: str = "auto",
    template: Path | None = None,
    voices: Path | None = None,
    bits: str = "auto",
    chats: int = 1,
    engine: str = "transformers",
) -> Player:
    """A player of the model in `folder`, with the adapter on top if one is given, and the characters' voices.

    The context is never longer than the model's own.
    """
    from mrp.models.voices import load_voices, voices_in
    from mrp.play.embedded import TransformersEngine
    from mrp.train.lora import load_adapter

    on = hardware(precision)
    tokenizer = load_tokenizer(folder)
    text = template_text(template) if template else None
    chat_template = ChatTemplate(tokenizer, text, str(template or folder))
    if engine == "onnx":
        return _onnx_player(folder, adapter, voices, cast, options, chat_template)
    chosen, fitting = choose_bits(bits, on, folder, options.context_tokens, [adapter], voices, chats)
    model = load_model(folder, on, chosen)
    stops = chat_template.stop_ids(model.generation_config.eos_token_id)
    longest = getattr(model.config, "max_position_embeddings", None) or fitting
    options = options.model_copy(update={"context_tokens": min(fitting, longest)})
    if adapter:
        model = load_adapter(model, adapter)
    speaking = load_voices(model, voices) if voices is not None and voices_in(voices) else None
    kept = room_for_chats(on, folder, chosen, options.context_tokens, voices, chats)
    return Player(TransformersEngine(model, on, speaking, kept), chat_template, cast, stops, options)


def _onnx_player(
    folder: Path, adapter: Path | None, voices: Path | None, cast: Cast | None, options: ChatOptions, made: ChatTemplate
) -> Player:
    """A player in float32 on the CPU, by onnxruntime-genai."""
    import torch
    from transformers import AutoConfig, GenerationConfig

    from mrp.models.voices import voices_in
    from mrp.play.onnx import OnnxEngine, onnx_folder

    if adapter:
        raise InputError("the engine onnx plays merged models only", "--engine", "mrp merge RUN, or leave --engine out")
    if voices is not None and voices_in(voices):
        raise InputError("the engine onnx has no voices of characters", "--engine", "leave --engine out")
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    has_own = (folder / "generation_config.json").is_file()
    own = GenerationConfig.from_pretrained(folder) if has_own else GenerationConfig.from_model_config(config)
    longest = getattr(config, "max_position_embeddings", None) or options.context_tokens
    options = options.model_copy(update={"context_tokens": min(options.context_tokens, longest)})
    engine = OnnxEngine(onnx_folder(folder), options.context_tokens, torch.get_num_threads())
    return Player(engine, made, cast, made.stop_ids(own.eos_token_id), options)


def choose_bits(
    bits: str,
    on: Hardware,
    folder: Path,
    context_tokens: int,
    beside: Sequence[Path | None] = (),
    voices: Path | None = None,
    chats: int = 1,
    reserve: int = 0,
) -> tuple[int, int]:
    """The bits of the weights and the tokens of context that fit.

    "auto": on CUDA the most bits that the free memory holds with the whole context of `chats` (`mrp plan --for chat`),
    else 4 bit with fewer chats in memory, or a shorter context; 16 on the CPU, and for models that the planner does not
    know. `beside`: folders of adapters, which take memory too, as `voices` do; `reserve`: bytes for something else.
    Raises `InputError` for 8 or 4 bit on the CPU, and if nothing fits.
    """
    check_bits(bits, on.device)
    if on.device == "cpu":
        return 16, context_tokens
    if bits != "auto":
        return int(bits), context_tokens
    try:
        shape = shape_of_folder(folder)
    except InputError:  # not a model of equal blocks
        return 16, context_tokens
    taken = sum(_weights_in(one) for one in beside if one) + _bytes_of_voices(voices, chats) + reserve
    found = choose_chat(shape, context_tokens, _free_memory() - taken, chats)
    return found.bits, found.context_tokens


def check_bits(bits: str, device: str) -> None:
    """`InputError` for bits that nobody knows, and for few of them on the CPU."""
    if bits not in BITS:
        raise InputError(f"no such number of bits: {bits!r}", "--bits", f"one of {', '.join(BITS)}")
    if device == "cpu" and bits in ("8", "4"):
        fix = "leave --bits out, or export a GGUF (`mrp export --to gguf`)"
        raise InputError(f"{bits}-bit weights need a GPU (bitsandbytes)", "--bits", fix)


def _weights_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("**/*.safetensors"))


def _bytes_of_voices(voices: Path | None, chats: int) -> int:
    """On the GPU: each in 16 bit (their files are float32), and once more for each chat at once, side by side."""
    sizes = [_weights_in(one) // 2 for one in voices.iterdir()] if voices is not None and voices.is_dir() else []
    return sum(sizes) + (max(sizes, default=0) * chats if chats > 1 else 0)


def room_for_chats(
    on: Hardware, folder: Path, bits: int, context_tokens: int, voices: Path | None, chats: int
) -> int | None:
    """Bytes for keys and values, when the model is loaded: what is free, less what computing takes, and less further
    CUDA graphs where the chats leave room for them; never less than one chat needs. None: the engine's own guess, on
    the CPU and for models that the planner does not know."""
    if on.device == "cpu":
        return None
    try:
        planned = predict_chat(shape_of_folder(folder), bits, context_tokens)
    except InputError:
        return None
    spare = int(planned.in_all * SPARE)
    free = _free_memory() - CONTEXT - planned.working - spare - _bytes_of_voices(voices, chats)
    graphs, one = MORE_GRAPHS * planned.parts["CUDA graph"], planned.parts["keys and values"]
    return max(one, min(free, chats * one), free - graphs)


def _free_memory() -> int:
    """Of the GPU, for the planner, which counts CUDA's own too: about half of that is there before a model is."""
    import gc

    import torch

    gc.collect()
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info()[0]) + CONTEXT // 2


def model_of(run: Run) -> tuple[Path, Path | None]:
    """The model folder of a run and the adapter to load on top of it: merged and None, or base and adapter.

    A merged model that was made from an earlier adapter is left aside.
    """
    only_merged = not run.adapter.is_dir() and (run.merged / "config.json").is_file()
    if only_merged or is_merged(run):
        return run.merged, None
    if not run.adapter.is_dir():
        raise InputError("nothing is trained here yet", str(run.folder), f"mrp run {run.path}")
    return find_base(run.config.base, run.path.parent), run.adapter


def _model_folder(path: Path, base: str | None) -> tuple[Path, Path | None]:
    if (path / "adapter_config.json").is_file():
        if base is None:
            raise InputError("this folder is an adapter, which needs its base model", str(path), "add `--base NAME`")
        return find_base(base, Path.cwd()), path
    if not path.exists():
        fix = "name a run file, a run folder, or a model folder"
        raise InputError(f"no such file or folder: {path.name}", str(path), fix)
    if base is not None:
        raise InputError("--base goes with an adapter folder, and this is none", str(path), "leave --base out")
    if path.is_dir() and not any(path.glob("*.safetensors")) and not (path / "config.json").is_file():
        fix = "name a run file, a run folder, or a model folder"
        raise InputError("this folder holds neither a run nor a model", str(path), fix)
    check_base_folder(path)
    return path, None
