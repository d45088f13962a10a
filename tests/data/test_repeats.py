"""Near-duplicates: what is dropped is as like a kept one as it is said to be, and the first is always kept."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

np = pytest.importorskip("numpy")
pytest.importorskip("rensa")

from mrp.data import leaks, repeats  # noqa: E402
from mrp.data.leaks import straddling  # noqa: E402
from mrp.data.near import band_keys, banding, jaccard, ngrams, normalised, signatures  # noqa: E402
from mrp.data.repeats import near_duplicates, near_groups  # noqa: E402

WORDS = ["monkey", "king", "went", "over", "a", "cloud", "and", "said", "master", "wait", "here", "until", "we", "come"]
# few texts of few words, so that many are alike in many ways
some_texts = st.lists(st.lists(st.sampled_from(WORDS[:6]), max_size=7).map(" ".join), max_size=30)


class Texts(list[str]):
    """Texts that can be loaded by their place, also in another process, and know who was loaded."""

    def __call__(self, item: int) -> str:
        return self[item]


def bands_of(texts: list[str], threshold: float) -> list[np.ndarray]:
    return list(band_keys(signatures(texts), banding(threshold)).T)


def similarity(a: str, b: str) -> float:
    found = ngrams([a, b])
    return jaccard(found.of(0), found.of(1))


def family(count: int, edits: int, seed: int, words: int = 60) -> list[str]:
    """A text, and as many more with a few words of it changed."""
    chance = random.Random(seed)
    text = [chance.choice(WORDS) + str(chance.randrange(100)) for _ in range(words)]
    result = [" ".join(text)]
    for _ in range(count - 1):
        other = list(text)
        for _ in range(edits):
            other[chance.randrange(words)] = f"other{chance.randrange(10**6)}"
        result.append(" ".join(other))
    return result


def plainly(texts: list[str], bands: list[np.ndarray], threshold: float) -> dict[int, int]:
    """The same one by one: each against all kept ones before it that share a band, without limit."""
    kept: list[int] = []
    found: dict[int, int] = {}
    for item in range(len(texts)):
        for other in kept:
            if any(band[other] == band[item] for band in bands) and similarity(texts[other], texts[item]) >= threshold:
                found[item] = other
                break
        else:
            kept.append(item)
    return found


@settings(max_examples=60, deadline=None)
@given(texts=some_texts, threshold=st.sampled_from([0.5, 0.7, 0.9]), block=st.sampled_from([1, 3, 2**13]))
def test_laws_of_dropping(texts: list[str], threshold: float, block: int) -> None:
    bands = bands_of(texts, threshold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeats, "BLOCK", block)
        patch.setattr(repeats, "REPRESENTATIVES", 100)
        found = near_duplicates(bands, Texts(texts), threshold)
    first_of = dict(zip(found.dropped.tolist(), found.first.tolist(), strict=True))
    for item, first, alike in zip(found.dropped, found.first, found.similarity, strict=True):
        assert first < item and int(first) not in first_of  # the kept one is before it, and is kept
        assert alike == similarity(texts[first], texts[item]) >= threshold
    assert first_of == plainly(texts, bands, threshold)
    forms = [normalised(text) for text in texts]
    kept = [form for item, form in enumerate(forms) if form and item not in first_of]
    assert len(kept) == len(set(kept))  # equal texts are always found


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(8)), st.integers(0, 3))
def test_other_texts_between_change_nothing_of_what_is_found(order: list[int], seed: int) -> None:
    parts = [family(3, 2, seed * 100 + k) for k in range(8)]
    texts = [text for k in order for text in parts[k]]
    found = near_duplicates(bands_of(texts, 0.7), Texts(texts), 0.7)
    pairs = {(texts[a], texts[b]) for a, b in zip(found.first, found.dropped, strict=True)}
    alone = set()
    for part in parts:
        own = near_duplicates(bands_of(part, 0.7), Texts(part), 0.7)
        alone |= {(part[a], part[b]) for a, b in zip(own.first, own.dropped, strict=True)}
    assert pairs == alone and alone


def test_a_dropped_text_is_never_the_one_named() -> None:
    first, second, third = (" ".join(WORDS + extra) for extra in ([], ["number 1"], ["number 1", "and 2"]))
    assert similarity(first, second) > 0.75 and similarity(second, third) > 0.75 > similarity(first, third)
    texts = Texts([first, second, third])
    bands = [np.array(keys, np.uint64) for keys in ([1, 1, 2], [3, 4, 4])]
    found = near_duplicates(bands, texts, 0.75)
    assert (found.first.tolist(), found.dropped.tolist()) == ([0], [1])


def test_a_bucket_with_unlike_members_compares_with_each_of_them() -> None:
    one, other, more = (family(2, 1, seed) for seed in (1, 2, 3))
    texts = Texts([one[0], other[0], more[0], one[1], other[1], more[1], more[0]])
    found = near_duplicates([np.zeros(len(texts), np.uint64)], texts, 0.8)
    assert dict(zip(found.dropped.tolist(), found.first.tolist(), strict=True)) == {3: 0, 4: 1, 5: 2, 6: 2}


def test_limits_on_buckets_keep_the_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "BLOCK", 16)
    monkeypatch.setattr(repeats, "REPRESENTATIVES", 1)
    texts = family(150, 14, 5)  # about 0.5 alike: many share a bucket and few are repeats
    found = near_duplicates(bands_of(texts, 0.5), Texts(texts), 0.5)
    dropped = set(found.dropped.tolist())
    assert 5 < len(dropped) < 145
    assert not dropped & set(found.first.tolist())
    assert all(similarity(texts[a], texts[b]) >= 0.5 for a, b in zip(found.first, found.dropped, strict=True))


def test_many_copies_of_one_text_cost_a_comparison_each(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    plain = repeats.similarities

    def counted(load: repeats.Load, pairs: list[repeats.Pair]) -> list[float]:
        nonlocal compared
        compared += len(pairs)
        return plain(load, pairs)

    monkeypatch.setattr(repeats, "similarities", counted)
    texts = Texts(["Thank you for your question, it is a good one."] * 20_000)
    bands = [np.full(len(texts), key, np.uint64) for key in range(14)]
    found = near_duplicates(bands, texts, 0.8)
    assert len(found.dropped) == len(texts) - 1 and not found.first.any()
    assert compared == len(texts) - 1
    assert not near_groups(bands, texts, 0.8).any()
    assert compared <= 2 * (len(texts) - 1)


def test_unlike_texts_in_one_bucket_stay_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    plain = repeats.similarities

    def counted(load: repeats.Load, pairs: list[repeats.Pair]) -> list[float]:
        nonlocal compared
        compared += len(pairs)
        return plain(load, pairs)

    monkeypatch.setattr(repeats, "similarities", counted)
    texts = Texts(f"number {n} and nothing else {n * 7919}" for n in range(3000))
    same = [np.zeros(len(texts), np.uint64)]
    near_duplicates(same, texts, 0.95)
    assert compared <= len(texts) * (repeats.REPRESENTATIVES + 1)


def test_same_result_in_memory_on_disk_and_by_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "WORTH_WORKERS", 1)
    texts = Texts(text for k in range(30) for text in family(4, k % 8, k))
    random.Random(1).shuffle(texts)
    bands = bands_of(texts, 0.7)
    files = []
    for number, band in enumerate(bands):
        np.save(tmp_path / f"{number}.npy", band)
        files.append(np.load(tmp_path / f"{number}.npy", mmap_mode="r"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    one = near_duplicates(bands, texts, 0.7)
    two = near_duplicates(files, texts, 0.7, scratch=scratch, workers=2)
    assert len(one.dropped) > 20
    for a, b in zip((one.dropped, one.first, one.similarity), (two.dropped, two.first, two.similarity), strict=True):
        assert a.tolist() == b.tolist()
    assert not list(scratch.iterdir())


def test_nothing_in_nothing_out(tmp_path: Path) -> None:
    for bands in ([], [np.empty(0, np.uint64)] * 3):
        assert not len(near_duplicates(bands, Texts(), 0.8, scratch=tmp_path).dropped)
        assert not len(near_groups(bands, Texts(), 0.8))
    assert straddling([], Texts(), 0.8) == []


@settings(max_examples=40, deadline=None)
@given(texts=some_texts, threshold=st.sampled_from([0.5, 0.8]))
def test_groups_hold_all_alike_pairs_that_share_a_band(texts: list[str], threshold: float) -> None:
    bands = bands_of(texts, threshold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeats, "REPRESENTATIVES", 100)
        labels = near_groups(bands, Texts(texts), threshold)
    expected = list(range(len(texts)))
    for b in range(len(texts)):
        for a in range(b):
            if any(k[a] == k[b] for k in bands) and similarity(texts[a], texts[b]) >= threshold:
                old, new = max(expected[a], expected[b]), min(expected[a], expected[b])
                expected = [new if label == old else label for label in expected]
    assert labels.tolist() == expected


def test_groups_go_on_from_others() -> None:
    texts = Texts([*family(2, 1, 1), *family(2, 1, 2), "alone"])
    labels = near_groups(bands_of(texts, 0.7), texts, 0.7, labels=np.array([0, 1, 2, 3, 3]))
    assert labels.tolist() == [0, 0, 2, 2, 2]


def brute_force(texts: list[str], sides: list[int], threshold: float) -> set[tuple[int, int]]:
    return {
        (a, b)
        for a in range(len(texts))
        for b in range(len(texts))
        if (sides[a], sides[b]) == (0, 1) and similarity(texts[a], texts[b]) >= threshold
    }


@settings(max_examples=80, deadline=None)
@given(data=st.data(), texts=some_texts, threshold=st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_the_check_finds_every_training_text_that_comparing_all_finds(
    data: st.DataObject, texts: list[str], threshold: float
) -> None:
    sides = data.draw(st.lists(st.sampled_from([0, 0, 1, -1]), min_size=len(texts), max_size=len(texts)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaks, "INDEXED_AT_ONCE", data.draw(st.sampled_from([1, 40, 2**23])))
        patch.setattr(leaks, "TEXTS_AT_ONCE", data.draw(st.sampled_from([1, 3, 512])))
        patch.setattr(leaks, "OWNERS_AT_FIRST", data.draw(st.sampled_from([1, 4])))
        patch.setattr(leaks, "TRIED_AT_FIRST", data.draw(st.sampled_from([0, 0, 2])))
        patch.setattr(leaks, "COUNTERS", data.draw(st.sampled_from([2, 2**14])))
        found = straddling(sides, Texts(texts), threshold)
    expected = brute_force(texts, sides, threshold)
    assert [pair.train for pair in found] == sorted({a for a, _ in expected})
    for pair in found:
        assert (pair.train, pair.held_out) in expected
        assert pair.similarity == similarity(texts[pair.train], texts[pair.held_out])


@pytest.mark.parametrize("length", range(60, 160, 20))
def test_the_check_finds_a_pair_exactly_at_the_threshold(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # a text and its beginning: all that the two have in common is commoner than the rest, the worst case
    monkeypatch.setattr(leaks, "TRIED_AT_FIRST", 0)
    monkeypatch.setattr(leaks, "COUNTERS", 2**16)
    whole = "".join(random.Random(length).choices("abcdefghijklmnopqrstuvwxyz", k=600))
    texts = Texts([whole, whole[:length]])
    threshold = similarity(*texts)
    for sides in ([0, 1], [1, 0]):
        assert len(straddling(sides, texts, threshold)) == 1
        assert straddling(sides, texts, threshold + 0.001) == []


def test_a_training_text_alike_several_held_out_ones_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "INDEXED_AT_ONCE", 1)
    monkeypatch.setattr(leaks, "TEXTS_AT_ONCE", 1)
    texts = Texts(family(4, 1, 0))
    (only,) = straddling([1, 1, 1, 0], texts, 0.8)
    assert only.train == 3


def test_groups_on_one_side_leave_nothing_to_find() -> None:
    texts = Texts(text for k in range(20) for text in family(3, 1 + k % 4, k))
    random.Random(2).shuffle(texts)
    labels = near_groups(bands_of(texts, 0.5), texts, 0.5)
    sides = labels % 3 == 0
    assert sides.any() and not sides.all()
    assert straddling(sides.astype(int), texts, 0.6) == []
    torn = np.arange(len(texts)) % 2
    assert len(straddling(torn, texts, 0.6)) > 5
