"""report.html: one self-contained page of an evaluation of images with one label each, to look at its mistakes."""

from typing import Any

import numpy as np

from ddfnet.evaluation.image_sets import ImageSet
from ddfnet.evaluation.page_images import Chosen, choose, short_name
from ddfnet.evaluation.page_parts import About, Section, Top, calibration_data, left_out, page, shown_images
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
from ddfnet.pages.pack import pack
from ddfnet.utils.text import plural

MOST_ITEMS = 60_000  # mistakes that the page lists; of a set of more, those of the highest confidence
MOST_PAIRS = 200_000


def report_html(predictions: Predictions, about: About) -> str:
    """The text of the page; `predictions` in the order of the images."""
    images, names = about.images, about.names
    pairs, rows, n = confusions(predictions), class_rows(predictions), len(predictions)
    both, curve = confused_both_ways(pairs), calibration(predictions)
    wrong = int((~predictions.correct).sum())
    chosen = choose(predictions, both, len(names), MOST_ITEMS)
    viewed = [*chosen.of_pair, *chosen.worst[:3], *chosen.correct[:2], *chosen.worst[3:5]]
    shown = shown_images(about, chosen.thumbnails, viewed, lambda i: _label(predictions, i, names))
    listed = [*chosen.mistakes, *chosen.correct]
    item = {i: at for at, i in enumerate(listed)}
    most_pairs = pairs[:MOST_PAIRS]
    data = {
        "rows": [
            {"label": r.label, "n": r.n, "top1": r.top1, "top5": r.top5, "confidence": r.confidence,
             "as": r.predicted_as, "count": r.predicted_as_count}
            | dict(zip(("low", "high"), wilson_interval(r.top1, r.n), strict=True))
            for r in rows
        ],
        "pairs": pack(np.array([(p.target, p.predicted, p.count) for p in most_pairs], dtype=np.int64).reshape(-1, 3)),
        "both": both[:200],
        "calibration": calibration_data(curve),
        "items": _items(images, predictions, listed),
        "thumbs": [(item[i], url) for i, url in shown.urls.items()],
        "shown": [item[i] for i in chosen.of_pair],
        "worst": [item[i] for i in chosen.worst],
    }  # fmt: skip
    sections = [
        Section(
            *("matrix", "Confusion matrix", "Confusion matrix"),
            "Row: true class. Column: predicted class. Number: images; shade: fraction of the row's images. Choose a "
            f"cell to see its images. n = {plural(n, 'image')}; {wrong:,} not on the diagonal."
            f"{left_out([pair.count for pair in pairs], MOST_PAIRS)}",
        ),
        Section(
            *("classes", "Classes", "Classes"),
            f"{plural(len(rows), 'class', 'classes')}, n = {plural(n, 'image')}. The line across each bar is the 95 % "
            "confidence interval (Wilson). Choose a heading to sort, a row to see the mistakes.",
        ),
        Section(
            *("calibration", "Calibration", "Calibration"),
            f"How often the network is right when it is this sure, in {BINS} bins of confidence; n = {n:,} images. "
            f"Expected calibration error {curve.ece:.2f} %.",
        ),
        Section(
            *("mistakes", "Worst mistakes", "Mistakes made with the highest confidence"),
            _mistakes_text(chosen, wrong, len(shown.urls)),
        ),
    ]
    return page(
        about,
        shown,
        script="report.js",
        data=data,
        lead=f"on {about.subject}: {plural(n, 'image')} of {plural(len(rows), 'class', 'classes')}, each counted once.",
        tiles=_tiles(about.results, predictions, curve),
        top=_most_confused(both, names, {row.label: row.n for row in rows}) if wrong else None,
        sections=sections if wrong else sections[:-1],
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


def _most_confused(both: list[tuple[int, int, int, int, int]], names: list[str], sizes: dict[int, int]) -> Top:
    a, b, total, there, back = both[0]
    ways = [
        f"{count:,} of {sizes.get(label, 0):,} images of {names[label]} were predicted as {names[other]}"
        for label, other, count in ((a, b, there), (b, a, back))
        if count
    ]
    return Top(
        id="confused",
        name="Most confused",
        heading=f"The two classes most confused: {names[a]} and {names[b]}",
        text=f"{plural(total, 'mistake')}: {', '.join(ways)}.",
        list="Pairs confused most",
    )


def _mistakes_text(chosen: Chosen, wrong: int, shown: int) -> str:
    text = (
        f"{len(chosen.worst):,} of {wrong:,} mistakes, the highest confidence first; the bars are the softmax of the "
    )
    text += f"five most probable classes. {shown:,} images are in this page, as the network saw them."
    return text + (f" It lists {len(chosen.mistakes):,} of the mistakes." if len(chosen.mistakes) < wrong else "")


def _label(predictions: Predictions, i: int, names: list[str]) -> str:
    target, predicted = names[predictions.target[i]], names[predictions.predicted[i]]
    return f"{target}, predicted as {predicted}, {100 * float(predictions.confidence[i]):.1f} %"
