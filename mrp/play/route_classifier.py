"""A small classifier that knows from the training set which character is asked what: logistic regression on n-grams.

    classifier = train_classifier([*prompts_of(read_samples(path)), *told_of(cast)])      # needs scikit-learn
    save_classifier(classifier, run.folder / "router.safetensors")
    load_classifier(path).probabilities("Any buns left?")             # {"wukong": 0.1, "bajie": 0.8}; numpy is enough

Features are character 1- to 3-grams and words with pairs of words, weighed by tf-idf (1 + log count, times idf, length
one). Used by `route.py`; the file holds numbers and text only.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mrp.cast import PLAIN, Cast
from mrp.data.samples import Sample
from mrp.errors import InputError, need_extra
from mrp.files import replacing_binary

MAX_CHARACTERS = 4000  # of a message that are looked at, the last ones: the question stands at the end
SEEN_AT_LEAST = 2  # messages in which a feature must occur
STRENGTH = 3.0  # inverse of the L2 penalty (scikit-learn's C), see docs/route.md
TOLD_TIMES = 3  # that what the cast tells of a character counts, where a prompt counts once
FORMAT = "2"
TENSORS = ("idf", "weights", "bias", "usual")


class Prompt(NamedTuple):
    """What was said to a character before it spoke."""

    text: str
    character: str
    dialogue: str  # id of the sample


def prompts_of(samples: Iterable[Sample]) -> list[Prompt]:
    """What was said last before every line of a character that is learnt.

    The last line alone: what others said before it points elsewhere as often (docs/route.md).
    """
    prompts: list[Prompt] = []
    for sample in samples:
        if sample.character == PLAIN:
            continue
        said = ""  # by others since the character's last line
        for turn, learnt in zip(sample.turns, sample.loss, strict=True):
            if turn.speaker != sample.character:
                said = turn.text or said
                continue
            if learnt and said:
                prompts.append(Prompt(last_line(said), sample.character, sample.id))
            said = ""
    return prompts


def told_of(cast: Cast) -> list[Prompt]:
    """What the cast tells of each character (persona, lore and its keys), as if it were asked that."""
    told = [
        Prompt(text, c.id, "")
        for c in cast
        for text in (cast.persona(c.id), *(f"{' '.join(entry.keys)} {entry.text}" for entry in c.lore))
    ]
    return told * TOLD_TIMES


def fits_anybody(prompts: Iterable[Prompt]) -> set[str]:
    """The `bare` texts that several characters were asked: nobody can tell from them who should answer."""
    asked: dict[str, set[str]] = defaultdict(set)
    for prompt in prompts:
        asked[bare(prompt.text)].add(prompt.character)
    return {text for text, characters in asked.items() if len(characters) > 1}


def last_line(text: str) -> str:
    """The last line of what was said: where data joins the lines of several, the one that is answered."""
    return text.strip().rsplit("\n", 1)[-1].strip()


def bare(text: str) -> str:
    """`text` without case, width, punctuation and space."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def ngrams(text: str) -> Iterator[str]:
    """The features of a message, repeats included."""
    plain = " ".join(unicodedata.normalize("NFKC", text[-MAX_CHARACTERS:]).casefold().split())
    for length in (1, 2, 3):
        for at in range(len(plain) - length + 1):
            yield plain[at : at + length]
    words = re.findall(r"[^\W\u2e80-\u9fff]+(?:'[a-z]+)?", plain)
    yield from (f"word {word}" for word in words)
    yield from (f"pair {a} {b}" for a, b in itertools.pairwise(words))


