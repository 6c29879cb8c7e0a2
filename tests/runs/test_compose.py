"""Composing configurations: every choice composes, every mistake is one line with the nearest choices."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf, open_dict

from anomaly_vlm.cli import main
from anomaly_vlm.cli.arguments import hydra_words
from anomaly_vlm.errors import UserError
from anomaly_vlm.runs.checks import check_values
from anomaly_vlm.runs.compose import compose, compose_job, merge_overrides
from anomaly_vlm.runs.configs import composed, resumed, write_config
from anomaly_vlm.runs.groups import choices
from anomaly_vlm.runs.mistakes import flat_keys
from anomaly_vlm.runs.sweeps import expand, plan
from anomaly_vlm.runs.trainer import check_keys
from anomaly_vlm.runs.trust import read_config
from tests.support.conf import CONF


@pytest.mark.parametrize(
    "group", ["backbone", "trainer", "logger", "loss", "callbacks", "dataset", "source@dataset.train"]
)
def test_every_choice_composes(group: str, tmp_path: Path) -> None:
    """And what a run writes of it is read again, word for word."""
    data_sets = "".join(path.read_text(encoding="utf-8") for path in (CONF / "dataset").glob("*.yaml"))
    for choice in choices(group.split("@")[0]):
        if group.startswith("source") and f": {choice}\n" in data_sets:
            continue  # composes with its data set
        cfg = compose(["method=adaclip", f"{group}={choice}"])
        check_values(cfg)
        assert cfg.choices[group] == choice
        OmegaConf.save(cfg, tmp_path / "config.yaml")
        stored = read_config(tmp_path / "config.yaml")
        assert OmegaConf.to_container(stored, resolve=False) == OmegaConf.to_container(cfg, resolve=False)


@pytest.mark.parametrize("method", choices("method"))
def test_every_method_composes_with_its_own_loss(method: str) -> None:
    cfg = compose([f"method={method}"])
    check_values(cfg)
    assert cfg.name == method
    module = {"dinov2": "linear_heads", "sam": "linear_heads"}.get(method, method)  # one method on several towers
    assert cfg.method._target_.startswith(f"anomaly_vlm.methods.{module}.")


def test_a_backbone_brings_its_preset_for_a_method() -> None:
    cfg = compose(["method=adaclip"])
    assert cfg.choices.preset == "nano/adaclip" and cfg.method.temperature == 0.07
    own = compose(["method=adaclip", "preset=published"])
    assert "temperature" not in own.method and own.optimizer.lr == 0.01  # the constructor's
    other = compose(["method=adaclip", "backbone=vit_l14_336"])
    assert "preset" not in other.choices and "temperature" not in other.method
    assert (cfg.epochs, cfg.rate, own.epochs, own.rate) == (3, "cosine", 5, "constant")
    assert compose(["method=adaclip", "method.temperature=0.5"]).method.temperature == 0.5  # what is asked for wins
    with pytest.raises(UserError, match="unknown preset 'mine'"):
        compose(["method=adaclip", "preset=mine"])


def test_a_group_can_be_left_out() -> None:
    cfg = compose(["method=filo", "detector=null", "logger=null", "scheduler=null"])
    assert cfg.detector is None and cfg.scheduler is None and not cfg.logger


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment_composes_with_all_its_values(experiment: str) -> None:
    words = [f"experiment={experiment}", "backbone=vit_l14_336"]
    seen: set[str] = set()
    for overrides in expand(words, compose_job(words)[1]["sweeper"]):
        new = {word for word in overrides if not word.startswith("method=")}  # those compose in a test of their own
        if not seen.issuperset(new):  # every value once, not every combination
            seen |= new
            check_values(compose(overrides))


def test_defaults() -> None:
    cfg = compose(["method=adaclip"])
    assert cfg.dataset.name == "procedural_to_procedural" and cfg.selection == "last" and cfg.choices["logger"] == "csv"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=adaclp"], "unknown method 'adaclp': choose one of adaclip.*did you mean adaclip"),
        (["method=adaclip", "dataset=mvtec"], "unknown data set 'mvtec': choose one of mvtec"),
        (["method=adaclip", "backbone=vit_l14_33"], "unknown backbone 'vit_l14_33'.*did you mean vit_l14_336"),
        (["method=adaclip", "source@dataset.test=visaa"], "unknown data set 'visaa'"),
        (["method=adaclip", "source@dataset.tset=visa"], "unknown data side"),
        ([], "no method given: add method=NAME, one of aaclip"),
        (["method=adaclip", "epochss=3"], "unknown key 'epochss': nearest are epochs"),
        (["method=adaclip", "rgb=before"], r"unknown key 'rgb'.*pixels\.rgb"),
        (["method=adaclip", "seed=1,2"], "several values in one run.*anomaly-vlm sweep"),
        (["method=adaclip", "--fast"], "unknown option '--fast'"),
        (["adaclip"], "'adaclip' is no override: write key=value"),
        (["method=adaclip", "method.prompts={branch"], "do not fit"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        compose(words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("epochs=0", "epochs is 0: give a whole number of at least 1"),
        ("image_size=-96", "image_size is -96"),
        ("batch_size=many", "batch_size is 'many'"),
        ("selection=best", "unknown selection 'best': choose one of best_"),
        ("optimizer.lr=-1", "optimizer.lr is -1: give a number above 0"),
        ("augment.mosaic=2", "augment.mosaic is 2: give a probability"),
        ("selection=best_val", "selection=best_val needs a validation set"),
        ("callbacks.progress=bar", "unknown callbacks.progress 'bar'"),
        ("pixels.rgb=never", "unknown pixels.rgb 'never'"),
        ("pixels.interpolation=nearest", "unknown pixels.interpolation 'nearest': choose one of bi"),
        ("eval_limit=0", "eval_limit is 0"),
        ("method.seed=${sed}", "configuration: .*sed"),
    ],
)
def test_wrong_values_are_one_line(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        check_values(compose(["method=adaclip", word]))
    assert "\n" not in str(error.value)


def test_configurations_of_older_checkpoints_lack_newer_choices() -> None:
    stored = OmegaConf.to_container(compose(["method=adaclip"]))
    del stored["pixels"]["interpolation"]
    check_values(OmegaConf.create(stored))


def test_options_that_the_yaml_does_not_list_are_added() -> None:
    """The YAML of a method lists what differs from its constructor, which tells unknown options."""
    stored = compose(["method=adaclip", "method.not_listed.depth=3"])
    assert stored.method.not_listed.depth == 3
    assert merge_overrides(stored, ["method.further=1"], fixed=("method",)).method.further == 1


def test_flat_keys_hold_inner_nodes() -> None:
    keys = flat_keys(compose(["method=adaclip"]))
    assert {"seed", "method", "pixels", "pixels.rgb", "dataset.test"} <= set(keys)


def test_merging_keeps_what_a_checkpoint_decides() -> None:
    stored = compose(["method=adaclip", "epochs=7"])
    cfg = merge_overrides(
        stored, ["dataset=magnetic_tile", "dataset.test.root=somewhere", "eval_batch_size=2"], fixed=("method",)
    )
    assert (cfg.dataset.name, cfg.dataset.test.root, cfg.eval_batch_size, cfg.epochs) == (
        "procedural_to_magnetic_tile",
        "somewhere",
        2,
        7,
    )
    assert cfg.choices.dataset == "magnetic_tile"
    cfg = merge_overrides(stored, ["source@dataset.test=brain_mri"], fixed=("method",))
    assert cfg.dataset.test.name == "brain_mri" and cfg.dataset.train.name == "procedural"
    assert merge_overrides(stored, ["method=adaclip"], fixed=("method",)) == stored
    with pytest.raises(UserError, match="made by method=adaclip, this run says method=faprompt"):
        merge_overrides(stored, ["method=faprompt"], fixed=("method",))
    with pytest.raises(UserError, match="unknown key 'eval_batch'"):
        merge_overrides(stored, ["eval_batch=2"], fixed=())


def test_an_older_configuration_takes_keys_that_came_later() -> None:
    stored = compose(["method=adaclip"])
    with open_dict(stored):
        del stored.measure_cost, stored.metrics.aupimo, stored.dataset.test.size
    cfg = merge_overrides(stored, ["measure_cost=true", "metrics.aupimo=true"], fixed=("method",))
    assert cfg.measure_cost is True and cfg.metrics.aupimo is True
    for word in ("metrics.aupimoo=true", "dataset.test.size=64"):
        with pytest.raises(UserError, match="unknown key"):
            merge_overrides(stored, [word], fixed=("method",))


@pytest.mark.parametrize("word", ["experiment=adaclip/prompts", "debug=limit", "hparams_search=adaclip"])
def test_a_choice_that_composes_a_new_run_is_not_ignored_beside_a_checkpoint(word: str) -> None:
    stored = compose(["method=adaclip"])
    with pytest.raises(UserError, match=f"^{word} composes a new run, .*: give its keys one by one$"):
        merge_overrides(stored, [word], fixed=("method",))


@pytest.mark.parametrize(
    "word", ["seed=0,1", "dataset=visa,mvtec_ad", "epochs=range(1,3)", "optimizer.lr=interval(0,1)"]
)
def test_several_values_beside_a_checkpoint_are_the_line_of_a_new_run(word: str) -> None:
    stored = compose(["method=adaclip"])
    with pytest.raises(UserError, match=r"^several values in one run .*use 'anomaly-vlm sweep'"):
        merge_overrides(stored, [word], fixed=("method",))
    assert merge_overrides(stored, ["preset=nano/adaclip"], fixed=("method",)) == stored


def test_hydra_answers_questions_about_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    own = tmp_path / "own" / "experiment" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\ndefaults: [{override /method: adaclip}]\nepochs: 2\n")
    words = [f"--config-dir={tmp_path / 'own'}", "experiment=mine", "method.hsf.k=7"]
    assert main(["train", *words, "--cfg", "job", "--resolve"]) == 0
    shown = OmegaConf.create(capsys.readouterr().out)
    assert (shown.epochs, shown.method.hsf.k, shown.trainer.max_epochs) == (2, 7, 2)
    assert main(["train", "method=adaclip", "--info", "defaults-tree"]) == 0
    assert "preset: nano/adaclip" in capsys.readouterr().out
    assert main(["train", "method=adaclp", "--cfg", "job"]) == 2
    assert "did you mean adaclip" in capsys.readouterr().err
    assert main(["train", "--config-dir", str(tmp_path / "none"), "method=adaclip"]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_multirun_is_a_sweep(capsys: pytest.CaptureFixture) -> None:
    assert main(["train", "-m", "method=adaclip", "seed=0,-1"]) == 2
    assert "job 1 of the sweep (seed=-1): seed is -1" in capsys.readouterr().err


def test_exit_codes_and_single_lines(capsys: pytest.CaptureFixture) -> None:
    assert main(["--help"]) == 0 and "usage: anomaly-vlm" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert main(["trian"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "did you mean train" in err
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert "adaclip" in text and "eval_batch_size" in text
    for command in ("evaluate", "predict", "sweep", "report", "data", "bench", "cache", "convert-weights"):
        assert main([command, "--help"]) == 0
        assert capsys.readouterr().out.startswith("usage: anomaly-vlm")


def test_any_key_of_the_trainer_needs_no_plus() -> None:
    cfg = compose(["method=adaclip", "trainer.accumulate_grad_batches=2", "trainer.profiler=simple"])
    assert (cfg.trainer.accumulate_grad_batches, cfg.trainer.profiler) == (2, "simple")


@pytest.mark.parametrize(
    "word, told",
    [
        ("trainer.acumulate_grad_batches=2", "accumulate_grad_batches"),
        ("trainer.logger=true", "choose one with logger=NAME"),
    ],
)
def test_keys_that_the_trainer_does_not_take_are_rejected(word: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_keys(compose(["method=adaclip", word]))


@pytest.mark.parametrize("word", ["epochs=99999999999999999999", "num_workers=5000", "batch_size=4294967296"])
def test_numbers_that_can_only_be_slips_are_rejected(word: str) -> None:
    with pytest.raises(UserError, match=rf"{word.partition('=')[0]} is \d+: give a whole number from"):
        check_values(compose(["method=adaclip", word]))


WITH_VARIABLE = ["method=winclip", "backbone=tiny_random", "dataset=folder", "dataset.test.root=${oc.env:PARTS}"]


def test_values_of_the_environment_are_stored_as_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may not read the environment: a run that stored its words could not be resumed."""
    parts = tmp_path / "my parts, all"
    monkeypatch.setenv("PARTS", str(parts))
    cfg = composed([*hydra_words(WITH_VARIABLE), f"output_dir={tmp_path}"])
    (job,) = plan([hydra_words(WITH_VARIABLE)])
    monkeypatch.delenv("PARTS")
    for number, one in enumerate((cfg, job.cfg)):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_config(one, folder)
        assert resumed(folder, []).dataset.test.root == str(parts)
        assert "oc.env" not in (folder / "config.yaml").read_text()


