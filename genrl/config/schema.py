"""Every option of genrl, with its default and meaning; `docs/configuration.md` is generated from this file.

The open slots (`sid`, `layout`, `objective`, `baseline`, each reward) hold a component's name and that component's own
options; they are checked against the component once the registries are known.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from genrl.options import option, seed_option


@dataclass
class ColumnsConfig:
    """Names of the columns in the user's files."""

    user: str = "user_id"
    """User identifier."""
    item: str = "item_id"
    """Item identifier, in both files."""
    time: str | None = "timestamp"
    """Anything that sorts; `ties` says what becomes of equal times. None: the order of the file alone."""
    position: str | None = None
    """Place in the user's sequence; wins over `time` where given."""
    split: str | None = None
    """Column holding train / valid / test / history_only; needed by `split: column`."""
    title: str | None = "title"
    """Item title."""
    category: str | None = "category"
    """Item category on the level that Entropy@K is taken over (the second)."""
    text: list[str] = option([])
    """Further item columns whose words describe the item (brand, description, category path)."""
    feedback: list[str] = option([])
    """Numeric columns of the interactions (click, play time) that are kept beside each one, for rewards."""
    attributes: list[str] = option([])
    """Further item columns kept as text beside each item, for rewards; embeddings and prompts do not see them."""


@dataclass
class ToyConfig:
    """The synthetic catalogue that ships as code."""

    world: Literal["toy", "hop"] = "hop"
    """What the next item hangs on: `toy`, the two latest items; `hop`, three mixtures of colours, one after the
    other, of the four latest; built so that thinking pays."""
    users: int = option(1500, ge=10)
    """Number of users, enough for two splits."""
    items: int = option(288, ge=48)
    """Number of items, enough for a tree of categories."""
    seed: int = seed_option(0)
    """Seed of catalogue and users; independent of the run's seed."""


@dataclass
class PoolConfig:
    """The candidates that each request may get, in place of the whole catalogue."""

    size: int | None = option(None, ge=1)
    """Items in each pool; null: every request may get the whole catalogue. Numbers inside pools are not comparable with
    those of the whole catalogue."""
    target: bool = True
    """Put the targets of a request in its pool, so that every target can be reached. false: they are there only where
    they are found, as when nobody knows them."""
    neighbours: int = option(40, ge=0)
    """Places for the nearest neighbours of the latest items of the history."""
    by: Literal["cooccurrence", "embedding"] = "cooccurrence"
    """Nearest by co-occurrence, counted on the TRAIN part, or by the embeddings that `sid.embedding` describes."""
    popular: int = option(20, ge=0)
    """Places for the items of most training interactions that are not in the pool yet. Random ones fill the rest."""
    latest: int = option(10, ge=1)
    """Latest items of the history that neighbours are looked for."""
    seen: bool = False
    """Whether items of the history may be in a pool; false leaves out targets among them, too."""
    seed: int = seed_option(0)
    """Seed of random items and of the order; independent of the run's seed: a request has one pool in every run."""


