from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.errors import UsageError
from mictlanfs.uri import (
    API_VERSION_DEFAULT,
    EXAMPLE,
    SCHEME,
    ServerAddress,
    build,
    parse_peers,
    parse_routers,
)
from tests.support.strategies import addresses


@given(addresses())
def test_what_is_built_is_parsed_the_same(servers: tuple[ServerAddress, ...]) -> None:
    assert parse_routers(build(servers)) == servers
    assert parse_peers(build(servers)) == servers


@given(st.text(max_size=60))
def test_anything_else_is_a_usage_error_and_nothing_worse(text: str) -> None:
    for attempt in (text, SCHEME + text):
        with suppress(UsageError):
            assert parse_routers(attempt)


def test_the_example_in_messages_is_a_uri() -> None:
    assert parse_routers(EXAMPLE) == (ServerAddress("mictlanx-router-0", "127.0.0.1", 60666),)


# --- the table of the reference, row by row ------------------------------------------------------


def test_without_a_protocol_routers_use_https_and_peers_http() -> None:
    text = "mictlanx://r@h:1/"
    assert [server.protocol for server in parse_routers(text)] == ["https"]
    assert [server.protocol for server in parse_peers(text)] == ["http"]


def test_without_an_api_version_it_is_four() -> None:
    assert API_VERSION_DEFAULT == 4
    assert parse_routers("mictlanx://r@h:1")[0].api_version == 4
    assert parse_routers("mictlanx://r@h:1/?api_version=3")[0].api_version == 3


@pytest.mark.parametrize("value", ["1", "true", "yes", "on", "TRUE", "Yes", "oN"])
def test_http2_is_true_for_the_four_words_in_any_case(value: str) -> None:
    assert parse_routers(f"mictlanx://r@h:1/?http2={value}")[0].http2


@pytest.mark.parametrize("value", ["0", "false", "no", "off", "", "2", "maybe"])
def test_http2_is_false_for_anything_else(value: str) -> None:
    assert not parse_routers(f"mictlanx://r@h:1/?http2={value}")[0].http2


def test_http2_is_false_when_it_is_not_there() -> None:
    assert not parse_routers("mictlanx://r@h:1")[0].http2


@pytest.mark.parametrize("specs", ["r@h:1,", ",r@h:1", ",,r@h:1,,", " r@h:1 , ", "r@h:1/,"])
def test_empty_specs_are_ignored_while_one_remains(specs: str) -> None:
    (server,) = parse_routers(f"mictlanx://{specs}/?protocol=http")
    assert (server.id, server.host, server.port) == ("r", "h", 1)


@pytest.mark.parametrize("rest", ["", "/", ",", " , ", "?protocol=http", "/?protocol=http"])
def test_no_spec_at_all_is_an_error(rest: str) -> None:
    with pytest.raises(UsageError, match="names no server"):
        parse_routers(SCHEME + rest)


@pytest.mark.parametrize("spec", ["h", "r@h", "r@", "[::1]", "r@[::1]"])
def test_no_port_is_an_error(spec: str) -> None:
    with pytest.raises(UsageError, match="needs a host and a port"):
        parse_routers(SCHEME + spec)


@pytest.mark.parametrize("port", ["x", "", "0", "65536", "-1", "1.5", "٣", "1 0"])
def test_a_port_that_is_no_number_from_1_to_65535_is_an_error(port: str) -> None:
    with pytest.raises(UsageError, match="is not a number from 1 to 65535"):
        parse_routers(f"mictlanx://r@h:{port}")


@pytest.mark.parametrize("port", [1, 60666, 65535])
def test_every_other_port_is_taken(port: int) -> None:
    assert parse_routers(f"mictlanx://r@h:{port}")[0].port == port


def test_no_id_is_none_and_the_id_ends_at_the_first_at_sign() -> None:
    assert parse_routers("mictlanx://h:1")[0].id is None
    assert parse_routers("mictlanx://@h:1")[0].id is None
    (server,) = parse_routers("mictlanx://a@b@h:1")
    assert (server.id, server.host) == ("a", "b@h")


def test_a_path_before_the_port_stays_in_the_host() -> None:
    (server,) = parse_routers("mictlanx://r@host/path:443")
    assert (server.host, server.port) == ("host/path", 443)


def test_an_ipv6_address_without_brackets_ends_at_the_last_colon() -> None:
    (server,) = parse_routers("mictlanx://r@::1:60666/?protocol=http")
    assert (server.host, server.port) == ("::1", 60666)


def test_the_url_of_an_ipv6_address_has_brackets_however_it_was_written() -> None:
    for host in ("::1", "[::1]"):
        (server,) = parse_routers(f"mictlanx://{host}:1/?protocol=http")
        assert server.base_url == "http://[::1]:1"


def test_a_slash_does_not_separate_the_query() -> None:
    with pytest.raises(UsageError):
        parse_routers("mictlanx://r@h:1/protocol=http")
    assert parse_routers("mictlanx://r@h:1?protocol=http")[0].protocol == "http"


def test_a_second_question_mark_belongs_to_the_query() -> None:
    assert parse_routers("mictlanx://r@h:1/?protocol=http&x=?")[0].protocol == "http"


def test_the_query_applies_to_all_routers() -> None:
    servers = parse_routers("mictlanx://a@h:1,b@i:2/?protocol=http&api_version=4&http2=1")
    assert [(s.id, s.protocol, s.http2) for s in servers] == [
        ("a", "http", True),
        ("b", "http", True),
    ]


@pytest.mark.parametrize("text", ["", "MICTLANX://r@h:1", "http://h:1", " mictlanx://r@h:1"])
def test_the_prefix_is_compared_literally(text: str) -> None:
    with pytest.raises(UsageError, match="is not a space"):
        parse_routers(text)


def test_the_base_url_keeps_the_port_for_https_too() -> None:
    assert parse_routers("mictlanx://r@h:60666")[0].base_url == "https://h:60666"


def test_build_takes_the_query_of_the_first_and_leaves_out_missing_ids() -> None:
    servers = (ServerAddress("a", "h", 1, "http", 4, http2=True), ServerAddress(None, "i", 2))
    assert build(servers) == "mictlanx://a@h:1,i:2/?protocol=http&api_version=4&http2=1"


def test_an_empty_list_builds_the_bare_prefix() -> None:
    assert build(()) == "mictlanx://"


# --- where we are stricter than the original -----------------------------------------------------


def test_an_unknown_protocol_is_an_error() -> None:
    with pytest.raises(UsageError, match="neither http nor https"):
        parse_routers("mictlanx://r@h:1/?protocol=ftp")


@pytest.mark.parametrize("version", ["x", "-1", "4.0", "٤"])
def test_an_api_version_that_is_no_number_is_an_error(version: str) -> None:
    with pytest.raises(UsageError, match="is not a number"):
        parse_routers(f"mictlanx://r@h:1/?api_version={version}")


def test_an_empty_value_is_the_default_and_unknown_names_are_ignored() -> None:
    (server,) = parse_routers("mictlanx://r@h:1/?protocol=&api_version=&color=blue&&x")
    assert (server.protocol, server.api_version) == ("https", 4)
