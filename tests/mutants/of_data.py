"""Faults of `jebm.data`, of pictures and of drawing, where they are numbers."""

from .mutant import of

TESTS = ("tests/data/test_sources.py",)
FILES = ("tests/data/test_files.py",)

MUTANTS = (
    *of(
        "jebm/data/preprocessing.py", TESTS,
        ("- 255.0) * np.float32(1 / 255)", "- 256.0) * np.float32(1 / 256)", "white is not 1"),
        ("jnp.round(jnp.clip(", "jnp.floor(jnp.clip(", "rounded down"),
        ("images[:, :, ::-1]", "images[:, ::-1]", "flipped upside down"),
        ("shape=(images.shape[0], 1, 1, 1)", "shape=(1, 1, 1, 1)", "the whole batch is flipped"),
        ("levels / 128.0 - 1.0", "levels / 127.5 - 1.0", "dequantised beyond 1"),
        ("+ jax.random.uniform(noise_key, images.shape)",
         "+ jax.random.uniform(noise_key, images.shape[:1])[:, None, None, None]",
         "one noise for a whole image"),
    ),
    *of(
        "jebm/data/loader.py", TESTS,
        ("np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw",
         "np.random.Philox(key=np.array([seed, 0], np.uint64)).random_raw", "every epoch in the same order"),
        ("position * batch_size : (position + 1) * batch_size", "position : position + batch_size", "batches overlap"),
        ("return num_examples // batch_size", "return -(-num_examples // batch_size)", "a part of a batch"),
        ("batch[rows] = self.images[chosen[rows]]", "batch[rows] = self.images[rows]",
         "the first rows for those chosen",
         TESTS + FILES),
        ("crop_words(self.seed, step, self.batch_size) if", "crop_words(self.seed, 0, self.batch_size) if",
         "crops of the first step", FILES),
    ),
    *of(
        "jebm/data/geometry.py", FILES,
        ("(2 * sums + factor**2) // (2 * factor**2)", "sums // factor**2", "block averages rounded down", TESTS),
        ("borders = ((0, 0), (below // 2, below - below // 2)", "borders = ((0, 0), (below - below // 2, below // 2)",
         "the odd pixel above", TESTS),
        ("blocks = images.reshape(len(images), size, factor, size, factor,",
         "blocks = images.reshape(len(images), factor, size, factor, size,", "strided pixels for blocks", TESTS),
        ("left, top = (width - side) // 2, (height - side) // 2",
         "left, top = (height - side) // 2, (width - side) // 2",
         "the centre of the transposed image"),
        ("word * (free + 1) // 2**32", "word * free // 2**32", "the last position is never drawn"),
        ("image = image.crop(box)", "image = image", "the crop forgotten"),
        ("Image.Resampling.BILINEAR), np.uint8)\n        return",
         "Image.Resampling.NEAREST), np.uint8)\n        return",
         "another filter"),
    ),
    *of(
        "jebm/data/arrays.py", TESTS,
        ("(levels * 255 + 8) // 16", "levels * 15", "digits that are not white"),
        ("labels[train], labels[test])", "labels[train], labels[: len(test)])", "labels of other images"),
        ("len(images) // 10))", "len(images) // 5))", "a fifth for testing"),
    ),
    *of(
        "jebm/images.py", ("tests/commands/test_restore.py", "tests/commands/test_main.py"),
        ("np.round((np.clip(images, -1.0, 1.0) + 1.0) * 127.5)", "(np.clip(images, -1.0, 1.0) + 1.0) * 127.5",
         "rounded down"),
        ("images.astype(np.float32) / 127.5 - 1.0", "images.astype(np.float32) / 128.0 - 1.0", "white is not 1"),
    ),
    *of(
        "jebm/runs/samples.py", ("tests/commands/test_main.py", "tests/runs/test_samples.py"),
        ("draw(jax.random.key(seed), number, batch_size)", "draw(jax.random.key(seed), 0, batch_size)",
         "every batch is the same"),
        ("draw(jax.random.key(seed), number, batch_size)", "draw(jax.random.key(0), number, batch_size)",
         "the seed ignored"),
    ),
    *of(
        "jebm/report/plots.py", ("tests/report/test_page.py::test_nearest_by_its_definition",),
        ("index[closer] = start + at[closer]", "index[closer] = at[closer]", "neighbours of the first block"),
    ),
    *of(
        "jebm/data/prepare/originals.py", ("tests/data/test_archives.py::test_the_archive_holds_what_was_downloaded",),
        ("examples(*files[2:])", "examples(*files[:2])", "what trains also tests"),
        ("yield _png(image), int(label)", "yield _png(255 - image), int(label)", "MNIST black on white"),
    ),
    *of(
        "jebm/data/prepare/archives.py", ("tests/data/test_archives.py::test_brought_files_are_those_of_the_authors",),
        ("(digest := files.sha256(path)) != download.sha256", "(digest := files.sha256(path)) == ''",
         "brought files are not compared"),
    ),
    *of(
        "jebm/files.py", ("tests/data/test_archives.py::test_a_bad_download_leaves_no_archive_and_goes_on_later",),
        ("(found := sha256(temporary)) != expected", "(found := sha256(temporary)) == ''", "any content is kept"),
    ),
    *of(
        "jebm/data/parquet.py", ("tests/data/test_parquet.py",),
        ("rows = list(holdout_split(rows[0], str(folder)))", "rows = [rows[0][:-1], rows[0][-1:]]",
         "the last rows, perhaps of one class, are held out"),
        ("chosen = [part[row].astype(np.int32)", "chosen = [part[: len(row)].astype(np.int32)",
         "labels of other images"),
        ("for name in _NAMES[1:] if of[name]), [])", "for name in _NAMES[:1] if of[name]), [])",
         "what trains also tests"),
    ),
    *of(
        "jebm/runs/packed.py", ("tests/runs/test_packed.py::test_a_file_gives_the_bits_of_the_run[ec_gan]",
                                "tests/runs/test_packed.py::test_a_file_gives_the_bits_of_the_run[ec_vae]"),
        ("_kept(with_weights(run.state, weights))", "_kept(run.state)", "the raw weights for the averaged ones"),
        ("None if node.ema is None else kept.params)", "None if node.ema is None else _zeros(kept.params))",
         "averages of 0"),
    ),
)  # fmt: skip
