"""The training loop of every run: pretraining, fine-tuning, probing, baselines. The objective is an argument.

    python -m jaxz.train --config=configs/pretrain_mae.py --workdir=RUN [--config.train.steps=10] [--dry_run]

Started again with the same workdir it goes on where it was. Exit codes: 0 done, 2 bad config or input, 75 stopped by a
signal after saving.
"""

import contextlib
import json
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from jaxz import errors, logs, objectives, runtime
from jaxz.checkpoint import Checkpoints, Damaged
from jaxz.config import SOURCE, complete, difference, parse, resolved, validate
from jaxz.data import where as filters
from jaxz.data.dataset import Dataset, open_dataset
from jaxz.data.mixture import Stage
from jaxz.data.prepare import Normalisation, Prepare
from jaxz.data.stream import Source, Stream
from jaxz.files import read_json, replace
from jaxz.mesh import local_slots, make_mesh, to_devices
from jaxz.models import build
from jaxz.optim import make_optimizer
from jaxz.provenance import versions
from jaxz.state import abstract_state, fresh_state, make_step, start_from

log = logs.log
OTHERS = ("log.txt", "slurm")  # may lie in a run directory before the run


def main(argv: list[str]) -> int:
    runtime.set_xla_flags()
    workdir, dry_run, allow_change, rest = arguments(argv)
    config = parse(rest)
    validate(config)
    runtime.start()
    first = runtime.is_first()

    # ---- data ------------------------------------------------------------------------------------------------------
    data = config.data
    dataset = open_dataset(data.path, data.cache, data.cache_gib, data.overlays, data.layers)
    normalisation = starting_normalisation(workdir, config, dataset)

    # ---- mesh, model, state ----------------------------------------------------------------------------------------
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    encoder = build(config.model, normalisation.bands, normalisation.size)
    objective = objectives.Objective(encoder, config, normalisation)
    prepare = Prepare(dataset.manifest, normalisation, config.augment, objective.views, objective.crops)
    stream = make_stream(config, dataset, objective, prepare, mesh)
    params = jax.eval_shape(lambda: objective.init(jax.random.key(0))[0])
    optimizer = make_optimizer(config.optim, config.train.steps, params)
    with jax.set_mesh(mesh):
        abstract = abstract_state(objective, optimizer, config.train.ema_decay, mesh)
        step = make_step(objective, optimizer, prepare, config, abstract)
        if first:
            check_workdir(workdir, config, allow_change)
        if dry_run:
            from jaxz.dry_run import describe

            described = describe(step, abstract, to_devices(next(stream), mesh), mesh, config)
            if first:
                print(described)
            stream.close()
            return errors.OK
        lock = runtime.Lock(workdir / ".lock") if first else contextlib.nullcontext()
        runtime.wait_for_all("each has looked at the workdir, which changes now")
        logs.start_log(workdir if first else None)
        checkpoints = Checkpoints(workdir, config.checkpoint.keep)
        restored = checkpoints.restore(abstract)
        if restored:
            state, stream_state, meta = restored
            stream.restore(stream_state)
            seconds = meta["seconds"]
        if first:
            write_config(workdir, config)
        if restored:
            log.info("%s: going on from step %d of %d", workdir, int(state.step), config.train.steps)
        else:
            make = lambda: fresh_state(objective, optimizer, config.train.ema_decay, config.seed)
            state = jax.jit(make, out_shardings=jax.tree.map(lambda a: a.sharding, abstract))()
            if config.init.path:
                state = start_from(state, pretrained_params(config, abstract))
            seconds = 0.0
            count = sum(a.size for a in jax.tree.leaves(state.params))
            log.info(
                "%s: %d parameters on %d device(s), %d samples to train on", workdir, count, mesh.size, len(stream)
            )
        meta = {
            "config": resolved(config),
            "normalisation": normalisation.to_json(),
            "dataset": dataset.fingerprint(),
            "versions": versions(),
        }

        # ---- loop ----------------------------------------------------------------------------------------------------
        run = Run(workdir, config, checkpoints, meta, mesh, seconds, lock)
        with lock, contextlib.closing(stream), checkpoints, contextlib.closing(run):
            run.loop(step, state, stream)
    return errors.OK


