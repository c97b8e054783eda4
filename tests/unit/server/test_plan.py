import socket
from pathlib import Path

import msgspec
import pytest

from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs_server.plan import (
    ServerOptions,
    check_ports,
    grown,
    is_wildcard,
    peer_id,
    peer_index,
    planned,
    reachable,
    with_free_port,
)
from mictlanfs_server.ports import choose_free
from mictlanfs_server.space import SpaceRecord

HOST = "127.0.0.1"


def options(**values: object) -> ServerOptions:
    return ServerOptions(Path("/data"), **values)  # type: ignore[arg-type]  # Checked by the test.


def recorded(**changes: object) -> SpaceRecord:
    plain = SpaceRecord(uri="", host=HOST, port=20100, peer_ports=(20200, 20201))
    return msgspec.structs.replace(plain, **changes)


def test_a_new_space_has_the_defaults_of_mictlanx() -> None:
    record = planned(options(), None)
    assert record.uri == (
        "mictlanx://mictlanx-router-0@127.0.0.1:60666/?protocol=http&api_version=4&http2=0"
    )
    assert (record.port, record.peer_ports) == (60666, (24000, 24001, 24002))
    assert record.processes == []
    assert peer_id(1) == "mictlanx-peer-1"


def test_a_space_stays_as_it_was_unless_told_otherwise() -> None:
    before = recorded(capacity=7)
    record = planned(options(), before)
    assert (record.port, record.peer_ports, record.capacity) == (20100, (20200, 20201), 7)


def test_leave_to_listen_everywhere_is_never_taken_from_an_earlier_start() -> None:
    assert not planned(options(), recorded(insecure=True)).insecure
    assert planned(options(insecure=True), recorded()).insecure


def test_what_is_asked_for_wins_over_what_was() -> None:
    record = planned(options(port=20101, peer_port=20300, capacity=8), recorded(capacity=7))
    assert (record.port, record.peer_ports, record.capacity) == (20101, (20300, 20301), 8)


def test_fewer_peers_than_before_are_refused() -> None:
    with pytest.raises(UsageError, match="/data has 2 peers, and with 1 data would be missing"):
        planned(options(peers=1), recorded())


def test_peers_whose_record_was_lost_are_still_there() -> None:
    assert len(planned(options(), None, peer_folders=5).peer_ports) == 5
    with pytest.raises(UsageError, match="has 5 peers"):
        planned(options(peers=3), None, peer_folders=5)


def test_more_peers_than_before_get_the_ports_that_follow() -> None:
    assert planned(options(peers=3), recorded()).peer_ports == (20200, 20201, 20202)


def test_a_new_peer_never_gets_the_port_of_another_server() -> None:
    before = recorded(port=20202)
    assert planned(options(peers=3), before).peer_ports == (20200, 20201, 20203)


def test_a_stopped_peer_stays_one_and_its_port_is_not_asked_for() -> None:
    ports = choose_free(HOST, 3)
    before = recorded(port=ports[0], peer_ports=tuple(ports[1:]), stopped_peers=(1,))
    record = planned(options(), before)
    assert (record.stopped_peers, record.running_peers) == ((1,), [0])
    with pytest.raises(UsageError, match="has 2 peers"):
        planned(options(peers=1), before)
    with socket.create_server((HOST, ports[2])):
        check_ports(record, 0.0)


@pytest.mark.parametrize("name", ["mictlanx-peer-1", "peer-1", "1"])
def test_people_may_call_a_peer_by_any_of_its_names(name: str) -> None:
    assert peer_index(recorded(), name) == 1


@pytest.mark.parametrize("name", ["peer-2", "", "-1", "01", "router"])
def test_a_name_of_no_peer_is_told_with_those_there_are(name: str) -> None:
    with pytest.raises(MictlanError, match="there are peer-0, peer-1") as caught:
        peer_index(recorded(), name)
    assert caught.value.kind is Kind.NOT_FOUND


