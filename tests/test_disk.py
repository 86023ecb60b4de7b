"""Files by the numbers in their names."""

from __future__ import annotations

from pathlib import Path

from adpa_cli.disk import numbered


def test_a_millionth_block_comes_after_those_before_it(tmp_path: Path) -> None:
    for number in (1_000_000, 999_999, 7, 12_345_678):
        (tmp_path / f"_aligned-{number:06d}.block").touch()
    (tmp_path / "_reference-000001.block").touch()
    found = [int(path.stem.partition("-")[2]) for path in numbered(tmp_path, "_aligned-*.block")]
    assert found == [7, 999_999, 1_000_000, 12_345_678]