class Run:
    """The loop, and what it writes to the run directory. Of several processes all take part in checkpoints; the first
    writes the rest."""

    def __init__(self, workdir: Path, config, checkpoints: Checkpoints, meta: dict, mesh, seconds: float, lock):
        self.lock, self.workdir, self.config, self.checkpoints, self.meta, self.mesh = (
            lock,
            workdir,
            config,
            checkpoints,
            meta,
            mesh,
        )
        self.seconds, self.began = seconds, time.monotonic()  # spent before this process, and its own beginning
        self.waiting: deque = deque()  # metrics still on the device: read a step late, so that logging never blocks
        self.written = ""  # the newest loss on disk, with its step
        self.metrics: logs.Metrics | None = None

    def loop(self, step, state, stream: Stream) -> None:
        """Train to the last step. Raises Stopped after saving where a signal came, FloatingPointError for a loss that
        is not finite."""
        config = self.config
        first, last = int(state.step), config.train.steps
        if runtime.is_first():
            self.metrics = logs.Metrics(self.workdir / "metrics.jsonl", first)
        shown = self.metrics is not None
        batches = prefetch(stream, self.mesh)
        before = first, time.monotonic()
        with logs.Bar(self.workdir.name, last, first, shown) as bar, runtime.StopSignal(self.mesh) as signals:
            for n in range(first + 1, last + 1):
                batch, stream_state = next(batches)
                state, values = step(state, batch)
                stop = signals.agreed()
                if n % config.train.log_every == 0 or n == last:
                    self.waiting.append((n, values))
                    self.write_metrics(keep=1)
                    now = n, time.monotonic()
                    rate = config.train.batch_size * (now[0] - before[0]) / (now[1] - before[1])
                    bar.update(n, f"{self.written}{rate:.0f} images/s")
                    before = now
                if stop or n == last or n % config.checkpoint.every == 0:
                    self.save(n, state, values, stream_state)
                if stop and n < last:
                    self.checkpoints.close()
                    raise errors.Stopped(f"{stop} at step {n} of {last}, saved; run the same command again to go on")
        log.info("%s: done, %d steps, %s", self.workdir, last, self.written.removesuffix(", "))

    def write_metrics(self, keep: int) -> None:
        """Write all but the newest `keep` waiting lines."""
        while len(self.waiting) > keep:
            n, values = self.waiting.popleft()
            values = {name: float(value) for name, value in jax.device_get(values).items()}
            if self.metrics:
                self.lock.check()
                self.metrics.write(n, values)
            self.written = f"loss {values['loss']:.4g} at step {n}, "
            self.check_finite(n, values)

    def check_finite(self, n: int, values: dict) -> None:
        """A gradient that is not finite has spoilt the parameters, whatever the loss was before it."""
        for name in ("loss", "optim/grad_norm"):
            if not np.isfinite(values[name]):
                raise FloatingPointError(f"{name} is {values[name]} at step {n}; lower optim.lr or look at the data")

    def save(self, n: int, state, values: dict, stream_state: dict) -> None:
        """Metrics first: every line up to a step is on disk before the step's checkpoint commits."""
        self.write_metrics(keep=0)
        self.check_finite(n, jax.device_get(values))
        if self.metrics:
            self.lock.check()
            self.metrics.flush()
        seconds = self.seconds + time.monotonic() - self.began
        self.checkpoints.save(state, stream_state, {**self.meta, "seconds": seconds})
        if self.metrics:
            write_compute(self.workdir, self.config, state, seconds, self.mesh)

    def close(self) -> None:
        if self.metrics:
            self.metrics.close()


