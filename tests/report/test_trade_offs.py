"""Accuracy against cost of several methods: the numbers, and whose they are."""

import statistics

import pytest

from fliqs_jax.report import TradeOff, draw_trade_offs, write_trade_offs


def point(series, cost, *accuracies, **fields):
    costs = (cost,) * len(accuracies)
    return TradeOff(series=series, costs=costs, accuracies=accuracies, **fields)


POINTS = [
    point("search", 0.25, 0.80, 0.82, budget=0.25),
    point("search", 0.14, 0.76, 0.78, 0.77, budget=0.14),
    point("random", 0.14, 0.70, 0.74, budget=0.14),
    point("uniform", 0.14, 0.73, note="int3"),
    point("uniform", 0.25, 0.77, note="int4"),
    point("float", 16.0, 0.84, 0.86),
]


def draw(points):
    figure = draw_trade_offs(points, cost="bops", reference="int8")
    (axes,) = figure.axes
    return figure, axes


def test_means_and_deviations_are_drawn_series_by_series():
    _, axes = draw(POINTS)
    drawn = {bars.get_label(): bars for bars in axes.containers}
    assert list(drawn) == ["search", "random", "uniform"]
    line, _, (across, up) = drawn["search"]
    assert line.get_xdata().tolist() == [0.14, 0.25]
    assert line.get_ydata() == pytest.approx([77.0, 81.0])
    low, high = up.get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(statistics.stdev([76, 78, 77]))
    notes = [text.get_text() for text in axes.texts]
    assert {"int3", "int4", "budget 0.14", "budget 0.25"} <= set(notes)


def test_title_and_axes_say_what_is_shown_in_which_unit():
    _, axes = draw(POINTS)
    title = axes.get_title(loc="left")
    assert title.endswith("mean and standard deviation of 1 to 3 runs each")
    assert axes.get_xscale() == "log"
    assert "bit operations, as a fraction of uniform int8" in axes.get_xlabel()
    assert axes.get_ylabel() == "test accuracy (%)"
    assert (
        draw([point("a", 0.1, 0.5)])[1].get_title(loc="left").endswith("one run each")
    )


def test_a_dear_policy_is_a_line_across_named_with_its_cost():
    _, axes = draw(POINTS)
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "float (cost 16)" in names
    assert axes.get_xlim()[1] < 1
    # All that is drawn is in view.
    low, high = axes.get_ylim()
    assert low < 70 and high > 86
    assert draw([POINTS[-1]])[1].get_xlim()[1] > 16  # alone it is a point


def test_twenty_series_are_told_apart_without_colour():
    points = [point(f"method {n}", 0.1, 0.5 + n / 100, budget=0.1) for n in range(20)]
    _, axes = draw(points)
    looks = {
        (line.get_marker(), line.get_markerfacecolor() == "white", line.get_linestyle())
        for line, *_ in axes.containers
    }
    assert len(looks) == 20


def test_symbols_of_one_budget_do_not_cover_each_other():
    points = [point(f"method {n}", 0.1, 0.5, budget=0.1) for n in range(5)]
    figure, axes = draw(points)
    figure.draw_without_rendering()
    places = sorted(
        line.get_transform().transform([(0.1, 50.0)])[0, 0]
        for line, *_ in axes.containers
    )
    inches = [(b - a) / figure.dpi for a, b in zip(places, places[1:], strict=False)]
    assert min(inches) * 72 > 6


def test_errors_of_different_sizes_have_a_logarithmic_axis(tmp_path):
    points = [point("good", 0.1, 0.99, 1.0), point("bad", 0.2, 0.4)]
    _, axes = draw(points)
    assert "logarithmic in the error" in axes.get_ylabel()
    low, high = axes.get_ylim()
    assert low < 40 and 99.99 < high <= 100
    path = write_trade_offs(tmp_path / "a.png", points, cost="size", reference="int8")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="must not be empty"):
        draw([])
    with pytest.raises(ValueError, match="got 2 and 1"):
        TradeOff(series="a", costs=(0.1, 0.2), accuracies=(0.5,))


@pytest.mark.parametrize(
    ("other", "where"),
    [(0.5, "below"), (0.715, "above")],
    ids=["far", "where it would stand"],
)
def test_notes_keep_clear_of_other_symbols(other, where):
    points = [
        point("uniform", 0.14, 0.73, note="int3"),
        point("random", 0.14, other),
        point("wide", 0.28, 0.9),
    ]
    figure, axes = draw(points)
    (note,) = [text for text in axes.texts if text.get_text() == "int3"]
    figure.canvas.draw()
    box = note.get_window_extent()
    marks = axes.transData.transform([(0.14, 73), (0.14, 100 * other)])
    assert not any(box.contains(*mark) for mark in marks)
    assert (box.y1 < marks[0][1]) == (where == "below")
