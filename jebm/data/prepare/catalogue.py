"""Data sets by name: the papers' splits and crops, and the origin of the files."""

import dataclasses

__all__ = ["ARCHIVES", "CATALOGUE", "Download", "Entry"]


@dataclasses.dataclass(frozen=True)
class Download:
    """A file that its authors offer.

    Attributes:
        url: where.
        size: in bytes.
        sha256: of the content.
        folder: of the set, where other sets have files of that name.
    """

    url: str
    size: int
    sha256: str
    folder: str = ""

    @property
    def name(self) -> str:
        """The file's name, below the folder of originals."""
        return f"{self.folder}/{self.url.rsplit('/', 1)[-1]}".removeprefix("/")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A set, as the papers use it.

    Attributes:
        what: in words.
        train: the split that trains.
        test: the split held out; where it is not there, the last tenth of ``train``.
        crop: see `jebm.data.geometry`; ``auto`` is ``none`` for images of one size, else ``centre``.
        size: the side that ``crop`` leads to where no other is asked for.
        version: of TensorFlow Datasets, whose layout is written.
        downloads: what `jebm data prepare` fetches.
        by_hand: files that the user must bring, and where from; a folder may take the place of its archive.
        labelled: whether labels are read.
    """

    what: str = ""
    train: str = "train"
    test: str = "test"
    crop: str = "auto"
    size: int | None = None
    version: str = ""
    downloads: tuple[Download, ...] = ()
    by_hand: tuple[tuple[str, str], ...] = ()
    labelled: bool = True


def _idx(folder: str, url: str, *files: tuple[int, str]) -> tuple[Download, ...]:
    """Images and labels that train, images and labels that test, as MNIST's authors pack them."""
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(
        Download(f"{url}/{name}-ubyte.gz", size, digest, folder)
        for name, (size, digest) in zip(names, files, strict=True)
    )


_CELEB_A = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
_IMAGENET = "https://image-net.org/download-images (an account is needed)"

CATALOGUE: dict[str, Entry] = {
    "mnist": Entry(
        "MNIST: 60,000 + 10,000 digits, 28x28 grey, 10 classes", crop="none", version="3.0.1",
        downloads=_idx(
            "mnist", "https://storage.googleapis.com/cvdf-datasets/mnist",
            (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
    ),
    "fashion_mnist": Entry(
        "Fashion-MNIST: 60,000 + 10,000 pieces of clothing, 28x28 grey, 10 classes", crop="none", version="3.0.1",
        downloads=_idx(
            "fashion_mnist", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
    ),
    "kmnist": Entry(
        "Kuzushiji-MNIST: 60,000 + 10,000 letters, 28x28 grey, 10 classes", crop="none", version="3.0.1",
        downloads=_idx(
            "kmnist", "http://codh.rois.ac.jp/kmnist/dataset/kmnist",
            (18165135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"),
            (29497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"),
            (3041136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"),
            (5120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"),
        ),
    ),
    "cifar10": Entry(
        "CIFAR-10: 50,000 + 10,000 images, 32x32, 10 classes", crop="none", version="3.0.2",
        downloads=(Download("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", 170052171,
                            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),),
    ),
    "cifar100": Entry(
        "CIFAR-100: 50,000 + 10,000 images, 32x32, 100 classes", crop="none", version="3.0.2",
        downloads=(Download("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", 168513733,
                            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),),
    ),
    "svhn_cropped": Entry(
        "Street View House Numbers: 73,257 + 26,032 images, 32x32, 10 classes", crop="none", version="3.1.0",
        downloads=(Download("http://ufldl.stanford.edu/housenumbers/train_32x32.mat", 182040794,
                            "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
                   Download("http://ufldl.stanford.edu/housenumbers/test_32x32.mat", 64275384,
                            "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b")),
    ),
    "stl10": Entry(
        "STL-10: 105,000 images to train (5,000 labelled), 8,000 to test, 96x96, brought to 32x32",
        train="train+unlabelled", crop="centre", size=32, version="1.0.0", labelled=False,
        downloads=(Download("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", 2640397119,
                            "f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866"),),
    ),
    "dtd": Entry(
        "Describable Textures: 5,640 images of 47 classes, any size", crop="centre", size=64, version="3.0.1",
        downloads=(Download("https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz", 625239812,
                            "e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205"),),
    ),
    "celeb_a": Entry(
        "CelebA: 162,770 + 19,867 + 19,962 faces, 178x218; the centre 178x178 brought to 64x64",
        crop="centre:178", size=64, version="2.1.0",
        by_hand=(("img_align_celeba.zip", f"{_CELEB_A} (In-The-Wild is another set: take Align&Cropped)"),
                 ("list_eval_partition.txt", f"{_CELEB_A} (Train/Val/Test Partitions)")),
    ),
    "celeb_a_hq/256": Entry(
        "CelebA-HQ: 30,000 faces at 256x256; the last tenth in a fixed random order is held out",
        crop="none", version="2.0.0",
        by_hand=(("data256x256", "a folder of 30,000 image files at 256x256, made by the scripts of "
                  "https://github.com/tkarras/progressive_growing_of_gans"),),
    ),
    "lsun/church_outdoor": Entry(
        "LSUN church: 126,227 + 300 images, short side 256; the centre square brought to 64x64",
        test="validation", crop="centre", size=64, version="3.1.0",
        by_hand=(("church_outdoor_train", "a folder of image files, exported from church_outdoor_train_lmdb.zip by "
                  "data.py of https://github.com/fyu/lsun"),
                 ("church_outdoor_val", "the same of church_outdoor_val_lmdb.zip")),
    ),
    "imagenet2012": Entry(
        "ImageNet: 1,281,167 + 50,000 images; short side to 128, a random crop in training, the centre elsewhere",
        test="validation", crop="random", size=128, version="5.1.0", labelled=False,
        by_hand=(("ILSVRC2012_img_train.tar", _IMAGENET), ("ILSVRC2012_img_val.tar", _IMAGENET)),
    ),
    "imagenet_resized/32x32": Entry(
        "ImageNet at 32x32 by a box filter (Chrabaszcz et al.): 1,281,167 + 50,000 images, 1,000 classes",
        test="validation", crop="none", version="0.1.0", labelled=False,
        by_hand=(("Imagenet32_train_npz.zip", _IMAGENET), ("Imagenet32_val_npz.zip", _IMAGENET)),
    ),
    "downsampled_imagenet/32x32": Entry(
        "ImageNet at 32x32 (van den Oord et al., the set of likelihoods): 1,281,149 + 49,999 images, no labels",
        test="validation", crop="none", version="2.0.0",
        by_hand=(("train_32x32.tar", "https://image-net.org/small/train_32x32.tar"),
                 ("valid_32x32.tar", "https://image-net.org/small/valid_32x32.tar")),
    ),
}  # fmt: skip

ARCHIVES = ("mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn_cropped")
"""Sets small enough for one archive, which ``jebm data prepare NAME`` writes."""
