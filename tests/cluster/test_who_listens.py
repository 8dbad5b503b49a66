"""Who can be reached over a network asks for TLS and for who is calling.

Every listener of every container, as its kernel has them, is tried from a container that has no
secrets, in each network where it is reached. Those that ask nothing are named here, with why.
"""

import ipaddress
import json
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.compose_file import SERVICES
from tests.cluster.load import Caller
from tests.cluster.told import Told, prompt

pytestmark = [pytest.mark.cluster, pytest.mark.thorough, pytest.mark.timeout(3600)]

LISTENING = "0A"

POOL_PORTS = range(12_000, 18_000)
"""Mooncake's in a cache service, on all of its networks, others with each start. It has neither TLS
nor logins, so what lies behind them is sealed (`shared.sealing`)."""

MUTUAL_TLS, KEY, PASSWORD = "mutual TLS", "TLS and an API key", "password"

REFUSED = {"closed", "TLSV13_ALERT_CERTIFICATE_REQUIRED", "ConnectionResetError"}
"""How a server that has seen no certificate ends it, before a word of HTTP/2."""

ASKS = {
    ("gateway", 7441): KEY,
    ("gateway", 7442): KEY,
    ("worker-1", 7421): MUTUAL_TLS,
    ("worker-2", 7421): MUTUAL_TLS,
    ("cache-1", 7411): MUTUAL_TLS,
    ("cache-2", 7411): MUTUAL_TLS,
    ("billing", 7431): MUTUAL_TLS,
    ("postgres", 5432): PASSWORD,
}

ASKS_NOTHING = {
    ("gateway", 9441): "metrics: numbers without names, inside",
    ("worker-1", 9421): "metrics: numbers without names, inside",
    ("worker-2", 9421): "metrics: numbers without names, inside",
    ("cache-1", 9411): "metrics: numbers without names, inside",
    ("cache-2", 9411): "metrics: numbers without names, inside",
    ("billing", 9431): "metrics: numbers without names, inside",
    ("prometheus", 9090): "the same numbers; of this machine only its loopback reaches it",
    ("grafana", 3000): "asks for a password itself; of this machine only its loopback reaches it",
    ("mooncake", 50051): "Mooncake has neither TLS nor logins: a network of its own",
    ("mooncake", 9003): "Mooncake's metrics, the same network",
}

TRY = """\
import json, socket, ssl, sys, urllib.error, urllib.request
import grpc, psycopg

def reached(host, port):
    with socket.create_connection((host, port), 10):
        return True

def in_clear(host, port):
    with socket.create_connection((host, port), 10) as raw:
        raw.settimeout(10)
        raw.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        try:
            return raw.recv(4096).decode("latin-1")
        except OSError as error:
            return type(error).__name__

def mutual(host, port):
    tls = ssl.create_default_context(); tls.check_hostname = False; tls.verify_mode = ssl.CERT_NONE
    tls.set_alpn_protocols(["h2"])
    with socket.create_connection((host, port), 10) as raw:
        try:
            with tls.wrap_socket(raw, server_hostname=host) as socket_:
                socket_.settimeout(10)
                socket_.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes(9))
                return "answered" if socket_.recv(4096) else "closed"
        except (ssl.SSLError, ConnectionError) as error:
            return getattr(error, "reason", None) or type(error).__name__

def http(host, port, key):
    tls = ssl.create_default_context(); tls.check_hostname = False; tls.verify_mode = ssl.CERT_NONE
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"https://{host}:{port}/v1/models", headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=10, context=tls).status
    except urllib.error.HTTPError as error:
        return error.code

def rpc(host, port, key):
    from kvtier.v1 import inference_pb2 as pb, inference_pb2_grpc
    certificate = ssl.get_server_certificate((host, port)).encode()
    names = (("grpc.ssl_target_name_override", "gateway"),)
    credentials = grpc.ssl_channel_credentials(certificate)
    metadata = [("authorization", f"Bearer {key}")] if key else []
    with grpc.secure_channel(f"{host}:{port}", credentials, names) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        try:
            stub.GetModel(pb.GetModelRequest(), timeout=20, metadata=metadata)
            return "OK"
        except grpc.RpcError as error:
            return error.code().name

def database(host, port, password):
    try:
        words = {"password": password} if password else {}
        psycopg.connect(host=host, port=port, user="kvtier", dbname="kvtier", **words).close()
        return "OK"
    except psycopg.OperationalError as error:
        return str(error)

said = []
for name, *words in json.load(sys.stdin):
    said.append(globals()[name](*words))
print(json.dumps(said))
"""