@dataclass
class DataConfig:
    """What to learn from and how to divide it."""

    source: Literal["toy", "files"] = "toy"
    """The toy catalogue, or the files named below."""
    interactions: str | None = None
    """A parquet, delimited (CSV, TSV, RecBole) or JSONL file, a folder of them, or the name of a hub data set."""
    items: str | None = None
    """The item table, in the same forms."""
    separator: str | None = None
    """Between the fields of a delimited file; null: by suffix (.csv `,`; .tsv .inter .item tab; .dat `::`)."""
    encoding: str = "utf-8"
    """Of delimited and JSONL files: utf-8, latin-1, cp1252, gb18030, utf-16 ..."""
    interactions_header: list[str] = option([])
    """Names of all columns of delimited interactions without a header line, in order; []: the first line names them."""
    items_header: list[str] = option([])
    """The same of the item table."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Column names."""
    k_core: int = option(0, ge=0)
    """Drop users and items with fewer interactions, repeatedly; 0 keeps all."""
    split: Literal["leave_one_out", "temporal", "column"] = "leave_one_out"
    """Last item of each user to test and the one before to valid; or global points in time; or a column of the file."""
    valid_fraction: float = option(0.1, gt=0, lt=1)
    """Share of interactions in the validation period (temporal)."""
    test_fraction: float = option(0.1, gt=0, lt=1)
    """Share of interactions in the test period (temporal)."""
    time_unit: Literal["ns", "us", "ms", "s", "minutes", "hours", "days", "date"] | None = None
    """Unit of `columns.time`, or `date` where it holds dates or times of a day and year: what turns times into days,
    for `prompt.window_days` and `activate.label_days`. null: only their order is known. The toy data has days."""
    ties: Literal["file", "random", "together"] = "random"
    """Interactions of a user at the same time: as in the files, in one random order, or none in the history of another
    (they are divided, held out and counted as one)."""
    ties_seed: int = seed_option(0)
    """Seed of the random order of ties; independent of the run's seed."""
    rl_holdout: int = option(1, ge=0)
    """Last training positions of each user kept from SFT and used as RL prompts; 0: RL prompts are SFT positions."""
    max_history: int = option(20, ge=1)
    """Items of history a prompt shows."""
    cold_fraction: float = option(0.05, ge=0, lt=1)
    """Share of items, the least frequent in training, that count as cold."""
    cold_rule: Literal["rank", "percentile_value"] = "rank"
    """Exactly that share (ties by item order), or every item at or below the percentile's frequency."""
    toy: ToyConfig = field(default_factory=ToyConfig)
    """Size and seed of the toy catalogue."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """Candidate pools."""


@dataclass
class LoraConfig:
    """Low-rank adapters (peft)."""

    rank: int = option(0, ge=0)
    """Rank of the adapters; 0 trains all weights."""
    alpha: int = option(32, ge=1)
    """Scale of the adapters."""
    dropout: float = option(0.0, ge=0, lt=1)
    """Dropout inside the adapters."""
    target_modules: str | list[str] = "all-linear"
    """Modules that get an adapter."""


@dataclass
class ItemModelConfig:
    """The item policy: one position per item of the history, no decode passes."""

    softmax: Literal["items", "levels"] = "items"
    """`items`: one over the catalogue, and a code is as likely as all items behind it; `levels`: one at each node."""
    hidden: int = option(64, ge=2)
    """Width of vectors and states."""
    layers: int = option(2, ge=0)
    """Self-attention blocks."""
    heads: int = option(2, ge=1)
    """Attention heads; must divide `hidden`."""
    dropout: float = option(0.3, ge=0, lt=1)
    """Share of activations dropped in supervised training."""
    positions: int = option(50, ge=1)
    """Items of the longest history that it can read; at least `data.max_history`."""
    tied: bool = True
    """Read an item as the sum of the vectors that score its edges; false: of vectors of their own."""
    edge_start: float = option(0.02, ge=0)
    """Standard deviation of the edges' own vectors before training; 0: every edge begins as its code."""
    edge_dropout: float = option(0.0, ge=0, lt=1)
    """Share of the edges that do without their own vector in a step of supervised training."""
    edge_decay: float = option(0.0, ge=0)
    """AdamW weight decay of the edges' own vectors, beside that of the stage."""


FROM_SCRATCH = ("tiny", "item")
"""Policies that begin with random weights; any other name is a folder."""


@dataclass
class ModelConfig:
    """The policy's backbone."""

    name: str = "tiny"
    """`tiny` (Qwen3 architecture, random weights, own tokenizer), `item` (reads items, writes SIDs; see its section) or
    the folder of a Hugging Face causal LM."""
    hidden: int = option(64, ge=2)
    """tiny: hidden size."""
    layers: int = option(2, ge=1)
    """tiny: number of layers."""
    heads: int = option(4, ge=1)
    """tiny: attention heads, as many key/value heads."""
    feed_forward: int = option(128, ge=1)
    """tiny: inner size of the feed-forward layers."""
    vocabulary: int = option(1000, ge=1)
    """tiny: size of the word vocabulary trained on titles."""
    dropout: float = option(0.0, ge=0, lt=1)
    """tiny: dropout on embeddings and on each residual branch, in SFT only."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters; with rank 0 all weights train and the KL reference is a frozen copy."""
    quantize: Literal["none", "nf4"] = "none"
    """4-bit base weights (QLoRA); needs lora.rank > 0."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision the weights are loaded in."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model folder. Off unless you know the folder."""
    seed: int = seed_option(0)
    """Seed of the random weights and of new SID rows; independent of the run's seed so that runs share Stage 1."""
    item: ItemModelConfig = field(default_factory=ItemModelConfig)
    """The item policy."""

    @property
    def from_scratch(self) -> bool:
        """Whether there are no weights before training."""
        return self.name in FROM_SCRATCH


