"""Configs: what a file and the command line may say, and how the rest is refused."""

import json

import pytest

from jaxz.config import complete, default, difference, fill, parse, resolved, sources_of
from jaxz.errors import InputError
from jaxz.optim import DIRECTIONS
from jaxz.validate import validate


def write(folder, body: str) -> str:
    path = folder / "own.py"
    path.write_text(body)
    return f"--config={path}"


def own(folder, *lines: str) -> str:
    body = ["from jaxz.config import default", "def get_config():", "    config = default()"]
    return write(folder, "\n".join([*body, *(f"    {line}" for line in lines), "    return config", ""]))


FILES = [
    ("import nosuch", r"own.py, line 1: ModuleNotFoundError: No module named 'nosuch'"),
    ("def get_config():\n    return foo", r"own.py, line 2: NameError"),
    ("def get_config(:", r"own.py: SyntaxError"),
    ("def get_config(x):\n    return x", r"own.py.*TypeError"),
    ("x = 1", r"own.py' defines no get_config"),
    ("def get_config():\n    return 3", r"get_config\(\) of '.*own.py' gives no ConfigDict"),
    (
        "from ml_collections import ConfigDict\nget_config = ConfigDict",
        r"own.py' has no losses",
    ),
]


@pytest.mark.parametrize(("body", "message"), FILES)
def test_a_file_that_is_no_config_is_named(tmp_path, body, message):
    with pytest.raises(InputError, match=f"^--config: .*{message}"):
        parse([write(tmp_path, body)])


LINES = [
    ("config.trian = dict(steps=3)", r"own.py' sets trian.steps, which is no field. Did you mean 'train.steps'"),
    ("config.train.stepz = 3", r"own.py' sets train.stepz, which is no field. Did you mean 'train.steps'"),
    ("config.train = dict(steps=3)", r"own.py' leaves out train.accumulate and 6 other"),
    ("del config.optim", r"own.py' leaves out optim.b2 and 12 other"),
    ("del config.losses", r"own.py' has no losses; set config.losses = dict\(NAME=1.0\)"),
    (
        "config.losses = dict(mae=1.0); config.mae = dict(mask_ratioo=0.5)",
        r"mae.mask_ratioo, .*Did you mean 'mae.mask_ratio'",
    ),
    ("config.redshift = dict(bins='3')", r"own.py' sets redshift.bins to '3', which is no int"),
    ("del config.seed; config.seed = '3'", r"own.py' sets seed to '3', which is no int"),
    (
        "del config.augment.subpixel; config.augment.subpixel = 1",
        r"own.py' sets augment.subpixel to 1, which is no bool",
    ),
    ("config.train.steps = 'a'", r"own.py, line 4: TypeError"),
]


@pytest.mark.parametrize(("line", "message"), LINES)
def test_a_file_keeps_to_the_fields(tmp_path, line, message):
    with pytest.raises(InputError, match=f"^--config: .*{message}"):
        parse([own(tmp_path, line)])


def test_a_file_may_take_arguments_and_has_the_settings_of_its_objectives(tmp_path):
    argument = write(
        tmp_path,
        "from jaxz.config import default\ndef get_config(steps):\n    config = default()\n"
        "    config.losses = dict(mae=1.0)\n    config.mae = dict(band_mask=0.5)\n"
        "    config.train.steps = int(steps)\n    return config\n",
    )
    config = parse(
        ["--config.optim.lr=1", f"{argument}:7", "--config.data.bands=('g',)", "--config.mae.decoder_depth=3"]
    )
    assert (config.train.steps, config.optim.lr, config.data.bands) == (7, 1.0, ("g",))
    assert (config.mae.band_mask, config.mae.decoder_depth, config.mae.mask_ratio) == (0.5, 3, 0.75)
    assert "redshift" not in config


OVERRIDES = [
    ("losses.mea=1.0", r"losses: 'mea' is no objective of jaxz/objectives. Did you mean 'mae'"),
    ("losses.mae=1.0", r"losses.mae is not in '.*own.py', which names the run's objectives"),
    ("trian.steps=3", r"trian.steps is no field of '.*own.py'. Did you mean 'train'"),
    ("train.stepz=3", r"train.stepz is no field of '.*own.py'. Did you mean 'steps'"),
    ("data.path.x=3", r"data.path.x is no field of '.*own.py'\.$"),
    ("train.steps=1.5", r"train.steps=1.5: invalid literal"),
    ("augment.subpixel=3", r"augment.subpixel=3: .*Non-boolean"),
    ("mae.mask_ratio=0.5", r"mae.mask_ratio is no field of '.*own.py'"),
    ("losses=3", r"losses=3: .*not a dict"),
]


