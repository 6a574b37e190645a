"""The command that trains every run: pretraining, fine-tuning, probing, baselines. The objective is an argument.

    python -m jaxz.train --config=configs/pretrain_mae.py --workdir=RUN [--config.train.steps=10]
    python -m jaxz.train --config=configs/pretrain_mae.py --dry_run [--cluster=jean_zay_h100:4x4]

With --help after a --config all its fields are printed. Started again with the same workdir it goes on where it was;
with --allow_config_change also by another config, as far as a checkpoint allows. Exit codes: 0 done, 1 failed, 2 bad
config or input, 75 stopped by a signal after saving.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxz import dry_run, errors, logs, objectives, runtime
from jaxz.checkpoint import FULL, Checkpoints, Damaged
from jaxz.config import complete, difference, listing, parse, resolved, sources_of
from jaxz.data import where as filters
from jaxz.data.dataset import Dataset, open_dataset
from jaxz.data.mixture import Stage, untaken
from jaxz.data.prepare import Normalisation, Prepare
from jaxz.data.stream import Source, Stream
from jaxz.data.transport import place
from jaxz.files import read_json, replace
from jaxz.hardware import parse_cluster
from jaxz.loop import Run
from jaxz.mesh import local_slots, make_mesh, to_devices
from jaxz.models import build
from jaxz.models.functional import Params
from jaxz.models.lora import lora_init
from jaxz.monitor import Monitor
from jaxz.optim import frozen, make_optimizer
from jaxz.perf import training_flops
from jaxz.pretrained.runs import check_weights, encoder_params
from jaxz.provenance import versions
from jaxz.state import TrainState, abstract_state, fresh_state, make_step, of_one, placed, start_from
from jaxz.validate import validate

log = logs.log
COMPUTING = ("dtype", "attention", "remat", "drop_path")  # settings of a model that change no parameter
NO_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory")  # what XLA says
OTHERS = ("log.txt", "slurm")  # may lie in a run directory before the run
BINS = {"z_min", "z_max", "bins"}  # settings of a head that decide what its last layer's outputs are, and nothing else


def main(argv: list[str]) -> int:
    runtime.set_xla_flags()
    logs.hold_log()
    options, rest = arguments(argv)
    workdir, config = Path(options["--workdir"]), parse(rest)
    validate(config)
    cluster = parse_cluster(options["--cluster"]) if options["--cluster"] else None
    if cluster:
        dry_run.pretend(cluster, config)
    runtime.start()
    first = runtime.is_first()

    # ---- data ------------------------------------------------------------------------------------------------------
    data = config.data
    with of_config("data"):
        dataset = open_dataset(data.path, data.cache, data.cache_gib, data.overlays, data.layers)
    normalisation = starting_normalisation(workdir if options["--workdir"] else None, config, dataset)

    # ---- mesh, model, state ----------------------------------------------------------------------------------------
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    encoder = build(config.model, normalisation.bands, normalisation.size)
    objective = objectives.Objective(encoder, config, normalisation)
    prepare = Prepare(dataset.manifest, normalisation, config.augment, objective.views, objective.crops)
    stream = make_stream(config, dataset, objective, prepare, mesh)
    if objective.edges is not None:
        z, draws = stream.drawn("z")
        check_labels(z, objective.edges)
        objective.count_labels(z, draws)
    params = jax.eval_shape(lambda: objective.init(jax.random.key(0))[0])
    optimizer = make_optimizer(config.optim, config.train.steps, params)
    with jax.set_mesh(mesh):
        abstract = abstract_state(objective, optimizer, config, mesh)
        step = make_step(objective, optimizer, prepare, config, abstract)
        flops = lambda batch: training_flops(config, normalisation, prepare, abstract, batch)
        if first and options["--workdir"]:
            check_workdir(workdir, config, options["--allow_config_change"])
        if options["--dry_run"]:
            batch = to_devices(next(stream), mesh)
            described = dry_run.describe(step, flops(batch), abstract, batch, mesh, config, cluster)
            if first:
                print(described)
            stream.close()
            return errors.OK
        lock = runtime.Lock(workdir / ".lock") if first else None
        runtime.wait_for_all("each has looked at the workdir, which changes now")
        logs.start_log(workdir if first else None)
        monitor = Monitor(stream, dataset.manifest, normalisation, objective, mesh, config.train.members)
        checkpoints = Checkpoints(workdir, config.checkpoint.keep)
        restored = checkpoints.restore(abstract)
        if restored:
            state, stream_state, meta = restored
            stream.restore(stream_state)
            seconds, initial = meta["seconds"], meta.get("monitor")
        if first:
            write_config(workdir, config)
        if restored:
            log.info("%s: going on from step %d of %d", workdir, int(state.step), config.train.steps)
        else:
            make = lambda: fresh_state(objective, optimizer, config)
            state = jax.jit(make, out_shardings=jax.tree.map(lambda a: a.sharding, abstract))()
            if config.init.path:
                state = start_from(state, pretrained_params(config, abstract, mesh, normalisation))
            elif all(jax.tree.leaves(frozen(config.optim, params)["encoder"])):
                log.warning("the encoder is untrained and stays as it is; name a run in init.path")
            seconds, initial = 0.0, None
            trained = trained_of(state.params, frozen(config.optim, params))
            log.info("%s: %s, on %d device(s), with %d samples", workdir, trained, mesh.size, len(stream))
        meta = {
            "config": resolved(config),
            "normalisation": normalisation.to_json(),
            "dataset": dataset.fingerprint(),
            "versions": versions(),
            "monitor": initial or jax.tree.map(float, monitor.measure(state.params)),
        }

        # ---- loop ----------------------------------------------------------------------------------------------------
        run = Run(workdir, config, checkpoints, monitor, meta, mesh, seconds, lock)
        with lock or contextlib.nullcontext(), contextlib.closing(stream), checkpoints, contextlib.closing(run):
            run.loop(step, state, stream, flops)
    return errors.OK


def trained_of(params: Params, still: dict) -> str:
    """How many of the parameters are trained. still: whether each array stays as it is."""
    sizes = [(a.size, stays) for a, stays in zip(jax.tree.leaves(params), jax.tree.leaves(still), strict=True)]
    return f"{sum(n for n, stays in sizes if not stays)} of {sum(n for n, _ in sizes)} parameters are trained"


def arguments(argv: list[str]) -> tuple[dict, list[str]]:
    """The command's own options, and the rest. Raises InputError where workdir is missing, or a cluster is named for
    what is no dry run."""
    options: dict = {"--workdir": "", "--cluster": "", "--dry_run": False, "--allow_config_change": False}
    rest = []
    for argument in argv:
        if argument in ("-h", "--help"):
            print(__doc__.strip(), *listing(argv), sep="\n")
            raise SystemExit(errors.OK)
        name, equals, value = argument.partition("=")
        if argument in options and isinstance(options[argument], bool):
            options[argument] = True
        elif equals and options.get(name) is not None and not isinstance(options[name], bool):
            options[name] = value
        else:
            rest.append(argument)
    if not options["--workdir"] and not options["--dry_run"]:
        raise errors.InputError("--workdir: is missing; name a run directory with --workdir=RUN")
    if options["--cluster"] and not options["--dry_run"]:
        raise errors.InputError("--cluster: predicts what a run would take there; add --dry_run")
    return options, rest


def starting_normalisation(workdir: Path | None, config: ConfigDict, dataset: Dataset) -> Normalisation:
    """That of the run in `workdir` where it goes on, else of the one in init.path, else a new one for this dataset.

    Raises InputError where the run in init.path has another model, number of members or inputs than the config says, or
    the weights in it another architecture.
    """
    if workdir and (workdir / "checkpoints").is_dir():
        meta = None
        with contextlib.suppress(errors.InputError):  # no whole checkpoint: restoring will say so
            meta = run_meta(str(workdir))
        if meta:
            return inherited_normalisation(meta, config, "the checkpoint")
    if begins_with_weights(config):
        check_weights(config.init.path, config.model)
        if config.init.item != "params":
            raise errors.InputError(f"init.item: {config.init.item!r} is of runs, not of weights; set it to 'params'")
    if not config.init.path or begins_with_weights(config):
        return Normalisation.create(
            dataset.manifest,
            tuple(config.data.bands),
            config.data.softening,
            config.data.deredden,
            config.data.stretch,
        )
    meta = run_meta(config.init.path)
    if config.init.item not in meta["digests"]:
        raise errors.InputError(f"init.item: {config.init.item!r} was not kept by {config.init.path!r}; use 'params'")
    then, now = (model_of(told) for told in (meta["config"], resolved(config)))
    if changed := difference(then, now):
        use = " ".join(f"--config.model.{name}={value}" for name, value in then.items() if now.get(name) != value)
        raise errors.InputError(
            f"init.path: {config.init.path!r} has another model ({'; '.join(changed)}); use the same: {use}"
        )
    if (members := meta["config"]["train"].get("members", 1)) not in (1, config.train.members):
        raise errors.InputError(
            f"init.path: {config.init.path!r} holds {members} members; set train.members={members}, or name another run"
        )
    return inherited_normalisation(meta, config, f"init.path {config.init.path!r}")


def model_of(config: dict) -> dict:
    """The settings of a config's model that decide what its parameters are and do."""
    return {name: value for name, value in config["model"].items() if name not in COMPUTING}


