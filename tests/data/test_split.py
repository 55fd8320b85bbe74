"""No picture on two sides: the promise that every accuracy of gradflow rests on."""

import json
from itertools import combinations

import numpy as np
import pytest

from gradflow.data import Audit, Split, split


def audit_of(
    content: list[int], labels: list[int], near: list[int] | None = None, n_classes: int = 2
) -> Audit:
    n = len(content)
    numbers = np.array(content)
    return Audit(
        name="made",
        class_names=tuple("abcdefgh"[:n_classes]),
        keys=tuple(str(i) for i in range(n)),
        labels=np.array(labels),
        sizes=np.ones((n, 2), dtype=np.int64),
        usable=numbers >= 0,
        content=numbers,
        near=numbers if near is None else np.array(near),
    )


def audit_with_twins(seed: int, n: int = 300) -> Audit:
    """Random copies (a picture up to five times), near twins (3 by 2 pictures) and bad files."""
    random = np.random.default_rng(seed)
    copies = np.repeat(np.arange(n), random.integers(1, 6, n))[:n]
    order = random.permutation(n)
    content = np.unique(copies[order], return_inverse=True)[1]
    near = np.unique(content // 2, return_inverse=True)[1]
    labels = near % 3  # a picture keeps its class
    bad = random.random(n) < 0.05
    for numbers in (content, near):
        numbers[~bad] = np.unique(numbers[~bad], return_inverse=True)[1]
        numbers[bad] = -1
    return audit_of(content.tolist(), labels.tolist(), near.tolist(), n_classes=3)


@pytest.mark.parametrize("seed", range(10))
def test_no_twin_is_on_two_sides_and_every_image_is_used_once_or_set_aside_as_a_copy(seed):
    found = audit_with_twins(seed)
    parts = split(found, found.labels, seed=seed)
    sides = [set(found.near[part].tolist()) for part in (parts.train, parts.validation, parts.test)]
    for one, other in combinations(sides, 2):
        assert not one & other
    assert len(parts.contaminated) == len(parts.near_contaminated) == 0
    assert not parts.validation_is_test
    used = np.concatenate([parts.train, parts.validation, parts.test, parts.set_aside])
    assert sorted(used.tolist()) == np.flatnonzero(found.usable).tolist()
    for part in (parts.validation, parts.test):
        assert len(set(found.content[part].tolist())) == len(part)  # each picture counts once
    evaluated = set(found.content[np.union1d(parts.validation, parts.test)].tolist())
    assert set(found.content[parts.set_aside].tolist()) <= evaluated


def test_without_twins_the_parts_are_70_10_20_and_every_class_has_its_share():
    labels = [0] * 600 + [1] * 400
    found = audit_of(list(range(1000)), labels)
    parts = split(found, found.labels)
    assert [len(p) for p in (parts.train, parts.validation, parts.test)] == [700, 100, 200]
    for part in (parts.train, parts.validation, parts.test):
        assert found.labels[part].mean() == pytest.approx(0.4, abs=0.005)
    other = split(found, found.labels, val_fraction=0.25, test_fraction=0.25)
    assert [len(p) for p in (other.train, other.validation, other.test)] == [500, 250, 250]


def test_the_seed_decides_the_split_and_nothing_else_does():
    found = audit_with_twins(0)
    one, same, other = (split(found, found.labels, seed=seed) for seed in (1, 1, 2))
    np.random.default_rng().random()
    assert one.to_json() == same.to_json()
    assert one.test.tolist() != other.test.tolist()


def test_a_group_of_conflicting_labels_goes_by_its_majority():
    labels = [0] * 20 + [1] * 20
    content = [*range(20), *range(20, 37), 0, 0, 37]  # picture 0: once as class 0, twice as 1
    found = audit_of(content, labels)
    parts = split(found, found.labels, val_fraction=0.2)
    assert not set(found.content[parts.train]) & set(found.content[parts.test])


def test_the_random_split_is_scikit_learns_and_counts_its_leaks():
    from sklearn.model_selection import train_test_split

    found = audit_of([0, 0, 0, 0, 0, 1, 2, 3, 4, 5], [0, 1] * 5, [0, 0, 0, 0, 0, 1, 1, 3, 4, 5])
    for seed in range(20):
        parts = split(found, found.labels, kind="random", seed=seed)
        train, test = train_test_split(np.arange(10), test_size=0.2, random_state=seed)
        assert parts.train.tolist() == sorted(train)
        assert parts.test.tolist() == sorted(test)
        assert parts.validation_is_test
        exact = [i for i in sorted(test) if i < 5 and any(j < 5 for j in train)]
        near = [i for i in sorted(test) if (i == 5 and 6 in train) or (i == 6 and 5 in train)]
        assert parts.contaminated.tolist() == exact
        assert parts.near_contaminated.tolist() == sorted(exact + near)
        assert len(parts.set_aside) == 0
    original = audit_of(list(range(1107)), [i % 2 for i in range(1107)])
    assert len(split(original, original.labels, kind="random").test) == 222


def test_a_class_with_too_few_pictures_is_named_with_the_number_it_needs():
    content, labels = [*range(50), *[50] * 30, *range(51, 58)], [0] * 50 + [1] * 37
    found = audit_of(content, labels)
    with pytest.raises(ValueError, match=r"at least 1\d distinct .* but got b \(8\), where twins"):
        split(found, found.labels)
    parts = split(found, found.labels, val_fraction=0.2)
    for part in (parts.train, parts.validation, parts.test):
        assert set(found.labels[part]) == {0, 1}


@pytest.mark.parametrize("n_few", range(3, 16))
def test_an_accepted_split_has_every_class_in_every_part(n_few):
    found = audit_of(list(range(90 + n_few)), [0] * 90 + [1] * n_few)
    try:
        splits = [split(found, found.labels, seed=seed) for seed in range(5)]
    except ValueError:
        splits = []
    assert splits or n_few < 12
    for parts in splits:
        for part in (parts.train, parts.validation, parts.test):
            assert set(found.labels[part]) == {0, 1}


@pytest.mark.parametrize(
    ("n", "labels", "given", "message"),
    [
        *((100, [0, 1] * 50, {"val_fraction": val, "test_fraction": test}, "sum below 1")
          for val, test in ((0, 0.2), (0.1, 0), (0.5, 0.5), (0.1, 1.0), (-0.1, 0.2))),
        (100, [0, 1] * 50, {"kind": "stratified"}, "grouped or random, but got 'stratified'"),
        (100, [0] * 5, {}, "Expected 100 labels"),
        (1, [0], {"kind": "random"}, "at least 2 usable images"),
    ],
)  # fmt: skip
def test_what_makes_no_split_is_refused(n, labels, given, message):
    with pytest.raises(ValueError, match=message):
        split(audit_of(list(range(n)), [i % 2 for i in range(n)]), np.array(labels), **given)


@pytest.mark.parametrize("kind", ["grouped", "random"])
def test_a_split_survives_json(kind):
    found = audit_with_twins(3)
    parts = split(found, found.labels, kind=kind, seed=5)
    again = json.loads(json.dumps(parts.to_json()))
    assert again == parts.to_json()
    assert again["indices"]["train"] == parts.train.tolist()
    assert again["validation_is_test"] == (kind == "random")
    assert again["counts"]["train"] == len(parts.train)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (([0, 1], [1], [2]), "no training image in other parts"),
        (([0], [1], [1, 2]), "no image in both validation and test"),
        (([1, 0], [2], [3]), "`train` to be sorted"),
        (([0], [1], []), "images in `test`"),
    ],
)
def test_a_split_refuses_a_leak(parts, message):
    with pytest.raises(ValueError, match=message):
        Split("grouped", 0, *(np.array(part, dtype=np.int64) for part in parts))