def test_values_of_the_environment_in_a_users_yaml_are_stored_as_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf/dataset").mkdir(parents=True)
    (tmp_path / "conf/dataset/mine.yaml").write_text(
        "defaults: [folder, _self_]\ntest: {root: '${oc.env:PARTS}/${seed}'}\n"
    )
    monkeypatch.setenv("PARTS", "/parts")
    own = hydra_words(["--config-dir", str(tmp_path / "conf")])
    cfg = composed(["method=winclip", "dataset=mine", "seed=3", *own, f"output_dir={tmp_path}"])
    write_config(cfg, tmp_path)
    monkeypatch.delenv("PARTS")
    assert read_config(tmp_path / "config.yaml").dataset.test.root == "/parts/3"


def test_words_with_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBER", "3")
    monkeypatch.delenv("NOWHERE", raising=False)
    for word, expected in {
        "epochs=${oc.env:NUMBER}": "epochs=3",
        "a=${oc.env:NOWHERE,5}/${oc.env:NUMBER}": "a=5/3",
        "a=${oc.env:NOWHERE,${oc.env:NUMBER}}": "a=3",
        "a=${epochs}": "a=${epochs}",
        "a=x/${now:%Y-%m-%d}": "a=x/${now:%Y-%m-%d}",
        "a=${oc.select:b,${c}}": "a=${oc.select:b,${c}}",
        "hydra.sweep.dir=${hydra:job.name}": "hydra.sweep.dir=${hydra:job.name}",
    }.items():
        assert hydra_words([word]) == [expected]
    assert compose(hydra_words(["method=adaclip", "epochs=${oc.env:NUMBER}"])).epochs == 3
    with pytest.raises(UserError, match="there is no environment variable NOWHERE: set it, or give a default"):
        hydra_words(["epochs=${oc.env:NOWHERE}"])
    with pytest.raises(UserError, match="computes a value: give the value itself"):
        hydra_words(["epochs=${oc.decode:'3'}"])
