import io
import os
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.imagenet import sources
from experiments.imagenet.sources import open_source

from .made_images import make_folder, plain

COUNTS = {"n01": 2, "n02": 3, "n03": 1}


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "data", COUNTS)


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def labels_and_names(source):
    examples = [source[number] for number in range(len(source))]
    return [(example["label"], Path(example["name"]).name) for example in examples]


class TestFolder:
    @pytest.mark.parametrize("split", ["train", "val"])
    def test_class_folders_sorted_by_name_are_the_labels(self, folder, split):
        source = open_source(folder, split)
        assert source.classes == 3
        assert labels_and_names(source) == [
            (0, "000.JPEG"),
            (0, "001.JPEG"),
            (1, "000.JPEG"),
            (1, "001.JPEG"),
            (1, "002.JPEG"),
            (2, "000.JPEG"),
        ]
        example = source[4]
        assert example["name"] == str(folder / split / "n02" / "002.JPEG")
        assert example["image"] == plain(40, 0, 20)
        assert type(example["label"]) is int

    def test_description_has_the_counts(self, folder):
        assert open_source(folder, "train").description == f"6 images of 3 classes in {folder / 'train'}"

    def test_other_suffixes_and_other_files(self, folder):
        for name in ("d.jpg", "c.JPG", "b.jpeg", "a.PNG", "é.Jpeg"):
            touch(folder / "train" / "n03" / name)
        for name in (".hidden.jpg", "._000.JPEG", "Thumbs.db", "list.txt", "jpg"):
            touch(folder / "train" / "n03" / name)
        touch(folder / "train" / "README.txt")
        touch(folder / "train" / ".cache" / "x.jpg")
        names = [name for label, name in labels_and_names(open_source(folder, "train")) if label == 2]
        assert names == ["000.JPEG", "a.PNG", "b.jpeg", "c.JPG", "d.jpg", "é.Jpeg"]

    def test_a_folder_comes_before_tfds(self, folder):
        (folder / "imagenet2012").mkdir()
        assert len(open_source(folder, "train")) == 6

    def test_survives_pickling(self, folder):
        source = open_source(folder, "val")
        copy = pickle.loads(pickle.dumps(source))
        assert [copy[i] for i in range(len(copy))] == [source[i] for i in range(len(source))]
        assert (copy.classes, copy.description) == (source.classes, source.description)

    def test_is_small_for_its_number_of_files(self, tmp_path):
        data = tmp_path / "many"
        for split in ("train", "val"):
            for number in range(500):
                touch(data / split / "n01440764" / f"n01440764_{number:05}.JPEG")
        assert len(pickle.dumps(open_source(data, "train"))) < 500 * 32

    def test_a_file_that_has_gone_is_named(self, folder):
        source = open_source(folder, "train")
        gone = folder / "train" / "n01" / "001.JPEG"
        gone.unlink()
        with pytest.raises(FileNotFoundError, match=re.escape(str(gone))):
            source[1]

    def test_iterating_ends(self, folder):
        assert len(list(open_source(folder, "train"))) == 6


class TestClassesFile:
    def test_lists_the_classes_in_the_order_of_their_labels(self, folder):
        (folder / "classes.txt").write_text("n03\nn00\nn02\n\nn01\n")
        source = open_source(folder, "train")
        assert source.classes == 4
        assert [label for label, _ in labels_and_names(source)] == [0, 2, 2, 2, 3, 3]
        assert source[1]["name"] == str(folder / "train" / "n02" / "000.JPEG")

    def test_splits_may_lack_different_classes(self, folder):
        (folder / "classes.txt").write_text("n01\nn02\nn03\n")
        for name in ("train/n01", "val/n03"):
            for path in (folder / name).iterdir():
                path.unlink()
            (folder / name).rmdir()
        assert {label for label, _ in labels_and_names(open_source(folder, "train"))} == {1, 2}
        assert {label for label, _ in labels_and_names(open_source(folder, "val"))} == {0, 1}

    def test_a_folder_that_is_not_listed(self, folder):
        (folder / "classes.txt").write_text("n01\nn03\n")
        message = f"{folder / 'train'} has class folders that {folder / 'classes.txt'} does not list: n02"
        with pytest.raises(ValueError, match=re.escape(message)):
            open_source(folder, "val")

    def test_a_class_listed_twice(self, folder):
        (folder / "classes.txt").write_text("n01\nn02\nn03\nn02\n")
        with pytest.raises(ValueError, match=re.escape(f"{folder / 'classes.txt'}: classes listed twice: n02")):
            open_source(folder, "train")


