"""FUSE_INIT: what libfuse and the kernel get of each other's messages."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from mictlanfs_mount.handshake import FUSE_HANDLE_KILLPRIV_V2, Handshake

FUSE_INIT = 26
FUSE_GETATTR = 3
OTHER_FLAGS = 0b1011
UNIQUE = 2


def request(flags: int, operation: int = FUSE_INIT) -> bytes:
    header = struct.pack("=IIQQIIII", 104, operation, UNIQUE, 0, 0, 0, 0, 0)
    return header + struct.pack("=IIII", 7, 45, 131072, flags) + bytes(48)


def answer(flags: int, error: int = 0) -> bytes:
    if error:
        return struct.pack("=IiQ", 16, error, UNIQUE)
    body = struct.pack("=IIIIHHI", 7, 38, 131072, flags, 12, 9, 1048576) + bytes(36)
    return struct.pack("=IiQ", 16 + len(body), 0, UNIQUE) + body


class Scene:
    """The kernel at one end of a socket, libfuse's descriptor as the other."""

    def __init__(self) -> None:
        self.kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.settimeout(5)
        self.descriptor = device.detach()
        self.granted = 0
        self.handshake = Handshake(self._grant)

    def _grant(self) -> None:
        self.granted += 1

    def close(self) -> None:
        self.kernel.close()
        os.close(self.descriptor)


@pytest.fixture
def scene() -> Iterator[Scene]:
    before = os.listdir("/proc/self/fd")
    scene = Scene()
    yield scene
    scene.close()
    assert os.listdir("/proc/self/fd") == before


def test_the_flag_that_the_kernel_offers_is_in_the_answer(scene: Scene) -> None:
    offered = request(OTHER_FLAGS | FUSE_HANDLE_KILLPRIV_V2)
    scene.kernel.send(offered)
    assert scene.handshake.offer(scene.descriptor)
    assert os.read(scene.descriptor, 9000) == offered
    os.write(scene.descriptor, answer(OTHER_FLAGS))
    assert scene.granted == 0
    scene.handshake.finish(scene.descriptor)
    assert scene.kernel.recv(9000) == answer(OTHER_FLAGS | FUSE_HANDLE_KILLPRIV_V2)
    assert scene.granted == 1
    assert not os.get_inheritable(scene.descriptor)


def test_everything_after_it_goes_to_and_from_the_device(scene: Scene) -> None:
    scene.kernel.send(request(FUSE_HANDLE_KILLPRIV_V2))
    scene.handshake.offer(scene.descriptor)
    os.read(scene.descriptor, 9000)
    os.write(scene.descriptor, answer(0))
    scene.handshake.finish(scene.descriptor)
    scene.kernel.recv(9000)
    scene.kernel.send(b"another request")
    assert os.read(scene.descriptor, 9000) == b"another request"
    os.write(scene.descriptor, b"its answer")
    assert scene.kernel.recv(9000) == b"its answer"


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        # A kernel that does not know the flag.
        (request(OTHER_FLAGS), answer(OTHER_FLAGS)),
        # Something else comes first.
        (request(FUSE_HANDLE_KILLPRIV_V2, FUSE_GETATTR), answer(OTHER_FLAGS)),
        # libfuse and the kernel do not fit together.
        (request(FUSE_HANDLE_KILLPRIV_V2), answer(0, error=-71)),
    ],
)
def test_whatever_is_not_as_expected_is_passed_on_as_it_is(
    scene: Scene, asked: bytes, answered: bytes
) -> None:
    scene.kernel.send(asked)
    assert scene.handshake.offer(scene.descriptor)
    assert os.read(scene.descriptor, 9000) == asked
    os.write(scene.descriptor, answered)
    scene.handshake.finish(scene.descriptor)
    assert scene.kernel.recv(9000) == answered
    assert scene.granted == 0


def test_an_answer_that_the_kernel_refuses_is_given_without_the_flag(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []

    def write(descriptor: int, data: bytes) -> int:
        written.append(bytes(data))
        if len(written) == 1:
            raise OSError(22, "Invalid argument")
        return len(data)

    scene.kernel.send(request(FUSE_HANDLE_KILLPRIV_V2))
    scene.handshake.offer(scene.descriptor)
    os.read(scene.descriptor, 9000)
    os.write(scene.descriptor, answer(OTHER_FLAGS))
    monkeypatch.setattr("mictlanfs_mount.handshake.os.write", write)
    scene.handshake.finish(scene.descriptor)
    assert written == [answer(OTHER_FLAGS | FUSE_HANDLE_KILLPRIV_V2), answer(OTHER_FLAGS)]
    assert scene.granted == 0


def test_a_kernel_that_does_not_begin_is_left_alone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mictlanfs_mount.handshake._WAIT_MS", 1)
    assert not scene.handshake.offer(scene.descriptor)
    scene.handshake.finish(scene.descriptor)
    scene.kernel.send(b"late")
    assert os.read(scene.descriptor, 9000) == b"late"


def test_without_a_free_descriptor_the_request_is_left_to_libfuse(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def socketpair(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("mictlanfs_mount.handshake.socket.socketpair", socketpair)
    asked = request(FUSE_HANDLE_KILLPRIV_V2)
    scene.kernel.send(asked)
    assert not scene.handshake.offer(scene.descriptor)
    scene.handshake.finish(scene.descriptor)
    assert os.read(scene.descriptor, 9000) == asked


def test_a_device_that_takes_no_answer_is_told_of_and_let_go(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> int:
        raise OSError(19, "No such device")

    scene.kernel.send(request(FUSE_HANDLE_KILLPRIV_V2))
    scene.handshake.offer(scene.descriptor)
    os.read(scene.descriptor, 9000)
    os.write(scene.descriptor, answer(0))
    monkeypatch.setattr("mictlanfs_mount.handshake.os.write", write)
    with pytest.raises(OSError, match="No such device"):
        scene.handshake.finish(scene.descriptor)
