"""Does LangChain work with `mrp serve`: replies, streams, batches, async, usage, prompts, and every refusal by name?

    python benchmarks/client_langchain.py [RUN] [--cast cast.yaml] [--langchain 1.0.0] [--venv FOLDER]

`langchain-openai` gets an environment of its own, made at the first use. RUN (a run, or a model folder; the default
base if none is named) is served on the loopback. Exits with 1 if a check fails. The last line is JSON.
"""

from __future__ import annotations

import sys

from client_litellm import main

# What runs in LangChain's own environment: it has no mrp.
THERE = """
import asyncio, importlib.metadata, json, sys

import openai
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


def model(name="wukong", **more):
    given = {"temperature": 0, "max_tokens": 24, "max_retries": 0, "timeout": 300, "stream_usage": True}
    return ChatOpenAI(model=name, base_url=sys.argv[1], api_key="none", **given | more)


def refused(kind, words, ask):
    try:
        ask()
    except kind as error:
        return all(word in str(error) for word in words)
    return False


class Weather(BaseModel):
    "Weather somewhere."
    place: str


@tool
def roll(sides: int) -> int:
    "Roll a die."
    return 4


checks = {}
wukong, asked = model(), "Who are you?"
whole = wukong.invoke(asked)
told, usage = whole.response_metadata, whole.usage_metadata
checks["invoke"] = bool(whole.content) and told["finish_reason"] in ("stop", "length")
checks["the model's name"] = told["model_name"] == "wukong"
checks["usage"] = usage["input_tokens"] > 0 < usage["output_tokens"] <= 24 and usage["total_tokens"] == (
    usage["input_tokens"] + usage["output_tokens"]
)
chunks = list(wukong.stream(asked))
checks["stream is the same reply"] = "".join(chunk.content for chunk in chunks) == whole.content
joined = sum(chunks[1:], chunks[0])
checks["stream has the same usage"] = bool(joined.usage_metadata) and all(
    joined.usage_metadata[key] == usage[key] for key in ("input_tokens", "output_tokens", "total_tokens")
)
batch = wukong.batch([asked, "What do you carry?", asked])
checks["batch, in order"] = batch[0].content == batch[2].content == whole.content


async def at_once():
    pieces = [chunk.content async for chunk in wukong.astream(asked)]
    return "".join(pieces), await wukong.abatch([asked] * 6)


streamed, six = asyncio.run(at_once())
checks["async"] = streamed == whole.content and [answer.content for answer in six] == [whole.content] * 6
talk = [SystemMessage("At the inn."), HumanMessage("Hello."), AIMessage("Ha!"), HumanMessage(asked, name="Alice")]
checks["messages of every role"] = bool(wukong.invoke(talk).content)
parts = HumanMessage([{"type": "text", "text": asked}])
checks["content as parts"] = wukong.invoke([parts]).content == whole.content
prompt = ChatPromptTemplate([("system", "At {place}."), MessagesPlaceholder("past"), ("human", "{said}")])
chain = prompt | wukong | StrOutputParser()
checks["a chain"] = bool(chain.invoke({"place": "the inn", "past": talk[1:3], "said": asked}))
word = whole.content.split()[1]
checks["stop"] = wukong.invoke(asked, stop=[word]).content == whole.content.split(word)[0]
hot = [model(temperature=1.5, seed=seed).invoke(asked).content for seed in (7, 7, 8)]
checks["seed"] = hot[0] == hot[1] != hot[2]
likely = model(logprobs=True, top_logprobs=2).invoke(asked).response_metadata["logprobs"]["content"]
checks["logprobs"] = len(likely[0]["top_logprobs"]) == 2 and likely[0]["logprob"] <= 0
two = model(n=2, temperature=1).generate([[HumanMessage(asked)]]).generations[0]
checks["two choices"] = len(two) == 2
auto = model("auto").invoke("Pigsy, are you hungry?")
checks["auto says who"] = auto.content.startswith("Zhu Bajie: ")
answers = model(use_responses_api=True)
checks["the Responses API"] = answers.invoke(asked).text == whole.content
checks["its stream"] = "".join(chunk.text for chunk in answers.stream(asked)) == whole.content
bad = openai.BadRequestError
checks["no such character"] = refused(
    openai.NotFoundError, ["did you mean 'wukong'"], lambda: model("wukon").invoke(asked)
)
no = "no grammar"
for method, words in (("json_schema", no), ("json_mode", no), ("function_calling", "call no tools")):
    shaped = wukong.with_structured_output(Weather, method=method)
    checks[f"structured output, {method}: refused"] = refused(bad, [words], lambda: shaped.invoke(asked))
checks["tools: refused"] = refused(bad, ["call no tools"], lambda: wukong.bind_tools([roll]).invoke(asked))
checks["reasoning: refused"] = refused(
    bad, ["reasoning_effort"], lambda: model(reasoning_effort="high").invoke(asked)
)
checks["a field of no one: refused"] = refused(
    bad, ["mirostat"], lambda: model(extra_body={"mirostat": 2}).invoke(asked)
)
checks["a stream that is refused"] = refused(bad, ["context"], lambda: list(model(max_tokens=10**6).stream(asked)))
names = ("langchain-openai", "langchain-core", "openai")
print(json.dumps({"checks": checks, **{name: importlib.metadata.version(name) for name in names}}))
"""

if __name__ == "__main__":
    sys.exit(main(__doc__, "langchain-openai", THERE))
