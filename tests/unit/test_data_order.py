"""The global order: a permutation in every epoch, found anywhere, weighted, and never changed behind a run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.data import BatchLoader, SyntheticDataModule
from llm.data.order import GlobalOrder, StoredOrder
from llm.data.permutation import permuted
from llm.errors import CheckpointError, InvalidArgumentError

SEED = 7


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1), st.integers(0, 50))
def test_a_computed_shuffle_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    numbers = permuted(np.arange(size), size, (seed, 0, epoch))
    assert np.array_equal(np.sort(numbers), np.arange(size))


def test_a_computed_shuffle_looks_random_and_needs_no_memory() -> None:
    size = 100_000
    numbers = permuted(np.arange(size), size, (SEED, 0, 0))
    assert abs(np.corrcoef(np.arange(size), numbers)[0, 1]) < 0.02
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02
    assert 0.5 < np.count_nonzero(np.arange(size) == numbers) + 0.5 < 8  # one fixed point is expected
    assert (numbers != permuted(np.arange(size), size, (SEED, 0, 1))).mean() > 0.99
    far = permuted(np.array([0, 10**14 - 1]), 10**14, (SEED, 0, 0))
    assert ((far >= 0) & (far < 10**14)).all()
    with pytest.raises(InvalidArgumentError, match=r"positions must be in \[0, 5\), got 5 to 5"):
        permuted(np.array([5]), 5, (SEED,))


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.lists(st.floats(0.01, 10), min_size=4, max_size=4),
    st.lists(st.integers(1, 500), max_size=3),
)
def test_each_source_comes_in_whole_epochs_as_often_as_it_weighs(
    sizes: list[int], weights: list[float], borders: list[int]
) -> None:
    order = GlobalOrder(sizes, SEED, weights[: len(sizes)])
    for border in sorted(borders):
        order.change_weights(border, [*weights[1 : len(sizes)], weights[0]] if len(sizes) > 1 else [1.0])
    numbers = order.at(np.arange(1000))
    assert np.array_equal(np.concatenate([order.at(np.arange(n, n + 50)) for n in range(0, 1000, 50)]), numbers)
    first = 0
    for source, size in enumerate(sizes):
        own = numbers[(numbers >= first) & (numbers < first + size)] - first
        for epoch in range(len(own) // size):
            assert np.array_equal(np.sort(own[epoch * size : (epoch + 1) * size]), np.arange(size))
        if not borders:
            assert abs(len(own) - 1000 * weights[source] / sum(weights[: len(sizes)])) <= len(sizes)
        first += size


def test_changed_weights_leave_what_was_trained_and_survive_a_file() -> None:
    order = GlobalOrder([50, 80], SEED, [3.0, 1.0])
    before = order.at(np.arange(400))
    order.change_weights(200, [1.0, 1.0])
    assert np.array_equal(order.at(np.arange(200)), before[:200])
    after = order.at(np.arange(400))[200:]
    assert 99 <= np.count_nonzero(after < 50) <= 101
    other = GlobalOrder([50, 80], SEED, [9.0, 9.0])
    other.restore(order.state())
    assert np.array_equal(other.at(np.arange(900)), order.at(np.arange(900)))
    order.change_weights(300, [1.0, 0.0])
    order.change_weights(250, [1.0, 1.0])  # resumed from an older checkpoint: the later change is gone
    assert order.state() == [[0, [3.0, 1.0]], [200, [1.0, 1.0]]]
    with pytest.raises(CheckpointError, match="of 2 sources, the run has 1"):
        GlobalOrder([5], SEED).restore(order.state())


def test_another_number_of_processes_goes_on_with_the_same_samples() -> None:
    dataset = SyntheticDataModule(101, context_length=4).train_dataset()
    straight = BatchLoader(dataset, 8, SEED)
    seen = [number for step in range(40) for number in straight.sample_ids(step, 0)]
    resumed, step, state = [], 0, straight.state(0)
    for parts, steps in ((2, 10), (1, 5), (3, 20), (4, 5)):
        loader = BatchLoader(dataset, 8, SEED, parts)
        loader.restore(state, step)
        resumed += [
            number for at in range(step, step + steps) for idx in range(parts) for number in loader.sample_ids(at, idx)
        ]
        step += steps
        state = loader.state(step)
    assert resumed == seen
    assert state == {"position": 320, "segments": [[0, [101.0]]]}
    assert sorted(seen[:101]) == list(range(101))


def test_another_batch_size_goes_on_at_the_position() -> None:
    dataset = SyntheticDataModule(64, context_length=4).train_dataset()
    small, large = BatchLoader(dataset, 4, SEED), BatchLoader(dataset, 8, SEED)
    large.restore(small.state(6), 6)
    assert large.sample_ids(6, 0).tolist() == [*small.sample_ids(6, 0), *small.sample_ids(7, 0)]


def test_a_run_without_a_position_keeps_the_order_it_began_with() -> None:
    dataset = SyntheticDataModule(30, context_length=4).train_dataset()
    loader = BatchLoader(dataset, 8, SEED)
    loader.restore(None, 2)
    for step in (2, 3, 7):
        epoch, position = divmod(step, 3)
        generator = np.random.Generator(np.random.Philox(key=np.array([SEED, epoch], dtype=np.uint64)))
        expected = generator.permutation(30)[position * 8 : position * 8 + 8]
        assert np.array_equal(loader.sample_ids(step, 0), expected)
    assert loader.state(8) == {}
    assert StoredOrder(30, SEED, 8).per_epoch == 24


def test_the_ids_of_all_batches_are_logged_on_request(tmp_path) -> None:
    loader = BatchLoader(SyntheticDataModule(16, context_length=4).train_dataset(), 4, SEED, parts=2)
    loader.log_file = tmp_path / "ids.jsonl"
    loader.part(3, 1)
    assert loader.log_file.read_text() == f'{{"position": 12, "part": 1, "ids": {loader.sample_ids(3, 1).tolist()}}}\n'


def test_samples_are_the_order_s_own_whatever_was_looked_up_before() -> None:
    dataset = SyntheticDataModule(700, context_length=4).train_dataset()
    loader, order = BatchLoader(dataset, 12, SEED, 2), GlobalOrder([700], SEED)
    for step in (0, 1, 84, 85, 86, 400, 2):  # a look-up ends within step 85
        found = np.concatenate([loader.sample_ids(step, 1), loader.sample_ids(step, 0)])
        assert np.array_equal(found, order.at(np.r_[step * 12 + 6 : step * 12 + 12, step * 12 : step * 12 + 6])), step
    loader.restore(loader.state(7), 2)
    assert np.array_equal(loader.sample_ids(2, 0), order.at(np.arange(84, 90)))
