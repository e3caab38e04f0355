"""Weights in the layouts that other trainers write: each must give the values that were saved, and one line on it."""

import argparse
from collections import OrderedDict

import pytest
import timm
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import ddfnet
from ddfnet.checkpoint import Weights, read_weights
from ddfnet.models.classifier import load_classifier
from ddfnet.models.weights import checkpoint_filter, classifier_names, load_weights, read_source
from ddfnet.utils.errors import CheckpointError, UserError
from ddfnet.utils.text import plural

NAME, CLASSES = "resnet10t", 7


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=CLASSES).eval()


def fresh(name=NAME, **kwargs):
    torch.manual_seed(1)
    return timm.create_model(name, **{"num_classes": CLASSES, **kwargs}).eval()


def prefixed(state, prefix):
    return OrderedDict((prefix + key, tensor) for key, tensor in state.items())


def same(model, state):
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in own)


# Layout -> (what the file holds, what is said of it)
LAYOUTS = {
    "bare": (lambda sd: sd, ""),
    "DDP": (lambda sd: prefixed(sd, "module."), "stripped module."),
    "compile": (lambda sd: prefixed(sd, "_orig_mod."), "stripped _orig_mod."),
    "DDP of compile": (lambda sd: prefixed(sd, "module._orig_mod."), "stripped _orig_mod. and module."),
    "compile of DDP": (lambda sd: {"state_dict": prefixed(sd, "_orig_mod.module.")}, "stripped _orig_mod. and module."),
    "block by block": (
        lambda sd: {key.replace("layer2.", "layer2._orig_mod."): t for key, t in sd.items()},
        "stripped _orig_mod.",
    ),
    "FSDP": (
        lambda sd: prefixed(
            {k.replace("layer1.", "layer1._fsdp_wrapped_module."): t for k, t in sd.items()}, "_fsdp_wrapped_module."
        ),
        "stripped _fsdp_wrapped_module.",
    ),
    "DeiT, torchvision": (lambda sd: {"model": sd, "optimizer": {"state": {}}, "epoch": 3}, ""),
    "plain scripts": (lambda sd: {"model_state_dict": sd, "epoch": 3}, ""),
    "Composer": (lambda sd: {"state": {"model": prefixed(sd, "module."), "rank": 0}}, "stripped module."),
    "Lightning": (
        lambda sd: {
            "state_dict": {**prefixed(sd, "model."), "criterion.weight": torch.ones(3)},
            "pytorch-lightning_version": "2.5.0",
        },
        "stripped model.; left out criterion.weight",
    ),
    "mmpretrain": (
        lambda sd: {
            "meta": {"epoch": 3},
            "state_dict": {
                **{f"backbone.{k}": t for k, t in sd.items() if not k.startswith("fc.")},
                **{f"head.{k}": t for k, t in sd.items() if k.startswith("fc.")},
                "data_preprocessor.mean": torch.zeros(3, 1, 1),
            },
        },
        "stripped backbone.; renamed head.fc to fc; left out data_preprocessor.mean",
    ),
    "open_clip": (
        lambda sd: {"state_dict": prefixed(sd, "module.visual.trunk.")},
        "stripped module.; stripped visual.trunk.",
    ),
    "averaged": (
        lambda sd: {"model_ema": {**prefixed(sd, "module."), "n_averaged": torch.tensor(3)}},
        "stripped module.; left out n_averaged",
    ),
    "another head": (
        lambda sd: {k.replace("fc.", "head.classifier."): t for k, t in sd.items()},
        "renamed head.classifier to fc",
    ),
    "counted": (lambda sd: {**sd, "layer1.total_ops": torch.zeros(1), "epoch": 3}, "left out layer1.total_ops, epoch"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_weights_that_were_saved_and_says_what_it_did(tmp_path, source, layout):
    make, line = LAYOUTS[layout]
    path = tmp_path / "w.pth"
    torch.save(make(source.state_dict()), path)
    target = fresh()
    assert load_weights(target, read_weights(path), source=path, name=NAME) == line
    assert same(target, source.state_dict())


def test_averaged_model_of_torch_itself(tmp_path, source):
    torch.save({"model_ema": AveragedModel(source).state_dict()}, tmp_path / "w.pth")
    weights = read_weights(tmp_path / "w.pth")
    load_weights(target := fresh(), weights, source="w.pth", name=NAME)
    assert weights.kind == "ema"
    assert same(target, source.state_dict())


@pytest.mark.parametrize("ema", ["state_dict_ema", "model_ema", "ema_state_dict", "teacher"])
def test_ema_weights_of_others_are_found_and_can_be_declined(tmp_path, source, ema):
    averaged = {key: tensor + 1 for key, tensor in source.state_dict().items()}
    torch.save(
        {"student" if ema == "teacher" else "state_dict": source.state_dict(), ema: averaged}, tmp_path / "w.pth"
    )
    for prefer, expected in (("auto", averaged), ("ema", averaged), ("raw", source.state_dict())):
        load_weights(target := fresh(), read_weights(tmp_path / "w.pth", prefer=prefer), source="w.pth", name=NAME)
        assert same(target, expected), prefer


def test_safetensors_of_others(tmp_path, source):
    from safetensors.torch import save_file

    save_file(prefixed(source.state_dict(), "timm_model."), tmp_path / "w.safetensors")
    line = load_weights(target := fresh(), read_weights(tmp_path / "w.safetensors"), source="w", name=NAME)
    assert line == "stripped timm_model."
    assert same(target, source.state_dict())


def test_absent_counters_start_at_zero_and_half_precision_is_converted(tmp_path, source):
    state = {k: t.half() for k, t in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    counters = len(source.state_dict()) - len(state)
    line = load_weights(target := fresh(), torch_round_trip(tmp_path, state), source="w", name=NAME)
    assert line == f"{counters} num_batches_tracked are absent and start at 0; converted from float16"
    assert torch.equal(target.fc.weight, source.fc.weight.half().float())
    assert target.bn1.num_batches_tracked == 0


def torch_round_trip(folder, payload):
    torch.save(payload, folder / "w.pth")
    return read_weights(folder / "w.pth")


def test_two_networks_in_one_state_dict_are_not_guessed_at(tmp_path, source):
    both = {**prefixed(source.state_dict(), "encoder_q."), **prefixed(source.state_dict(), "encoder_k.")}
    with pytest.raises(CheckpointError, match=r"several networks of this kind, under encoder_k\. and encoder_q\."):
        load_weights(fresh(), torch_round_trip(tmp_path, both), source="w.pth", name=NAME)


def test_files_of_torchvision(tmp_path):
    """Its ResNets have timm's names; DenseNet's old ones are renamed by timm's own filter."""
    import torchvision

    for name, theirs in (("resnet18", "resnet18"), ("densenet121", "densenet121")):
        torch.manual_seed(0)
        model = getattr(torchvision.models, theirs)(num_classes=CLASSES).eval()
        weights = torch_round_trip(tmp_path, {"model": model.state_dict(), "args": argparse.Namespace(model=theirs)})
        target = fresh(name)
        load_weights(target, weights, source="w.pth", name=name)
        images = torch.randn(1, 3, 224, 224)
        with torch.no_grad():
            torch.testing.assert_close(target(images), model(images), rtol=1e-4, atol=1e-5)


def test_names_of_other_code_are_converted_by_timms_filter_below_a_prefix(tmp_path):
    """ConvNeXt as its authors released it, inside a LightningModule."""
    source = fresh("convnext_atto")
    state = source.state_dict()
    official = {}
    for key, tensor in state.items():
        for new, old in (
            ("stem.0", "downsample_layers.0.0"), ("stem.1", "downsample_layers.0.1"), ("head.norm", "norm"),
            ("head.fc", "head"), ("mlp.fc1", "pwconv1"), ("mlp.fc2", "pwconv2"), ("conv_dw", "dwconv"),
        ):  # fmt: skip
            key = key.replace(new, old)
        if "stages" in key:
            for stage in range(4):
                key = key.replace(f"stages.{stage}.downsample", f"downsample_layers.{stage}")
                key = key.replace(f"stages.{stage}.blocks", f"stages.{stage}")
        official[f"model.{key}"] = tensor
    torch.manual_seed(2)
    target = timm.create_model("convnext_atto", num_classes=CLASSES)
    line = load_weights(target, torch_round_trip(tmp_path, {"state_dict": official}), source="w.ckpt", name="convnext")
    assert same(target, state)
    assert line.startswith("stripped model.; renamed ")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224", "swin_tiny_patch4_window7_224"])
def test_position_embeddings_are_resized_as_timm_does(tmp_path, name):
    kwargs = {"depth": 2} if "swin" not in name else {"depths": (1, 1, 1, 1)}
    source = fresh(name, **kwargs)
    nn.init.normal_(source.pos_embed) if "swin" not in name else None
    target = fresh(name, img_size=96, **kwargs)
    line = load_weights(target, torch_round_trip(tmp_path, source.state_dict()), source="w.pth", name=name)
    overlay = {"file": str(tmp_path / "w.pth"), "num_classes": CLASSES}
    timms = fresh(name, pretrained=True, pretrained_cfg_overlay=overlay, img_size=96, **kwargs)
    assert same(target, timms.state_dict())
    if "swin" not in name:
        assert line == "resized pos_embed"
        assert target.pos_embed.shape[1] < source.pos_embed.shape[1]


def test_two_classifiers_are_both_new_or_both_loaded(tmp_path):
    name = "deit_tiny_distilled_patch16_224"
    source = fresh(name, depth=1)
    weights = torch_round_trip(tmp_path, source.state_dict())
    assert classifier_names(source) == ("head", "head_dist")
    assert load_weights(target := fresh(name, depth=1), weights, source="w", name=name, new_classifier=True) == ""
    assert same(target, source.state_dict())
    target = fresh(name, depth=1, num_classes=3)
    before = {key: tensor.clone() for key, tensor in target.state_dict().items() if "head" in key}
    line = load_weights(target, weights, source="w", name=name, new_classifier=True)
    assert line == "new classifier: head.weight, head.bias, head_dist.weight, head_dist.bias"
    assert all(torch.equal(target.state_dict()[key], tensor) for key, tensor in before.items())
    assert torch.equal(target.cls_token, source.cls_token)


def test_heads_that_a_network_without_classes_lacks_are_left_out():
    """Where it has None in their place, not a module."""
    weights = Weights(fresh("volo_d1_224").state_dict(), None, "model")
    line = load_weights(fresh("volo_d1_224", num_classes=0), weights, source="w", name="volo_d1_224")
    assert line == "left out head, aux_head"


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("deit_tiny_distilled_patch16_224", {"depth": 1}), ("levit_128s", {}), ("repvit_m0_9", {}),
        ("crossvit_tiny_240", {}), ("efficientformer_l1", {}), ("swiftformer_xs", {}), ("pit_ti_distilled_224", {}),
    ],
)  # fmt: skip
def test_files_of_models_with_two_classifiers_are_evaluated_and_count_their_classes(tmp_path, name, kwargs):
    source = fresh(name, **kwargs)
    args = argparse.Namespace(model=name, model_kwargs=kwargs)
    torch.save({"state_dict": source.state_dict(), "arch": name, "args": args}, tmp_path / "w.pth.tar")
    loaded = load_classifier(tmp_path / "w.pth.tar")
    assert (loaded.name, loaded.num_classes, loaded.changes) == (name, CLASSES, "")
    assert same(loaded.network, source.state_dict())


def test_a_checkpoint_of_timms_training_says_its_model_and_its_images(tmp_path):
    """`arch` and `args` as timm's train.py writes them: no --model, and the pixels of the training."""
    source = fresh("resnet10t")
    args = argparse.Namespace(
        model="resnet10t", num_classes=CLASSES, mean=[0.5], std=[0.25, 0.25, 0.2], img_size=96, crop_pct=0.95,
        interpolation="bilinear", input_size=None, in_chans=None, gp=None, model_kwargs={}, lr=0.1,
    )  # fmt: skip
    torch.save(
        {"epoch": 3, "arch": "resnet10t", "args": args, "state_dict": source.state_dict()}, tmp_path / "w.pth.tar"
    )
    loaded = load_classifier(tmp_path / "w.pth.tar")
    how = loaded.preprocessing
    assert (loaded.name, loaded.num_classes) == ("resnet10t", CLASSES)
    assert (how.size, how.crop_pct, how.interpolation) == (96, 0.95, "bilinear")
    assert (how.mean, how.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.2))


