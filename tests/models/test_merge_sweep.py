"""A large merge in one sweep: the same files as piece by piece, and passes that say what the models themselves say."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mrp.errors import InputError, MrpError, SetupError
from mrp.models import merge_check, merge_probes, merge_sweep, page_cache, shard_files, shards
from mrp.models.merge import MERGE_RECORD, merge
from mrp.models.merge_numbers import Blocks, Folding
from mrp.models.merge_plan import MergePlan, plan_merge
from mrp.models.shard_files import ShardFiles
from mrp.models.shards import Shard, plan_shards, raw_pieces, read_weights, write_shards

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from merging import (  # noqa: E402  # they need peft
    BF16,
    FP16,
    FP32,
    PROBES,
    change_tensors,
    contents,
    make_adapter,
    make_base,
    widen,
)

THREE_ROWS = 4 * 32 * 3  # bytes of a block of three rows of the tiny model, so that its matrices have many
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {tied: make_base(folder / f"tied-{tied}", BF16, tied) for tied in (True, False)}


@pytest.fixture(scope="module")
def adapter(made: dict[bool, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter") / "cast", made[True])


@pytest.fixture
def _swept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model counts as large."""
    monkeypatch.setattr(merge_check, "LARGE_BYTES", 0)


def spread(adapter: Path, *parts: str) -> Path:
    """The adapter with lengths or norms as training leaves them: no longer those that it began with."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        torch.manual_seed(5)
        for name, tensor in tensors.items():
            if any(part in name for part in parts):
                tensor.mul_(1 + 0.3 * torch.rand(tensor.shape))

    change_tensors(adapter / "adapter_model.safetensors", change)
    return adapter


# -- the law -------------------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "several": {},
    "dora": {"use_dora": True},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "tied head": {"target_modules": ["lm_head", "embed_tokens", "q_proj"]},
    "saved norm": {"modules_to_save": ["norm"], "target_modules": ["v_proj"]},
    "saved head": {"modules_to_save": ["lm_head"], "target_modules": ["v_proj"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_sweep_writes_the_same_files_and_says_what_both_models_say(
    made: dict[bool, Path], adapter: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = made[kind not in ("head", "saved head")]
    adapters = [(adapter, 1.0)]
    if kind == "several":
        adapters.append((make_adapter(tmp_path / "voice", base, r=2, target_modules=["q_proj", "down_proj"]), -0.5))
    elif kind != "plain":
        adapters = [(spread(make_adapter(tmp_path / "a", base, **KINDS[kind]), "magnitude", "norm"), 1.0)]
    monkeypatch.setattr(shards, "PIECE_BYTES", THREE_ROWS)
    plain = merge(base, adapters, tmp_path / "plain", max_shard_size="20kB", probes=PROBES)
    logits = says(base, adapters, tmp_path / "plain")

    plan = plan_merge(base, read_weights(base), adapters)
    folding, part = Folding(plan.changes), tmp_path / "part"
    part.mkdir()
    heard: list[int] = []
    pieces = plan_shards(plan.tensors, 20_000)
    passes = merge_sweep.sweep(base, plan, pieces, part, folding, PROBES, heard.append)
    written = contents(part)
    assert len(pieces) > 1 and {*written} == {*(s.name for s in pieces), shards.INDEX}
    assert all(contents(tmp_path / "plain")[name] == found for name, found in written.items())
    assert heard == sorted(heard) and heard[-1] == sum(s.data_bytes for s in pieces)
    rounding = folding.rounding()
    for key, value in plain["rounding"].items():
        assert rounding[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)
    for found, expected in zip(passes, logits, strict=True):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def says(base: Path, adapters: list[tuple[Path, float]], merged: Path) -> list[list[torch.Tensor]]:
    """Logits by transformers and PEFT themselves: base + adapters, the base with what they replace alone, merged."""
    model = merge_probes.load_with_adapters(base, FP32, adapters)
    expected = merge_probes.logits_of(model, PROBES)
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.enable_adapters(False)
    without = merge_probes.logits_of(model, PROBES)
    return [expected, without, merge_probes.logits_of(merge_probes.load_merged(merged, FP32), PROBES)]


@pytest.mark.usefixtures("_swept")
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=["bf16", "fp16", "fp32"])
def test_biases_and_all_formats_go_through_the_sweep(tmp_path: Path, dtype: torch.dtype) -> None:
    """Qwen2 has biases on q, k and v."""
    config = transformers.Qwen2Config(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(7)
    model = transformers.Qwen2ForCausalLM(config)
    widen(model)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.bias.normal_(0, 0.5)
    base = make_base(tmp_path / "base")  # for its tokenizer
    model.to(dtype).save_pretrained(base)
    adapter = make_adapter(tmp_path / "adapter", base)
    found = merge(base, adapter, tmp_path / "out", probes=PROBES)["verification"]
    assert "as they were written" in found["compared"]
    assert found["mean_kl"] <= merge_check.LARGEST_MEAN_KL[dtype] / 10
    assert found["adapter_mean_kl"] > merge_check.LARGEST_MEAN_KL[BF16]  # or the comparison would say nothing
    short = merge_check.short_probes(PROBES)
    expected = merge_probes.logits_of(merge_probes.load_with_adapters(base, FP32, [(adapter, 1.0)]), short)
    got = merge_probes.logits_of(merge_probes.load_merged(tmp_path / "out", FP32), short)
    themselves = merge_probes.compare_logits(expected, got)
    for key in ("mean_kl", "largest_logit_difference", "same_first_choice"):
        assert found[key] == pytest.approx(themselves[key], rel=0.05, abs=1e-6)


@pytest.mark.usefixtures("_swept")
def test_check_of_the_sweep_and_check_of_the_folder_say_the_same(
    made: dict[bool, Path], adapter: Path, tmp_path: Path
) -> None:
    swept_says = merge(made[True], adapter, tmp_path / "out", probes=PROBES)["verification"]
    folder_says = merge_check.verify(made[True], adapter, tmp_path / "out", PROBES)
    assert swept_says.pop("compared") != folder_says.pop("compared")
    for key, value in folder_says.items():
        assert swept_says[key] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value)


# -- planted faults ------------------------------------------------------------------------------------------------

Put = Callable[[ShardFiles, str, int, Any], None]


def twice_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer of two gets other numbers than the adapter says, and its rows agree with them."""
    add = Blocks.add

    def wrong(self: Blocks, stored: torch.Tensor, first: int, end: int, step: int = 1) -> Any:
        exact, added = add(self, stored, first, end, step)
        if self.source.name == UP and self.left is not None and self.right is not None:
            exact.addmm_(self.left[first:end], self.right)
        return exact, added

    monkeypatch.setattr(Blocks, "add", wrong)


