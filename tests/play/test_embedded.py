"""Many streams at once: equal to one after another, whatever is shared, reused, closed or broken on the way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tiny_models import save_base

from mrp.errors import MrpError
from mrp.models.load import Hardware
from mrp.play.engine import Request, Sampling, Token

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mrp.models.voices import VoiceBank, new_voices  # noqa: E402
from mrp.play.embedded import TransformersEngine  # noqa: E402

GREEDY = Sampling(temperature=0, max_new_tokens=20)
PROMPTS = [list(range(start, start + length)) for start, length in ((40, 30), (44, 3), (100, 17), (7, 60), (300, 1))]
SMALL = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": 400,
    "initializer_range": 0.15,
    "max_position_embeddings": 512,
}
WINDOW = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SMALL)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL)),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SMALL, **WINDOW)),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**SMALL, **WINDOW)),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**SMALL, sliding_window=8)),
}
NO_ROWS: dict[str, Callable[[], Any]] = {  # recurrent: a state, no keys and values
    "mamba": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=400, state_size=4)
    ),
}


def hardware() -> Hardware:
    return Hardware("cpu", torch.float32, None)


def engine_of(model: Any, **given: Any) -> TransformersEngine:
    return TransformersEngine(model.requires_grad_(False).eval(), hardware(), **{"cache_bytes": 2**28} | given)


def made(make: Callable[[], Any]) -> Any:
    torch.manual_seed(3)
    return make()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = save_base(tmp_path_factory.mktemp("embedded") / "base")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def ids_of(tokens: Sequence[Token]) -> list[int]:
    return [token.id for token in tokens if token.id is not None]


def said(engine: TransformersEngine, ids: Sequence[int], sampling: Sampling = GREEDY, **more: Any) -> list[int]:
    return ids_of(list(engine.stream(Request(ids, sampling, **more))))


def all_at_once(engine: TransformersEngine, requests: Sequence[Request]) -> list[list[int]]:
    together = threading.Barrier(len(requests))

    def one(request: Request) -> list[int]:
        together.wait(30)
        return ids_of(list(engine.stream(request)))

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(one, requests, timeout=60))


def plain(model: Any, ids: Sequence[int], count: int = 20) -> list[int]:
    """As transformers itself says it, greedily, reading everything again for each token."""
    whole = list(ids)
    for _ in range(count):
        with torch.no_grad():
            whole.append(int(model(input_ids=torch.tensor([whole]), use_cache=False).logits[0, -1].argmax()))
    return whole[len(ids) :]


def voices_for(model: Any, ids: Sequence[str] = ("wukong", "bajie")) -> VoiceBank:
    """Random voices, loud enough to change what is said."""
    bank = new_voices(model, ids, rank=4, alpha=8, seed=0)
    torch.manual_seed(5)
    for name, weights in bank.parameters().items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(weights.data, std=0.2)
        weights.requires_grad_(False)
    return bank


# -- equal whatever is shared --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MODELS, *NO_ROWS])
def test_streams_at_once_say_what_transformers_says(name: str) -> None:
    model = made((MODELS | NO_ROWS)[name])
    engine = engine_of(model)
    assert engine.shares_steps == (name in MODELS)
    wanted = [plain(model, ids, 12) for ids in PROMPTS]
    sampling = Sampling(temperature=0, max_new_tokens=12)
    assert all_at_once(engine, [Request(ids, sampling) for ids in PROMPTS]) == wanted
    longer = [*PROMPTS[0], *wanted[0], 5, 6]  # goes on from what is parked, where anything is
    assert said(engine, longer, sampling) == plain(model, longer, 12)
    assert (engine.stats.reused > 0) == engine.shares_steps


def test_streams_share_steps(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(model)
    rows: list[int] = []
    forward = model.forward

    def counted(**given: Any) -> Any:
        rows.append(len(given["input_ids"]))
        return forward(**given)

    monkeypatch.setattr(model, "forward", counted)
    all_at_once(engine, [Request(ids, Sampling(0, 1, 40)) for ids in PROMPTS])
    assert max(rows) == len(PROMPTS)
    assert len(rows) < len(PROMPTS) * 40 / 2


def test_prompts_are_read_in_one_pass_and_a_shared_beginning_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks at the same moment with the same persona does not read it again."""
    engine = engine_of(model)
    said(engine, PROMPTS[0])  # the engine now knows what a token takes
    persona = [k % 90 + 3 for k in range(40)]
    prompts = [[*persona, *tail] for tail in ([5, 6, 7], [8, 9], [10], [11, 12, 13, 14])]
    streams = [engine.stream(Request(ids, GREEDY)) for ids in prompts]
    passes: list[int] = []
    forward = model.forward

    def counted(**given: Any) -> Any:
        passes.append(given["input_ids"].numel())
        return forward(**given)

    before = engine.stats.computed
    with monkeypatch.context() as patched:
        patched.setattr(model, "forward", counted)
        with ThreadPoolExecutor(len(streams)) as pool:
            found = list(pool.map(lambda stream: ids_of(list(stream)), streams))
    assert found == [plain(model, ids) for ids in prompts]
    assert engine.stats.computed - before <= sum(map(len, prompts)) - 2 * len(persona)
    assert len(passes) < 2 * len(found[0]) + 4


