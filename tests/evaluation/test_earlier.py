"""An earlier report in the same folder: kept if it is of something else, replaced if it is not."""

import json

from ddfnet.evaluation.earlier import keep_earlier

SAME = {"checkpoint": "best.pt", "preprocessing": {"input_size": 32, "crop_pct": 0.9}, "data": "val", "top1": 5.0}


def write(folder, **changes):
    report = {
        **SAME,
        "files": ["report.json", "report.md", "val/report.md"],
        "date": "2026-11-27T10:00:00+00:00",
        **changes,
    }
    (folder / "val").mkdir(parents=True, exist_ok=True)
    for name in ("report.md", "val/report.md", "mine.txt"):
        (folder / name).write_text("old")
    (folder / "report.json").write_text(json.dumps(report))


def test_the_same_options_replace(tmp_path):
    assert keep_earlier(tmp_path, "report.json", SAME) == ""  # there is none
    write(tmp_path, top1=4.0, command="another", batch_size=7)
    assert keep_earlier(tmp_path, "report.json", SAME, results=["top1", "data"]) == ""
    assert (tmp_path / "report.md").exists()


def test_other_options_keep_the_files_of_the_report_alone(tmp_path):
    write(tmp_path, preprocessing={"input_size": 32, "crop_pct": 1.0}, data="train", tta=True)
    line = keep_earlier(tmp_path, "report.json", SAME, results=["top1", "data"])
    kept = tmp_path / "earlier" / "2026-11-27T10-00-00"
    assert line == f"{tmp_path} had a report that differs in data, preprocessing.crop_pct, tta: it is kept in {kept}"
    assert sorted(str(p.relative_to(kept)) for p in kept.rglob("*") if p.is_file()) == [
        "report.json", "report.md", "val/report.md",
    ]  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["mine.txt"]
    write(tmp_path, data="train")
    assert str(keep_earlier(tmp_path, "report.json", SAME)).endswith("2026-11-27T10-00-00-2")


def test_a_threshold_is_an_option_although_it_stands_among_the_results(tmp_path):
    results = ["top1", "data", "threshold"]
    write(tmp_path, top1=4.0, threshold=0.5)
    assert keep_earlier(tmp_path, "report.json", {**SAME, "threshold": 0.5}, results=results) == ""
    line = keep_earlier(tmp_path, "report.json", {**SAME, "threshold": 0.9}, results=results)
    assert "differs in threshold: it is kept in" in line


def test_sets_are_compared_by_their_data(tmp_path):
    sets = {"val": {"data": "a", "top1": 1.0}, "v2": {"data": "b", "top1": 2.0}}
    (tmp_path / "sets.json").write_text(json.dumps({"checkpoint": "x", "sets": sets, "files": ["sets.json"]}))
    new = {"checkpoint": "x", "sets": {"val": {"data": "a"}, "v2": {"data": "b"}}}
    assert keep_earlier(tmp_path, "sets.json", {"checkpoint": "x", "sets": {"val": "a", "v2": "b"}}) == ""
    assert new["sets"].pop("v2")
    assert "differs in sets.v2" in keep_earlier(tmp_path, "sets.json", new)


def test_names_that_lead_out_of_the_folder_are_left_alone(tmp_path):
    (tmp_path / "outside").write_text("keep me")
    folder = tmp_path / "report"
    folder.mkdir()
    files = ["../outside", str(tmp_path / "outside"), 3]
    (folder / "report.json").write_text(json.dumps({"checkpoint": "x", "files": files}))
    assert keep_earlier(folder, "report.json", {"checkpoint": "y"})
    assert (tmp_path / "outside").read_text() == "keep me"
    (folder / "report.json").write_text("not json")
    assert keep_earlier(folder, "report.json", {"checkpoint": "y"}) == ""
