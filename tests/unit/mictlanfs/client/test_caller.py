import os

from mictlanfs.client.caller import Caller


def test_the_caller_is_the_user_of_the_process_and_its_umask_stays() -> None:
    before = os.umask(0o027)
    try:
        assert Caller.of_process() == Caller(os.geteuid(), os.getegid(), 0o027)
        assert Caller.of_process().umask == 0o027
    finally:
        os.umask(before)
