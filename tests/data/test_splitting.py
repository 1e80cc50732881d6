"""Held-out parts: disjoint, stratified, and the same in every run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fliqs_jax.data import Split
from fliqs_jax.data.splitting import hold_out, shuffled, stratified_indices

LABELS = np.repeat(np.arange(10), np.arange(10, 110, 10)).astype(np.int32)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.5])
def test_parts_are_disjoint_and_cover_everything(fraction):
    kept, held = stratified_indices(LABELS, fraction, key=3)
    together = np.concatenate([kept, held])
    np.testing.assert_array_equal(np.sort(together), np.arange(len(LABELS)))
    assert (np.diff(kept) > 0).all() and (np.diff(held) > 0).all()


def test_every_class_gives_its_share():
    _, held = stratified_indices(LABELS, 0.1, key=3)
    np.testing.assert_array_equal(np.bincount(LABELS[held]), np.arange(1, 11))


@given(
    labels=arrays(np.int32, 50, elements=st.integers(0, 4)),
    fraction=st.floats(0.01, 0.99),
)
def test_total_is_exact_and_each_class_within_one(labels, fraction):
    _, held = stratified_indices(labels, fraction, key=0)
    assert len(held) == round(fraction * len(labels))
    counts = np.bincount(labels, minlength=5)
    taken = np.bincount(labels[held], minlength=5)
    assert (np.abs(taken - fraction * counts) < 1 + 1e-9).all()


def test_another_key_holds_out_another_part():
    first, second, again = (
        stratified_indices(LABELS, 0.2, key=key)[1].tolist() for key in (1, 2, 1)
    )
    assert first == again != second


def test_nothing_held_out_is_an_empty_split():
    images = np.zeros((4, 2, 2, 1), np.uint8)
    split = Split(images, np.zeros(4, np.int32))
    kept, held = hold_out(split, 0.0, key=0)
    assert (len(kept), len(held), held.image_shape) == (4, 0, (2, 2, 1))


def test_order_is_pinned():
    # Philox4x64-10 as published; the words are fixed, hence so is their order.
    words = np.random.Philox(key=np.array([7, 2], np.uint64)).random_raw(6)
    assert shuffled(6, 7, 2).tolist() == sorted(range(6), key=words.__getitem__)
    assert shuffled(8, 0, 0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