def spoiled_put(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Put, ShardFiles, str, int, Any], None]) -> None:
    put = ShardFiles.put

    def wrong(self: ShardFiles, name: str, at: int, piece: Any) -> None:
        spoil(put, self, name, at, piece) if name == UP else put(self, name, at, piece)

    monkeypatch.setattr(ShardFiles, "put", wrong)


def a_block_of_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(put: Put, files: ShardFiles, name: str, at: int, piece: Any) -> None:
        put(files, name, at, bytes(len(piece)) if at == 64 * 9 else piece)

    spoiled_put(monkeypatch, spoil)


def two_blocks_changed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(put: Put, files: ShardFiles, name: str, at: int, piece: Any) -> None:
        put(files, name, {64 * 9: 64 * 12, 64 * 12: 64 * 9}.get(at, at), piece)

    spoiled_put(monkeypatch, spoil)


def nan_in_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(put: Put, files: ShardFiles, name: str, at: int, piece: Any) -> None:
        put(files, name, at, b"\xff" * len(piece) if at == 64 * 9 else piece)

    spoiled_put(monkeypatch, spoil)


@pytest.mark.usefixtures("_swept")
@pytest.mark.parametrize("plant", [twice_the_scale, a_block_of_zeros, two_blocks_changed_over, nan_in_a_block])
def test_fault_in_one_layer_is_found(
    made: dict[bool, Path],
    adapter: Path,
    tmp_path: Path,
    plant: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shards, "PIECE_BYTES", THREE_ROWS)
    merge(made[True], adapter, tmp_path / "right", probes=PROBES)
    plant(monkeypatch)
    with pytest.raises(MrpError, match="not base"):
        merge(made[True], adapter, tmp_path / "out", probes=PROBES)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("_swept")