@pytest.mark.parametrize(("override", "message"), OVERRIDES)
def test_an_override_of_no_field_or_another_type_is_refused(tmp_path, override, message):
    with pytest.raises(InputError, match=f"^--config: .*{message}"):
        parse([own(tmp_path), f"--config.{override}"])


VALUES = [
    ("redshift.z_max=nan", "redshift.z_max: nan must be finite"),
    ("data.softening=inf", "data.softening: inf must be finite"),
    ("optim.lr=inf", "optim.lr: inf must be finite"),
    ("losses.redshift=nan", "losses.redshift: nan must be finite"),
    ("losses={'mae':0.0}", r"losses: \{'mae': 0.0\} weighs nothing"),
    ("losses.redshift=-1", "losses.redshift: -1.0 must be a weight, at least 0"),
    (
        "losses={'mae':((0,1.0),(0,0.5))}",
        r"losses.mae: \(\(0, 1.0\), \(0, 0.5\)\) must be a weight, .*, such as \(\(0, 1.0\), \(5000, 0.1\)\)",
    ),
    ("losses={'mae':((0,1.0),(9,-1.0))}", r"losses.mae: \(\(0, 1.0\), \(9, -1.0\)\) must be a weight"),
    ("losses={'mae':((0,1.0),)}", r"losses.mae: \(\(0, 1.0\),\) must be a weight"),
    ("optim.name=adam", f"optim.name: 'adam' must be one of {', '.join(DIRECTIONS)}$"),
    ("mae.decoder_depth=0", "mae.decoder_depth: 0 must be at least 1"),
    ("mae.decoder_heads=3", "mae.decoder_heads: 3 must be a divisor of mae.decoder_width"),
    ("redshift.bins=10001", "redshift.bins: 10001 must be from 2 to 10000"),
    ("train.batch_size=1000001", "train.batch_size: 1000001 must be from 1 to 1000000"),
    ("model.dtype=float64", "model.dtype: 'float64' must be one of float32, bfloat16, float16"),
    ("augment.orientation=cube", "augment.orientation: 'cube' must be 'square', 'any' or 'none'"),
    ("augment.orientation=none", "redshift.views: 8, but augment.orientation='none' never shows images turned; set"),
    ("augment.noise=(0.5,2.0)", r"augment.noise: \(0.5, 2.0\) must be \(\) or \(low, high\) of at least 1"),
    ("augment.noise=(2.0,)", r"augment.noise: \(2.0,\) must be"),
    ("augment.psf_fwhm=(1.0,'x')", r"augment.psf_fwhm: \(1.0, 'x'\) must be \(\) or \(low, high\) in arcsec"),
    ("augment.ebv=0.1", "augment.ebv: 0.1 reddens images that data.deredden corrects"),
    ("train.ema_final=0.99", "train.ema_final: 0.99 is what train.ema_decay, 0.0, rises to"),
    ("train.profile=(5,5000)", r"train.profile: \(5, 5000\) ends after train.steps"),
    ("train.profile=(5,)", r"train.profile: \(5,\) must be \(\) or \(first, last\) step"),
    ("train.profile=('a','b')", r"train.profile: \('a', 'b'\) must be \(\) or \(first, last\) step"),
    ("losses={'moco':1.0}", "losses: 'moco' has settings that the config was made without; name it in a config file"),
    ("data.bands=('g', 'g')", r"data.bands: .* must be names, each once"),
    ("data.layers=(1,)", r"data.layers: \(1,\) must be names"),
    ("data.sources=({'overlays':(1,)},)", r"data.sources\[0\].overlays: \(1,\) must be names"),
    (f"seed={2**63}", f"seed: {2**63} must be of 64 bits"),
]


def test_apertures_are_of_asinh_images(tmp_path):
    config = parse(
        [own(tmp_path), "--config.data.path=d", "--config.model.stem=apertures", "--config.data.stretch=log"]
    )
    with pytest.raises(InputError, match="^data.stretch: 'log' must be 'asinh' for model.stem='apertures'"):
        validate(config)
    config.data.stretch = "asinh"
    validate(config)


@pytest.mark.parametrize(("override", "message"), VALUES)
def test_a_value_out_of_range_is_named(tmp_path, override, message):
    losses = "config.losses = dict(mae=1.0, redshift=1.0)"
    config = parse([own(tmp_path, losses), "--config.data.path=d", f"--config.{override}"])
    with pytest.raises(InputError, match=f"^{message}"):
        validate(config)


