"""The same images in every form that a source reads, written from a tree of class folders."""

import csv
import io
import json
import tarfile
from pathlib import Path


def samples(tree: Path) -> list[tuple[str, str, bytes]]:
    """(class, file name, bytes) of all images, in another order than theirs."""
    paths = sorted(tree.rglob("*.*"), key=lambda path: (path.name, path.parent.name))
    return [(path.parent.name, path.name, path.read_bytes()) for path in paths]


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def tar_bytes(members: list[tuple[str, bytes]], path: Path) -> bytes:
    content = write_tar(path, members).read_bytes()
    path.unlink()
    return content


def write_table(tree: Path, out: Path, suffix: str) -> Path:
    path = out / f"train{suffix}"
    out.mkdir(parents=True, exist_ok=True)
    rows = [(str(tree / name / file), name) for name, file, _ in samples(tree)]
    if suffix == ".txt":
        path.write_text("".join(f"{file} {label}\n" for file, label in rows))
        return path
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter="," if suffix == ".csv" else "\t")
        writer.writerows([("split", "file_name", "label"), *(("train", *row) for row in rows)])
    return path


def write_shards(tree: Path, out: Path, *, numbers: bool = True, per_shard: int = 7) -> Path:
    """WebDataset shards `set-train-0000.tar`; `numbers`: labels are numbers instead of names."""
    classes = sorted({name for name, _, _ in samples(tree)})
    members = []
    for name, file, content in samples(tree):
        stem, _, extension = file.partition(".")
        label = str(classes.index(name)) if numbers else name
        members.append([(f"{name}_{stem}.{extension}", content), (f"{name}_{stem}.cls", label.encode()),
                        (f"{name}_{stem}.json", b"{}")])  # fmt: skip
    for shard in range(-(-len(members) // per_shard)):
        part = members[shard * per_shard : (shard + 1) * per_shard]
        write_tar(out / f"set-train-{shard:04d}.tar", [member for sample in part for member in sample])
    return out


def write_class_tars(tree: Path, out: Path) -> Path:
    """`train/cat.tar`, ..., as in ImageNet once its outer tar is unpacked."""
    for name in sorted({name for name, _, _ in samples(tree)}):
        write_tar(out / "train" / f"{name}.tar", [(f, data) for c, f, data in samples(tree) if c == name])
    return out / "train"


def write_tar_of_tars(tree: Path, out: Path, name: str = "ILSVRC2012_img_train.tar") -> Path:
    tars = sorted(write_class_tars(tree, out / "tars").iterdir())
    return write_tar(out / name, [(path.name, path.read_bytes()) for path in tars])


def write_folder_tar(tree: Path, out: Path) -> Path:
    members = [(f"./train/{name}/{file}", content) for name, file, content in samples(tree)]
    return write_tar(out / "train.tar", members)


def arrow_table(tree: Path, *, names: bool = True):
    """A table as `datasets` writes it; `names`: with the names of the files."""
    import pyarrow as pa

    rows = samples(tree) if names else sorted(samples(tree))
    classes = sorted({name for name, _, _ in rows})
    image = [{"bytes": content, "path": file if names else None} for _, file, content in rows]
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    return pa.table({"image": image, "label": [classes.index(name) for name, _, _ in rows]}, schema=schema)


def write_parquet(tree: Path, out: Path, *, shards: int = 2, **options) -> Path:
    import pyarrow.parquet as pq

    table = arrow_table(tree, **options)
    (out / "data").mkdir(parents=True)
    size = -(-len(table) // shards)
    for shard in range(shards):
        path = out / "data" / f"train-{shard:05d}-of-{shards:05d}.parquet"
        pq.write_table(table.slice(shard * size, size), path, row_group_size=4)
    return out


def write_arrow(tree: Path, out: Path, **options) -> Path:
    """A stream as in the cache of `datasets` and in what `save_to_disk` writes."""
    import pyarrow as pa

    table = arrow_table(tree, **options)
    (out / "train").mkdir(parents=True)
    with pa.ipc.new_stream(str(out / "train" / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (out / "train" / "state.json").write_text(json.dumps(state))
    return out


WRITERS = {
    "csv": lambda tree, out: write_table(tree, out, ".csv"),
    "tsv": lambda tree, out: write_table(tree, out, ".tsv"),
    "txt": lambda tree, out: write_table(tree, out, ".txt"),
    "shards": write_shards,
    "named_shards": lambda tree, out: write_shards(tree, out, numbers=False),
    "class_tars": write_class_tars,
    "tar_of_tars": write_tar_of_tars,
    "folder_tar": write_folder_tar,
    "parquet": write_parquet,
    "nameless_parquet": lambda tree, out: write_parquet(tree, out, names=False),
    "arrow": write_arrow,
}