@dataclass
class GuideConfig:
    """A frozen recommender, made from the same data, whose probabilities of items are a target of training."""

    run: str | None = None
    """Folder of its finished run, e.g. runs/beauty/sasrec-s0; null: there is none."""
    temperature: float = option(1.0, gt=0)
    """Divides its log-probabilities of items before they are normalised again; above 1 it is less sure."""


@dataclass
class PriorConfig(GuideConfig):
    """A frozen recommender that has its say at each code: in sampling, scoring, rankings and KL, not in supervision."""

    weight: float = option(0.5, ge=0, lt=1)
    """w of pi^(1 - w) p^w, normalised over the codes that may follow; 0 leaves the policy alone."""


@dataclass
class PromptConfig:
    """The words around a history; the same for SFT and RL."""

    prefix: str = ""
    """Text before the history's SIDs, e.g. "The user bought: "."""
    template: str | None = None
    """null: a prompt is the SIDs of the history. `textrec`, or the path of a Jinja2 file of your own: the history in
    words, by time and topic, with profile and candidates if there are some. Stage `align` teaches prompts of SIDs."""
    chat: Literal["auto", "off"] = "auto"
    """Prompts in words: as a message of the user, where the tokenizer has a chat template; or as they are."""
    max_tokens: int = option(512, ge=1)
    """Prompts in words: tokens at most; the oldest items of a longer one are left out."""
    windows: list[int] = option([5], ge=1, says="must hold numbers of latest items of at least 1, e.g. [5, 20]")
    """Prompts in words: the latest so many items are told apart from those before."""
    window_days: list[float] | None = option(
        None, gt=0, le=36500, says="must hold days above 0 and at most 36500, e.g. [1, 7, 30], or be null"
    )
    """Prompts in words: windows by the clock, in place of `windows`: how many days before the latest item each ends.
    Needs `data.time_unit`."""
    titles: int = option(3, ge=1)
    """Prompts in words: names told of each topic in a window, the latest."""
    candidates: bool = False
    """Prompts in words: list the candidate pool (`data.pool`)."""
    profile: str | None = None
    """Prompts in words: a file of users, in the forms of `data.items`, whose column `data.columns.user` names them."""
    fields: list[str] = option([])
    """Prompts in words: columns of `profile` that are told of the user."""


@dataclass
class OptimizerConfig:
    """What each stage says of its optimiser."""

    learning_rate: float = option(1e-4, gt=0)
    """Peak learning rate."""
    weight_decay: float = option(0.0, ge=0)
    """Decoupled weight decay."""
    betas: list[float] = option(
        [0.9, 0.95],
        ge=0,
        lt=1,
        length=2,
        says="must be two numbers, each at least 0 and below 1, e.g. [0.9, 0.95]",
    )
    """AdamW betas."""
    warmup_steps: int = option(0, ge=0)
    """Linear warm-up."""


@dataclass
class SupervisedConfig(OptimizerConfig):
    """What the supervised stages share."""

    optimizer: Literal["auto", "muon", "adamw", "paged_adamw_8bit", "paged_adamw_32bit"] = "auto"
    """`adamw`, or `muon`: that for tables and vectors, and Muon for the matrices inside the model, which a model from
    scratch learns with in half the steps. `auto`: `muon` for `model.name: tiny`, else `adamw`. `paged_...`: AdamW of
    bitsandbytes with means in 8 or 32 bits, which move to the CPU's memory when the GPU is short of its own."""
    learning_rate: float = 4e-3
    """Peak learning rate; meant for the tiny model from scratch, pre-trained weights want a small part of it."""
    final_learning_rate: float = option(0.05, ge=0, le=1, says="must be from 0 to 1: it is a share of the peak")
    """Share of the peak that the cosine ends at, reached at the last step of `max_epochs`."""
    weight_decay: float = 0.1
    betas: list[float] = option([0.9, 0.98])
    max_epochs: int = option(16, ge=1)
    """Passes over the data or the traces at most."""
    patience: int = option(3, ge=0)
    """Validations without a better `select.metric` before the stage stops; 0 never stops early."""
    validate_every: float = option(2.0, gt=0)
    """Passes between validations; a resumable checkpoint follows each."""
    pack_length: int = option(128, ge=2)
    """Tokens per packed row, more where one user or trace needs it; they do not see each other inside a row."""
    seed: int = seed_option(0)
    """Seed of order and dropout; independent of the run's seed so that every objective and seed shares this stage."""


