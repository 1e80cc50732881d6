"""The file of measured latencies: what is read, what is refused, and by which line."""

import dataclasses

import pytest

from fliqs_jax.costs import Contraction, LatencyTable, Measurement

HEADER = (
    "device,op,weight_shape,input_size,output_size,macs,batch_size,weights,"
    "activations,latency_s,repetitions,spread,executed_as,remark"
)
CONV = "chip,conv,3x3x4x6,100,150,5400,8,int8,int8,2.5e-4,30,0.02,s8,"
DENSE = "chip,dense,150x10,150,10,1500,8,e4m3,e4m3,1e-5,30,0.1,,quiet machine"
REFUSED = "chip,dense,150x10,150,10,1500,8,int4,int4,,,,,no int4 unit"


def write(folder, *lines):
    file = folder / "table.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_rows_are_read_as_written(tmp_path):
    table = LatencyTable.load(write(tmp_path, HEADER, CONV, DENSE, REFUSED))
    assert table.device == "chip" and table.batch_sizes == (8,)
    assert table.rows[0] == Measurement(
        contraction=Contraction(
            op="conv",
            weight_shape=(3, 3, 4, 6),
            input_size=100,
            output_size=150,
            macs=5400,
        ),
        batch_size=8,
        weights="int8",
        activations="int8",
        latency_s=2.5e-4,
        repetitions=30,
        spread=0.02,
        executed_as="s8",
    )
    assert table.rows[1].remark == "quiet machine"
    assert (table.rows[2].latency_s, table.rows[2].remark) == (None, "no int4 unit")


def test_saved_table_reads_back_equal(tmp_path):
    table = LatencyTable.load(write(tmp_path, HEADER, CONV, DENSE, REFUSED))
    table.save(tmp_path / "again.csv")
    again = LatencyTable.load(tmp_path / "again.csv")
    assert dataclasses.replace(again, source=table.source) == table


def test_columns_beyond_the_latency_may_be_left_out(tmp_path):
    columns = HEADER.split(",")[:10]
    row = CONV.split(",")[:10]
    table = LatencyTable.load(
        write(tmp_path, ",".join(["note", *columns]), ",".join(["mine", *row]))
    )
    assert (table.rows[0].latency_s, table.rows[0].executed_as) == (2.5e-4, "")


def test_new_rows_replace_those_of_the_same_key(tmp_path):
    table = LatencyTable.load(write(tmp_path, HEADER, CONV, DENSE))
    faster = dataclasses.replace(table.rows[0], latency_s=1e-4)
    assert table.extended([faster]).rows == (faster, table.rows[1])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("chip,conv,3x3x4x6", "3 fields, where the first line names 14"),
        (CONV + ",,", "16 fields, where the first line names 14"),
        (CONV.replace("2.5e-4", "fast"), "latency_s must be a number above 0, got 'f"),
        (CONV.replace("2.5e-4", "0"), "latency_s must be a number above 0, got '0'"),
        (CONV.replace("2.5e-4", "nan"), "latency_s must be a number above 0, got 'n"),
        (CONV.replace("2.5e-4", ""), "latency_s is empty: give the seconds, or say in"),
        (CONV.replace("0.02", "-1"), "spread must be a number of 0 or more, got '-1'"),
        (CONV.replace("5400", "5.4"), "macs must be a whole number above 0, got '5.4'"),
        (CONV.replace("3x3x4x6", "3 3"), "weight_shape must be like 3x3x16x32, got"),
        (CONV.replace(",int8,int8", ",int8,int99"), "unknown format 'int99'"),
        (CONV.replace("chip", "board"), "device 'board' is another than 'chip': one"),
        (DENSE.replace("1e-5", "2e-5"), "measures what line 2 does: keep one"),
        (CONV.replace("conv", ""), "op is empty"),
    ],
)
def test_malformed_line_is_named_by_number(line, message, tmp_path):
    with pytest.raises(ValueError) as error:
        LatencyTable.load(write(tmp_path, HEADER, DENSE, line))
    assert f"table.csv, line 3: {message}" in str(error.value)


def test_missing_columns_are_named(tmp_path):
    lines = [x.replace("macs,", "").replace("op,", "") for x in (HEADER,)]
    with pytest.raises(ValueError, match=r"lacks the columns op, macs: its first line"):
        LatencyTable.load(write(tmp_path, *lines))


def test_empty_file_and_table_without_a_latency_are_refused(tmp_path):
    with pytest.raises(ValueError, match="lacks the columns device, op"):
        LatencyTable.load(write(tmp_path))
    with pytest.raises(ValueError, match="has no measured row"):
        LatencyTable.load(write(tmp_path, HEADER, REFUSED))
    with pytest.raises(FileNotFoundError):
        LatencyTable.load(tmp_path / "nowhere.csv")
