"""Does litellm work with `mrp serve`: whole replies, streams, many at once, and every error as its own class?

    python benchmarks/client_litellm.py [RUN] [--cast cast.yaml] [--litellm 1.75.0] [--venv FOLDER]

litellm pins openai below 3, so it gets an environment of its own, made at the first use. RUN (a run, or a model folder;
the default base if none is named) is served on the loopback. Exits with 1 if a check fails. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mrp.models.bases import DEFAULT_BASE, KNOWN_BASES, base_folder

CAST = Path(__file__).parents[1] / "examples" / "pilgrims" / "cast.yaml"

# What runs in litellm's own environment: it has no mrp.
THERE = """
import asyncio, importlib.metadata, json, os, sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it asks the network for prices otherwise
import litellm

litellm.suppress_debug_info = True
here = dict(api_base=sys.argv[1], api_key="none", max_retries=0, timeout=300)
wukong = dict(model="openai/wukong", messages=[{"role": "user", "content": "Who are you?"}], **here)
checks = {}


def refused(kind, words, **more):
    try:
        litellm.completion(**{**wukong, **more})
    except kind as error:
        return all(word in str(error) for word in words)
    return False


whole = litellm.completion(**wukong, temperature=0, max_tokens=24, seed=1)
text, usage = whole.choices[0].message.content, whole.usage
checks["a reply"] = bool(text) and whole.choices[0].finish_reason in ("stop", "length")
checks["its usage"] = usage.prompt_tokens > 0 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
asked = dict(temperature=0, max_tokens=24, seed=1, stream=True, stream_options={"include_usage": True})
chunks = list(litellm.completion(**wukong, **asked))
checks["a stream is the same reply"] = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
checks["a stream ends with the usage"] = any(getattr(c, "usage", None) for c in chunks)
hungry = [{"role": "user", "content": "Pigsy, are you hungry?"}]
auto = litellm.completion(model="openai/auto", messages=hungry, max_tokens=8, **here)
checks["auto says who"] = auto.choices[0].message.content.startswith("Zhu Bajie: ")
two = litellm.completion(**wukong, n=2, max_tokens=8, stop=["\\n"], presence_penalty=0.5, user="u1")
checks["two choices"] = len(two.choices) == 2


async def many():
    return await asyncio.gather(*(litellm.acompletion(**wukong, max_tokens=8) for _ in range(6)))


checks["six at once"] = all(answer.choices[0].message.content for answer in asyncio.run(many()))
tool = {"type": "function", "function": {"name": "roll", "parameters": {"type": "object", "properties": {}}}}
checks["no such character"] = refused(litellm.NotFoundError, ["did you mean 'wukong'"], model="openai/wukon")
checks["tools"] = refused(litellm.BadRequestError, ["call no tools"], tools=[tool])
checks["json"] = refused(litellm.BadRequestError, ["no grammar"], response_format={"type": "json_object"})
checks["too long"] = refused(litellm.BadRequestError, ["context"], max_tokens=10**6)
versions = {name: importlib.metadata.version(name) for name in ("litellm", "openai")}
print(json.dumps({"checks": checks, **versions}))
"""


def main(told: str, package: str, there: str, *also: str) -> int:
    """Run the checks of `there` with the newest `package` (or the one asked for) against a served run."""
    options = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", nargs="?", type=Path, help="a run, or a model folder with --cast")
    options.add_argument("--cast", type=Path)
    name = package.split("-")[0]
    options.add_argument(f"--{name}", dest="version", default="", metavar="VERSION", help="default: the newest")
    options.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / f"mrp-{name}")
    given = options.parse_args()
    run = given.run or base_folder(KNOWN_BASES[DEFAULT_BASE])
    cast = given.cast or (None if given.run else CAST)
    python = environment(given.venv, f"{package}=={given.version}" if given.version else package, *also)
    with served(run, cast) as url:
        done = subprocess.run([python, "-c", there, url], stdout=subprocess.PIPE, text=True, encoding="utf-8")
    if done.returncode:
        return 1
    found = json.loads(done.stdout.splitlines()[-1])
    for check, is_good in found["checks"].items():
        print(f"{'ok    ' if is_good else 'FAILED'} {check}")
    print(json.dumps(found))
    return 0 if all(found["checks"].values()) else 1


def environment(folder: Path, *wanted: str) -> Path:
    """The Python of an environment with these packages."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    return python


@contextmanager
def served(run: Path, cast: Path | None) -> Iterator[str]:
    """The address of a server on the loopback. In float32: the same question is then answered alike, cached or not."""
    more = ["--cast", str(cast)] if cast else []
    more += ["--set", "train.precision=fp32"]
    command = [sys.executable, "-m", "mrp", "serve", str(run), *more, "--port", "0", "--set", "chat.max_new_tokens=24"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout
            text = ""
            while not (found := re.search(r"http://\S+/v1", text)):
                line = process.stdout.readline()
                if not line:
                    raise SystemExit("mrp serve ended: run it by hand to see why")
                text += line.strip() + " "
            yield found.group()
        finally:
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    sys.exit(main(__doc__, "litellm", THERE, "mcp"))  # it imports mcp for tools
