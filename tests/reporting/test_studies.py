"""Tables of studies: what varies as columns, seeds joined, the best marked, differences with intervals, every form."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from anomaly_vlm.errors import UserError
from anomaly_vlm.reporting.collect import collect_runs, write_runs
from anomaly_vlm.reporting.record import write_metrics
from anomaly_vlm.reporting.studies import grouped, study_tables
from anomaly_vlm.reporting.study_table import StudyTable, show_tables, write_tables
from anomaly_vlm.reporting.table_options import TableOptions

FACTS = {"method": "adaclip", "backbone": "tiny, random weights (seed 0)", "data": "trained on a, tested on b"}


def write_run(
    root: Path, name: str, results: dict[str, float], overrides: list[str] | None = None, **facts: Any
) -> None:
    (root / name).mkdir(parents=True)
    facts = {**FACTS, "seed": 0, "shots": 0, "config": "c", **facts, "overrides": overrides or []}
    write_metrics(root / name / "metrics.json", results, facts)


def tables(root: Path, *words: str) -> list[StudyTable]:
    return study_tables(collect_runs(root), TableOptions.pop(words)[0])


def texts(table: StudyTable) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    values = [("2", 0, 0.5), ("2", 1, 0.7), ("4", 0, 0.9), ("4", 1, 0.9)]
    for i, (depth, seed, value) in enumerate(values):
        overrides = [f"method.prompts.depth={depth}", f"seed={seed}", "method=adaclip", "epochs=2"]
        results = {"mean/image_auroc": value, "mean/pixel_fpr95": 1 - value}
        results |= {"gear/image_auroc": value + 0.1 - (i // 2) / 20, "tile/image_auroc": value - 0.1 + (i // 2) / 20}
        write_run(tmp_path, str(i), results, overrides, seed=seed, config=f"depth {depth}")
    (tmp_path / "10").mkdir()
    (tmp_path / "10" / "metrics.json").write_text("[broken")
    return tmp_path


def test_seeds_share_a_row_and_constants_stand_in_the_head(study: Path, caplog: pytest.LogCaptureFixture) -> None:
    (table,) = tables(study)
    assert "is no record of a run" in caplog.text
    assert (table.labels, table.titles) == (["depth", "seeds"], ["image AUROC"])
    assert texts(table) == [["2", "2", "60.0 ± 14.1"], ["4", "2", "90.0 ± 0.0"]]
    assert [row[2].best for row in table.rows] == [False, True]
    assert table.head == ["adaclip", FACTS["backbone"], "trained on a", "tested on b", "with epochs=2"]


def test_smaller_is_better_where_it_is(study: Path) -> None:
    (table,) = tables(study, "columns=pixel_fpr95,image_auroc")
    assert table.titles == ["pixel_fpr95", "image AUROC"]
    assert [[cell.best for cell in row[2:]] for row in table.rows] == [[False, False], [True, True]]


@pytest.mark.parametrize("name", ["image_fpr95", "image_fpr99", "image_calibration_error"])
def test_every_rate_of_errors_marks_the_smallest(name: str, tmp_path: Path) -> None:
    for run, value in (("a", 0.25), ("b", 0.5)):
        write_run(tmp_path, run, {f"mean/{name}": value, "mean/image_auroc": value}, method=run, config=run)
    (table,) = tables(tmp_path, f"columns={name},image_auroc")
    assert [[cell.best for cell in row[1:]] for row in table.rows] == [[True, False], [False, True]]


def test_conditions_name_a_method_by_its_key_as_well(tmp_path: Path) -> None:
    """The table shows `musc (transductive)`, a user types `method=musc`."""
    write_run(
        tmp_path, "a", {"mean/image_auroc": 0.5, "gear/image_auroc": 0.5}, ["method=musc"], method="musc (transductive)"
    )
    write_run(
        tmp_path, "b", {"mean/image_auroc": 0.6, "gear/image_auroc": 0.6}, ["method=saa"], method="saa+ (contrast)"
    )
    choices = {"method": "winclip", "backbone": "tiny_random"}
    results = {"mean/image_auroc": 0.7, "gear/image_auroc": 0.7}
    write_run(tmp_path, "c", results, method="renamed", choices=choices)

    def left(condition: str) -> set[str]:
        (table,) = tables(tmp_path, f"where=shots=0,{condition}")
        return {value for row in texts(table) for value in row[-1:]}

    assert left("method!=musc") == left("method!=musc (transductive)") == {"60.0", "70.0"}
    assert left("method=musc") == left("method=musc (transductive)") == {"50.0"}
    assert left("method=saa") == left("method=saa+") == {"60.0"}
    assert left("method=winclip") == left("backbone=tiny_random") == {"70.0"}
    assert left("backbone=tiny, random weights") == {"50.0", "60.0", "70.0"}
    _, difference = tables(tmp_path, "base=method=musc")
    assert [row[-1][:5] for row in texts(difference)] == ["+10.0", "+20.0"]
    write_run(tmp_path, "d", results, ["method=musc"], method="musc", config="other")
    _, difference = tables(tmp_path, "base=method=musc")
    assert [row[-1][:5] for row in texts(difference)] == ["-20.0", "-10.0", "+0.0 "]  # to the one shown as musc


def test_conditions_and_order(study: Path) -> None:
    assert [row[0] for row in texts(tables(study, "sort=-image_auroc")[0])] == ["4", "2"]
    assert [row[0] for row in texts(tables(study, "sort=depth")[0])] == ["2", "4"]
    assert texts(tables(study, "where=depth!=2,seed=1")[0]) == [["3", "90.0"]]
    for words, told in (
        (["where=depth=7"], "none of 4 runs fulfils it"),
        (["sort=depht"], "unknown column to sort by 'depht'"),
        (["columns=image_aurok"], "did you mean image_auroc"),
        (["base=depth=7"], "no row is that"),
        (["where=depth"], "give a condition"),
    ):
        with pytest.raises(UserError, match=told):
            tables(study, *words)


def test_differences_to_a_base_row_have_paired_intervals(study: Path) -> None:
    _, table = tables(study, "base=depth=2")
    assert table.head == ["difference to depth=2"] and table.labels == ["depth"]
    assert texts(table) == [["4", "+30.0 [+25.0, +35.0]"]]  # gear +25, tile +35
    assert table.rows[0][1].best


def test_runs_on_different_data_are_neither_averaged_nor_compared(tmp_path: Path) -> None:
    for seed, data in enumerate(("trained on a, tested on b", "trained on a, tested on c")):
        write_run(tmp_path, str(seed), {"mean/image_auroc": 0.5, "x/image_auroc": 0.5}, data=data, seed=seed)
    table, differences = tables(tmp_path, "base=data=trained on a, tested on b")
    assert [row[1] for row in texts(table)] == ["50.0", "50.0"]
    assert texts(differences)[0][-1] == "-"


def test_several_base_rows_stand_for_their_like(tmp_path: Path) -> None:
    for method, mode, value in (("m", "a", 0.5), ("m", "b", 0.7), ("n", "a", 0.1), ("n", "b", 0.0)):
        results = {"mean/image_auroc": value, "x/image_auroc": value}
        write_run(tmp_path, method + mode, results, [f"texts={mode}"], method=method, config=method + mode)
    _, table = tables(tmp_path, "base=texts=a")
    assert texts(table) == [["m", "b", "+20.0 [+20.0, +20.0]"], ["n", "b", "-10.0 [-10.0, -10.0]"]]
    write_run(tmp_path, "ob", {"mean/image_auroc": 0.5}, ["texts=b"], method="o", config="ob")
    with pytest.raises(UserError, match="2 rows are that, and none differs"):
        tables(tmp_path, "base=texts=a")


def test_costs_and_pooled_values_are_columns_too(tmp_path: Path) -> None:
    for name, parameters in (("a", 0), ("b", 1234)):
        cost = {"trainable_parameters": parameters, "gflops": 1.2345, "training_seconds": None}
        results = {"mean/image_auroc": 0.5, "pooled/image_auroc": 0.25}
        write_run(tmp_path, name, results, method=name, config=name, cost=cost)
    (table,) = tables(tmp_path, "columns=pooled/image_auroc,cost/trainable_parameters,cost/gflops", "sort=-cost/gflops")
    assert table.titles == ["image AUROC, pooled", "trainable parameters", "GFLOPs an image"]
    assert texts(table) == [["a", "25.0", "0", "1.23"], ["b", "25.0", "1,234", "1.23"]]
    assert table.rows[0][2].best and not table.rows[1][2].best


def test_intervals_of_the_means(study: Path) -> None:
    _, table = tables(study, "intervals=true")
    assert texts(table)[1] == ["4", "90.0 [85.0, 95.0]"]  # gear 95, tile 85


def test_the_page_holds_every_table_and_escapes_names(tmp_path: Path) -> None:
    for name in ("<b>", "c"):
        write_run(tmp_path, name.strip("<>"), {"mean/image_auroc": 0.5}, method=name, config=name)
    write_tables(tables(tmp_path), tmp_path, title="a & b")
    text = (tmp_path / "tables.html").read_text()
    assert "<h1>a &amp; b</h1>" in text and "&lt;b&gt;" in text and "<b>" not in text and "http" not in text


def test_other_options_are_never_averaged_even_where_no_override_names_them(tmp_path: Path) -> None:
    for seed, config in enumerate("ab"):
        write_run(tmp_path, f"run_{config}", {"mean/image_auroc": 0.5}, seed=seed, config=config)
    (table,) = tables(tmp_path)
    assert table.labels == ["run"] and [row[0] for row in texts(table)] == ["run_a", "run_b"]


def test_a_repeated_run_counts_once(tmp_path: Path) -> None:
    for name, value in (("1", 0.1), ("2", 0.5)):
        write_run(tmp_path, name, {"mean/image_auroc": value})
    (table,) = tables(tmp_path)
    assert [row[-1] for row in texts(table)] == ["50.0"] and "1 runs of the same configuration" in table.foot[0]


def test_nothing_but_the_seed_differs(tmp_path: Path) -> None:
    for seed, value in ((0, 0.5), (1, 0.7)):
        write_run(tmp_path, str(seed), {"mean/image_auroc": value}, [f"seed={seed}"], seed=seed)
    (table,) = tables(tmp_path)
    assert texts(table) == [["0", "1", "50.0"], ["1", "1", "70.0"], ["all", "2", "60.0 ± 14.1"]]
    assert not any(cell.best for row in table.rows for cell in row)


def test_roads_and_few_shots_have_tables_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path, "a", {"mean/image_auroc": 0.5})
    write_run(tmp_path, "b", {"mean/image_auroc": 0.6}, shots=4)
    write_run(tmp_path, "c", {"mean/component_f1": 0.2, "mean/pixel_ap": 0.3})
    found = tables(tmp_path)
    assert [(table.name, table.titles) for table in found] == [
        ("zero_shot", ["image AUROC"]),
        ("few_shot", ["image AUROC"]),
        ("road", ["AP", "F1*"]),
    ]
    names = {path.name for path in write_tables(found, tmp_path)}
    assert {"tables.html", "table_road.csv"} <= names and len(names) == 10


def test_keys_are_named_by_their_last_parts(tmp_path: Path) -> None:
    for i in range(2):
        write_run(
            tmp_path, str(i), {"mean/image_auroc": 0.5}, [f"a.b.lr={i}", f"c.lr={i}", f"d.size={i}"], config=str(i)
        )
    assert tables(tmp_path)[0].labels == ["b.lr", "c.lr", "size"]


def test_every_form_says_the_same(study: Path, capsys: pytest.CaptureFixture) -> None:
    (table,) = found = tables(study, "sort=depth")
    assert list(csv.reader(table.csv().splitlines())) == [["depth", "seeds", "image AUROC"], *texts(table)]
    assert "| 4 | 2 | **90.0 ± 0.0** |" in table.markdown()
    assert r"4 & 2 & \textbf{90.0 $\pm$ 0.0} \\" in table.latex() and r"\bottomrule" in table.latex()
    console = Console(width=160, force_terminal=True)
    with console.capture() as capture:
        console.print(table.rich())
    assert "\x1b[1m90.0 ± 0.0" in capture.get()
    show_tables(found, "latex")
    assert capsys.readouterr().out.strip() == table.latex().strip()


def test_what_users_name_cannot_break_a_form(tmp_path: Path) -> None:
    for i, part in enumerate(("[]", "[mmci]", r"a|b_c & 50%\x")):
        write_run(tmp_path, str(i), {"mean/image_auroc": 0.5}, [f"without={part}"], config=str(i))
    (table,) = tables(tmp_path)
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table.rich())
    assert "[mmci]" in capture.get()
    assert r"a\_c" not in table.latex() and r"a|b\_c \& 50\%\textbackslash{}x" in table.latex()
    assert r"a\|b\_c" in table.markdown()


def test_one_row_a_run_in_sweep_csv(study: Path) -> None:
    write_runs(study / "sweep.csv", collect_runs(study))
    with (study / "sweep.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["image_auroc"] for row in written] == ["0.5", "0.7", "0.9", "0.9"]
    assert [row["method.prompts.depth"] for row in written] == ["2", "2", "4", "4"]


def test_older_records_are_read(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    data = "2 normal images of each category as references, tested on b"
    (tmp_path / "old" / "metrics.json").write_text(
        json.dumps({**FACTS, "data": data, "results": {"mean/image_auroc": 0.5}})
    )
    (row,) = collect_runs(tmp_path)
    assert row["shots"] == 2 and grouped([row])[0][0].cells == {"run": "old"}
