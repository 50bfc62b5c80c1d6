"""What scripts/bench makes of measured values: medians, ratios, verdicts, tables, the picture and the page.

Before: values as vsock-bench gives them. After: scripts/lib/bench.
Rule:   nothing is measured here.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from scripts.lib.bench import page, plot, results, standing, tables, targets
from scripts.lib.bench.__main__ import main
from scripts.lib.bench.daemons import BenchError, Place, listening, vhostvsock
from scripts.lib.bench.results import Cell, Measurement, Report, figure
from scripts.lib.bench.rows import Row, parse

BULK, TRIP = Row("g2h-4k", "MB/s", "guest to host, 4 KiB"), Row("rtt", "us", "round trip")


def measured(
    rows: dict[Row, dict[str, list[dict[str, Any]]]], contenders: str = "ours peer limit", also: str | None = None
) -> Measurement:
    """A measurement with these results."""
    made = Measurement("a machine", "peer 1.0", 3, 0.3, False, also, contenders.split(), list(rows))
    for row, cells in rows.items():
        for contender, found in cells.items():
            made.cells[row.name][contender] = Cell(found)
    return made


def values(*numbers: float, **more: float) -> list[dict[str, Any]]:
    return [{"value": number, **more} for number in numbers]


def test_rows_are_read_as_the_program_lists_them() -> None:
    rows = parse("g2h\tMB/s\tguest to host\t1\nstuck-1\t%\tone is stuck\t16\n")
    assert rows == [Row("g2h", "MB/s", "guest to host"), Row("stuck-1", "%", "one is stuck", 16)]
    assert [row.less_is_better for row in rows] == [False, True]


def test_a_cell_is_the_median_between_the_lowest_and_the_highest() -> None:
    assert Cell(values(3, 1, 250)).text() == "3.00 (1.00–250)"
    assert Cell(values(12.34)).text() == "12.3"
    assert Cell().text() == "–"


def test_a_contender_that_hung_once_has_no_figure() -> None:
    cell = Cell([*values(5, 6), {"hangs": True}])
    assert cell.median() is None
    assert cell.text() == "hangs"
    assert Cell([{"failed": "no socket"}]).text() == "fails: no socket"


@pytest.mark.parametrize(("value", "text"), [(0, "0.00"), (9.876, "9.88"), (45.67, "45.7"), (4567.8, "4,568")])
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert figure(value) == text


def test_ratios_are_more_than_one_where_we_are_better() -> None:
    made = measured({BULK: {"ours": values(400), "peer": values(100)}, TRIP: {"ours": values(20), "peer": values(50)}})
    ratios = [made.ratio(row, "ours", "peer") for row in (BULK, TRIP)]
    assert [ratio and ratio.median for ratio in ratios] == [4, 2.5]
    assert made.ratio(BULK, "ours", "limit") is None


def test_the_spread_of_a_ratio_is_that_of_single_runs() -> None:
    # Values that rise together, as on a machine with other work, leave the ratio as it is.
    made = measured({BULK: {"ours": values(100, 200, 300), "peer": values(50, 100, 100)}})
    ratio = made.ratio(BULK, "ours", "peer")
    assert ratio is not None
    assert (ratio.median, ratio.lowest, ratio.highest) == (2, 2, 3)


def test_there_is_no_ratio_to_nothing() -> None:
    stuck = Row("stuck-1", "%", "stuck")
    assert measured({stuck: {"ours": values(0), "peer": values(40)}}).ratio(stuck, "ours", "peer") is None


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    report = {"main": measured({BULK: {"ours": values(1, 2, 3, cpu_s_per_gb=0.5), "peer": [{"hangs": True}]}})}
    results.save(tmp_path / "all.json", report)
    assert results.load(tmp_path / "all.json") == report


def test_the_table_has_the_ratios_to_peer_and_limit() -> None:
    made = measured({BULK: {"ours": values(400), "peer": values(100), "limit": values(500)}})
    head, _, line = tables.main_table(made).split("\n")
    assert head == "| row |  | vhostvsock | vhost-device-vsock | x peer | limit | of limit |"
    assert line == "| guest to host, 4 KiB (`g2h-4k`) | MB/s | 400 | 100 | 4.00 | 500 | 0.80 |"


def test_a_second_setting_of_ours_is_named_beside_both_of_its_figures() -> None:
    cells = {"ours": values(400), "also": values(300), "peer": values(100)}
    head, _, line = tables.main_table(measured({BULK: cells}, "ours also peer", "poll_us=0")).split("\n")
    ours = "| row |  | vhostvsock | with --poll-us 0 | vhost-device-vsock | x peer | with --poll-us 0, x peer |"
    assert (head, line) == (ours, "| guest to host, 4 KiB (`g2h-4k`) | MB/s | 400 | 300 | 100 | 4.00 | 3.00 |")


def test_the_second_table_has_what_was_measured_beside() -> None:
    made = measured({BULK: {"ours": values(1, cpu_s_per_gb=0.25), "peer": values(1, cpu_s_per_gb=2)}})
    assert tables.extras_table(made).split("\n")[2:] == [
        "| `g2h-4k` | processor time of the daemon, s per GB | 0.25 | 2.00 |"
    ]
    assert tables.extras_table(measured({BULK: {"ours": values(1)}})) == ""


# ---- targets ----

FOUR_TIMES = targets.Target("bulk", "g2h-4k", 4, "least", "peer")


@pytest.mark.parametrize(("ours", "met"), [(400, True), (399, False)])
def test_a_target_is_met_or_not(ours: float, met: bool) -> None:
    report = {"main": measured({BULK: {"ours": values(ours), "peer": values(100)}})}
    assert targets.judge(FOUR_TIMES, report).met is met


def test_a_bound_from_above_is_for_the_plain_ratio_of_values() -> None:
    report = {"main": measured({TRIP: {"ours": values(55, p99=90), "peer": values(100, p99=100)}})}
    trip = targets.Target("", "rtt", 0.55, "most", "peer")
    assert targets.judge(trip, report).met is True
    tail = targets.judge(replace(trip, value="p99"), report)
    assert (tail.measured, tail.met) == (0.9, False)


def test_a_target_may_be_part_of_another_row_or_the_sum_of_two() -> None:
    one, many = Row("vms-1", "MB/s", ""), Row("vms-16", "MB/s", "")
    report = {"main": measured({one: {"ours": values(100)}, many: {"ours": values(95)}})}
    assert targets.judge(targets.Target("", "vms-16", 0.9, "least", "vms-1"), report).measured == 0.95
    assert targets.judge(targets.Target("", "vms-16", 200, "most", plus="vms-1"), report).measured == 195


@pytest.mark.parametrize(
    ("report", "why"),
    [
        ({}, "not measured"),
        ({"main": measured({BULK: {"ours": values(1), "peer": [{"hangs": True}]}})}, "the peer: hangs"),
        ({"main": measured({BULK: {"ours": [{"failed": "x"}], "peer": values(1)}})}, "fails: x"),
        ({"main": measured({TRIP: {"ours": values(1)}})}, "not measured"),
    ],
)
def test_without_a_figure_there_is_no_verdict_but_a_reason(report: Report, why: str) -> None:
    verdict = targets.judge(FOUR_TIMES, report)
    assert (verdict.met, targets.measured_text(verdict)) == (None, why)


def test_no_target_stands_twice_and_each_is_at_least_or_at_most() -> None:
    assert len(set(targets.TARGETS)) == len(targets.TARGETS)
    assert {target.at for target in targets.TARGETS} == {"least", "most"}


def test_every_row_that_is_named_exists() -> None:
    source = (ROOT / "native/driver/src/bin/vsock-bench/rows.rs").read_text()
    rows = set(re.findall(r'row\(\s*"([^"]+)"', source)) | {row.name for row in standing.ROWS}
    named = {name for target in targets.TARGETS for name in (target.row, target.plus)} - {""}
    named |= {target.to for target in targets.TARGETS} - {"", "peer", "limit"}
    assert (named | set(page.PINNED) | set(page.POLLING) | set(targets.BULK)) <= rows


def test_rows_that_need_no_guest_have_targets() -> None:
    named = {name for target in targets.TARGETS for name in (target.row, target.plus)}
    assert {row.name for row in standing.ROWS} <= named


# ---- the page ----


def test_a_section_is_made_anew_and_nothing_else_is_touched() -> None:
    text = "prose\n<!-- bench: main -->\nold\n<!-- bench: end -->\nmore\n<!-- bench: vm -->\n<!-- bench: end -->\n"
    once = page.replace_section(text, "main", r"| new \1 |")
    assert once == text.replace("old", r"| new \1 |")
    assert page.replace_section(once, "main", "old") == text


def test_a_page_without_the_section_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("prose\n")
    with pytest.raises(BenchError, match="no section"):
        page.write({"main": "new"}, path)
    assert path.read_text() == "prose\n"


def test_the_page_of_the_project_has_a_place_for_each_section() -> None:
    text = page.PAGE.read_text()
    wanted = {"targets", "main", "extras", "pinned", "polling", "vm"}
    assert set(re.findall(r"<!-- bench: (\S+) -->", text)) - {"end"} == wanted
    for name in wanted:
        text = page.replace_section(text, name, "new")


def test_the_table_of_targets_tells_what_was_reached() -> None:
    report = {"main": measured({BULK: {"ours": values(500), "peer": values(100)}})}
    text = page.targets_table(report)
    assert "| bulk | `g2h-4k` | at least 4 x the peer's | 5.00 | met |" in text
    assert "1 met, 0 not met" in text


# ---- the picture ----


def test_the_picture_has_a_line_for_each_row_that_can_be_compared() -> None:
    made = measured(
        {
            BULK: {"ours": values(400, 500, 450), "peer": values(100, 100, 100), "limit": values(1000)},
            TRIP: {"ours": values(10)},
        }
    )
    drawn = ElementTree.fromstring(plot.svg(made))
    space = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in drawn.iter(f"{space}text")]
    assert "g2h-4k" in texts
    assert "rtt" not in texts
    titles = [element.text for element in drawn.iter(f"{space}title")]
    assert titles == ["guest to host, 4 KiB: 4.50", "guest to host, 4 KiB: 0.45"]


def test_better_is_further_to_the_right() -> None:
    rows = {Row(name, "MB/s", name): {"ours": values(ours), "peer": values(1)} for name, ours in (("a", 2), ("b", 8))}
    dots = re.findall(r'cx="([\d.]+)" cy="\d+\.\d+" r="4"[^>]*><title>', plot.svg(measured(rows)))
    assert float(dots[0]) < float(dots[1])


# ---- daemons and the command line ----


def test_many_vms_are_a_file_and_one_is_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    places = [Place(42 + n, tmp_path / f"h{n}", tmp_path / f"v{n}") for n in range(2)]
    assert "--guest-cid" in vhostvsock().command(places[:1], tmp_path)
    command = vhostvsock("poll_us=0").command(places, tmp_path)
    assert command[-2:] == ["--config", str(tmp_path / "vms.toml")]
    text = (tmp_path / "vms.toml").read_text()
    assert text.count("[[vm]]") == text.count("poll_us=0") == 2


def test_sockets_that_listen_are_seen(short_dir: Path) -> None:
    import socket

    path = str(short_dir / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.bind(path)
        assert path not in listening()
        one.listen()
        assert path in listening()


@pytest.mark.parametrize(
    "words", [["--runs", "0"], ["--seconds", "0"], ["--write-docs", "--rows", "rtt"], ["--write-docs", "--no-peer"]]
)
def test_wrong_usage_is_told(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "--" in capsys.readouterr().err


def test_what_was_kept_is_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, drawn = tmp_path / "all.json", tmp_path / "all.svg"
    results.save(kept, {"main": measured({BULK: {"ours": values(400), "peer": values(100)}})})
    assert main(["--from", str(kept), "--plot", str(drawn)]) == 0
    assert "| 4.00 |" in capsys.readouterr().out
    assert drawn.read_text().startswith("<svg")
