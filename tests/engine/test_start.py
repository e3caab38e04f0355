"""Where a run starts from: pretrained weights by name, files of others, image sizes that reach the model; and what is
refused before anything is written."""

import argparse
import shutil
import signal

import pytest
import timm
import torch

from ddfnet.checkpoint import read_weights
from ddfnet.data import decode
from ddfnet.engine.evaluate import place
from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint
from ddfnet.engine.signals import StopSignal
from ddfnet.engine.train import train
from ddfnet.models.classifier import load_classifier
from ddfnet.tasks import classification, create_task, load_config
from ddfnet.utils.errors import ConfigError, DataError, UserError
from ddfnet.zoo.entries import ZooError
from tests.conftest import CLASSES

ZOO = "ddf_mul_resnet14_32px.digits"
VIT = ["model.name=vit_tiny_patch16_224", "model.kwargs={depth: 2, embed_dim: 32, num_heads: 2}"]


@pytest.fixture
def run(tiny_config, tmp_path):
    """Trains one epoch with changes; returns its folder."""

    def _run(*overrides):
        folder = tmp_path / "run"
        train(load_config(tiny_config, [f"run.dir={folder}", "train.epochs=1", "optim.lr=1e-9", *overrides]))
        return folder

    return _run


def body_of(folder):
    return {k: t for k, t in read_weights(folder / "last.pt").state_dict.items() if k.endswith("conv1.weight")}


