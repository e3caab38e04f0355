"""report.html: one self-contained page of an evaluation, to look at its mistakes."""

import sys
from typing import Any

import numpy as np
from torch import nn

from ddfnet.data.preprocessing import Preprocessing
from ddfnet.evaluation.image_sets import ImageSet
from ddfnet.evaluation.page_images import Chosen, Pixels, choose, filter_images, short_name, thumbnails
from ddfnet.evaluation.predictions import Predictions
from ddfnet.evaluation.statistics import (
    BINS,
    Calibration,
    calibration,
    class_rows,
    confused_both_ways,
    confusions,
    wilson_interval,
)
from ddfnet.layers.inspection import spatial_layers
from ddfnet.pages.pack import SMALL_IMAGE, pack
from ddfnet.pages.render import render
from ddfnet.utils.text import plural

MOST_ITEMS = 60_000  # mistakes that the page lists; of a set of more, those of the highest confidence
MOST_PAIRS = 200_000


def report_html(
    *,
    images: ImageSet,
    predictions: Predictions,
    names: list[str],
    preprocessing: dict[str, Any],
    network: nn.Module | None,
    precision: str,
    results: dict[str, Any],
    heading: str,
    subject: str,
    facts: list[tuple[str, str]],
) -> str:
    """The text of the page.

    Images that cannot be read any more are missing in it, with one line on stderr.

    Args:
        images, predictions: of the evaluation, in the same order.
        names: readable ones of the classes, in label order.
        preprocessing: `Preprocessing.to_dict`.
        network: that was evaluated; its filters are shown if it predicts any for each pixel. None: not shown.
        precision: of the evaluation, fp32, bf16 or fp16; the filters are computed in it, too.
        results: `PredictionReport.results`.
        heading, subject, facts: the model, what it was evaluated on, and how, as text.
    """
    how = Preprocessing.from_dict(preprocessing)
    pixels = Pixels(images, how)
    pairs, rows, n = confusions(predictions), class_rows(predictions), len(predictions)
    both, curve = confused_both_ways(pairs), calibration(predictions)
    wrong = int((~predictions.correct).sum())
    chosen = choose(predictions, both, len(names), MOST_ITEMS)
    urls = thumbnails(chosen.thumbnails, pixels)
    listed = [*chosen.mistakes, *chosen.correct]
    item = {i: at for at, i in enumerate(listed)}
    viewed = [*chosen.of_pair, *chosen.worst[:3], *chosen.correct[:2], *chosen.worst[3:5]]
    viewed = list(dict.fromkeys(viewed))
    labels = [_label(predictions, i, names) for i in viewed]
    viewer = [] if network is None else filter_images(viewed, pixels, network, how, labels, precision=precision)
    if pixels.problems:
        count = len(pixels.problems)
        print(
            f"report.html lacks {plural(count, 'image')}: {next(iter(pixels.problems.values()))}",
            file=sys.stderr,
            flush=True,
        )
    most_pairs = pairs[:MOST_PAIRS]
    data = {
        "names": names,
        "rows": [
            {"label": r.label, "n": r.n, "top1": r.top1, "top5": r.top5, "confidence": r.confidence,
             "as": r.predicted_as, "count": r.predicted_as_count}
            | dict(zip(("low", "high"), wilson_interval(r.top1, r.n), strict=True))
            for r in rows
        ],
        "pairs": pack(np.array([(p.target, p.predicted, p.count) for p in most_pairs], dtype=np.int64).reshape(-1, 3)),
        "both": both[:200],
        "calibration": {"counts": curve.counts, "accuracy": curve.accuracy, "confidence": curve.confidence},
        "items": _items(images, predictions, listed),
        "thumbs": [(item[i], url) for i, url in urls.items()],
        "small": min(how.input_size[1:]) <= SMALL_IMAGE,
        "shown": [item[i] for i in chosen.of_pair],
        "worst": [item[i] for i in chosen.worst],
        "filters": viewer,
    }  # fmt: skip
    sections = [("confused", "Most confused"), ("matrix", "Confusion matrix"), ("classes", "Classes")]
    sections += [("calibration", "Calibration"), ("mistakes", "Worst mistakes"), ("filters", "Filters")]
    absent = set() if wrong else {"confused", "mistakes"}
    absent |= set() if viewer else {"filters"}
    return render(
        "report.html.j2",
        scripts=("filters.js", "report.js"),
        data=data,
        title=f"{heading} on {subject}",
        kicker="Evaluation report",
        heading=heading,
        lead=f"on {subject}: {plural(n, 'image')} of {plural(len(rows), 'class', 'classes')}, each counted once.",
        note=results.get("note") or "",
        sections=[*((id, name) for id, name in sections if id not in absent), ("how", "How it was measured")],
        tiles=_tiles(results, predictions, curve),
        mistakes=wrong,
        most=_most_confused(both, names, {row.label: row.n for row in rows}),
        n_text=f"n = {plural(n, 'image')}; {wrong:,} not on the diagonal.",
        class_text=f"{plural(len(rows), 'class', 'classes')}, n = {plural(n, 'image')}.",
        calibration_text=f"How often the network is right when it is this sure, in {BINS} bins of confidence; "
        f"n = {n:,} images. Expected calibration error {curve.ece:.2f} %.",
        mistakes_text=_mistakes_text(chosen, wrong, len(urls)),
        filters_text=_filters_text(viewer, network, precision),
        facts=facts,
        footer="This file holds everything it shows: no network, no server.",
    )