@dataclass
class AlignConfig(SupervisedConfig):
    """Stage 1: supervised next-item training on the SIDs of user histories."""

    max_epochs: int = 4
    warmup_steps: int = 200
    items_per_step: int = option(384, ge=1)
    """Target items per optimiser step."""
    item_dropout: float = option(0.0, ge=0, lt=1)
    """Share of the items of a history that are left out, chosen anew in each pass: more different short histories."""
    teacher_share: float = option(0.0, ge=0, le=1)
    """Share of the section `teacher` in the target of each code: its probabilities of the codes that may follow, in the
    place of the code alone; 0: there is no teacher."""
    text_tasks: Literal["auto", "on", "off"] = "auto"
    """SID -> title and title -> SID examples; auto: on for backbones that were pre-trained on text."""


@dataclass
class ActivateConfig(SupervisedConfig):
    """Stage 2: supervised training on traces, or on gold slates, the prompt masked."""

    max_epochs: int = 3
    patience: int = 2
    validate_every: float = 1.0
    warmup_steps: int = 20
    pack_length: int = 160
    traces: Literal["auto", "derived", "evidence", "candidates", "teacher", "template", "jsonl"] = "auto"
    """What is thought. From the history alone: `derived`, `evidence` or `candidates` by counting, `teacher` by the rule
    of the toy world hop. `template` describes the target; `jsonl` is read from the file `path`. `auto`: `teacher` in
    the world hop, else `derived` if items have categories or attributes, else `template`."""
    teacher_wrong: float = option(0.15, ge=0, le=1)
    """teacher: share of the pairs of colours whose mixture he has wrong."""
    teacher_often: float = option(0.6, ge=0, le=1)
    """teacher: how often he says the wrong mixture where he has one."""
    plain: float = option(1.0, ge=0)
    """Weight of learning the next items alone, too, so that it is not forgotten; 0 leaves it out."""
    path: str | None = None
    """For `jsonl`: one line per trace, {"user": .., "item": .., "blocks": [..]} or {.., "text": ".."}. Layout slate:
    one line per slate, {.., "items": [..]}, learned beside gold slates; `genrl slates` writes those of a run."""
    gold: bool = True
    """Layout slate: learn gold slates; false: those of `path` alone."""
    labels: dict[str, float] = option({})
    """Layout slate: columns of `data.columns.feedback` and what one unit of each is worth, e.g. {is_click: 1, is_like:
    2}. Gold slates then hold the next items whose sum is positive, the highest first; {}: the next items in order."""
    label_days: float | None = option(None, gt=0, le=36500)
    """Layout slate: labels are what the user chose at most so many days after the first item that is asked for, and
    with `labels` the worthiest of all these; null: the next items, however late. Needs `data.time_unit`."""
    words: int = option(4, ge=4)
    """template: words per block at most; from 8 on they name an item of the history, too."""
    examples: int = option(20000, ge=0)
    """Traces (or slates) at most that genrl makes, of a random part of the training positions; 0: one for each."""
    examples_per_step: int = option(40, ge=1)
    """Traces (or slates) per optimiser step, about: those of one text stay together."""
    foreign: float = option(0.0, ge=0, lt=1)
    """Share of the traces that are shown with the thinking of another trace, drawn anew in each pass; of these only the
    SID is learned. For traces that describe the target: the policy looks at the history, too."""


