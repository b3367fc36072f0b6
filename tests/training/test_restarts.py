"""What is said of jobs whose processes may not find each other again; test_elastic.py starts some again for real."""

import warnings

import pytest
import torch
import torch.distributed as dist

from patchconvnet.training.restarts import meet

SEVERAL_NODES = {
    "TORCHELASTIC_RUN_ID": "test",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_MAX_RESTARTS": "3",
    "GROUP_WORLD_SIZE": "2",
    "RANK": "0",
}


@pytest.mark.parametrize(
    ("changes", "is_warned"),
    [
        ({}, True),
        ({"RANK": "1"}, False),
        ({"TORCHELASTIC_MAX_RESTARTS": "0"}, False),
        ({"TORCHELASTIC_USE_AGENT_STORE": "False"}, False),
    ],
)
def test_several_nodes_that_share_a_store_are_warned(
    changes: dict[str, str], is_warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**SEVERAL_NODES, **changes}.items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        meet(torch.device("cpu"))
    assert ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in str(warning.message) for warning in found] == [True] * is_warned
    assert not dist.is_initialized()  # it is Fabric that connects them


def test_each_restart_has_names_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    one_node = {
        **SEVERAL_NODES, "GROUP_WORLD_SIZE": "1", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
    }  # fmt: skip
    for name, value in one_node.items():
        monkeypatch.setenv(name, value)
    names = []
    for restart in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restart)
        before = set(store.list_keys())
        try:
            for _ in range(2):  # two trainings of one process
                meet(torch.device("cpu"))
            assert dist.get_backend() == "gloo"
        finally:
            dist.destroy_process_group()
        names.append(set(store.list_keys()) - before)
    assert names[0]
    assert {name.partition("restart ")[2][0] for name in names[0]} == {"0"}
    assert {name.partition("restart ")[2][0] for name in names[1]} == {"1"}
