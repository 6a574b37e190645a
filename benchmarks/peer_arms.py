"""The peer loaders, each used as a skilled user would: run by the Python of the peer's own environment.

    python -m benchmarks.peer_arms ARM --shards DIR --scratch DIR [--seconds 2 | --check | --convert]

Imports nothing of jaxz, whose numpy the peers may not share. Prints one JSON line.
"""

import argparse
import importlib.machinery
import importlib.metadata
import importlib.util
import io
import json
import shutil
import sys
import tarfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.measure import measure

BATCH, WORKERS, ARRAY = 256, 2, "image.npy"


class Data(NamedTuple):
    shards: list[str]  # the dataset's own tars
    folder: Path  # the same samples in the format of the arm
    shape: tuple[int, ...]  # of one sample
    dtype: np.dtype

    def view(self, content) -> np.ndarray:
        """A sample of its raw bytes, or of a .npy file, whose header comes before them."""
        count = int(np.prod(self.shape))
        return np.frombuffer(content, self.dtype, count, len(content) - count * self.dtype.itemsize).reshape(self.shape)


def samples(shards: list[str]) -> Iterator[np.ndarray]:
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith("." + ARRAY):
                    yield np.load(io.BytesIO(tar.extractfile(member).read()), allow_pickle=False)


def check(batches: Iterator, data: Data) -> dict:
    """Count and sum of crc32 mod 2^32 of an epoch's samples. Raises ValueError for a batch of another kind."""
    count = total = 0
    for batch in batches:
        array = np.asarray(batch)
        if array.shape[1:] != data.shape or array.dtype != data.dtype or not array.flags.c_contiguous:
            raise ValueError(f"a batch is {array.dtype} {array.shape}, C-contiguous: {array.flags.c_contiguous}")
        count += len(array)
        total += sum(zlib.crc32(sample) for sample in array)
    return {"samples": count, "crc32": total % 2**32}


# Formats: the dataset's samples, in its order


def write_mds(data: Data) -> None:
    streaming = import_streaming()
    kind = f"ndarray:{data.dtype}:{','.join(map(str, data.shape))}"  # with type and shape: raw bytes, no header
    with streaming.MDSWriter(out=str(data.folder), columns={"image": kind}) as writer:
        for sample in samples(data.shards):
            writer.write({"image": sample})


def write_litdata(data: Data) -> None:
    import litdata
    import torch

    def convert(shard):
        yield from (torch.from_numpy(sample) for sample in samples([shard]))

    litdata.optimize(
        convert, data.shards, output_dir=str(data.folder), chunk_bytes="64MB", num_workers=1, start_method="fork"
    )


def write_array_record(data: Data) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    for n, shard in enumerate(data.shards):
        # One record a group: the fastest to read at random. Compression gains nothing on float16 noise.
        writer = ArrayRecordWriter(str(data.folder / f"{n:05d}.array_record"), "group_size:1,uncompressed")
        for sample in samples([shard]):
            writer.write(sample.tobytes())
        writer.close()


def write_memmap(data: Data) -> None:
    with open(data.folder / "image.raw", "wb") as file:
        for sample in samples(data.shards):
            file.write(sample.tobytes())


def write_files(data: Data) -> None:
    for n, sample in enumerate(samples(data.shards)):
        np.save(data.folder / f"{n:08d}.npy", sample)


# Arms: each returns an iterable of an epoch's batches, or a function that makes one


def webdataset_plain(data: Data):
    import webdataset as wds

    pipe = wds.WebDataset(data.shards, shardshuffle=len(data.shards), empty_check=False)
    pipe = pipe.shuffle(1000).decode().to_tuple(ARRAY).batched(BATCH)
    return lambda: (batch for (batch,) in pipe)


def webdataset_best(data: Data, stack=np.stack):
    """Other members are skipped, .npy files are viewed where they lie, a batch is stacked once."""
    import webdataset as wds

    pipe = wds.WebDataset(
        data.shards,
        shardshuffle=len(data.shards),
        empty_check=False,
        select_files=lambda name: name.endswith("." + ARRAY),
    )
    pipe = pipe.shuffle(1000).map(lambda sample: data.view(sample[ARRAY]))
    return pipe.batched(BATCH, collation_fn=stack)


def webdataset_workers(data: Data):
    """Batches are made in the workers and come as tensors in shared memory."""
    return torch_loader(webdataset_best(data, torch_stack), batch_size=None)