def test_a_long_prompt_does_not_keep_others_waiting(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrp.play.embedded.PIECE", 50)
    engine = engine_of(model)
    short = engine.stream(Request(PROMPTS[0], Sampling(0, 1, 60)))
    first = [next(short)]
    long_ids = [k % 400 for k in range(600)]
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(said, engine, long_ids)
        rest = list(short)
        assert ids_of(first + rest) == plain(model, PROMPTS[0], 60)
        assert long.result(60) == plain(model, long_ids)


def test_a_seed_gives_the_same_reply_in_any_company(model: Any) -> None:
    sampling = [Sampling(0.9, 0.9, 20, seed) for seed in range(4)] + [Sampling(1.3, 1.0, 20, 9)]
    alone = [said(engine_of(model), ids, s) for ids, s in zip(PROMPTS, sampling, strict=True)]
    requests = [Request(ids, s) for ids, s in zip(PROMPTS, sampling, strict=True)]
    assert all_at_once(engine_of(model), requests) == alone


def test_a_row_speaks_with_its_own_voice_only(model: Any) -> None:
    bank = voices_for(model)
    try:
        who = [None, "wukong", "bajie", "wukong", "nobody"]
        alone = []
        for ids, voice in zip(PROMPTS, who, strict=True):
            with bank.speaking([voice]):
                alone.append(plain(model, ids))
        engine = engine_of(model, voices=bank)
        requests = [Request(ids, GREEDY, voice=voice) for ids, voice in zip(PROMPTS, who, strict=True)]
        assert all_at_once(engine, requests) == alone
        same = [said(engine, PROMPTS[0], voice=voice) for voice in (None, "wukong", "bajie", "nobody")]
        assert same[0] == same[3] and len({tuple(s) for s in same}) == 3
    finally:
        bank.remove()


# -- nothing is read twice -----------------------------------------------------------------------------------------


def test_a_next_prompt_reads_only_what_was_said_since(model: Any) -> None:
    engine = engine_of(model)
    reply = said(engine, PROMPTS[0])
    assert (engine.stats.computed, engine.stats.reused, engine.stats.generated) == (30, 0, 20)
    longer = [*PROMPTS[0], *reply, 9, 8, 7]
    assert said(engine, longer) == plain(model, longer)
    assert (engine.stats.computed, engine.stats.reused) == (30 + 4, 49)  # the last token of the reply was never read


def test_a_retry_reads_one_token(model: Any) -> None:
    engine = engine_of(model)
    assert said(engine, PROMPTS[3]) == said(engine, PROMPTS[3])
    assert engine.stats.computed == 61


def test_voices_do_not_share_what_they_read(model: Any) -> None:
    bank = voices_for(model)
    try:
        engine = engine_of(model, voices=bank)
        for voice in ("wukong", "bajie", None):
            said(engine, PROMPTS[0], voice=voice)
        assert engine.stats.reused == 0
        said(engine, PROMPTS[0], voice="bajie")
        assert engine.stats.reused == 29
    finally:
        bank.remove()


def test_chats_that_begin_alike_keep_their_own_history(model: Any) -> None:
    engine = engine_of(model)
    persona = [k % 300 for k in range(40)]
    histories = [[*persona, *(range(100 * n, 100 * n + 80))] for n in (1, 2)]
    for history in histories:
        said(engine, history)
    assert engine.stats.reused == 40
    before = engine.stats.computed
    for history in histories:
        assert said(engine, [*history, 3]) == plain(model, [*history, 3])
    assert engine.stats.computed - before <= 2  # neither was lost to the other


def test_free_memory_is_given_back_now_and_then(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr("mrp.play.embedded.give_back", lambda: given.append(1))
    monkeypatch.setattr("mrp.play.embedded.OFTEN", 3)
    engine = engine_of(model)
    for _ in range(7):
        said(engine, PROMPTS[1], Sampling(temperature=0, max_new_tokens=2))
    assert len(given) == 2


def test_memory_is_bounded_and_the_least_recent_goes_first(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    one = engine_of(model)
    said(one, PROMPTS[0])
    engine = engine_of(model, cache_bytes=2 * one.stats.cache_bytes)
    prompts = [[start, *PROMPTS[0]] for start in (1, 2, 3)]
    for ids in prompts:
        said(engine, ids)
        assert engine.stats.cache_bytes <= 2 * one.stats.cache_bytes
    assert engine.stats.dropped == 1
    read = len(prompts[0]) + GREEDY.max_new_tokens - 1  # all but the last token said
    assert caplog.messages == [f"memory is short: {read} tokens will be read again when they are needed"]
    said(engine, prompts[2])
    said(engine, prompts[1])
    assert engine.stats.reused == 2 * 30
    said(engine, prompts[0])
    assert engine.stats.reused == 2 * 30


# -- scores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3", "mamba"])
def test_scores_are_the_models_own(name: str) -> None:
    model = made((MODELS | NO_ROWS)[name])
    engine = engine_of(model)
    tails = [[5], [6, 7, 8], [], [9, 5]]
    for ids in (PROMPTS[0], PROMPTS[4], [*PROMPTS[0], 5, 6]):
        for tail, found in zip(tails, engine.score(ids, tails), strict=True):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*ids, *tail]]), use_cache=False).logits[0]
            logprobs = torch.log_softmax(logits, -1)
            wanted = [float(logprobs[len(ids) - 1 + k, token]) for k, token in enumerate(tail)]
            assert found == pytest.approx(wanted, abs=1e-4)


