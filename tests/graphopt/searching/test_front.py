import xml.etree.ElementTree as ET

from graphopt.searching.front import front_svg, front_table, pareto


def test_the_front_holds_what_no_other_beats():
    points = [(3, 0.0), (2, 0.5), (2, 0.6), (1, 2.0), (2.5, 0.7), (3, 0.0)]
    found = pareto(points, lambda p: p[0], lambda p: p[1])
    assert found == [(1, 2.0), (2, 0.5), (3, 0.0)]


def test_the_plot_is_svg_with_a_point_for_every_trial():
    drawn = front_svg([(1, 0.5), (2, 0.1)], [(1, 0.5)], ("latency_ms", "<drop>"), 0.4)
    tree = ET.fromstring(drawn)
    assert sum(e.tag.endswith("circle") for e in tree.iter()) == 2
    assert "&lt;drop&gt;" in drawn


def test_the_table_is_markdown():
    assert front_table([{"a": 1.23456, "b": "x|y"}]) == "| a | b |\n|---|---|\n| 1.235 | x\\|y |\n"
