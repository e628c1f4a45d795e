"""Servers that a node starts for rank 0: orders, reports, nodes that die and come back."""

from __future__ import annotations

import sys

import pytest
import torch.distributed as dist
from answering import answering, model_card, vllm_like
from served_engine import wait_until
from servers_of import needed_model

from megatron_resrl.config.schema import Recipe, RolloutConfig, VllmConfig
from megatron_resrl.config.serving_store import StoreAddress, store_address
from megatron_resrl.errors import InputError
from megatron_resrl.rollout.serving import server as server_module
from megatron_resrl.rollout.serving.identity import answers_as_ours
from megatron_resrl.rollout.serving.needed_model import NeededModel
from megatron_resrl.rollout.serving.nodes.agent import NodeAgent
from megatron_resrl.rollout.serving.nodes.board import LOST_S, NodeBoard, proof_of
from megatron_resrl.rollout.serving.nodes.directory import Node, NodeDirectory, RemoteSpec
from megatron_resrl.rollout.serving.nodes.fleet import ServerSettings, absent_hosts, missing_nodes
from megatron_resrl.rollout.serving.nodes.place import address_towards, first_ranks
from megatron_resrl.rollout.serving.nodes.serve import node_agent, node_problem
from megatron_resrl.rollout.serving.pool import Pool, RolloutFailure
from megatron_resrl.rollout.serving.pooled_server import PooledServer
from megatron_resrl.rollout.serving.server import ServerSpec, hold_port
from megatron_resrl.rollout.serving.starting import NodeAbsent, start_process, wait_ready

SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
card = {"id": given["--served-model-name"], "root": "m", "max_model_len": 64, "owned_by": "vllm"}
class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        text = json.dumps({"data": [card]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
HTTPServer((given["--host"], int(given["--port"])), Answer).serve_forever()
"""
"""Listens where it is told to, and says who it is, as vLLM does."""


class Cluster:
    """Rank 0's directory and the agents of nodes, which take turns by hand."""

    def __init__(self, folder, nodes: int) -> None:
        self.folder = folder
        self.store = dist.HashStore()
        places = [Node(None, f"node {n + 1}") for n in range(nodes)]
        self.directory = NodeDirectory(NodeBoard(self.store), places, {}, lambda _: "no such node")
        self.agents: list[NodeAgent] = []

    def join(self, host: str, command=(sys.executable, "-c", SERVER)) -> NodeAgent:
        board = NodeBoard(self.store)
        board.announce(host)
        spec = ServerSpec("server", "policy", command, {}, self.folder / f"{host}.log")
        self.agents.append(NodeAgent(board, host, [spec]))
        return self.agents[-1]

    def turns(self, *agents: NodeAgent) -> None:
        for _ in range(2):
            self.directory.turn()
            for agent in agents:
                agent.turn()
        self.directory.turn()

    def spec(self, node: int = 0) -> RemoteSpec:
        return RemoteSpec(self.directory, node, 0, node)


@pytest.fixture
def cluster(tmp_path):
    made = []

    def make(nodes: int = 1) -> Cluster:
        made.append(Cluster(tmp_path, nodes))
        return made[-1]

    yield make
    for cluster in made:
        for agent in cluster.agents:
            agent.close()


def silence(cluster: Cluster, node: int = 0) -> None:
    """As if the node had said nothing for a while."""
    cluster.directory.nodes[node].pulse.at -= LOST_S + 1


def test_remote_server_starts_when_its_node_comes(cluster):
    cluster = cluster()
    pooled = PooledServer(cluster.spec())
    process = pooled.spec.start()
    cluster.directory.turn()
    assert (process.url, process.waits_for(), process.why_ended()) == ("", "no such node", None)
    agent = cluster.join("hosta")
    cluster.turns(agent)
    assert pooled.name.startswith("server 0 on hosta")
    assert process.waits_for() is None
    pooled.process, pooled.url = process, process.url

    wait_ready(process, 60, lambda: answers_as_ours(pooled))
    process.kill()
    cluster.turns(agent)
    assert process.why_ended() == "ended with status -9"
    assert not answers_as_ours(pooled)


def test_remote_server_shows_the_log_of_its_node(cluster):
    cluster = cluster()
    agent = cluster.join("hosta", (sys.executable, "-c", "print('no room'); raise SystemExit(3)"))
    process = cluster.spec().start()
    cluster.turns(agent)

    def ended() -> bool:
        cluster.turns(agent)
        return process.why_ended() is not None

    wait_until(ended)
    message = process.describe(process.why_ended())
    assert "server 0 on hosta" in message
    assert "ended with status 3" in message
    assert str(cluster.folder / "hosta.log") in message
    assert "no room" in message


def test_remote_server_is_lost_with_its_node_until_it_returns(cluster):
    cluster = cluster()
    cluster.turns(first := cluster.join("hosta"))
    process = cluster.spec().start()
    cluster.turns(first)
    assert process.why_ended() is None
    silence(cluster)
    assert "is lost with its node hosta" in process.why_ended()
    again = cluster.spec().start()
    cluster.directory.turn()
    assert again.waits_for() == "no such node"
    cluster.turns(second := cluster.join("hosta"))
    assert "ended with an earlier `serve`" in process.why_ended()
    assert again.waits_for() is None
    cluster.turns(second)
    assert again.url
    # Both are agents of one host: the first one notices, and leaves the node to the second.
    first.turn()
    assert first.replaced
    assert not second.replaced


def test_remote_server_reports_why_its_node_refused(cluster):
    cluster = cluster()
    process = cluster.spec().start()
    board = NodeBoard(cluster.store)
    board.announce("hosta")
    board.write("node/hosta", {"agent": "a", "beat": 0, "ended": True, "servers": []} | REFUSED)
    cluster.directory.turn()
    assert process.why_ended() == "is refused by its node (another key)"


REFUSED = {"refused": "another key"}


def test_directory_gives_places_to_as_many_nodes_as_it_takes(cluster):
    cluster = cluster(2)
    for host in ("hosta", "hostb", "hosta", "hostc"):
        cluster.join(host)
    cluster.directory.turn()
    assert [node.label for node in cluster.directory.nodes] == ["hosta", "hostb"]
    assert NodeBoard(cluster.store).read("trainer")["nodes"] == {"hosta": 0, "hostb": 1}


def test_directory_tells_nodes_that_the_job_has_ended(cluster):
    cluster = cluster()
    agent = cluster.join("hosta")
    agent.begin(), cluster.directory.begin()
    wait_until(lambda: cluster.directory.nodes[0].lives)
    cluster.directory.close()
    assert agent.ended.wait(20)
    assert agent.orderly


def test_start_process_waits_for_its_node_and_names_it(cluster):
    pooled = PooledServer(cluster().spec())
    with pytest.raises(NodeAbsent, match="no such node"):
        start_process(pooled, 0.3, lambda: False)


def test_pool_ends_when_no_node_of_servers_comes_back(cluster):
    cluster = cluster(2)
    recipe = Recipe(rollout=RolloutConfig(engine="vllm"), vllm=VllmConfig(start_timeout_s=0.3))
    pooled = [PooledServer(cluster.spec(node)) for node in range(2)]
    pool = Pool(recipe.vllm, pooled, needed_model(recipe), seed_requests=False)
    try:
        for server in pooled:
            pool._loop.call_soon_threadsafe(pool._fail, server, "is lost with its node")
        wait_until(lambda: pool._error is not None)
        assert isinstance(pool._error, RolloutFailure)
        assert "no vLLM server is left" in str(pool._error)
        assert "no such node" in str(pool._error)
    finally:
        pool.close()


def test_start_process_moves_to_another_port_if_one_is_taken(tmp_path, monkeypatch):
    ports = []

    with answering(vllm_like(model_card("another"))) as taken:

        def choose(host):
            holder = hold_port(host)
            ports.append(holder.getsockname()[1])
            if len(ports) == 1:  # Another server listens there before ours does.
                holder.close()
                holder = FakeHolder(int(taken.rsplit(":", 1)[1]))
            return holder

        monkeypatch.setattr(server_module, "hold_port", choose)
        command = (sys.executable, "-c", SERVER)
        pooled = PooledServer(ServerSpec("server 0", "policy-x", command, {}, tmp_path / "log"))
        start_process(pooled, 60, lambda: False)
        try:
            assert len(ports) == 2
            assert pooled.url == f"http://127.0.0.1:{ports[1]}"
            assert "address already in use" in (tmp_path / "log").read_text().lower()
        finally:
            pooled.process.kill()


class FakeHolder:
    """Says that a port is held which is not."""

    def __init__(self, port: int) -> None:
        self.port = port

    def getsockname(self):
        return ("127.0.0.1", self.port)

    def close(self):
        pass


def test_hold_port_keeps_others_out_and_lets_a_server_listen():
    import socket

    with hold_port("127.0.0.1") as holder:
        port = holder.getsockname()[1]
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with socket.create_server(("127.0.0.1", port)) as server:  # Sets SO_REUSEADDR, as vLLM.
            socket.create_connection(("127.0.0.1", port)).close()
            server.accept()[0].close()


def test_first_ranks_are_one_of_each_node():
    by_launcher = [("a", "0"), ("a", "1"), ("b", "0"), ("b", "1"), ("a", "0"), ("a", "1")]
    assert first_ranks(by_launcher).ranks == (0, 2, 4)
    by_host = [("a", None), ("a", None), ("b", None)]
    assert first_ranks(by_host).ranks == (0, 2)
    assert first_ranks(by_host).hosts == ("a", "b")


def test_address_towards_names_a_host_without_a_way():
    assert address_towards("127.0.0.1") == "127.0.0.1"
    with pytest.raises(InputError, match=r"no way to 'nowhere\.invalid'"):
        address_towards("nowhere.invalid")


@pytest.mark.parametrize("given", ["", "host", "host:", "host:x", ":1", "host:70000"])
def test_store_address_refuses_what_is_no_host_and_port(given):
    with pytest.raises(InputError, match="MEGATRON_RESRL_STORE"):
        store_address({"MEGATRON_RESRL_STORE": given})


def test_store_address_takes_names_and_both_kinds_of_addresses():
    for given, address in {"n1:29600": ("n1", 29600), "[fe80::1]:80": ("fe80::1", 80)}.items():
        assert store_address({"MEGATRON_RESRL_STORE": given}) == address


def test_missing_nodes_names_those_that_should_have_come(cluster):
    cluster = cluster(3)
    cluster.turns(cluster.join("n3"))
    nodes = cluster.directory.nodes
    job = {"SLURM_JOB_NODELIST": "n[1-5]"}
    absent = absent_hosts(job, ["n1.cluster", "n2.cluster"], nodes)
    assert absent == ["n4", "n5"]
    said = missing_nodes(nodes, absent, StoreAddress("n1", 29600), 900)
    assert said == (
        "vllm.nodes = 3: 1 of 3 nodes are there (n3); n4, n5 did not come to n1:29600 within "
        "vllm.start_timeout_s = 900 s; start `megatron-resrl serve` with this recipe there"
    )
    silence(cluster)
    assert "n3 did not come back" in missing_nodes(nodes, [], StoreAddress("n1", 1), 900)


def test_node_problem_names_what_does_not_fit(tmp_path):
    (tmp_path / "marker").touch()
    run = {"backend": "file", "run": "r", "proof": proof_of("key", "r"), "marker": "marker"}
    assert node_problem(run, "file", "key", str(tmp_path)) is None
    assert "by nccl" in node_problem(run, "nccl", "key", str(tmp_path))
    assert "API key is another" in node_problem(run, "file", "wrong", str(tmp_path))
    assert "another directory" in node_problem(run, "file", "key", str(tmp_path / "x"))


def test_serve_tells_the_run_why_its_node_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "wrong")
    board = NodeBoard(dist.HashStore())
    vllm = VllmConfig(nodes=1, weight_transfer="file", transfer_dir=str(tmp_path))
    model = NeededModel("/models/m", 8, 8)
    settings = ServerSettings(model, vllm, tmp_path, colocated=False, weight_flags=((), {}))
    run = {"backend": "file", "run": "r", "proof": proof_of("key", "r"), "marker": None}
    with pytest.raises(InputError, match=r"node hosta does not fit .* API key is another"):
        node_agent(settings, StoreAddress("n1", 29600), board, "hosta", run)
    assert "VLLM_API_KEY agree" in board.read("node/hosta")["refused"]
    monkeypatch.setenv("VLLM_API_KEY", "key")
    run |= {"nodes": {"hosta": 2}}
    agent = node_agent(settings, StoreAddress("localhost", 29600), board, "hosta", run)
    agent.turn()
    record = board.read("node/hosta")
    assert "refused" not in record
    assert record["servers"][0]["log"].endswith("_server_2.log")
