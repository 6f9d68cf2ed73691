"""A Ray cluster of several nodes on this machine, by Ray's own test tools: events, errors, deaths, a lost node."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import clips_cache
import numpy as np
import pandas as pd
import pytest
import torch
from worker_cases import Scripted

import kdcache
from kdcache.cluster.connecting import connect
from kdcache.cluster.options import Cluster, cluster_of
from kdcache.cluster.ray_actors import ConnectedCluster, RayActors, connected
from kdcache.demo.scene import make_dataset
from kdcache.errors import DeviceError, OptionError
from kdcache.workers import StopFlag

ray: Any = pytest.importorskip("ray", reason="pip install 'kdcache[ray]'")
ray_cluster: Any = pytest.importorskip("ray.cluster_utils")

STREAM = "i3d-rgb/mixed4a"
SMALL: dict[str, Any] = {"size": 32, "frames": 8, "weights": {"i3d-rgb": "random:0"}, "bar": False}


def forbidden(*death: object) -> NoReturn:
    raise AssertionError(death)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head that takes no work, and a node of one core. That a node has gone is noticed within seconds."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    soon = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": soon}
    cluster = ray_cluster.Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def connection(nodes) -> Iterator[ConnectedCluster]:
    with connected(Cluster(nodes.address), "cpu") as found:
        yield found


def run(
    connection: ConnectedCluster, units: list[Any], on_death: Any = forbidden, stop: StopFlag | None = None
) -> list[Any]:
    events: list[Any] = []
    executor = RayActors(connection, Scripted(), 2, on_death, forbidden)
    executor.run(units, events.append, stop or StopFlag())
    return events


def test_all_units_are_run_by_a_worker_that_starts_once(connection):
    events = run(connection, [("work", c) for c in "abcde"])
    assert [argument for _, _, argument in events] == list("abcde")
    assert [n for _, n, _ in events] == list(range(5))


def test_an_error_of_a_worker_ends_the_run_by_name(connection):
    with pytest.raises(OptionError, match=r"^this is refused\.$"):
        run(connection, [("refuse", "this"), ("work", "a")])


@pytest.mark.parametrize(("verb", "how"), [("kill", "ActorDiedError"), ("end", "EOFError: the file has ended")])
def test_a_dead_worker_is_told_of_and_replaced(connection, verb, how):
    deaths = []

    def on_death(unit: Any, done: Any, how: str) -> list[Any]:
        deaths.append((unit, [argument for _, _, argument in done], how))
        return [("work", "again")]

    events = run(connection, [(verb, "first"), ("work", "second")], on_death)
    said = ["first"] * (len(events) - 2)  # the last words of a worker that is killed may not arrive
    assert [argument for _, _, argument in events] == [*said, "again", "second"]
    assert deaths == [((verb, "first"), said, how)]


def test_the_flag_stops_a_unit_that_runs(connection, tmp_path):
    stop = StopFlag()

    def ask() -> None:
        while not list(tmp_path.iterdir()):
            time.sleep(0.05)
        stop.set()

    threading.Thread(target=ask, daemon=True).start()
    assert len(run(connection, [("wait", tmp_path), ("work", "never")], stop=stop)) == 1


def test_a_worker_too_large_for_every_node_is_refused(nodes, connection):
    with pytest.raises(OptionError, match="No node of the cluster has 3 CPU"), connected(Cluster(cpus=3), "cpu"):
        pass
    with pytest.raises(DeviceError, match="1 GPU"), connected(Cluster(), "cuda"):
        pass


def test_a_node_without_the_package_is_named():
    """Ray's words; a real node would find what this process has imported."""
    words = (
        "The actor died because of an error raised in its creation task, ray::Serving.__init__() (pid=2, ip=10.0.0.7)\n"
        "RuntimeError: The actor with name Serving failed to import on the worker. This may be because needed library "
        "dependencies are not installed in the worker environment:\n\nModuleNotFoundError: No module named 'kdcache'\n"
    )

    def dead(_: object) -> NoReturn:
        raise ray.exceptions.RayError(words)

    fake = SimpleNamespace(get=dead, exceptions=ray.exceptions)
    executor = RayActors(ConnectedCluster(fake, Cluster(), 0, 1), Scripted(), 1, forbidden, forbidden)
    actor: Any = SimpleNamespace(node="", messages=iter([None]))
    with pytest.raises(OptionError, match=r"10.0.0.7 cannot import kdcache \(.*named 'kdcache'\): install the same"):
        executor._receive(actor, forbidden)
    actor = SimpleNamespace(node="known", messages=iter([None]))
    assert executor._receive(actor, forbidden) == "RayError"


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "localhost:{}", "127.0.0.1:99999"])
@pytest.mark.parametrize("named", ["option", "environment"])
def test_an_address_that_nobody_answers_is_named_before_ray_waits_for_it(address, named, monkeypatch):
    """Ray would take minutes to give up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    told = address.format(free)
    if named == "environment":
        monkeypatch.setenv("RAY_ADDRESS", told)
    never = SimpleNamespace(util=SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1"))
    with pytest.raises(OptionError, match=f"address={told}: no Ray cluster answers there"):
        connect(never, told if named == "option" else None)


def test_ray_client_is_refused():
    """Ray: streaming actor methods are not supported when using Ray Client."""
    with pytest.raises(OptionError, match=r"^address=ray://head:10001: .*Ray Client"):
        connect(ray, "ray://head:10001")


def test_options_of_a_cluster():
    assert cluster_of("local", None, None, None, "auto") is None
    assert cluster_of("ray", None, None, 0.5, "auto") == Cluster(None, 1, 0.5)
    for wrong, said in (
        (("rays", None, None, None, "auto"), "did you mean 'ray'"),
        (("local", "auto", None, None, "auto"), "address is of a cluster"),
        (("ray", None, None, None, "cuda:1"), "device=cuda:1"),
        (("ray", None, 0.0, None, "auto"), "worker_cpus=0"),
        (("ray", None, float("nan"), None, "auto"), "worker_cpus=nan"),
        (("ray", None, None, -1.0, "auto"), "worker_gpus=-1"),
        (("ray", None, None, 1.5, "auto"), "worker_gpus=1.5: .*whole ones"),
        (("ray", None, None, 1e-5, "auto"), "worker_gpus=1e-05: .*four decimals"),
        (("ray", None, 0.12345, None, "auto"), "worker_cpus=0.12345: .*four decimals"),
    ):
        with pytest.raises(OptionError, match=said):
            cluster_of(*wrong)  # type: ignore[arg-type]


def digests(out: Path) -> dict[tuple[str, str], str]:
    index = kdcache.store.load_index(out)
    return dict(zip(index["clip_id"], index[f"{STREAM}:digest"], strict=True))


def test_a_node_killed_in_the_middle_of_an_extraction_costs_nothing(nodes, connection, tmp_path):
    """Digests equal a local run's, nobody is blamed, and the clips of the node are computed by others."""
    make_dataset(tmp_path / "data", clips_per_class=2)
    call = {"manifest": tmp_path / "data" / "clips.csv", "root": tmp_path / "data", "streams": [STREAM], **SMALL}
    kdcache.extract(**call, out=tmp_path / "local")
    second = nodes.add_node(num_cpus=1)
    killed = threading.Event()

    def kill() -> None:  # once both nodes have committed something, or are about to
        while len(list((tmp_path / "out").glob("shard-*.h5")) if (tmp_path / "out").exists() else []) < 1:
            time.sleep(0.05)
        nodes.remove_node(second, allow_graceful=False)
        killed.set()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    report = kdcache.extract(**call, out=tmp_path / "out", engine="ray", address=nodes.address)
    thread.join(30)
    assert killed.is_set()
    assert not report.failures
    assert report.extracted == report.clips
    assert digests(tmp_path / "out") == digests(tmp_path / "local")
    assert kdcache.Cache(tmp_path / "out").verify().ok
    assert not list((tmp_path / "out").glob(".*.partial"))
    np.testing.assert_array_equal(
        *(kdcache.Cache(tmp_path / name).read(STREAM, list(digests(tmp_path / name))) for name in ("local", "out"))
    )


def test_a_comparison_on_a_cluster_gives_the_numbers_of_this_machine(nodes, connection, tmp_path):
    table = clips_cache.rows()
    cache = clips_cache.write(tmp_path / "cache", table, {clips_cache.STREAM: clips_cache.arrays(table)})
    call: dict[str, Any] = {"shards": cache, "seeds": 2, "rows": {"alone": {"alpha": 0.0, "beta": 0.0}, "both": {}}}
    call |= {"tune": 0, "device": "cpu", "epochs": 2, "milestones": (), "hidden": 8, "teacher_hidden": 8}
    with one_thread():
        local = kdcache.ablate("early", out=tmp_path / "local", **call)
    ours = kdcache.ablate("early", out=tmp_path / "ray", engine="ray", address=nodes.address, **call)
    same = ["row", "seed", "split", "weights", "metric", "value"]
    pd.testing.assert_frame_equal(ours.results[same], local.results[same])
    assert not list((tmp_path / "ray" / "stages").glob(".*.partial"))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
