"""The paper's tables as data: each row, what the paper prints for it, and the config that runs it.

Source of every figure: Zhou et al., "Decoupled Dynamic Filter Networks", CVPR 2021, with its supplement, and the README
of its released code. `scripts/paper/write_docs.py` prints them beside what this code gives; tests compare the two.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        label: as in the paper.
        config: YAML below configs/, or None where this project has no such network; then `note` says why.
        parameters: millions, as printed.
        flops: billions of multiply-adds, as printed.
        top1, top5: %, as printed; ImageNet validation set at 224 pixels.
        retrained: top-1 that the authors got for a baseline with their own recipe, where `top1` is an older report.
        note: shown under the table.
    """

    label: str
    config: str | None
    parameters: str | None = None
    flops: str | None = None
    top1: float | None = None
    top5: float | None = None
    retrained: float | None = None
    note: str | None = None


_DDF50 = Row("DDF-ResNet50", "ddf_resnet50.yaml", "16.8", "2.3", 79.1)
_NOT_HERE = (
    "not implemented: timm and torchvision do not have it, and the printed size depends on details that we could not "
    "confirm"
)
_ATTENTION = "not implemented: timm has no such layer, and relative self-attention is outside this project"
_RES2NET = (
    "timm's res2net50_14w_8s has 25.1 M parameters; the printed 25.7 M are those of the 26w-4s variant, so the paper's "
    "row may mix the two"
)
_BAM = "the branches of the attention are added, as we read the BAM paper; its released code multiplies them"
_WEIGHTNET = "with M = G, one scale per channel: the reading that gives the printed parameters"
_READING = (
    "the released code has no DDF-ResNet18. Our reading: a DDF and a pointwise convolution behind it in place of each "
    "3x3 convolution, sigma 0.5, which gives the printed parameters and FLOPs"
)
_WIDER = "our reading of `wider network (as ResNeXt)`: the bottleneck's width doubled, as in ResNeXt50 32x4d"
_LARGER = (
    "the weights of the row above, evaluated at 288 pixels with a center crop of 0.95 (our choice: we do not "
    "know the paper's): `eval.py --checkpoint runs/ddf_resnet50_wide_d/best.pt --input-size 288 --crop-pct 0.95`; the "
    "config trains and evaluates in one go"
)