def torch_stack(images: Sequence):
    """In a worker straight into shared memory; elsewhere by NumPy, as torch.stack lets threads wait for each other."""
    import torch

    if torch.utils.data.get_worker_info():
        return torch.utils.data.default_collate(images)
    return torch.from_numpy(np.stack(images))


def torch_loader(dataset, workers: int = WORKERS, **options):
    import torch

    return torch.utils.data.DataLoader(dataset, **worker_options(workers), **options)


def worker_options(workers: int) -> dict:
    return {"num_workers": workers, "persistent_workers": True, "prefetch_factor": 4} if workers else {}


def wids(data: Data):
    """Maps the tars where they lie; all stay open."""
    import wids

    shards = [{"url": shard, "nsamples": sum(1 for _ in samples([shard]))} for shard in data.shards]
    dataset = wids.ShardListDataset(
        shards, lru_size=len(shards), localname=lambda shard: shard, transformations=lambda sample: sample["." + ARRAY]
    )

    def epoch():
        for rows in shuffled(len(dataset)):
            yield np.stack([data.view(dataset[row].getbuffer()) for row in rows])

    return epoch


def shuffled(count: int) -> list[np.ndarray]:
    order = np.random.default_rng().permutation(count)
    return np.split(order, range(BATCH, count, BATCH))


def array_record(data: Data):
    """Without grain: the whole batch in one call, which starts threads of its own: two, 64 by default, are fastest."""
    from absl import flags
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    flags.FLAGS(["", f"--grain_num_threads_fetching_records={WORKERS}"])
    source = ArrayRecordDataSource(paths(data))

    def epoch():
        for rows in shuffled(len(source)):
            yield np.stack([data.view(record) for record in source.__getitems__(rows.tolist())])

    return epoch


def paths(data: Data) -> list[str]:
    return sorted(map(str, data.folder.glob("*.array_record")))


def grain_loader(data: Data):
    import grain.python as grain

    class View(grain.MapTransform):
        def map(self, record):
            return data.view(record)

    source = grain.ArrayRecordDataSource(paths(data))
    sampler = grain.IndexSampler(len(source), shard_options=grain.NoSharding(), shuffle=True, num_epochs=1, seed=0)
    return grain.DataLoader(
        data_source=source,
        sampler=sampler,
        operations=[View(), grain.Batch(BATCH)],
        worker_count=0,
        read_options=grain.ReadOptions(num_threads=WORKERS, prefetch_buffer_size=16),  # 500, the default, is slower
    )


def grain_map(data: Data):
    """Batched before the read threads, so that each makes whole batches."""
    import grain.python as grain

    dataset = grain.MapDataset.source(grain.ArrayRecordDataSource(paths(data))).shuffle(seed=0)
    dataset = dataset.map(data.view).batch(BATCH, batch_fn=np.stack)
    return dataset.to_iter_dataset(grain.ReadOptions(num_threads=WORKERS, prefetch_buffer_size=2 * WORKERS))


