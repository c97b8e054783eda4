import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Chunk, InodeNumber, SessionId
from mictlanfs_server.metadata import apply
from tests.unit.server.metadata.space import Space, new_chunk


def errors(answer: wire.CommitAnswer) -> list[str | None]:
    return [result.error.kind if result.error else None for result in answer.results]


def refusal_of(space: Space, batch: wire.Commit) -> Kind | None:
    try:
        space.commit(batch)
    except MictlanError as error:
        return error.kind
    return None


def test_operations_of_a_batch_are_applied_in_order(space: Space, bucket: InodeNumber) -> None:
    make = space.make_op(bucket, b"a")
    answer = space.commit(
        space.batch(
            make,
            space.rename_op(bucket, b"a", bucket, b"b"),
            wire.SetAttributes(make.ino, 7, mode=0o600),
            wire.Unlink(bucket, b"b", 8),
            space.make_op(bucket, b"c"),
        )
    )
    assert errors(answer) == [None] * 5
    assert set(space.names(bucket)) == {b"c"}
    assert answer.results[2].touched[0].mode == 0o600
    # Each result shows its own moment, not the end of the batch.
    assert [result.touched[-1].size for result in answer.results[:2]] == [1, 1]
    assert answer.results[3].touched[0].nlink == 0


def test_failed_operation_leaves_no_trace_and_the_others_count(
    space: Space, bucket: InodeNumber
) -> None:
    file = space.make(bucket, b"file")
    before = space.attributes(bucket)
    chunk = new_chunk(10)
    bad_write = wire.WriteExtents(file, (), (chunk, Chunk(chunk.id, 5, b"", ())), 0, 1)
    answer = space.commit(
        space.batch(space.make_op(bucket, b"file"), bad_write, space.make_op(bucket, b"more"))
    )
    assert errors(answer) == ["exists", "invalid", None]
    assert space.references(chunk) is None
    assert space.attributes(bucket).version == before.version + 1


def test_stop_on_error_ends_the_batch_at_the_failure(space: Space, bucket: InodeNumber) -> None:
    ops = (
        space.make_op(bucket, b"one"),
        space.make_op(bucket, b"one"),
        space.make_op(bucket, b"two"),
    )
    answer = space.commit(space.batch(*ops, stop_on_error=True))
    assert errors(answer) == [None, "exists"]
    assert set(space.names(bucket)) == {b"one"}
    # The numbers go on behind the last result.
    assert errors(space.commit(space.batch(ops[2]))) == [None]


def test_batch_stopped_by_an_error_is_answered_again_from_its_record(
    space: Space, bucket: InodeNumber
) -> None:
    ops = (space.make_op(bucket, b"one"), space.make_op(bucket, b"one"), wire.Release(bucket))
    batch = space.batch(*ops, stop_on_error=True)
    assert space.commit(batch) == space.commit(batch)


def test_repeated_batch_gets_the_recorded_answer_and_no_effect(
    space: Space, bucket: InodeNumber
) -> None:
    batch = space.batch(space.make_op(bucket, b"file"), space.make_op(bucket, b"file"))
    first = space.commit(batch)
    # What it would answer now differs: the file has gone.
    other = space.open_session("other")
    space.do(wire.Unlink(bucket, b"file", 9), session=other)
    assert space.commit(batch) == first
    assert space.names(bucket) == {}


def test_only_the_last_batch_can_be_repeated(space: Space, bucket: InodeNumber) -> None:
    old = space.batch(space.make_op(bucket, b"one"))
    space.commit(old)
    space.commit(space.batch(space.make_op(bucket, b"two")))
    assert refusal_of(space, old) is Kind.CONFLICT


def test_gap_in_the_numbers_is_a_conflict(space: Space, bucket: InodeNumber) -> None:
    number = space.batch().first_number
    for wrong in (number + 1, 0, -1, number + 100):
        batch = space.batch(space.make_op(bucket, b"x"), first_number=wrong)
        assert refusal_of(space, batch) is Kind.CONFLICT
    assert space.names(bucket) == {}


def test_repeated_number_with_other_operations_is_a_conflict(
    space: Space, bucket: InodeNumber
) -> None:
    first = space.batch(space.make_op(bucket, b"one"))
    space.commit(first)
    longer = space.batch(*first.ops, space.make_op(bucket, b"two"), first_number=first.first_number)
    assert refusal_of(space, longer) is Kind.CONFLICT


def test_first_batch_of_a_session_has_number_one(space: Space, bucket: InodeNumber) -> None:
    session = space.open_session("new")
    op = space.make_op(bucket, b"x")
    assert refusal_of(space, space.batch(op, session=session, first_number=0)) is Kind.CONFLICT
    assert refusal_of(space, space.batch(op, session=session, first_number=1)) is None


def test_empty_batch_is_answered_and_not_recorded(space: Space, bucket: InodeNumber) -> None:
    batch = space.batch(space.make_op(bucket, b"one"))
    first = space.commit(batch)
    assert space.commit(space.batch()).results == ()
    # Still the last batch.
    assert space.commit(batch) == first
    assert space.commit(space.batch(space.make_op(bucket, b"two"))).results[0].error is None


def test_session_unknown_ended_or_of_another_epoch_is_fenced(
    space: Space, bucket: InodeNumber
) -> None:
    good = space.batch(space.make_op(bucket, b"x"))
    for session, epoch in ((SessionId("unknown"), good.epoch), (good.session, good.epoch - 1)):
        batch = wire.Commit(session, epoch, 1, good.ops, False)
        assert refusal_of(space, batch) is Kind.FENCED
    space.close_session(good.session)
    assert refusal_of(space, good) is Kind.FENCED
    assert space.names(bucket) == {}


def test_batch_has_at_most_so_many_operations(space: Space) -> None:
    release = wire.Release(InodeNumber(1))
    fits = space.batch(*[release] * wire.BATCH_OPS_MAX)
    assert refusal_of(space, space.batch(*fits.ops, release)) is Kind.INVALID
    assert refusal_of(space, fits) is None


def test_epochs_of_sessions_are_never_the_same(space: Space) -> None:
    epochs = [space.batch(session=space.open_session(f"s{n}")).epoch for n in range(3)]
    for name in ("s0", "s1", "s2"):
        space.close_session(SessionId(name))
    epochs.append(space.batch(session=space.open_session("again")).epoch)
    assert epochs == sorted(set(epochs))


def test_closing_a_session_twice_is_no_error(space: Space) -> None:
    space.close_session(space.session)
    space.close_session(space.session)
    space.close_session(SessionId("unknown"))


def test_inode_numbers_are_handed_out_once(space: Space) -> None:
    ranges = [apply.take_inodes(space.rows, count) for count in (1, 10, 5)]
    starts = [taken.first for taken in ranges]
    assert starts[1:] == [ranges[0].first + 1, ranges[0].first + 11]


@pytest.mark.parametrize("count", [0, -1, apply.INODES_TAKEN_MAX + 1, 2**70])
def test_unreasonable_count_of_inode_numbers_is_invalid(space: Space, count: int) -> None:
    before = space.rows.counter("next_ino")
    with pytest.raises(MictlanError) as raised:
        apply.take_inodes(space.rows, count)
    assert raised.value.kind is Kind.INVALID
    assert space.rows.counter("next_ino") == before


def test_every_operation_of_the_protocol_can_be_applied() -> None:
    assert set(apply.APPLIED) == set(wire.Operation.__args__)