# By the part of docs/reference/paper.md that each fills.
TABLES: dict[str, tuple[Row, ...]] = {
    "table 3": (
        Row("base ResNet50", "resnet50.yaml", top1=77.2, top5=93.5),
        Row("spatial filter only", "ablations/spatial_only.yaml", top1=74.4, top5=92.0),
        Row("channel filter only", "ablations/channel_only.yaml", top1=78.7, top5=94.2),
        Row("both (DDF)", "ddf_resnet50.yaml", top1=79.1, top5=94.5),
        Row("batch normalization instead of filter normalization", "ablations/batch_norm.yaml", top1=76.0, top5=92.0),
        Row("sigmoid instead of filter normalization", "ablations/sigmoid.yaml", top1=78.2, top5=93.8),
        Row("sigma = 0.2", "ddf_resnet50.yaml", "16.8", "2.298", 79.1, 94.5),
        Row("sigma = 0.3", "ablations/squeeze_0.3.yaml", "18.1", "2.299", 79.0, 94.5),
        Row("sigma = 0.4", "ablations/squeeze_0.4.yaml", "19.4", "2.300", 79.2, 94.5),
    ),
    "table 4": (
        Row("ResNet18", "baselines/resnet18.yaml", "11.7", "1.8", 69.6),
        Row("Adaptive convolutional kernels, ResNet18", None, "11.1", None, 70.2, note=_NOT_HERE),
        Row("DyNet, ResNet18", None, "16.6", "0.6", 69.0, note=_NOT_HERE),
        Row("DDF-ResNet18", "ddf_resnet18.yaml", "7.7", "0.4", 70.6, note=_READING),
        Row("ResNet50", "resnet50.yaml", "25.6", "4.1", 77.2),
        Row("DyNet, ResNet50", None, None, "1.1", 76.3, note=_NOT_HERE),
        Row("CondConv, ResNet50", "baselines/condconv_resnet50.yaml", "104.8", "4.2", 78.6),
        Row("depthwise CondConv, ResNet50", "baselines/dw_condconv_resnet50.yaml", "14.5", "2.3", 78.3),
        Row(
            "depthwise WeightNet, ResNet50",
            "baselines/dw_weightnet_resnet50.yaml",
            "14.4",
            "2.3",
            78.0,
            note=_WEIGHTNET,
        ),
        _DDF50,
    ),
    "table 5": (
        Row("ResNet50", "resnet50.yaml", "25.6", "4.1", 76.0, retrained=77.2),
        Row("SE-ResNet50", "baselines/seresnet50.yaml", "28.1", "4.1", 77.6, retrained=77.8),
        Row("BAM-ResNet50", "baselines/bam_resnet50.yaml", "25.9", "4.2", 76.0, note=_BAM),
        Row("CBAM-ResNet50", "baselines/cbam_resnet50.yaml", "28.1", "4.1", 77.3),
        Row("AA-ResNet50", None, "25.8", "4.2", 77.7, note=_ATTENTION),
        Row("ResNeXt50 32x4d", "baselines/resnext50_32x4d.yaml", "25.0", "4.3", 77.8, retrained=78.2),
        Row("Res2Net50 14w-8s", "baselines/res2net50_14w_8s.yaml", "25.7", "4.2", 78.0, note=_RES2NET),
        _DDF50,
        Row("ResNet101", "baselines/resnet101.yaml", "44.5", "7.8", 77.6, retrained=78.9),
        Row("SE-ResNet101", "baselines/seresnet101.yaml", "49.3", "7.8", 78.3, retrained=79.3),
        Row("BAM-ResNet101", "baselines/bam_resnet101.yaml", "44.9", "7.9", 77.6, note=_BAM),
        Row("CBAM-ResNet101", "baselines/cbam_resnet101.yaml", "49.3", "7.8", 78.5),
        Row("AA-ResNet101", None, "45.4", "8.1", 78.7, note=_ATTENTION),
        Row("ResNeXt101 32x4d", "baselines/resnext101_32x4d.yaml", "44.2", "8.0", 78.8, retrained=79.5),
        Row("Res2Net101 26w-4s", "baselines/res2net101_26w_4s.yaml", "45.2", "8.1", 79.2),
        Row("DDF-ResNet101", "ddf_resnet101.yaml", "28.1", "4.1", 80.2),
    ),
    "table C": (
        Row("DDF-ResNet50", "ddf_resnet50.yaml", top1=79.1),
        Row("+ wider network", "wider/ddf_resnet50_wide.yaml", top1=79.8, note=_WIDER),
        Row("+ ResNet-D", "wider/ddf_resnet50_wide_d.yaml", top1=80.5),
        Row("+ larger inference resolution", "wider/ddf_resnet50_wide_d_288.yaml", top1=81.3, note=_LARGER),
    ),
    "released models": (
        Row("ddf_mul_resnet50", "ddf_resnet50.yaml", "16.8", None, 79.1),
        Row("ddf_mul_resnet101", "ddf_resnet101.yaml", "28.1", None, 80.5),
        Row("ddf_add_resnet50", "ddf_add_resnet50.yaml", "16.8", None, 78.8),
        Row("ddf_add_resnet101", "ddf_add_resnet101.yaml", "28.1", None, 79.9),
    ),
    "not in the paper": (
        Row("static depthwise 3x3 in place of the DDF", "baselines/dw_resnet50.yaml"),
        Row("7x7 involution in place of the DDF", "baselines/involution_resnet50.yaml"),
        Row("DDF of 5x5 taps", "ablations/kernel_5.yaml"),
        Row("4 spatial filters per pixel (heads)", "ablations/heads_4.yaml"),
    ),
}
# Recipes that are not the paper's; top-1 is what their authors report for plain ResNet50.
MODERN = (
    Row("ResNet strikes back A2, 300 epochs", "modern/ddf_resnet50_a2.yaml", top1=79.8),
    Row("ResNet strikes back A3, 100 epochs at 160 px", "modern/ddf_resnet50_a3.yaml", top1=78.1),
    Row("the same with ResNet50", "modern/resnet50_a3.yaml", top1=78.1),
    Row("torchvision V2, 600 epochs at 176 px, EMA", "modern/ddf_resnet50_v2.yaml", top1=80.86),
    Row("the paper's, 300 epochs, mixup, CutMix, EMA: our guess", "modern/ddf_resnet50_long.yaml"),
    Row("the paper's, trained at 160 px, tested at 224", "modern/ddf_resnet50_160_224.yaml"),
)
# Table 6 by upsampling: B FLOPs and COCO mAP of small, medium, large and all objects in %, as printed.
DETECTION = {
    "nearest": ("0.00", "21.2 / 41.0 / 48.1 / 37.4"),
    "bilinear": ("0.02", "22.1 / 41.2 / 48.4 / 37.6"),
    "deconv": ("12.57", "21.0 / 41.1 / 48.5 / 37.3"),
    "pixelshuffle": ("50.18", "21.4 / 41.5 / 48.6 / 37.7"),
    "carafe": ("2.14", "22.6 / 42.0 / 49.8 / 38.5"),
    "ddfup": ("0.58", "22.1 / 42.4 / 49.9 / 38.6"),
}