class TestBadFolders:
    def test_another_split(self, folder):
        with pytest.raises(ValueError, match="split must be one of train, val, got 'test'"):
            open_source(folder, "test")

    def test_no_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=re.escape(f"data is not an existing folder: {tmp_path / 'no'}")):
            open_source(tmp_path / "no", "train")

    @pytest.mark.parametrize(("there", "missing"), [("train", "val"), ("val", "train")])
    def test_one_split_only(self, tmp_path, there, missing):
        make_folder(tmp_path, COUNTS, splits=(there,))
        message = re.escape(f"{tmp_path} has a folder {there}, but none called {missing}")
        with pytest.raises(FileNotFoundError, match=message):
            open_source(tmp_path, there)

    def test_neither_folders_nor_tfds(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"neither the folders train and val.*imagenet2012.*has nothing"):
            open_source(tmp_path, "train")
        for number in range(7):
            touch(tmp_path / f"file-{number}")
        with pytest.raises(FileNotFoundError, match="has file-0, file-1, file-2, file-3, file-4 and 2 more"):
            open_source(tmp_path, "train")

    def test_validation_images_not_sorted_into_classes(self, tmp_path):
        make_folder(tmp_path, COUNTS, splits=("train",))
        touch(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
        message = re.escape(f"{tmp_path / 'val'} has no class folders (1 images lie directly in it)")
        with pytest.raises(ValueError, match=message):
            open_source(tmp_path, "train")

    def test_different_classes(self, folder):
        touch(folder / "train" / "n00" / "x.jpg")
        with pytest.raises(ValueError, match=r"different class folders; only in train: n00; only in val: none"):
            open_source(folder, "val")
        touch(folder / "val" / "n04" / "x.jpg")
        with pytest.raises(ValueError, match=r"different class folders; only in train: n00; only in val: n04"):
            open_source(folder, "train")

    @pytest.mark.parametrize("listed", [True, False])
    def test_a_class_folder_without_images(self, folder, listed):
        if listed:
            (folder / "classes.txt").write_text("n01\nn02\nn03\n")
        (folder / "val" / "n03" / "000.JPEG").rename(folder / "val" / "n03" / "000.txt")
        message = f"the class folder {folder / 'val' / 'n03'} has no images (.jpeg, .jpg, .png)"
        with pytest.raises(ValueError, match=re.escape(message)):
            open_source(folder, "val")


class TestWhole:
    """A folder with the 1000 classes of ImageNet, of 2000 images, is all of it or none."""

    @pytest.fixture
    def imagenet(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sources, "_TFDS_SPLITS", {"train": ("train", 2000), "val": ("validation", 2000)})
        for number in range(2000):
            for split in ("train", "val"):
                touch(tmp_path / split / f"n{number // 2:08}" / f"{number}.JPEG")
        return tmp_path

    def test_all_of_it(self, imagenet):
        assert len(open_source(imagenet, "train")) == len(open_source(imagenet, "val")) == 2000

    def test_a_few_may_be_missing(self, imagenet):
        for number in (1, 5, 9):
            assert len(open_source(imagenet, "train")) >= 1998
            (imagenet / "train" / f"n{number // 2:08}" / f"{number}.JPEG").unlink()
        message = (
            f"{imagenet / 'train'}: expected the 2000 images of ImageNet, found 1997; classes without a folder: none. "
            "If a part of it is wanted, its class folders must be called otherwise"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            open_source(imagenet, "train")
        assert len(open_source(imagenet, "val")) == 2000

    def test_every_class_must_have_a_folder(self, imagenet):
        (imagenet / "classes.txt").write_text("".join(f"n{number:08}\n" for number in range(1000)))
        (imagenet / "val" / "n00000007").rename(imagenet / "elsewhere")
        with pytest.raises(ValueError, match="found 1998; classes without a folder: n00000007"):
            open_source(imagenet, "val")

    @pytest.mark.parametrize("last", ["", "n001000", "class-999"])
    def test_other_classes_are_not_those_of_imagenet(self, imagenet, last):
        (imagenet / "classes.txt").write_text("".join(f"n{number:08}\n" for number in range(999)) + last)
        for split in ("train", "val"):
            (imagenet / split / "n00000999").rename(imagenet / f"{split}-elsewhere")
        assert len(open_source(imagenet, "train")) == 1998
        (imagenet / "train" / "n00000007" / "14.JPEG").unlink()
        assert len(open_source(imagenet, "train")) == 1997


SHARDS = 2
EXAMPLES = {"train": 6, "validation": 4}


def prepare(data, version="5.1.0", first_label=990):
    """Does what TFDS does to prepare ImageNet, less the download."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    builder = tfds.builder("imagenet2012", data_dir=data, file_format="array_record")
    folder = data / "imagenet2012" / version
    folder.mkdir(parents=True)
    serializer = ExampleSerializer(builder.info.features.get_serialized_info())
    splits = []
    for split, count in EXAMPLES.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name="imagenet2012", split=split, filetype_suffix="array_record"
        )
        for shard in range(SHARDS):
            path = template.sharded_filepath(shard_index=shard, num_shards=SHARDS)
            writer = ArrayRecordWriter(os.fspath(path), "group_size:1")
            for number in range(shard, count, SHARDS):
                example = {
                    "image": io.BytesIO(plain(10 * number)),
                    "label": first_label + number,
                    "file_name": f"{split}_{number}.JPEG",
                }
                writer.write(serializer.serialize_example(builder.info.features.encode_example(example)))
            writer.close()
        lengths = [count // SHARDS] * SHARDS
        splits.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=0, filename_template=template))
    builder.info.set_splits(tfds.core.splits.SplitDict(splits))
    builder.info.write_to_directory(folder)
    return folder


@pytest.fixture
def tfds_sized(monkeypatch):
    """Expects as many examples as `prepare` writes."""
    monkeypatch.setattr(
        sources, "_TFDS_SPLITS", {"train": ("train", EXAMPLES["train"]), "val": ("validation", EXAMPLES["validation"])}
    )


@pytest.mark.usefixtures("tfds_sized")
class TestTfds:
    def test_reads_files_undecoded_and_without_tensorflow(self, tmp_path):
        prepare(tmp_path)
        source = open_source(tmp_path, "train")
        assert (source.classes, len(source)) == (1000, 6)
        assert sorted(labels_and_names(source)) == [(990 + i, f"train_{i}.JPEG") for i in range(6)]
        assert {source[number]["image"] for number in range(6)} == {plain(10 * number) for number in range(6)}
        assert len(open_source(tmp_path, "val")) == 4
        assert "tensorflow" not in sys.modules

    def test_description(self, tmp_path):
        folder = prepare(tmp_path)
        assert open_source(tmp_path, "val").description == f"TFDS imagenet2012 5.1.0, split validation, in {folder}"

    def test_survives_pickling(self, tmp_path):
        prepare(tmp_path)
        source = open_source(tmp_path, "val")
        copy = pickle.loads(pickle.dumps(source))
        assert [copy[i] for i in range(4)] == [source[i] for i in range(4)]

    def test_the_newest_finished_version_is_read(self, tmp_path):
        prepare(tmp_path, "5.9.0")
        folder = prepare(tmp_path, "5.10.0")
        prepare(tmp_path, "6.0.0.incompleteA1B2")
        (tmp_path / "imagenet2012" / "5.11.0").mkdir()
        assert str(folder) in open_source(tmp_path, "val").description

    def test_nothing_finished(self, tmp_path):
        prepare(tmp_path, "5.1.0.incompleteA1B2C3")
        message = f"{tmp_path / 'imagenet2012'}: expected a folder VERSION.*found 5.1.0.incompleteA1B2C3"
        with pytest.raises(FileNotFoundError, match=message):
            open_source(tmp_path, "train")

    @pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
    def test_a_missing_or_incomplete_file(self, tmp_path, damage):
        folder = prepare(tmp_path)
        shard = folder / "imagenet2012-train.array_record-00001-of-00002"
        content = shard.read_bytes()
        shard.unlink()
        if damage != "missing":
            shard.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
        message = rf"split train, in .*: expected 6 examples, found 3; missing or incomplete files: {shard.name}$"
        with pytest.raises(ValueError, match=message):
            open_source(tmp_path, "train")
        assert len(open_source(tmp_path, "val")) == 4

    def test_a_file_damaged_afterwards_is_an_error_of_reading(self, tmp_path):
        folder = prepare(tmp_path)
        source = open_source(tmp_path, "train")
        for shard in folder.glob("*train*"):
            content = bytearray(shard.read_bytes())
            content[60:65536] = os.urandom(65536 - 60)
            shard.write_bytes(content)
        with pytest.raises(OSError, match=r"split train, in .*, example 0: .*[Cc]orrupted"):
            source[0]

    def test_prepared_for_tensorflow(self, tmp_path):
        info = prepare(tmp_path) / "dataset_info.json"
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
        with pytest.raises(ValueError, match=r"prepared as tfrecord.*file_format='array_record'"):
            open_source(tmp_path, "train")

    def test_a_missing_split(self, tmp_path):
        info = prepare(tmp_path) / "dataset_info.json"
        info.write_text(info.read_text().replace('"name": "validation"', '"name": "test"'))
        assert len(open_source(tmp_path, "train")) == 6
        with pytest.raises(ValueError, match="expected 4 examples, found no such split"):
            open_source(tmp_path, "val")


def test_a_part_of_imagenet_prepared_by_tfds_is_refused(tmp_path):
    prepare(tmp_path)
    with pytest.raises(ValueError, match="expected 1281167 examples, found 6; missing or incomplete files: none"):
        open_source(tmp_path, "train")
    with pytest.raises(ValueError, match="expected 50000 examples, found 4"):
        open_source(tmp_path, "val")


def test_labels_are_compact(tmp_path):
    source = open_source(make_folder(tmp_path, COUNTS), "train")
    assert source._labels.dtype == np.int32
