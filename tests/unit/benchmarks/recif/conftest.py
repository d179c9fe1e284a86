import pytest

from tests.unit.benchmarks.recif.models import save_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A folder with a small random model that writes the SIDs of the benchmark; tests leave it as it is."""
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "OneRec-tiny")
