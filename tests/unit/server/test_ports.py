import socket
import threading
from collections.abc import Iterator

import pytest

from mictlanfs.errors import UsageError
from mictlanfs_server.ports import CHOICE_FIRST, CHOICE_LAST, choose_free, is_free, wait_free

HOST = "127.0.0.1"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server((HOST, choose_free(HOST, 1)[0])) as server:
        yield server


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def test_a_port_with_a_listener_is_not_free(listener: socket.socket) -> None:
    assert not is_free(HOST, port_of(listener))


def test_a_port_is_free_at_once_after_its_connections_were_closed(listener: socket.socket) -> None:
    port = port_of(listener)
    with socket.create_connection((HOST, port)):
        accepted, _ = listener.accept()
        # The end that closes first lingers in TIME_WAIT.
        accepted.close()
    listener.close()
    assert is_free(HOST, port)


def test_chosen_ports_are_free_different_and_out_of_the_way_of_connections() -> None:
    chosen = choose_free(HOST, 5)
    assert len(set(chosen)) == 5
    assert all(CHOICE_FIRST <= port <= CHOICE_LAST < 32768 for port in chosen)
    assert all(is_free(HOST, port) for port in chosen)


def test_ports_to_avoid_are_never_chosen() -> None:
    avoid = set(range(CHOICE_FIRST, CHOICE_LAST + 1)) - {20011, 20012}
    assert set(choose_free(HOST, 2, avoid)) == {20011, 20012}


def test_asking_for_more_ports_than_there_are_is_refused() -> None:
    with pytest.raises(UsageError, match="no 1 free ports"):
        choose_free(HOST, 1, range(CHOICE_FIRST, CHOICE_LAST + 1))


def test_a_host_of_another_machine_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1 port 20000"):
        is_free("192.0.2.1", 20000)


def test_waiting_ends_when_the_port_gets_free(listener: socket.socket) -> None:
    port = port_of(listener)
    timer = threading.Timer(0.15, listener.close)
    timer.start()
    assert wait_free(HOST, [port], 30.0) == []
    timer.join()


def test_waiting_tells_which_ports_stay_in_use(listener: socket.socket) -> None:
    free = choose_free(HOST, 1)[0]
    assert wait_free(HOST, [free, port_of(listener)], 0.0) == [port_of(listener)]
