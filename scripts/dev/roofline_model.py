"""Bytes, FLOPs and launches of a DDF-ResNet50 and of ResNet50 on a GPU; roofline.py prints them.

Everything is counted by hand from the kernels and from what PyTorch launches around them: each tensor a kernel is given
moves once, in bfloat16 unless the kernel says otherwise, channels_last, 224 x 224 pixels.
"""

from dataclasses import dataclass
from typing import NamedTuple

# Design steps, each with those before it.
STEPS = (
    "layers apart",
    "spatial branch in one kernel, as measured",
    "one operator a layer",
    "+ batch norm and ReLU folded in, inference",
    "+ filter kernel at 45 instructions",
    "+ grad_x written once, logits without padding: training as it is",
    "+ batch norm and ReLU folded in, training",
    "+ gradients of logits by the filter kernel: fused_norms=all",
    "+ a block's last batch norm, sum and ReLU in one, eager: inference as it is",
    "... if our passes of batch norm are as fast as Inductor's, not as PyTorch's",
)
APART, MEASURED_STEP, ONE_OPERATOR, FOLDED, FAST_FILTERS, ONE_GRADIENT = range(6)
NORMALIZED, ONE_FILTERS, SUMMED, FASTER = range(6, len(STEPS))
PIXELS = 64  # of a program of the spatial branch
CHUNK = 128  # pixels that one partial sum of the channel filter's gradient covers


class Conv(NamedTuple):
    """A convolution of ResNet50; `role`: stem, reduce (1x1), middle (3x3 or DDF), expand (1x1), shortcut (1x1)."""

    role: str
    channels_in: int
    channels: int
    size_in: int
    size: int


def resnet50() -> list[Conv]:
    convs, channels_in, size_in = [Conv("stem", 3, 64, 224, 112)], 64, 56
    for stage, (blocks, channels) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
        for block in range(blocks):
            size = size_in // (2 if stage and block == 0 else 1)
            convs.append(Conv("reduce", channels_in, channels, size_in, size_in))
            convs.append(Conv("middle", channels, channels, size_in, size))
            convs.append(Conv("expand", channels, 4 * channels, size, size))
            if block == 0:
                convs.append(Conv("shortcut", channels_in, 4 * channels, size_in, size))
            channels_in, size_in = 4 * channels, size
    return convs


class Work(NamedTuple):
    """What one kind of kernels does in a step."""

    kind: str
    bytes: float = 0
    flops: float = 0
    outputs: float = 0
    launches: int = 1
    instructions: float = 0  # for each output, more than others of its kind


