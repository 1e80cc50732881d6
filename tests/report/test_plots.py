"""Every figure can be read by itself, and shows the numbers that it was given."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest

from fliqs_jax.report import (
    draw_accuracy_cost,
    draw_expected_bits,
    draw_formats,
    draw_probabilities,
    draw_search,
    draw_training,
    read_run,
    style,
)
from fliqs_jax.report.records import Phases, ProbabilityTrace

CURVES = (draw_accuracy_cost, draw_formats, draw_search, draw_training)
SEARCH_ONLY = (draw_expected_bits, draw_probabilities, draw_search)


@pytest.fixture
def run(make_run):
    return read_run(make_run(steps=200))


def with_probabilities(run, values, options, phases=None):
    trace = ProbabilityTrace(np.arange(len(values)) * 10, np.array(values, float))
    config = dataclasses.replace(run.config, options=options, phases=phases)
    return dataclasses.replace(run, config=config, probabilities=trace)


@pytest.mark.parametrize("draw", CURVES)
def test_every_panel_has_title_labels_and_legend(run, draw):
    for axes in draw(run).axes:
        assert axes.get_title(loc="left")
        assert axes.get_xlabel()
        assert axes.get_legend().get_texts()
        assert axes.get_ylabel() or draw is draw_formats  # there, site names label rows


def test_maps_name_decisions_options_and_steps(run):
    main, bar = draw_expected_bits(run).axes
    assert main.get_title(loc="left") and main.get_xlabel() == "training step"
    assert [t.get_text() for t in main.get_yticklabels()][-1] == "Dense_0"
    assert bar.get_ylabel() == "expected bits"
    panels = draw_probabilities(run).axes
    assert [a.get_title(loc="left") for a in panels] == list(run.config.decisions)
    assert [t.get_text() for t in panels[0].get_yticklabels()] == list(
        run.config.options
    )


def test_bars_are_as_long_as_the_formats_have_bits(run):
    left, right = draw_formats(run).axes
    widths = [bar.get_width() for bar in left.patches]
    count = len(run.config.sites)
    first = [int(run.policy[s.path][0].removeprefix("int")) for s in run.config.sites]
    assert widths[:count] == first
    assert sum(bar.get_width() for bar in right.patches) == pytest.approx(200)  # %


def test_expected_bits_are_the_mean_over_options(run):
    values = [[[0.5, 0.5], [1.0, 0.0]], [[0.25, 0.75], [0.0, 1.0]]]
    figure = draw_expected_bits(with_probabilities(run, values, ("int2", "int8")))
    picture = figure.axes[0].images[0].get_array()
    assert picture[:, 0].tolist() == [5.0, 2.0]
    assert picture[:, -1].tolist() == [6.5, 8.0]


def test_options_of_equal_bits_show_the_largest_probability(run):
    values = [[[0.5, 0.5]], [[0.1, 0.9]]]
    figure = draw_expected_bits(with_probabilities(run, values, ("e4m3", "e5m2")))
    assert figure.axes[0].images[0].get_array()[0, -1] == 0.9
    assert figure.axes[1].get_ylabel() == "largest probability"


def test_dot_marks_the_step_of_the_last_change_of_mind(run):
    # Equal, ahead, behind, ahead for good from step 30.
    values = [[[p, 1 - p]] for p in (0.5, 0.6, 0.4, 0.7, 0.9)]
    figure = draw_expected_bits(with_probabilities(run, values, ("int2", "int8")))
    assert figure.axes[0].lines[0].get_xdata() == [30]


def test_policy_that_left_the_most_probable_option_is_shown(run):
    values = [[[0.5, 0.5], [0.5, 0.5]], [[0.4, 0.6], [0.9, 0.1]]]
    policy = {"Conv_0": ("int2", "int2"), "ResidualBlock_0/Conv_0": ("int2", "uint2")}
    held = with_probabilities(run, values, ("int2", "int8"))
    figure = draw_expected_bits(dataclasses.replace(held, policy=policy))
    right = figure.axes[0].child_axes[0]
    labels = [text.get_text() for text in right.get_yticklabels()]
    assert labels == ["int8 → int2", "int2"]


def test_opacity_of_a_strip_is_the_probability(run):
    values = [[[0.2, 0.8]], [[0.0, 1.0]]]
    figure = draw_probabilities(with_probabilities(run, values, ("int2", "int8")))
    opacity = figure.axes[0].images[0].get_array()[..., 3]
    assert opacity[:, 0].tolist() == [0.2, 0.8]
    assert opacity[:, -1].tolist() == [0.0, 1.0]


def test_diverged_controller_can_still_be_drawn(run):
    values = [[[0.5, 0.5]], [[math.nan, math.nan]]]
    broken = with_probabilities(run, values, ("int2", "int8"))
    for draw in (draw_expected_bits, draw_probabilities):
        style.to_svg(draw(broken), "broken")


@pytest.mark.parametrize("options", [2, 32])
def test_strips_serve_two_and_many_options(run, options):
    names = tuple(f"e{1 + k // 7}m{1 + k % 7}" for k in range(options))
    values = np.full((3, 5, options), 1 / options)
    figure = draw_probabilities(with_probabilities(run, values, names))
    assert len(figure.axes) == 5
    assert len(figure.axes[0].get_yticks()) <= 6


@pytest.mark.parametrize("draw", [draw_expected_bits, draw_formats, draw_probabilities])
@pytest.mark.parametrize("sites", [1, 2, 3])
def test_few_sites_have_room(draw, sites, make_run):
    # As everywhere in the tests, matplotlib's warning of a collapsed plot is an error.
    figure = draw(read_run(make_run(count=sites, steps=200)))
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.get_window_extent().height / figure.dpi > 0.3  # inches
        if legend := axes.get_legend():
            assert legend.get_window_extent().y0 >= 0  # on the page, with its plot


def test_sixty_decisions_stay_apart(make_run):
    run = read_run(make_run(blocks=28, steps=200))
    assert len(run.config.sites) == 60
    figure = draw_expected_bits(run)
    figure.draw_without_rendering()
    row = figure.axes[0].get_window_extent().height / 60 / figure.dpi  # inches
    assert row > style.TICK_SIZE / 72


@pytest.mark.parametrize("draw", SEARCH_ONLY)
def test_run_without_controller_has_no_search_to_draw(make_run, draw):
    run = read_run(make_run(steps=200, controller=False))
    with pytest.raises(ValueError, match="a fixed policy was trained"):
        draw(run)


def test_phases_are_shaded_only_where_there_are_several(run):
    def shades(phases):
        config = dataclasses.replace(run.config, phases=phases)
        axes = draw_training(dataclasses.replace(run, config=config)).axes[0]
        return len(axes.patches), [text.get_text() for text in axes.texts]

    three = Phases(warmup_end=50, search_end=150, steps=200)
    assert shades(three) == (2, ["warm-up", "search", "fixed policy"])
    assert shades(Phases(warmup_end=0, search_end=0, steps=200)) == (0, [])
    assert shades(None) == (0, [])


def test_rows_without_a_reward_leave_no_hole_in_its_line(run):
    reward = run.train["reward"]
    values = np.where(np.arange(len(reward.values)) % 2, math.nan, reward.values)
    gaps = dataclasses.replace(reward, values=values)
    figure = draw_search(dataclasses.replace(run, train={**run.train, "reward": gaps}))
    drawn = figure.axes[1].lines[0].get_ydata()
    assert drawn.tolist() == reward.values[::2].tolist()


def test_running_mean_leaves_out_what_is_not_finite():
    values = np.array([1.0, math.nan, 3.0, math.inf, 5.0])
    assert style.running_mean(values, 3).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert np.isnan(style.running_mean(np.full(3, math.nan), 3)).all()


def test_drawing_needs_matplotlib_but_importing_does_not(run):
    code = (
        "import sys, fliqs_jax.report; assert 'matplotlib' not in sys.modules;"
        "from fliqs_jax.report.style import new_figure; new_figure(1.0);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_svg_colours_follow_the_page(run):
    svg = style.to_svg(draw_training(run), "training")
    assert svg.startswith("<svg") and "var(--ink)" in svg and "<text" in svg
    assert not any(colour in svg for colour in style.CSS_NAMES)
    assert "DOCTYPE" not in svg and "<metadata" not in svg
