"""The SVG charts at their edges: gaps, one point, many iterations, text that must be escaped."""

from stasc_ray.report.charts import Series, bar_chart, interval_chart, number, steps_chart, ticks


def test_ticks_are_round_and_cover_the_range() -> None:
    assert ticks(0.31, 0.78) == [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    assert ticks(0.0, 0.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.0, 130.0)[-1] >= 130.0


def test_charts_survive_one_point_gaps_and_many_iterations() -> None:
    names = [str(i) for i in range(40)]
    gappy = Series("r(Y1)", "y1", [None if i % 7 == 3 else i / 40 for i in range(40)])
    made = [
        interval_chart("a<b", names, [gappy], [0.0, 0.5, 1.0], 3),
        bar_chart("bars", names, [gappy]),
        steps_chart("loss", {name: [1.0, 0.5] for name in names}),
        interval_chart("one", ["base"], [Series("r", "y2", [None])], [0.0, 1.0]),
    ]
    for svg in made:
        assert svg.startswith("<svg") and svg.endswith("</svg>") and "nan" not in svg
        assert "<b" not in svg
    assert (
        number(-0.05) == "\N{MINUS SIGN}0.050"
        and number(None) == "\N{EN DASH}"
        and number(12345.6) == "12,346"
    )
