"""Loss and error against K: the numbers, whose they are, and where the reference is."""

import statistics

import pytest

from fliqs_jax.report import (
    CodebookPoint,
    draw_codebook_trade_off,
    write_codebook_trade_off,
)

POINTS = [
    CodebookPoint(series="LC", size=4, losses=(0.01, 0.03), errors=(0.02, 0.03)),
    CodebookPoint(series="LC", size=2, losses=(0.2, 0.4), errors=(0.04, 0.08)),
    CodebookPoint(series="direct", size=2, losses=(2.0,), errors=(0.5,)),
]
REFERENCE = {"reference_loss": 0.005, "reference_error": 0.019}


def test_means_and_deviations_are_drawn_by_ascending_k():
    loss, error = draw_codebook_trade_off(POINTS, **REFERENCE).axes
    for axes, means, spread in (
        (loss, [0.3, 0.02], statistics.stdev([0.2, 0.4])),
        (error, [6.0, 2.5], statistics.stdev([4.0, 8.0])),
    ):
        drawn = {bars.get_label(): bars for bars in axes.containers}
        assert list(drawn) == ["LC", "direct"]
        line, _, (bars,) = drawn["LC"]
        assert line.get_xdata().tolist() == [2, 4]
        assert line.get_ydata() == pytest.approx(means)
        low, high = bars.get_segments()[0][:, 1]
        assert (high - low) / 2 == pytest.approx(spread)


def test_axes_name_quantity_and_unit_and_the_reference():
    figure = draw_codebook_trade_off(POINTS, **REFERENCE)
    loss, error = figure.axes
    assert loss.get_ylabel().startswith("loss (nats)")
    assert error.get_ylabel().startswith("error (%)")
    assert [tick.get_text() for tick in loss.get_xticklabels()] == ["2", "4"]
    reference = next(line for line in error.lines if "reference" in line.get_label())
    assert reference.get_ydata()[0] == pytest.approx(1.9)


@pytest.mark.parametrize("span", [(0.65, 1.1), (0.9, 0.95), (0.2, 3.0), (1e-5, 2.0)])
def test_an_axis_of_any_span_has_ticks_to_read(span):
    points = [
        CodebookPoint(series="LC", size=size, losses=(loss,), errors=(loss / 10,))
        for size, loss in zip((2, 4), span, strict=True)
    ]
    own = {"reference_loss": span[0], "reference_error": span[0] / 10}
    for axes in draw_codebook_trade_off(points, **own).axes:
        low, high = axes.get_ylim()
        ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
        assert 3 <= len(ticks) <= 12


def test_picture_is_written(tmp_path):
    path = write_codebook_trade_off(tmp_path / "a.png", POINTS, **REFERENCE)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="must not be empty"):
        draw_codebook_trade_off([], **REFERENCE)
    with pytest.raises(ValueError, match="got 2 and 1"):
        CodebookPoint(series="a", size=2, losses=(1.0, 2.0), errors=(0.1,))
