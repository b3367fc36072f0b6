"""One shard as a file: a tar file as `webdataset` lays it out, or a chunk of `litdata`."""

import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from patchconvnet.data.sources.shard_index import INDEX_FILE
from patchconvnet.errors import UserError

Format = Literal["tar", "litdata"]
LARGEST_CHUNK = 2**32 - 1  # bytes: litdata counts them in 32 bits


class Sample(NamedTuple):
    """One image of a shard.

    Attributes:
        name: its folders below its class's, and its file name; no other image of its class has the same.
        content: the bytes of an image file.
        ending: of that file's name, without a dot.
        label: the number of its class.
        class_name: what that is called.
    """

    name: str
    content: bytes
    ending: str
    label: int
    class_name: str


# given the path to write and the samples; returns what the index must say about the file besides
Writer = Callable[[Path, Iterator[Sample]], dict[str, Any]]


def write_tar(path: Path, samples: Iterator[Sample]) -> dict[str, Any]:
    """Two members a sample, `cat/01%2Ejpg.jpg` and `cat/01%2Ejpg.cls`: a dot would end a key."""
    with tarfile.open(path, "w") as archive:
        for sample in samples:
            key = f"{sample.class_name}/{sample.name}".replace("%", "%25").replace(".", "%2E")
            _add(archive, f"{key}.{sample.ending}", sample.content)
            _add(archive, f"{key}.cls", sample.class_name.encode())
    return {}


def write_chunk(path: Path, samples: Iterator[Sample]) -> dict[str, Any]:
    """Samples of the fields image (bytes), label (a number) and name, as litdata writes them.

    Raises:
        UserError: the images are too large for one chunk.
    """
    from litdata import File
    from litdata.streaming import Cache
    from litdata.streaming.serializers import StringSerializer

    class Text(StringSerializer):
        """litdata's own stores that file's content for a text that happens to be the path of a file."""

        def can_serialize(self, data: Any) -> bool:
            return isinstance(data, str)

    size = 0
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.") as folder:
        cache = Cache(folder, chunk_size=2**31 - 1, serializers={"str": Text()})
        for number, sample in enumerate(samples):
            if (size := size + len(sample.content) + 1000) > LARGEST_CHUNK:
                raise UserError("a shard of litdata holds less than 4 GB; give fewer --images-per-shard.")
            name = f"{sample.class_name}/{sample.name}"
            cache[number] = {"image": File(bytes=sample.content), "label": sample.label, "name": name}
        cache.done()
        (written,) = Path(folder).glob("*.bin")
        (about,) = Path(folder).glob(f"*{INDEX_FILE}")
        written.replace(path)
        index = json.loads(about.read_text())
    return {"chunk": index["chunks"][0], "config": index["config"]}


WRITERS: dict[Format, tuple[str, Writer]] = {"tar": ("tar", write_tar), "litdata": ("bin", write_chunk)}


def litdata_index(records: "list[dict[str, Any]]", images_per_shard: int) -> dict[str, Any]:
    """What litdata looks for in index.json, from what `write_chunk` returned about each shard."""
    chunks = [{**record["chunk"], "filename": record["file"]} for record in records]
    return {"chunks": chunks, "config": {**records[0]["config"], "chunk_size": images_per_shard}}


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