def test_two_views_of_an_object_must_be_able_to_differ(tmp_path):
    line = "config.losses = dict(mae=1.0, simclr=1.0)"
    same = [own(tmp_path, line), "--config.data.path=d", "--config.augment.orientation=none"]
    with pytest.raises(InputError, match="^augment: changes nothing, but simclr compares two views of an object; set"):
        validate(parse(same))
    for one in ("orientation=any", "shift=1", "subpixel=True", "noise=(1.0,2.0)", "band_dropout=0.1", "hole=2"):
        validate(parse([*same, f"--config.augment.{one}"]))


def test_sources_and_stages_are_held_to_their_fields(tmp_path):
    body = """config.data.path = 'd'
    config.data.sources = ({'wher': 'z > 1'}, {'window': -1}, {'window': 1.5}, 3, {'balance_bins': 10**9},
                           {'overlays': 'moved'})
    config.data.stages = ({'ratios': (1, 'x')}, {'ratios': (1, 2), 'step': 3}, {'ratios': [1, 2], 'steps': 0.5})"""
    with pytest.raises(InputError) as refusal:
        validate(parse([own(tmp_path, body)]))
    for part in (
        "data.sources[0].wher is no field of a source. Did you mean 'where'",
        "data.sources[1].window: -1 must be at least 0",
        "data.sources[2].window: 1.5 must be int",
        "data.sources[3]: 3 must be a dict",
        "data.sources[4].balance_bins: 1000000000 must be in 0..10000",
        "data.sources[5].overlays: 'moved' must be tuple",
        "data.stages[0]: {'ratios': (1, 'x')} must be dict(",
        "data.stages[1]: {'ratios': (1, 2), 'step': 3} must be dict(",
        "data.stages[2].steps: 0.5 must be an integer",
    ):
        assert part in str(refusal.value), part


def test_all_problems_are_told_at_once(tmp_path):
    config = parse([own(tmp_path, "config.losses = dict(mea=1.0)"), "--config.optim.lr=nan", "--config.train.steps=0"])
    with pytest.raises(InputError) as refusal:
        validate(config)
    for part in ("losses: 'mea' is no objective", "optim.lr: nan", "train.steps: 0", "data.path: ''"):
        assert part in str(refusal.value)


def test_an_old_config_is_completed_with_the_defaults():
    whole = default()
    whole.losses = dict(mae=0.5)
    whole = resolved(fill(whole))
    old = {**whole, "data": {"path": "d"}, "redshift": {"bins": 3}}
    del old["mesh"]
    assert complete(old) == {**whole, "data": {**whole["data"], "path": "d"}}


@pytest.mark.parametrize(("augmented", "shift", "orientation"), [(True, 2, "square"), (False, 3, "none")])
def test_an_old_config_is_completed_under_the_present_names(augmented, shift, orientation):
    """Moves belonged to what data.augment switched."""
    whole = default()
    whole.losses, whole.data.path = dict(mae=0.5), "d"
    whole.augment.orientation, whole.augment.shift = orientation, shift if augmented else 0
    whole = resolved(fill(whole))
    old = {**whole, "data": {**whole["data"], "augment": augmented, "shift": shift}}
    del old["augment"]
    before = json.dumps(old)
    assert complete(old) == whole and json.dumps(old) == before


def test_difference_names_the_field():
    old = {"a": 1, "b": {"c": 2, "d": [1]}}
    assert difference(old, {"a": 1, "b": {"c": 3, "d": [1]}, "e": 4}) == ["b.c: 2 -> 3", "e: None -> 4"]
    assert difference(old, old) == []
    assert difference([1], old) == [f"config: [1] -> {old!r}"]


def test_overlays_are_of_the_dataset_at_data_path_however_that_is_written():
    data = default().data
    data.update(path="d/", overlays=("mine",), where="z > 1")
    assert [(own["name"], own["overlays"]) for own in sources_of(data)] == [("data", ("mine",))]
    data.sources = (
        dict(path="d"),
        dict(path="./d", overlays=()),
        dict(path="e", name="e"),
        dict(path="s3://d", where=""),
    )
    found = sources_of(data)
    assert [own["overlays"] for own in found] == [("mine",), (), (), ()]
    assert [own["name"] for own in found] == ["source 0", "source 1", "e", "source 3"]
    assert [own["where"] for own in found] == ["z > 1"] * 3 + [""]
