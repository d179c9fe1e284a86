"""Item embeddings that codes are fitted on: words, training co-occurrence, both, or a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from genrl.catalog.dataset import Dataset
from genrl.catalog.sequences import cooccurrence
from genrl.errors import ConfigError, DataError
from genrl.options import option
from genrl.sid.embedding_files import read_embeddings

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SMOOTHING = 0.75
"""Exponent on the context counts in PPMI: keeps rare items from looking too related."""
SHIFT = 5.0
"""PPMI is shifted by at most log(SHIFT): pairs that are only a little more frequent than by chance are unrelated."""
NEIGHBOURS = 10
"""Text neighbours whose embeddings stand in for an item that never co-occurs."""


@dataclass(frozen=True)
class EmbeddingConfig:
    """Item embeddings that the codes are fitted on."""

    source: Literal["collaborative", "text", "both", "file"] = "text"
    """Training co-occurrence, item text, the two joined, or a file. On real purchases `collaborative` learns best."""
    text_encoder: str = "tfidf"
    """`tfidf` (TF-IDF + truncated SVD) or the local folder of a sentence-transformers model (extra `text`)."""
    dimensions: int = option(128, ge=1)
    """Size of each embedding, at most."""
    window: int = option(5, ge=1)
    """Two items of a user co-occur when at most this many places apart."""
    path: str | None = None
    """For `file`: .npy or .safetensors matrix [items, d] in item-table order, or parquet with item id and vector."""

    def __post_init__(self) -> None:
        if self.source == "file" and not self.path:
            raise ValueError("sid.embedding.path is needed by sid.embedding.source=file: name the file of embeddings.")
        if self.source != "file" and self.path:
            raise ValueError(
                f"sid.embedding.path = {self.path!r} is not read with sid.embedding.source={self.source}. "
                "Add sid.embedding.source=file."
            )

    @property
    def encoder_folder(self) -> str | None:
        """The folder that a text encoder is read from, if one is."""
        return self.text_encoder if self.source in ("text", "both") and self.text_encoder != "tfidf" else None


def embed_items(config: EmbeddingConfig, dataset: Dataset) -> Tensor:
    """Embed every item of the catalogue: [I, D] float32, D at most `config.dimensions` (twice that for `both`).

    Raises:
        ConfigError: if a file or an encoder cannot be used.
        DataError: if there is nothing to embed, or a file does not fit the catalogue.
    """
    if config.source == "file":
        assert config.path is not None
        return read_embeddings(config.path, dataset.catalog)
    if config.source == "text":
        return text_embeddings(dataset.catalog.texts, config)
    together = collaborative_embeddings(dataset, config)
    if config.source == "collaborative":
        return together
    return torch.cat([together, text_embeddings(dataset.catalog.texts, config)], dim=1)


def text_embeddings(texts: Sequence[str], config: EmbeddingConfig) -> Tensor:
    """Embed the words of each item, [I, D] float32; rows have length 1, items without words are zero.

    Raises:
        DataError: if no item has words.
        ConfigError: if the encoder cannot be loaded.
    """
    if not any(text.strip() for text in texts):
        raise DataError(
            "sid.embedding.source needs item texts, but no item has any. Name an item table and its text columns "
            "(data.items, data.columns.title, data.columns.text), or use sid.embedding.source=collaborative."
        )
    if config.text_encoder != "tfidf":
        return _unit(_encode(texts, config.text_encoder))
    return _unit(_decompose(_tfidf(texts), config.dimensions))


def collaborative_embeddings(dataset: Dataset, config: EmbeddingConfig) -> Tensor:
    """Embed items, [I, D] float32, by what they are bought with: shifted PPMI of co-occurrence, then truncated SVD.

    M_ij = max(0, log(n_ij / (n_i p_j)) - s),  p_j = n_j^0.75 / sum_j n_j^0.75,  s = min(log SHIFT, half the median)
    M ~ U S V^T,  e_i = U_i S / |U_i S|

    (Levy and Goldberg, NeurIPS 2014; smoothing of contexts: Levy, Goldberg and Dagan, TACL 2015.) Shift and power of S
    were chosen on Beauty by the share of validation targets that share a code prefix with the history. The bound by the
    median over the pairs is ours: in a small catalogue everything co-occurs, and log SHIFT alone would leave nothing.

    Only pairs whose later interaction has the role TRAIN count, so nothing of RL, VALID or TEST rows is seen. An item
    that is left without association gets the mean of its nearest text neighbours that have one; without text, the mean
    of its category, else of all. Rows have length 1.

    Raises:
        DataError: if no two items co-occur more often than by chance.
    """
    counts = cooccurrence(dataset.sequences, len(dataset.catalog), config.window)
    associations = _ppmi(counts)
    if associations.nnz == 0:
        raise DataError(
            "sid.embedding.source: no two items co-occur in the training part more often than by chance. Use longer "
            "sequences, or sid.embedding.source=text."
        )
    embeddings = _unit(_decompose(associations, config.dimensions))
    lonely = torch.from_numpy(np.diff(associations.indptr) == 0)
    if bool(lonely.any()):
        embeddings[lonely] = _stand_ins(embeddings, lonely, dataset)
    return embeddings


def _ppmi(counts: csr_matrix) -> csr_matrix:
    matrix = counts.tocoo()
    totals = np.asarray(counts.sum(axis=1)).ravel()
    smoothed = totals**SMOOTHING
    smoothed /= max(smoothed.sum(), 1)
    information = np.log(matrix.data / (totals[matrix.row] * smoothed[matrix.col]))
    shift = min(np.log(SHIFT), np.median(information) / 2) if len(information) else 0
    matrix.data = np.maximum(information - max(shift, 0), 0)
    matrix = matrix.tocsr()
    matrix.eliminate_zeros()
    return matrix


def _tfidf(texts: Sequence[str]) -> csr_matrix:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float32)
    return vectorizer.fit_transform(texts)


def _decompose(matrix: csr_matrix, dimensions: int) -> Tensor:
    """Truncated SVD, U S: [I, D] float32. One BLAS thread, so that the digits do not depend on the machine."""
    from sklearn.utils.extmath import randomized_svd
    from threadpoolctl import threadpool_limits

    rank = max(1, min(dimensions, min(matrix.shape) - 1))
    with threadpool_limits(limits=1):
        left, values, _ = randomized_svd(matrix, rank, n_iter=7, random_state=0)
    return torch.from_numpy(np.ascontiguousarray(left * values)).float()


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def _stand_ins(embeddings: Tensor, lonely: Tensor, dataset: Dataset) -> Tensor:
    """Embeddings for the items that never co-occur: [lonely, D]."""
    known, strangers = (torch.nonzero(rows).flatten() for rows in (~lonely, lonely))
    categories, texts = dataset.catalog.categories, dataset.catalog.texts
    result = embeddings[known].mean(dim=0).expand(len(strangers), -1).clone()
    for number, row in enumerate(strangers.tolist()):
        same = known[categories[known] == categories[row]]
        if int(categories[row]) >= 0 and len(same):
            result[number] = embeddings[same].mean(dim=0)
    if any(texts[row].strip() for row in known.tolist()):
        words = _tfidf(texts)
        near = torch.from_numpy((words[strangers.numpy()] @ words[known.numpy()].T).toarray())
        weights, places = near.topk(min(NEIGHBOURS, len(known)), dim=1)
        found = weights[:, 0] > 0
        mixed = (embeddings[known][places] * weights[:, :, None]).sum(dim=1)
        result[found] = mixed[found]
    return _unit(result)


def _encode(texts: Sequence[str], folder: str) -> Tensor:
    """Embed with a sentence-transformers model from a local folder."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ConfigError(
            f"sid.embedding.text_encoder is {folder!r}, which needs sentence-transformers. "
            f"Install it with 'pip install genrl[text]', or use text_encoder: tfidf."
        ) from error
    try:
        model: Any = SentenceTransformer(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"sid.embedding.text_encoder: {folder!r} is no sentence-transformers model ({error}). "
            f"Give the folder of one that is on this machine, or use tfidf."
        ) from error
    return model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False).float().cpu()
