"""Profiles: one TOML file adds a cluster, and what is wrong in it is named."""

import pytest

from jaxz.errors import InputError
from launch.profile import load_profile
from tests.launch.requests import PROFILES

WHOLE = """
gpu = "L40"
dtypes = ["bfloat16"]
[node]
gpus = 2
tasks = 2
cores = 16
[sbatch]
partition = "l40"
exclusive = true
[qos.long]
hours = 48
"""


def test_a_file_adds_a_cluster(tmp_path):
    (tmp_path / "mine.toml").write_text(WHOLE)
    profile = load_profile(str(tmp_path / "mine.toml"))
    assert (profile.name, profile.node.gpus, profile.sbatch["exclusive"]) == ("mine", 2, True)
    assert profile.qos["long"].hours == 48 and profile.job.retries == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gpus = 2", "gpu = 2", "node: gpu is not known. Did you mean 'gpus'?"),
        ("gpus = 2", 'gpus = "two"', "node: gpus: 'two' must be int"),
        ("tasks = 2\n", "", "node: missing 1 required positional argument: 'tasks'"),
        ("hours = 48", "hours = true", "qos.long: hours: True must be float"),
        ("[qos.long]", "[data.merge]", "data.merge is not known"),
        ("gpu = ", "gpu ", "is not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, old, new, message):
    (tmp_path / "mine.toml").write_text(WHOLE.replace(old, new, 1))
    with pytest.raises(InputError) as refusal:
        load_profile(str(tmp_path / "mine.toml"))
    assert "mine.toml" in str(refusal.value) and message in str(refusal.value)


@pytest.mark.parametrize("name", PROFILES)
def test_the_profiles_are_whole(name):
    profile = load_profile(name)
    assert profile.node.tasks == profile.node.gpus or not profile.node.gpus
    assert not profile.job.default_qos or profile.job.default_qos in profile.qos


@pytest.mark.parametrize("name", ["jean_zay_v100", "jean_zay_v100_32g", "jean_zay_p2"])
def test_v100_has_no_bfloat16_and_no_cuda_13(name):
    profile = load_profile(name)
    assert {*profile.dtypes} == {"float16", "float32"} and profile.jax_extra == "cuda12" and profile.pins
