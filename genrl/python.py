"""The public Python interface: train a run, load a finished one, rank with it."""

from collections.abc import Sequence
from pathlib import Path

from genrl.cli.configuration import REGISTRIES
from genrl.config import RunConfig, load_config
from genrl.config.saved import trusting
from genrl.recommenders import Recommender
from genrl.runs.recommend import answer, load_recommender


class Loaded:
    """A finished run, ready to rank."""

    def __init__(self, recommender: Recommender) -> None:
        self.recommender = recommender

    def rank(
        self, histories: Sequence[Sequence[str]], k: int = 10, *, exclude_history: bool = False, exact: bool = False
    ) -> list[list[tuple[str, float]]]:
        """The best next items.

        Args:
            histories: item ids or titles, oldest first.
            k: items per history.
            exclude_history: leave out the items of the history.
            exact: the list must be the best of all items.

        Returns:
            For each history (item id, score), best first.

        Raises:
            DataError: if an item is not in the catalogue, or a title stands for several.
            UnsupportedError: if it cannot tell whether a list is exact.
        """
        found = answer(self.recommender, histories, k, exclude_history, exact=exact)
        return [[(item, score) for item, _, score in each.items] for each in found]


def load(folder: str | Path, overrides: Sequence[str] = (), *, trust: bool = False) -> Loaded:
    """Load a finished run; the data that it was trained on are not needed.

    Args:
        folder: of the run, wherever it is now.
        overrides: `key=value` texts over its configuration, e.g. `model.name=FOLDER` for a base model that has moved.
        trust: import the plug-ins and run the model code that the folder names: read them first.

    Raises:
        UntrustedError: if it names code that is neither trusted nor imported in this process already.
        CheckpointError: if it is no finished run, or something of it is missing or damaged.
    """
    with trusting(trust):
        return Loaded(load_recommender(Path(folder), overrides)[1])


def fit(config: RunConfig | Sequence[str] = (), *, resume: bool = False, trust: bool = False) -> Path:
    """Train a run and return its folder.

    Args:
        config: a checked configuration, or `key=value` texts over the defaults.
        resume: go on with an unfinished run of the same configuration.
        trust: let the folders of `prior.run` and `teacher.run` bring code of their own.

    Raises:
        ConfigError: if the configuration is wrong, or the folder holds another run.
    """
    from genrl.runs.fit import fit as run  # training loads libraries that ranking does without

    checked = config if isinstance(config, RunConfig) else load_config(overrides=list(config), registries=REGISTRIES)
    with trusting(trust):
        return run(checked, resume=resume, command="genrl.fit from Python")
