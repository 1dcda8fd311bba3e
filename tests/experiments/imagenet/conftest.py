"""What the tests of ImageNet share."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments.networks import NETWORKS
from tests.experiments.imagenet import tiny


@pytest.fixture(scope="package", autouse=True)
def tiny_network():
    """Adds `Tiny` to the networks, for the tests of this package alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "Tiny", tiny.Tiny)
        yield


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def compiled_once(cache_folder):
    """Lets tests that train the same network compile it once; returns the environment for processes of their own."""
    settings = {
        "jax_compilation_cache_dir": str(cache_folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield {name.upper(): str(value) for name, value in settings.items()}
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
