"""The house: imports run one way, requirements agree, every config is whole."""

import ast
import graphlib
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest
from packaging.requirements import Requirement

from jaxz import objectives
from jaxz.config import default, parse
from jaxz.data.dataset import open_dataset
from jaxz.data.prepare import Normalisation
from jaxz.models import build
from jaxz.validate import validate
from tests.helpers import blobs

ROOT = Path(__file__).parents[1]

# Each layer may import those before it, and itself.
LAYERS = (
    ("errors", "files", "progress", "provenance", "coverage", "data.compact", "data.resample", "data.rules"),
    (
        "data.manifest",
        "data.augment",
        "data.order",
        "data.where",
        "data.cache",
        "data.transport",
        "config",
        "mesh",
        "runtime",
    ),
    ("checks", "collectives", "events", "flops", "hardware", "optim"),
    ("validate",),
    ("data.index", "data.quarantine", "data.staging", "data.columns", "data.tars"),
    ("data.astropy_views",),
    ("data.dataset", "data.layers", "data.overlays", "data.writer"),
    ("data.reader", "data.prepare", "data.sampling"),
    ("batches", "data.mixture", "data.fit"),
    ("data.stream",),
    ("models", "photoz", "logs"),
    ("pretrained",),
    ("objectives",),
    ("state", "monitor"),
    ("checkpoint", "dry_run", "perf"),
    ("loop",),
    ("results", "report_data", "report_tables", "report_arms", "report_figures"),
    ("catalog_fluxes",),
    ("template_fit",),
    ("inference", "report", "photometry"),
    ("held", "predict"),
    ("correct", "evaluate", "export", "lin", "probe", "redshifted", "select", "shift", "train"),
)


def imports(path: Path, run: bool = False):
    """run: only what is imported when the code runs."""
    tree = ast.parse(path.read_text())
    typing = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    left_out = {id(node) for block in typing for node in ast.walk(block)} if run else set()
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(module: str) -> int | None:
    return next((n for n, names in enumerate(LAYERS) for name in names if f"{module}.".startswith(f"{name}.")), None)


def modules():
    for path in sorted((ROOT / "jaxz").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "jaxz").with_suffix("").parts).removesuffix("__init__").rstrip(".")
        if name not in ("", "data"):
            yield name, path


def test_imports_run_one_way():
    wrong = []
    for name, path in modules():
        assert layer(name) is not None, f"jaxz/{name} has no layer; give it one in this test"
        for target in imports(path):
            if target.startswith(("data_tools", "launch", "benchmarks", "tests")):
                wrong.append(f"{name} imports {target}")
            if target.startswith("jaxz."):
                other = target.removeprefix("jaxz.")
                if layer(other) is not None and layer(other) > layer(name):
                    wrong.append(f"{name} imports {other}")
    assert not wrong


def own_files() -> dict[str, Path]:
    """{module: file} of all code but the tests."""
    tops = ("jaxz", "data_tools", "launch", "benchmarks", "configs")
    paths = [path for top in tops for path in sorted((ROOT / top).rglob("*.py"))]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


def test_no_module_imports_itself_by_way_of_others():
    """Imports within functions count; those for annotations alone do not."""
    files = own_files()
    known = lambda target: target if target in files else target.rpartition(".")[0]
    graph = {name: {known(target) for target in imports(path, run=True)} & files.keys() for name, path in files.items()}
    modules = graphlib.TopologicalSorter({name: found - {name} for name, found in graph.items()})
    modules.prepare()  # raises CycleError, which names them


def test_files_and_functions_stay_short():
    for name, path in own_files().items():
        text = path.read_text()
        assert text.count("\n") <= 400, f"{name} has {text.count(chr(10))} lines; split it"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 80, f"{name}.{node.name} has more than 80 lines; split it"


def test_models_know_no_data_objectives_no_trainer_and_photoz_only_itself():
    for name, path in modules():
        found = {t.removeprefix("jaxz.") for t in imports(path) if t.startswith("jaxz.")}
        if name.startswith("models"):
            assert not any(t.startswith("data") for t in found), name
        if name.startswith("photoz"):
            assert all(t.startswith("photoz") for t in found), name