@dataclass
class RolloutConfig:
    """How completions are drawn for RL."""

    method: Literal["sample", "beam", "gumbel"] = "sample"
    """Independent samples; the group_size most likely distinct items; or distinct items sampled without replacement."""
    group_size: int = option(16, ge=1)
    """Completions per prompt (G)."""
    prompts: int = option(16, ge=1)
    """Prompts per rollout, over all ranks."""
    temperature: float = option(1.0, gt=0)
    """Temperature of sampling; log-probabilities are those of the distribution sampled from."""
    thinking_temperature: float | None = option(None, gt=0)
    """Temperature of the words of thinking; null: as `temperature`."""
    normalize: Literal["legal", "vocab"] = "legal"
    """Log-probabilities over the legal set that was sampled from, or over the vocabulary as in published code."""
    correction: Literal["none", "truncated"] = "none"
    """Weights for the gap between the policy that sampled and the policy that is trained, where low precision makes
    them differ: none, or the ratio of their probabilities, at most `correction_bound`."""
    correction_bound: float = option(2.0, gt=0)
    """Largest weight of `correction: truncated`."""
    minibatches: int = option(1, ge=1)
    """Optimiser steps per pass over a rollout."""
    epochs: int = option(1, ge=1)
    """Passes over a rollout. An objective may take more where neither this nor `minibatches` is given: `sage` takes 2,
    because its bounds cannot act in the first step of a rollout."""
    micro_batch: int = option(0, ge=0)
    """Prompts per forward and backward pass; 0: a mini-batch at once."""
    information: int = option(1, ge=0)
    """Layouts that think before the SID: completions per prompt of which it is logged what their thinking tells of the
    target; 0: none. The reward `information` asks for all of them."""


@dataclass
class RLConfig(OptimizerConfig):
    """Stage 3: policy optimisation against verifier rewards."""

    optimizer: Literal["adamw", "paged_adamw_8bit", "paged_adamw_32bit"] = "adamw"
    """`adamw`, or that of bitsandbytes with means in 8 or 32 bits, see `align.optimizer`."""
    learning_rate: float = 3e-4
    """Peak learning rate; meant for the tiny model, pre-trained weights want a small part of it."""
    warmup_steps: int = 0
    """Linear warm-up, then constant."""
    max_steps: int = option(30, ge=1)
    """Optimiser steps."""
    validate_every: int = option(15, ge=1)
    """Optimiser steps between validations; a resumable checkpoint follows each."""
    select: Literal["best", "last"] = "best"
    """Keep the weights with the best `select.metric` on validation rows, or the last."""


@dataclass
class TrainerConfig:
    """Hardware and numerics; the same file serves a laptop and a cluster."""

    accelerator: str = option("auto", choices=("auto", "cpu", "gpu"))
    """cpu, gpu or auto."""
    devices: int = option(1, ge=1)
    """Processes (or GPUs) per node."""
    num_nodes: int = option(1, ge=1)
    """Machines that train together, each with `devices` processes."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """`ddp`: each process holds all weights; `fsdp`: a share of weights, gradients and optimiser state, and all weights
    while it writes and ranks (language models). `auto`: `ddp` where there are several processes."""
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "32-true"
    """Precision of updates, rollouts and rankings."""
    max_grad_norm: float = option(1.0, ge=0)
    """Gradients are scaled down to this norm; 0 leaves them."""
    max_skipped_steps: int = option(5, ge=1)
    """Steps whose loss or gradient is NaN or infinite are skipped and counted; so many in a row end the stage."""
    threads: int = option(1, ge=0)
    """CPU threads per process. One is fastest for tiny models as soon as anything else runs, and gives the same bits on
    any machine; raise it for larger models on a CPU. 0: as PyTorch decides."""
    branching: Literal["auto", "tree", "expand", "naive"] = "auto"
    """How completions share their prompt: in one row behind it, in rows with a copy of its cache, or not at all. `auto`
    takes the cheapest way that is right for the model."""
    checkpointing: bool = False
    """Compute activations again in the backward pass: much less memory, about a third more time."""
    compile: bool = False
    """Compile the model's forward and backward passes (torch.compile); meant for GPUs, the first steps take minutes."""
    log_every: int = option(5, ge=1)
    """Optimiser steps between TensorBoard points."""
    checkpoint_steps: int = option(0, ge=0)
    """Optimiser steps between resumable checkpoints at most, besides those after validations (with several updates per
    rollout behind the last of them); 0: the clock alone decides."""
    checkpoint_minutes: float = option(10.0, ge=0)
    """Minutes between resumable checkpoints at most, likewise; 0: after validations alone."""
    extra: dict[str, Any] = option({})
    """Further arguments of lightning.Trainer."""


@dataclass
class SelectConfig:
    """What chooses weights on validation rows: when a stage stops early, and which of its weights are kept."""

    ranking: Literal["excluded", "raw"] = "excluded"
    """Rankings without the items of the user's history, which verdicts are about, or of all items."""
    metric: str | None = None
    """ndcg@K, recall@K, mrr@K or cold_recall@K; null: ndcg@10, or at the largest of `evaluate.k` if 10 is not there."""


