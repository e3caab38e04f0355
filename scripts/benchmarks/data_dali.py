"""NVIDIA DALI's operators for a CPU as a peer of `data.py`; it reads, decodes and resizes in this process."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddfnet.data.geometry import Geometry
from ddfnet.data.rng import GEOMETRY, uniforms
from scripts.benchmarks.data_loaders import SEED, Loader, Untimed, Work


def dali_loader(name: str, work: Work) -> Loader:
    """A pipeline without threads of its own: region decoding and resize with the crops that ddfnet draws, or the
    evaluation's resize and crop. ImportError where DALI is missing; padded crops it does not do."""
    from nvidia.dali import fn, pipeline_def, types

    size, batch = work.size, len(work.batches[0])
    paths = [work.index.name(i) for requests in work.batches for _, i, _ in requests]

    @pipeline_def(
        batch_size=batch, num_threads=1, device_id=None, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False
    )
    def pipeline() -> Any:
        encoded, _ = fn.readers.file(files=paths, labels=[0] * len(paths), random_shuffle=False, prefetch_queue_depth=1)
        how = {"interp_type": types.DALIInterpType.INTERP_CUBIC, "antialias": True}
        if not work.train:
            images = fn.resize(
                fn.decoders.image(encoded, device="cpu", adjust_orientation=False),
                resize_shorter=int(size / work.preprocessing.crop_pct),
                **how,
            )
            return fn.crop(images, crop=[size, size])
        start, shape = (
            fn.external_source(name=key, ndim=1, dtype=types.DALIDataType.INT32) for key in ("start", "shape")
        )
        flip = fn.external_source(name="flip", ndim=0, dtype=types.DALIDataType.INT32)
        images = fn.decoders.image_slice(
            encoded, start=start, shape=shape, axes=[0, 1], device="cpu", adjust_orientation=False
        )
        return fn.flip(fn.resize(images, size=[size, size], **how), horizontal=flip)

    def batches(workers: int, untimed: Untimed) -> Iterator[Tensor]:
        built = pipeline()
        built.build()
        geometry = Geometry(work.preprocessing, work.augment)
        for requests in work.batches:
            if work.train:
                begin = time.thread_time_ns()  # which crops ddfnet draws is no work of DALI's
                boxes, flips = [], []
                for epoch, i, repeat in requests:
                    draws = uniforms(GEOMETRY, SEED, epoch, [i], [repeat], geometry.count)[0].tolist()
                    with Image.open(work.index.name(i)) as image:
                        boxes.append(geometry.box(draws, *image.size))
                    flips.append(np.int32(draws[1] < work.augment.hflip))
                built.feed_input("start", [np.array([top, left], np.int32) for left, top, _, _ in boxes])
                built.feed_input("shape", [np.array([b - t, r - left], np.int32) for left, t, r, b in boxes])
                built.feed_input("flip", flips)
                untimed.counters[0] += time.thread_time_ns() - begin
            (images,) = built.run()
            yield torch.from_numpy(images.as_array()).permute(0, 3, 1, 2)

    return Loader(name, work, batches)