@pytest.mark.parametrize(
    "overrides",
    [[f"model.name={ZOO}"], [f"model.name={ZOO}", "model.pretrained=true"], [f"model.init_checkpoint=zoo:{ZOO}"]],
)
def test_a_tag_or_pretrained_loads_the_weights(run, capsys, overrides):
    folder = run(*overrides)
    assert "new classifier: fc.weight, fc.bias" in capsys.readouterr().out
    pretrained = load_classifier(f"zoo:{ZOO}").network.state_dict()
    for key, tensor in body_of(folder).items():
        torch.testing.assert_close(tensor, pretrained[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("start", "note"),
    [
        (f"model.name={ZOO}", f"note: data.input differs from timm's record of {ZOO}: mean"),
        (f"model.init_checkpoint=zoo:{ZOO}", "note: these weights were trained with data.input mean"),
    ],
)
def test_another_mean_than_that_of_the_weights_is_noted_once(run, capsys, start, note):
    run(start, "data.input.mean=[0.1, 0.2, 0.3]", "data.input.std=[0.5, 0.5, 0.5]")
    notes = [line for line in capsys.readouterr().out.splitlines() if "note:" in line and "[0.1, 0.2, 0.3]" in line]
    assert len(notes) == 1
    assert note in notes[0]


@pytest.mark.parametrize(
    "overrides", [[f"model.name={ZOO}", "model.pretrained=false"], ["model.name=resnet10t.untrained"]]
)
def test_pretrained_false_and_the_tag_untrained_start_at_random(tiny_config, overrides):
    assert load_config(tiny_config, overrides).config.model.start is None


def test_pretrained_weights_of_a_timm_model_are_asked_for_by_name(tiny_config, monkeypatch):
    def unreachable(name):
        raise ZooError(f"cannot get {name}")

    monkeypatch.setattr("ddfnet.tasks.classification_input.locate", unreachable)

    def start(*overrides):
        return load_config(tiny_config, overrides).config.model.start

    assert start("model.name=resnet18.a1_in1k") == "timm:resnet18.a1_in1k"
    assert start("model.name=resnet18", "model.pretrained=true") == "timm:resnet18"
    assert start("model.name=resnet18") is None
    assert start("model.name=resnet18.a1_in1k", "model.init_checkpoint=a.pt") == "a.pt"
    assert start("model.name=hf-hub:timm/resnet18.a1_in1k") == "hf-hub:timm/resnet18.a1_in1k"
    with pytest.raises(ConfigError, match=r"init_checkpoint=a\.pt .* and model\.pretrained=true .*contradict"):
        start("model.pretrained=true", "model.init_checkpoint=a.pt")


def test_weights_that_do_not_exist_are_named_and_nothing_is_written(tiny_config, tmp_path):
    for name in ("dw_resnet14_32px", "resnet10t.untrained"):
        overrides = [f"model.name={name}", "model.pretrained=true", f"run.dir={tmp_path / 'run'}"]
        with pytest.raises(UserError, match="weights"):
            train(load_config(tiny_config, overrides))
        assert not (tmp_path / "run").exists()


def test_a_local_folder_is_model_and_weights_and_not_needed_afterwards(run, tmp_path, capsys):
    from timm.models import save_for_hf

    torch.manual_seed(3)
    source = timm.create_model("resnet10t", num_classes=len(CLASSES))
    save_for_hf(source, tmp_path / "hub")
    folder = run(f"model.name=local-dir:{tmp_path / 'hub'}", "data.input.size=32")
    assert f"weights from local-dir:{tmp_path / 'hub'}" in capsys.readouterr().out
    for key, tensor in body_of(folder).items():
        torch.testing.assert_close(tensor, source.state_dict()[key], rtol=0, atol=1e-6)
    (tmp_path / "hub").rename(tmp_path / "moved")
    assert load_classifier(folder / "best.pt").name == "resnet10t"


def test_a_run_starts_from_a_training_file_of_timm_and_is_evaluated_as_it(run, tmp_path, image_tree, capsys):
    source = timm.create_model("resnet10t", num_classes=len(CLASSES))
    args = argparse.Namespace(model="resnet10t", mean=[0.5] * 3, std=[0.2] * 3, img_size=32, crop_pct=1.0)
    state = {f"module._orig_mod.{key}": tensor for key, tensor in source.state_dict().items()}
    torch.save({"arch": "resnet10t", "args": args, "state_dict": state}, tmp_path / "timm.pth.tar")
    run("model.name=resnet10t", f"model.init_checkpoint={tmp_path / 'timm.pth.tar'}", "data.input.size=32")
    assert "stripped _orig_mod. and module." in capsys.readouterr().out
    report = evaluate_checkpoint(tmp_path / "timm.pth.tar", data=image_tree, device="cpu", workers=0)
    assert report.settings.model == "resnet10t"
    assert report.settings.facts["preprocessing"]["mean"] == [0.5] * 3
    assert "stripped _orig_mod. and module." in capsys.readouterr().out


def test_the_image_size_reaches_a_vision_transformer(run, image_tree):
    folder = run(*VIT, "data.input.size=64")
    loaded = load_classifier(folder / "best.pt")
    assert loaded.kwargs["img_size"] == 64
    assert loaded.network.pos_embed.shape[1] == 1 + (64 // 16) ** 2
    report = evaluate_checkpoint(folder / "best.pt", data=image_tree, device="cpu", workers=0, input_size=96)
    assert report.metrics["n"] == 25
    resized = load_classifier(folder / "best.pt", changes={"input_size": 96})
    assert resized.network.pos_embed.shape[1] == 1 + (96 // 16) ** 2
    assert resized.changes == "resized pos_embed"
    from timm.layers import resample_abs_pos_embed

    timms = resample_abs_pos_embed(loaded.network.pos_embed, new_size=(6, 6), num_prefix_tokens=1)
    assert torch.equal(resized.network.pos_embed, timms)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*VIT, "data.input.size=64", "data.input.train_size=48"], "built for one image size: it cannot train at 48"),
        (
            ["model.name=convnext_atto", "data.input.size=8"],
            r"no images of 8 x 8 pixels .* takes are 32; .* made for 224",
        ),
        (
            ["model.name=inception_v3", "data.input.size=299", "model.kwargs={aux_logits: true}"],
            "inception_v3 cannot be used with these arguments: it returns 2 outputs instead of the logits",
        ),
        (["model.name=resnet18.nope"], "resnet18 has no weights tagged 'nope'"),
        (
            [*VIT[:1], "model.kwargs={img_size: 64}"],
            r"img_size=64 .* cannot be given there: it follows data.input.size",
        ),
    ],
)
def test_sizes_and_outputs_that_cannot_be_are_refused_before_anything_is_written(run, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        run(*overrides)
    assert not (tmp_path / "run").exists()


def test_trying_a_size_changes_neither_the_weights_nor_what_is_random(tiny_config):
    task = create_task(load_config(tiny_config, ["model.kwargs={squeeze_ratio: 0.3}"]).config)
    torch.manual_seed(5)
    tried, after = task.build_model(), torch.rand(1)
    torch.manual_seed(5)
    plain = timm.create_model("ddf_mul_resnet14_32px", num_classes=len(CLASSES), squeeze_ratio=0.3)
    assert torch.equal(after, torch.rand(1))
    assert all(torch.equal(tensor, plain.state_dict()[key]) for key, tensor in tried.state_dict().items())


def test_five_dimensional_weights_stay_as_they_are_in_channels_last(run, image_tree):
    model = timm.create_model("lambda_resnet26t", num_classes=len(CLASSES))
    assert any(parameter.ndim == 5 for parameter in model.parameters())
    place(model, torch.device("cpu"), channels_last=True)
    strided = [p for p in model.parameters() if p.ndim == 4 and 1 not in p.shape]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in strided)