def check_labels(z: np.ndarray, edges: np.ndarray) -> None:
    """Raises InputError where none of the redshifts z [M] of the rows (NaN: no label) lies within a head's bins; some
    that do not are said in the log."""
    labels = z[np.isfinite(z)]
    outside, low, high = int(((labels < edges[0]) | (labels >= edges[-1])).sum()), edges[0], edges[-1]
    if outside == len(labels):
        raise errors.InputError(
            f"losses: none of the {len(labels)} labels lies in z_min {low:g} to z_max {high:g}; set them, or data.where"
        )
    if outside:
        log.warning("%d of %d labels lie outside of z_min %g to z_max %g: unused", outside, len(labels), low, high)


def inherited_normalisation(meta: dict, config: ConfigDict, origin: str) -> Normalisation:
    """That of a trained run, whose inputs' units its parameters are tied to."""
    normalisation = Normalisation.from_json(meta["normalisation"])
    bands = [band.name for band in normalisation.bands]
    then = {**complete(meta["config"])["data"], "bands": bands}
    now = {**resolved(config)["data"], "bands": list(config.data.bands) or bands}
    for name in ("bands", "softening", "deredden", "stretch"):
        if now[name] != then[name]:
            raise errors.InputError(
                f"data.{name}: {now[name]!r} is not what {origin} was trained with; set data.{name}={then[name]!r}"
            )
    return normalisation


