from dataclasses import fields
from inspect import signature

import pytest
from lightning import Trainer

from genrl.cli.configuration import REGISTRIES
from genrl.config import dotted_keys, load_config
from genrl.config.checks import FIXED, LIGHTNING, ExtraConfig, contradictions
from genrl.config.schema import RunConfig
from genrl.errors import ConfigError
from genrl.options import out_of_bounds


def test_the_defaults_contradict_nothing():
    assert list(contradictions(RunConfig())) == []
    assert list(out_of_bounds(RunConfig, vars(RunConfig()))) == []


def test_what_is_refused_is_an_argument_of_lightning_and_has_an_option_instead():
    assert {*LIGHTNING, *FIXED} <= set(signature(Trainer).parameters)
    homes = {option for options in LIGHTNING.values() for option in options.split(" or ")}
    assert homes <= set(dotted_keys())


@pytest.mark.parametrize("key", [key for key in dotted_keys() if key.endswith("seed")] + ["sid.seed"])
def test_every_seed_has_the_same_bounds(key):
    load_config(overrides=[f"{key}={2**32 - 1}"], registries=REGISTRIES)
    for wrong in (-1, 2**32, 2**63, 2**64):
        with pytest.raises(ConfigError, match=rf"{key} = {wrong}: .*must be from 0 to 4294967295"):
            load_config(overrides=[f"{key}={wrong}"], registries=REGISTRIES)


def test_every_argument_of_lightning_is_ours_or_left_to_the_user():
    left = {field.name for field in fields(ExtraConfig)} | {"plugins"}
    assert sorted([*LIGHTNING, *FIXED, *left]) == sorted(signature(Trainer).parameters)
    for given in ("max_time=00:00:00:05", "max_time={minutes: 1.5}", "deterministic=warn", "profiler=null"):
        load_config(overrides=[f"trainer.extra.{given}"])


def test_text_that_has_no_utf8_is_refused():
    with pytest.raises(ConfigError, match=r"--output: output = '.*': holds \\udce9, half of a character"):
        load_config(flags={"output": "caf\udce9"})