def listeners(cluster: Cluster) -> set[tuple[str, int]]:
    found = set()
    for service in cluster.services():
        for (address, port), _ in cluster.sockets(service, LISTENING):
            if not ipaddress.ip_address(address).is_loopback:
                found.add((service, port))
    return found


def tried(cluster: Cluster, network: str, *calls: tuple[Any, ...]) -> list[Any]:
    words = ("python", "-c", TRY)
    printed = cluster.beside("billing", *words, network=network, given=json.dumps(calls))
    answers: list[Any] = json.loads(printed)
    assert len(answers) == len(calls)
    return answers


def test_every_listener_is_known(cluster: Cluster, told: Told) -> None:
    for worker in ("worker-1", "worker-2"):  # their caches join the pool with the first call
        told.generate(cluster, prompt(f"who listens {worker}"), worker)
    there = {each for each in ASKS.keys() | ASKS_NOTHING.keys() if each[0] in cluster.services()}
    assert not ASKS.keys() & ASKS_NOTHING.keys()
    found = listeners(cluster)
    pool = {
        (name, port) for name, port in found if name.startswith("cache-") and port in POOL_PORTS
    }
    assert found - pool == there
    assert {name for name, _ in pool} == {"cache-1", "cache-2"}
    for name in ("cache-1", "cache-2"):
        assert SERVICES[name]["environment"]["KVTIER_CACHE_SHARED__SEALING"] == "aes_256_gcm"


def test_who_shows_a_key_is_let_in(cluster: Cluster, caller: Caller) -> None:
    for network, address in cluster.networks("gateway").items():
        calls = [("http", address, 7441, caller.key), ("rpc", address, 7442, caller.key)]
        calls.append(("mutual", address, 7442))  # asks for no certificate
        assert tried(cluster, network, *calls) == [200, "OK", "answered"]


def test_nobody_is_let_in_without_saying_who_he_is(cluster: Cluster) -> None:
    for (service, port), asks in ASKS.items():
        for network, address in cluster.networks(service).items():
            where = (address, port)
            if asks == MUTUAL_TLS:
                clear, mutual = tried(cluster, network, ("in_clear", *where), ("mutual", *where))
                assert "HTTP/1.1 200" not in clear
                assert mutual in REFUSED, (service, port, network, mutual)
            elif asks == PASSWORD:
                without, wrong = tried(
                    cluster, network, ("database", *where, ""), ("database", *where, "guessed")
                )
                assert "no password" in without
                assert "authentication failed" in wrong
            else:
                way = "http" if port == 7441 else "rpc"
                calls = [(way, *where, key) for key in ("", "sk-kvtier-guessed")]
                clear, *answers = tried(cluster, network, ("in_clear", *where), *calls)
                assert "200" not in clear
                assert set(answers) <= {401, "UNAUTHENTICATED"}


def test_what_asks_nothing_is_reached_where_it_is_said_alone(cluster: Cluster) -> None:
    for service, port in ASKS_NOTHING:
        if service in cluster.left_out:
            continue
        for network, address in cluster.networks(service).items():
            assert network in {"inside", "shared", "watch"} or port in (9441, 9431), service
            assert tried(cluster, network, ("reached", address, port)) == [True]