@dataclass
class EvaluateConfig:
    """Full-catalogue evaluation."""

    beam: int = option(20, ge=1)
    """Beam width while validating, and where final tables begin; it grows with the largest K by itself."""
    k: list[int] = option(
        [1, 5, 10, 20, 50], ge=1, says="must hold one or more cut-offs of at least 1, e.g. [1, 5, 10]"
    )
    """Cut-offs of the metrics; those above the number of items are left out."""
    batch: int = option(128, ge=1)
    """Users per batch."""
    ties: bool = False
    """Further rows of the final tables: targets with the time of the interaction before them (tied), and the others."""
    valid_users: int | None = option(500, ge=1)
    """Validation rows used while training (a fixed random subset); None: all."""
    test_users: int | None = option(None, ge=1)
    """Test rows of the final table; None: all."""
    exact: bool = True
    """Final tables: widen the beam of a user until the top of the largest K is provably that of the whole catalogue."""
    level: Literal["item", "sid"] = "item"
    """A hit is the item, or (for parity with published code) any item of the same SID."""
    slates: Literal["items", "whole"] = "items"
    """Layout slate, whose slate is the list: filled place by place with the best item given those before, or the
    likeliest slate that `beam` beams over whole slates find."""
    thinking_samples: int = option(0, ge=0)
    """Layouts with thinking: trains of thought sampled per user, merged by mean probability; 0: the likeliest words."""
    empty_thought: bool = False
    """Layouts with thinking: count the ranking without any thinking as one more train of thought."""
    thinking_temperature: float = option(1.0, gt=0)
    """Temperature of the words of sampled trains of thought."""
    readings: bool = False
    """Layouts with thinking: further rows of the final tables, of the same weights: without thinking, behind the
    likeliest words, and by the mean over `thinking_samples` thoughts (8 if that is 0)."""
    pass_at: list[int] | None = option(None, ge=1, says="must hold numbers of samples of at least 1, e.g. [1, 8]")
    """Final tables of policies: Pass@K, the probability that one of K sampled completions names the target."""


@dataclass
class RunConfig:
    """Everything a run depends on."""

    experiment: str = "toy"
    """Name of the folder under `output` that runs to be compared share."""
    name: str | None = None
    """Name of the run inside the experiment, e.g. for one setting of many; None: that of the objective or baseline. The
    run folder is `output`/`experiment`/`name`-s`seed`."""
    output: str = "runs"
    """Where run folders go."""
    seed: int = seed_option(0)
    """Seed of the RL stage (prompt order and sampling) or of a baseline (weights, order, dropout)."""
    stages: list[str] = option(["align", "activate", "rl"])
    """Stages to run, in order: align, activate (left out where completions are one item), rl; or `baseline` alone."""
    plugins: list[str] = option([])
    """Modules or .py files whose registrations are loaded first."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data set."""
    sid: dict[str, Any] = option({"name": "kmeans"})
    """How items become Semantic IDs: name and options of a builder."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Backbone."""
    prior: PriorConfig = field(default_factory=PriorConfig)
    """Prior of the policy."""
    teacher: GuideConfig = field(default_factory=GuideConfig)
    """Teacher of objective `opd` and, with `align.teacher_share`, of stage `align`."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """Prompt."""
    layout: dict[str, Any] = option({"name": "blocked", "budget": 8})
    """Layout of a completion: its name and options."""
    align: AlignConfig = field(default_factory=AlignConfig)
    """Stage `align`."""
    activate: ActivateConfig = field(default_factory=ActivateConfig)
    """Stage `activate`."""
    objective: dict[str, Any] = option({"name": "sapo"})
    """Policy objective: its name and options."""
    baseline: dict[str, Any] = option({"name": "item_knn"})
    """Baseline of stage `baseline`: its name and options."""
    rewards: dict[str, Any] = option({"exact_match": {"weight": 1.0}, "level_match": {"weight": 1.0}})
    """Rewards: name -> {weight, options}. Weight 0 logs a reward without optimising it; null drops it."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Rollouts."""
    rl: RLConfig = field(default_factory=RLConfig)
    """Stage `rl`."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Hardware and numerics."""
    select: SelectConfig = field(default_factory=SelectConfig)
    """What chooses weights."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Evaluation."""