def test_other_arguments_of_lightning_are_known_by_name():
    known = ["trainer.extra={max_time: {seconds: 9}, deterministic: true}"]
    assert load_config(overrides=known, registries=REGISTRIES).trainer.extra["deterministic"] is True
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=["trainer.extra={determinstic: true}"], registries=REGISTRIES)
    assert "command line: trainer.extra.determinstic = True: is no argument of lightning.Trainer." in str(caught.value)
    assert "Did you mean 'deterministic'? Arguments left to you: " in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["rollout.group_size=0"], "rollout.group_size = 0: must be at least 1"),
        (["rl.learning_rate=0"], "rl.learning_rate = 0: must be above 0"),
        (["model.dropout=1.0"], "model.dropout = 1.0: must be at least 0 and below 1"),
        (["rl.learning_rate=.nan"], "must be above 0"),
        (["rl.learning_rate=.inf"], "rl.learning_rate = inf: must be a finite number"),
        (["trainer.max_grad_norm=.nan"], "must be at least 0"),
        (["data.toy.seed=-1"], "data.toy.seed = -1: must be from 0 to 4294967295"),
        (["rl.betas=[0.9]"], "must be two numbers"),
        (["align.betas=[0.9, 1]"], "must be two numbers"),
        (["align.final_learning_rate=1.5"], "must be from 0 to 1"),
        (["stages=[rl, align]"], "in the order align, activate, rl"),
        (["stages=[rl, rl]"], "once, in the order"),
        (["stages=[]"], "must name one or more stages"),
        (["trainer.strategy=fsdp", "stages=[baseline]"], "for language models, and a baseline is small. Set it to ddp"),
        (["trainer.strategy=fsdp", "model.name=item", "layout=sid"], "no blocks worth sharing out. Set it to ddp"),
        (["trainer.strategy=fsdp", "model.quantize=nf4", "model.lora.rank=8"], "Set it to ddp, or model.quantize=none"),
        (["trainer.strategy=fsdp", "trainer.compile=true"], "Set trainer.compile=false"),
        (["trainer.strategy=fsdp", "trainer.branching=expand"], "trainer.branching=expand makes two. Set that to auto"),
        (["trainer.extra={strategy: fsdp}"], "is set by genrl itself. Write trainer.strategy instead"),
        (["stages=[algin]"], "Did you mean 'align'?"),
        (["experiment=../x"], "must be the name of a folder"),
        (["experiment=."], "it names no folder of its own"),
        ([f"experiment=a/{'x' * 300}"], "it has 300 bytes, and names may have 200"),
        ([f"name={'x' * 300}"], "x ... (302 signs): must be the name of a folder, e.g. sapo-wide; it has 300 bytes"),
        (["name=a\u200bb"], r"it holds '\u200b'"),
        ([f"output={'a/' * 2000}"], "bytes, and may be one of 3,500"),
        (["output=~nobody7/runs"], "output = '~nobody7/runs': is no folder: Could not determine home"),
        (["trainer.extra=5"], "trainer.extra = 5: is not a group of options"),
        (["trainer.extra={1: 2}"], "Key 1 (int) is incompatible"),
        (["trainer.extra.max_time=5"], "trainer.extra.max_time = 5: is no duration. Write days:hours:minutes:sec"),
        (["trainer.extra.max_time=12h"], "is no duration"),
        (["trainer.extra.max_time={days: x}"], "is no duration"),
        (["trainer.extra.benchmark=[1]"], "trainer.extra.benchmark = [1]: is not true or false or null"),
        (["trainer.extra.detect_anomaly=x"], "is not true or false"),
        (["trainer.extra.deterministic=maybe"], "is not one of True, False, warn or null"),
        (["trainer.extra.gradient_clip_algorithm=foo"], "is not one of norm, value or null"),
        (["trainer.extra.min_steps=1e99"], "is not an integer or null"),
        (["trainer.extra.min_epochs=-1"], "trainer.extra.min_epochs = -1: must be at least 0"),
        (["trainer.extra.profiler=foo"], "is not one of simple, advanced, pytorch or null"),
        (["trainer.extra.model_registry=3"], "is set by genrl itself: weights stay in the run folder"),
        ([f"rl.learning_rate={'9' * 400}"], "is not a number. The default is 0.0003"),
        (["rewards={exact_match: null, level_match: null}"], "nothing to optimise. Add e.g. rewards.exact_match"),
        (["data.source=files"], "data.interactions: is needed by data.source=files"),
        (["data.interactions=x.csv"], "is not read with data.source=toy. Add data.source=files"),
        (["data.split=column"], "data.split = 'column': column needs a column, and the toy data set has none. Use"),
        (["data.split=column", "data.source=files", "data.interactions=x"], "data.columns.split: is needed by data.sp"),
        (["data.columns.attributes=[brand]"], "names columns that the toy data set does not have. Set it to []"),
        (["data.split=temporal", "data.columns.time=null"], "is needed by data.split=temporal"),
        (["data.time_unit=s"], "data.time_unit = 's': must be days or null: toy data has days"),
        (
            ["data={source: files, interactions: x, columns: {time: null}, time_unit: s}"],
            "is the unit of a column that nobody names. Name it in data.columns.time, or set data.time_unit=null",
        ),
        (["data.time_unit=weeks"], "is not one of ns, us, ms, s, minutes, hours, days, date or null"),
        (["activate.label_days=7"], "nothing says in which unit times are. Add data.time_unit=s for seconds"),
        (["activate.label_days=0"], "activate.label_days = 0: must be above 0 and at most 36500"),
        (["prompt.window_days=[7]", "data.time_unit=days"], "is told in words alone, and prompts are SIDs. Add"),
        (["prompt={window_days: [7], template: textrec}", "stages=[rl]"], "nothing says in which unit times are"),
        (
            ["prompt={window_days: [7, 1], template: textrec}", "data.time_unit=days", "stages=[activate,rl]"],
            "must rise from each window",
        ),
        (["prompt.window_days=[]"], "must hold days above 0 and at most 36500, e.g. [1, 7, 30], or be null"),
        (["prompt.windows=[5, 5]"], "must rise from each window to the next, e.g. [5, 20]"),
        (
            ["activate={gold: false, traces: jsonl, path: x, label_days: 3}", "data.time_unit=days"],
            "activate.label_days = 3: is about gold slates, and activate.gold=false leaves them out",
        ),
        (["data.valid_fraction=0.5", "data.test_fraction=0.5"], "leave nothing to train on"),
        (["sid.builder=import"], "sid.builder = 'import': is not an option. Did you mean 'sid.name'?"),
        (["model.quantize=nf4"], "model.quantize = 'nf4': nf4 needs adapters"),
        (["activate.gold=false"], "activate.gold = False: false leaves nothing to learn. Add activate.traces=jsonl"),
        (
            ["activate.labels.click=1"],
            "activate.labels.click = 1: is not kept beside the interactions. Kept: none. Name",
        ),
        (["activate.labels={click: much}"], "activate.labels"),
        (
            ["data={source: files, interactions: x, columns: {feedback: [click]}}", "activate.labels.clik=1"],
            "Did you mean 'click'? Kept: click. Name it in data.columns.feedback",
        ),
        (
            ["data={source: files, interactions: x, columns: {feedback: [click]}}", "activate.labels.click=.inf"],
            "activate.labels.click = inf: must be a finite number",
        ),
        (
            [
                "data={source: files, interactions: x, columns: {feedback: [click]}}",
                "activate={gold: false, traces: jsonl, path: x, labels: {click: 1}}",
            ],
            "is about gold slates, and activate.gold=false leaves them out",
        ),
        (["model.hidden=100", "model.heads=8"], "multiple of twice model.heads=8"),
        (["model.name=item", "model.item.heads=3"], "model.item.hidden: must be a multiple of model.item.heads=3"),
        (["model.name=item", "data.max_history=90"], "more than model.item.positions=50. Add model.item.positions=90"),
        (["model.name=item", "model.lora.rank=4"], "model.lora.rank = 4: is for language models"),
        (["model.name=item", "prompt.prefix=Bought:"], "is text, which model.name=item does not read"),
        (["model.name=item", "align.text_tasks=on"], "model.name=item reads items. Set it to auto"),
        (
            ["model.name=item", "rollout.normalize=vocab"],
            "item scores the codes of the trie alone. Use legal",
        ),
        (["model.name=item", "trainer.compile=true"], "passes of model.name=item are too small to gain by it"),
        (["rollout.prompts=10", "rollout.minibatches=4"], "a multiple of rollout.minibatches x trainer.devices"),
        (["trainer.num_nodes=3"], "rollout.minibatches x trainer.devices x trainer.num_nodes = 1 x 1 x 3: prompts are"),
        (["rollout.correction_bound=0"], "rollout.correction_bound = 0: must be above 0"),
        (["trainer.accelerator=gpus"], "must be one of auto, cpu, gpu"),
        (["trainer.extra={max_steps: 3}"], "Write rl.max_steps instead"),
        (["trainer.extra={limit_val_batches: 0}"], "limit_val_batches = 0: is set by genrl itself. Write"),
        (["trainer.extra={limit_val_batches: 0.5}"], "Write evaluate.valid_users instead"),
        (["trainer.extra.limit_train_batches=0"], "Write align.max_epochs or rl.max_steps instead"),
        (["trainer.extra={check_val_every_n_epoch: null}"], "Write align.validate_every or rl.validate_every instead"),
        (["trainer.extra={fast_dev_run: true}"], "is set by genrl itself: it would stop validation"),
        (["trainer.extra={num_sanity_val_steps: 2}"], "is set by genrl itself: every stage validates"),
        (["trainer.extra={barebones: true}"], "is set by genrl itself: it would keep no metrics"),
        (["evaluate.k=[]"], "must hold one or more cut-offs"),
        (["select.metric=ndcg"], "must be one of ndcg@K, recall@K, mrr@K, cold_recall@K, e.g. ndcg@10, or null"),
        (["select.metric=gini@10"], "must be one of ndcg@K, recall@K, mrr@K, cold_recall@K"),
        (["select.metric=ndcg@0"], "must be one of ndcg@K"),
        (["select.ranking=all"], "is not one of excluded, raw"),
        (["evaluate.pass_at=[0]"], "must hold numbers of samples of at least 1"),
        (["evaluate.thinking_temperature=0"], "evaluate.thinking_temperature = 0: must be above 0"),
    ],
)
def test_a_contradiction_says_what_to_write(overrides, reason):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=overrides)
    assert reason in str(caught.value)
    assert "command line: " in str(caught.value)
    assert "\n" not in str(caught.value)  # this one problem and no other


def test_a_remedy_works():
    assert load_config(overrides=["model.quantize=nf4", "model.lora.rank=16"]).model.quantize == "nf4"
    assert load_config(overrides=["select.metric=mrr@7"]).select.metric == "mrr@7"
