"""What merging into the full-precision base changes for an adapter that was trained on a quantised one.

    quantised_shift(base, adapters, merged, probes, report)     # None where it was trained on the base as it is

QLoRA trains beside weights in four bits (Dettmers et al. 2023, arXiv 2305.14314); merged, the adapter stands beside the
weights that these were rounded from. Merging is exact all the same; what people talked to during training was another
model, and this says by how much, where bitsandbytes is installed.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mrp.errors import InputError, MrpError
from mrp.files import read_json
from mrp.models.merge_plan import Weighted
from mrp.models.merge_probes import compare_logits, default_probes, load_merged, load_with_adapters, logits_of
from mrp.models.shards import read_weights
from mrp.report import Reporter

LARGEST = 4 * 10**9  # bytes of weights: above it the shift is not measured here, but by the evaluation of the run


def trained_bits(adapter: Path) -> int:
    """How many bits the base's weights had in training, as the run's record beside the adapter says (else 16)."""
    with suppress(InputError, OSError, LookupError, TypeError):
        return int(read_json(adapter.parent / "run.json")["options"]["train"]["bits"])
    return 16


def quantised_shift(
    base: Path,
    adapters: Sequence[Weighted],
    merged: Path,
    probes: Sequence[Sequence[int]] | None,
    report: Reporter,
) -> dict[str, Any] | None:
    """The difference on the probes between quantised base + adapters and the merged model; None if none was quantised.

    Where it cannot be measured, `shift` is None and `reason` says why. The merge stays as it is either way.
    """
    quantised = [folder.name for folder, _ in adapters if trained_bits(folder) == 4]
    if not quantised:
        return None
    found: dict[str, Any] = {"bits": 4, "shift": None}
    weights = read_weights(base)
    if sum(t.nbytes for t in weights.values()) > LARGEST:
        found["reason"] = "the model is too large to be run here twice; `mrp eval` compares replies"
    else:
        try:
            found["shift"] = _measure(base, adapters, merged, probes)
        except MrpError as error:
            found["reason"] = f"{error.what}; {error.fix}"
        except (RuntimeError, ValueError, NotImplementedError) as error:
            # bitsandbytes has no CPU kernel for every shape; the merge, which is checked, must not fail by that.
            found["reason"] = f"bitsandbytes cannot run it here: {(str(error).splitlines() or [''])[0][:200]}"
    if shift := found["shift"]:
        report.line(
            f"trained beside a base in 4 bits, merged into the full one: same first choice at "
            f"{shift['same_first_choice']:.1%} of {shift['positions']} tokens, mean KL {shift['mean_kl']:.1e}"
        )
    else:
        what = "the adapter was trained beside a base in 4 bits, and is merged into the full one"
        report.warn(f"{what}; the shift was not measured: {found['reason']}")
    return found


def _measure(
    base: Path, adapters: Sequence[Weighted], merged: Path, probes: Sequence[Sequence[int]] | None
) -> dict[str, Any]:
    import torch

    texts = probes or default_probes(merged)
    model = load_with_adapters(base, torch.float32, adapters, bits=4)
    expected = logits_of(model, texts)
    del model
    gc.collect()
    model = load_merged(merged, torch.float32)
    shift = compare_logits(expected, logits_of(model, texts))
    del model
    gc.collect()  # see merge_check
    return shift
