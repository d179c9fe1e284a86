"""Every option of genrl, with its default and meaning; `docs/configuration.md` is generated from this file.

The open slots (`objective`, `layout`, each reward) hold a component's name and that component's own options; they are
checked against the component once the registries are known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class ColumnsConfig:
    """Names of the columns in the user's files."""

    user: str = "user_id"
    """User identifier."""
    item: str = "item_id"
    """Item identifier, in both files."""
    time: str | None = "timestamp"
    """Anything that sorts; ties keep the order of the file. None: the order of the file alone."""
    position: str | None = None
    """Place in the user's sequence; wins over `time` where given."""
    split: str | None = None
    """Column holding train / valid / test / history_only; needed by `split: column`."""
    title: str | None = "title"
    """Item title."""
    category: str | None = "category"
    """Item category on the level that Entropy@K is taken over (the second)."""
    text: list[str] = field(default_factory=list)
    """Further item columns whose words describe the item (brand, description, category path)."""
    feedback: list[str] = field(default_factory=list)
    """Numeric columns of the interactions (click, play time) that are kept beside each one, for rewards."""
    attributes: list[str] = field(default_factory=list)
    """Further item columns kept as text beside each item, for rewards; embeddings and prompts do not see them."""


@dataclass
class ToyConfig:
    """The synthetic catalogue that ships as code."""

    users: int = 1500
    """Number of users."""
    items: int = 288
    """Number of items."""
    seed: int = 0
    """Seed of catalogue and users; independent of the run's seed."""


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
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Column names."""
    k_core: int = 0
    """Drop users and items with fewer interactions, repeatedly; 0 keeps all."""
    split: Literal["leave_one_out", "temporal", "column"] = "leave_one_out"
    """Last item of each user to test and the one before to valid; or global points in time; or a column of the file."""
    valid_fraction: float = 0.1
    """Share of interactions in the validation period (temporal)."""
    test_fraction: float = 0.1
    """Share of interactions in the test period (temporal)."""
    rl_holdout: int = 1
    """Last training positions of each user kept from SFT and used as RL prompts; 0: RL prompts are SFT positions."""
    max_history: int = 20
    """Items of history a prompt shows."""
    cold_fraction: float = 0.05
    """Share of items, the least frequent in training, that count as cold."""
    cold_rule: Literal["rank", "percentile_value"] = "rank"
    """Exactly that share (ties by item order), or every item at or below the percentile's frequency."""
    toy: ToyConfig = field(default_factory=ToyConfig)
    """Size and seed of the toy catalogue."""


@dataclass
class EmbeddingConfig:
    """Item embeddings that the codes are fitted on."""

    source: Literal["collaborative", "text", "both", "file"] = "text"
    """Training co-occurrence, item text, the two joined, or a file. On real purchases `collaborative` learns best."""
    text_encoder: str = "tfidf"
    """`tfidf` (TF-IDF + truncated SVD) or the local folder of a sentence-transformers model (extra `text`)."""
    dimensions: int = 128
    """Size of each embedding, at most."""
    window: int = 5
    """Two items of a user co-occur when at most this many places apart."""
    path: str | None = None
    """For `file`: .npy or .safetensors matrix [items, d] in item-table order, or parquet with item id and vector."""


@dataclass
class SidConfig:
    """How items become Semantic IDs."""

    builder: str = "kmeans"
    """`kmeans` (residual k-means on embeddings) or `import` (a published index); plug-ins may add more."""
    path: str | None = None
    """For `import`: JSON {item id: [code token, ...]}."""
    levels: int = 3
    """Codes per item before collisions are resolved."""
    codes: int = 12
    """Codes per level. 12 suits the toy catalogue; 256 is usual for ten thousand items."""
    iterations: int = 25
    """Lloyd iterations per level."""
    collisions: Literal["token", "keep"] = "token"
    """Append a further code that tells colliding items apart, or let them share a SID."""
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    """Item embeddings."""
    seed: int = 0
    """Seed of the clustering; independent of the run's seed so that runs share one table."""


@dataclass
class LoraConfig:
    """Low-rank adapters (peft)."""

    rank: int = 0
    """Rank of the adapters; 0 trains all weights."""
    alpha: int = 32
    """Scale of the adapters."""
    dropout: float = 0.0
    """Dropout inside the adapters."""
    target_modules: str | list[str] = "all-linear"
    """Modules that get an adapter."""