@dataclass(frozen=True)
class Sizes:
    """Bytes of the tensors around a DDF layer of 3x3 taps and one head."""

    batch: int
    channels: int
    size_in: int
    size: int

    @property
    def x(self) -> float:
        return 2 * self.batch * self.channels * self.size_in**2

    @property
    def y(self) -> float:
        return 2 * self.batch * self.channels * self.size**2

    @property
    def outputs(self) -> float:
        return self.y / 2

    @property
    def pixels(self) -> float:
        return self.batch * self.size**2

    @property
    def spatial(self) -> float:  # filter, 9 taps a pixel
        return 18 * self.pixels

    @property
    def channel(self) -> float:  # filter, 9 float32 taps a channel
        return 36 * self.batch * self.channels

    @property
    def pool(self) -> float:  # float32 partial sums
        return 4 * self.batch * -(-(self.size_in**2) // PIXELS) * self.channels

    @property
    def channel_partials(self) -> float:
        blocks = self.size * -(-self.size // 2)  # of 1 x 2 pixels, of which a program takes 4 at a time
        return self.channel * -(-blocks // (4 * (min(CHUNK, self.size**2) // 8)))

    @property
    def spatial_partials(self) -> float:  # a gradient already where one program has all channels
        tiles = -(-self.channels // 64)
        return self.spatial if tiles == 1 else 2 * tiles * self.spatial

    @property
    def logits_at_once(self) -> bool:  # as in tiling.py
        return self.channels <= 64 and self.size == self.size_in

    @property
    def norm_partials(self) -> float:  # two float32 for each 64 pixels of x, as those of the pool; 128 with a stride
        return 2 * self.pool / (2 if self.size < self.size_in else 1)

    @property
    def moments(self) -> float:  # two float32 for each 64 pixels of y, the outputs of a program in one channel
        return 8 * self.batch * -(-(self.size**2) // 64) * self.channels

    @property
    def logits(self) -> float:  # gradients, 9 a pixel of x
        return 18 * self.batch * self.size_in**2

    @property
    def padded_logits(self) -> float:  # the same padded to 16
        return 32 * self.batch * self.size_in**2

    @property
    def logit_sums(self) -> float:  # 9 float32, as those of the pool
        return 9 * self.pool / self.channels

    @property
    def logit_sums_at_once(self) -> float:  # 9 float32, for each partial sum of the channel filter's gradient
        return self.channel_partials / self.channels


def ddf_forward(s: Sizes, step: int, training: bool) -> list[Work]:
    """A DDF layer's forward pass."""
    moments = s.moments if training and step >= NORMALIZED else 0  # written, and read by the kernel that merges them
    operator = Work("ddf_forward", s.x + s.spatial + s.channel + s.y + moments, outputs=s.outputs)
    if step == APART:  # FilterNorm passes some ten times over float32 logits
        passes = 2 * s.x + s.spatial + 20 * s.spatial
        return [Work("pointwise", passes, launches=8), Work("small", launches=12), operator]
    spatial = Work("spatial_filters", s.x + s.spatial + 4 * s.pixels + s.pool)
    # As it is: squeeze with pool and ReLU, excite, FilterNorm of the channel branch. As measured: counted.
    small = Work("small", 3 * s.channel + s.pool + moments, launches=18 if step == MEASURED_STEP else 3)
    return [spatial, small, operator]


def ddf_backward(s: Sizes, step: int) -> list[Work]:
    """A DDF layer's backward pass, all gradients."""
    filters = s.y + s.x + s.spatial + s.channel + s.channel_partials + s.spatial_partials
    works = [
        Work("ddf_backward_filters", filters, outputs=s.outputs),
        Work("ddf_backward_x", s.y + s.spatial + s.channel + s.x, outputs=s.outputs),
    ]
    logits = s.logits if step >= ONE_GRADIENT else s.padded_logits
    if step == APART:  # FilterNorm's ten passes, the 1x1 convolution's two gradients, two sums of gradients of x
        passes = s.spatial_partials + 20 * s.spatial + 2 * s.x + 2 * logits + s.x + 6 * s.x
        return [*works, Work("pointwise", passes, launches=14), Work("small", launches=15)]
    branch = s.spatial_partials + s.spatial + 4 * s.pixels + logits + 2 * s.x  # reads grad_x and adds to it
    weight, more = 2 * logits + s.x, 0.0
    small = 5  # FilterNorm of the channel branch, excite, squeeze with ReLU, their weights, a cast
    if step == MEASURED_STEP:  # the gradient of x is written, and added by autograd; partial sums are added up before
        branch = 2 * s.spatial + 4 * s.pixels + logits + s.x
        small = 48
        works.append(Work("sums", 3 * s.x))
    if step >= ONE_GRADIENT:  # gives the gradients of the logits and their sums; the kernel of grad_x reads the former
        branch += s.logit_sums - 2 * s.x
        weight += s.logit_sums - logits  # the sum for the bias
        works[1] = works[1]._replace(bytes=works[1].bytes + logits)
    if step >= NORMALIZED:  # the last pass of batch norm 1, which reads x, makes the weight's gradient on its way
        weight -= s.x
        # x, which the kernel of grad_x reads, is a pass in `around`
        works[1] = works[1]._replace(bytes=works[1].bytes + s.norm_partials)
        more = s.norm_partials
    if step >= ONE_FILTERS and s.logits_at_once:  # writes them and their sums, not the gradient of the spatial filter
        filters += 4 * s.pixels + s.logits + s.logit_sums_at_once - s.spatial_partials
        works[0] = works[0]._replace(bytes=filters, instructions=2)
        weight += s.logit_sums_at_once - s.logit_sums
    else:
        works.append(Work("spatial_filters_backward", branch))
    works.append(Work("weight gradient", weight, launches=2))
    return [*works, Work("small", s.channel_partials + 3 * s.channel + more, launches=small)]


def around(conv: Conv, batch: int, training: bool, compiled: bool, step: int | None) -> list[Work]:
    """Batch norm, ReLU, and the sum of a block, behind a convolution."""
    y = 2.0 * batch * conv.channels * conv.size**2
    last = conv.role == "expand" or conv.role == "shortcut"
    skip = skipped(conv, step, training)
    if compiled:
        passes = (3 + 5 if training else 2) - skip.compiled
        works = [Work("pointwise", passes * y, launches=2 if training else 1)]
    else:
        kind = "batch norm, training" if training else "batch norm"
        summed = last and step is not None and step >= SUMMED
        ours = summed or (training and not last and step is not None and step >= NORMALIZED)
        if ours and step == FASTER:
            kind = "pointwise"
        if summed and conv.role == "expand":  # moments, y; backward: sums, which write the shortcut's gradient, grad_x
            passes = 1 + 3 + 4 + 3 if training else 3
        else:
            passes = (3 + 5 if training else 2) - skip.batch_norm
        works = [Work(kind, passes * y, launches=4 if training else 1)]
        if not last:
            works.append(Work("ReLU", ((2 + 3 if training else 2) - skip.relu) * y, launches=2 if training else 1))
    if conv.role == "expand":  # the shortcut's sum and ReLU, and the sum of the two gradients of a block's input
        if compiled:
            works.append(Work("pointwise", (1 + 2 if training else 1) * y, launches=0))
        elif summed:
            works.append(Work("sums", (3 if training else 0) * y))
        else:
            works.append(Work("sums", (3 + 3 if training else 3) * y, launches=2 if training else 1))
            works.append(Work("ReLU", (2 + 3 if training else 2) * y, launches=2 if training else 1))
    return [work for work in works if work.bytes > 0]


class Skipped(NamedTuple):
    """Passes over its output that a convolution's batch norm and ReLU no longer make."""

    batch_norm: int = 0
    relu: int = 0
    compiled: int = 0


def skipped(conv: Conv, step: int | None, training: bool) -> Skipped:
    """By the fusions of a design step: into the DDF behind a `reduce`, or of the batch norm behind a DDF."""
    if step is None or step < FOLDED or conv.role not in ("reduce", "middle"):
        return Skipped()
    if not training:
        return Skipped(2, 2, 2)
    if step < NORMALIZED:
        return Skipped()
    if conv.role == "middle":
        # The forward pass's sums. The passes that remain compute the ReLU and its mask, as compiled ones do anyway.
        return Skipped(1, 2 + 3, 1)
    # Forward: statistics remain, the rest is done on load. Backward: mask and sums in the epilogue of grad_x, which
    # reads the convolution's output for them; one pass over gradient and output to a gradient remains.
    return Skipped(2 + 1, 2 + 3, 2 + 1)


def network(step: int | None, training: bool, compiled: bool, batch: int = 256) -> list[Work]:
    """Of a training step or of inference: a DDF-ResNet50 at a design step, or ResNet50 (None)."""
    works: list[Work] = []
    for conv in resnet50():
        taps = {"stem": 49, "middle": 9}.get(conv.role, 1)
        x = 2.0 * batch * conv.channels_in * conv.size_in**2
        y = 2.0 * batch * conv.channels * conv.size**2
        if conv.role == "middle" and step is not None:
            s = Sizes(batch, conv.channels, conv.size_in, conv.size)
            works += [*ddf_forward(s, step, training), *(ddf_backward(s, step) if training else ())]
        else:
            flops = y * conv.channels_in * taps  # two for each of y / 2 values
            times = 1 if not training else 2 if conv.role == "stem" else 3
            works += [Work("convolution", x + y, flops)] * times
        works += around(conv, batch, training, compiled, step)
    stem = 2.0 * batch * 64 * 112**2  # of which max pooling keeps a quarter, with its int64 index in training
    works.append(Work("max pool", 1.25 * stem + (stem + 2.25 * stem if training else 0)))
    works.append(Work("rest", launches=3))
    return works