def arguments(argv: list[str]) -> tuple[Path, bool, bool, list[str]]:
    """workdir, dry_run, allow_config_change and the rest. Raises InputError where workdir is missing."""
    flags = {"--dry_run": False, "--allow_config_change": False}
    workdir, rest = "", []
    for argument in argv:
        if argument in ("-h", "--help"):
            print(__doc__.strip())
            raise SystemExit(errors.OK)
        if argument in flags:
            flags[argument] = True
        elif argument.startswith("--workdir="):
            workdir = argument.split("=", 1)[1]
        else:
            rest.append(argument)
    if not workdir and not flags["--dry_run"]:
        raise errors.InputError("--workdir: is missing; name a run directory with --workdir=RUN")
    return Path(workdir), flags["--dry_run"], flags["--allow_config_change"], rest


def starting_normalisation(workdir: Path, config, dataset: Dataset) -> Normalisation:
    """The run's own where it goes on, else that of the run in init.path, else a new one for this dataset.

    Raises InputError where the run in init.path has another model or other inputs than the config says.
    """
    if (workdir / "checkpoints").is_dir():
        meta = None
        with contextlib.suppress(errors.InputError):  # no whole checkpoint: restoring will say so
            meta = run_meta(str(workdir))
        if meta:
            return inherited_normalisation(meta, config, "the checkpoint")
    if not config.init.path:
        return Normalisation.create(
            dataset.manifest, tuple(config.data.bands), config.data.softening, config.data.deredden
        )
    meta = run_meta(config.init.path)
    then, now = meta["config"]["model"], resolved(config)["model"]
    if changed := difference(then, now):
        use = " ".join(f"--config.model.{name}={value}" for name, value in then.items() if now.get(name) != value)
        raise errors.InputError(
            f"init.path: {config.init.path!r} has another model ({'; '.join(changed)}); use the same: {use}"
        )
    return inherited_normalisation(meta, config, f"init.path {config.init.path!r}")


def inherited_normalisation(meta: dict, config, origin: str) -> Normalisation:
    """That of a trained run, whose inputs' units its parameters are tied to."""
    normalisation = Normalisation.from_json(meta["normalisation"])
    bands = [band.name for band in normalisation.bands]
    then = {**meta["config"]["data"], "bands": bands}
    now = {**resolved(config)["data"], "bands": list(config.data.bands) or bands}
    for name in ("bands", "softening", "deredden"):
        if now[name] != then[name]:
            raise errors.InputError(
                f"data.{name}: {now[name]!r} is not what {origin} was trained with; set data.{name}={then[name]!r}"
            )
    return normalisation


def run_meta(path: str) -> dict:
    """The newest checkpoint's meta of a run. Raises InputError where there is none."""
    if not (Path(path) / "checkpoints").is_dir():
        raise errors.InputError(
            f"init.path: {path!r} is no run directory with checkpoints; train it first or name another"
        )
    checkpoints = Checkpoints(Path(path))
    try:
        return checkpoints.meta()
    finally:
        checkpoints.close()


def pretrained_params(config, abstract) -> dict:
    """The encoder of the run in init.path, and the heads of the objectives that both have with the same settings."""
    then = run_meta(config.init.path)["config"]
    shared = [
        "encoder",
        *(name for name in config.losses if name in then["losses"] and then.get(name) == resolved(config).get(name)),
    ]
    wanted = {name: abstract.params[name] for name in shared}
    checkpoints = Checkpoints(Path(config.init.path))
    try:
        return checkpoints.params(wanted, config.init.item)
    finally:
        checkpoints.close()


def make_stream(config, dataset: Dataset, objective, prepare: Prepare, mesh) -> Stream:
    """The endless stream that the run trains on."""
    return Stream(
        make_sources(config, dataset, (*prepare.arrays, *dataset.owners), {*objective.columns, *prepare.columns}),
        config.train.batch_size,
        stages=[Stage(tuple(stage["ratios"]), stage.get("steps")) for stage in config.data.stages],
        seed=config.seed,
        local=local_slots(mesh, config.train.batch_size),
        check=config.data.check,
        on_error=config.data.on_error,
        coalesce=1024 * config.data.coalesce_kib,
        threads=config.data.threads,
    )


