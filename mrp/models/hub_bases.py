"""Base models on the hubs: those known by a short name, and what else a name can mean.

    parse_wanted("internlm2-chat-7b").repos     # {"hf": "internlm/internlm2-chat-7b", "modelscope": "Shanghai_AI_..."}
    parse_wanted("ms:Qwen/Qwen3-0.6B@master")   # any model of ModelScope, at a revision

A table and a small grammar; `pull.py` fetches, `bases.py` finds what was fetched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

PREFIXES = {"hf": "hf", "ms": "modelscope"}
COMMIT = re.compile(r"[0-9a-f]{40}")

_SPEC = re.compile(
    r"(?:(?P<prefix>hf|ms):)?(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:/(?P<file>[\w.-]+\.gguf))?(?:@(?P<revision>[\w./+-]+))?",
    re.ASCII,
)


@dataclass(frozen=True)
class HubBase:
    """A chat model under a short name: its ids on the hubs, its licence, and about what is downloaded (bytes)."""

    name: str
    hf: str
    modelscope: str | None
    license: str
    download_bytes: int
    about: str
    is_gated: bool = False  # on Hugging Face: the licence must be accepted there first


INTERNLM2_LICENSE = "code Apache-2.0; weights free for research, and for commercial use after an application"

HUB_BASES = {
    base.name: base
    for base in (
        HubBase(
            "internlm2-chat-7b",
            "internlm/internlm2-chat-7b",
            "Shanghai_AI_Laboratory/internlm2-chat-7b",
            INTERNLM2_LICENSE,
            15_500_000_000,
            "7.7B parameters, Chinese and English; arrives laid out as a Llama",
        ),
        HubBase(
            "internlm2-chat-1_8b",
            "internlm/internlm2-chat-1_8b",
            "Shanghai_AI_Laboratory/internlm2-chat-1_8b",
            INTERNLM2_LICENSE,
            3_800_000_000,
            "1.9B parameters, Chinese and English; arrives laid out as a Llama",
        ),
        HubBase(
            "qwen2.5-0.5b-instruct",
            "Qwen/Qwen2.5-0.5B-Instruct",
            "Qwen/Qwen2.5-0.5B-Instruct",
            "Apache-2.0",
            1_000_000_000,
            "0.5B parameters, Chinese, English and more",
        ),
        HubBase(
            "qwen2.5-1.5b-instruct",
            "Qwen/Qwen2.5-1.5B-Instruct",
            "Qwen/Qwen2.5-1.5B-Instruct",
            "Apache-2.0",
            3_100_000_000,
            "1.5B parameters, Chinese, English and more",
        ),
        HubBase(
            "qwen2.5-7b-instruct",
            "Qwen/Qwen2.5-7B-Instruct",
            "Qwen/Qwen2.5-7B-Instruct",
            "Apache-2.0",
            15_300_000_000,
            "7.6B parameters, Chinese, English and more",
        ),
        HubBase(
            "qwen3-0.6b",
            "Qwen/Qwen3-0.6B",
            "Qwen/Qwen3-0.6B",
            "Apache-2.0",
            1_500_000_000,
            "0.6B parameters, about a hundred languages",
        ),
        HubBase(
            "qwen3-4b",
            "Qwen/Qwen3-4B",
            "Qwen/Qwen3-4B",
            "Apache-2.0",
            8_100_000_000,
            "4B parameters, about a hundred languages",
        ),
        HubBase(
            "smollm2-360m-instruct",
            "HuggingFaceTB/SmolLM2-360M-Instruct",
            None,
            "Apache-2.0",
            730_000_000,
            "0.36B parameters, English",
        ),
        HubBase(
            "smollm2-1.7b-instruct",
            "HuggingFaceTB/SmolLM2-1.7B-Instruct",
            None,
            "Apache-2.0",
            3_500_000_000,
            "1.7B parameters, English",
        ),
        HubBase(
            "smollm3-3b",
            "HuggingFaceTB/SmolLM3-3B",
            None,
            "Apache-2.0",
            6_200_000_000,
            "3.1B parameters, six European languages",
        ),
        HubBase(
            "llama-3-8b-instruct",
            "meta-llama/Meta-Llama-3-8B-Instruct",
            "LLM-Research/Meta-Llama-3-8B-Instruct",
            "Llama 3 Community License",
            16_100_000_000,
            "8B parameters, English",
            is_gated=True,
        ),
        HubBase(
            "llama-3.2-1b-instruct",
            "meta-llama/Llama-3.2-1B-Instruct",
            "LLM-Research/Llama-3.2-1B-Instruct",
            "Llama 3.2 Community License",
            2_500_000_000,
            "1.2B parameters, eight languages",
            is_gated=True,
        ),
        HubBase(
            "mistral-7b-instruct-v0.3",
            "mistralai/Mistral-7B-Instruct-v0.3",
            "LLM-Research/Mistral-7B-Instruct-v0.3",
            "Apache-2.0",
            14_500_000_000,
            "7.2B parameters, English",
        ),
        HubBase(
            "gemma-3-1b-it",
            "google/gemma-3-1b-it",
            "LLM-Research/gemma-3-1b-it",
            "Gemma Terms of Use",
            2_100_000_000,
            "1B parameters, English",
            is_gated=True,
        ),
    )
}


@dataclass(frozen=True)
class Wanted:
    """What a name asks for: a repository on each source that may have it, a revision, and one file of several."""

    name: str  # as it was written
    repos: dict[str, str]  # source ("hf", "modelscope") -> "owner/name"
    folder_name: str  # in the cache, below bases/
    revision: str | None = None
    file: str | None = None  # of a repository with several GGUF files
    base: HubBase | None = None

    @property
    def is_certain(self) -> bool:
        """False for a bare `owner/name`, which may also have been meant as a path."""
        return self.base is not None or len(self.repos) == 1


def parse_wanted(name: str) -> Wanted | None:
    """What `name` asks for, or None if it names nothing on a hub.

    A known name (in any case), `owner/name`, `hf:owner/name` or `ms:owner/name`; each repository with `@revision`, and
    with `/file.gguf` where it holds several of them.
    """
    known, _, revision = name.partition("@")
    if base := HUB_BASES.get(known.lower()):
        repos = {"hf": base.hf} | ({"modelscope": base.modelscope} if base.modelscope else {})
        return Wanted(name, repos, base.name, revision or None, base=base)
    found = _SPEC.fullmatch(name)
    if not found:
        return None
    sources = [PREFIXES[found["prefix"]]] if found["prefix"] else list(PREFIXES.values())
    folder = found["repo"].replace("/", "--")
    if found["file"]:
        folder += f"--{PurePosixPath(found['file']).stem}"
    return Wanted(name, dict.fromkeys(sources, found["repo"]), folder, found["revision"], found["file"])
