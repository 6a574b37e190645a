"""What devices and clusters can do, and the time that follows for a step."""

from collections import Counter

import pytest
from ml_collections import ConfigDict

from jaxz.collectives import Collective, group_of, nbytes
from jaxz.dry_run import communication, predicted
from jaxz.errors import InputError
from jaxz.hardware import devices, find_device, parse_cluster

KINDS = [
    ("Tesla V100-SXM2-16GB", "V100-16"),
    ("Tesla V100-SXM2-32GB", "V100-32"),
    ("NVIDIA A100-SXM4-40GB", "A100-40"),
    ("NVIDIA A100-SXM4-80GB", "A100-80"),
    ("NVIDIA A100 80GB PCIe", "A100-80-PCIe"),
    ("NVIDIA H100 80GB HBM3", "H100-SXM"),
    ("NVIDIA H100 PCIe", "H100-PCIe"),
    ("NVIDIA H200", "H200"),
    ("NVIDIA H100 NVL", None),
    ("cpu", None),
]


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_devices_are_found_by_what_jax_calls_them(kind, name):
    found = find_device(kind)
    assert (found.name if found else None) == name


def test_every_device_has_its_figures_in_the_right_units():
    for device in devices():
        assert 10e12 < device.float32 <= device.float16 < 1e15 and device.bfloat16 in (0, device.float16)
        assert 16e9 <= device.memory < 200e9 and 30e9 < device.link < device.bandwidth < 10e12


CLUSTERS = [
    ("jean_zay_h10:1x4", r"'jean_zay_h10' is not one of jean_zay_v100, .*Did you mean 'jean_zay_h100'"),
    ("jean_zay_h100", "must be NAME:NODESxDEVICES, such as jean_zay_h100:4x4"),
    ("jean_zay_h100:4", "must be NAME:NODESxDEVICES"),
    ("jean_zay_h100:0x4", "must be NAME:NODESxDEVICES"),
    ("jean_zay_h100:1x8", "asks for more than the 4 devices of a node"),
]


@pytest.mark.parametrize(("text", "message"), CLUSTERS)
def test_a_cluster_that_is_none_is_refused(text, message):
    with pytest.raises(InputError, match=f"--cluster: .*{message}"):
        parse_cluster(text)


GROUPS = [
    ("replica_groups={{0,2},{1,3}}, dimensions={0}", (0, 2)),
    ("replica_groups=[4,2]<=[8], dimensions={0}", (0, 1)),
    ("replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", (0, 4)),
    ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}, dimensions={0}", (0, 1, 2, 3)),
    ("replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'c'}, to_apply=%add", (0, 4)),
    ("replica_groups={}, to_apply=%add", tuple(range(8))),
]


@pytest.mark.parametrize(("text", "group"), GROUPS)
def test_groups_of_devices_are_read_in_every_notation(text, group):
    assert group_of(text, 8) == group


@pytest.mark.parametrize(("dtype", "size"), [("f32", 4), ("bf16", 2), ("pred", 1), ("s8", 1), ("u64", 8)])
def test_bytes_of_shapes(dtype, size):
    assert nbytes(dtype, "5,2") == 10 * size and nbytes(dtype, "") == size


def test_rings_inside_a_node_and_between_nodes():
    """2 (n - 1) / n of the bytes for a sum, (n - 1) / n for a gathering, over the slower link that the ring needs."""
    cluster = parse_cluster("jean_zay_h100:2x4")  # 450 GB/s inside, 50 GB/s between
    gather, total = Collective("all-gather", 9_000_000, (0, 1, 2, 3)), Collective("all-reduce", 1_000_000, (0, 4))
    inside, between = communication(cluster, Counter({gather: 10, total: 5}))
    assert inside == pytest.approx(10 * 9e6 * 3 / 4 / 450e9) and between == pytest.approx(5 * 1e6 / 50e9)


def test_the_slowest_of_computing_memory_and_communication_decides():
    cluster = parse_cluster("jean_zay_h100:2x4")
    config = ConfigDict(dict(model=dict(dtype="bfloat16"), train=dict(steps=9000)))
    lines = "\n".join(predicted(cluster, 0.4 * 989e12, 80e9, Counter(), config))  # a second's work
    assert "computing        1 s a step, at 40% of 989 TFLOP/s (bfloat16); memory 0.0478 s" in lines
    assert "DOES NOT FIT into 80 GB" in lines and "20 to 20 GPU-hours" in lines
    total = Counter({Collective("all-reduce", 100_000_000_000, (0, 4)): 1})
    lines = "\n".join(predicted(cluster, 0.4 * 989e12, 1e9, total, config))
    assert "predicted        2 s a step where communication hides behind computing, 3 s where not" in lines
    with pytest.raises(InputError, match="model.dtype: 'bfloat16' is not what a V100-32 multiplies"):
        predicted(parse_cluster("jean_zay_v100:1x4"), 1.0, 1.0, Counter(), config)
