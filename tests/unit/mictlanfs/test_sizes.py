import pytest

from mictlanfs.sizes import parse_decimal_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("10 bytes", 10),
        ("1B", 1),
        ("1k", 1000),
        ("256kb", 256_000),
        ("10mb", 10_000_000),
        ("1MB", 1_000_000),
        ("1GB", 1_000_000_000),
        ("1.1GB", 1_100_000_000),
        ("1.5 kilobytes", 1500),
        ("2 TB", 2 * 10**12),
        ("1PB", 10**15),
        ("1KiB", 1024),
        ("10MiB", 10 * 1024**2),
        ("0.5 gibibytes", 1024**3 // 2),
        (" 7 ", 7),
        ("0.0019KB", 1),
    ],
)
def test_sizes_are_decimal_unless_the_unit_says_binary(text: str, size: int) -> None:
    assert parse_decimal_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "kb", "-1", "1,5MB", "1e3", "1 zb", "1kbb", "1 M B", "٣MB", "inf"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_decimal_size(text)