def test_nan_of_the_base_is_named_and_nothing_is_left(tmp_path: Path, adapter: Path) -> None:
    base = make_base(tmp_path / "base")

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP][5, 5] = float("nan")

    change_tensors(base / "model.safetensors", spoil)
    with pytest.raises(InputError, match=r"up_proj\.weight of the base holds NaN"):
        merge(base, adapter, tmp_path / "out", probes=PROBES)
    assert {p.name for p in tmp_path.iterdir()} == {"base"}


@pytest.mark.usefixtures("_swept")
def test_full_disk_in_the_sweep_leaves_the_old_merge(
    made: dict[bool, Path], adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    merge(made[True], adapter, out, probes=PROBES)
    before = contents(out)
    other = make_adapter(tmp_path / "other", made[True], r=2)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    spoiled_put(monkeypatch, full)
    with pytest.raises(SetupError, match="disk"):
        merge(made[True], other, out, probes=PROBES)
    assert contents(out) == before and MERGE_RECORD in before
    assert {p.name for p in tmp_path.iterdir()} == {"out", "other"}


# -- files in any order --------------------------------------------------------------------------------------------


def test_files_written_in_any_order_are_those_written_in_order(made: dict[bool, Path], tmp_path: Path) -> None:
    weights = read_weights(made[False])
    pieces = plan_shards(weights.values(), 30_000)
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    write_shards(tmp_path / "one", pieces, raw_pieces)
    with ShardFiles(tmp_path / "other", pieces) as files:
        for tensor in reversed(weights.values()):
            data = b"".join(raw_pieces(tensor))
            half = len(data) // 2
            files.put(tensor.name, half, data[half:])
            files.put(tensor.name, 0, data[:half])
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_letting_go_of_pages_changes_no_byte(
    made: dict[bool, Path], adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[Path] = []

    def seen(path: Path, start: int = 0, count: int = 0) -> None:
        gone.append(path)
        page_cache.let_go(path, start, count)

    monkeypatch.setattr(merge_check, "LARGE_BYTES", 0)
    merge(made[True], adapter, tmp_path / "kept", probes=PROBES)
    for module in (shard_files, merge_sweep):
        monkeypatch.setattr(module, "let_go", seen)
    monkeypatch.setattr(shard_files, "FLUSH_BYTES", 1000)
    monkeypatch.setattr(merge_sweep, "stays_in_memory", lambda _: False)
    merge(made[True], adapter, tmp_path / "gone", probes=PROBES)
    assert contents(tmp_path / "kept") == contents(tmp_path / "gone")
    assert {p.parent.name == "tied-True" for p in gone} == {True, False}  # pages of the base, and of the new files
    assert page_cache.stays_in_memory(0) and not page_cache.stays_in_memory(2**60)


def test_bytes_that_nobody_wrote_are_noticed(made: dict[bool, Path], tmp_path: Path) -> None:
    weights = read_weights(made[False])
    with (
        pytest.raises(AssertionError, match="nobody wrote"),
        ShardFiles(tmp_path, [Shard("x", tuple(weights.values()))]),
    ):
        pass


def test_a_plan_without_changes_is_not_swept(made: dict[bool, Path]) -> None:
    assert not merge_check.is_large(made[True], MergePlan(list(read_weights(made[True]).values()), {}))