def _items(images: ImageSet, predictions: Predictions, rows: list[int]) -> dict[str, Any]:
    """Images of the page: packed, since there may be tens of thousands."""
    return {
        "target": pack(predictions.target[rows]),
        "top": pack(predictions.top[rows]),
        "probability": pack(predictions.probabilities[rows].float()),
        "correct": pack(predictions.correct[rows].int()),
        "name": [short_name(images, i) for i in rows],
    }


def _tiles(results: dict[str, Any], predictions: Predictions, curve: Calibration) -> list[dict[str, str]]:
    n = results["n"]
    tiles = []
    for title, key in (("top-1 accuracy", "top1"), ("top-5 accuracy", "top5")):
        hits = results[f"{key}_count"]
        low, high = (f"{100 * bound:.2f}" for bound in wilson_interval(hits, n))
        detail = f"95 % interval {low} to {high} %; {hits:,} of {n:,} images"
        tiles.append({"label": title, "value": f"{100 * hits / n:.2f} %", "detail": detail})
    mean = float(predictions.confidence.mean())
    detail = f"mean confidence {100 * mean:.1f} %, accuracy {results['top1']:.1f} %; n = {n:,}, {BINS} bins"
    tiles.append({"label": "calibration error (ECE)", "value": f"{curve.ece:.2f} %", "detail": detail})
    loss = "-" if results["loss"] is None else f"{results['loss']:.4f}"
    tiles.append({"label": "loss (cross-entropy)", "value": loss, "detail": f"nats, mean of n = {n:,} images"})
    return tiles


def _most_confused(both: list[tuple[int, int, int, int, int]], names: list[str], sizes: dict[int, int]) -> Any:
    if not both:
        return None
    a, b, total, there, back = both[0]
    ways = [
        f"{count:,} of {sizes.get(label, 0):,} images of {names[label]} were predicted as {names[other]}"
        for label, other, count in ((a, b, there), (b, a, back))
        if count
    ]
    return {"a": names[a], "b": names[b], "text": f"{plural(total, 'mistake')}: {', '.join(ways)}."}


def _mistakes_text(chosen: Chosen, wrong: int, shown: int) -> str:
    text = (
        f"{len(chosen.worst):,} of {wrong:,} mistakes, the highest confidence first; the bars are the softmax of the "
    )
    text += f"five most probable classes. {shown:,} images are in this page, as the network saw them."
    return text + (f" It lists {len(chosen.mistakes):,} of the mistakes." if len(chosen.mistakes) < wrong else "")


def _filters_text(viewer: list[dict[str, Any]], network: nn.Module | None, precision: str) -> str:
    if not viewer or network is None:
        return ""
    shown, there, size = len(viewer[0]["layers"]), len(spatial_layers(network)), len(viewer)
    layers = plural(shown, "layer") if shown >= there else f"the first {shown} of {there} layers"
    return (
        f"The filters that this network predicts for each pixel: {layers}, n = {plural(size, 'image')}, computed in "
        f"{precision} as the evaluation. Move the "
        "pointer over the image, touch it, or use the arrow keys. More of any image: python scripts/visualize explore."
    )


def _label(predictions: Predictions, i: int, names: list[str]) -> str:
    target, predicted = names[predictions.target[i]], names[predictions.predicted[i]]
    return f"{target}, predicted as {predicted}, {100 * float(predictions.confidence[i]):.1f} %"
