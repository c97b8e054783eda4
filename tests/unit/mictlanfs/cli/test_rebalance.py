import json

from mictlanfs.wirecopies import StartUpkeep
from tests.support.fakespace import FakeSpace
from tests.unit.mictlanfs.cli.conftest import Run
from tests.unit.mictlanfs.cli.test_status import HEALTHY


def test_rebalance_waits_for_its_end_or_not(cli: Run, space: FakeSpace) -> None:
    space.router.status = HEALTHY
    assert cli("rebalance").text == "every chunk is in its place\n"
    assert cli("rebalance", "--no-wait").text == ""
    assert json.loads(cli("rebalance", "--json").text)["moved_count"] == 0
    assert cli("rebalance", "--cancel").code == 0
    assert space.router.upkeep[0] == StartUpkeep(rebalance=True)
    assert space.router.upkeep[-1] == StartUpkeep(cancel=True)
