"""A space of the v4 API in memory with one router, and a client of it."""

import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mictlanfs.v4.client import AsyncClient
from tests.support.v4router import V4Router
from tests.support.v4server import serving, uri_of
from tests.support.v4space import V4Space
from tests.unit.mictlanfs.v4.making import QUICK


@pytest.fixture
def space() -> V4Space:
    """Three peers without records."""
    return V4Space.of(3)


@pytest.fixture
async def router(space: V4Space) -> AsyncIterator[V4Router]:
    router = V4Router(space)
    async with serving(router):
        yield router


@pytest.fixture
async def client(router: V4Router) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(uri_of(router), client_id="tester", retry=QUICK) as client:
        yield client


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """TLS for a server at 127.0.0.1, and the file of the authority that vouches for it."""
    folder = tmp_path_factory.mktemp("tls")
    subject = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"))
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30")
    subprocess.run(
        ["openssl", "req", "-x509", *curve, *subject, *files], check=True, capture_output=True
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context, folder / "cert.pem"
