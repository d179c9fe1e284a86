"""Finished runs as guides of a policy: loaded once, frozen, and kept beside what they guide."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from genrl.batches import Requests
from genrl.catalog.items import Catalog
from genrl.config.load import save_config
from genrl.config.saved import copy_plugins, read_saved
from genrl.config.schema import GuideConfig, RunConfig
from genrl.errors import CheckpointError, UnsupportedError
from genrl.files import read_json, read_weights
from genrl.manifest import METRICS, check
from genrl.policy.guide import Guide
from genrl.recommenders.base import WEIGHTS, Baseline, Problem, Recommender
from genrl.sid.trie import Trie


class RunGuide(Guide):
    """The recommender of a finished run as a guide.

    Args:
        folder: of the run, or what `save` left of it.
        section: of the configuration that names it, for messages.
        config: how it is used.
        problem: catalogue of the policy, whose items it must know.
        trie: that the policy writes in.
        whole: whether the folder is that of a run, which must be finished and made from the same data.
    """

    def __init__(
        self, folder: Path, section: str, config: GuideConfig, problem: Problem, trie: Trie, *, whole: bool
    ) -> None:
        if whole:
            _check_run(folder, section, problem)
        self.folder = folder
        self.run = read_saved(folder)
        recommender = _load(folder, self.run)
        _check_items(folder, section, recommender.problem.dataset.catalog, problem.dataset.catalog)
        nobody = torch.full((1, 1), -1)
        try:
            recommender.log_probs(Requests(nobody[:, :0], nobody[:, :0] >= 0, nobody).to(str(recommender.device)))
        except UnsupportedError as error:
            raise UnsupportedError(f"{section}.run={config.run}: {error}") from error
        key = _content(read_weights(folder / WEIGHTS))
        super().__init__(recommender, trie, config.temperature, key)
        self.source: Recommender = recommender

    @property
    def name(self) -> str:
        """Of the recommender."""
        config = self.run
        return str(config.baseline["name"] if config.stages == ["baseline"] else config.model.name)

    def save(self, folder: Path) -> None:
        """Write all that is needed to load it again without its run."""
        folder.mkdir(exist_ok=True)
        self.source.save(folder)
        copy_plugins(self.folder, folder)
        save_config(self.run, folder / "config.yaml")


def _check_run(folder: Path, section: str, problem: Problem) -> None:
    if not (folder / METRICS).is_file():
        raise CheckpointError(
            f"{section}.run={folder} is no finished run (no metrics.json there). Train one first, for example "
            f"python -m genrl fit --baseline sasrec with the same data options, and give its run folder."
        )
    check(folder)
    theirs, own = read_json(folder / METRICS)["data"]["fingerprint"], problem.dataset.fingerprint
    if theirs != own and len(problem.dataset.sequences.items):  # a loaded recommender has no interactions any more
        raise CheckpointError(
            f"{section}.run={folder} was made from other data, or with another split or order: it may have learnt "
            f"items that this run is tested on. Train it anew with the data options of this run."
        )


def _load(folder: Path, config: RunConfig) -> Recommender:
    if config.stages == ["baseline"]:
        return Baseline.load(folder)
    from genrl.recommenders.policy import PolicyRecommender  # which loads guides itself

    return PolicyRecommender.load(folder)


def _check_items(folder: Path, section: str, theirs: Catalog, own: Catalog) -> None:
    if theirs.item_ids != own.item_ids:
        missing = len(set(own.item_ids) - set(theirs.item_ids))
        raise CheckpointError(
            f"{section}.run={folder} knows another catalogue: {len(theirs):,} items there, {len(own):,} here, "
            f"{missing:,} of which it lacks{'' if missing else ', in another order'}. Train it on the same items."
        )


def _content(state: dict[str, Tensor]) -> str:
    """Eight hex digits of trained weights."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]
