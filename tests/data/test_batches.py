"""Laws of batches found by step."""

import numpy as np
import pytest

from scorelab.data import Arrays, Batches, IteratorAdapter, Pixels, load
from scorelab.training import Prepared


def numbered(n):
    return {"x": np.arange(n, dtype=np.uint8).reshape(n, 1), "label": np.arange(n, dtype=np.int32)}


def test_an_epoch_takes_each_row_at_most_once_and_drops_the_remainder():
    batches = Batches(numbered(23), batch_size=5, seed=1)
    assert batches.steps_per_epoch == 4
    epochs = [np.concatenate([batches.at(e * 4 + i)["label"] for i in range(4)]) for e in range(40)]
    for rows in epochs:
        assert len(rows) == len(set(rows)) == 20
    assert set(np.concatenate(epochs)) == set(range(23))
    assert not np.array_equal(epochs[0], epochs[1])


def test_an_epoch_that_divides_evenly_takes_every_row():
    batches = Batches(numbered(20), batch_size=5)
    assert sorted(np.concatenate([batches.at(i)["label"] for i in range(4)])) == list(range(20))


def test_equal_seed_and_step_give_equal_batches_in_any_order():
    first, again = (Batches(numbered(50), batch_size=8, seed=7) for _ in range(2))
    forward = [first.at(step) for step in range(30)]
    for step in reversed(range(30)):
        batch = again.at(step)
        for key in ("x", "label"):
            np.testing.assert_array_equal(batch[key], forward[step][key])
    other = Batches(numbered(50), batch_size=8, seed=8)
    assert any(not np.array_equal(other.at(s)["label"], forward[s]["label"]) for s in range(3))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_share_out_the_same_batch(hosts):
    batches = Batches(numbered(50), batch_size=8, seed=3)
    for step in (0, 5, 6, 13):
        parts = [batches.at(step, host, hosts)["label"] for host in range(hosts)]
        assert {len(part) for part in parts} == {8 // hosts}
        np.testing.assert_array_equal(np.concatenate(parts), batches.at(step)["label"])


def test_columns_stay_together_and_keep_their_dtype():
    batch = Batches(numbered(30), batch_size=6).at(4)
    assert (batch["x"].dtype, batch["label"].dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(batch["x"][:, 0], batch["label"])


def test_an_arrays_without_labels_gives_x_only():
    arrays = Arrays(x=np.ones((4, 2), np.float32), name="a", split="train")
    assert set(Batches(arrays, batch_size=2).at(0)) == {"x"}


def test_requests_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="batch_size = 31: expected 1 to n = 30"):
        Batches(numbered(30), batch_size=31)
    for size in (0, 2.5, True):
        with pytest.raises(ValueError, match=f"batch_size = {size}"):
            Batches(numbered(30), batch_size=size)
    with pytest.raises(ValueError, match="seed = -1: expected an integer seed in"):
        Batches(numbered(30), batch_size=1, seed=-1)
    with pytest.raises(ValueError, match="lengths"):
        Batches({"x": np.zeros(3), "label": np.zeros(4)}, batch_size=1)
    batches = Batches(numbered(30), batch_size=6)
    with pytest.raises(ValueError, match="multiple of hosts = 4"):
        batches.at(0, 0, 4)
    with pytest.raises(ValueError, match=r"Batches\.host = 2: expected 0 to hosts - 1 = 1"):
        batches.at(0, 2, 2)
    with pytest.raises(ValueError, match="step = -1"):
        batches.at(-1)


def test_what_is_no_step_and_no_array_is_named():
    batches = Batches(numbered(30), batch_size=6)
    for step in (0.5, True, "1"):
        with pytest.raises(ValueError, match=r"Batches.step = "):
            batches.at(step)
    for hosts in (1.5, True):
        with pytest.raises(ValueError, match=r"Batches.hosts = "):
            batches.at(0, 0, hosts)
    with pytest.raises(TypeError, match=r"Batches.arrays = "):
        Batches(np.zeros((8, 2), np.float32), 4)
    for column in (np.array([None] * 8), np.array(["1"] * 8), [0.0] * 8, np.float32(1)):
        with pytest.raises(ValueError, match=r"arrays.'x'. is .*: expected an array of numbers"):
            Batches({"x": column}, 4)
    with pytest.raises(TypeError, match=r"Arrays.x = "):
        Arrays(x=[[0.0, 1.0]], name="a", split="train")
    with pytest.raises(ValueError, match=r"load.name = "):
        load(["rings"])


class Counter:
    """An iterator with a position, as a streaming pipeline is."""

    def __init__(self):
        self.position = 0

    def __next__(self):
        self.position += 1
        return {"x": np.array([self.position - 1])}

    def get_state(self):
        return {"next": self.position}

    def set_state(self, state):
        self.position = state["next"]


def test_an_adapted_iterator_resumes_where_its_state_was_taken():
    stream = IteratorAdapter(Counter())
    unbroken = [stream.at(step)["x"][0] for step in range(3)]
    state = stream.get_state()
    unbroken += [stream.at(step)["x"][0] for step in (3, 4)]
    resumed = IteratorAdapter(Counter())
    resumed.set_state(state)
    assert [resumed.at(step)["x"][0] for step in (3, 4)] == unbroken[3:]
    with pytest.raises(ValueError, match="step = 9: expected 5"):
        resumed.at(9)
    with pytest.raises(ValueError, match="expected 0 of 1"):
        resumed.at(5, 1, 2)


def test_batches_that_a_preparation_does_not_take_are_refused():
    def batches(x=None, label=(0, 1, 2, 3)):
        x = np.zeros((4, 2, 2, 1), np.uint8) if x is None else x
        return Batches({"x": x, "label": np.asarray(label)}, batch_size=2)

    arrays = Arrays(x=np.full((4, 2, 2, 1), 16, np.uint8), name="a", split="train", levels=17)
    Prepared(batches(), transform=Pixels(), cond="label")
    Prepared(Batches(arrays, batch_size=2), transform=Pixels(levels=17))
    for refused, expected in (
        (lambda: Prepared(Batches(arrays, batch_size=2), transform=Pixels(levels=10)), "data with 17 levels: expected levels = 17"),
        (lambda: Prepared(batches(np.full((4, 1), 200, np.uint8)), transform=Pixels(levels=17)), "data with the value 200"),
        (lambda: Prepared(batches(), cond="lable"), "cond = 'lable': expected one of"),
        (lambda: Prepared(Batches(arrays, batch_size=2), cond="label"), "cond = 'label': expected one of"),
        (lambda: Prepared(batches(label=(0, 1, -4, 2)), cond="label"), "values from -4 to 2: expected classes 0, 1"),
        (lambda: Prepared(batches(label=(0, 1, 2, 2**40)), cond="label"), "to 1099511627776: expected classes"),
        (lambda: Prepared(batches(label=(0.0, np.nan, 1.0, 1.0)), cond="label"), "NaN or infinite"),
        (lambda: Prepared(Batches({"y": np.zeros(3)}, batch_size=1)), "expected one that is named 'x'"),
    ):
        with pytest.raises(ValueError, match=expected):
            refused()
