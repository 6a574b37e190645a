"""What jaxz.predict reaches of the bare forward pass over the same stream, in one process, interleaved.

    python -m benchmarks.predict --workdir RUN --dataset DATASET [--where "split == 'test'"] [--batch_size 256]
        [--rounds 5] [--json FILE]

Forward: the run's predictions of every object, jitted, on batches as they come from the stream, and nothing else.
Predict: the whole command but loading and compiling: p(z) brought back, averaged over members, its point estimates,
coverage_flag, the catalogue's columns, and both files of every part written and synced. Beside rates the CPU time of
each: where the device is the CPU itself, that ratio is the same beside other work, too.
"""

import argparse
import collections
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import jax

from jaxz import errors, predict
from jaxz.batches import completed
from jaxz.data.stream import Stream
from jaxz.inference import UNDER_WAY, Model, load_run


def forward(model: Model, function, stream: Stream) -> None:
    """Predict what the stream gives; the results stay on the device."""
    manifest, under_way = stream.sources[0].dataset.manifest, collections.deque()
    for batch in stream:
        batch = completed(batch, manifest, model.normalisation.deredden, {n: n for n in model.objective.inputs})
        under_way.append(function(model.params, batch))
        if len(under_way) > UNDER_WAY:
            jax.block_until_ready(under_way.popleft())
    jax.block_until_ready(list(under_way))


def bare(model: Model, manifest):
    """The jitted forward pass alone."""
    prepare = model.compiled(manifest).prepare
    of_one = lambda params, batch: model.objective.predict(params, model.extra, prepare(batch, jax.random.key(0)))[
        "pdf"
    ]
    return jax.jit(of_one if model.members == 1 else jax.vmap(of_one, (0, None), out_axes=1))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predict", description=__doc__.split("\n\n")[0])
    parser.add_argument("--workdir", required=True, type=Path, help="a run that predicts redshifts")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--where", help="rows; default all")
    parser.add_argument("--batch_size", type=int, default=predict.BATCH)
    parser.add_argument("--objects_per_part", type=int, default=predict.OBJECTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    model = load_run(options.workdir)
    dataset = model.open_dataset(options.dataset)
    predict.know_coverage(model, options.workdir)
    function = bare(model, dataset.manifest)

    def run(arm: str, folder: Path) -> tuple[float, float]:
        with Stream(model.source(dataset, options.where), options.batch_size, shuffle=False, epochs=1) as stream:
            start, cpu = time.perf_counter(), time.process_time()
            if arm == "forward":
                forward(model, function, stream)
            else:
                predict.write_parts(model, stream, folder, None, (1, 1), "parquet", options.objects_per_part)
            return len(stream) / (time.perf_counter() - start), (time.process_time() - cpu) / len(stream)

    found: dict[str, list[tuple]] = {"forward": [], "predict": []}
    with tempfile.TemporaryDirectory() as scratch:
        for n in range(-1, options.rounds):  # the first compiles
            for arm, told in found.items():
                told += [run(arm, Path(scratch) / f"{n}")] * (n >= 0)
    rates, cpu = ({arm: [pair[k] for pair in told] for arm, told in found.items()} for k in (0, 1))
    for arm in found:
        print(f"{arm:8} {median(rates[arm]):8.0f} objects/s {1e3 * median(cpu[arm]):8.3f} ms of CPU an object")
    ratio = median(p / f for p, f in zip(rates["predict"], rates["forward"], strict=True))
    by_cpu = median(f / p for p, f in zip(cpu["predict"], cpu["forward"], strict=True))
    print(f"predict reaches {ratio:.2f} of the forward pass, {by_cpu:.2f} by CPU time, {jax.devices()[0].device_kind}")
    if options.json:
        report = {"objects_per_second": rates, "cpu_seconds_per_object": cpu, "ratio": ratio, "ratio_of_cpu": by_cpu}
        options.json.write_text(json.dumps(report))


if __name__ == "__main__":
    errors.run(main)