@dataclass
class ModelConfig:
    """The policy's backbone."""

    name: str = "tiny"
    """`tiny` (Qwen3 architecture, random weights, own tokenizer) or the folder of a Hugging Face causal LM."""
    hidden: int = 64
    """tiny: hidden size."""
    layers: int = 2
    """tiny: number of layers."""
    heads: int = 4
    """tiny: attention heads, as many key/value heads."""
    feed_forward: int = 128
    """tiny: inner size of the feed-forward layers."""
    vocabulary: int = 1000
    """tiny: size of the word vocabulary trained on titles."""
    dropout: float = 0.1
    """tiny: dropout on embeddings and on each residual branch, in SFT only."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters; with rank 0 all weights train and the KL reference is a frozen copy."""
    quantize: Literal["none", "nf4"] = "none"
    """4-bit base weights (QLoRA); needs lora.rank > 0."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision the weights are loaded in."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model folder. Off unless you know the folder."""
    seed: int = 0
    """Seed of the random weights and of new SID rows; independent of the run's seed so that runs share Stage 1."""


@dataclass
class PromptConfig:
    """The words around a history; the same for SFT and RL."""

    prefix: str = ""
    """Text before the history's SIDs, e.g. "The user bought: "."""


@dataclass
class AlignConfig:
    """Stage 1: supervised next-item training on the SIDs of user histories."""

    max_epochs: int = 16
    """Passes over the data at most."""
    patience: int = 3
    """Validations without a better NDCG@10 before the stage stops; 0 never stops early."""
    validate_every: float = 2.0
    """Passes between validations; a resumable checkpoint follows each."""
    items_per_step: int = 384
    """Target items per optimiser step."""
    pack_length: int = 128
    """Tokens per packed row, more where one user needs it; users do not see each other inside a row."""
    learning_rate: float = 8e-3
    """Peak learning rate; meant for the tiny model from scratch, pre-trained weights want a small part of it."""
    final_learning_rate: float = 0.05
    """Share of the peak that the cosine ends at, reached at the last step of `max_epochs`."""
    weight_decay: float = 0.1
    """AdamW weight decay."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    """AdamW betas."""
    warmup_steps: int = 200
    """Linear warm-up."""
    shuffle_ties: bool = True
    """Each epoch, put interactions of a user with equal time in a new random order."""
    item_dropout: float = 0.0
    """Share of the items of a history that are left out, chosen anew in each pass: more different short histories."""
    text_tasks: Literal["auto", "on", "off"] = "auto"
    """SID -> title and title -> SID examples; auto: on for backbones that were pre-trained on text."""
    seed: int = 0
    """Seed of order and dropout; independent of the run's seed so that every objective and seed shares this stage."""


@dataclass
class ActivateConfig:
    """Stage 2: supervised training on traces, the prompt masked."""

    traces: Literal["template", "jsonl"] = "template"
    """Thinking made from the catalogue alone, or a teacher's from the file `path`."""
    path: str | None = None
    """For `jsonl`: one line per trace, {"user": .., "item": .., "blocks": [..]} or {.., "text": ".."}."""
    words: int = 4
    """template: words per block at most; from 8 on they name an item of the history, too."""
    examples: int = 20000
    """template: traces at most, of a random part of the training positions; 0: one for each."""
    foreign: float = 0.8
    """Share of the traces that are shown with the thinking of another trace, drawn anew in each pass; of these only the
    SID is learned: the policy looks at the history, too, instead of trusting its thinking blindly."""
    max_epochs: int = 2
    """Passes over the traces at most."""
    patience: int = 2
    """Validations without a better NDCG@10 before the stage stops; 0 never stops early."""
    validate_every: float = 1.0
    """Passes between validations; a resumable checkpoint follows each."""
    examples_per_step: int = 128
    """Traces per optimiser step."""
    pack_length: int = 128
    """Tokens per packed row, more where one trace needs it; traces do not see each other inside a row."""
    learning_rate: float = 8e-3
    """Peak learning rate; meant for the tiny model from scratch, pre-trained weights want a small part of it."""
    final_learning_rate: float = 0.05
    """Share of the peak that the cosine ends at, reached at the last step of `max_epochs`."""
    weight_decay: float = 0.1
    """AdamW weight decay."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    """AdamW betas."""
    warmup_steps: int = 20
    """Linear warm-up."""
    seed: int = 0
    """Seed of order and dropout; independent of the run's seed so that every objective and seed shares this stage."""


@dataclass
class RolloutConfig:
    """How completions are drawn for RL."""

    method: Literal["sample", "beam", "gumbel"] = "sample"
    """Independent samples; the group_size most likely distinct items; or distinct items sampled without replacement."""
    group_size: int = 16
    """Completions per prompt (G)."""
    prompts: int = 16
    """Prompts per rollout, over all ranks."""
    temperature: float = 1.0
    """Temperature of sampling; log-probabilities are those of the distribution sampled from."""
    thinking_temperature: float | None = None
    """Temperature of the words of thinking; null: as `temperature`."""
    normalize: Literal["legal", "vocab"] = "legal"
    """Log-probabilities over the legal set that was sampled from, or over the vocabulary as in published code."""
    correction: Literal["none", "truncated"] = "none"
    """Weights for the gap between the policy that sampled and the policy that is trained, where low precision makes
    them differ: none, or the ratio of their probabilities, at most `correction_bound`."""
    correction_bound: float = 2.0
    """Largest weight of `correction: truncated`."""
    minibatches: int = 1
    """Optimiser steps per pass over a rollout."""
    epochs: int = 1
    """Passes over a rollout."""
    micro_batch: int = 0
    """Prompts per forward and backward pass; 0: a mini-batch at once."""


