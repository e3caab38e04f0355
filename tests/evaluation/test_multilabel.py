"""Metrics of multi-label evaluation against scikit-learn's and against sums by hand."""

import io
import math

import numpy as np
import pytest
import torch

from ddfnet.evaluation.figures import draw_precision_recall
from ddfnet.evaluation.multilabel import MultiLabelEvaluator, Ranking


def ranked_by_hand(scores, truth):
    """Precision at each positive, over all scores at least as high."""
    precisions = []
    for score, positive in zip(scores, truth, strict=True):
        if positive:
            above = [t for s, t in zip(scores, truth, strict=True) if s >= score]
            precisions.append(sum(above) / len(above))
    return sum(precisions) / len(precisions)


@pytest.mark.parametrize("levels", [3, 1000])  # many equal scores, few
def test_average_precision_is_the_mean_over_the_positives(levels):
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, truth = rng.integers(levels, size=30) / levels, rng.random(30) < 0.3
        truth[0] = True
        own = Ranking.of(scores, truth).average_precision
        assert own == pytest.approx(ranked_by_hand(scores.tolist(), truth.tolist()))
    assert math.isnan(Ranking.of(scores, np.zeros(30, bool)).average_precision)


def evaluated(logits, truth, *, threshold=0.5, parts=3):
    """The metrics of images that several processes evaluated in batches, in another order."""
    evaluators = [MultiLabelEvaluator(threshold) for _ in range(parts)]
    for start in range(0, len(logits), 4):
        rows = torch.arange(start, min(start + 4, len(logits)))
        batch = {"image": logits[rows], "target": truth[rows].float(), "index": rows}
        evaluators[(start // 4) % parts].update(torch.nn.Identity(), batch)
    return evaluators[0].compute([evaluator.state() for evaluator in evaluators]), evaluators[0].rows


@pytest.fixture
def results():
    torch.manual_seed(0)
    logits, truth = torch.randn(50, 6), torch.rand(50, 6) < torch.tensor([0.5, 0.1, 0.3, 0.2, 0.02, 0.0])
    return (logits + truth).bfloat16().float(), truth  # with equal scores


def test_figures_are_scikit_learns(results):
    metrics = pytest.importorskip("sklearn.metrics")
    logits, truth = results
    got, rows = evaluated(logits, truth, threshold=0.6)
    chosen, present = logits.sigmoid() >= 0.6, truth.any(0)
    ap = [metrics.average_precision_score(truth[:, c], logits[:, c]) for c in range(6) if present[c]]
    assert got["map_macro"] == pytest.approx(100 * np.mean(ap))
    assert got["map_micro"] == pytest.approx(100 * metrics.average_precision_score(truth, logits, average="micro"))
    known = present.nonzero()[:, 0].tolist()
    macro = metrics.f1_score(truth, chosen, average="macro", labels=known)
    assert got["f1_macro"] == pytest.approx(100 * macro)
    assert got["f1_micro"] == pytest.approx(100 * metrics.f1_score(truth, chosen, average="micro"))
    for c in known:
        assert rows[c].recall == pytest.approx(metrics.recall_score(truth[:, c], chosen[:, c]))
        assert rows[c].positives == int(truth[:, c].sum())


def test_processes_and_order_make_no_difference(results):
    one, _ = evaluated(*results, parts=1)
    three, rows = evaluated(*results, parts=3)
    assert one == three
    assert one["n"] == 50
    p = results[0].double().sigmoid()
    loss = -torch.where(results[1], p.log(), (1 - p).log()).mean()
    assert one["loss"] == pytest.approx(loss.item())
    assert rows[5].positives == 0
    assert math.isnan(rows[5].average_precision)  # and counts in no mean


def test_a_perfect_and_a_silent_network():
    truth = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=torch.bool)
    perfect, _ = evaluated(truth * 20.0 - 10, truth)
    assert [perfect[key] for key in ("map_macro", "map_micro", "f1_macro", "f1_micro")] == [100] * 4
    silent, rows = evaluated(torch.full((4, 2), -5.0), truth)
    assert (silent["map_macro"], silent["f1_macro"], silent["f1_micro"]) == (50, 0, 0)
    assert math.isnan(rows[0].precision)


def test_the_figure_has_the_curves_of_the_evaluation(results):
    pytest.importorskip("matplotlib")
    logits, truth = results
    _, rows = evaluated(logits, truth, threshold=0.6)
    figure = draw_precision_recall([("_a $x$", rows[0]), ("b", rows[1])], 5)
    (axes,) = figure.axes
    lines = [line for line in axes.lines if line.get_drawstyle() == "steps-pre"]
    squares = [line for line in axes.lines if line.get_marker() == "s"]
    for row, line, square in zip(rows[:2], lines, squares, strict=True):
        recall, precision = line.get_data()
        assert (np.diff(recall) * np.asarray(precision)[1:]).sum() == pytest.approx(row.average_precision)
        assert (*square.get_xdata(), *square.get_ydata()) == (row.recall, row.precision)
    text = axes.get_legend().get_texts()[0]
    assert text.get_text().endswith(f"n = {rows[0].positives}: _a $x$")
    assert not text.get_parse_math()
    figure.savefig(io.BytesIO(), format="png")
    assert "2 of 5 labels, lowest F1" in figure.get_suptitle()
