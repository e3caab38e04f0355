"""report.html of an evaluation of images with any number of labels: which labels fail, and which images show why."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddfnet.evaluation.multilabel import ClassScore, mistakes_together
from ddfnet.evaluation.multilabel_images import Chosen, Decisions, choose, decisions_of, item_data
from ddfnet.evaluation.page_parts import About, Section, Top, calibration_data, left_out, page, shown_images
from ddfnet.evaluation.statistics import BINS, Calibration, calibrated, wilson_interval
from ddfnet.pages.pack import pack
from ddfnet.utils.text import plural

MOST_CELLS = 200_000
LISTED = 10  # labels beside the first images


@dataclass(frozen=True)
class LabelRow:
    """A label and its mistakes."""

    label: int
    score: ClassScore
    missed: int
    alarms: int


def multilabel_html(logits: Tensor, truth: Tensor, threshold: float, scores: list[ClassScore], about: About) -> str:
    """The text of the page.

    Args:
        logits, truth: float32 and bool (N, labels), in the order of the images.
        threshold: of the sigmoid, from which on a label is predicted.
        scores: of the labels, see `class_scores`.
        about: the model and the images.
    """
    own = decisions_of(logits, truth, threshold)
    missed, alarms = own.missed.sum(0).tolist(), own.alarms.sum(0).tolist()
    rows = [LabelRow(i, *row) for i, row in enumerate(zip(scores, missed, alarms, strict=True))]
    worst = worst_first(rows)
    cells = _cells(mistakes_together(own.missed, own.alarms))
    classes, n = len(scores), len(truth)
    both_wrong = [cell for cell in cells if cell[:2] != (classes, classes)]
    chosen = choose(own, [row.label for row in worst], both_wrong)
    curve = calibrated(torch.from_numpy(own.probability).double().flatten(), truth.flatten())
    viewed = [*chosen.top, *chosen.missed[:3], *chosen.alarms[:3], *chosen.thumbnails]
    shown = shown_images(about, chosen.thumbnails, viewed[:24], lambda i: _label(own, i, about.names))
    item = {i: at for at, i in enumerate(chosen.items)}
    curves, rest = _curves(logits.numpy(), own, scores), left_out([cell[2] for cell in cells], MOST_CELLS)
    none = int((~own.truth.any(1)).sum())
    data = {
        "rows": [_row(row, n) | points for row, points in zip(rows, curves, strict=True)],
        "threshold": threshold,
        "n": n,
        "nothing_missed": int((~own.missed.any(1)).sum()),
        "cells": pack(np.array(cells[:MOST_CELLS], dtype=np.int64).reshape(-1, 3)),
        "calibration": calibration_data(curve),
        "items": item_data(own, about.images, chosen.items),
        "thumbs": [(item[i], url) for i, url in shown.urls.items()],
        "list": [row.label for row in worst[:LISTED]],
        **{key: [item[i] for i in getattr(chosen, key)] for key in ("top", "missed", "alarms")},
    }
    return page(
        about,
        shown,
        script="multilabel.js",
        data=data,
        lead=f"on {about.subject}: {plural(n, 'image')} ({none:,} without a label), each with any number of "
        f"{plural(classes, 'label')}; a label is predicted from {threshold:g} of the sigmoid on.",
        tiles=_tiles(about.results, own, rows, curve),
        top=_top(worst[0], about.names, threshold, n) if worst else None,
        sections=_sections(own, rows, chosen, curve, len(shown.urls), rest),
    )


def worst_first(rows: list[LabelRow]) -> list[LabelRow]:
    """Labels with a mistake: the lowest F1 first, of equal ones that which more images have; then those of no image."""
    wrong = [row for row in rows if row.missed or row.alarms]
    return sorted(wrong, key=lambda row: (not row.score.positives, row.score.f1, -row.score.positives, -row.alarms))


def _cells(together: np.ndarray) -> list[tuple[int, int, int]]:
    """The cells with images off the diagonal, and the last one: those without a mistake. The most frequent first."""
    together = together.copy()
    np.fill_diagonal(together[:-1, :-1], 0)  # a label is not missed where it is a false alarm
    a, b = np.nonzero(together)
    order = np.argsort(-together[a, b], kind="stable")
    return list(zip(a[order].tolist(), b[order].tolist(), together[a, b][order].tolist(), strict=True))


def _curves(logits: np.ndarray, own: Decisions, scores: list[ClassScore]) -> list[dict[str, Any]]:
    """Of each label its precision-recall curve: for each point the `probability` from which on is predicted, and the
    images `found` and `chosen` then; `at`: the last point that the threshold reaches, null if it reaches none; `best`:
    probability and F1 of the highest F1, null without an image. Numbers in full: half precision would move a
    probability over the threshold."""
    lowest = np.where(own.predicted, logits, np.inf).min(0)  # that the threshold reaches
    curves = []
    for row, least in zip(scores, lowest.tolist(), strict=True):
        found, reached = (row.curve[:, 2] * row.positives).round(), int((row.curve[:, 0] >= least).sum())
        score, f1 = row.best
        curves.append({
            "probability": _probabilities(row.curve[:, 0]),
            "found": found.astype(int).tolist(), "chosen": (found / row.curve[:, 1]).round().astype(int).tolist(),
            "at": reached - 1 if reached else None, "best": None if f1 != f1 else (*_probabilities([score]), f1),
        })  # fmt: skip
    return curves


def _probabilities(scores: Sequence[float] | np.ndarray) -> list[float | None]:
    """In six digits, rounded such that it is a threshold that this score reaches; null for NaN."""
    exact = torch.tensor(np.asarray(scores), dtype=torch.float32).sigmoid().numpy()
    near = np.round(exact.astype(np.float64), 6)
    reached = exact >= near.astype(np.float32)  # as probabilities are compared with a threshold
    with_room = np.where(reached, near, np.floor(1e6 * exact.astype(np.float64)) / 1e6)
    return [None if value != value else value for value in with_room.tolist()]


def _row(row: LabelRow, n: int) -> dict[str, Any]:
    """What the table says of a label; null where it is not defined."""
    own = row.score
    right = own.positives - row.missed
    intervals = [wilson_interval(right, of) if of else None for of in (own.predicted, own.positives)]
    return {
        "label": row.label, "positives": own.positives, "predicted": own.predicted, "missed": row.missed,
        "alarms": row.alarms, "ap": own.average_precision, "precision": own.precision, "recall": own.recall,
        "f1": own.f1, "precision_interval": intervals[0], "recall_interval": intervals[1],
        "negatives": n - own.positives,
    }  # fmt: skip


def _tiles(results: dict[str, Any], own: Decisions, rows: list[LabelRow], curve: Calibration) -> list[dict[str, str]]:
    decisions, present = own.truth.size, sum(row.score.positives > 0 for row in rows)
    missed, alarms, found = (int(part.sum()) for part in (own.missed, own.alarms, own.truth & own.predicted))
    labels = f"n = {plural(present, 'label')}" + (f" of {len(rows):,}" if present < len(rows) else "")
    precision, recall = (_percent(found / of) if of else "-" for of in (found + alarms, found + missed))
    mean = 100 * float(own.probability.mean(dtype=np.float64))
    return [
        {"label": "mAP, mean over labels", "value": _percent(results["map_macro"] / 100),
         "detail": f"{labels}, {plural(len(own.truth), 'image')}; over all decisions "
                   f"{_percent(results['map_micro'] / 100)}"},
        {"label": "F1, mean over labels (macro)", "value": _percent(results["f1_macro"] / 100),
         "detail": f"at the threshold {results['threshold']:g}; {labels}"},
        {"label": "F1, all decisions (micro)", "value": _percent(results["f1_micro"] / 100),
         "detail": f"precision {precision}, recall {recall}; {missed:,} missed, {plural(alarms, 'false alarm')}; "
                   f"n = {decisions:,}"},
        {"label": "calibration error (ECE)", "value": f"{curve.ece:.2f} %",
         "detail": f"mean probability {mean:.1f} %, {100 * own.truth.mean():.1f} % present; n = {decisions:,}, "
                   f"{BINS} bins"},
    ]  # fmt: skip


def _top(row: LabelRow, names: list[str], threshold: float, n: int) -> Top:
    own = row.score
    parts = [
        f"F1 {_percent(own.f1)} at the threshold {threshold:g}, average precision {_percent(own.average_precision)}"
    ]
    if own.positives:
        parts.append(f"missed in {row.missed:,} of {plural(own.positives, 'image')} with it")
    parts.append(f"a false alarm in {row.alarms:,} of {n - own.positives:,} without it")
    heading = f"The label found worst: {names[row.label]}"
    return Top("weakest", "Weakest label", heading, f"{', '.join(parts)}.", "Labels with the lowest F1")


def _sections(
    own: Decisions, rows: list[LabelRow], chosen: Chosen, curve: Calibration, shown: int, rest: str
) -> list[Section]:
    n, decisions, absent = len(own.truth), own.truth.size, sum(not row.score.positives for row in rows)
    none = f" {plural(absent, 'label')} of no image: what is not defined without one is a dash." if absent else ""
    wrong = int((own.worst > 0).sum())
    lowest = 100 * curve.counts[0] / decisions
    sections = [
        Section(
            *("classes", "Labels", "Labels"),
            f"{plural(len(rows), 'label')}, n = {plural(n, 'image')}.{none} The line across a bar is the 95 % "
            "confidence interval (Wilson). Choose a heading to sort, a row to see the precision-recall curve and the "
            "mistakes.",
        ),
        Section(
            *("matrix", "Mistakes together", "Missed labels and false alarms in the same images"),
            "Row: a label that was missed. Column: a false alarm in the same images. Diagonal: the label was found. "
            "Number: images; shade: fraction of the row's images. An image with several mistakes is in several cells. "
            f"Choose a cell to see its images. n = {plural(n, 'image')}, {wrong:,} with a mistake.{rest}",
        ),
        Section(
            *("calibration", "Calibration", "Calibration"),
            f"How often a label is present when the network is this sure of it, in {BINS} bins of the sigmoid; "
            f"n = {decisions:,} decisions ({n:,} images, {plural(len(rows), 'label')}), {lowest:.1f} % of them in the "
            f"lowest bin. Expected calibration error {curve.ece:.2f} %.",
        ),
    ]
    if wrong:
        text = (
            f"{plural(int(own.missed.sum()), 'label')} missed and {plural(int(own.alarms.sum()), 'false alarm')} in "
            f"{wrong:,} of {plural(n, 'image')}. The bars are the sigmoid of each label, the line across them the "
            f"threshold. {shown:,} images are in this page, as the network saw them."
        )
        text += f" It lists {chosen.mistakes:,} of those with mistakes." if chosen.mistakes < wrong else ""
        sections.append(Section("mistakes", "Worst mistakes", "Worst mistakes", text))
    return sections


def _label(own: Decisions, i: int, names: list[str]) -> str:
    true, predicted = (
        "; ".join(names[label] for label in np.flatnonzero(of[i])) or "no label" for of in (own.truth, own.predicted)
    )
    return f"{true}, predicted as {predicted}"


def _percent(fraction: float) -> str:
    return "-" if fraction != fraction else f"{100 * fraction:.1f} %"