def test_new_peers_get_the_next_ports_that_are_free() -> None:
    (first,) = choose_free(HOST, 1)
    record = recorded(port=first + 2, peer_ports=(20200, first))
    with socket.create_server((HOST, first + 1)):
        ports = grown(record, 2)
    assert list(ports[:2]) == [20200, first]
    assert not {first + 1, first + 2} & set(ports)
    assert first + 2 < ports[2] < ports[3] < first + 100


def test_new_peers_behind_the_last_port_get_any_that_is_free() -> None:
    ports = grown(recorded(peer_ports=(65534, 65535)), 2)
    assert len(set(ports)) == 4
    assert all(port < 32768 for port in ports[2:])


def test_more_peers_than_a_machine_may_have_are_refused() -> None:
    with pytest.raises(UsageError, match="64 at most"):
        grown(recorded(), 63)
    assert len(grown(recorded(), 62)) == 64


def test_a_peer_comes_back_on_its_port_unless_that_is_taken() -> None:
    router, *peers = choose_free(HOST, 3)
    record = recorded(port=router, peer_ports=tuple(peers))
    assert with_free_port(record, 1) == record
    with socket.create_server((HOST, peers[1])):
        moved = with_free_port(record, 1)
    assert moved.peer_ports[0] == peers[0]
    assert moved.peer_ports[1] not in {router, *peers}


def test_port_0_means_any_free_ports() -> None:
    record = planned(options(port=0, peer_port=0, peers=4), None)
    ports = {record.port, *record.peer_ports}
    assert len(ports) == 5
    assert all(port < 32768 for port in ports)
    assert f":{record.port}/" in record.uri


def test_port_0_keeps_the_ports_of_before_while_they_are_free() -> None:
    router, *peers = choose_free(HOST, 3)
    before = recorded(port=router, peer_ports=tuple(peers))
    record = planned(options(port=0, peer_port=0), before)
    assert (record.port, list(record.peer_ports)) == (router, peers)


def test_port_0_evades_ports_that_were_taken_meanwhile() -> None:
    router, *peers = choose_free(HOST, 3)
    before = recorded(port=router, peer_ports=tuple(peers))
    with socket.create_server((HOST, router)), socket.create_server((HOST, peers[0])):
        record = planned(options(port=0, peer_port=0), before)
    assert record.port != router
    assert peers[0] not in record.peer_ports
    assert len(set(record.peer_ports)) == 2


def test_one_port_for_router_and_peer_is_refused() -> None:
    with pytest.raises(UsageError, match="port 24001 is meant for the router and for a peer"):
        planned(options(port=24001), None)


def test_peers_beyond_the_last_port_are_refused() -> None:
    with pytest.raises(UsageError, match="ports end at 65535"):
        planned(options(peer_port=65534, peers=3), None)
    with pytest.raises(UsageError, match="choose --peer-port"):
        planned(options(peers=3), recorded(peer_ports=(65534, 65535)))


@pytest.mark.parametrize(
    ("index", "expected"),
    [(0, "the router, is in use: .*--port,"), (2, "peer 1, is in use: .*--peer-port,")],
)
def test_a_port_in_use_is_named_with_the_option_that_changes_it(index: int, expected: str) -> None:
    ports = choose_free(HOST, 3)
    record = recorded(port=ports[0], peer_ports=tuple(ports[1:]))
    check_ports(record, 0.0)
    message = f"port {ports[index]} on {HOST}, meant for {expected}"
    with socket.create_server((HOST, ports[index])), pytest.raises(UsageError, match=message):
        check_ports(record, 0.0)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_wildcard_is_never_told_as_an_address(host: str) -> None:
    assert is_wildcard(host)
    assert not is_wildcard(reachable(host))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "10.0.0.7"])
def test_any_other_host_is_told_as_given(host: str) -> None:
    assert not is_wildcard(host)
    assert reachable(host) == host
