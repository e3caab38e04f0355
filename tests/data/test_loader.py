import logging
import multiprocessing
import os
import random
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_images import make_tree

from ddfnet.data.augment import AugmentConfig
from ddfnet.data.batches import EvalBatchTransform, TrainBatchTransform
from ddfnet.data.dataset import CorruptImages, EvalDataset, TrainDataset
from ddfnet.data.loader import eval_batches, train_batches, worker_count
from ddfnet.data.preprocessing import EvalTransform
from ddfnet.data.sampler import TrainSampler
from ddfnet.data.sources.folder import index_folder
from ddfnet.utils.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


def stream(
    index, small, *, workers=0, rank=0, world_size=1, accumulation=1, start=0, end=8, seed=0, repeats=1, limit=0.001
):
    sampler = TrainSampler(
        length=len(index),
        global_batch=8,
        rank=rank,
        world_size=world_size,
        accumulation=accumulation,
        seed=seed,
        start_step=start,
        end_step=end,
        repeats=repeats,
    )
    augment = AugmentConfig(rand_augment="rand-m7-mstd0.5-inc1", erasing={"p": 0.5}, mixup=0.4)
    transform = TrainBatchTransform(small, augment, device="cpu", seed=seed, num_classes=3, channels_last=True)
    corrupt = CorruptImages(index, limit)
    return train_batches(
        TrainDataset(index, small, augment, seed=seed).read,
        sampler,
        lambda batch: transform(corrupt.count(batch)),
        device="cpu",
        workers=workers,
    )


def evaluation(index, small, *, workers=0, rank=0, world_size=1, batch_size=5, device="cpu", channels_last=True):
    return eval_batches(
        EvalDataset(index, small).read,
        len(index),
        EvalBatchTransform(small, device=device, channels_last=channels_last),
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        device=device,
        workers=workers,
    )


def assert_same(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a["epoch"] == b["epoch"]
        for key in ("image", "target", "index", "repeat"):
            assert torch.equal(a[key], b[key])


def message_of(batches):
    """Text of the DataError that `batches` end with; the error itself, and what its traceback holds, is let go."""
    try:
        for _ in batches:
            pass
    except DataError as error:
        return str(error)
    pytest.fail("no DataError")


def wait_for_no_children():
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not multiprocessing.active_children()


def break_file(index, i):
    with open(index.name(i), "wb") as file:
        file.write(b"junk")


# --- training ---------------------------------------------------------------------------------------------------------


def test_batches_have_the_promised_form(index, small):
    batches = list(stream(index, small, end=5))
    assert [batch["epoch"] for batch in batches] == [0, 0, 1, 1, 2]
    for batch in batches:
        assert set(batch) == {"image", "target", "index", "repeat", "epoch"}
        assert batch["image"].shape == (8, 3, 24, 24)
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
        assert batch["image"].dtype == batch["target"].dtype == torch.float32
        assert batch["target"].shape == (8, 3)
        for key in ("index", "repeat"):
            assert batch[key].dtype == torch.int64
            assert batch[key].device.type == "cpu"


@pytest.mark.parametrize("repeats", [1, 3])
def test_same_batches_for_any_number_of_workers(index, small, repeats):
    in_process = list(stream(index, small, repeats=repeats))
    for workers in (1, 4):
        assert_same(stream(index, small, workers=workers, repeats=repeats), in_process)


def test_other_seed_and_epoch_give_other_pixels(index, small):
    one = next(stream(index, small))
    assert not torch.equal(one["image"], next(stream(index, small, seed=1))["image"])
    again = {int(i): None for i in one["index"]}
    assert len(again) == 8


@pytest.mark.parametrize("repeats", [1, 3])
def test_resumed_stream_is_the_tail(index, small, repeats):
    full = list(stream(index, small, repeats=repeats))
    assert_same(stream(index, small, start=3, workers=2, repeats=repeats), full[3:])


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (4, 1), (2, 2)])
def test_processes_see_what_one_process_accumulates(index, small, world_size, accumulation, repeats):
    """To the pixel, with augmentation, erasing and mixup."""
    single = list(stream(index, small, accumulation=world_size * accumulation, end=4, repeats=repeats))
    layout = {"world_size": world_size, "accumulation": accumulation, "repeats": repeats}
    ranks = [list(stream(index, small, rank=r, end=4, **layout)) for r in range(world_size)]
    together = [
        ranks[r][step * accumulation + m] for step in range(4) for m in range(accumulation) for r in range(world_size)
    ]
    assert_same(together, single)


