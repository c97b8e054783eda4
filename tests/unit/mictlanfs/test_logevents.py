import logging

import pytest

from mictlanfs.logevents import Event, log_event

log = logging.getLogger("tests.logevents")


def test_an_event_is_a_record_with_its_name_and_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, log.name)
    log_event(log, "PUT.DATA", bucket_id="b", key="k_0", size=5)
    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert record.msg == Event("PUT.DATA", {"bucket_id": "b", "key": "k_0", "size": 5})
    assert record.getMessage() == "PUT.DATA bucket_id=b key=k_0 size=5"
    assert record.filename == "test_logevents.py"


def test_a_field_may_be_called_as_an_attribute_of_records(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, log.name)
    log_event(log, "PEER.ADDED", name="n", args=(), module="m")
    assert caplog.records[0].getMessage() == "PEER.ADDED name=n args=() module=m"


def test_a_percent_sign_in_a_field_is_no_format(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, log.name)
    log_event(log, "GET.DATA", key="100%s")
    assert caplog.records[0].getMessage() == "GET.DATA key=100%s"


def test_an_event_below_the_level_makes_no_record(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, log.name)
    log_event(log, "GET.DATA", key="k")
    log_event(log, "NO.AVAILABLE.PEERS", level=logging.ERROR)
    assert [record.getMessage() for record in caplog.records] == ["NO.AVAILABLE.PEERS"]
