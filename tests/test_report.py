"""A page that stands alone, and figures that hold what they were given."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from stimopt.errors import DataError, SpaceError
from stimopt.evidence import model_page, run_page, study_page
from stimopt.figures import (
    MarginRow,
    before_after,
    interval_plot,
    replay_curves,
    safety_margins,
    search_trace,
)
from stimopt.history import empty_history
from stimopt.maps import setting_words, story_picture, surrogate_maps, surrogate_slice
from stimopt.montage import Contact, monopolar
from stimopt.picture import Figure, save_picture, two_figures
from stimopt.report import Ladder, Page, Section, Table, cell_text, page_text, skill_table, table_of, write_page
from stimopt.response import Response
from stimopt.space import Parameter, StimulationSpace, contact_site
from stimopt.statistics import Interval
from stimopt.stimulus import no_stimulus, pulse_train

MONTAGE = monopolar([Contact(f"A{i}", (3.5 * i, 0.0, 0.0), 0.05, "depth", "A") for i in range(1, 5)])
TEMPLATE = pulse_train(MONTAGE, "A1-A2", amplitude_ma=2.0, frequency_hz=50.0, pulses=5)
SPACE = StimulationSpace(
    (
        Parameter("amplitude_ma", "continuous", 0.5, 4.5, unit="mA"),
        Parameter("frequency_hz", "log", 2.0, 128.0, unit="Hz"),
        contact_site(TEMPLATE, MONTAGE.neighbour_pairs()),
    ),
    TEMPLATE,
)
CENTRE = SPACE.snap(torch.full((SPACE.dimension,), 0.5, dtype=torch.float64))
PROVENANCE = {"stimopt": "0.1.0", "seed": "7", "command": "stimopt search x.yaml"}
MARGINS = (
    MarginRow("current, A1", 2.0, 8.0, "mA", "PASS", "a profile"),
    MarginRow("charge per phase, A1", 0.45, 0.5, "uC", "CAUTION", "a profile"),
    MarginRow("duty cycle", 75.0, 50.0, "%", "FAIL", "a profile"),
    MarginRow("charge density, A1", 8.0, math.nan, "uC/cm2", "NOT EVALUATED", "none established"),
)
HOSTILE = "<script>alert('1')</script> & \"quoted\" <b>"


def surrogate(unit):
    return unit[:, 0] - unit[:, 1], 0.1 + unit[:, 1]


def window(amplitude_uv, seed=0):
    time_s = torch.arange(1000, dtype=torch.float64) / 500
    noise = torch.randn(4, 1000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Response(MONTAGE, amplitude_uv * torch.sin(2 * math.pi * 20 * time_s) + noise, 500.0)


def history(trials=6):
    source, found = torch.Generator().manual_seed(1), empty_history(TEMPLATE)
    for number in range(trials):
        unit = SPACE.snap(torch.rand(SPACE.dimension, generator=source, dtype=torch.float64))
        found = found.with_trial(SPACE.stimulus(unit), float(number), 5.0 * number, None)
    return found


@pytest.fixture(scope="module")
def whole_page():
    return run_page(
        "A run", history(), SPACE, "score (uV)", provenance=PROVENANCE, origin="simulated", policy="sobol",
        recommended=SPACE.stimulus(CENTRE), posterior=surrogate, before=window(20.0), after=window(5.0),
        margins=MARGINS, regret=torch.linspace(1, 0, 6), reference=5.5, ladder=Ladder(twin="6 trials on one patient"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole_text(whole_page):
    return page_text(whole_page)


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.ids = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data", "srcset", "action"):
                self.links.append(value)
            if name == "id":
                self.ids.append(value)
            assert not name.startswith("on"), f"{tag} has a handler {name}"


def axes_of(figure):
    return [axes for axes in figure.drawing.axes if axes.get_label() != "<colorbar>"]


def test_a_page_asks_for_nothing_outside_itself(whole_text):
    page = Links()
    page.feed(whole_text)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert not {"script", "iframe", "object", "embed", "img"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\((?!#)", whole_text)
    assert "data:," in page.links  # a favicon, or browsers ask the server for one and log the miss


def test_every_reference_in_a_page_has_exactly_one_target(whole_text):
    page = Links()
    page.feed(whole_text)
    assert len(page.ids) == len(set(page.ids))
    wanted = {link[1:] for link in page.links if link.startswith("#")} | set(re.findall(r"url\(#([^)]*)\)", whole_text))
    assert wanted <= set(page.ids)


def test_a_page_stamps_where_numbers_come_from(whole_text):
    assert whole_text.count('<span class="origin simulated">simulated</span>') == 4
    assert "recorded</span>" not in whole_text


def test_a_rung_that_was_not_climbed_is_said_so(whole_text):
    assert "6 trials on one patient" in whole_text
    assert whole_text.count("not climbed") == 2


def test_provenance_stands_on_the_page(whole_text):
    for name, value in PROVENANCE.items():
        assert f'<th scope="row">{name}</th><td>{value}</td>' in whole_text


def test_a_run_page_tells_its_recommendation_with_units(whole_page):
    assert "amplitude 2.50 mA, frequency 16.0 Hz, contacts A2-A3" in whole_page.summary
    assert "6 trials" in whole_page.summary


def test_verdicts_stand_in_words_and_not_in_colour_alone(whole_text):
    for verdict in ("PASS", "CAUTION", "FAIL", "NOT EVALUATED"):
        assert f"<td>{verdict}</td>" in whole_text


def test_hostile_names_are_shown_and_not_obeyed():
    figure = search_trace({HOSTILE: [1.0, 2.0]}, score_label=HOSTILE)
    section = Section(HOSTILE, HOSTILE, (Table((HOSTILE,), ((HOSTILE,),), HOSTILE, HOSTILE),), (figure,), HOSTILE)
    text = page_text(Page(HOSTILE, HOSTILE, (section,), {HOSTILE: HOSTILE}, Ladder(HOSTILE)))
    page = Links()
    page.feed(text)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize(
    "svg",
    [
        "<svg><SCRIPT>1</SCRIPT></svg>", '<svg onload="x()"></svg>', '<svg><image href="https://a.org/b.png"/></svg>',
        "<svg><a xlink:href='//a.org'>b</a></svg>", '<svg style="fill:url(other.svg#a)"></svg>',
    ],
)  # fmt: skip
def test_a_figure_that_reaches_outside_is_refused(svg, tmp_path):
    page = Page("t", "s", (Section("x", figures=(Figure(svg, "c", "a"),)),), {})
    with pytest.raises(DataError, match="nothing from outside"):
        write_page(page, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = write_page(Page("first", "", (), {}), tmp_path / "deep" / "page.html")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_page(Page("second", "", (), {}), path)
    assert "<title>first</title>" in path.read_text(encoding="utf-8")


def test_the_same_page_twice_is_the_same_text(whole_page):
    again = search_trace({"a": [1.0, 2.0]}), search_trace({"a": [1.0, 2.0]})
    assert again[0].svg == again[1].svg
    assert page_text(whole_page) == page_text(whole_page)


def test_drawing_leaves_matplotlibs_settings_alone():
    before = dict(matplotlib.rcParams)
    search_trace({"a": [1.0, 2.0]})
    assert dict(matplotlib.rcParams) == before


def test_a_trace_holds_the_running_best_and_the_trials():
    axes = axes_of(search_trace({"sobol": [1.0, 3.0, 2.0]}, reference=3.5, score_label="score (uV)"))[0]
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert list(lines["sobol"]) == [1.0, 3.0, 3.0]
    assert list(lines["best recorded"]) == [3.5, 3.5]
    assert any(list(line.get_ydata()) == [1.0, 3.0, 2.0] for line in axes.lines)  # the dots
    assert axes.get_ylabel() == "score (uV)"


def test_a_trace_of_several_runs_holds_their_median_and_the_regret():
    runs = np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 9.0]])
    left, right = axes_of(search_trace({"a": runs}, regret={"a": 10 - runs}))
    assert list(left.lines[0].get_ydata()) == [2.0, 4.0]
    assert list(right.lines[0].get_ydata()) == [8.0, 6.0]
    assert len(left.collections) == 1  # the band


def test_policies_differ_by_line_and_mark_and_not_by_colour_alone():
    axes = axes_of(replay_curves([1, 2], {n: ([0.1, 0.2], [0.0, 0.1], [0.2, 0.3]) for n in "abcd"}))[0]
    assert len({line.get_linestyle() for line in axes.lines}) == 4
    assert len({line.get_marker() for line in axes.lines}) == 4


def test_ten_policies_still_differ():
    axes = axes_of(search_trace({f"p{i}": np.ones((2, 3)) for i in range(10)}))[0]
    assert len({(line.get_linestyle(), line.get_marker()) for line in axes.lines}) == 10


def test_an_array_of_96_sites_is_named_sparsely():
    sites = tuple(float(i) for i in range(96))
    many = StimulationSpace(
        (
            Parameter("amplitude_ma", "continuous", 0.5, 4.5, unit="mA"),
            Parameter("frequency_hz", "categorical", choices=tuple(site + 1 for site in sites)),
        ),
        TEMPLATE,
    )
    middle = torch.full((2,), 0.5, dtype=torch.float64)
    (figure,) = surrogate_maps(surrogate, many, middle.unsqueeze(0), at=middle)
    assert len(axes_of(figure)[0].get_yticklabels()) == 24
    assert figure.drawing.get_size_inches()[1] < 8


def test_replay_curves_hold_their_medians():
    axes = axes_of(replay_curves([1, 2, 3], {"a": ([0.1, 0.5, 0.7], [0, 0, 0], [1, 1, 1])}, "exploration"))[0]
    assert list(axes.lines[0].get_ydata()) == [0.1, 0.5, 0.7]
    assert axes.get_ylabel() == "exploration"


def test_before_and_after_show_microvolts_and_the_right_rhythm():
    figure = before_after(window(20.0), window(5.0), ["A3"])
    left, right = axes_of(figure)
    assert left.get_ylabel() == "A3 (µV)"
    before, after = left.lines
    assert np.ptp(before.get_ydata()) == pytest.approx(40.0, rel=0.25)  # 20 uV sine, noise of 1 uV
    assert np.ptp(after.get_ydata()) < np.ptp(before.get_ydata()) / 2
    assert before.get_xdata()[-1] < 1.0
    spectrum = right.lines[0]
    assert spectrum.get_xdata()[np.argmax(spectrum.get_ydata())] == pytest.approx(20.0)
    assert right.get_ylabel() == "µV²/Hz"
    assert "first 1 s of 2 s" in figure.caption


def test_of_a_batch_the_mean_is_shown():
    batch = Response(MONTAGE, torch.stack([torch.zeros(4, 400), torch.full((4, 400), 6.0)]), 400.0)
    left = axes_of(before_after(batch, batch, ["A1"]))[0]
    assert set(left.lines[0].get_ydata()) == {3.0}


def test_maps_are_in_real_units_with_logarithmic_axes_where_they_should_be():
    tried = SPACE.locate(history().stimuli)
    maps = surrogate_maps(surrogate, SPACE, tried, at=CENTRE, score_label="score (uV)")
    assert len(maps) == 3
    mean = axes_of(maps[0])[0]
    assert (mean.get_xlabel(), mean.get_ylabel()) == ("amplitude (mA)", "frequency (Hz)")
    assert (mean.get_xscale(), mean.get_yscale()) == ("linear", "log")
    assert mean.get_xlim() == pytest.approx((0.5, 4.5))
    assert mean.get_ylim() == pytest.approx((2.0, 128.0))
    circles, star = mean.lines
    np.testing.assert_allclose(circles.get_xdata(), history().stimuli.amplitude_ma.abs().amax(-1))
    np.testing.assert_allclose(circles.get_ydata(), history().stimuli.frequency_hz)
    assert (star.get_xdata()[0], star.get_ydata()[0]) == pytest.approx((2.5, 16.0))
    assert "contacts A2-A3" in maps[0].caption


def test_sites_stand_as_rows():
    maps = surrogate_maps(surrogate, SPACE, torch.zeros(0, SPACE.dimension, dtype=torch.float64), at=CENTRE)
    across_sites = axes_of(maps[1])[0]
    assert across_sites.get_xlabel() == "amplitude (mA)"
    assert [label.get_text() for label in across_sites.get_yticklabels()] == ["A1-A2", "A2-A3", "A3-A4"]


def test_a_map_holds_what_the_surrogate_says():
    listed = StimulationSpace(
        (
            Parameter("amplitude_ma", "ordinal", choices=(1.0, 2.0, 4.0)),
            Parameter("frequency_hz", "ordinal", choices=(5.0, 50.0)),
        ),
        TEMPLATE,
    )  # fmt: skip
    (figure,) = surrogate_maps(surrogate, listed, listed.points(), at=listed.points()[0])
    mean, doubt = axes_of(figure)
    # unit cube: amplitude 0, 1/3, 1; frequency 0, 1; rows run up the frequency axis
    np.testing.assert_allclose(mean.collections[0].get_array().reshape(2, 3), [[0, 1 / 3, 1], [-1, -2 / 3, 0]])
    np.testing.assert_allclose(doubt.collections[0].get_array().reshape(2, 3), [[0.1] * 3, [1.1] * 3])


def test_one_parameter_gives_a_slice_with_its_doubt():
    line = StimulationSpace((SPACE.parameters[1],), TEMPLATE)
    at = torch.tensor([0.5], dtype=torch.float64)
    (figure,) = surrogate_maps(lambda u: (u[:, 0], 0.1 + 0 * u[:, 0]), line, at.unsqueeze(0), at=at)
    axes = axes_of(figure)[0]
    assert axes.get_xscale() == "log"
    assert axes.lines[0].get_xdata()[[0, -1]] == pytest.approx([2.0, 128.0])
    edges = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert edges.min() == pytest.approx(-0.196)
    assert edges.max() == pytest.approx(1.196)


def test_a_slice_of_an_unknown_parameter_is_refused():
    with pytest.raises(SpaceError, match="'pulse_width_us' is not in this space"):
        surrogate_slice(surrogate, SPACE, "pulse_width_us", at=CENTRE)


def test_a_flat_surrogate_is_drawn_without_complaint():
    pair = StimulationSpace(SPACE.parameters[:2], TEMPLATE)
    middle = torch.full((2,), 0.5, dtype=torch.float64)
    (figure,) = surrogate_maps(lambda u: (0 * u[:, 0], 0 * u[:, 0] + 1), pair, middle.unsqueeze(0), at=middle)
    assert set(axes_of(figure)[0].collections[0].get_array().ravel()) == {0.0}


def test_margins_show_share_verdict_and_hatch():
    axes = axes_of(safety_margins(MARGINS))[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([25.0, 90.0, 150.0, 100.0])
    words = [text.get_text() for text in axes.texts]
    assert [word.split("   ")[0] for word in words] == ["PASS", "CAUTION", "FAIL", "NOT EVALUATED"]
    assert "0.45 of 0.50 uC" in words[1]
    assert words[3].endswith("no limit")
    looks = {(bar.get_hatch(), bar.get_facecolor(), bar.get_linestyle()) for bar in axes.patches}
    assert len(looks) == 4
    assert axes.patches[1].get_hatch()


@pytest.mark.parametrize(
    ("value", "allowed", "verdict", "share"),
    [(8.0, 2.0, "PASS", 0.25), (1.0, 2.0, "FAIL", 2.0), (0.0, 0.0, "PASS", 0.0), (2.0, 2.0, "PASS", 1.0),
     (3.0, 2.0, "FAIL", 1.5), (0.1, 0.0, "FAIL", math.inf)],
)  # fmt: skip
def test_a_limit_from_below_is_counted_the_other_way_round(value, allowed, verdict, share):
    assert MarginRow("interval", value, allowed, "s", verdict).share == share


def test_a_margin_that_is_known_is_the_one_drawn():
    shannon = MarginRow("Shannon k", -0.3, 1.75, "", "PASS", margin=0.9)  # a logarithm: value over limit means nothing
    assert shannon.share == pytest.approx(0.1)
    assert MarginRow("Shannon k", -0.3, 1.75, "", "PASS").share == 0.0


def test_intervals_are_drawn_from_end_to_end():
    axes = axes_of(interval_plot({"a": Interval(1.0, 0.5, 2.0), "b": Interval(1.0, math.nan, math.nan)}, "regret"))[0]
    assert list(axes.lines[0].get_xdata()) == [0.5, 2.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_the_story_picture_fits_in_a_readme(tmp_path):
    figure = story_picture(
        window(20.0), window(5.0), "A3", {"sobol": np.random.default_rng(0).normal(size=(8, 40))}, surrogate, SPACE,
        SPACE.locate(history().stimuli), at=CENTRE, pair=("amplitude_ma", "frequency_hz"), reference=3.0,
    )  # fmt: skip
    for suffix in ("svg", "png"):
        save_picture(figure, tmp_path / f"story.{suffix}")
        assert 5_000 < (tmp_path / f"story.{suffix}").stat().st_size < 150_000
    with pytest.raises(DataError, match=r"\.svg or \.png"):
        save_picture(figure, tmp_path / "story.pdf")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.46831, "0.47"), (0.5, "0.50"), (13204.2, "13204"), (0.0, "0"), (-0.1, "\N{MINUS SIGN}0.10"), (9.96, "10"),
     (99.7, "100"), (math.nan, "n/a"), (2.13e-5, "2.1e\N{MINUS SIGN}05"), (3.4, "3.4")],
)  # fmt: skip
def test_numbers_are_given_with_two_figures(value, text):
    assert two_figures(value) == text


def test_cells_say_what_is_missing():
    assert cell_text(None) == "not available"
    assert cell_text(Interval(0.4683, 0.31, 0.634)) == "0.47 (0.31 to 0.63)"
    assert cell_text(Interval(0.4683, math.nan, math.nan)) == "0.47 (no interval)"
    assert cell_text(12) == "12"


def test_settings_are_said_with_three_figures_and_units():
    assert setting_words(SPACE, CENTRE, "frequency_hz") == "frequency 16.0 Hz"


def test_edges_beside_a_number_become_its_interval():
    row = {"policy": "a", "regret": 0.1, "regret_low": 0.05, "regret_high": 0.2, "regret_vs_random": -1.0,
           "vs_random_low": -2.0, "vs_random_high": -0.5, "violations": np.int64(0), "low_power": 3.0}  # fmt: skip
    table = table_of([row], "c")
    assert table.columns == (
        "policy", "regret (95 % interval)", "regret vs random (95 % interval)", "violations", "low power"
    )  # fmt: skip
    assert table.rows == (("a", Interval(0.1, 0.05, 0.2), Interval(-1.0, -2.0, -0.5), 0, 3.0),)


def test_edges_without_a_number_stay_columns():
    assert table_of([{"x_low": 1.0, "x_high": 2.0}], "c").columns == ("x low", "x high")


def test_a_metric_that_a_model_lacks_is_left_blank():
    table = skill_table({"a": {"R2": 0.1}, "b": {"R2": 0.2, "CRPS (uV)": 3.0}})
    assert table.columns == ("model", "R2", "CRPS (uV)")
    assert table.rows == (("a", 0.1, None), ("b", 0.2, 3.0))


def test_a_table_with_a_short_row_is_refused():
    with pytest.raises(DataError, match="2 columns and a row of 1"):
        Table(("a", "b"), (("x",),), "c")


def test_a_run_without_trials_says_so():
    page = run_page(
        "t", empty_history(TEMPLATE), SPACE, "score", provenance=PROVENANCE, origin="live", locked="a seizure"
    )
    assert "No trial has been told yet" in page.summary
    assert "locked: a seizure" in page.summary
    assert page_text(page).count("not climbed") == 3


def test_a_comparator_outside_the_space_does_not_break_the_page():
    found = history(2).with_trial(no_stimulus(MONTAGE), 0.0, 10.0, None)
    page = run_page("t", found, SPACE, "score", provenance=PROVENANCE, origin="simulated")
    tried = page.sections[-1].tables[0]
    assert sum(row[-2] for row in tried.rows) == 2


def test_a_study_page_draws_its_measure():
    rows = [{"policy": n, "regret": r, "regret_low": r / 2, "regret_high": 2 * r} for n, r in (("a", 0.1), ("b", 0.2))]
    section = study_page("t", rows, provenance=PROVENANCE).sections[0]
    assert axes_of(section.figures[0])[0].lines[0].get_xdata()[1] == pytest.approx(0.2)
    assert section.origin == "simulated"


def test_a_model_page_without_skill_claims_none():
    page = model_page("t", {"licence": "Apache-2.0"}, {}, provenance=PROVENANCE, origin="")
    assert "nothing is claimed" in page_text(page)
