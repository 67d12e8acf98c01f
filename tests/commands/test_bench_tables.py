"""The tables of ``medmambase-bench`` explain their columns."""

import pytest

from medmambase.commands import bench_tables


def test_every_column_whose_title_does_not_say_it_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    columns = (*bench_tables.COLUMNS, *bench_tables.NETWORK_COLUMNS)
    plain = {"operator", "batch", "dtype", "model", "size"}
    assert {field for _, field, _, _ in columns} == bench_tables.MEANINGS.keys() | plain
    bench_tables.print_meanings(bench_tables.COLUMNS, {"", "cpu"})
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == ["", "map", "pass", "ms", "spread", "n", "GFLOP/s", "peak%"]