@pytest.mark.parametrize("workers", [0, 2])
def test_main_process_generators_are_left_alone(index, small, workers):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.default_generator.get_state().tolist()

    before = states()
    list(stream(index, small, workers=workers, end=3))
    list(evaluation(index, small, workers=workers))
    assert states() == before


def test_closing_ends_the_workers(index, small):
    batches = stream(index, small, workers=2, end=1000)
    assert len(multiprocessing.active_children()) == 2  # started by the call, before the first batch is asked for
    next(batches)
    batches.close()
    assert wait_for_no_children()


def test_an_error_ends_the_workers(index, small):
    for i in range(len(index)):
        break_file(index, i)
    batches = stream(index, small, workers=2, end=1000)
    assert len(multiprocessing.active_children()) == 2
    with pytest.raises(DataError) as held:
        list(batches)
    assert wait_for_no_children()
    assert held.value.__traceback__ is not None


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_workers_obey_sigterm_of_their_parent(index, small):
    """And others take their place."""
    expected = list(stream(index, small, end=30))
    batches = stream(index, small, workers=2, end=30)
    seen = [next(batches)]
    for worker in multiprocessing.active_children():
        worker.terminate()
    assert wait_for_no_children()
    assert_same(seen + list(batches), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_workers_survive_signals_to_the_process_group(index, small):
    expected = list(stream(index, small, end=30))
    batches = stream(index, small, workers=2, end=30)
    seen = [next(batches)]
    for worker in multiprocessing.active_children():
        for name in ("INT", "TERM", "USR1"):  # from another process: a launcher is not the workers' parent
            subprocess.run(["sh", "-c", f"kill -{name} {worker.pid}"], check=True)
    assert_same(seen + list(batches), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_a_failing_main_process_ends_with_its_workers(tree):
    """The iterator is still alive when the interpreter exits: nothing may hang."""
    code = f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from ddfnet.data.dataset import TrainDataset
        from ddfnet.data.loader import train_batches
        from ddfnet.data.augment import AugmentConfig
        from ddfnet.data.preprocessing import Preprocessing
        from ddfnet.data.sampler import TrainSampler
        from ddfnet.data.sources.folder import index_folder
        index, small = index_folder({str(tree)!r}), Preprocessing(size=24)
        sampler = TrainSampler(length=18, global_batch=8, rank=0, world_size=1, accumulation=1, seed=0, start_step=0,
                               end_step=1000)
        dataset = TrainDataset(index, small, AugmentConfig(), seed=0)
        batches = train_batches(dataset.read, sampler, lambda batch: batch, device="cpu", workers=2)
        next(batches)
        raise RuntimeError("crash")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.endswith("RuntimeError: crash\n")
    assert "DataLoader worker" not in done.stderr


# --- corrupt images ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_training_images_are_replaced_and_logged_once(index, small, workers, caplog):
    break_file(index, 4)
    os.remove(index.name(11))
    with caplog.at_level(logging.WARNING, logger="ddfnet"):
        batches = list(stream(index, small, workers=workers, end=12))
    assert_same(batches, stream(index, small, end=12))
    messages = [record.getMessage() for record in caplog.records[:2]]
    assert sum("cat/004.png (UnidentifiedImageError: not an image" in message for message in messages) == 1
    assert sum("dog/005.png (FileNotFoundError" in message for message in messages) == 1
    assert len(caplog.records) == 4  # twice two: one pair per run
    assert sum(4 in batch["index"].tolist() for batch in batches) > 1


def test_too_many_corrupt_images_stop_the_run(tmp_path, small):
    index = index_folder(make_tree(tmp_path, per_class=30))
    for i in range(0, 60, 4):
        break_file(index, i)
    message = message_of(stream(index, small, end=60, workers=1))
    assert 11 <= int(message.split()[0]) <= 10 + 8  # the first batch beyond the floor of 10
    assert "different training images are corrupt" in message
    assert "(limit 0.10%)" in message
    assert "scripts/check_data.py" in message
    assert re.search(r"for example \S+/(cat|dog)/\d{3}\.png \(UnidentifiedImageError", message)
    assert len(list(stream(index, small, end=60, limit=0.5))) == 60


def test_a_few_corrupt_images_never_stop_a_small_set(tmp_path, small):
    index = index_folder(make_tree(tmp_path, per_class=20))
    for i in range(10):
        break_file(index, i)
    assert len(list(stream(index, small, end=20))) == 20


@pytest.mark.parametrize("workers", [0, 2])
def test_data_errors_reach_the_user_as_one_clean_line(index, small, workers):
    break_file(index, 16)
    in_evaluation = message_of(evaluation(index, small, workers=workers))
    assert "eel/004.png is corrupt" in in_evaluation
    for i in range(len(index)):
        break_file(index, i)
    in_training = message_of(stream(index, small, workers=workers))
    assert "tried in its place" in in_training
    for message in (in_evaluation, in_training):
        assert "Traceback" not in message
        assert "\n" not in message


def test_a_defect_is_not_a_data_error(index, small, monkeypatch):
    def defect(*arguments):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(EvalTransform, "write", defect)
    batches = evaluation(index, small)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        list(batches)


# --- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 4, 7, 20])
def test_evaluation_sees_every_image_once(index, small, world_size):
    seen = [
        (int(i), int(t))
        for rank in range(world_size)
        for batch in evaluation(index, small, rank=rank, world_size=world_size)
        for i, t in zip(batch["index"], batch["target"], strict=True)
    ]
    assert sorted(seen) == [(i, index.label(i)) for i in range(18)]


def test_evaluation_repeats_with_the_same_workers(index, small):
    batches = evaluation(index, small, workers=2)
    assert len(batches) == 4
    first = [{**batch} for batch in batches]
    workers = {worker.pid for worker in multiprocessing.active_children()}
    second = list(batches)
    assert {worker.pid for worker in multiprocessing.active_children()} == workers
    assert [len(batch["index"]) for batch in first] == [5, 5, 5, 3]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["index"], b["index"])


def test_evaluation_pixels(index, small):
    pixels = EvalBatchTransform(small, device="cpu")
    expected = torch.stack([EvalDataset(index, small)[i][0] for i in range(18)])
    seen = torch.cat([batch["image"] for batch in evaluation(index, small, workers=2)])
    torch.testing.assert_close(seen, pixels({"image": expected})["image"], rtol=0, atol=0)


def test_wrong_numbers(index, small):
    with pytest.raises(ValueError, match="batch_size"):
        evaluation(index, small, batch_size=0)
    with pytest.raises(ValueError, match="workers"):
        evaluation(index, small, workers=-1)


@pytest.mark.gpu
def test_cuda_batches_equal_cpu_batches(index, small):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for a, b in zip(evaluation(index, small, device="cuda", workers=2), evaluation(index, small), strict=True):
        assert a["image"].is_contiguous(memory_format=torch.channels_last)
        assert a["index"].device.type == "cpu"
        torch.testing.assert_close(a["image"].cpu(), b["image"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 11),
        ({"RANK": "3", "LOCAL_WORLD_SIZE": "4"}, 2),  # torchrun: the ranks of a machine share its cores
        ({"LOCAL_WORLD_SIZE": "8", "SLURM_CPUS_PER_TASK": "12"}, 11),  # srun: each has its own
        ({"RANK": "0", "LOCAL_WORLD_SIZE": "2", "SLURM_CPUS_PER_TASK": "12"}, 5),  # torchrun within srun
    ],
)
def test_workers_by_the_cores_of_a_rank(environment, count, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(12), raising=False)
    for name in ("RANK", "LOCAL_WORLD_SIZE", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert worker_count("auto") == count
