"""Names of topologies, and what the table says of them."""

import math

import pytest

from gpt2_jax import InputError
from gpt2_jax.topology import chips


@pytest.mark.parametrize("family", chips.SHAPES)
def test_the_number_counts_the_chips_of_the_shape(family):
    for count, shape in chips.SHAPES[family].items():
        topology = chips.find(f"{family}-{count}")
        assert math.prod(topology.shape) == math.prod(shape) == count
        assert topology.chip.peak > 1e14


@pytest.mark.parametrize(
    ("name", "links"),
    [("v5e-1", 0), ("v5e-4", 2), ("v5e-8", 2), ("v5e-16", 2), ("v5e-256", 4), ("v6e-128", 3), ("v4-4", 2),
     ("v4-16", 3), ("v4-64", 6), ("h100-1", 0), ("h100-8", 1)],
)  # fmt: skip
def test_links_of_the_chip_with_the_fewest(name, links):
    assert chips.find(name).links == links


def test_what_jax_is_asked_for():
    assert chips.find("2xv5e-8").description() == {
        "platform": "tpu", "topology_name": "v5e:2x4", "num_slices": 2
    }  # fmt: skip
    assert chips.find("v5e-1").description()["chips_per_host_bounds"] == (1, 1, 1)
    assert chips.find("v4-16").description()["chip_config_name"] == "megacore"
    assert chips.find("H100-8").description()["topology"] == "1x1x8"


def test_what_cloud_tpu_counts_is_said():
    assert str(chips.find("v4-16")) == "v4-16: 16 x TPU v4, 2x2x4 (Cloud TPU counts cores: v4-32)"
    assert str(chips.find("2xv5e-8")) == "2xv5e-8: 16 x TPU v5 lite, 2 slices of 2x4"


@pytest.mark.parametrize("name", ["v5e-7", "v5e", "8", "v5litepod-8", "0xv5e-8", "x", ""])
def test_what_is_not_known_lists_what_is(name):
    with pytest.raises(
        InputError, match=r"there is no topology '.*'; the number counts chips, and there are v4-4/8/16/"
    ):
        chips.find(name)


def test_nodes_of_gpus_are_refused():
    with pytest.raises(InputError, match="2xh100-8 is several nodes of GPUs, which are not described here; use h100-8"):
        chips.find("2xh100-8")