def test_a_training_file_can_not_make_timm_read_other_files(tmp_path):
    args = argparse.Namespace(model=NAME, model_kwargs={"checkpoint_path": "evil.pt"})
    torch.save({"arch": NAME, "args": args, "state_dict": fresh().state_dict()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"asks for checkpoint_path.*refused"):
        load_classifier(tmp_path / "w.pth")
    torch.save({"arch": "local-dir:/evil", "args": {}, "state_dict": fresh().state_dict()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="which timm does not know"):
        load_classifier(tmp_path / "w.pth")


@pytest.mark.skipif(not timm.is_model("gemma4_vit_167m"), reason="a model with infinite buffers, of timm 1.0.31")
def test_infinite_buffers_of_a_network_are_no_damage(tmp_path):
    """The limits of its clipped layers start at infinity; NaN is damage, and so are infinities elsewhere."""
    small = {"depth": 1, "embed_dim": 64, "num_heads": 1}
    network = fresh("gemma4_vit_167m", **small)
    limit = "encoder.blocks.0.attn.q_proj.input_min"
    assert network.state_dict()[limit] == -float("inf")
    args = {"model_kwargs": small}

    def load(state):
        torch.save({"arch": "gemma4_vit_167m", "args": args, "state_dict": state}, tmp_path / "w.pth")
        return load_classifier(tmp_path / "w.pth")

    assert same(load(network.state_dict()).network, network.state_dict())
    for key, value in ((limit, float("nan")), ("head.weight", float("inf"))):
        damaged = {**network.state_dict(), key: torch.full_like(network.state_dict()[key], value)}
        with pytest.raises(CheckpointError, match=f"NaN or infinite values \\({key}\\)"):
            load(damaged)


def test_pretrained_weights_that_cannot_be_had_are_one_sentence(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(UserError, match=r"pretrained weights of resnet18 \(no network\): download them"):
        read_source("timm:resnet18")


def test_pretrained_weights_of_the_zoo_by_name():
    weights = read_source("timm:ddf_mul_resnet14_32px.digits")
    assert same(load_classifier("zoo:ddf_mul_resnet14_32px.digits").network, weights.state_dict)


def test_filters_are_those_that_timm_gives_its_loader():
    from timm.models.deit import checkpoint_filter_fn

    assert checkpoint_filter("vit_tiny_patch16_224") is checkpoint_filter_fn
    assert checkpoint_filter("deit3_small_patch16_224").keywords == {"adapt_layer_scale": True}
    assert checkpoint_filter("resnet18") is None
    assert checkpoint_filter("ddf_mul_resnet50") is None
    assert timm.models._builder.load_pretrained.__module__ == "timm.models._builder"  # as it was


def test_archives_of_numpy_are_named(tmp_path):
    (tmp_path / "vit.npz").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="NumPy archive of JAX weights"):
        read_weights(tmp_path / "vit.npz")


def test_weights_of_another_model_are_still_refused(tmp_path, source):
    before = (target := ddfnet.create_model("resnet14t", num_classes=CLASSES)).conv1[0].weight.clone()
    with pytest.raises(CheckpointError, match="does not hold weights of resnet14t"):
        load_weights(target, torch_round_trip(tmp_path, source.state_dict()), source="w", name="resnet14t")
    assert torch.equal(before, target.conv1[0].weight)


def test_an_average_is_told_from_its_counters(tmp_path, source):
    state, counters = source.state_dict(), {"decay": torch.tensor(0.9), "updates": torch.tensor(5)}
    torch.save({"model": state, "ema": counters}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").kind == "model"
    averaged = {key: tensor + 1 for key, tensor in state.items()}
    torch.save({"model": state, "ema": {"shadow": averaged, **counters}}, tmp_path / "w.pth")
    load_weights(target := fresh(), read_weights(tmp_path / "w.pth"), source="w.pth", name=NAME)
    assert same(target, averaged)


def test_a_dictionary_that_holds_itself_ends(tmp_path):
    payload = {"epoch": 1}
    payload["model"] = payload
    torch.save(payload, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="holds no weights"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_weights_that_are_no_real_numbers_are_refused(tmp_path, source, dtype):
    state = {**source.state_dict(), "conv1.0.weight": source.state_dict()["conv1.0.weight"].to(dtype)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"int8|complex64"):
        load_weights(fresh(), read_weights(tmp_path / "w.pth"), source="w.pth", name=NAME)


@pytest.mark.parametrize(
    ("there", "wanted", "rule"),
    [
        (3, 1, lambda w: w.sum(1, keepdim=True)),
        (3, 2, lambda w: 1.5 * w[:, :2]),
        (3, 4, lambda w: 0.75 * w[:, [0, 1, 2, 0]]),
        (12, 4, lambda w: w.unflatten(1, (4, 3)).sum(2)),  # a stem that folds 2 x 2 pixels of RGB, of gray
    ],
)
def test_weights_for_color_are_adapted_to_other_channels(there, wanted, rule):
    state, network = fresh(in_chans=there).state_dict(), fresh(in_chans=wanted)
    line = load_weights(network, Weights(state, None, "model"), source="w.pt", name=NAME, new_classifier=True)
    assert line == f"adapted conv1.0 from {there} to {plural(wanted, 'channel')}"
    torch.testing.assert_close(network.state_dict()["conv1.0.weight"], rule(state["conv1.0.weight"]))


@pytest.mark.parametrize(("there", "wanted"), [(4, 1), (2, 1), (1, 3), (4, 3), (2, 4), (6, 4), (6, 3)])
def test_weights_for_other_inputs_than_color_are_not_adapted(there, wanted):
    weights = Weights(fresh(in_chans=there).state_dict(), None, "model")
    words = (
        rf"w\.pt is of a network whose conv1\.0 takes {plural(there, 'channel')}, .* model\.in_chans takes {wanted}: .*"
        rf"set model\.in_chans={there}, or"
    )
    with pytest.raises(CheckpointError, match=words):
        load_weights(fresh(in_chans=wanted), weights, source="w.pt", name=NAME, new_classifier=True)
