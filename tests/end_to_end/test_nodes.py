"""vLLM servers on several nodes with a network each: on those that train, and on others."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from served_engine import vllm_python, wait_until, write_served_model
from simulated_nodes import SimulatedNode, ended, simulated_nodes
from tiny_task import read_metrics, write_task

pytestmark = pytest.mark.vllm
PORT = 29600
SECRET = "7b1f-key-of-the-job"


def served_task(directory: Path, **overrides: object) -> Path:
    """A task whose responses come from servers that are verified after every update."""
    settings = {
        "rollout__engine": "vllm",
        "rollout__placement": "disaggregated",
        "rollout__verify_weights": True,
        "vllm__python": vllm_python()[0],
        "vllm__environment": {"OMP_NUM_THREADS": "1"},
        "vllm__transfer_dir": str(directory / "transfer"),
        "evaluation__files": [],
        "steps": 2,
    }
    (directory / "transfer").mkdir()
    recipe = write_task(directory, **settings | overrides)
    write_served_model(directory / "model")
    return recipe


def responses(log: str) -> dict[str, int]:
    """Node -> responses of its server, as the run says at its end."""
    (line,) = re.findall("responses of each server: (.*)", log)
    return {node: int(n) for node, n in re.findall(r"on (\w+) \(\S+\) (\d+)", line)}


def test_train_uses_servers_on_every_node(tmp_path):
    recipe = served_task(tmp_path)
    with simulated_nodes("nodea", "nodeb") as nodes:
        job = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        job |= {"MASTER_ADDR": nodes[0].address, "MASTER_PORT": str(PORT)}
        ranks = {}
        for rank, node in enumerate(nodes):
            node.own_disks = (tmp_path / "transfer",)
            arguments = ["-m", "megatron_resrl", "train", str(recipe)]
            log = tmp_path / f"rank{rank}.log"
            ranks[log.name] = node.start(log, arguments, job | {"RANK": str(rank)})
        statuses = ended(ranks, 500)
        said = (tmp_path / "rank0.log").read_text()
    assert statuses == {"rank0.log": 0, "rank1.log": 0}, said
    steps = read_metrics(tmp_path / "run")[1:]
    assert [line["sync/servers"] for line in steps] == [2, 2]
    # Both servers have the trainer's weights, each from a file on its own node.
    assert all(line["mismatch/log_prob_max"] < 1e-4 for line in steps)
    assert not list((tmp_path / "transfer").iterdir())
    counts = responses(said)
    assert counts.keys() == {"nodea", "nodeb"}
    assert sum(counts.values()) == 2 * 4 * 6
    assert min(counts.values()) > 0
    assert "--host 127.0.0.1 " in server_log(tmp_path, "nodea", 0)
    assert f"--host {nodes[1].address} " in server_log(tmp_path, "nodeb", 1)


def server_log(directory: Path, node: str, number: int) -> str:
    return (directory / "run" / "vllm" / f"{node}_server_{number}.log").read_text()


def start_serving(node: SimulatedNode, recipe: Path, store: dict[str, str]):
    arguments = ["-m", "megatron_resrl", "serve", str(recipe)]
    return node.start(recipe.parent / f"{node.name}.log", arguments, store)


def start_training(node: SimulatedNode, recipe: Path, store: dict[str, str]):
    arguments = [str(Path(__file__).parents[1] / "held_train.py"), str(recipe.parent), str(recipe)]
    return node.start(recipe.parent / "trainer.log", arguments, store)


def await_step(step: int, directory: Path, trainer: subprocess.Popen[str]) -> None:
    """Returns when the trainer is about to take a step."""
    begun = directory / f"step_{step}"
    wait_until(lambda: begun.exists() or trainer.poll() is not None, 400)
    assert begun.exists(), (directory / "trainer.log").read_text()


@pytest.mark.slow
@pytest.mark.setting("vllm.nodes")
def test_train_goes_on_when_a_node_of_servers_dies(tmp_path):
    recipe = served_task(tmp_path, vllm__nodes=2, steps=3)
    (tmp_path / "hold_2").touch(), (tmp_path / "hold_3").touch()
    trainer_log = tmp_path / "trainer.log"
    with simulated_nodes("nodea", "nodeb", "nodec") as (trains, dies, stays):
        store = {"MEGATRON_RESRL_STORE": f"{trains.address}:{PORT}", "VLLM_API_KEY": SECRET}
        start_serving(dies, recipe, store)
        serving = start_serving(stays, recipe, store)
        trainer = start_training(trains, recipe, store)
        await_step(2, tmp_path, trainer)
        assert_guarded(trains, tmp_path)

        dies.kill()
        (tmp_path / "hold_2").unlink()
        await_step(3, tmp_path, trainer)
        assert re.search(
            r"vLLM server \d on nodeb \(.*\) cannot be reached", trainer_log.read_text()
        )
        back = start_serving(dies, recipe, store)
        wait_until(lambda: re.search(r"on nodeb \(.*\) is back", trainer_log.read_text()), 300)
        (tmp_path / "hold_3").unlink()
        statuses = ended({"trainer": trainer, "nodeb": back, "nodec": serving}, 200)
        said = trainer_log.read_text()
    assert statuses == {"trainer": 0, "nodeb": 0, "nodec": 0}, said
    steps = read_metrics(tmp_path / "run")[1:]
    assert [line["sync/servers"] for line in steps] == [2, 1, 2]
    assert all(line["mismatch/log_prob_max"] < 1e-4 for line in steps)
    assert responses(said).keys() == {"nodeb", "nodec"}


def assert_guarded(node: SimulatedNode, directory: Path) -> None:
    """Another node reaches a server, which does nothing for it without the job's key."""
    (log,) = (directory / "run" / "vllm").glob("nodec_server_*.log")
    host, port = re.search(r"--host (\S+) --port (\d+)", log.read_text()).groups()
    ask = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "20"]
    url = f"http://{host}:{port}"
    assert node.run(*ask, f"{url}/health") == "200"
    for route in ("/v1/models", "/is_paused", "/get_world_size"):
        assert node.run(*ask, f"{url}{route}") == "401"
        assert node.run(*ask, "-H", "Authorization: Bearer wrong", f"{url}{route}") == "401"
    assert node.run(*ask, "-H", f"Authorization: Bearer {SECRET}", f"{url}/v1/models") == "200"
    logs = [*directory.glob("*.log"), *(directory / "run").rglob("*.log")]
    assert len(logs) >= 5
    assert not any(SECRET in log.read_text() for log in logs)
    assert SECRET not in node.run("ps", "-eo", "args")


@pytest.mark.slow
def test_serve_outlives_trainers_that_are_killed(tmp_path):
    recipe = served_task(tmp_path, vllm__nodes=1, checkpoint__save_every=1)
    (tmp_path / "hold_2").touch()
    with simulated_nodes("nodea", "nodeb") as (trains, serves):
        store = {"MEGATRON_RESRL_STORE": f"{trains.address}:{PORT}"}
        serving = start_serving(serves, recipe, store)
        trainer = start_training(trains, recipe, store)
        await_step(2, tmp_path, trainer)
        trains.kill()
        (tmp_path / "hold_2").unlink()
        wait_until(lambda: "the trainers are gone" in (tmp_path / "nodeb.log").read_text())
        assert "api_server" not in serves.run("ps", "-o", "args", "-p", ",".join(serves.pids()))
        trainer = start_training(trains, recipe, store)
        assert ended({"trainer": trainer, "nodeb": serving}, 400) == {"trainer": 0, "nodeb": 0}
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0, 1, 2]
