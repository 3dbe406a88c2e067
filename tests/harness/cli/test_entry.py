"""What is typed: commands, help, and one line for everything that cannot work."""

import json
import os
import re
import resource
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError

import harness
from harness import cli
from harness.cli.table import COMMANDS
from harness.config import catalogue
from tests.command import harness as started
from tests.harness.folders import write

ROOT = Path(harness.__file__).resolve().parent.parent
HEAVY = ("torch", "torchvision", "avalanche", "wandb", "pandas", "sklearn", "pyarrow", "rich")


@pytest.fixture
def command(tmp_path, tmp_path_factory, monkeypatch, capfd):
    """Run a command line in process, in an empty folder; training is a stub that keeps what it was given.

    In a file: a sweep's jobs are processes of their own.
    """
    file = tmp_path_factory.mktemp("jobs") / "jobs"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.delenv("HARNESS_TRACEBACK", raising=False)

    def run(*args, train=None):
        file.write_text("")

        def from_config(cfg, progress):
            plain = OmegaConf.to_container(cfg, resolve=True)
            with file.open("a") as told:
                told.write(json.dumps(plain) + "\n")
            if train is not None:
                train(plain)

        stub = types.ModuleType("harness.jobs.job")
        stub.from_config = from_config
        monkeypatch.setitem(sys.modules, "harness.jobs.job", stub)
        monkeypatch.setattr(sys, "argv", ["harness", *args])
        code = cli.main()
        out, err = capfd.readouterr()
        jobs = [json.loads(line) for line in file.read_text().splitlines()]
        return types.SimpleNamespace(code=code, out=out, err=err, jobs=jobs)

    return run


def refused(done, line):
    """Exit code 2, nothing but one line that begins so, nothing trained, nothing written."""
    assert done.err.startswith(f"harness: {line}") and done.err.count("\n") == 1, done.err
    assert (done.code, done.out, done.jobs) == (2, "", [])
    assert list(Path.cwd().iterdir()) == []


# --- what is refused ----------------------------------------------------------------------------------

