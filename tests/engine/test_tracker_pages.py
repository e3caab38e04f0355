"""What trackers are shown of a run."""

from types import SimpleNamespace

import torch
from torch import nn

from ddfnet.engine.tracker_pages import MOST_IMAGES, TrackerPages, first_of_stages


class Counting:
    def __init__(self):
        self.outputs = []

    def update(self, model, batch):
        self.outputs.append(model(batch["image"]))

    def state(self):
        return len(self.outputs)

    def compute(self, states):
        return {"n": sum(states)}


def pages(task):
    trackers = SimpleNamespace(active=True, image=lambda name, pixels, step: shown.append((name, pixels, step)))
    shown: list = []
    config = SimpleNamespace(run=SimpleNamespace(log_every=2), train=SimpleNamespace(precision="fp32"))
    plan = SimpleNamespace(steps_per_epoch=5, total_steps=10)
    return TrackerPages(trackers, task, config, plan, torch.device("cpu")), shown


def test_the_worst_mistakes_of_all_batches_are_kept_in_order():
    scores = torch.rand(50, generator=torch.Generator().manual_seed(1))
    scores[::2] = 0  # right
    kept = []

    class Task:
        def mistakes(self, output, batch):
            return {"score": output[:, 0, 0, 0], "image": batch["image"]}

        def shown(self, rows, most):
            kept.extend(rows["score"].tolist())
            return [(image, "") for image in rows["image"]]

    made, shown = pages(Task())
    with made.watched(Counting(), model := nn.Identity()) as evaluator:
        for part in scores.view(-1, 1, 1, 1).expand(-1, 3, 4, 4).split(8):
            evaluator.update(model, {"image": part})
    assert evaluator.compute([evaluator.state()]) == {"n": 7}
    assert not model._forward_hooks
    made.log_evaluation("val", model, 5)
    assert kept == scores.sort(descending=True).values[:MOST_IMAGES].tolist()
    assert [(name, step) for name, _, step in shown] == [("val/mistakes", 5)]


def test_no_page_without_mistakes_and_none_of_a_task_that_has_none():
    for rows in (None, {"score": torch.zeros(4)}):
        made, shown = pages(SimpleNamespace(mistakes=lambda *_, rows=rows: rows, shown=lambda rows, most: []))
        with made.watched(Counting(), model := nn.Identity()) as evaluator:
            evaluator.update(model, {"image": torch.zeros(4, 3, 2, 2)})
        made.log_evaluation("val", model, 5)
        assert shown == []


def test_gradients_are_measured_at_steps_with_a_log_line_alone():
    made, _ = pages(None)
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, weight_decay=0.1)
    for step, measured in ((1, False), (2, True), (3, False), (5, True), (7, False), (10, True)):
        made._norms.clear()
        made.see_gradients(optimizer, step)
        assert {key: float(norm) for key, norm in made._norms.items()} == ({"0_decay": 5.0} if measured else {})


def test_one_layer_of_each_stage():
    names = ["layer1.0.conv2", "layer1.1.conv2", "layer2.0.conv2", "body.stages.0.a", "body.stages.0.b", "up.x", "up.y"]
    assert first_of_stages(names) == ["layer1.0.conv2", "layer2.0.conv2", "body.stages.0.a", "up.x"]
