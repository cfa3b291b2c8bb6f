from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svision_dask.errors import UsageError
from svision_dask.running.arguments import parse_box, parse_lengths, parse_numbers, parse_size, parse_tolerance

NO_NUMBERS = ["", "two", "nan", "inf", "-inf", "1e999", "1,,2", "2,", "1,two", "z=", "z=two", "z=nan"]
NO_NAMES = ["z=1,2", "z=1,z=2", "z=1, z=2", "=2", "z=1,,x=2"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2),
        (" 0.5 ", 0.5),
        ("-1", -1),
        ("1,2,4", (1, 2, 4)),
        ("1, 2.5", (1, 2.5)),
        ("z=1,y=2", {"z": 1, "y": 2}),
        (" z = 1 , x = 4", {"z": 1, "x": 4}),
    ],
)
def test_numbers_come_alone_in_order_or_by_name(text, value):
    assert parse_numbers(text, option="--factor") == value


@given(st.dictionaries(st.sampled_from("tczyx"), st.integers(-(10**9), 10**9), min_size=1))
def test_named_numbers_are_read_back_as_they_were_written(named):
    text = ",".join(f"{axis}={value}" for axis, value in named.items())
    assert parse_numbers(text, option="--factor") == named


def test_a_whole_number_is_an_integer_however_it_is_written():
    assert isinstance(parse_numbers("2.0", option="--factor"), int)


@pytest.mark.parametrize("text", NO_NUMBERS + NO_NAMES)
def test_what_is_no_number_or_no_list_of_names_is_refused_with_the_option_and_an_example(text):
    with pytest.raises(UsageError, match=r"^--spacing .*(Use --spacing|give each axis once, as axis=value)"):
        parse_numbers(text, option="--spacing")


@pytest.mark.parametrize(
    ("text", "axes", "lengths"),
    [
        ("64", "zyx", {"z": 64, "y": 64, "x": 64}),
        ("8,16,32", "tczyx", {"z": 8, "y": 16, "x": 32}),
        ("16,32", "cyx", {"y": 16, "x": 32}),
        ("y=7", "zyx", {"y": 7}),
    ],
)
def test_lengths_are_for_the_spatial_axes(text, axes, lengths):
    assert parse_lengths(text, axes, option="--tile") == lengths


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "1,2", "1,2,3,4", "z=0", "t=1", "q=1", "yx=4"])
def test_lengths_that_are_not_whole_positive_or_spatial_are_refused(text):
    with pytest.raises(UsageError, match=r"^--tile .*z,y,x"):
        parse_lengths(text, "tzyx", option="--tile")


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("0:5,10:20,30:40", {"z": slice(0, 5), "y": slice(10, 20), "x": slice(30, 40)}),
        (" 1 : 2 ,:,3:", {"z": slice(1, 2), "y": slice(None), "x": slice(3, None)}),
        ("y=0:256", {"y": slice(0, 256)}),
        ("x=:9, z=1:", {"x": slice(None, 9), "z": slice(1, None)}),
    ],
)
def test_a_box_has_start_and_stop_in_order_or_by_name(text, box):
    assert parse_box(text, "czyx", option="--sample") == box


@pytest.mark.parametrize(
    "text", ["", "5", "0:5", "0:5,0:5", "0:5,0:5,5", "-1:5,:,:", "a:b,:,:", "z=5", "z=1:2:3", "z=²:"]
)
def test_what_is_no_box_is_refused(text):
    with pytest.raises(UsageError, match=r"^--sample .*give start:stop"):
        parse_box(text, "zyx", option="--sample")


def test_an_axis_is_given_once_in_a_box():
    with pytest.raises(UsageError, match="each axis once"):
        parse_box("z=0:1,z=1:2", "zyx", option="--sample")


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000000", 10**6), ("1MB", 10**6), ("512MiB", 512 * 2**20), ("2 GB", 2 * 10**9), ("1.5kb", 1500), ("1e3", 1000)],
)
def test_sizes_are_bytes_with_decimal_or_binary_units(text, size):
    assert parse_size(text, option="--memory") == size


@pytest.mark.parametrize("text", ["", "GB", "0", "-1GB", "lots", "2 apples", "nan", "inf", "1e999", "0.1"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match=r"^--memory .*not a size\. Use --memory 512MiB"):
        parse_size(text, option="--memory")


def test_a_tolerance_is_a_share_of_the_range_or_exact():
    assert parse_tolerance("1e-4", option="--halo") == 1e-4
    assert parse_tolerance("exact", option="--halo") == 0


@pytest.mark.parametrize("text", ["0", "1", "-0.1", "2", "nan", "exactly"])
def test_other_tolerances_are_refused(text):
    with pytest.raises(UsageError, match=r"^--halo"):
        parse_tolerance(text, option="--halo")