def make_sources(config, dataset: Dataset, arrays: tuple[str, ...], columns: set[str]) -> list[Source]:
    """Those of data.sources, or the one that the other fields of data describe: rows of the train split, unless
    transductive. A source may lack columns that another has. Raises InputError where a simulation's truth would decide
    what is drawn."""
    shared = {name: config.data[name] for name in SOURCE if name != "name"}
    settings = [shared | {"name": f"source {n}"} | own for n, own in enumerate(config.data.sources)]
    datasets = {config.data.path.rstrip("/"): dataset}
    split = "" if config.data.transductive else "split == 'train'"
    sources = []
    for own in settings or [shared | {"name": "data"}]:
        path = own["path"].rstrip("/")
        if path not in datasets:
            datasets[path] = open_dataset(path, config.data.cache, config.data.cache_gib, layers=config.data.layers)
        for name in ("weights", "balance"):
            if own[name].startswith("true_"):
                raise errors.InputError(
                    f"data.{name}: {own[name]!r} is the truth of a simulation, which never reaches training; use what "
                    "is observed"
                )
        there = columns & datasets[path].manifest.columns.keys() if settings else columns
        sources.append(
            Source(
                datasets[path],
                arrays,
                tuple(sorted(there)),
                filters.training_filter(split, own["where"]),
                own["window"],
                own["name"],
                own["weights"] or None,
                own["balance"] or None,
                own["balance_bins"],
            )
        )
    lacking = columns - {name for source in sources for name in source.columns}
    if lacking:
        raise errors.InputError(f"data.sources: none has the column {min(lacking)!r}; name one that does")
    return sources


def prefetch(stream: Stream, mesh, depth: int = 2):
    """(batch on the devices, state of the stream after it), `depth` transfers ahead, by a thread of their own."""

    def transfer():
        if (batch := next(stream, None)) is None:
            return None
        batch.pop("row")
        return to_devices(batch, mesh), stream.state()

    pool = ThreadPoolExecutor(1, thread_name_prefix="jaxz-transfer")
    ready = deque(pool.submit(transfer) for _ in range(depth + 1))
    try:
        while (pair := ready.popleft().result()) is not None:
            ready.append(pool.submit(transfer))
            yield pair
    finally:
        pool.shutdown(cancel_futures=True)


def check_workdir(workdir: Path, config, allow_change: bool) -> None:
    """Hold the config against RUN/config.json. Raises InputError with the differences, or for a directory that is
    no run's."""
    path, now = workdir / "config.json", resolved(config)
    if path.exists():
        then = read_json(path, "the run's config")
        if (changed := difference(complete(then), now)) and not allow_change:
            raise errors.InputError(
                f"--workdir: {str(workdir)!r} was begun with another config ({'; '.join(changed)}); use another "
                "workdir, the same config, or --allow_config_change"
            )
    elif workdir.is_dir() and any(not p.name.startswith(".") and p.name not in OTHERS for p in workdir.iterdir()):
        raise errors.InputError(f"--workdir: {str(workdir)!r} holds files but no config.json; name an empty directory")


def write_config(workdir: Path, config) -> None:
    replace(workdir / "config.json", json.dumps(resolved(config), indent=1).encode())


def write_compute(workdir: Path, config, state, seconds: float, mesh) -> None:
    """RUN/compute.json: what the run has cost so far, without the run that it started from."""
    done = int(state.step)
    cost = {
        "steps": done,
        "batch_size": config.train.batch_size,
        "images": done * config.train.batch_size,
        "seconds": round(seconds, 1),
        "parameters": sum(a.size for a in jax.tree.leaves(state.params)),
        "devices": f"{mesh.size} x {jax.devices()[0].device_kind}",
    }
    replace(workdir / "compute.json", json.dumps(cost, indent=1).encode())


def fail_cleanly(argv: list[str]) -> int:
    try:
        return main(argv)
    except (Damaged, FloatingPointError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return errors.FAILED


if __name__ == "__main__":
    runtime.run(fail_cleanly)