BAD = {
    "strategy=cpb": "strategy=cpb: unknown strategy; did you mean strategy=cbp?",
    "strategy=[naive,l2_int]": "strategy=l2_int: unknown strategy; did you mean strategy=l2_init?",
    "strategy=qqqqqqq": "strategy=qqqqqqq: unknown strategy; `python -m harness ls strategies` lists them",
    "optimizer=sgdd": "optimizer=sgdd: unknown optimizer; did you mean optimizer=sgd?",
    "strategy=CBP": "strategy=CBP: unknown strategy; did you mean strategy=cbp?",
    "strategie=cbp": "strategie: unknown setting; did you mean strategy?",
    "strategy=[cbp": "strategy=[cbp: a bracket is missing",
    "strategy=a=b": "strategy=a=b: cannot be parsed",
    "strategy=": "strategy=: no strategy is chosen; for plain training use strategy=naive",
    "strategy=[]": "strategy=[]: no strategy is chosen; for plain training use strategy=naive",
    "strategy=null": "strategy=null: no strategy is chosen; for plain training use strategy=naive",
    "dataset=null": "dataset=null: no dataset is chosen; `python -m harness ls datasets` lists them",
    "strategy=[cbp,naive,cbp]": "strategy=[cbp,naive,cbp]: cbp is listed twice",
    "strategy=cbp,naive": "strategy=cbp,naive: write strategy=[cbp,naive] for a list, or add -m",
    "model=[mlp,cnn]": "model=[mlp,cnn]: choose one model",
    "model=mlp,cnn": "model=mlp,cnn: choose one model, or add -m for a run of each",
    "results=a,b": "results=a,b: give one value, or add -m for a run of each",
    "optimizer.lr=0.1,0.2": "optimizer.lr=0.1,0.2: give one value, or add -m for a run of each",
    "threads=100000": "threads=100000: must be at most ",
    "train.batch_size=100000000000": "train.batch_size=100000000000: must be at most 10000000",
    "model.widths=null": "model.widths=null: must be a list; for an empty one write model.widths=[]",
    "pin.stream=99999999999999999999999": "pin.stream=99999999999999999999999: must be at most 9223372036854775807",
    "-m strategy=cbp,naive --cfg job": "--cfg: shows the configuration of one job; leave out --multirun",
    "strategy=cbp,naive -m --cfg job": "--cfg: shows the configuration of one job; leave out --multirun",
    "strategy=cbp strategy.cbp.maturty=3": "strategy.cbp.maturty: unknown setting; did you mean strategy.cbp.maturity?",
    "strategy=cbp strategy.maturity=3": "strategy.maturity: unknown setting; did you mean strategy.cbp.maturity?",
    "strategy=cbp +strategy.cbp.zzzzz=3": "strategy.cbp.zzzzz: unknown setting; the settings are strategy.cbp.rate,",
    "strategy=cbp ++strategy.cbp.zzzzz=3": "strategy.cbp.zzzzz: unknown setting; the settings are strategy.cbp.rate,",
    "strategy=cbp +strategy.cbp.rate=3": "+strategy.cbp.rate=3: strategy.cbp.rate already exists; write it without",
    "strategy.cbp.rate=3": "strategy.cbp.rate: cbp is not chosen; choose it with strategy=cbp or in a list",
    "~tracker": "~tracker: settings cannot be removed; give tracker a value",
    "~metrics.sharpness": "~metrics.sharpness: settings cannot be removed; leave it out with metrics.sharpness=null",
    "metrics=fast metrics.sharpness=null": "metrics.sharpness: sharpness is not chosen; choose it with metrics=",
    "metrics.sharpnes=null": "metrics.sharpnes: unknown setting; did you mean metrics.sharpness?",
    "metrics.qqqqq=null": "metrics.qqqqq: unknown setting; the settings are metrics.transfer, metrics.plasticity, ",
    "metrics=[fast,sharpnes]": "metrics=sharpnes: unknown metrics; did you mean metrics=sharpness?",
    "metrics.connectivity=3": "metrics.connectivity=3: is a group of settings: metrics.connectivity.size, metrics.",
    "metrics_every=0": "metrics_every=0: must be at least 1",
    "tuned.cbp.rate=3": "tuned.cbp.rate: a new key needs a +, as in +tuned.cbp.rate=3",
    "train=5": "train=5: is a group of settings: train.epochs, train.steps, train.batch_size",
    "train={epochs:0}": "train.epochs=0: must be at least 1",
    "trian.epochs=3": "trian.epochs: unknown setting; did you mean train.epochs?",
    "epochs=3": "epochs: unknown setting; did you mean train.epochs?",
    "batch_size=3": "batch_size: unknown setting; did you mean train.batch_size or eval.batch_size?",
    "seed=3": "seed: unknown setting; did you mean seeds?",
    "qqqqq=3": "qqqqq: unknown setting; `--cfg job` shows them all",
    "=3": "=3: a setting is key=value",
    "strategy=cbp strategy.cbp.rate=hello": "strategy.cbp.rate=hello: must be a number",
    "strategy=cbp strategy.cbp.maturity=1.5": "strategy.cbp.maturity=1.5: must be a whole number",
    "strategy=cbp strategy.cbp.bias_transfer=3": "strategy.cbp.bias_transfer=3: must be true or false",
    "model.widths=100": "model.widths=100: must be a list, as in [100]",
    "model.widths=[100,x]": "model.widths=[100,x]: must be a list; each entry a whole number",
    "model.activation=[relu]": "model.activation=[relu]: must be a word",
    "train.batch_size=abc": "train.batch_size=abc: must be a whole number",
    "train.batch_size=0": "train.batch_size=0: must be at least 1",
    "train.epochs=-1": "train.epochs=-1: must be at least 1",
    "seeds=[]": "seeds=[]: must contain at least one seed",
    "seeds=[1,1]": "seeds=[1,1]: 1 is listed twice",
    "seeds=0,1": "seeds=0,1: write seeds=[0,1] for a list, or add -m",
    "optimizer.lr=-1": "optimizer.lr=-1: must be above 0",
    "threads=-1": "threads=-1: must be at least 0",
    "tasks.n_tasks=0": "tasks.n_tasks=0: must be at least 1",
    "scenario=clas": "scenario=clas: must be task, domain or class; did you mean class?",
    "optimizer.lr=${train.epoch}": "optimizer.lr: Interpolation key 'train.epoch' not found",
    "metrics.sharpness.steps=${train}": "metrics.sharpness.steps={epochs:10,steps:null,batch_size:32}: must be a whole",
    "model.activation=${seeds}": "model.activation=[0,1,2,3,4]: must be a word",
    "tasks.n_tasks=1000000000": "tasks.n_tasks=1000000000: must be at most 1000000",
    "experiment=permuted_fashion model=cnn": "experiment=permuted_fashion: sets model.widths, which model=cnn does not",
    "--config-dir nowhere": "--config-dir nowhere: folder not found",
    "--multrun": "unrecognized arguments: --multrun; see --help",
    "-m strategy=cbp,nave": "strategy=nave: unknown strategy; did you mean strategy=naive?",
    "-m strategy=cbp,naive strategy.cbp.rate=1e-3": "strategy.cbp.rate: cbp is not chosen",
    "-m train.batch_size=32,0": "train.batch_size=0: must be at least 1",
    "-m strategy=glob(*) train.epochs=0": "train.epochs=0: must be at least 1",
    "--cfg job strategy=cpb": "strategy=cpb: unknown strategy; did you mean strategy=cbp?",
    "ls foo": "ls foo: cannot be listed; choose from strategies, tasks,",
    "ls strategy": "ls strategy: cannot be listed; did you mean strategies?",
    "lss": "lss: unknown command; did you mean ls?",
    "cbp": "cbp: unknown command; did you mean strategy=cbp?",
    "leaderboard nowhere": "leaderboard nowhere: no such folder; name a folder that was given as results=FOLDER",
    "leaderboard": "leaderboard results: no such folder; run something first, as in `harness strategy=naive`",
    "leaderboard --by": "argument --by: expected one argument; see ",
    "leaderboard --b x": "unrecognized arguments: --b",
    "qqqqq": "qqqqq: unknown command; the commands are ls, leaderboard, ",
}