def begins_with_weights(config: ConfigDict) -> bool:
    """Whether init.path is to name published weights, not a run."""
    return config.model.name == "published" and not (Path(config.init.path) / "checkpoints").is_dir()


def run_meta(path: str) -> dict:
    """The newest checkpoint's meta of a run. Raises InputError where there is none."""
    if not (Path(path) / "checkpoints").is_dir():
        raise errors.InputError(
            f"init.path: {path!r} is no run directory with checkpoints; train it first or name another"
        )
    with contextlib.closing(Checkpoints(Path(path))) as checkpoints:
        return checkpoints.meta()


def pretrained_params(config: ConfigDict, abstract: TrainState, mesh: Mesh, normalisation: Normalisation) -> Params:
    """The encoder of the run in init.path, low-rank factors merged into it, and the heads of the objectives that both
    have with the same settings; of one whose redshift bins alone differ the normalisation before the last layer, which
    begins anew. Or an encoder of published weights."""
    if begins_with_weights(config):
        return {"encoder": encoder_params(config.init.path, config.model, normalisation.bands)}
    then, now = complete(run_meta(config.init.path)["config"]), resolved(config)
    members, rank = then["train"]["members"], then["optim"]["lora_rank"]
    wanted = {"encoder": abstract.params["encoder"]}
    for name in (name for name in config.losses if name in then["losses"]):
        changed = {line.split(":")[0] for line in difference(then.get(name), now.get(name))}
        if not changed:
            wanted[name] = abstract.params[name]
        elif changed <= BINS and {"norm", "out"} == abstract.params[name].keys():
            wanted[name] = {"norm": abstract.params[name]["norm"]}
    if members < config.train.members:
        wanted = jax.tree.map(of_one, wanted)
    if rank:
        encoder, kernels = wanted["encoder"], then["optim"]["lora_kernels"]
        make = lambda: lora_init(jax.random.key(0), encoder, kernels, rank)
        wanted |= placed({"lora": jax.eval_shape(make)}, mesh)
    with contextlib.closing(Checkpoints(Path(config.init.path))) as checkpoints:
        return objectives.merged(checkpoints.params(wanted, config.init.item))


def make_stream(
    config: ConfigDict, dataset: Dataset, objective: objectives.Objective, prepare: Prepare, mesh: Mesh
) -> Stream:
    """The endless stream that the run trains on."""
    arrays, columns = (*prepare.arrays, *untaken(dataset.owners)), {*objective.columns, *prepare.columns}
    sources = make_sources(config, dataset, arrays, columns)
    with of_config("data.sources" if config.data.sources else "data"):
        return Stream(
            sources,
            config.train.batch_size,
            stages=[Stage(tuple(stage["ratios"]), stage.get("steps")) for stage in config.data.stages],
            seed=config.seed,
            local=local_slots(mesh, config.train.batch_size, config.train.accumulate),
            check=config.data.check,
            on_error=config.data.on_error,
            coalesce=1024 * config.data.coalesce_kib,
            threads=config.data.threads,
        )