def test_a_prompt_is_read_once_for_all_its_continuations(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(model)
    said(engine, PROMPTS[3])
    sizes: list[tuple[int, ...]] = []
    forward = model.forward

    def counted(**given: Any) -> Any:
        sizes.append(tuple(given["input_ids"].shape))
        return forward(**given)

    monkeypatch.setattr(model, "forward", counted)
    engine.score([*PROMPTS[3], 1, 2], [[3, 4], [5], [6, 7]])
    assert sizes == [(1, 1), (3, 2)]
    assert said(engine, [*PROMPTS[3], 1, 2]) == plain(model, [*PROMPTS[3], 1, 2])  # what was scored left no trace


def test_scores_in_pieces_are_the_same(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long continuations are read a piece at a time, so that the logits of a large vocabulary take little memory."""
    tails = [PROMPTS[0], PROMPTS[3], [], [5]]
    engine = engine_of(model)
    wanted = engine.score(PROMPTS[2], tails)
    vocabulary = model.config.vocab_size
    monkeypatch.setattr("mrp.play.scoring.MOST_LOGITS", 7 * vocabulary + 1)
    most = []
    forward = model.forward

    def counted(**given: Any) -> Any:
        keep = given["logits_to_keep"]
        most.append((keep if isinstance(keep, int) else len(keep)) * len(given["input_ids"]))
        return forward(**given)

    monkeypatch.setattr(model, "forward", counted)
    pieces = engine_of(model)
    for found, whole in zip(pieces.score(PROMPTS[2], tails), wanted, strict=True):
        assert found == pytest.approx(whole, abs=1e-4)
    assert max(most) == 7
    assert said(pieces, PROMPTS[2]) == said(engine, PROMPTS[2])  # what was scored left no trace


# -- ends of all kinds ---------------------------------------------------------------------------------------------


def test_a_model_that_fails_ends_every_stream_with_an_error(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(model)
    streams = [engine.stream(Request(ids, Sampling(0, 1, 50))) for ids in PROMPTS[:3]]
    for stream in streams:
        next(stream)

    def broken(**_: Any) -> Any:
        raise RuntimeError("the disk of the moon is full")

    with monkeypatch.context() as patched:
        patched.setattr(model, "forward", broken)
        for stream in streams:
            with pytest.raises(MrpError, match="the disk of the moon is full"):
                list(stream)
    assert said(engine, PROMPTS[0]) == plain(model, PROMPTS[0])  # and the engine goes on


def test_full_memory_drops_what_is_parked_before_it_gives_up(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(model)
    said(engine, PROMPTS[0])
    forward = model.forward
    full = [True]

    def tight(**given: Any) -> Any:
        if full:
            full.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(**given)

    monkeypatch.setattr(model, "forward", tight)
    assert said(engine, PROMPTS[2]) == plain_of(forward, PROMPTS[2])
    assert engine.stats.dropped == 1
    full += [True, True]
    with pytest.raises(MrpError) as caught:
        said(engine, PROMPTS[3])
    assert "memory is full" in caught.value.what and "chat.context_tokens" in caught.value.fix


def plain_of(forward: Any, ids: Sequence[int]) -> list[int]:
    return plain(lambda **given: forward(**given), ids)


def test_closing_ends_running_streams_and_frees_what_was_kept(model: Any) -> None:
    engine = engine_of(model)
    stream = engine.stream(Request(PROMPTS[0], Sampling(0, 1, 500)))
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(said, engine, PROMPTS[2], Sampling(0, 1, 400))
        engine.close()
        assert list(stream) == []
        try:
            assert len(other.result(30)) < 400
        except MrpError as error:  # it had not begun
            assert "closed" in error.what
    assert engine.stats.cache_bytes == 0
    with pytest.raises(MrpError, match="closed"):
        said(engine, PROMPTS[0])


def test_an_interrupted_reader_leaves_others_and_the_engine_whole(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(model)
    other = engine.stream(Request(PROMPTS[2], Sampling(0, 1, 30)))
    found = [next(other)]
    forward = model.forward

    def interrupted(**given: Any) -> Any:
        forward(**given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(model, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            said(engine, PROMPTS[0])
    assert ids_of(found + list(other)) == plain(model, PROMPTS[2], 30)
    assert said(engine, PROMPTS[0]) == plain(model, PROMPTS[0])


def test_a_step_broken_off_while_a_token_is_chosen_is_made_again(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(model)
    fresh = Request(PROMPTS[3], Sampling(0, 1, 20))
    others = [engine.stream(Request(PROMPTS[2], Sampling(0, 1, 30))), engine.stream(fresh)]
    found = [next(others[0])]

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mrp.play.embedded.choose_tokens", interrupted)
        with pytest.raises(KeyboardInterrupt):
            said(engine, PROMPTS[0])
    assert ids_of(found + list(others[0])) == plain(model, PROMPTS[2], 30)
    assert ids_of(list(others[1])) == plain(model, PROMPTS[3])


def test_a_score_that_fails_says_so_and_the_engine_goes_on(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(model)

    def broken(**_: Any) -> Any:
        raise RuntimeError("the disk of the moon is full")

    with monkeypatch.context() as patched:
        patched.setattr(model, "forward", broken)
        with pytest.raises(MrpError, match="the disk of the moon is full"):
            engine.score(PROMPTS[0], [[1]])
    assert said(engine, PROMPTS[0]) == plain(model, PROMPTS[0])


def test_a_cancelled_reply_leaves_its_row_at_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(model)
    streams = [engine.stream(Request(ids, Sampling(0, 1, 200))) for ids in (PROMPTS[0], PROMPTS[2])]
    for stream in streams:
        next(stream)
    rows: list[int] = []
    forward = model.forward

    def counted(**given: Any) -> Any:
        rows.append(len(given["input_ids"]))
        return forward(**given)

    monkeypatch.setattr(model, "forward", counted)
    for _ in range(10):
        next(streams[0])
    assert 2 in rows
    rows.clear()
    streams[1].close()
    for _ in range(10):
        next(streams[0])
    assert set(rows) == {1}
    said(engine, PROMPTS[2])
    assert engine.stats.reused == len(PROMPTS[2]) - 1  # what it had read is there for the next


def test_prompts_wait_while_those_at_work_fill_the_memory(model: Any) -> None:
    one = engine_of(model)
    said(one, PROMPTS[0])
    limit = one.stats.cache_bytes
    engine = engine_of(model, cache_bytes=limit)
    said(engine, PROMPTS[1])  # the engine now knows what a token takes
    requests = [Request([start, *PROMPTS[0][1:]], GREEDY) for start in (1, 2, 3)]
    most: list[int] = []
    bytes_in_use = engine._bytes_in_use

    def watched() -> int:
        most.append(bytes_in_use())
        return most[-1]

    engine._bytes_in_use = watched  # type: ignore[method-assign]
    found = all_at_once(engine, requests)
    assert found == [plain(model, request.ids) for request in requests]
    assert max(most) <= limit


def test_one_reader_of_two_replies_never_waits_for_itself(model: Any) -> None:
    """Its second reply must not wait for memory that only the first, which nobody reads on, could free."""
    engine = engine_of(model, cache_bytes=1)
    said(engine, PROMPTS[1])
    first, second = (engine.stream(Request(ids, Sampling(0, 1, 30))) for ids in (PROMPTS[0], PROMPTS[2]))
    begun = [next(first)]
    assert ids_of(list(second)) == plain(model, PROMPTS[2], 30)
    assert ids_of(begun + list(first)) == plain(model, PROMPTS[0], 30)


def test_an_empty_prompt_is_refused(model: Any) -> None:
    engine = engine_of(model)
    for work in (lambda: said(engine, []), lambda: engine.score([], [[1]])):
        with pytest.raises(MrpError, match="empty prompt"):
            work()