@pytest.mark.parametrize("channels_last", ["true", "false"])
def test_the_memory_format_of_training_is_that_of_evaluation(run, image_tree, monkeypatch, channels_last):
    folder = run(f"train.channels_last={channels_last}")
    seen = []

    def placed(model, device, *, channels_last):
        seen.append(channels_last)
        return place(model, device, channels_last=channels_last)

    monkeypatch.setattr("ddfnet.engine.evaluate_checkpoint.place", placed)
    evaluate_checkpoint(folder / "best.pt", data=image_tree, device="cpu", workers=0)
    evaluate_checkpoint(folder / "best.safetensors", data=image_tree, device="cpu", workers=0)
    assert seen == [channels_last == "true"] * 2


def test_signals_that_a_system_lacks_are_not_needed(monkeypatch):
    """Windows has no SIGUSR1."""
    monkeypatch.delattr(signal, "SIGUSR1")
    former = signal.getsignal(signal.SIGTERM)
    stop = StopSignal(None)
    stop.begin()
    stop._note(signal.SIGTERM, None)
    assert stop.received == "SIGTERM"
    stop.restore()
    assert signal.getsignal(signal.SIGTERM) is former


def test_the_logged_rate_is_the_base_rate_whatever_the_groups_have(run, tmp_path):
    from ddfnet.utils.files import read_jsonl

    folder = run(*VIT, "data.input.size=32", "optim.name=adamw", "optim.lr=0.001", "optim.kwargs={layer_decay: 0.5}",
                 "schedule.warmup_epochs=0", "schedule.name=constant")  # fmt: skip
    rates = {record["lr"] for record in read_jsonl(folder / "metrics.jsonl") if record["kind"] == "train"}
    assert rates == {0.001}


def test_a_decoder_that_is_not_there_leaves_no_run_folder(tiny_config, run, tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "_works", lambda backend: False)
    with pytest.raises(ConfigError, match=r"data.decoder=torchcodec \(command line\) cannot be used: pip install"):
        run("data.decoder=torchcodec")
    assert not (tmp_path / "run").exists()


def test_a_cache_that_cannot_be_kept_leaves_no_run_folder(tiny_config, run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data.val_cache=\S+ \(command line\) cannot be used: .*name another folder"):
        run(f"data.val_cache={tmp_path / 'file' / 'cache'}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_corrupt_validation_image_leaves_no_run_folder(tiny_config, image_tree, tmp_path, dry_run):
    shutil.copytree(image_tree, tmp_path / "tree")
    (tmp_path / "tree" / "val" / "ring" / "2.png").write_bytes(b"broken")
    loaded = load_config(tiny_config, [f"data.root={tmp_path / 'tree'}", f"run.dir={tmp_path / 'run'}"])
    with pytest.raises(DataError, match=r"evaluation image \S+ring/2\.png is corrupt"):
        train(loaded, dry_run=dry_run)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_leaves_no_cache(tiny_config, tmp_path):
    folders = [f"run.dir={tmp_path / 'run'}", f"data.val_cache={tmp_path / 'cache'}"]
    assert train(load_config(tiny_config, folders), dry_run=True) == 0
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "run").exists()


def test_the_cache_on_disk_takes_the_validation_images_from_the_memory_and_the_log_says_so(
    run, tmp_path, caplog, monkeypatch
):
    kept, original = [], classification.cached_images
    monkeypatch.setattr(
        classification, "cached_images", lambda source, *options: kept.append(source.root) or original(source, *options)
    )
    run("data.cache=memory", f"data.val_cache={tmp_path / 'cache'}")
    assert "data.cache=memory is of the training images alone: data.val_cache keeps the others" in caplog.text
    assert len(kept) == 1
    assert kept[0].endswith("train")
    assert len(list((tmp_path / "cache").iterdir())) == 1
