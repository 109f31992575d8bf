"""Data sets by name: the papers' splits and crops, and the origin of the files."""

import dataclasses

__all__ = ["CATALOGUE", "Download", "Entry"]


@dataclasses.dataclass(frozen=True)
class Download:
    """A file that its authors offer.

    Attributes:
        url: where.
        size: in bytes.
        sha256: of the content.
    """

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[-1]


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


_CELEB_A = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
_IMAGENET = "https://image-net.org/download-images (an account is needed)"

CATALOGUE: dict[str, Entry] = {
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