@pytest.mark.parametrize("typed", BAD)
def test_bad_input_is_one_line_and_nothing_is_done(command, typed):
    refused(command(*typed.split()), BAD[typed])


def test_a_broken_file_of_the_users_is_named_with_its_place(command, tmp_path):
    folder = tmp_path / "mine" / "strategy"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("mine:\n  a: [1\n  b: 2\n")
    done = command("--config-dir", "mine", "strategy=mine")
    assert done.code == 2 and done.jobs == []
    assert done.err.count("\n") == 1 and "mine.yaml" in done.err and "line 3" in done.err


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(40))


@pytest.mark.parametrize("where", ["strategy/mine.yaml", "metrics/deep/mine.yaml", "config.yaml"])
@pytest.mark.parametrize("typed", ["strategy=naive", "ls strategies", "check strategy=naive", "measure r metrics=fast"])
def test_a_file_whose_aliases_fill_the_memory_is_refused_at_once(command, tmp_path, where, typed):
    file = tmp_path / "mine" / where
    file.parent.mkdir(parents=True)
    file.write_text(BOMB)
    done = command(*typed.split(), "--config-dir", "mine")
    assert (done.code, done.out, done.jobs) == (2, "", []) and done.err.count("\n") == 1
    assert done.err.startswith("harness: ") and f"{where}: its aliases stand for more than 20,000 values" in done.err


def test_aliases_that_stand_for_little_pass(command, tmp_path):
    file = tmp_path / "mine" / "strategy" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("mine:\n  _target_: my_module.Mine\n  a: &a [1, 2]\n  b: [*a, *a]  # & *\n")
    done = command("--config-dir", "mine", "strategy=mine")
    assert done.code == 0 and done.jobs[0]["strategy"]["mine"]["b"] == [[1, 2], [1, 2]]


