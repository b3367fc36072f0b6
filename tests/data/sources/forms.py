"""One set of images, written in every form that a source can have; in an order that no folder would have."""

import csv
from pathlib import Path

CLASSES = {"cat": 14, "dog": 11, "eel": 9}
Files = list[tuple[Path, str]]  # and their classes


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_csv(out: Path, folder: Path, files: Files) -> str:
    return f"csv:{write_csv(out / 'pets.csv', [{'path': str(path), 'label': name} for path, name in files])}"


def as_csv_of_relative_paths(out: Path, folder: Path, files: Files) -> str:
    (out / "images").symlink_to(folder)
    rows = [{"photo": f"images/{path.relative_to(folder)}", "breed": name, "label": "x"} for path, name in files]
    return f"csv:{write_csv(out / 'pets.csv', rows)}?image=photo&label=breed"


def as_parquet_of_paths(out: Path, folder: Path, files: Files) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image": [str(path) for path, _ in files], "label": [name for _, name in files]})
    pq.write_table(table, out / "pets.parquet")
    return f"parquet:{out / 'pets.parquet'}"


def as_parquet_of_bytes(out: Path, folder: Path, files: Files) -> str:
    """In two files, with the classes as numbers, and their names in a file beside."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (out / "parts").mkdir()
    for part, some in enumerate((files[:20], files[20:])):
        table = pa.table(
            {
                "jpeg": [path.read_bytes() for path, _ in some],
                "label": [list(CLASSES).index(name) for _, name in some],
                "file": [str(path.relative_to(folder)) for path, _ in some],
            }
        )
        pq.write_table(table, out / "parts" / f"{part}.parquet", row_group_size=7)
    (out / "classes.txt").write_text("\n".join(CLASSES))
    return f"parquet:{out / 'parts'}?image=jpeg&name=file&classes={out / 'classes.txt'}"


def as_hf_imagefolder(out: Path, folder: Path, files: Files) -> str:
    return f"hf:{folder}"


def as_hf_saved(out: Path, folder: Path, files: Files) -> str:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    columns = {"image": [str(path) for path, _ in files], "label": [name for _, name in files]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(out / "saved")
    return f"hf:{out / 'saved'}"


def as_hf_parquet(out: Path, folder: Path, files: Files) -> str:
    """As data sets lie on the hub: a folder of Parquet files with bytes and names in one column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": path.read_bytes(), "path": f"{name}/{path.name}"} for path, name in files]
    table = pa.table({"image": images, "label": [name for _, name in files]})
    (out / "hub" / "data").mkdir(parents=True)
    pq.write_table(table, out / "hub" / "data" / "train-00000-of-00001.parquet")
    return f"hf:{out / 'hub'}:train"


WRITERS = [
    as_csv,
    as_csv_of_relative_paths,
    as_parquet_of_paths,
    as_parquet_of_bytes,
    as_hf_imagefolder,
    as_hf_saved,
    as_hf_parquet,
]