@dataclass
class RLConfig:
    """Stage 3: policy optimisation against verifier rewards."""

    max_steps: int = 50
    """Optimiser steps."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """AdamW betas."""
    warmup_steps: int = 0
    """Linear warm-up, then constant."""
    validate_every: int = 25
    """Optimiser steps between validations; a resumable checkpoint follows each."""
    select: Literal["best", "last"] = "best"
    """Keep the weights with the best validation NDCG@10, or the last."""


@dataclass
class TrainerConfig:
    """Hardware and numerics; the same file serves a laptop and a cluster."""

    accelerator: str = "auto"
    """cpu, gpu or auto."""
    devices: int = 1
    """Processes (or GPUs) per node."""
    num_nodes: int = 1
    """Machines that train together, each with `devices` processes."""
    strategy: Literal["auto", "ddp"] = "auto"
    """How several devices share the work; `auto` is one device or ddp."""
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "32-true"
    """Precision of updates, rollouts and rankings."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""
    threads: int = 1
    """CPU threads per process. One is fastest for tiny models as soon as anything else runs, and gives the same bits on
    any machine; raise it for larger models on a CPU. 0: as PyTorch decides."""
    branching: Literal["auto", "tree", "expand", "naive"] = "auto"
    """How completions share their prompt: in one row behind it, in rows with a copy of its cache, or not at all. `auto`
    takes the cheapest way that is right for the model."""
    checkpointing: bool = False
    """Compute activations again in the backward pass: much less memory, about a third more time."""
    compile: bool = False
    """Compile the model's forward and backward passes (torch.compile); meant for GPUs, the first steps take minutes."""
    log_every: int = 5
    """Optimiser steps between TensorBoard points."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further arguments of lightning.Trainer."""


@dataclass
class EvaluateConfig:
    """Full-catalogue evaluation."""

    beam: int = 20
    """Beam width; at least the largest K."""
    k: list[int] = field(default_factory=lambda: [5, 10])
    """Cut-offs of the metrics."""
    batch: int = 128
    """Users per batch."""
    valid_users: int | None = 2000
    """Validation rows used while training (a fixed random subset); None: all."""
    test_users: int | None = None
    """Test rows of the final table; None: all."""
    exact: bool = False
    """Final tables: widen the beam of a user until the top of the largest K is provably that of the whole catalogue."""
    level: Literal["item", "sid"] = "item"
    """A hit is the item, or (for parity with published code) any item of the same SID."""
    thinking_samples: int = 0
    """Layouts with thinking: trains of thought sampled per user, merged by mean probability; 0: the likeliest words."""
    thinking_temperature: float = 1.0
    """Temperature of the words of sampled trains of thought."""


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
    seed: int = 0
    """Seed of the RL stage (prompt order and sampling) or of a baseline (weights, order, dropout)."""
    stages: list[str] = field(default_factory=lambda: ["align", "activate", "rl"])
    """Stages to run, in order: align, activate (left out where there is no thinking), rl; or `baseline` alone."""
    plugins: list[str] = field(default_factory=list)
    """Modules or .py files whose registrations are loaded first."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data set."""
    sid: SidConfig = field(default_factory=SidConfig)
    """Semantic IDs."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Backbone."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """Prompt."""
    layout: dict[str, Any] = field(default_factory=lambda: {"name": "blocked", "budget": 8})
    """Layout of a completion: its name and options."""
    align: AlignConfig = field(default_factory=AlignConfig)
    """Stage `align`."""
    activate: ActivateConfig = field(default_factory=ActivateConfig)
    """Stage `activate`."""
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "sapo"})
    """Policy objective: its name and options."""
    baseline: dict[str, Any] = field(default_factory=lambda: {"name": "item_knn"})
    """Baseline of stage `baseline`: its name and options."""
    rewards: dict[str, Any] = field(
        default_factory=lambda: {"exact_match": {"weight": 1.0}, "level_match": {"weight": 1.0}}
    )
    """Rewards: name -> {weight, options}. Weight 0 logs a reward without optimising it; null drops it."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Rollouts."""
    rl: RLConfig = field(default_factory=RLConfig)
    """Stage `rl`."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Hardware and numerics."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Evaluation."""