@contextlib.contextmanager
def of_config(group: str) -> Iterator[None]:
    """Within it, what is said of a field of data by its bare name, such as "where: ...", has the config's name."""
    try:
        yield
    except errors.InputError as error:
        text = str(error).replace(" bins=", " balance_bins=")
        field = text.split(":")[0]
        group = "data.stages" if field == "ratios" else group
        bare = field in ("where", "weights", "balance", "overlays", "layers", "ratios")
        raise errors.InputError(f"{group}.{text}" if bare else text) from None


def make_sources(config: ConfigDict, dataset: Dataset, arrays: tuple[str, ...], columns: set[str]) -> list[Source]:
    """Those of data.sources, or the one that the other fields of data describe: rows of the train split, unless
    transductive. A source may lack columns that another has. Raises InputError where a simulation's truth would decide
    what is drawn."""
    data = config.data
    datasets = {(place(data.path), tuple(data.overlays)): dataset}
    split = "" if data.transductive else "split == 'train'"
    sources = []
    for n, own in enumerate(sources_of(data)):
        group = f"data.sources[{n}]" if data.sources else "data"
        opened = place(own["path"]), tuple(own["overlays"])
        if opened not in datasets:
            datasets[opened] = open_dataset(own["path"], data.cache, data.cache_gib, own["overlays"], data.layers)
        for name in ("weights", "balance"):
            if own[name].startswith("true_"):
                raise errors.InputError(
                    f"{group}.{name}: {own[name]!r} is the truth of a simulation, which never reaches training; use "
                    "what is observed"
                )
        there = columns & datasets[opened].manifest.columns.keys() if data.sources else columns
        with of_config(group):
            where = filters.training_filter(split, own["where"])
        sources.append(
            Source(
                datasets[opened],
                arrays,
                tuple(sorted(there)),
                where,
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


def check_workdir(workdir: Path, config: ConfigDict, allow_change: bool) -> None:
    """Hold the config against RUN/config.json, unless no step was made with that one. Raises InputError with the
    differences, or for a directory that is no run's."""
    path, now = workdir / "config.json", resolved(config)
    if path.exists():
        then = complete(read_json(path, "the run's config"), f"--workdir: {path}")
        if (changed := difference(then, now)) and not (allow_change or has_steps(workdir)):
            log.warning("%s: begun anew, as no step was made with the config before (%s)", workdir, "; ".join(changed))
        elif changed and not allow_change:
            raise errors.InputError(
                f"--workdir: {str(workdir)!r} was begun with another config ({'; '.join(changed)}); use another "
                "workdir, the same config, or --allow_config_change"
            )
    elif workdir.is_dir() and any(not p.name.startswith(".") and p.name not in OTHERS for p in workdir.iterdir()):
        raise errors.InputError(f"--workdir: {str(workdir)!r} holds files but no config.json; name an empty directory")


def has_steps(workdir: Path) -> bool:
    """Whether a checkpoint, whole or not, or a logged step of the run is there."""
    kept = [*workdir.glob("checkpoints/[0-9]*"), *workdir.glob("damaged/*")]
    metrics = workdir / "metrics.jsonl"
    return bool(kept) or (metrics.exists() and metrics.stat().st_size > 0)


def write_config(workdir: Path, config: ConfigDict) -> None:
    replace(workdir / "config.json", json.dumps(resolved(config), indent=1).encode())


def fail_cleanly(argv: list[str]) -> int:
    try:
        return main(argv)
    except (Damaged, FloatingPointError) as error:
        told = str(error)
    except OSError as error:
        if error.errno not in FULL:
            raise
        workdir = arguments(argv)[0]["--workdir"]
        told = f"no space left in {error.filename or workdir}; make room, and run the same command again to go on"
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and not any(words in str(error) for words in NO_MEMORY):
            raise
        told = (
            "not enough memory; lower train.batch_size, raise train.accumulate to take a batch in parts, or set "
            "model.remat='block' to keep less of each part"
        )
    print(f"failed: {told}", file=sys.stderr)
    return errors.FAILED


if __name__ == "__main__":
    runtime.run(fail_cleanly)