def test_refusal_is_fast_and_imports_nothing_heavy():
    """Five refusals, a help page and a list in one process."""
    lines = ["strategy=cpb", "train.batch_size=0", "strategy=cbp strategy.cbp.rat=3", "seeds=[", "ls x", "--help", "ls"]
    code = (
        "import sys; from harness.cli import main\n"
        f"for line in {lines!r}:\n    sys.argv = ['harness', *line.split()]; main()\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr.count("\n") == 5
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3  # its own time: machines are shared


NOT_FOR = {  # command -> what it must not import: most of its time was that
    ("--help",): (*HEAVY, "numpy", "omegaconf", "hydra", "yaml"),
    ("ls",): (*HEAVY, "numpy", "omegaconf", "hydra"),
    ("show", "RUN"): ("torch", "torchvision", "avalanche", "wandb", "pandas", "sklearn", "matplotlib", "hydra", "rich"),
}


@pytest.mark.parametrize("words", NOT_FOR, ids=" ".join)
def test_a_command_imports_only_what_it_needs(words, tmp_path):
    run = write(tmp_path, "naive", [0.5, 0.6])
    typed = [str(run) if word == "RUN" else word for word in words]
    code = (
        f"import sys; from harness.cli import main; sys.argv = ['harness', *{typed!r}]; code = main()\n"
        f"print(code, [m for m in {NOT_FOR[words]!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


# --- what runs ----------------------------------------------------------------------------------------


def test_a_run_gets_what_was_typed(command):
    done = command(
        "strategy=[l2_init,naive]", "strategy.l2_init.strength=0.5", "seeds=[3]", "optimizer=adam", "threads=1"
    )
    assert (done.code, done.err) == (0, "")
    (cfg,) = done.jobs
    assert list(cfg["strategy"]) == ["l2_init", "naive"] and cfg["strategy"]["l2_init"]["strength"] == 0.5
    assert (cfg["seeds"], cfg["optimizer"]["lr"], cfg["threads"]) == ([3], 0.001, 1)
    assert "hydra" not in cfg


def test_hydra_writes_nothing_of_its_own(command, tmp_path):
    command("strategy=naive")
    assert list(tmp_path.iterdir()) == []


def test_numbers_for_words_null_and_whole_numbers_for_floats_pass(command):
    done = command("optimizer.lr=1", "dataset.root=null", "train.steps=5", "eval.tasks=3", "tracker.group=7")
    assert done.code == 0, done.err


def test_a_preset_with_another_option_of_the_same_keys_passes(command):
    done = command("experiment=permuted_fashion", "optimizer=adam", "strategy=[l2_init,naive]", "dataset=digits")
    assert done.code == 0, done.err
    assert done.jobs[0]["tasks"]["n_tasks"] == 20


@pytest.mark.nightly
def test_a_preset_may_choose_a_list_and_may_be_a_sweep(command, tmp_path):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    start = "# @package _global_\ndefaults:\n  - override /strategy: [l2_init, naive]\n"
    (folder / "list.yaml").write_text(start + "strategy:\n  l2_init:\n    strength: 0.5\n")
    (done,) = command("--config-dir", "mine", "experiment=list").jobs
    assert list(done["strategy"]) == ["l2_init", "naive"] and done["strategy"]["l2_init"]["strength"] == 0.5
    # another choice leaves the preset's value for the old one behind, without a class
    done = command("--config-dir", "mine", "experiment=list", "strategy=naive")
    assert done.err.startswith("harness: experiment=list: sets strategy.l2_init.strength, which") and not done.jobs
    sweep = "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      strategy: l2_init,naive\n"
    (folder / "sweep.yaml").write_text("# @package _global_\n" + sweep)
    done = command("--config-dir", "mine", "experiment=sweep")
    assert sorted(list(j["strategy"]) for j in done.jobs) == [["l2_init"], ["naive"]]
    (folder / "sweep.yaml").write_text("# @package _global_\n" + sweep.replace(",naive", ",nave"))
    done = command("--config-dir", "mine", "experiment=sweep")
    assert done.err == "harness: strategy=nave: unknown strategy; did you mean strategy=naive?\n" and not done.jobs


def test_tuned_takes_new_keys(command):
    done = command("strategy=l2_init", "+tuned.l2_init.strength=0.25")
    assert done.jobs[0]["strategy"]["l2_init"]["strength"] == 0.25


def test_a_metric_of_another_tier_is_added_and_one_of_this_tier_left_out(command):
    (added,) = command("metrics=[fast,sharpness]", "metrics.sharpness.steps=7").jobs
    assert {k: bool(v) for k, v in added["metrics"].items()} == {
        "transfer": 1,
        "plasticity": 1,
        "stability": 1,
        "sharpness": 1,
    }
    assert added["metrics"]["sharpness"]["steps"] == 7 and added["metrics"]["plasticity"]["rank"] is False
    (less,) = command("metrics=standard", "metrics.sharpness=null").jobs
    assert less["metrics"]["sharpness"] is None and less["metrics"]["connectivity"]


def test_a_function_of_the_users_is_a_data_set_with_arguments_of_its_own(command, tmp_path, monkeypatch):
    source = "import numpy as np\ndef make(n):\n    return np.arange(4.0 * n).reshape(n, 4), np.arange(n) % 2\n"
    (tmp_path / "my_data.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    chosen = ["dataset=function", "dataset.make._target_=my_data.make", "tasks=permuted"]
    done = command(*chosen, "+dataset.make.n=40")
    assert done.code == 0, done.err
    (job,) = done.jobs
    assert job["dataset"]["make"] == {"_target_": "my_data.make", "n": 40}


def test_avalanche_s_strategies_are_chosen_by_name(command):
    done = command("strategy=avalanche/EWC", "strategy.avalanche.options.ewc_lambda=3")
    assert done.code == 0, done.err
    assert done.jobs[0]["strategy"]["avalanche"]["options"]["ewc_lambda"] == 3
    assert "strategy=avalanche/EWC?" in command("strategy=avalanche/ECW").err


def test_multirun_runs_every_combination(command, tmp_path):
    done = command("-m", "strategy=l2_init,naive", "seeds=[0],[1]", "metrics=off")
    assert sorted((next(iter(c["strategy"])), c["seeds"]) for c in done.jobs) == [
        ("l2_init", [0]),
        ("l2_init", [1]),
        ("naive", [0]),
        ("naive", [1]),
    ]
    assert done.code == 0 and [p.name for p in tmp_path.iterdir()] == ["results"]


@pytest.mark.nightly
def test_a_failed_job_does_not_stop_a_sweep_and_each_failure_is_told(command):
    def train(cfg):
        if "naive" not in cfg["strategy"]:
            raise ValueError(f"seeds={cfg['seeds']}: no")

    done = command("-m", "strategy=l2_init,naive", "seeds=[0],[1]", "metrics=off", train=train)
    assert len(done.jobs) == 4 and done.code == 2
    told = [line for line in done.out.splitlines() if line.endswith(": no")]
    assert told[-2:] == ["  strategy=l2_init seeds=[0]: seeds=[0]: no", "  strategy=l2_init seeds=[1]: seeds=[1]: no"]
    done = command("-m", "strategy=l2_init,naive", "metrics=off", "hydra/launcher=basic", train=train)
    assert len(done.jobs) == 2 and done.code == 2  # one after the other in this process, as Hydra does it


def test_config_dir_adds_the_users_options(command, tmp_path):
    folder = tmp_path / "mine" / "strategy"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("mine:\n  _target_: my_module.Mine\n  # how much\n  rate: 0.5\n")
    done = command("--config-dir", "mine", "strategy=[naive,mine]", "strategy.mine.rate=1")
    assert done.jobs[0]["strategy"]["mine"] == {"_target_": "my_module.Mine", "rate": 1}
    assert command("--config-dir", "mine", "strategy=mnie").err.endswith("did you mean strategy=mine?\n")
    listed = command("ls", "--config-dir", "mine").out
    assert "\n  mine\n" in listed and "\n  naive " in listed


def test_working_directory_is_importable_as_for_python_m(command, tmp_path):
    command("strategy=naive")
    assert sys.path[0] == str(tmp_path)


def test_cfg_prints_the_configuration_and_stops(command):
    done = command("--cfg", "job", "strategy=l2_init", "-p", "strategy")
    assert done.code == 0 and done.jobs == []
    assert done.out.startswith("# @package strategy\nl2_init:\n")


# --- errors while a run is made -----------------------------------------------------------------------


def raising(error):
    def train(cfg):
        raise error

    return train


def test_an_interrupted_run_says_that_it_can_be_resumed(command):
    error = RuntimeError("an archive cannot be closed")  # as torch raises after Ctrl-C
    error.__context__ = KeyboardInterrupt()
    done = command("strategy=naive", train=raising(error))
    assert done.code == 130
    assert done.err == "harness: interrupted: repeat the command to resume the run after its last finished task\n"


@pytest.fixture
def composing(monkeypatch):
    """Ctrl-C while Hydra composes: OmegaConf fails as it restores its flags, and Hydra wraps that."""
    composed = ConfigLoaderImpl._load_configuration_impl

    def interrupt(mode):
        def compose(self, *, run_mode, **others):
            if run_mode == mode:
                try:
                    raise KeyboardInterrupt
                finally:
                    raise ConfigKeyError("'NoneType' object has no attribute '_invalidate_flags_cache'")
            return composed(self, run_mode=run_mode, **others)

        monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", compose)

    return interrupt


@pytest.mark.parametrize("mode", [RunMode.MULTIRUN, RunMode.RUN], ids=["checked", "run"])
def test_an_interruption_that_hydra_wraps_is_one(command, composing, mode):
    """The command line is composed twice: to check it, and by Hydra."""
    composing(mode)
    done = command("strategy=si")
    assert (done.code, done.jobs) == (130, [])
    assert done.err == "harness: interrupted: repeat the command to resume the run after its last finished task\n"


def test_an_interrupted_command_that_trains_nothing_promises_nothing(command, monkeypatch):
    stopped = replace(COMMANDS["leaderboard"], run=raising(KeyboardInterrupt()))
    monkeypatch.setitem(COMMANDS, "leaderboard", stopped)
    done = command("leaderboard")
    assert (done.code, done.err) == (130, "harness: interrupted\n")


def test_a_complaint_about_a_group_keeps_its_name(command):
    """`tasks` is also the last word of eval.tasks."""
    done = command("strategy=naive", train=raising(ValueError("tasks=rotated: choose images")))
    assert done.err == "harness: tasks=rotated: choose images\n"
    done = command("strategy=naive", train=raising(ValueError("widths=[0]: too narrow")))
    assert done.err == "harness: model.widths=[0]: too narrow\n"


def test_a_constructors_complaint_is_told_under_the_key_that_is_typed(command):
    """Hydra wraps it and names the class; the message starts with the key, the strategy or neither."""
    from hydra.utils import instantiate

    def train(cfg):
        instantiate(cfg["strategy"]["mine"])

    folder = Path("mine/strategy")
    folder.mkdir(parents=True)
    sys.path.insert(0, os.getcwd())
    Path("picky_module.py").write_text("class Picky:\n    def __init__(self, said):\n        raise ValueError(said)\n")
    says = {
        "rate=-1: must be positive": "strategy.mine.rate=-1: must be positive",
        "mine.rate=-1: must be positive": "strategy.mine.rate=-1: must be positive",
        "strategy.mine.rate=-1: no": "strategy.mine.rate=-1: no",
        "dislikes it": "strategy.mine: dislikes it",
    }
    for said, line in says.items():
        (folder / "mine.yaml").write_text(f"mine:\n  _target_: picky_module.Picky\n  said: '{said}'\n")
        done = command("--config-dir", "mine", "strategy=mine", "metrics=off", train=train)
        assert (done.code, done.err) == (2, f"harness: {line}\n")


def test_a_strategys_value_out_of_range_is_told_by_its_full_key(tmp_path):
    """Through the real command line: nothing is stubbed."""
    words = ("strategy=online_ewc", "strategy.online_ewc.gamma=2", f"results={tmp_path}")
    done = started(*words, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "harness: strategy.online_ewc.gamma=2: must be in [0, 1]\n"
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_not_there_is_named(command):
    from hydra.utils import instantiate

    folder = Path("mine/strategy")
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("mine:\n  _target_: nowhere_at_all.Mine\n")
    done = command("--config-dir", "mine", "strategy=mine", train=lambda cfg: instantiate(cfg["strategy"]["mine"]))
    start = (
        f"harness: strategy.mine._target_=nowhere_at_all.Mine: not found in {os.getcwd()} or among installed packages: "
    )
    assert done.code == 2 and done.err.startswith(start) and done.err.count("\n") == 1
    assert "No module named 'nowhere_at_all'" in done.err


def test_a_complaint_of_our_own_is_told_under_the_one_key_of_that_name(command):
    done = command(train=raising(ValueError("widths=[0]: at least one unit")))
    assert done.err == "harness: model.widths=[0]: at least one unit\n"
    done = command(train=raising(ValueError("batch_size=0: two keys are called so")))
    assert done.err == "harness: batch_size=0: two keys are called so\n"


def test_a_file_that_cannot_be_written_is_told(command):
    done = command(train=raising(PermissionError(13, "Permission denied", "/x/y")))
    assert (done.code, done.err) == (2, "harness: [Errno 13] Permission denied: '/x/y'\n")


def test_a_bug_keeps_its_traceback(command):
    def library(cfg):
        int("x")  # a ValueError that nobody wrote a sentence for

    for train in (library, raising(RuntimeError("a bug"))):
        done = command(train=train)
        assert done.code == 1
        assert done.err.startswith("Traceback") and "test_entry.py" in done.err


@pytest.mark.parametrize("typed", ["--hydra-help", "--info", "-sc install=bash"])
def test_hydras_own_flags_work(typed, tmp_path):
    done = started(*typed.split(), cwd=tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr and done.stdout
    assert list(tmp_path.iterdir()) == []


def test_flags_and_settings_come_in_any_order(command):
    done = command("strategy=l2_init", "-m", "seeds=[0],[1]", "optimizer.lr=0.5")
    assert done.code == 0, done.err
    assert sorted(job["seeds"][0] for job in done.jobs) == [0, 1]
    assert {job["optimizer"]["lr"] for job in done.jobs} == {0.5}


def test_a_traceback_can_be_asked_for(command, monkeypatch):
    monkeypatch.setenv("HARNESS_TRACEBACK", "1")
    assert command(train=raising(ValueError("x=1: no"))).err.startswith("Traceback")


# --- help and ls --------------------------------------------------------------------------------------


def test_help_on_a_narrow_terminal_breaks_between_words(command, monkeypatch):
    wide = command("--help").out
    monkeypatch.setenv("COLUMNS", "60")
    narrow = command("--help").out
    assert narrow.split() == wide.split() and max(map(len, wide.splitlines())) > 60
    assert [line for line in narrow.splitlines() if len(line) > 60 and len(line.split()) > 1] == []


def test_help_names_every_option_and_only_settings_that_exist(command):
    done = command("--help")
    assert (done.code, done.err, done.jobs) == (0, "", [])
    for group in catalogue.GROUPS:
        for name in catalogue.options(group):
            assert re.search(rf"\b{name}\b", done.out), name
    assert max(map(len, done.out.splitlines())) <= 100
    settings = re.search(r"\nSettings.*?\n\n", done.out, re.DOTALL)[0]
    typed = [line.split()[0] for line in settings.splitlines()[2:] if re.match("  [^ ]", line)]  # not a wrapped rest
    assert len(typed) >= 10
    assert command(*typed).code == 0


@pytest.mark.parametrize("word", ["-h", "help"])
def test_help_has_several_names(command, word):
    assert command(word).out == command("--help").out


def test_version_is_ours(command):
    assert command("--version").out.startswith("harness")


@pytest.mark.parametrize("what", catalogue.LISTED)
def test_ls_has_a_line_for_each_file(command, what):
    done = command("ls", what)
    lines = done.out.splitlines()
    names = [line.split()[0] for line in lines]
    if what == "strategies":
        families = [re.split(" {2,}", line)[1] for line in lines]
        assert families == sorted(families) and {"replay", "plasticity", "control"} <= set(families)
        names.sort()
    assert names == list(catalogue.options(catalogue.LISTED[what]))
    assert all(len(line.split()) > 2 for line in lines), "a line without a description"
    assert (done.code, done.err) == (0, "")


def test_ls_lists_everything(command):
    done = command("ls")
    assert [line for line in done.out.splitlines() if not line.startswith(" ")] == list(catalogue.LISTED)


def test_a_reader_that_has_seen_enough_is_no_error():
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m harness ls | true; echo ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stderr, done.stdout.split()) in (("", ["141"]), ("", ["0"]))


def test_a_description_is_the_docstring_or_the_opening_comment(tmp_path):
    group = tmp_path / "strategy"
    group.mkdir()
    (group / "a.yaml").write_text("# Said in the file.\n\n_target_: harness.optim.SGD\n# a key\nlr: 1\n")
    (group / "b.yaml").write_text("b:\n  _target_: harness.optim.SGD\n")
    (group / "c.yaml").write_text("# a key's comment\nlr: 1\n_target_: harness.optim.AdamW\n")
    (group / "d.yaml").write_text("# @package _global_\n# A preset.\n# And more of it.\n\nx: 1\n")
    (group / "e.yaml").write_text("_target_: nowhere.at.All\n")
    said = catalogue.describe("strategy", [tmp_path])
    assert said["a"] == "Said in the file."
    assert said["b"].startswith("Stochastic gradient descent")
    assert said["c"].startswith("Adam with decoupled")
    assert (said["d"], said["e"]) == ("A preset.", "")


def test_the_nearest_word_ignores_case_and_gives_up_on_nonsense():
    assert catalogue.nearest("EWC", ["ewc", "naive"]) == "ewc"
    assert catalogue.nearest("zzz", ["ewc", "naive"]) is None