def test_launch_knows_jaxz_and_nothing_else_of_the_house():
    for path in (ROOT / "launch").rglob("*.py"):
        assert not any(t.startswith(("data_tools", "benchmarks", "tests", "configs")) for t in imports(path)), path
    for path in (ROOT / "data_tools").rglob("*.py"):
        assert not any(target.startswith("launch") for target in imports(path)), path


def test_orbax_is_imported_in_one_place_and_torch_nowhere():
    for top in ("jaxz", "data_tools", "launch"):
        for path in (ROOT / top).rglob("*.py"):
            for target in imports(path):
                assert target.split(".")[0] not in ("torch", "tensorflow"), path
                assert not target.startswith("orbax") or path.name == "checkpoint.py", path


def test_importing_jaxz_does_not_import_jax():
    code = "import sys, jaxz, jaxz.photoz.metrics; jaxz.open_dataset; jaxz.Stream; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_pins_satisfy_the_ranges():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = [Requirement(r) for r in project["dependencies"] + project["optional-dependencies"]["dev"]]
    lines = [line.strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    pins = {r.name: r for r in (Requirement(line) for line in lines if line and not line.startswith("#"))}
    assert {r.name for r in ranges} == set(pins)
    for wanted in ranges:
        [pin] = pins[wanted.name].specifier
        assert pin.operator == "==" and wanted.specifier.contains(pin.version), wanted.name


def test_every_import_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["tfds"]  # imported where it is asked for
    declared = {Requirement(r).name.replace("-", "_") for r in project["dependencies"] + extra}
    names = {"orbax": "orbax_checkpoint", "sklearn": "scikit_learn", "absl": "absl_py"}
    for top in ("jaxz", "data_tools", "launch", "configs"):
        for path in (ROOT / top).rglob("*.py"):
            for target in imports(path):
                package = target.split(".")[0]
                if package not in sys.stdlib_module_names and package not in (
                    "jaxz",
                    "data_tools",
                    "launch",
                    "configs",
                ):
                    assert names.get(package, package) in declared, f"{path}: {package}"


CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    return blobs(tmp_path_factory.mktemp("survey") / "d", samples=16, size=64, shards=1)


def abstract_view(size):
    shape = (2, 3, size, size)
    of = jax.ShapeDtypeStruct
    return {"image": of(shape, "float32"), "mask": of(shape, "bool"), "sky": of(shape[:2], "float32")}


@pytest.mark.parametrize("path", CONFIGS, ids=[p.stem for p in CONFIGS])
def test_every_config_is_valid_and_makes_a_model(path, survey):
    config = parse([f"--config={path}", f"--config.data.path={survey}"])
    validate(config)
    manifest = open_dataset(survey).manifest
    data = config.data
    normalisation = Normalisation.create(manifest, (), data.softening, data.deredden, data.stretch)
    encoder = build(config.model, normalisation.bands, normalisation.size)
    objective = objectives.Objective(encoder, config, normalisation)
    params, extra = jax.eval_shape(objective.init, jax.random.key(0))
    batch = {**abstract_view(64), "views": [abstract_view(64)] * objective.views}
    batch["crops"] = [abstract_view(objective.crops[1])] * objective.crops[0]
    batch |= {name: jax.ShapeDtypeStruct((2,), "float32") for name in objective.columns}
    ema = params if config.train.ema_decay else {}
    loss, _ = jax.eval_shape(objective.loss, params, ema, extra, batch, jax.random.key(0), 0)
    assert loss.shape == ()
    header = ast.get_docstring(ast.parse(path.read_text()))
    for part in (f"python -m jaxz.train --config=configs/{path.name} --workdir=", "Hardware:", "Time:", "Expect"):
        assert part in (header or ""), f"the docstring of configs/{path.name} must say {part!r}"


def test_the_config_stays_small():
    count = lambda node: sum(count(v) if isinstance(v, dict) else 1 for v in node.values())
    assert count(default().to_dict()) <= 60
