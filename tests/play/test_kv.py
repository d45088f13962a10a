"""What the rows of a batch hand to the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_base

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mrp.models.load import Hardware  # noqa: E402
from mrp.play.kv import KeysValues, Row, RowsReader  # noqa: E402


def test_the_head_gets_states_that_lie_together(tmp_path: Path) -> None:
    """Else the whole head is copied once for each row of a prompt's piece."""
    folder = save_base(tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen: list[Any] = []
    model.get_output_embeddings().register_forward_hook(lambda _, given, __: seen.append(given[0]))
    reader = RowsReader(model, Hardware("cpu", torch.float32, None))
    reader.read([Row(KeysValues(), list(range(start, start + 9))) for start in (20, 40, 60)])
    width = model.config.hidden_size
    assert [(one.shape, one.stride()) for one in seen] == [((3, 1, width), (width, width, 1))]
    assert not model.get_output_embeddings()._forward_pre_hooks  # outside, the model is as it was
