"""Data sets as TFDS prepares them."""

import io
import os


def prepare(tfds, name, arrays):
    """Does what TFDS does to prepare a data set, less what needs TensorFlow: encoding the images."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from PIL import Image
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    builder = tfds.builder(name, file_format="array_record")
    builder.data_path.mkdir(parents=True)
    features = builder.info.features
    serializer = ExampleSerializer(features.get_serialized_info())
    splits = []
    for split, images, labels in zip(("train", "test"), arrays[::2], arrays[1::2], strict=True):
        template = tfds.core.ShardedFileTemplate(
            data_dir=builder.data_path, dataset_name=name, split=split, filetype_suffix="array_record"
        )
        path = template.sharded_filepath(shard_index=0, num_shards=1)
        writer = ArrayRecordWriter(os.fspath(path), "group_size:1")
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "png")
            png.seek(0)
            example = {"image": png, "label": 0} | ({"id": f"{split}_{i:05}"} if "id" in features else {})
            encoded = features.encode_example(example) | {"label": int(label)}  # which may be out of range
            writer.write(serializer.serialize_example(encoded))
        writer.close()
        splits.append(
            tfds.core.SplitInfo(name=split, shard_lengths=[len(images)], num_bytes=0, filename_template=template)
        )
    builder.info.set_splits(tfds.core.splits.SplitDict(splits))
    builder.info.write_to_directory(builder.data_path)
    return builder
