from mictlanfs_server.peer.buffers import BUFFER_SIZE_BYTES, IDLE_MAX, BufferPool


def test_a_buffer_is_used_again_after_its_upload() -> None:
    pool = BufferPool()
    with pool.lend() as lent:
        first = lent.take()
        first[0] = 7
        assert len(first) == BUFFER_SIZE_BYTES
        assert pool.idle_count == 0
    assert pool.idle_count == 1
    with pool.lend() as lent:
        assert lent.take() is first
        assert pool.idle_count == 0


def test_no_buffer_is_lent_twice_at_a_time() -> None:
    pool = BufferPool()
    with pool.lend() as one, pool.lend() as other:
        buffers = [one.take(), other.take(), one.take()]
        assert len({id(buffer) for buffer in buffers}) == 3
    assert pool.idle_count == 3


def test_buffers_come_back_after_an_error() -> None:
    pool = BufferPool()
    try:
        with pool.lend() as lent:
            lent.take()
            raise ValueError
    except ValueError:
        pass
    assert pool.idle_count == 1


def test_only_so_many_idle_buffers_are_kept() -> None:
    pool = BufferPool()
    with pool.lend() as lent:
        for _ in range(IDLE_MAX + 5):
            lent.take()
    assert pool.idle_count == IDLE_MAX
    with pool.lend() as lent:
        lent.take()
    assert pool.idle_count == IDLE_MAX