@dataclass(frozen=True)
class Classifier:
    """Who is asked what. C characters, F features."""

    characters: list[str]
    features: dict[str, int]
    idf: np.ndarray[Any, Any]  # (F,)
    weights: np.ndarray[Any, Any]  # (C, F)
    bias: np.ndarray[Any, Any]  # (C,)
    usual: np.ndarray[Any, Any]  # (C,): how often each is asked at all
    made_from: str  # hash of the training set

    def probabilities(self, text: str) -> dict[str, float]:
        """How likely each character is the one who is asked `text`; they sum to 1."""
        columns, values = self._vector(text)
        logits = (self.weights[:, columns] @ values + self.bias).astype(np.float64)
        shares = np.exp(logits - logits.max())
        return dict(zip(self.characters, (shares / shares.sum()).tolist(), strict=True))

    def usual_shares(self) -> dict[str, float]:
        """How often each character is asked, whatever is said."""
        return dict(zip(self.characters, self.usual.tolist(), strict=True))

    def evidence(self, text: str, character: str, count: int = 3) -> list[str]:
        """Words (of Chinese: 2 or 3 characters) of `text` that speak most for `character`, the strongest first."""
        columns, values = self._vector(text)
        lead = (self.weights[self.characters.index(character), columns] - self.weights[:, columns].mean(0)) * values
        names = {at: name for name, at in self.features.items()}
        told: list[str] = []
        for at in np.argsort(-lead, kind="stable"):
            if lead[at] <= 0 or len(told) == count:
                break
            kind, _, word = names[int(columns[at])].partition(" ")
            name = word if kind in ("word", "pair") else kind if re.fullmatch(r"[\u2e80-\u9fff]{2,}", kind) else ""
            if name and not any(name in other or other in name for other in told):
                told.append(name)
        return told

    def _vector(self, text: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The known features of `text` as columns and values of length one."""
        counts = Counter(self.features[f] for f in ngrams(text) if f in self.features)
        columns = np.array(sorted(counts), np.int64)
        values = np.array([1 + np.log(counts[int(c)]) for c in columns], np.float32) * self.idf[columns]
        return columns, values / max(float(np.linalg.norm(values)), 1e-9)


def train_classifier(prompts: Sequence[Prompt], made_from: str = "") -> Classifier:
    """Fit the classifier; raises `SetupError` without scikit-learn, `InputError` where fewer than two are asked."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]
        from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
    except ImportError:
        raise need_extra("train", "scikit-learn") from None
    characters = sorted({prompt.character for prompt in prompts})
    if len(characters) < 2:
        what = f"prompts of {len(characters)} character{'s' * (len(characters) != 1)} teach no choice"
        raise InputError(what, "the training set", "the router's classifier needs two characters or more")
    texts, labels = [p.text for p in prompts], [p.character for p in prompts]
    tfidf = TfidfVectorizer(analyzer=ngrams, sublinear_tf=True, min_df=min(SEEN_AT_LEAST, len(texts)))
    model = LogisticRegression(C=STRENGTH, max_iter=1000).fit(tfidf.fit_transform(texts), labels)
    weights, bias = model.coef_, model.intercept_
    if len(characters) == 2:  # one row for the second of two: a softmax over (-z/2, z/2) is the sigmoid of z
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    features = {str(name): int(at) for name, at in tfidf.vocabulary_.items()}
    single = np.float32
    return Classifier(
        [str(c) for c in model.classes_],
        features,
        tfidf.idf_.astype(single),
        weights.astype(single),
        bias.astype(single),
        np.array([labels.count(str(c)) / len(labels) for c in model.classes_], single),
        made_from,
    )


def save_classifier(classifier: Classifier, path: Path) -> None:
    """Write it as one safetensors file (names in its header), whole or not at all."""
    from safetensors.numpy import save

    names = sorted(classifier.features, key=classifier.features.__getitem__)
    about = {"format": FORMAT, "characters": classifier.characters, "features": names, "data": classifier.made_from}
    header = {"about": json.dumps(about, ensure_ascii=False)}  # one key: the order of several would change by run
    tensors = {name: np.ascontiguousarray(getattr(classifier, name)) for name in TENSORS}
    with replacing_binary(path) as file:
        file.write(save(tensors, metadata=header))


def load_classifier(path: Path) -> Classifier:
    """Read what `save_classifier` wrote; raises `InputError` if it is something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            header = json.loads((file.metadata() or {})["about"])
            idf, weights, bias, usual = (file.get_tensor(name) for name in TENSORS)
        features = {name: at for at, name in enumerate(header["features"])}
        classifier = Classifier(header["characters"], features, idf, weights, bias, usual, header["data"])
        shapes = (idf.shape, weights.shape, bias.shape, usual.shape)
        count, width = len(classifier.characters), len(features)
        if header["format"] != FORMAT or shapes != ((width,), (count, width), (count,), (count,)):
            raise ValueError("names and numbers do not belong together")
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"not a router's classifier: {error}", str(path), "delete it; it is made anew") from None
    return classifier
