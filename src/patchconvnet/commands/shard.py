"""`patchconvnet shard`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from patchconvnet.commands.command_line import CommandLine
from patchconvnet.commands.terminal import printable

WORDS = {"tar": "tar files", "litdata": "chunks of litdata"}


def shard(
    *,
    data: str,
    out: Path,
    root: str | None = None,
    resize: int | None = None,
    images_per_shard: int = 1000,
    format: Literal["tar", "litdata"] = "tar",
    workers: int = 2,
    max_bad: str | None = None,
) -> int:
    """Write a data set as files of many images that train, evaluate and audit read with --data wds:OUT or litdata:OUT.

      patchconvnet shard --data folder:my_images --out shards --resize 256
      patchconvnet train --recipe probe --data wds:shards

    After an interruption the same command continues where it stopped.

    Args:
        data: cifar10, cifar100, digits, folder:PATH, csv:FILE, parquet:FILE, hf:NAME, wds:PATTERN or
            litdata:FOLDER.
        out: the folder to write.
        root: where the data is, or is downloaded to.
        resize: shorter side that larger images get, in pixels; by default their files are kept as they are.
        images_per_shard: images in one file.
        format: tar, which webdataset and other programs read, or litdata; docs/data.md compares them.
        workers: threads that read, resize and write.
        max_bad: how many unreadable images may be left out, such as 0.1% or 20; by default any number of a
            folder's, and none of another source's.
    """
    from patchconvnet.data.sources.shards import write_shards
    from patchconvnet.progress_bar import progress_bar

    with progress_bar() as bar:
        task = bar.add_task("shards", total=None)
        written = write_shards(
            data, out, root=root, resize=resize, images_per_shard=images_per_shard, format=format,
            workers=workers, max_bad=max_bad,
            on_shard=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    already = f" ({written.already} of them were there)" if written.already else ""
    print(f"{printable(out)}: {written.images:,} images in {written.shards:,} {WORDS[format]}{already}")
    return 0


def run(words: Sequence[str]) -> int:
    """Run the command with the words typed after its name."""
    parser = CommandLine(shard)
    parser.add_function_arguments(shard, as_group=False)
    return shard(**parser.parse(words))
