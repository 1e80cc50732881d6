"""Batches are functions of (seed, step); evaluation sees every example once."""

import numpy as np
import pytest

from fliqs_jax.data import Split, batches, evaluation_batches


def _split(count):
    # Every pixel of image i is i, so a batch tells which examples it holds.
    images = np.arange(count, dtype=np.uint8)[:, None, None, None]
    images = np.tile(images, (1, 2, 3, 1))
    return Split(images, (np.arange(count) % 5).astype(np.int32))


def _members(batch):
    return batch["image"][:, 0, 0, 0].tolist()


def test_batch_has_the_stated_shapes_and_matching_labels():
    batch = batches(_split(50), batch_size=8, seed=0).batch(3)
    assert batch["image"].shape == (8, 2, 3, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (8,) and batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["label"], np.array(_members(batch)) % 5)


def test_same_seed_and_step_give_the_same_batch_in_any_order():
    first = batches(_split(50), batch_size=8, seed=4)
    second = batches(_split(50), batch_size=8, seed=4)
    forwards = {step: _members(first.batch(step)) for step in range(30)}
    backwards = {step: _members(second.batch(step)) for step in reversed(range(30))}
    assert forwards == backwards


def test_resumed_run_sees_the_batches_of_an_uninterrupted_one():
    whole = batches(_split(50), batch_size=8, seed=4)
    expected = [_members(whole.batch(step)) for step in range(20)]
    resumed = batches(_split(50), batch_size=8, seed=4)
    assert [_members(resumed.batch(step)) for step in range(13, 20)] == expected[13:]


def test_epoch_covers_every_example_exactly_once():
    source = batches(_split(48), batch_size=8, seed=1)
    assert source.steps_per_epoch == 6
    for epoch in range(3):
        steps = range(6 * epoch, 6 * epoch + 6)
        seen = sum((_members(source.batch(step)) for step in steps), [])
        assert sorted(seen) == list(range(48))


def test_remainder_changes_with_the_epoch():
    source = batches(_split(50), batch_size=8, seed=1)
    left_out = []
    for epoch in range(4):
        steps = range(6 * epoch, 6 * epoch + 6)
        seen = set(sum((_members(source.batch(step)) for step in steps), []))
        assert len(seen) == 48
        left_out.append(frozenset(range(50)) - seen)
    assert len(set(left_out)) > 1


def test_epochs_and_seeds_have_their_own_orders():
    source, other = (batches(_split(48), batch_size=48, seed=s) for s in (1, 2))
    orders = [_members(source.batch(0)), _members(source.batch(1))]
    orders.append(_members(other.batch(0)))
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("batch_size", [0, 51])
def test_impossible_batch_size_names_the_split(batch_size):
    with pytest.raises(ValueError, match=f"50 examples, got {batch_size}"):
        batches(_split(50), batch_size=batch_size, seed=0)


def test_negative_seed_and_step_are_refused():
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        batches(_split(50), batch_size=8, seed=-1)
    with pytest.raises(ValueError, match="step must not be negative, got -1"):
        batches(_split(50), batch_size=8, seed=0).batch(-1)


@pytest.mark.parametrize("batch_size", [7, 10, 50, 64])
def test_evaluation_shows_every_example_once_in_order(batch_size):
    found = list(evaluation_batches(_split(50), batch_size))
    assert {batch["image"].shape for batch in found} == {(batch_size, 2, 3, 1)}
    assert {batch["mask"].dtype for batch in found} == {np.dtype(np.float32)}
    assert {batch["label"].dtype for batch in found} == {np.dtype(np.int32)}
    members = np.concatenate([_members(batch) for batch in found])
    labels = np.concatenate([batch["label"] for batch in found])
    mask = np.concatenate([batch["mask"] for batch in found])
    np.testing.assert_array_equal(members[mask == 1], np.arange(50))
    np.testing.assert_array_equal(labels[mask == 1], np.arange(50) % 5)
    assert mask.sum() == 50 and not members[mask == 0].any()


def test_evaluation_of_an_empty_split_is_empty():
    assert list(evaluation_batches(_split(0), 4)) == []


def test_evaluation_refuses_an_empty_batch_at_once():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        evaluation_batches(_split(50), 0)
