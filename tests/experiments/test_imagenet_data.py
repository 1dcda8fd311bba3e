import io
import itertools
import os
import re
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.data import imagenet
from experiments.data.imagenet import decode, evaluation_batches, normalize, open_split, training_batches

from .photographs import LABELS, photographs

SIZE = 30


def gradient(width=90, height=60):
    """An image whose red tells the column, and whose green the row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95} | options if kind == "JPEG" else options))
    return buffer.getvalue()


def whole(width, height):
    return 0, 0, width, height


def resized(image):
    return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)).astype(int)


def plain(red):
    return encoded(Image.new("RGB", (40, 30), (red, 0, 0)), "PNG")


def write(folder, counts, splits=("train", "val")):
    """Writes class folders whose images have a different red each, and names that say JPEG though they are PNG."""
    for split in splits:
        reds = itertools.count(10, 10)
        for name, count in counts.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                (folder / split / name / f"{number}.JPEG").write_bytes(plain(next(reds)))
    return folder


def reds(batch):
    """Returns what tells the images of a batch, 0 for those of weight 0."""
    found = batch["image"][:, 0, 0, 0]
    np.testing.assert_array_equal(batch["weight"], found > 0)
    return found.tolist()


class TestDecode:
    @pytest.mark.parametrize(
        ("image", "kind", "options", "atol"),
        [
            (gradient(), "JPEG", {}, 4),
            (gradient(), "JPEG", {"progressive": True}, 4),
            (gradient().convert("L"), "JPEG", {}, 3),
            (gradient().convert("CMYK"), "JPEG", {}, 6),
            (gradient(900, 600), "JPEG", {}, 3),  # decoded at an eighth of its size
            (gradient(), "PNG", {}, 0),
            (gradient().convert("L"), "PNG", {}, 0),
            (gradient().convert("RGBA"), "PNG", {}, 0),
            (gradient().quantize(200), "PNG", {"transparency": 3}, 0),
        ],
        ids=["jpeg", "progressive", "grey", "cmyk", "large", "png", "grey png", "alpha", "palette"],
    )
    def test_kinds(self, image, kind, options, atol):
        found = decode(encoded(image, kind, **options), whole, SIZE)
        assert (found.dtype, found.shape) == (np.uint8, (SIZE, SIZE, 3))
        np.testing.assert_allclose(found.astype(int), resized(image), atol=atol)

    def test_16_bit_grey_is_scaled_and_not_clipped(self):
        values = np.linspace(0, 65535, 90 * 60).reshape(60, 90).astype(np.uint16)
        found = decode(encoded(Image.fromarray(values), "PNG"), whole, SIZE)
        np.testing.assert_array_equal(found, resized(Image.fromarray((values >> 8).astype(np.uint8))))

    def test_part(self):
        found = decode(encoded(gradient(), "PNG"), lambda width, height: (45, 30, 90, 60), SIZE).astype(int)
        np.testing.assert_array_equal(found, resized(gradient().crop((45, 30, 90, 60))))

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"not an image",
            encoded(gradient())[:-200],
            encoded(gradient(), "PNG")[:200],
            encoded(gradient(), "GIF"),
        ],
        ids=["empty", "text", "half a jpeg", "half a png", "gif"],
    )
    def test_what_can_not_be_decoded(self, content):
        assert decode(content, whole, SIZE) is None

    @pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (1000, 20), (20, 1000), (1, 1)])
    def test_crops_are_within_the_image(self, width, height):
        rng = np.random.default_rng(0)
        for crop in (imagenet._resized_crop, imagenet._alexnet_crop):
            boxes = np.array([crop(width, height, rng) for _ in range(100)])
            assert (boxes[:, :2] >= 0).all()
            assert (boxes[:, 2:] <= np.array([width, height]) + 1e-9).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()


class TestBatches:
    @pytest.fixture
    def split(self, tmp_path):
        return open_split(write(tmp_path, {"a": 3, "b": 4}), "train")

    def batches(self, split, **options):
        settings = {"image_size": 8, "batch_size": 4, "threads": 2} | options
        if "seed" in options:
            return iter(training_batches(split, **settings))
        return iter(evaluation_batches(split, **settings))

    def test_each_epoch_has_each_image_once_in_another_order(self, split):
        seen = [red for batch in itertools.islice(self.batches(split, seed=1), 7) for red in reds(batch)]
        epochs = [seen[i : i + 7] for i in range(0, 28, 7)]
        assert [sorted(epoch) for epoch in epochs] == [[10, 20, 30, 40, 50, 60, 70]] * 4
        assert len({tuple(epoch) for epoch in epochs}) == 4

    def test_labels_are_those_of_the_images(self, split):
        batch = next(self.batches(split, seed=1))
        np.testing.assert_array_equal(batch["label"], [red > 30 for red in reds(batch)])

    @pytest.mark.parametrize("crop", ["alexnet", "resized"])
    @pytest.mark.parametrize("processes", [2, 4])
    def test_processes_share_the_batches_of_one(self, crop, processes):
        split = open_split(photographs(), "train")
        options = {"seed": 3, "crop": crop, "image_size": 16}
        one = itertools.islice(self.batches(split, **options), 3)
        several = [self.batches(split, **options, process=p, processes=processes) for p in range(processes)]
        for batch in one:
            parts = [next(batches) for batches in several]
            for name, array in batch.items():
                np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)

    @pytest.mark.parametrize("processes", [1, 2])
    def test_goes_on_at_its_position(self, split, processes):
        batches = self.batches(split, seed=1)
        expected = list(itertools.islice(batches, 5))[3:]
        other = self.batches(split, seed=1)
        for _ in range(3):
            next(other)
        resumed = self.batches(split, seed=1, processes=processes)
        resumed.set_state(other.get_state())
        for batch in expected:
            np.testing.assert_array_equal(next(resumed)["image"], batch["image"][: 4 // processes])

    def test_other_seeds_give_other_orders(self, split):
        firsts = {tuple(reds(next(self.batches(split, seed=seed)))) for seed in range(5)}
        assert len(firsts) > 1

    @pytest.mark.parametrize("processes", [1, 2])
    def test_evaluation_sees_each_image_once(self, split, processes):
        seen = [
            [reds(batch) for batch in self.batches(split, process=process, processes=processes)]
            for process in range(processes)
        ]
        assert [len(of_process) for of_process in seen] == [2] * processes
        together = [red for step in zip(*seen, strict=True) for part in step for red in part]
        assert together == [10, 20, 30, 40, 50, 60, 70, 0]

    def test_images_that_can_not_be_decoded_have_no_weight(self, split, tmp_path):
        (tmp_path / "train/a/1.JPEG").write_bytes(b"corrupt")
        (tmp_path / "train/b/3.JPEG").unlink()
        seen = [red for batch in self.batches(split) for red in reds(batch)]
        assert seen == [10, 0, 30, 40, 50, 60, 0, 0]

    def test_normalized(self):
        found = normalize(jnp.array([[0] * 3, [255] * 3], jnp.uint8))
        np.testing.assert_allclose(found, [[-2.1179, -2.0357, -1.8044], [2.2489, 2.4286, 2.64]], atol=1e-4)


class TestFolder:
    def test_photographs(self):
        split = open_split(photographs(), "validation")
        assert (len(split.source), split.classes) == (20, 19)
        labels = [label for _, label in (split.source[i] for i in range(20))]
        assert labels == sorted(sorted(set(LABELS)).index(label) for label in LABELS)

    def test_other_files_are_left_alone(self, tmp_path):
        write(tmp_path, {"a": 1})
        for name in ("a/.hidden.jpg", "a/list.txt", "README.txt"):
            (tmp_path / "train" / name).write_bytes(b"x")
        (tmp_path / "train/.cache").mkdir()
        (tmp_path / "train/a/é.PNG").write_bytes(b"x")
        split = open_split(tmp_path, "train")
        assert (len(split.source), split.classes) == (2, 1)
        assert split.source[1] == (b"x", 0)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda data: data.rmdir(), "data must be a folder; got"),
            (lambda data: None, "has no imagenet2012 and no train and no val"),
            (lambda data: write(data, {"a": 1}, ["train"]), "has no imagenet2012 and no val"),
            (lambda data: (data / "imagenet2012").mkdir(), "data must have imagenet2012 prepared as array_record"),
            (lambda data: write(data, {"a": 1, "b": 0}), "images in each class folder; .*/train/b has none"),
            (lambda data: [write(data, {"a": 2}, ["train"]), write(data, {"b": 1}, ["val"])], "differs in 2: a, b"),
            (
                lambda data: [write(data, {"a": 1}, ["train"]), (data / "val").mkdir(), (data / "val/1.jpg").touch()],
                r"a folder for each class; .*/val has none \(1 images lie directly in it\)",
            ),
            (
                lambda data: write(data, {f"n{number:08}": 1 for number in range(1000)}),
                "all 1281167 images of ImageNet if it has its 1000 classes; .*/train has 1000",
            ),
        ],
        ids=["none", "empty", "no val", "tfds", "empty class", "other classes", "flat", "half of it"],
    )
    def test_errors(self, tmp_path, make, message):
        make(tmp_path)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            open_split(tmp_path, "train")


class TestTfds:
    @pytest.fixture
    def prepared(self, tmp_path, monkeypatch):
        """A folder as TensorFlow Datasets makes it, with six and four images in two files each."""
        import tensorflow_datasets as tfds
        from array_record.python.array_record_module import ArrayRecordWriter
        from tensorflow_datasets.core.example_serializer import ExampleSerializer

        monkeypatch.setattr(imagenet, "SIZES", {"train": 6, "validation": 4})
        builder = tfds.builder("imagenet2012", data_dir=tmp_path, file_format="array_record")
        folder = tmp_path / "imagenet2012" / str(builder.version)
        folder.mkdir(parents=True)
        features = builder.info.features
        serializer = ExampleSerializer(features.get_serialized_info())
        splits = []
        for name, count in imagenet.SIZES.items():
            template = tfds.core.ShardedFileTemplate(
                data_dir=folder, dataset_name="imagenet2012", split=name, filetype_suffix="array_record"
            )
            for shard in range(2):
                path = template.sharded_filepath(shard_index=shard, num_shards=2)
                writer = ArrayRecordWriter(os.fspath(path), "group_size:1")
                for number in range(shard, count, 2):
                    example = {"image": io.BytesIO(plain(10 * number)), "label": number, "file_name": f"{number}.JPEG"}
                    writer.write(serializer.serialize_example(features.encode_example(example)))
                writer.close()
            lengths = [count // 2] * 2
            splits.append(
                tfds.core.SplitInfo(name=name, shard_lengths=lengths, num_bytes=0, filename_template=template)
            )
        builder.info.set_splits(tfds.core.splits.SplitDict(splits))
        builder.info.write_to_directory(folder)
        return folder

    def test_is_read_without_tensorflow(self, tmp_path, prepared):
        split = open_split(tmp_path, "train")
        assert split.classes == 1000
        assert sorted((label, content) for content, label in (split.source[i] for i in range(6))) == [
            (number, plain(10 * number)) for number in range(6)
        ]
        assert len(open_split(tmp_path, "validation").source) == 4
        assert "tensorflow" not in sys.modules

    @pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"x" * 99)])
    def test_incomplete_files(self, tmp_path, prepared, damage):
        (path,) = prepared.glob("*train*-00001-of-*")
        damage(path)
        message = re.escape(f"has 6 in train; missing or incomplete files: {path.name}")
        with pytest.raises(ValueError, match=message):
            open_split(tmp_path, "train")

    def test_too_few_images(self, tmp_path, prepared, monkeypatch):
        monkeypatch.setattr(imagenet, "SIZES", {"train": 1_281_167})
        with pytest.raises(ValueError, match=r"must have all 1281167 images of imagenet2012; .* has 6 in train"):
            open_split(tmp_path, "train")