def import_streaming():
    """mosaicml-streaming. Its vision sets, not used here, import torchvision, whose wheels need the very build of torch
    that they were made for: where it cannot be imported, empty modules stand in."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        for name in ("", ".datasets", ".transforms", ".transforms.functional"):
            spec = importlib.machinery.ModuleSpec("torchvision" + name, None)
            sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        sys.modules["torchvision.datasets"].VisionDataset = type("VisionDataset", (), {})
        sys.modules["torchvision.transforms.functional"].to_tensor = None
    import streaming

    return streaming


def mosaic(data: Data, workers: int = 0):
    """All shards count as at hand: with the default `predownload` it sleeps between batches."""
    dataset = import_streaming().StreamingDataset(
        local=str(data.folder), shuffle=True, batch_size=BATCH, predownload=10**9
    )
    return mosaic_loader(dataset, workers)


def mosaic_loader(dataset, workers: int, **options):
    collate = lambda rows: torch_stack([row["image"] for row in rows])
    return torch_loader(dataset, workers, batch_size=BATCH, collate_fn=collate, **options)


def mosaic_local(data: Data):
    """The same shards as a map-style dataset, without the threads that fetch shards from afar."""
    return mosaic_loader(import_streaming().LocalDataset(local=str(data.folder)), 0, shuffle=True)


def litdata(data: Data, workers: int = 0):
    """Decodes whole chunks: by samples it takes two to three times as long."""
    import litdata

    dataset = litdata.StreamingDataset(str(data.folder), shuffle=True, batch_decode="all")
    collate = lambda rows: torch_stack([row.numpy() for row in rows])
    return litdata.StreamingDataLoader(dataset, batch_size=BATCH, collate_fn=collate, **worker_options(workers))


def torch_dataset(load: Callable, count: int):
    """A map-style dataset of a function of the row, or of the rows of a batch."""
    import torch

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return count

        def __getitem__(self, rows):
            return load(rows)

    return Rows()


def torch_files(data: Data):
    files = sorted(data.folder.glob("*.npy"))
    return torch_loader(torch_dataset(lambda row: np.load(files[row]), len(files)), batch_size=BATCH, shuffle=True)


def memory_map(data: Data) -> np.ndarray:
    return np.memmap(data.folder / "image.raw", data.dtype, "r").reshape(-1, *data.shape)


def torch_memmap(data: Data):
    images = memory_map(data)
    return torch_loader(torch_dataset(images.__getitem__, len(images)), batch_size=BATCH, shuffle=True)


def torch_memmap_batch(data: Data):
    """One copy a batch, from the map to shared memory."""
    import torch

    images = memory_map(data)

    def load(rows):
        batch = torch.empty((len(rows), *data.shape), dtype=getattr(torch, data.dtype.name)).share_memory_()
        np.take(images, rows, axis=0, out=batch.numpy(), mode="clip")  # "raise" would copy once more
        return batch

    dataset = torch_dataset(load, len(images))
    order = torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(dataset), BATCH, drop_last=False)
    return torch_loader(dataset, batch_size=None, sampler=order)


class Arm(NamedTuple):
    venv: str | None  # the environment that it runs in; None: this project's own
    packages: tuple[str, ...]  # whose versions are reported
    form: str | None  # the format it reads; None: the tars
    start: Callable[[Data], Iterable | Callable[[], Iterator]]


ARMS = {
    "webdataset, plain": Arm(None, ("webdataset",), None, webdataset_plain),
    "webdataset, best": Arm(None, ("webdataset",), None, webdataset_best),
    "webdataset, best, DataLoader 2 workers": Arm("torch", ("torch", "webdataset"), None, webdataset_workers),
    "wids": Arm("torch", ("wids",), None, wids),
    "mosaicml-streaming": Arm("mosaic", ("mosaicml-streaming", "torch"), "mds", mosaic),
    "mosaicml-streaming, LocalDataset": Arm("mosaic", ("mosaicml-streaming", "torch"), "mds", mosaic_local),
    "mosaicml-streaming, 2 workers": Arm(
        "mosaic", ("mosaicml-streaming", "torch"), "mds", lambda data: mosaic(data, WORKERS)
    ),
    "litdata": Arm("litdata", ("litdata", "torch"), "litdata", litdata),
    "litdata, 2 workers": Arm("litdata", ("litdata", "torch"), "litdata", lambda data: litdata(data, WORKERS)),
    "grain DataLoader, 2 read threads": Arm("grain", ("grain", "array_record"), "array_record", grain_loader),
    "grain MapDataset, 2 read threads": Arm("grain", ("grain", "array_record"), "array_record", grain_map),
    "array_record, in bulk": Arm("grain", ("array_record",), "array_record", array_record),
    "torch, np.load a sample, 2 workers": Arm("torch", ("torch",), "files", torch_files),
    "torch, np.memmap a sample, 2 workers": Arm("torch", ("torch",), "memmap", torch_memmap),
    "torch, np.memmap a batch, 2 workers": Arm("torch", ("torch",), "memmap", torch_memmap_batch),
}
FORMATS = {
    "mds": write_mds,
    "litdata": write_litdata,
    "array_record": write_array_record,
    "files": write_files,
    "memmap": write_memmap,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--convert", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "The given (NumPy array|buffer) is not writable")
    arm, shards = ARMS[options.arm], sorted(map(str, options.shards.glob("*.tar")))
    first = next(samples(shards))
    data = Data(shards, options.scratch / str(arm.form), first.shape, first.dtype)
    if options.convert:
        final, data = data.folder, data._replace(folder=data.folder.with_suffix(".part"))
        shutil.rmtree(data.folder, ignore_errors=True)  # of a conversion that was interrupted
        data.folder.mkdir(parents=True)
        FORMATS[arm.form](data)
        data.folder.rename(final)
        return
    epoch = arm.start(data)
    epoch = epoch if callable(epoch) else epoch.__iter__
    result = check(epoch(), data) if options.check else measure(epoch, options.seconds)
    result["versions"] = {name: importlib.metadata.version(name) for name in (*arm.packages, "numpy")}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
